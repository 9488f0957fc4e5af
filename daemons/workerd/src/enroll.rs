//! Becoming a worker: a join token for a certificate, once. After that the certificate is the worker's proof.

use std::{fs, path::Path, sync::Arc, time::Duration};

use codering_core::{Code, Error, WorkerName, joining};
use codering_kit::{
    clock::now,
    config, connect,
    fault::{self, Point},
    host,
    live::Live,
    tls,
};
use codering_proto::{
    status::from_status,
    v1::{EnrollRequest, workers_client::WorkersClient},
};

use crate::{backoff::Backoff, config::Config, renew};

/// For one try.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Certificate, key, and the broker's CA.
const FILES: [&str; 3] = ["worker.pem", "worker.key", "ca.pem"];

/// A worker's proof.
pub struct Proof {
    /// The name that its certificate has.
    pub name: WorkerName,
    /// What else that says.
    pub identity: tls::Identity,
    /// How to speak to the broker.
    pub tls: Arc<rustls::ClientConfig>,
}

/// The certificate on disk; or a new one for the join token, trying for as long as the broker is not there. One that has ended
/// is replaced where there is a join token.
///
/// # Errors
/// [`Code::ConfigInvalid`] when there is neither, or when a file is of no use; the broker's own when it refuses the
/// join token.
pub async fn proof(config: &Config) -> Result<Proof, Error> {
    let dir = config.path("tls");
    renew::finish(&dir)?;
    if !FILES.iter().all(|file| dir.join(file).exists()) {
        enroll(config, &dir).await?;
    } else if has_ended(&dir) && matches!(join_token(config), Ok(Some(_))) {
        // The machine was off for longer than its certificate is valid; beside its broker it is given a token for that.
        tracing::warn!("the certificate has ended: joining anew with the join token");
        enroll(config, &dir).await?;
    }
    read(config)
}

/// The certificate on disk.
///
/// # Errors
/// [`Code::ConfigInvalid`] when a file is not there or of no use.
pub fn read(config: &Config) -> Result<Proof, Error> {
    let dir = config.path("tls");
    let [certificate, key, ca] = FILES.map(|file| dir.join(file)).map(|file| {
        fs::read(&file).map_err(|e| {
            Error::new(Code::ConfigInvalid, format!("cannot be read: {e}")).at(file.display().to_string())
        })
    });
    let (certificate, key, ca) = (certificate?, key?, ca?);
    let place = dir.join("worker.pem").display().to_string();
    let identity = valid(config, &certificate, &dir.join("worker.pem"))?;
    valid(config, &ca, &dir.join("ca.pem"))?;
    let name = identity.worker().ok_or_else(|| {
        Error::new(Code::ConfigInvalid, "this certificate names no worker").at(place.clone())
    })?;
    if name != config.name {
        tracing::warn!(configured = %config.name, certificate = %name, "this worker goes by its certificate's name");
    }
    Ok(Proof { name, identity, tls: Arc::new(tls::client_config(&ca, Some((&certificate, &key)))?) })
}

fn valid(config: &Config, pem: &[u8], file: &Path) -> Result<tls::Identity, Error> {
    let place = file.display().to_string();
    tls::check_validity(pem, &place).map_err(|e| e.hint(format!("enrol anew, {}", anew(config))))
}

/// What is typed for this worker's next certificate. The one that is there says by what name it goes.
fn anew(config: &Config) -> String {
    let named = shown(&config.path("tls")).and_then(|identity| identity.worker());
    let name = named.unwrap_or_else(|| config.name.clone());
    let host = host::name();
    let host = if host.is_empty() { joining::HOST } else { &host };
    joining::again(name.as_str(), &config.broker, host)
}

/// Looks at what the configuration points to, and at the certificates that are there already; changes nothing.
///
/// # Errors
/// [`Code::ConfigInvalid`] with the file.
pub fn check(config: &Config) -> Result<(), Error> {
    let dir = config.path("tls");
    for name in ["worker.pem", "ca.pem"] {
        if let Ok(pem) = fs::read(dir.join(name)) {
            valid(config, &pem, &dir.join(name))?;
        }
    }
    for (key, file) in [
        ("enroll.ca_file", &config.enroll.ca_file),
        ("git.ca_file", &config.git.ca),
        ("git.ssh_key_file", &config.git.ssh_key),
        ("git.known_hosts_file", &config.git.known_hosts),
        ("git.credentials_file", &config.git.credentials),
        ("docker.credentials_file", &config.docker_credentials),
    ] {
        if let Some(file) = file {
            fs::File::open(file).map_err(|e| {
                Error::new(Code::ConfigInvalid, format!("{}: cannot be read: {e}", file.display())).at(key)
            })?;
        }
    }
    Ok(())
}

/// How often the broker is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asking {
    /// For as long as it does not answer.
    UntilAnswered,
    /// Somebody waits for the outcome.
    Once,
}

/// What the certificate on disk says, where one can be read.
fn shown(dir: &Path) -> Option<tls::Identity> {
    let pem = fs::read(dir.join("worker.pem")).ok()?;
    tls::Identity::of(tls::certificates(&pem).ok()?.first()?).ok()
}

fn has_ended(dir: &Path) -> bool {
    shown(dir).is_some_and(|identity| identity.not_after_ms <= now())
}

