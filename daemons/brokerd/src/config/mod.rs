//! What brokerd is told: `brokerd.toml`, its drop-ins and `CODERING_*`.
//!
//! [`file`] is what may be written, [`Config`] what was checked. `packaging/config/brokerd.toml` documents every key,
//! and a test keeps it complete.

mod file;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use codering_core::{Code, Error, Limits, LimitsPatch};
use codering_kit::{
    config::{Written, secret_path},
    disk::Reserve,
    telemetry, tls,
};

use crate::{
    broker::{LEAST_MESSAGE_BOUND, Settings},
    queue::{Backend, QueueConfig},
};
pub use file::File;

/// The keys that only a restart changes: what is opened once, and the leases that workers were told of.
/// `docs/reload.md` says why, key by key.
pub const AT_RESTART: &[&str] = &[
    "data_dir",
    "min_free_disk",
    "grpc.listen",
    "rest.listen",
    "rest.tls",
    "queue.backend",
    "queue.url",
    "queue.url_file",
    "queue.ca_file",
    "queue.prefix",
    "queue.data_dir",
    "queue.max_messages",
    "queue.max_bytes",
    "queue.max_message_bytes",
    "leases.duration",
];

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// What is logged.
    pub log: String,
    /// Everything that brokerd keeps is below it.
    pub data_dir: PathBuf,
    /// Host names and addresses that its certificate names beside its own.
    pub public_names: Vec<String>,
    /// Where gRPC listens, always with TLS.
    pub grpc: SocketAddr,
    /// Where REST, probes and metrics listen.
    pub rest: SocketAddr,
    /// Whether they do so with TLS.
    pub rest_tls: bool,
    /// A certificate and key for REST instead of brokerd's own: `(chain, key)`.
    pub rest_certificate: Option<(PathBuf, PathBuf)>,
    /// The queue backend.
    pub queue: QueueConfig,
    /// What the broker itself goes by.
    pub settings: Settings,
    /// How long a worker's certificate is valid; it is renewed before.
    pub certificate_life: Duration,
    /// How long a drain may take.
    pub drain: Duration,
}

impl Config {
    /// Loads and checks it; see [`codering_kit::config::load`].
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] with its place.
    pub fn load(file: Option<&Path>) -> Result<Self, Error> {
        Self::load_written(file).map(|(config, _)| config)
    }

    /// The same, and what was written.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub fn load_written(file: Option<&Path>) -> Result<(Self, Written), Error> {
        codering_kit::config::load_written("brokerd", file, Self::check)
    }

    fn check(file: File) -> Result<Self, Error> {
        let rest_tls = file.rest.tls.unwrap_or(!file.rest.listen.ip().is_loopback());
        if !rest_tls && !file.rest.listen.ip().is_loopback() {
            return Err(wrong("rest.tls", "tokens would cross the network readable")
                .hint("leave rest.tls away, or listen on 127.0.0.1 behind a proxy with TLS"));
        }
        let rest_certificate = match (file.tls.cert_file, file.tls.key_file) {
            (Some(chain), Some(key)) => {
                Some((secret_path("tls.cert_file", &chain)?, secret_path("tls.key_file", &key)?))
            }
            (None, None) => None,
            (Some(_), None) => return Err(wrong("tls.cert_file", "needs tls.key_file beside it")),
            (None, Some(_)) => return Err(wrong("tls.key_file", "needs tls.cert_file beside it")),
        };
        let log = file.log.unwrap_or_else(|| telemetry::DEFAULT_FILTER.into());
        telemetry::filter(&log)?;
        if file.data_dir.as_os_str().is_empty() {
            return Err(wrong("data_dir", "is empty"));
        }
        if let Some(name) =
            file.public_names.iter().find(|name| name.trim().is_empty() || name.contains("://"))
        {
            return Err(wrong("public_names", format!("`{name}` is no host name or address")));
        }
        let min_free_disk = file.min_free_disk.unwrap_or(MIN_FREE_DISK);
        let queue = QueueConfig { min_free_disk, ..checked_queue(file.queue, &file.data_dir)? };
        let mut settings = Settings::new(file.data_dir.join("live"));
        settings.reserve = Reserve::new(&file.data_dir, min_free_disk);
        let hour = Duration::from_secs(3600);
        set(&mut settings.lease, "leases.duration", file.leases.duration, Duration::from_secs(3)..=hour)?;
        let second = Duration::from_secs(1);
        set(
            &mut settings.open_job_idle,
            "broker.open_job_idle",
            file.broker.open_job_idle,
            second..=hour * 24,
        )?;
        set(
            &mut settings.reconcile_every,
            "broker.reconcile_every",
            file.broker.reconcile_every,
            second..=hour,
        )?;
        let years = hour * 24 * 3660;
        set(
            &mut settings.keep_for,
            "retention.keep_for",
            file.retention.keep_for,
            Duration::from_secs(60)..=years,
        )?;
        settings.keep_jobs = file.retention.keep_jobs.unwrap_or(settings.keep_jobs);
        settings.max_tasks_per_job = file.limits.max_tasks_per_job.unwrap_or(settings.max_tasks_per_job);
        if settings.max_tasks_per_job == 0 {
            return Err(wrong("limits.max_tasks_per_job", "a job without tasks is no job"));
        }
        settings.max_unfinished_jobs =
            file.limits.max_unfinished_jobs.unwrap_or(settings.max_unfinished_jobs);
        if settings.max_unfinished_jobs == 0 {
            return Err(wrong("limits.max_unfinished_jobs", "no job could be submitted"));
        }
        settings.default_limits = checked(file.limits.usual(), &settings.default_limits, "")?;
        settings.max_limits = checked(file.limits.most(), &settings.max_limits, "max_")?;
        within(&settings.default_limits, &settings.max_limits)?;
        let mut certificate_life = tls::WORKER_LIFE;
        set(
            &mut certificate_life,
            "workers.certificate_life",
            file.workers.certificate_life,
            Duration::from_secs(10)..=hour * 24 * 3660,
        )?;
        let mut drain = Duration::from_secs(20);
        set(&mut drain, "shutdown.deadline", file.shutdown.deadline, Duration::ZERO..=hour)?;
        Ok(Self {
            log,
            data_dir: file.data_dir,
            public_names: file.public_names,
            grpc: file.grpc.listen,
            rest: file.rest.listen,
            rest_tls,
            rest_certificate,
            queue,
            settings,
            certificate_life,
            drain,
        })
    }
}

