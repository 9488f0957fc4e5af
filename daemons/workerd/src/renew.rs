//! A worker's next certificate: asked for when two thirds of the life of the present one are over, and for as long as it takes.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use codering_core::{Code, Error, time::Millis};
use codering_kit::{
    clock::now,
    connect,
    fault::{self, Point},
    live::Live,
    proxy::Proxy,
    tls::{self, Identity},
};
use codering_proto::{
    status::from_status,
    v1::{RenewRequest, workers_client::WorkersClient},
};
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use crate::{enroll, worker::Worker};

/// For one try.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Part of a certificate's life after which it is renewed; each worker picks its own in between, so that those which were
/// enrolled together do not ask together.
const DUE: std::ops::RangeInclusive<f64> = 0.63..=0.70;
/// Between looks at the clock, which may be set.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between tries.
const AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(1800);

/// Until they are both there under their names, and the old ones gone.
const NEXT_KEY: &str = "worker.key.next";
const NEXT_CERTIFICATE: &str = "worker.pem.next";

/// How the broker is reached, by each connection that is made from then on.
#[derive(Clone)]
pub(crate) struct Way {
    /// What it is shown.
    pub proof: Live<ClientConfig>,
    /// Through what.
    pub proxy: Live<Proxy>,
}

impl Way {
    /// A channel to the broker.
    pub(crate) fn channel(&self, broker: &str) -> Result<tonic::transport::Channel, Error> {
        connect::channel_by(broker, self.proof.clone(), self.proxy.clone())
    }
}

/// Renews until `end`.
pub(crate) async fn run(worker: Arc<Worker>, mut identity: Identity, way: Way, end: CancellationToken) {
    let mut at = due(&identity, rand::random_range(DUE));
    loop {
        let left = Duration::from_millis(u64::try_from(at - now()).unwrap_or(0));
        if !left.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK_EVERY)) => {}
                () = end.cancelled() => return,
            }
            continue;
        }
        let renewed = tokio::select! {
            renewed = renew(&worker, &way) => renewed,
            () = end.cancelled() => return,
        };
        match renewed {
            Ok(newer) => {
                tracing::info!(
                    until = codering_core::time::rfc3339(newer.not_after_ms),
                    "the certificate was renewed"
                );
                at = due(&newer, rand::random_range(DUE));
                identity = newer;
            }
            Err(error) => {
                let until = codering_core::time::rfc3339(identity.not_after_ms);
                tracing::warn!(until, "the certificate was not renewed, and is tried again: {error}");
                let pause = pause(identity.not_after_ms - now());
                at = now() + pause.mul_f64(rand::random_range(0.5..=1.0)).as_millis() as Millis;
            }
        }
    }
}

/// When `part` of its life is over.
fn due(identity: &Identity, part: f64) -> Millis {
    let life = identity.not_after_ms - identity.issued_at_ms();
    identity.issued_at_ms() + (life as f64 * part) as Millis
}

/// Between tries: some twenty of them fit into the time that is left.
fn pause(left: Millis) -> Duration {
    let twentieth = Duration::from_millis(u64::try_from(left).unwrap_or(0)) / 20;
    twentieth.clamp(*AGAIN.start(), *AGAIN.end())
}

async fn renew(worker: &Worker, way: &Way) -> Result<Identity, Error> {
    let (csr_pem, key_pem) = tls::csr(&worker.name)?;
    // A connection of its own: the stream's may have been made with a certificate that is long replaced.
    let channel = way.channel(&worker.config.broker)?;
    let mut client = WorkersClient::new(channel);
    let asked = tokio::time::timeout(TIMEOUT, client.renew(RenewRequest { csr_pem }));
    let answer = asked
        .await
        .map_err(|_| Error::new(Code::TimedOut, "the broker did not answer"))?
        .map_err(|status| from_status(&status))?
        .into_inner();
    let dir = worker.config.path("tls");
    let read = {
        // A reload reads them too.
        let _files = worker.proof_files.lock().unwrap_or_else(PoisonError::into_inner);
        keep(&dir, key_pem.as_bytes(), answer.certificate_pem.as_bytes()).map_err(|e| not_kept(&dir, &e))?;
        let read = enroll::read(&worker.config)?;
        way.proof.set(read.tls);
        read.identity
    };
    // Calls go over a connection that shows it; the stream stays as it is.
    worker.broker.set_channel(way.channel(&worker.config.broker)?);
    Ok(read)
}

