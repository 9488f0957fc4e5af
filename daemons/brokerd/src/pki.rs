//! brokerd's own CA and what it shows with it: made at the first start, renewed while it runs and at later starts.

use std::{path::Path, sync::Arc, time::Duration};

use codering_core::{Code, Error, time::Millis};
use codering_kit::{
    host,
    live::Live,
    shutdown::Shutdown,
    tls::{self, Ca, write_private, write_public},
};
use rustls::ServerConfig;

use crate::{broker::now, config::Config};

/// A server certificate with less time left is made anew.
const RENEW_BEFORE_MS: Millis = 180 * 86_400_000;
/// How often its time is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(6 * 3600);

/// The CA and the two servers' TLS.
#[derive(Clone)]
pub struct Pki {
    /// Signs workers' certificates.
    pub ca: Arc<Ca>,
    /// For gRPC: shows brokerd's own certificate and asks workers for theirs.
    pub grpc: Live<ServerConfig>,
    /// For REST, where it has TLS.
    pub rest: Option<Live<ServerConfig>>,
}

/// What is shown next, once all of a new configuration was found good.
pub struct Shown {
    grpc: ServerConfig,
    rest: Option<ServerConfig>,
}

impl Pki {
    /// Opens it below the data directory, or makes it there.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] with the file and what to do about it.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let ca = Arc::new(Ca::at(&config.data_dir.join("ca"))?);
        let shown = read_all(&ca, config, &config.data_dir)?;
        Ok(Self { ca, grpc: Live::new(shown.grpc), rest: shown.rest.map(Live::new) })
    }

    /// Reads and makes what this configuration asks for, in the data directory that was opened; shows none of it yet.
    ///
    /// # Errors
    /// Those of [`Pki::open`].
    pub fn read(&self, config: &Config, data_dir: &Path) -> Result<Shown, Error> {
        read_all(&self.ca, config, data_dir)
    }

    /// From now on new connections are shown this. Whether REST has TLS stays as it was.
    pub fn show(&self, shown: Shown) {
        self.grpc.set(shown.grpc);
        if let (Some(live), Some(rest)) = (&self.rest, shown.rest) {
            live.set(rest);
        }
    }

    /// Renews brokerd's own certificate before its time is over, as long as the process runs. `config` is the one in force.
    pub async fn keep_valid(self, config: Live<Config>, data_dir: std::path::PathBuf, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.begun() => return,
            }
            self.look(&config.get(), &data_dir);
        }
    }

    fn look(&self, config: &Config, data_dir: &Path) {
        match self.read(config, data_dir) {
            Ok(shown) => self.show(shown),
            Err(error) => tracing::error!("the certificates were not renewed: {error}"),
        }
    }
}

fn read_all(ca: &Ca, config: &Config, data_dir: &Path) -> Result<Shown, Error> {
    let (chain, key) = own_certificate(ca, &data_dir.join("tls"), &names(&config.public_names))?;
    let grpc = tls::server_config(chain.as_bytes(), key.as_bytes(), Some(ca.pem().as_bytes()))?;
    let rest = match (config.rest_tls, &config.rest_certificate) {
        (false, _) => None,
        (true, None) => Some(tls::server_config(chain.as_bytes(), key.as_bytes(), None)?),
        (true, Some((chain, key))) => Some(given_certificate(chain, key)?),
    };
    Ok(Shown { grpc, rest })
}

/// A certificate that the configuration names.
///
/// # Errors
/// [`Code::ConfigInvalid`] where it cannot be read, has expired, or does not belong to its key.
pub fn given_certificate(chain: &Path, key: &Path) -> Result<ServerConfig, Error> {
    let place = chain.display().to_string();
    let pem = read(chain)?;
    tls::check_validity(pem.as_bytes(), &place)?;
    tls::server_config(pem.as_bytes(), read(key)?.as_bytes(), None).map_err(|error| error.at(place))
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|e| {
        Error::new(Code::ConfigInvalid, format!("cannot be read: {e}")).at(path.display().to_string())
    })
}

