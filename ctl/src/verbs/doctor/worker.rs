//! What doctor looks at of a worker on its own machine: its certificate, and its way to the broker where nobody has another.

use std::{
    io,
    path::{Path, PathBuf},
};

use codering_core::{WorkerName, joining, time::Millis};

use super::{broker, clock, finding::Finding, host::unread, local::Configured, tls};
use crate::{client::Target, context::host_name, verbs::words};

/// A worker renews at two thirds of its certificate's life. One with less than this part left does not succeed.
const LATE: f64 = 0.25;
/// Of an address that has none, as workerd reads it.
const DEFAULT_PORT: u16 = 7443;

/// A worker that is installed here.
pub struct Here {
    dir: PathBuf,
    broker: String,
    /// As its configuration has it; its certificate may have another.
    name: String,
    host: String,
    has_proxy: bool,
}

/// The worker of a machine that has no broker.
pub fn alone(root: &Path) -> Option<Here> {
    let has_broker = !matches!(Configured::read(root, "brokerd"), Ok(None));
    let workerd = Configured::read(root, "workerd").ok()??;
    (!has_broker).then(|| Here::of(&workerd))
}

impl Here {
    /// As its configuration says.
    pub fn of(workerd: &Configured) -> Self {
        let host = host_name();
        let host = if host.is_empty() { joining::HOST } else { &host };
        Self {
            dir: workerd.data_dir(),
            broker: workerd.text("", "broker").unwrap_or_else(|| "https://localhost:7443".into()),
            name: workerd.text("", "name").unwrap_or_else(|| host.to_lowercase()),
            host: host.to_owned(),
            has_proxy: workerd.text("proxy", "https").is_some(),
        }
    }

    /// The way to its broker, by what the worker knows of it: whoever only runs a worker has no login, and needs none.
    pub async fn way(&self, now: Millis) -> Vec<Finding> {
        let token = Finding::skipped(
            "token",
            "nobody is logged in here (coderingctl login): what only a token may ask was left out",
        );
        if self.has_proxy {
            let why = "the worker has a [proxy], and doctor goes by none: see `broker` on its /readyz";
            return vec![Finding::skipped("target", why), token];
        }
        let file = self.dir.join("tls/ca.pem");
        let ca_pem = match std::fs::read_to_string(&file) {
            Ok(ca_pem) => ca_pem,
            // Said of the worker's certificate too, with what to do.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return vec![
                    Finding::skipped("target", "this machine's worker has not joined a broker"),
                    token,
                ];
            }
            Err(error) => return vec![unread("target", &file, &error), token],
        };
        let target = self.target(ca_pem);
        let (mut findings, is_reached) = broker::reach(&target, &self.join_again(), now).await;
        if is_reached {
            findings.push(clock::look(&target).await);
        }
        findings.push(token);
        findings
    }

    fn target(&self, ca_pem: String) -> Target {
        let address = self.broker.strip_prefix("https://").unwrap_or(&self.broker).trim_end_matches('/');
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Target {
            label: "this machine's worker goes there".into(),
            address: if has_port { address.to_owned() } else { format!("{address}:{DEFAULT_PORT}") },
            ca_pem,
            token: String::new(),
            git_root: None,
            project: None,
            rest: None,
            context: None,
        }
    }

    /// Its certificate.
    pub fn certificate(&self, now: Millis) -> Finding {
        let file = self.dir.join("tls/worker.pem");
        let read = std::fs::read_to_string(&file);
        match read.map(|pem| tls::life(&pem)) {
            Ok(Ok((begins, ends))) => certificate_of(begins, ends, now, &self.join_again()),
            Ok(Err(why)) => Finding::wrong("worker", format!("{}: {why}", file.display()), self.join_again()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.dir.exists() => {
                Finding::wrong("worker", "this machine has no worker's certificate", self.join_again())
            }
            Err(error) => unread("worker", &file, &error),
        }
    }

    /// What gives it another certificate, by the name that it goes by: a worker that was ever connected is replaced by a
    /// token of its name alone.
    fn join_again(&self) -> String {
        let pem = std::fs::read_to_string(self.dir.join("tls/worker.pem")).ok();
        let named = pem.and_then(|pem| WorkerName::new(tls::common_name(&pem)?).ok());
        joining::again(named.as_ref().map_or(&self.name, |name| name.as_str()), &self.broker, &self.host)
    }
}