fn join_token(config: &Config) -> Result<Option<config::Secret>, Error> {
    match &config.enroll.token_file {
        Some(file) => config::secret_file("enroll.token_file", file).map(Some),
        None => config::credential("join_token"),
    }
}

async fn enroll(config: &Config, dir: &Path) -> Result<(), Error> {
    let token = join_token(config)?.ok_or_else(|| {
        Error::new(Code::ConfigInvalid, "this worker has no certificate and no join token")
            .at("enroll.token_file")
            .hint(format!("an admin makes one, {}", anew(config)))
    })?;
    join(config, dir, &token, Asking::UntilAnswered).await.map_err(|error| match error.code {
        Code::AuthInvalid => {
            let message = format!("the broker refuses this worker's join token: {}", error.message);
            Error::new(error.code, message).hint(format!("an admin makes another, {}", anew(config)))
        }
        // Of a name that is taken or gone the broker says what can be done.
        _ => error,
    })
}

/// Fetches a certificate for this token, over a connection that trusts the CA which the token names and no other.
pub(crate) async fn join(
    config: &Config,
    dir: &Path,
    token: &config::Secret,
    asking: Asking,
) -> Result<(), Error> {
    let trust = match (&config.enroll.ca_file, token.expose().split_once('.')) {
        (Some(file), _) => {
            let pem = fs::read(file).map_err(|e| {
                Error::new(Code::ConfigInvalid, format!("{}: cannot be read: {e}", file.display()))
                    .at("enroll.ca_file")
            })?;
            tls::client_config(&pem, None)?
        }
        (None, Some((_, fingerprint))) => tls::pinned_client_config(fingerprint)?,
        (None, None) => {
            return Err(Error::new(Code::ConfigInvalid, "the join token does not name the broker's CA")
                .at("enroll.ca_file")
                .hint("set it to a copy of the broker's ca.pem"));
        }
    };
    let channel = connect::channel_by(&config.broker, Arc::new(trust), Live::new(config.proxy.clone()))?;
    let (csr_pem, key_pem) = tls::csr(&config.name)?;
    let request =
        EnrollRequest { join_token: token.expose().to_owned(), worker: config.name.to_string(), csr_pem };
    let answer = ask(&config.broker, channel, request, asking).await?;
    fault::reached(Point::CertificateAsked);
    let fail = |e: std::io::Error| {
        Error::new(Code::ConfigInvalid, format!("the certificate cannot be kept: {e}"))
            .at(dir.display().to_string())
    };
    fs::create_dir_all(dir).map_err(fail)?;
    // A renewal that was left in the middle would be ended over it.
    renew::finish(dir)?;
    tls::write_private(&dir.join("worker.key"), key_pem.as_bytes()).map_err(fail)?;
    fault::reached(Point::KeyWritten);
    tls::write_public(&dir.join("ca.pem"), answer.ca_pem.as_bytes()).map_err(fail)?;
    fault::reached(Point::CaWritten);
    // Last: with it, all three are there.
    tls::write_public(&dir.join("worker.pem"), answer.certificate_pem.as_bytes()).map_err(fail)?;
    fault::reached(Point::CertificateWritten);
    tracing::info!(worker = %config.name, broker = config.broker, "enrolled");
    Ok(())
}

async fn ask(
    broker: &str,
    channel: tonic::transport::Channel,
    request: EnrollRequest,
    asking: Asking,
) -> Result<codering_proto::v1::EnrollResponse, Error> {
    let mut backoff = Backoff::default();
    loop {
        let mut client = WorkersClient::new(channel.clone());
        let error = match tokio::time::timeout(TIMEOUT, client.enroll(request.clone())).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => from_status(&status),
            Err(_) => Error::new(Code::TimedOut, "the broker did not answer"),
        };
        match error.code {
            _ if asking == Asking::Once => return Err(error),
            Code::BrokerUnreachable
            | Code::BrokerStopping
            | Code::BrokerBusy
            // Others of this address have shown wrong tokens; this one was not looked at.
            | Code::AuthTooMany
            | Code::TimedOut
            | Code::LedgerUnavailable
            | Code::LedgerFull
            | Code::LedgerUnknown => {
                tracing::warn!(broker, "not enrolled yet: {error}");
                tokio::time::sleep(backoff.next()).await;
            }
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::{EnrollFile, File};

    #[tokio::test]
    async fn a_certificate_that_has_ended_is_replaced_where_there_is_a_join_token() {
        let dir = tempfile::tempdir().expect("a directory");
        let token = dir.path().join("join");
        let enroll = EnrollFile { token_file: Some(token.clone()), ca_file: None };
        let file = File {
            name: Some("w1".into()),
            data_dir: Some(dir.path().to_owned()),
            enroll,
            ..File::default()
        };
        let config = file.check().expect("valid");
        fs::create_dir(dir.path().join("tls")).expect("made");
        for file in FILES {
            let ended = include_bytes!("../../../tests/fixtures/expired.pem");
            fs::write(dir.path().join("tls").join(file), ended).expect("written");
        }
        let error = proof(&config).await.err().expect("there is no token");
        assert!(error.message.contains("expired at") && error.hint.contains("enroll --replace"), "{error}");
        fs::write(&token, "cdr_of_no_ca").expect("written");
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("set");
        let error = proof(&config).await.err().expect("this one is of no use");
        assert_eq!(error.place, "enroll.ca_file", "it was not asked with: {error}");
    }
}