/// What the certificate names: the configured names, the host's own, and loopback.
fn names(public: &[String]) -> Vec<String> {
    let own = [host::name(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
    let mut names = Vec::new();
    for name in public.iter().cloned().chain(own) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn own_certificate(ca: &Ca, directory: &Path, names: &[String]) -> Result<(String, String), Error> {
    let (chain_file, key_file) = (directory.join("server.pem"), directory.join("server.key"));
    let there = (std::fs::read_to_string(&chain_file), std::fs::read_to_string(&key_file));
    if let (Ok(chain), Ok(key)) = there
        && ca.covers(&chain, names, now() + RENEW_BEFORE_MS)
        && tls::server_config(chain.as_bytes(), key.as_bytes(), None).is_ok()
    {
        return Ok((chain, key));
    }
    let issued = ca.issue_server(names)?;
    let io = |e: std::io::Error| {
        Error::new(Code::ConfigInvalid, format!("cannot be written: {e}")).at(directory.display().to_string())
    };
    std::fs::create_dir_all(directory).map_err(io)?;
    write_private(&key_file, issued.key_pem.as_bytes()).map_err(io)?;
    write_public(&chain_file, issued.chain_pem.as_bytes()).map_err(io)?;
    tracing::info!(names = names.join(" "), "a server certificate was made");
    Ok((issued.chain_pem, issued.key_pem))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_server_certificate_is_kept_until_its_names_change() {
        let directory = tempfile::tempdir().expect("a directory");
        let ca = Ca::at(&directory.path().join("ca")).expect("made");
        let tls = directory.path().join("tls");
        let first = own_certificate(&ca, &tls, &names(&["localhost"])).expect("made");
        assert_eq!(own_certificate(&ca, &tls, &names(&["localhost"])).expect("kept"), first);
        let more = own_certificate(&ca, &tls, &names(&["localhost", "broker.lan"])).expect("made");
        assert_ne!(more, first);
        let mode = std::fs::metadata(tls.join("server.key")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(tls.join("server.key"), "damaged").expect("written");
        assert_ne!(own_certificate(&ca, &tls, &names(&["localhost", "broker.lan"])).expect("made"), more);
    }

    #[test]
    fn a_certificate_that_nears_its_end_is_made_anew_while_it_is_shown() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("brokerd.toml");
        std::fs::write(&file, format!("data_dir = '{}'", directory.path().display())).expect("written");
        let config = Config::load(Some(&file)).expect("valid");
        let pki = Pki::open(&config).expect("opened");
        let chain = directory.path().join("tls/server.pem");
        let first = std::fs::read_to_string(&chain).expect("made");
        let shown = pki.grpc.get();
        pki.look(&config, &config.data_dir);
        assert_eq!(std::fs::read_to_string(&chain).expect("there"), first, "it has years left");
        let days = std::time::Duration::from_secs(170 * 86_400);
        let short = pki.ca.issue_server_for(&super::names(&config.public_names), days).expect("made");
        std::fs::write(directory.path().join("tls/server.key"), &short.key_pem).expect("written");
        std::fs::write(&chain, &short.chain_pem).expect("written");
        pki.look(&config, &config.data_dir);
        let renewed = std::fs::read_to_string(&chain).expect("there");
        assert!(renewed != first && renewed != short.chain_pem);
        assert!(!Arc::ptr_eq(&shown, &pki.grpc.get()), "the old one is shown still");
    }

    #[test]
    fn a_given_certificate_with_anothers_key_is_refused_with_its_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let ca = Ca::at(&directory.path().join("ca")).expect("made");
        let (one, other) =
            (ca.issue_server(&names(&["a"])).expect("made"), ca.issue_server(&names(&["a"])).expect("made"));
        let (chain, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
        std::fs::write(&chain, one.chain_pem).expect("written");
        std::fs::write(&key, one.key_pem).expect("written");
        given_certificate(&chain, &key).expect("a pair");
        std::fs::write(&key, other.key_pem).expect("written");
        let error = given_certificate(&chain, &key).expect_err("no pair").to_string();
        assert!(error.starts_with(&chain.display().to_string()), "{error}");
    }

    #[test]
    fn the_names_are_each_there_once() {
        let names = super::names(&["localhost".into(), "broker.lan".into()]);
        assert_eq!(names.iter().filter(|n| *n == "localhost").count(), 1);
        assert!(["broker.lan", "127.0.0.1", "::1"].iter().all(|n| names.iter().any(|name| name == n)));
    }
}
