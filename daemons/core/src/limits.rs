//! What one attempt may use.

use serde::{Deserialize, Serialize};

use crate::{Code, Error};

/// Every limit of an attempt, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Wall clock of the command, in milliseconds.
    pub timeout_ms: u64,
    /// Bytes of memory, swap included.
    pub memory_bytes: u64,
    /// Processor cores' worth of time.
    pub cpus: f64,
    /// Processes and threads.
    pub max_pids: u32,
    /// Whether it has a network.
    pub network: bool,
    /// Failures of the user's own before the task is failed.
    pub max_attempts: u32,
    /// Bytes kept of each of stdout and stderr.
    pub output_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout_ms: 600_000,
            memory_bytes: 512 << 20,
            cpus: 1.0,
            max_pids: 256,
            network: false,
            max_attempts: 3,
            output_bytes: 1 << 20,
        }
    }
}

/// Limits that were named; the rest comes from the job, then from the broker's defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsPatch {
    /// See [`Limits::timeout_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// See [`Limits::memory_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// See [`Limits::cpus`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// See [`Limits::max_pids`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pids: Option<u32>,
    /// See [`Limits::network`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<bool>,
    /// See [`Limits::max_attempts`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// See [`Limits::output_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
}

/// A reduce step's output is an answer, not a log: it may be larger.
pub const REDUCE_OUTPUT_BYTES: u64 = 32 << 20;
/// No attempt may keep more of one stream: a result travels in one message.
pub const MAX_OUTPUT_BYTES: u64 = 32 << 20;

impl LimitsPatch {
    /// These limits where named, those of `base` elsewhere.
    pub fn over(&self, base: &Limits) -> Limits {
        Limits {
            timeout_ms: self.timeout_ms.unwrap_or(base.timeout_ms),
            memory_bytes: self.memory_bytes.unwrap_or(base.memory_bytes),
            cpus: self.cpus.unwrap_or(base.cpus),
            max_pids: self.max_pids.unwrap_or(base.max_pids),
            network: self.network.unwrap_or(base.network),
            max_attempts: self.max_attempts.unwrap_or(base.max_attempts),
            output_bytes: self.output_bytes.unwrap_or(base.output_bytes),
        }
    }

    /// Refuses what cannot be: zero time, too little memory, more than any machine has.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |ok: bool, field: &str, rule: &str| {
            if ok { Ok(()) } else { Err(Error::new(Code::JobInvalid, rule).at(format!("limits.{field}"))) }
        };
        let within = |value: Option<u64>, low, high| value.is_none_or(|v| (low..=high).contains(&v));
        check(within(self.timeout_ms, 1, 604_800_000), "timeout", "must be from 1 ms to 7 days")?;
        check(within(self.memory_bytes, 6 << 20, 1 << 44), "memory", "must be from 6M to 16T")?;
        check(self.cpus.is_none_or(|c| (0.01..=1024.0).contains(&c)), "cpus", "must be from 0.01 to 1024")?;
        check(within(self.max_pids.map(u64::from), 1, 1_000_000), "pids", "must be from 1 to 1000000")?;
        check(within(self.max_attempts.map(u64::from), 1, 100), "attempts", "must be from 1 to 100")?;
        check(within(self.output_bytes, 0, MAX_OUTPUT_BYTES), "output", "must be at most 32M")
    }
}
