//! What the ledger keeps.

use codering_core::{
    JobId, JobSpec, Outcome, ProjectName, TaskKey, TaskResult, TaskSpec, WorkerName,
    job::{JobState, TaskCounts},
    quota::Quota,
    spec::Reduce,
    task::Progress,
    time::Millis,
};
use serde::{Deserialize, Serialize};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its name.
    pub name: ProjectName,
    /// What it may hold.
    pub quota: Quota,
    /// Since when.
    pub created_at: Millis,
}

/// What a project holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Ready tasks.
    pub queued_tasks: u64,
    /// Leased tasks.
    pub running_tasks: u64,
    /// Bytes of recorded results.
    pub result_bytes: u64,
    /// Jobs whose state is not final.
    pub unfinished_jobs: u64,
}

/// A job. `state` and `counts` are what was derived when they last changed in a way worth a write; while
/// the job runs, the broker's memory knows better.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it asks for.
    pub spec: JobSpec,
    /// The derived state.
    pub state: JobState,
    /// The derived counters.
    pub counts: TaskCounts,
    /// A user paused it.
    pub paused: bool,
    /// A user cancelled it.
    pub cancelled: bool,
    /// It adopts raw messages.
    pub open: bool,
    /// The pinned commit; empty before the first lease.
    pub commit: String,
    /// The reduce command in force: the job's own, or the one it was reduced with again.
    pub reduce: Option<Reduce>,
    /// Reduce steps made so far.
    pub reduce_runs: u32,
    /// Which of them counts: the newest, or 0 before the first and after a retry.
    pub reduced_run: u32,
    /// The token's name.
    pub submitted_by: String,
    /// When it was submitted.
    pub created_at: Millis,
    /// When its first task was leased; 0 before.
    pub started_at: Millis,
    /// When its state became final; 0 before.
    pub finished_at: Millis,
    /// Why it failed, where one sentence tells.
    pub message: String,
}

impl Job {
    /// One of which nothing has happened yet. It is closed, and no commit is pinned.
    pub fn new(id: JobId, spec: JobSpec, submitted_by: impl Into<String>, created_at: Millis) -> Self {
        Self {
            id,
            reduce: spec.reduce.clone(),
            spec,
            state: JobState::Queued,
            counts: TaskCounts::default(),
            paused: false,
            cancelled: false,
            open: false,
            commit: String::new(),
            reduce_runs: 0,
            reduced_run: 0,
            submitted_by: submitted_by.into(),
            created_at,
            started_at: 0,
            finished_at: 0,
            message: String::new(),
        }
    }
}

/// A task.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Job and id.
    pub key: TaskKey,
    /// The tenant.
    pub project: ProjectName,
    /// Its place in the job, from 0.
    pub seq: u64,
    /// A reduce step: not counted, not listed.
    pub reduce: bool,
    /// What it asks for beyond its job.
    pub spec: TaskSpec,
    /// A commit of its own (raw messages); empty where the job's holds.
    pub commit: String,
    /// All of it that changes.
    pub progress: Progress,
}

/// A compare-and-set on one task.
#[derive(Debug, Clone)]
pub struct TaskChange {
    /// Which.
    pub key: TaskKey,
    /// The version that was read.
    pub expected_version: u64,
    /// What it becomes.
    pub progress: Progress,
    /// Pins a commit to this task, where there is one.
    pub commit: Option<String>,
    /// What else is written with it.
    pub record: Record,
}

/// What is written with a change of a task.
#[derive(Debug, Clone, Default)]
pub enum Record {
    /// Nothing.
    #[default]
    Nothing,
    /// An attempt ended and another will follow.
    Attempt(Attempt),
    /// The task is done: its result, unpublished, and the attempt that ended with it, if one did.
    Result(Box<TaskResult>, Option<Attempt>),
    /// The task is to run again: the recorded result goes.
    Forget,
}

