//! SIGHUP: what of a new configuration takes effect while workerd runs, and how all of it is refused for one mistake.

use std::sync::{Arc, PoisonError};

use codering_core::Error;
use codering_kit::{
    config,
    reload::{Effect, Told},
    shutdown::Shutdown,
    telemetry,
};

use crate::{
    config::{AT_RESTART, Config, File},
    enroll,
    image::How,
    renew::Way,
    start::drain,
    worker::{Work, Worker},
};

/// What each SIGHUP does.
pub(crate) fn again(
    mut told: Told,
    worker: Arc<Worker>,
    way: Way,
    shutdown: Shutdown,
) -> impl FnMut() -> Result<Effect, Error> + Send {
    move || {
        let (new, written) = config::load_written("workerd", told.file.as_deref(), File::check)?;
        // The certificate is where the worker was started with it.
        let new = Config { data_dir: worker.config.data_dir.clone(), ..new };
        take(&new, &worker, &way).map_err(|error| written.placed(error))?;
        told.filter.set(telemetry::filter(&new.log)?);
        shutdown.set_drain(drain(&new));
        worker.now.set(new);
        Ok(told.took(written, AT_RESTART))
    }
}

/// Reads all of it before any of it is used.
fn take(new: &Config, worker: &Worker, way: &Way) -> Result<(), Error> {
    enroll::check(new)?;
    let files = worker.proof_files.lock().unwrap_or_else(PoisonError::into_inner);
    let read = enroll::read(new)?;
    if let Work::Real(real) = &worker.work {
        let how = How::of(new)?;
        real.mirrors.reconfigure(new.git.clone(), new.proxy.clone())?;
        real.images.reconfigure(how);
        real.sandbox_config.set(new.sandbox.clone());
    }
    way.proof.set(read.tls);
    way.proxy.set(new.proxy.clone());
    // Not before, or a renewal in between would be undone.
    drop(files);
    Ok(())
}
