//! How an attempt ended, and whose fault it was.

use serde::{Deserialize, Serialize};

/// How an attempt, and at last its task, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The command exited with 0.
    Succeeded,
    /// The command exited with another code, by a signal, or could not be started.
    Failed,
    /// It ran past its wall-clock limit.
    TimedOut,
    /// The kernel killed it for memory.
    OutOfMemory,
    /// Its image could not be built, or its repository holds no such commit or Dockerfile.
    BuildFailed,
    /// A user cancelled it.
    Cancelled,
    /// The worker, Docker or the git host failed it.
    InfrastructureError,
}

/// Whose fault an outcome was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Nobody's.
    None,
    /// The user's: counts against `max_attempts`.
    User,
    /// Ours: counts against the larger bound for infrastructure failures.
    Infrastructure,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 7] = [
        Outcome::Succeeded,
        Outcome::Failed,
        Outcome::TimedOut,
        Outcome::OutOfMemory,
        Outcome::BuildFailed,
        Outcome::Cancelled,
        Outcome::InfrastructureError,
    ];

    /// Whose fault.
    pub fn blame(self) -> Blame {
        match self {
            Self::Succeeded | Self::Cancelled => Blame::None,
            Self::Failed | Self::TimedOut | Self::OutOfMemory | Self::BuildFailed => Blame::User,
            Self::InfrastructureError => Blame::Infrastructure,
        }
    }

    /// The name on the wire, e.g. `timed_out`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::OutOfMemory => "out_of_memory",
            Self::BuildFailed => "build_failed",
            Self::Cancelled => "cancelled",
            Self::InfrastructureError => "infrastructure_error",
        }
    }

    /// The reverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
