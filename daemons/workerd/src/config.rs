//! `workerd.toml`: what the file says ([`File`]) and what was made of it ([`Config`]).

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use codering_core::{
    Code, Error, WorkerName,
    units::{read_duration, read_size},
};
pub use codering_kit::proxy::Proxy;
use codering_kit::{config::secret_path, host, telemetry};
use serde::Deserialize;

/// The file, its drop-ins and the environment. Every key is optional.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct File {
    pub log: Option<String>,
    pub data_dir: Option<PathBuf>,
    #[serde(deserialize_with = "read_size")]
    pub min_free_disk: Option<u64>,
    pub name: Option<String>,
    pub broker: Option<String>,
    pub slots: Option<u32>,
    pub labels: BTreeMap<String, String>,
    pub on_stop: Option<OnStop>,
    pub enroll: EnrollFile,
    pub docker: DockerFile,
    pub git: GitFile,
    pub build: BuildFile,
    pub sandbox: SandboxFile,
    pub proxy: Proxy,
    pub cache: CacheFile,
    pub listen: ListenFile,
    pub simulate: SimulateFile,
    pub shutdown: ShutdownFile,
}

/// What becomes of running attempts when workerd is told to stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// Those that end within the deadline are reported; other containers run on and are taken up by the next start.
    #[default]
    Detach,
    /// It waits for all of them, however long they take.
    Drain,
    /// Containers are killed and removed, and the attempts reported as failures of the infrastructure.
    Kill,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EnrollFile {
    pub token_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct DockerFile {
    pub socket: Option<PathBuf>,
    /// In the form of Docker's own `config.json`.
    pub credentials_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct GitFile {
    pub schemes: Option<Vec<String>>,
    pub ssh_key_file: Option<PathBuf>,
    pub known_hosts_file: Option<PathBuf>,
    /// Lines `https://user:password@host`, as git's own credential store writes them.
    pub credentials_file: Option<PathBuf>,
    /// CA certificates for https, instead of the machine's.
    pub ca_file: Option<PathBuf>,
    #[serde(deserialize_with = "read_duration")]
    pub timeout: Option<u64>,
    #[serde(deserialize_with = "read_size")]
    pub max_bytes: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct BuildFile {
    #[serde(deserialize_with = "read_duration")]
    pub timeout: Option<u64>,
    #[serde(deserialize_with = "read_size")]
    pub memory: Option<u64>,
    pub cpus: Option<f64>,
    pub network: Option<bool>,
    pub max_pids: Option<u32>,
    #[serde(deserialize_with = "read_size")]
    pub max_context_bytes: Option<u64>,
    /// What stays free on Docker's disk.
    #[serde(deserialize_with = "read_size")]
    pub disk_reserve: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SandboxFile {
    /// The Docker network of a task that asked for one.
    pub network: Option<String>,
    /// The size of /tmp.
    #[serde(deserialize_with = "read_size")]
    pub tmp_bytes: Option<u64>,
    /// The size of /work.
    #[serde(deserialize_with = "read_size")]
    pub work_bytes: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct CacheFile {
    #[serde(deserialize_with = "read_size")]
    pub max_bytes: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ListenFile {
    pub metrics: Option<SocketAddr>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SimulateFile {
    pub enabled: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ShutdownFile {
    #[serde(deserialize_with = "read_duration")]
    pub deadline: Option<u64>,
}

/// The keys that only a restart changes: what is opened once, and what the broker was told of this worker.
/// `docs/reload.md` says why, key by key.
pub const AT_RESTART: &[&str] = &[
    "data_dir",
    "min_free_disk",
    "name",
    "broker",
    "slots",
    "labels",
    "enroll.token_file",
    "enroll.ca_file",
    "docker.socket",
    "listen.metrics",
    "simulate.enabled",
];

/// What was validated.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Config {
    /// What is logged.
    pub log: String,
    pub data_dir: PathBuf,
    /// What is left free on its disk.
    pub min_free_disk: u64,
    pub name: WorkerName,
    pub broker: String,
    pub slots: u32,
    pub labels: BTreeMap<String, String>,
    pub on_stop: OnStop,
    pub enroll: EnrollFile,
    pub docker_socket: PathBuf,
    pub docker_credentials: Option<PathBuf>,
    pub git: Git,
    pub build: Build,
    pub sandbox: SandboxConfig,
    pub proxy: Proxy,
    pub cache_max_bytes: u64,
    pub metrics: SocketAddr,
    pub simulate: bool,
    pub shutdown: Duration,
}

/// Git, as configured.
#[derive(Debug, Clone)]
pub struct Git {
    /// Of `https`, `http`, `ssh`, `file`.
    pub schemes: Vec<String>,
    /// The private key for ssh.
    pub ssh_key: Option<PathBuf>,
    /// Which ssh hosts are trusted.
    pub known_hosts: Option<PathBuf>,
    /// Passwords for https.
    pub credentials: Option<PathBuf>,
    /// CA certificates for https.
    pub ca: Option<PathBuf>,
    /// For one fetch.
    pub timeout: Duration,
    /// For one fetch.
    pub max_bytes: u64,
}

/// Image builds, as configured.
#[derive(Debug, Clone)]
pub struct Build {
    /// For a whole build.
    pub timeout: Duration,
    /// Of each step.
    pub memory_bytes: u64,
    /// Of each step.
    pub cpus: f64,
    /// Whether its steps have one.
    pub network: bool,
    /// Of each step.
    pub max_pids: u32,
    /// Of the build context.
    pub max_context_bytes: u64,
    /// A build that leaves less of Docker's disk free is stopped.
    pub disk_reserve: u64,
}

/// Containers, as configured.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// The Docker network of a task that asked for one.
    pub network: String,
    /// The size of /tmp.
    pub tmp_bytes: u64,
    /// The size of /work.
    pub work_bytes: u64,
}

/// A worker has no more slots; brokerd refuses more.
const MAX_SLOTS: u32 = 4096;
const SCHEMES: [&str; 4] = ["https", "http", "ssh", "file"];

impl File {
    /// Fills in what was not said and refuses what cannot be.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] at the dotted key.
    pub fn check(self) -> Result<Config, Error> {
        let invalid = |key: &str, what: String| Error::new(Code::ConfigInvalid, what).at(key);
        let ms = |value: Option<u64>, default: u64| Duration::from_millis(value.unwrap_or(default));
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let slots = self.slots.unwrap_or(cores);
        if !(1..=MAX_SLOTS).contains(&slots) {
            return Err(invalid("slots", format!("a worker has 1 to {MAX_SLOTS} slots")));
        }
        codering_core::spec::validate_labels(self.labels.iter())
            .map_err(|error| invalid("labels", format!("{}: {}", error.place, error.message)))?;
        let name = match self.name {
            Some(name) => WorkerName::new(name).map_err(|e| e.at("name"))?,
            None => own_name()?,
        };
        let broker = self.broker.unwrap_or_else(|| "https://localhost:7443".into());
        if !broker.starts_with("https://") {
            return Err(
                invalid("broker", "a broker's address begins with https://".into()).hint("https://host:7443")
            );
        }
        let schemes = self.git.schemes.unwrap_or_else(|| vec!["https".into(), "ssh".into()]);
        if let Some(unknown) = schemes.iter().find(|s| !SCHEMES.contains(&s.as_str())) {
            let shown = codering_core::ids::shown(unknown);
            return Err(invalid("git.schemes", format!("`{shown}` is not one of {}", SCHEMES.join(", "))));
        }
        let build_cpus = self.build.cpus.unwrap_or_else(|| f64::from(cores));
        if !(0.01..=1024.0).contains(&build_cpus) {
            return Err(invalid("build.cpus", "must be from 0.01 to 1024".into()));
        }
        let build_memory = self.build.memory.unwrap_or(2 << 30);
        if build_memory < 6 << 20 {
            return Err(invalid("build.memory", "must be at least 6M".into()));
        }
        if self.build.max_pids == Some(0) {
            return Err(invalid("build.max_pids", "must be at least 1".into()));
        }
        let log = self.log.unwrap_or_else(|| telemetry::DEFAULT_FILTER.into());
        telemetry::filter(&log)?;
        self.proxy.check()?;
        let file = |key: &str, path: Option<PathBuf>| path.map(|path| secret_path(key, &path)).transpose();
        Ok(Config {
            log,
            min_free_disk: self.min_free_disk.unwrap_or(256 << 20),
            data_dir: self.data_dir.unwrap_or_else(|| "/var/lib/codering/workerd".into()),
            name,
            broker,
            slots,
            labels: self.labels,
            on_stop: self.on_stop.unwrap_or_default(),
            enroll: EnrollFile {
                token_file: file("enroll.token_file", self.enroll.token_file)?,
                ca_file: file("enroll.ca_file", self.enroll.ca_file)?,
            },
            docker_socket: self.docker.socket.unwrap_or_else(|| "/var/run/docker.sock".into()),
            docker_credentials: file("docker.credentials_file", self.docker.credentials_file)?,
            git: Git {
                schemes,
                ssh_key: file("git.ssh_key_file", self.git.ssh_key_file)?,
                known_hosts: file("git.known_hosts_file", self.git.known_hosts_file)?,
                credentials: file("git.credentials_file", self.git.credentials_file)?,
                ca: file("git.ca_file", self.git.ca_file)?,
                timeout: ms(self.git.timeout, 300_000),
                max_bytes: self.git.max_bytes.unwrap_or(2 << 30),
            },
            build: Build {
                timeout: ms(self.build.timeout, 1_800_000),
                memory_bytes: build_memory,
                cpus: build_cpus,
                network: self.build.network.unwrap_or(true),
                max_pids: self.build.max_pids.unwrap_or(4096),
                max_context_bytes: self.build.max_context_bytes.unwrap_or(512 << 20),
                disk_reserve: self.build.disk_reserve.unwrap_or(1 << 30),
            },
            sandbox: SandboxConfig {
                network: self.sandbox.network.unwrap_or_else(|| "bridge".into()),
                tmp_bytes: self.sandbox.tmp_bytes.unwrap_or(64 << 20),
                work_bytes: self.sandbox.work_bytes.unwrap_or(256 << 20),
            },
            proxy: self.proxy,
            cache_max_bytes: self.cache.max_bytes.unwrap_or(20 << 30),
            metrics: self.listen.metrics.unwrap_or_else(|| ([127, 0, 0, 1], 7481).into()),
            simulate: self.simulate.enabled,
            shutdown: ms(self.shutdown.deadline, 20_000),
        })
    }
}

/// The host's name, made a worker's name.
fn own_name() -> Result<WorkerName, Error> {
    WorkerName::new(slug(&host::name())).map_err(|e| e.at("name").hint("the host's name is none; set `name`"))
}

fn slug(host: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let text: String = host.trim().to_ascii_lowercase().chars().map(keep).take(60).collect();
    text.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

impl Config {
    /// A file or directory of this worker's own.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.data_dir.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_says_nothing_is_a_whole_configuration() {
        let config = File { name: Some("w1".into()), ..File::default() }.check().expect("valid");
        assert_eq!(config.git.schemes, ["https", "ssh"]);
        assert_eq!(config.on_stop, OnStop::Detach);
        assert_eq!(config.cache_max_bytes, 20 << 30);
        assert!(config.slots >= 1);
    }

    #[test]
    fn what_cannot_be_is_refused_at_its_key() {
        let place = |file: File| file.check().expect_err("refused").place;
        assert_eq!(place(File { slots: Some(0), ..File::default() }), "slots");
        assert_eq!(place(File { broker: Some("http://h:1".into()), ..File::default() }), "broker");
        let git = GitFile { schemes: Some(vec!["ext".into()]), ..GitFile::default() };
        assert_eq!(place(File { git, ..File::default() }), "git.schemes");
    }

    /// The sample with every setting that it shows switched on: `#key = value` is a setting, `# text` is not.
    fn sample() -> String {
        let text = include_str!("../../../packaging/config/workerd.toml");
        let on = |line: &str| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) => setting.to_owned(),
            _ => line.to_owned(),
        };
        text.lines().map(on).collect::<Vec<_>>().join("\n")
    }

    fn paths(table: &toml::Table, above: &str, found: &mut Vec<String>) {
        for (key, value) in table {
            let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
            match value {
                // Its keys are free.
                toml::Value::Table(inner) if path != "labels" => paths(inner, &path, found),
                _ => found.push(path),
            }
        }
    }

    #[test]
    fn the_sample_parses_and_names_every_key_and_no_other() {
        let table: toml::Table = toml::from_str(&sample()).expect("TOML");
        let mut named = Vec::new();
        paths(&table, "", &mut named);
        let mut known: Vec<_> =
            codering_kit::config::keys::<File>().into_iter().map(|key| key.path).collect();
        named.sort();
        known.sort();
        assert_eq!(named, known);
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let file: File = toml::from_str(&sample()).expect("every value has its type");
        let (shown, default) = (file.check().expect("valid"), File::default().check().expect("valid"));
        assert_eq!((shown.git.timeout, shown.git.max_bytes), (default.git.timeout, default.git.max_bytes));
        let build = |config: &Config| Build { cpus: 1.0, ..config.build.clone() };
        assert_eq!(format!("{:?}", build(&shown)), format!("{:?}", build(&default)));
        assert_eq!(format!("{:?}", shown.sandbox), format!("{:?}", default.sandbox));
        assert_eq!(shown.docker_socket, default.docker_socket);
        assert_eq!((shown.data_dir, shown.broker), (default.data_dir, default.broker));
        assert_eq!((shown.cache_max_bytes, shown.metrics), (default.cache_max_bytes, default.metrics));
        assert_eq!((shown.shutdown, shown.on_stop), (default.shutdown, default.on_stop));
        assert_eq!((shown.git.schemes, shown.simulate), (default.git.schemes, default.simulate));
    }

    #[test]
    fn the_docs_say_of_every_key_whether_a_reload_changes_it() {
        let docs = include_str!("../../../docs/reload.md");
        codering_kit::reload::assert_documented(
            docs,
            "workerd",
            &codering_kit::config::keys::<File>(),
            AT_RESTART,
        );
    }

    #[test]
    fn a_host_name_becomes_a_worker_name() {
        assert_eq!(slug("Big Box.example\n"), "big-box.example");
        assert_eq!(slug("-x"), "x");
    }
}