/// An attempt that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// From 1.
    pub attempt: u32,
    /// Who tried.
    pub worker: WorkerName,
    /// From when.
    pub leased_at: Millis,
    /// To when.
    pub finished_at: Millis,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, in one sentence.
    pub message: String,
}

/// What is kept of a build's log.
pub const BUILD_LOG_BYTES: usize = 256 << 10;

/// An image build on behalf of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Where.
    pub worker: String,
    /// The image's tag or id.
    pub image: String,
    /// Of which commit.
    pub commit: String,
    /// Whether it is usable.
    pub succeeded: bool,
    /// When it began.
    pub started_at: Millis,
    /// How long it took.
    pub took_ms: u64,
    /// Steps of the Dockerfile.
    pub steps: u32,
    /// How many of them came from the cache.
    pub cached_steps: u32,
    /// At most its last [`BUILD_LOG_BYTES`].
    pub log: String,
    /// There was more before.
    pub log_truncated: bool,
}

/// Which jobs.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Of these projects; `None`: of all.
    pub projects: Option<Vec<ProjectName>>,
    /// In this state.
    pub state: Option<JobState>,
}

/// Which tasks.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Where they stand.
    pub stands: Option<Stands>,
    /// Done with one of these; empty: any.
    pub outcomes: Vec<Outcome>,
}

/// Where a task stands, without the details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// Ready.
    Queued,
    /// Leased.
    Running,
    /// Done.
    Done,
}

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything.
    Admin,
    /// Reading, and submitting and changing jobs and queues.
    Submitter,
    /// Reading.
    Viewer,
    /// Joining one worker, once.
    Worker,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Public part of the secret.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// Where; empty: everywhere.
    pub projects: Vec<ProjectName>,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: Millis,
    /// 0: never.
    pub expires_at: Millis,
    /// 0: it is not.
    pub revoked_at: Millis,
    /// 0: never; written at most once a minute.
    pub last_used_at: Millis,
}

/// A worker that enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its name.
    pub name: WorkerName,
    /// Serial number of its newest certificate, hexadecimal.
    pub certificate_serial: String,
    /// That of the one which it renewed that with, accepted as well until it expires; or empty. No other is accepted.
    pub previous_serial: String,
    /// When that expires.
    pub certificate_expires_at: Millis,
    /// A user paused it.
    pub paused: bool,
    /// Its certificate is refused.
    pub revoked: bool,
    /// When it enrolled.
    pub enrolled_at: Millis,
    /// When it was last heard of; written when it connects and goes.
    pub last_seen_at: Millis,
}

impl Worker {
    /// Whether a certificate of this serial number is its newest, or the one before that.
    pub fn has_certificate(&self, serial: &str) -> bool {
        !serial.is_empty()
            && [&self.certificate_serial, &self.previous_serial].iter().any(|its| *its == serial)
    }
}

/// What a ledger has written since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Writes that were asked for.
    pub operations: u64,
    /// Durable commits that they took.
    pub commits: u64,
}

/// Whether a ledger is whole, and what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What does not fit together; empty where it is whole.
    pub problems: Vec<String>,
    /// Of its file.
    pub bytes: u64,
    /// Of its tables.
    pub schema: u64,
    /// Committed.
    pub jobs: u64,
    /// Of all jobs.
    pub tasks: u64,
    /// Recorded.
    pub results: u64,
    /// The newest change.
    pub newest_at: Millis,
}

/// A copy of one moment; the file has no name and goes when it is closed.
#[derive(Debug)]
pub struct Snapshot {
    /// From its beginning.
    pub file: std::fs::File,
    /// Its length.
    pub bytes: u64,
}

/// A backup that is in its place.
#[derive(Debug)]
pub struct Restored {
    /// What is in it.
    pub report: Report,
    /// Where the file that was there is now.
    pub aside: Option<std::path::PathBuf>,
    /// Whether there was a checksum to compare with.
    pub checksum: bool,
}
