//! What doctor looks at on this very machine, where codering's daemons are installed or run by `dev`.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use codering_core::enforce::lacking;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use toml::Table;

use super::{finding::Finding, host};
use crate::verbs::words;

/// How long each of these may take.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// The largest answer read of Docker's `/version` and `/info`.
const ANSWER_BYTES: u64 = 256 << 10;

/// RabbitMQ's address, which the broker's unit hands to it.
pub const RABBITMQ_CREDENTIAL: &str = "etc/credstore/codering.rabbitmq_url";

/// A daemon's configuration, as far as doctor needs it: the file, then its drop-ins, then the environment.
pub struct Configured {
    daemon: &'static str,
    root: PathBuf,
    /// Each goes over those before it.
    tables: Vec<(PathBuf, Table)>,
}

impl Configured {
    /// `None` where the daemon is not installed here; an error where its files cannot be read.
    pub fn read(root: &Path, daemon: &'static str) -> Result<Option<Self>, String> {
        let file = root.join(format!("etc/codering/{daemon}.toml"));
        let unit = format!("systemd/system/codering-{daemon}.service");
        let traces = [
            file.clone(),
            root.join("etc").join(&unit),
            root.join("lib").join(&unit),
            root.join("usr/lib").join(&unit),
        ];
        if !traces.iter().any(|path| path.exists()) {
            return Ok(None);
        }
        let mut files = vec![file];
        if let Ok(entries) = std::fs::read_dir(root.join(format!("etc/codering/{daemon}.d"))) {
            let mut more: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            more.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
            more.sort();
            files.extend(more);
        }
        let mut tables = Vec::new();
        for file in files {
            let text = match std::fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(format!("{} cannot be read: {error}", file.display())),
            };
            let table = text.parse().map_err(|_| format!("{} is not TOML", file.display()))?;
            tables.push((file, table));
        }
        Ok(Some(Self { daemon, root: root.to_owned(), tables }))
    }

    /// A text value; `section` empty is the top of the file.
    pub fn text(&self, section: &str, key: &str) -> Option<String> {
        let variable = match section {
            "" => format!("CODERING_{}", key.to_uppercase()),
            section => format!("CODERING_{}_{}", section.to_uppercase(), key.to_uppercase()),
        };
        std::env::var(variable).ok().filter(|value| !value.is_empty()).or_else(|| {
            let found = self.tables.iter().rev().find_map(|(_, table)| match section {
                "" => table.get(key),
                section => table.get(section)?.get(key),
            });
            found.and_then(|value| value.as_str()).map(str::to_owned)
        })
    }

    /// The file whose value of a key at the top counts.
    pub fn set_by(&self, key: &str) -> Option<&Path> {
        let found = self.tables.iter().rev().find(|(_, table)| table.contains_key(key));
        found.map(|(file, _)| file.as_path())
    }

    /// A file's path; a credential is where systemd puts those of the daemon's unit.
    pub fn file(&self, section: &str, key: &str) -> Option<PathBuf> {
        let written = self.text(section, key)?;
        Some(match written.strip_prefix("credential:") {
            Some(name) => PathBuf::from(format!("/run/credentials/codering-{}.service/{name}", self.daemon)),
            None => written.into(),
        })
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.text("", "data_dir").unwrap_or_else(|| format!("/var/lib/codering/{}", self.daemon)).into()
    }

    /// Whether something listens where the daemon is configured to.
    pub async fn port(&self, section: &str, key: &str, default: &str) -> Finding {
        let listen = self.text(section, key).unwrap_or_else(|| default.to_owned());
        let port = listen.rsplit_once(':').map_or("", |(_, port)| port);
        let host = listen.rsplit_once(':').map_or("", |(host, _)| host);
        // A wildcard is reached over loopback.
        let host = if host == "0.0.0.0" || host == "[::]" { "127.0.0.1" } else { host };
        let what = format!("{}'s {}", self.daemon, if section.is_empty() { key } else { section });
        match connect(&format!("{host}:{port}")).await {
            Ok(_) => Finding::good("port", format!("{what}: something listens on {listen}")),
            Err(error) => Finding::wrong(
                "port",
                format!("{what}: nothing answers on {listen}: {}", words::io_error(&error)),
                format!("systemctl restart codering-{0}; journalctl -u codering-{0} -n 20", self.daemon),
            ),
        }
    }

    /// The address of RabbitMQ, where one is configured.
    pub fn rabbitmq(&self) -> Result<Option<String>, String> {
        if self.text("queue", "backend").as_deref() == Some("embedded") {
            return Ok(None);
        }
        if let Some(url) = self.text("queue", "url") {
            return Ok(Some(url));
        }
        let named = self.file("queue", "url_file");
        let file = named.clone().unwrap_or_else(|| self.root.join(RABBITMQ_CREDENTIAL));
        match std::fs::read_to_string(&file) {
            Ok(url) => Ok(Some(url.trim().to_owned())),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{} cannot be read: {error}", file.display())),
        }
    }
}

