//! What the broker is told by its configuration.

use std::{path::PathBuf, time::Duration};

use codering_core::Limits;
use codering_kit::disk::Reserve;

/// See each field; the defaults are those of an empty configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a worker holds a task without renewing.
    pub lease: Duration,
    /// Limits of tasks that name none.
    pub default_limits: Limits,
    /// No task may ask for more.
    pub max_limits: Limits,
    /// No job may have more.
    pub max_tasks_per_job: u64,
    /// No more jobs are taken while as many are unfinished: they are in memory.
    pub max_unfinished_jobs: usize,
    /// Finished jobs older than this go.
    pub keep_for: Duration,
    /// Of the finished jobs, the newest this many stay.
    pub keep_jobs: u64,
    /// Where the output of running attempts is kept.
    pub live_dir: PathBuf,
    /// An open job is closed after this long without a raw message.
    pub open_job_idle: Duration,
    /// What stays free on the ledger's disk.
    pub reserve: Reserve,
    /// How often the ledger and the queues are compared.
    pub reconcile_every: Duration,
}

impl Settings {
    /// The defaults, with live output under `live_dir`.
    pub fn new(live_dir: PathBuf) -> Self {
        let most = Limits {
            timeout_ms: 7 * 24 * 3_600_000,
            memory_bytes: 1 << 44,
            cpus: 1024.0,
            max_pids: 1_000_000,
            network: true,
            max_attempts: 100,
            output_bytes: codering_core::limits::MAX_OUTPUT_BYTES,
        };
        Self {
            lease: Duration::from_secs(30),
            default_limits: Limits::default(),
            max_limits: most,
            max_tasks_per_job: 1_000_000,
            max_unfinished_jobs: 20_000,
            keep_for: Duration::from_secs(30 * 24 * 3600),
            keep_jobs: 10_000,
            reserve: Reserve::new(&live_dir, 0),
            live_dir,
            open_job_idle: Duration::from_secs(60),
            reconcile_every: Duration::from_secs(10),
        }
    }

    /// How often a worker renews.
    pub fn heartbeat(&self) -> Duration {
        self.lease / 3
    }
}
