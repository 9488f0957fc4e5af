//! What one attempt produced.

use serde::{Deserialize, Serialize};

use crate::{JobId, Outcome, ProjectName, TaskId, time::Millis};

/// Milliseconds that each phase of an attempt took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phases {
    /// From ready to leased.
    pub queued: u64,
    /// Git.
    pub checkout: u64,
    /// The image.
    pub build: u64,
    /// The container.
    pub start: u64,
    /// The command.
    pub run: u64,
}

/// What one attempt produced; exactly one is recorded for a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// The project.
    pub project: ProjectName,
    /// The job.
    pub job: JobId,
    /// The task.
    pub task: TaskId,
    /// Which try, from 1; 0 when it never ran.
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// The command's exit code, where it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it, where one did.
    pub signal: Option<i32>,
    /// At most `output_bytes` of it.
    pub stdout: Vec<u8>,
    /// At most `output_bytes` of it.
    pub stderr: Vec<u8>,
    /// There was more.
    pub stdout_truncated: bool,
    /// There was more.
    pub stderr_truncated: bool,
    /// When the attempt began.
    pub started_at: Millis,
    /// When it ended.
    pub finished_at: Millis,
    /// How long each part took.
    pub phases: Phases,
    /// The worker; empty when it never ran.
    pub worker: String,
    /// The commit; empty when it was never resolved.
    pub commit: String,
    /// The image; empty when there was none.
    pub image: String,
    /// Why, in one sentence; empty for a plain success or exit code.
    pub message: String,
}

impl TaskResult {
    /// A result for a task that ended without an attempt's own report.
    pub fn without_attempt(
        project: ProjectName,
        job: JobId,
        task: TaskId,
        attempt: u32,
        outcome: Outcome,
        now: Millis,
        message: impl Into<String>,
    ) -> Self {
        Self {
            project,
            job,
            task,
            attempt,
            outcome,
            exit_code: None,
            signal: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            stdout_truncated: false,
            stderr_truncated: false,
            started_at: now,
            finished_at: now,
            phases: Phases::default(),
            worker: String::new(),
            commit: String::new(),
            image: String::new(),
            message: message.into(),
        }
    }

    /// What it weighs against the project's quota.
    pub fn bytes(&self) -> u64 {
        (self.stdout.len() + self.stderr.len()) as u64
    }
}