/// A TCP connection, soon or not at all.
pub async fn connect(address: &str) -> io::Result<TcpStream> {
    timeout(PATIENCE, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether Docker answers on its socket, and what it says of itself.
pub async fn docker(socket: &str, wants_proxy: bool) -> Vec<Finding> {
    let path = socket.trim_start_matches("unix://");
    let asked = timeout(PATIENCE, async {
        let version = version(UnixStream::connect(path).await?).await?;
        Ok::<_, io::Error>((version, get(UnixStream::connect(path).await?, "/info").await?))
    });
    match asked.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok((version, info)) => {
            let mut findings = vec![confines(&format!("Docker {version} answers on {path}"), &info)];
            findings.extend(host::docker(&info, wants_proxy));
            findings
        }
        Err(error) => {
            let mend = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "sudo usermod --append --groups docker $USER, then log in again"
                }
                io::ErrorKind::NotFound => "sudo apt-get install docker.io && sudo systemctl start docker",
                _ => "sudo systemctl restart docker",
            };
            vec![Finding::wrong(
                "docker",
                format!("Docker does not answer on {path}: {}", words::io_error(&error)),
                mend,
            )]
        }
    }
}

/// What a worker would run no task without.
fn confines(there: &str, info: &Value) -> Finding {
    let lacking = lacking(info);
    if lacking.is_empty() {
        return Finding::good("docker", format!("{there} and can hold tasks within their limits"));
    }
    let what = format!("{there}, but cannot bound {}: a worker here runs no task", lacking.join(", "));
    let mend = "docker info lists what the kernel lacks; turn on its memory, pids and cpu cgroup controllers and seccomp";
    Finding::wrong("docker", what, mend)
}

async fn version(stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<String> {
    let about = get(stream, "/version").await?;
    let version = about["Version"].as_str().map(str::to_owned);
    version.ok_or_else(|| io::Error::other("what answers there is not Docker"))
}

async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> io::Result<Value> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").map(|at| &answer[at + 4..]);
    let parsed = body.and_then(|body| serde_json::from_slice(body).ok());
    parsed.ok_or_else(|| io::Error::other("what answers there is not Docker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().expect("inside")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    #[test]
    fn a_drop_in_wins_over_the_file_and_a_machine_without_the_daemon_has_neither() {
        let root = tempfile::tempdir().expect("a directory");
        assert!(Configured::read(root.path(), "brokerd").expect("readable").is_none());
        write(root.path(), "etc/codering/brokerd.toml", "[queue]\nbackend = 'rabbitmq'\nurl = 'amqp://a'\n");
        write(root.path(), "etc/codering/brokerd.d/10-site.toml", "[queue]\nurl = 'amqp://b'\n");
        let configured = Configured::read(root.path(), "brokerd").expect("readable").expect("installed");
        assert_eq!(configured.rabbitmq(), Ok(Some("amqp://b".to_owned())));
        assert_eq!(configured.text("queue", "backend").as_deref(), Some("rabbitmq"));
        write(root.path(), "etc/codering/brokerd.toml", "");
        write(root.path(), "etc/codering/brokerd.d/10-site.toml", "");
        let configured = Configured::read(root.path(), "brokerd").expect("readable").expect("installed");
        assert_eq!(configured.rabbitmq(), Ok(None));
        write(root.path(), RABBITMQ_CREDENTIAL, "amqps://c\n");
        assert_eq!(configured.rabbitmq(), Ok(Some("amqps://c".into())));
        write(root.path(), "etc/codering/brokerd.toml", "[queue\n");
        assert!(Configured::read(root.path(), "brokerd").is_err());
    }

    #[tokio::test]
    async fn what_answers_like_docker_is_told_from_what_does_not() {
        for (answer, is_docker) in
            [("HTTP/1.0 200 OK\r\n\r\n{\"Version\":\"20.10\"}", true), ("SSH-2.0\r\n", false)]
        {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            tokio::spawn(async move {
                let mut request = [0; 10];
                theirs.read_exact(&mut request).await.expect("asked");
                theirs.write_all(answer.as_bytes()).await.expect("answered");
                theirs.shutdown().await.expect("closed");
                // What is left of the request is read, so that the other side can finish writing it.
                let _ = theirs.read_to_end(&mut Vec::new()).await;
            });
            assert_eq!(version(ours).await.is_ok(), is_docker, "{answer}");
        }
    }

    #[test]
    fn invariant_10_a_docker_that_cannot_hold_a_limit_is_found_wrong() {
        let mut info = serde_json::json!({ "MemoryLimit": true, "PidsLimit": true, "CpuCfsQuota": true,
            "SecurityOptions": ["name=seccomp,profile=builtin"] });
        assert!(confines("x", &info).mend.is_empty());
        info["PidsLimit"] = false.into();
        let finding = confines("x", &info);
        assert!(finding.finding.contains("processes") && !finding.mend.is_empty(), "{finding:?}");
    }

    #[tokio::test]
    async fn a_missing_docker_socket_says_how_to_get_docker() {
        let finding = docker("/nowhere/docker.sock", false).await.remove(0);
        assert!(finding.mend.contains("apt-get install docker.io"), "{finding:?}");
    }
}