fn not_kept(dir: &Path, why: &io::Error) -> Error {
    Error::new(Code::ConfigInvalid, format!("the certificate cannot be kept: {why}"))
        .at(dir.display().to_string())
}

/// Certificate and key belong together, and no file system changes two files at once.
fn keep(dir: &Path, key: &[u8], certificate: &[u8]) -> io::Result<()> {
    // fault: of no use without its certificate, and removed at the start.
    tls::write_private(&dir.join(NEXT_KEY), key)?;
    tls::write_public(&dir.join(NEXT_CERTIFICATE), certificate)?;
    fault::reached(Point::NextCertificateWritten);
    move_next(dir)
}

/// Both are written before the first is moved, and the certificate is moved last: while it is there, the key beside it is its own,
/// or stands under its name already.
fn move_next(dir: &Path) -> io::Result<()> {
    match fs::rename(dir.join(NEXT_KEY), dir.join("worker.key")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => fault::reached(Point::NextKeyMoved),
    }
    fs::rename(dir.join(NEXT_CERTIFICATE), dir.join("worker.pem"))?;
    fs::File::open(dir)?.sync_all()?;
    Ok(())
}

/// Ends what a former process left of a renewal.
///
/// # Errors
/// [`Code::ConfigInvalid`] when the files cannot be moved.
pub(crate) fn finish(dir: &Path) -> Result<(), Error> {
    let done = match dir.join(NEXT_CERTIFICATE).exists() {
        true => move_next(dir),
        // A key alone: its certificate never came.
        false => match fs::remove_file(dir.join(NEXT_KEY)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        },
    };
    done.map_err(|e| not_kept(dir, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Millis = 86_400_000;

    fn certificate(days: Millis) -> Identity {
        let issued = 20_000 * DAY;
        Identity {
            name: "w1".into(),
            role: "worker".into(),
            serial: "01".into(),
            // Valid from a day before it was made.
            not_before_ms: issued - DAY,
            not_after_ms: issued + days * DAY,
        }
    }

    #[test]
    fn it_is_due_at_two_thirds_of_its_life_counted_from_when_it_was_made() {
        let identity = certificate(30);
        assert_eq!(due(&identity, 2.0 / 3.0), identity.issued_at_ms() + 20 * DAY);
        for part in [*DUE.start(), *DUE.end()] {
            let days = (due(&identity, part) - identity.issued_at_ms()) as f64 / DAY as f64;
            assert!((18.0..=21.5).contains(&days), "{days}");
        }
    }

    #[test]
    fn a_renewal_that_fails_is_tried_again_often_enough_and_not_too_often() {
        assert_eq!(pause(10 * DAY), *AGAIN.end());
        assert_eq!(pause(60_000), Duration::from_secs(3));
        assert_eq!(pause(-5), *AGAIN.start());
    }

    #[test]
    fn a_crash_at_any_step_leaves_a_certificate_with_its_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let (key, certificate) = (dir.path().join("worker.key"), dir.path().join("worker.pem"));
        let pair =
            || (fs::read_to_string(&key).expect("there"), fs::read_to_string(&certificate).expect("there"));
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
        for (next_key, moved, next_certificate, expected) in [
            (true, false, false, "old"),
            (true, false, true, "new"),
            (false, true, true, "new"),
            (false, false, false, "old"),
        ] {
            write("worker.key", if moved { "new" } else { "old" });
            write("worker.pem", "old");
            if next_key {
                write(NEXT_KEY, "new");
            }
            if next_certificate {
                write(NEXT_CERTIFICATE, "new");
            }
            finish(dir.path()).expect("ended");
            assert_eq!(pair(), (expected.to_owned(), expected.to_owned()));
            assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 2, "something is left");
        }
    }
}