/// What is left free on the disk unless the file says otherwise: room for the results of what runs, and for the logs
/// of the ledger and of the embedded queue.
const MIN_FREE_DISK: u64 = 256 << 20;

/// The credential (`LoadCredential=`) that holds RabbitMQ's address where the file names none.
const QUEUE_CREDENTIAL: &str = "rabbitmq_url";

fn checked_queue(mut queue: QueueConfig, data_dir: &Path) -> Result<QueueConfig, Error> {
    if queue.url.is_some() && queue.url_file.is_some() {
        return Err(wrong("queue.url", "excludes queue.url_file"));
    }
    for (key, path) in [("queue.url_file", &mut queue.url_file), ("queue.ca_file", &mut queue.ca_file)] {
        if let Some(path) = path {
            *path = secret_path(key, path)?;
        }
    }
    let named = queue.url.is_some() || queue.url_file.is_some();
    if !named && queue.backend != Some(Backend::Embedded) {
        queue.url = codering_kit::config::credential(QUEUE_CREDENTIAL)?.map(|url| url.expose().to_owned());
    }
    if !named && queue.url.is_none() && queue.backend == Some(Backend::Rabbitmq) {
        return Err(wrong("queue.backend", "RabbitMQ has an address")
            .hint(format!("set queue.url_file, or give the service the credential {QUEUE_CREDENTIAL}")));
    }
    if queue.max_message_bytes < LEAST_MESSAGE_BOUND as u64 {
        return Err(wrong(
            "queue.max_message_bytes",
            format!("must be at least {}M", LEAST_MESSAGE_BOUND >> 20),
        )
        .hint("a task or a result may need as much, and would hold up all that is behind it"));
    }
    queue.data_dir.get_or_insert_with(|| data_dir.to_owned());
    Ok(queue)
}

fn wrong(key: &str, what: impl Into<String>) -> Error {
    Error::new(Code::ConfigInvalid, format!("`{key}`: {}", what.into())).at(key)
}

fn set(
    setting: &mut Duration,
    key: &str,
    written_ms: Option<u64>,
    allowed: std::ops::RangeInclusive<Duration>,
) -> Result<(), Error> {
    let Some(written) = written_ms.map(Duration::from_millis) else { return Ok(()) };
    if !allowed.contains(&written) {
        let shown = |d: &Duration| codering_core::units::show_duration(d.as_millis() as u64);
        return Err(wrong(
            key,
            format!("must be from {} to {}", shown(allowed.start()), shown(allowed.end())),
        ));
    }
    *setting = written;
    Ok(())
}

/// The limits with what was written over the defaults; core's own bounds hold for both.
fn checked(written: LimitsPatch, defaults: &Limits, prefix: &str) -> Result<Limits, Error> {
    written.validate().map_err(|error| {
        let field = error.place.strip_prefix("limits.").unwrap_or(&error.place);
        wrong(&format!("limits.{prefix}{field}"), error.message)
    })?;
    Ok(written.over(defaults))
}

/// A task that names no limits has to fit.
fn within(default: &Limits, most: &Limits) -> Result<(), Error> {
    let fields = [
        ("timeout", default.timeout_ms <= most.timeout_ms),
        ("memory", default.memory_bytes <= most.memory_bytes),
        ("cpus", default.cpus <= most.cpus),
        ("pids", default.max_pids <= most.max_pids),
        ("attempts", default.max_attempts <= most.max_attempts),
        ("output", default.output_bytes <= most.output_bytes),
    ];
    match fields.iter().find(|(_, fits)| !fits) {
        None => Ok(()),
        Some((field, _)) => {
            Err(wrong(&format!("limits.max_{field}"), format!("the default limits.{field} is above it"))
                .hint(format!("lower limits.{field}, or raise limits.max_{field}")))
        }
    }
}

#[cfg(test)]
mod tests;
