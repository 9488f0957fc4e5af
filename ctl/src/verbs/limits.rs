//! Limits as options, for every verb that starts something.

use clap::Args;
use codering_core::LimitsPatch;
use std::time::Duration;

/// What an attempt may use; what is not named comes from the job file or from the broker's defaults.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Wall clock of one try, such as 90s or 10m.
    #[arg(long, value_name = "DURATION", value_parser = crate::cli::duration)]
    timeout: Option<Duration>,
    /// Memory, such as 512M or 2G.
    #[arg(long, value_name = "SIZE", value_parser = crate::cli::size)]
    memory: Option<u64>,
    /// Processor cores' worth of time.
    #[arg(long, value_name = "N")]
    cpus: Option<f64>,
    /// Processes and threads.
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// With a network.
    #[arg(long)]
    network: bool,
    /// Tries before a task that fails by its own fault is failed.
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
    /// Bytes kept of each of stdout and stderr, such as 1M.
    #[arg(long, value_name = "SIZE", value_parser = crate::cli::size)]
    output_limit: Option<u64>,
}

impl LimitArgs {
    /// As core's words.
    pub fn patch(&self) -> LimitsPatch {
        LimitsPatch {
            timeout_ms: self.timeout.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            memory_bytes: self.memory,
            cpus: self.cpus,
            max_pids: self.pids,
            network: self.network.then_some(true),
            max_attempts: self.attempts,
            output_bytes: self.output_limit,
        }
    }

    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        self.patch() == LimitsPatch::default()
    }
}
