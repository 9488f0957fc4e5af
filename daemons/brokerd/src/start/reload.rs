//! SIGHUP: what of a new configuration takes effect while brokerd runs, and how all of it is refused for one mistake.

use std::path::PathBuf;

use codering_core::Error;
use codering_kit::{
    live::Live,
    reload::{Effect, Told},
    shutdown::Shutdown,
    telemetry,
};

use super::check_files;
use crate::{
    auth::Auth,
    broker::Broker,
    config::{AT_RESTART, Config},
    pki::Pki,
};

pub(super) struct Reloading {
    config: Live<Config>,
    /// Where the ledger and the CA were opened, whatever a new configuration says.
    data_dir: PathBuf,
    told: Told,
    pki: Pki,
    broker: Broker,
    auth: Auth,
    shutdown: Shutdown,
}

impl Reloading {
    pub(super) fn new(
        config: Config,
        told: Told,
        pki: Pki,
        (broker, auth): (Broker, Auth),
        shutdown: Shutdown,
    ) -> Self {
        let data_dir = config.data_dir.clone();
        Self { config: Live::new(config), data_dir, told, pki, broker, auth, shutdown }
    }

    /// The one in force.
    pub(super) fn config(&self) -> Live<Config> {
        self.config.clone()
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.data_dir.clone()
    }

    /// What each SIGHUP does.
    pub(super) fn again(mut self) -> impl FnMut() -> Result<Effect, Error> + Send {
        move || self.once()
    }

    fn once(&mut self) -> Result<Effect, Error> {
        let (new, written) = Config::load_written(self.told.file.as_deref())?;
        check_files(&new).map_err(|error| written.placed(error))?;
        let filter = telemetry::filter(&new.log)?;
        let shown = self.pki.read(&new, &self.data_dir).map_err(|error| written.placed(error))?;
        // All of it is good; from here on nothing fails.
        self.pki.show(shown);
        self.broker.reconfigure(new.settings.clone());
        self.auth.set_certificate_life(new.certificate_life);
        self.told.filter.set(filter);
        self.shutdown.set_drain(new.drain);
        self.config.set(new);
        Ok(self.told.took(written, AT_RESTART))
    }
}
