//! The way to RabbitMQ, as far as it goes without logging in: by the address and the authorities that the broker has.

use std::{
    io,
    path::{Path, PathBuf},
};

use codering_core::time::Millis;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    certificates::ends,
    finding::Finding,
    local::{PATIENCE, connect},
    tls::{self, Refused},
};
use crate::verbs::words;

/// Debian's bundle, which brokerd trusts where it has no `queue.ca_file`.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
const START: &str = "sudo systemctl start rabbitmq-server, or mend the address in /etc/credstore/codering.rabbitmq_url or [queue] url_file";
const TRUST: &str = "put the certificate of RabbitMQ's CA into the file that [queue] ca_file names; then sudo systemctl restart codering-brokerd";
/// No daemon renews it; Ansible's role does, in its last 30 days.
const SOON_DAYS: i64 = 30;
const RENEW: &str = "put a newer certificate where RabbitMQ's ssl_options.certfile says (ansible-playbook codering.codering.site does it), then on\n\
    RabbitMQ's machine: sudo rabbitmqctl eval 'ssl:clear_pem_cache().'";

/// What is known of a RabbitMQ at `url`. With `amqps` its certificate is looked at as the broker looks at it, which trusts `ca_file`.
pub async fn look(url: &str, ca_file: Option<PathBuf>, now: Millis) -> Vec<Finding> {
    // What cannot be read is not shown: it may hold a password.
    let Some(address) = Address::of(url) else {
        return vec![Finding::wrong(
            "rabbitmq",
            "RabbitMQ's address is not of the form amqp://USER:PASSWORD@HOST:PORT/VHOST",
            "write `/` in a password as %2F and `@` as %40, in /etc/credstore/codering.rabbitmq_url or the file of [queue] url_file",
        )];
    };
    let shown = address.host_port();
    let silent = |error: &io::Error| {
        Finding::wrong(
            "rabbitmq",
            format!("RabbitMQ does not answer at {shown}: {}", words::io_error(error)),
            START,
        )
    };
    let stream = match connect(&address.host_port()).await {
        Ok(stream) => stream,
        Err(error) => return vec![silent(&error)],
    };
    let mut findings = Vec::new();
    let greeted = if address.encrypted {
        let ca_file = ca_file.unwrap_or_else(|| AUTHORITIES.into());
        let roots = match authorities(&ca_file) {
            Ok(roots) => roots,
            Err(finding) => return vec![finding],
        };
        let seen = match tls::look(stream, &address.host, roots, &[]).await {
            Ok(seen) => seen,
            Err(why) => {
                return vec![Finding::wrong("rabbitmq", format!("{}: {why}", ca_file.display()), TRUST)];
            }
        };
        let (finding, stream) = (certificate(&address.host, &seen, &ca_file, now), seen.stream);
        findings.push(finding);
        match stream {
            Some(stream) => in_time(greeted(stream)).await,
            None => return findings,
        }
    } else {
        in_time(greeted(stream)).await
    };
    findings.insert(
        0,
        match greeted {
            Ok(()) => Finding::good("rabbitmq", format!("RabbitMQ answers at {shown}")),
            Err(error) => silent(&error),
        },
    );
    findings
}

async fn in_time(greeted: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(PATIENCE, greeted).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn authorities(file: &Path) -> Result<Vec<tls::Authority>, Finding> {
    let pem = std::fs::read_to_string(file).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Finding::skipped(
            "rabbitmq",
            format!("{}: {}; run doctor as root", file.display(), words::io_error(&error)),
        ),
        _ => Finding::wrong(
            "rabbitmq",
            format!("{}, which the broker trusts: {}", file.display(), words::io_error(&error)),
            TRUST,
        ),
    })?;
    Ok(tls::authorities(&pem))
}

/// What RabbitMQ showed, to a broker that trusts `ca_file`.
fn certificate(host: &str, seen: &tls::Shown, ca_file: &Path, now: Millis) -> Finding {
    let wrong = |what: String, mend: &str| Finding::wrong("rabbitmq", what, mend);
    match &seen.refused {
        None => ends("rabbitmq", "RabbitMQ's certificate", seen.expires_at, now, SOON_DAYS, RENEW),
        Some(Refused::Expired) => {
            let when = words::until(seen.expires_at, now);
            wrong(format!("RabbitMQ's certificate ended {when}, or a clock is wrong"), RENEW)
        }
        Some(Refused::OtherName) => wrong(
            format!(
                "RabbitMQ's certificate is not for {host}, but for {}",
                words::harmless(seen.names.join(", "))
            ),
            "name one of these in the address (/etc/credstore/codering.rabbitmq_url), then sudo systemctl restart codering-brokerd",
        ),
        Some(Refused::OtherCa) => {
            wrong(format!("no CA in {} signed RabbitMQ's certificate", ca_file.display()), TRUST)
        }
        Some(Refused::Other(why)) => wrong(
            format!("no TLS handshake with RabbitMQ: {}", words::harmless(why)),
            "is it the port for TLS (5671), and not the plain one (5672)? sudo rabbitmq-diagnostics listeners",
        ),
    }
}