fn certificate_of(begins: Millis, ends: Millis, now: Millis, join_again: &str) -> Finding {
    let until = format!("{} ({})", words::clock(ends), words::until(ends, now));
    let left = (ends - now) as f64 / (ends - begins).max(1) as f64;
    match left {
        _ if ends <= now => Finding::wrong(
            "worker",
            format!("the worker's certificate ended {}", words::until(ends, now)),
            join_again,
        ),
        _ if left < LATE => Finding::warning(
            "worker",
            format!("the worker's certificate is valid until {until}, and should have been renewed by now"),
            "journalctl -u codering-workerd --grep 'was not renewed' -n 3",
        ),
        _ => Finding::good(
            "worker",
            format!("the worker's certificate, valid until {until}, renews by itself"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::super::{
        finding::Verdict::{Good, Skipped, Warning, Wrong},
        tls::tests::{acceptor, ca},
    };
    use super::*;

    fn here(dir: &Path) -> Here {
        Here {
            dir: dir.to_owned(),
            broker: "https://broker.lan:7443".into(),
            name: "configured".into(),
            host: "h7".into(),
            has_proxy: false,
        }
    }

    #[test]
    fn a_worker_s_certificate_that_was_not_renewed_in_time_is_worth_a_look() {
        let of = |now| certificate_of(0, 1000, now, "join again").verdict;
        assert_eq!([of(100), of(700), of(800), of(1000)], [Good, Good, Warning, Wrong]);
    }

    #[test]
    fn a_worker_whose_certificate_ended_is_told_to_join_again_by_the_name_that_it_has() {
        let dir = tempfile::tempdir().expect("a directory");
        let finding = here(dir.path()).certificate(0);
        assert_eq!(finding.verdict, Wrong);
        assert!(finding.mend.contains("worker token --name configured |"), "{finding:?}");
        std::fs::create_dir(dir.path().join("tls")).expect("made");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "w7");
        params.not_after = time::OffsetDateTime::UNIX_EPOCH;
        let pem = params.self_signed(&KeyPair::generate().expect("a key")).expect("signed").pem();
        std::fs::write(dir.path().join("tls/worker.pem"), pem).expect("written");
        let finding = here(dir.path()).certificate(1);
        assert_eq!(finding.verdict, Wrong);
        for part in [
            "on broker.lan: ",
            "worker token --name w7 | ssh h7 sudo codering-workerd enroll --replace",
            "--token-file -",
            "systemctl restart codering-workerd",
        ] {
            assert!(finding.mend.contains(part), "no `{part}` in {}", finding.mend);
        }
    }

    #[tokio::test]
    async fn the_way_of_a_worker_is_looked_at_without_any_login() {
        let dir = tempfile::tempdir().expect("a directory");
        let verdicts = |findings: &[Finding]| {
            findings.iter().map(|finding| (finding.check, finding.verdict)).collect::<Vec<_>>()
        };
        let new = here(dir.path()).way(0).await;
        assert_eq!(verdicts(&new), [("target", Skipped), ("token", Skipped)]);
        let (ours, other) = (ca(), ca());
        std::fs::create_dir(dir.path().join("tls")).expect("made");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let acceptor = acceptor(&ours, "localhost", 90);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a client");
                let _ = acceptor.accept(stream).await;
            }
        });
        let here = Here { broker: format!("https://localhost:{port}"), ..here(dir.path()) };
        let now = crate::context::now();
        std::fs::write(dir.path().join("tls/ca.pem"), ours.pem()).expect("written");
        let good = [("target", Good), ("endpoint", Good), ("ca", Good)];
        assert_eq!(
            verdicts(&here.way(now).await),
            // What stands there ends each connection, and so tells no time.
            [&good[..], &[("tls", Good), ("clock", Skipped), ("token", Skipped)]].concat()
        );
        std::fs::write(dir.path().join("tls/ca.pem"), other.pem()).expect("written");
        let findings = here.way(now).await;
        assert_eq!(verdicts(&findings), [&good[..2], &[("tls", Wrong), ("token", Skipped)]].concat());
        assert!(findings[2].mend.contains("enroll --replace"), "{findings:?}");
        server.abort();
        let _ = server.await;
        assert_eq!(
            verdicts(&here.way(now).await),
            [("target", Good), ("endpoint", Wrong), ("token", Skipped)]
        );
    }

    #[test]
    fn a_machine_with_a_worker_and_no_broker_is_known_by_its_configuration() {
        let root = tempfile::tempdir().expect("a directory");
        assert!(alone(root.path()).is_none());
        std::fs::create_dir_all(root.path().join("etc/codering")).expect("made");
        std::fs::write(root.path().join("etc/codering/workerd.toml"), "broker = 'https://b.lan'\n")
            .expect("written");
        let here = alone(root.path()).expect("a worker");
        assert_eq!(here.target(String::new()).address, "b.lan:7443");
        std::fs::write(root.path().join("etc/codering/brokerd.toml"), "").expect("written");
        assert!(alone(root.path()).is_none(), "there is a broker to log in to");
    }
}
