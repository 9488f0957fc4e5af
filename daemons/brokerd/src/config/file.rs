//! The keys of `brokerd.toml`, as they are written.

use std::{net::SocketAddr, path::PathBuf};

use codering_core::{
    LimitsPatch,
    units::{read_duration, read_size},
};
use serde::Deserialize;

use crate::queue::QueueConfig;

/// The whole file. Durations are in milliseconds here, sizes in bytes.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct File {
    pub log: Option<String>,
    pub data_dir: PathBuf,
    #[serde(deserialize_with = "read_size")]
    pub min_free_disk: Option<u64>,
    pub public_names: Vec<String>,
    pub grpc: Grpc,
    pub rest: Rest,
    pub tls: Tls,
    pub queue: QueueConfig,
    pub leases: Leases,
    pub limits: Limits,
    pub retention: Retention,
    pub broker: Broker,
    pub workers: Workers,
    pub shutdown: Shutdown,
}

impl Default for File {
    fn default() -> Self {
        Self {
            log: None,
            data_dir: "/var/lib/codering/brokerd".into(),
            min_free_disk: None,
            public_names: vec!["localhost".into()],
            grpc: Grpc::default(),
            rest: Rest::default(),
            tls: Tls::default(),
            queue: QueueConfig::default(),
            leases: Leases::default(),
            limits: Limits::default(),
            retention: Retention::default(),
            broker: Broker::default(),
            workers: Workers::default(),
            shutdown: Shutdown::default(),
        }
    }
}

/// `[grpc]`
#[derive(Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Grpc {
    pub listen: SocketAddr,
}

impl Default for Grpc {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([0, 0, 0, 0], 7443)) }
    }
}

/// `[rest]`
#[derive(Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Rest {
    pub listen: SocketAddr,
    pub tls: Option<bool>,
}

impl Default for Rest {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7480)), tls: None }
    }
}

/// `[tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Tls {
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// `[leases]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Leases {
    #[serde(deserialize_with = "read_duration")]
    pub duration: Option<u64>,
}

/// `[limits]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Limits {
    #[serde(deserialize_with = "read_duration")]
    pub timeout: Option<u64>,
    #[serde(deserialize_with = "read_size")]
    pub memory: Option<u64>,
    pub cpus: Option<f64>,
    pub pids: Option<u32>,
    pub attempts: Option<u32>,
    #[serde(deserialize_with = "read_size")]
    pub output: Option<u64>,
    #[serde(deserialize_with = "read_duration")]
    pub max_timeout: Option<u64>,
    #[serde(deserialize_with = "read_size")]
    pub max_memory: Option<u64>,
    pub max_cpus: Option<f64>,
    pub max_pids: Option<u32>,
    pub max_attempts: Option<u32>,
    #[serde(deserialize_with = "read_size")]
    pub max_output: Option<u64>,
    pub allow_network: Option<bool>,
    pub max_tasks_per_job: Option<u64>,
    pub max_unfinished_jobs: Option<usize>,
}

impl Limits {
    /// Those of a task that names none.
    pub(super) fn usual(&self) -> LimitsPatch {
        LimitsPatch {
            timeout_ms: self.timeout,
            memory_bytes: self.memory,
            cpus: self.cpus,
            max_pids: self.pids,
            network: None,
            max_attempts: self.attempts,
            output_bytes: self.output,
        }
    }

    /// Those that no task may pass.
    pub(super) fn most(&self) -> LimitsPatch {
        LimitsPatch {
            timeout_ms: self.max_timeout,
            memory_bytes: self.max_memory,
            cpus: self.max_cpus,
            max_pids: self.max_pids,
            network: self.allow_network,
            max_attempts: self.max_attempts,
            output_bytes: self.max_output,
        }
    }
}

/// `[retention]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Retention {
    #[serde(deserialize_with = "read_duration")]
    pub keep_for: Option<u64>,
    pub keep_jobs: Option<u64>,
}

/// `[broker]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Broker {
    #[serde(deserialize_with = "read_duration")]
    pub open_job_idle: Option<u64>,
    #[serde(deserialize_with = "read_duration")]
    pub reconcile_every: Option<u64>,
}

/// `[workers]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Workers {
    #[serde(deserialize_with = "read_duration")]
    pub certificate_life: Option<u64>,
}

/// `[shutdown]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Shutdown {
    #[serde(deserialize_with = "read_duration")]
    pub deadline: Option<u64>,
}