/// Where an AMQP address points to.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    host: String,
    port: u16,
    encrypted: bool,
}

impl Address {
    fn of(url: &str) -> Option<Self> {
        let url = url::Url::parse(url).ok()?;
        let (port, encrypted) = match url.scheme() {
            "amqp" => (5672, false),
            "amqps" => (5671, true),
            _ => return None,
        };
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(Self { host, port: url.port().unwrap_or(port), encrypted })
    }

    fn host_port(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Says hello as an AMQP 0-9-1 client does; a method frame is the answer of a broker that speaks it.
async fn greeted(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    stream.flush().await?;
    match stream.read_u8().await? {
        1 => Ok(()),
        _ => Err(io::Error::other("what answers there does not speak AMQP 0-9-1")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::super::{
        finding::Verdict::{self, Good, Warning, Wrong},
        tls::tests::{acceptor, ca},
    };
    use super::*;

    #[test]
    fn an_amqp_address_has_its_scheme_s_port() {
        let of = |url| Address::of(url).map(|address| (address.host_port(), address.encrypted));
        assert_eq!(of("amqp://u:p@mq.lan/%2f"), Some(("mq.lan:5672".into(), false)));
        assert_eq!(of("amqps://mq.lan:7000"), Some(("mq.lan:7000".into(), true)));
        assert_eq!(of("amqps://[fd00::7]"), Some(("[fd00::7]:5671".into(), true)));
        assert_eq!(of("http://mq.lan"), None);
    }

    #[tokio::test]
    async fn a_password_that_makes_an_address_unreadable_is_not_shown() {
        let finding = look("amqp://codering:pa/ss@mq.lan/vh", None, 0).await.remove(0);
        assert!(finding.verdict == Wrong && !format!("{finding:?}").contains("pa/"), "{finding:?}");
    }

    #[tokio::test]
    async fn what_answers_like_rabbitmq_is_told_from_what_does_not() {
        for (answer, is_rabbitmq) in [(1u8, true), (b'H', false)] {
            let (ours, mut theirs) = tokio::io::duplex(64);
            theirs.write_u8(answer).await.expect("answered");
            assert_eq!(greeted(ours).await.is_ok(), is_rabbitmq);
        }
        let finding = look("amqp://guest:secret@127.0.0.1:1/", None, 0).await.remove(0);
        assert!(!finding.finding.contains("secret") && !finding.mend.is_empty(), "{finding:?}");
    }

    /// What is found of a RabbitMQ with a certificate for `name` that ends in `days`, by a broker that trusts `trusted`.
    async fn found(
        signer: &tls::tests::Signer,
        trusted: &str,
        name: &str,
        days: i64,
    ) -> Vec<(Verdict, String)> {
        let acceptor = acceptor(signer, name, days);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            if let Ok(mut stream) = acceptor.accept(stream).await {
                stream.read_exact(&mut [0; 8]).await.expect("a greeting");
                stream.write_u8(1).await.expect("answered");
                let _ = stream.shutdown().await;
            }
        });
        let dir = tempfile::tempdir().expect("a directory");
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, trusted).expect("written");
        let now = time::OffsetDateTime::now_utc().unix_timestamp() * 1000;
        let found = look(&format!("amqps://u:secret@localhost:{port}/v"), Some(ca_file), now).await;
        server.await.expect("served");
        found.into_iter().map(|finding| (finding.verdict, finding.finding)).collect()
    }

    #[tokio::test]
    async fn a_rabbitmq_whose_certificate_the_broker_would_refuse_is_not_called_good() {
        let (ours, other) = (ca(), ca());
        let good = found(&ours, &ours.pem(), "localhost", 90).await;
        assert_eq!(good.iter().map(|found| found.0).collect::<Vec<_>>(), [Good, Good], "{good:?}");
        let soon = found(&ours, &ours.pem(), "localhost", 25).await;
        assert_eq!(soon.iter().map(|found| found.0).collect::<Vec<_>>(), [Good, Warning], "{soon:?}");
        for (trusted, name, days, why) in [
            (ours.pem(), "localhost", -1, "ended"),
            (other.pem(), "localhost", 90, "no CA in"),
            (ours.pem(), "mq.lan", 90, "not for localhost, but for mq.lan"),
        ] {
            let found = found(&ours, &trusted, name, days).await;
            assert!(found.len() == 1 && found[0].0 == Wrong && found[0].1.contains(why), "{why}: {found:?}");
        }
    }
}
