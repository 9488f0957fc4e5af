//! The durable record: jobs, tasks, attempts, leases and results.
//!
//! What a store must give is little, so that PostgreSQL or Cassandra can stand here as well: reads by
//! key and by page, batched writes, and compare-and-set on *one* task's row ([`Ledger::swap_task`]).
//! Nothing needs a transaction over two tasks; every counter is derived.

#[cfg(test)]
mod conformance;
#[cfg(test)]
#[path = "../../tests/plain/mod.rs"]
mod plain;
mod rows;
mod sqlite;

use std::{collections::HashSet, path::Path, sync::Arc};

use async_trait::async_trait;
use codering_core::{
    Code, Error, JobId, Outcome, ProjectName, QueueName, TaskId, TaskKey, TaskResult, job::TaskCounts,
    time::Millis,
};

pub use rows::*;

/// A ledger that many hold.
pub type SharedLedger = Arc<dyn Ledger>;

/// Opens the ledger at `path`, and makes it where there is none; the one place that chooses what it stands
/// on. A file that is damaged, written by a newer brokerd or in use is refused, with what to do about it.
pub async fn open(path: &Path) -> std::result::Result<SharedLedger, Error> {
    Ok(sqlite::SqliteLedger::open(path).await?)
}

/// Reads a ledger's file, or a backup of one, that no brokerd has open.
pub async fn inspect(path: &Path) -> std::result::Result<Report, Error> {
    sqlite::inspect(path).await
}

/// Puts a backup in the place of the ledger at `path`, which no brokerd may have open; what is there is kept aside.
///
/// # Errors
/// Where it cannot be done, nothing was changed, or the next start says to do it again.
pub async fn restore(path: &Path, backup: &Path) -> std::result::Result<Restored, Error> {
    sqlite::restore(path, backup).await
}

/// What a page of tasks or results weighs at most, and one of them more.
pub const PAGE_BYTES: usize = 8 << 20;

/// Why a call did not do what it should. "Failed" and "unknown" are different answers: after the first
/// nothing was recorded, after the second it may have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Certainly not recorded.
    #[error("the ledger cannot be used: {0}")]
    Failed(String),
    /// Certainly not recorded, for want of room on its disk.
    #[error("the ledger has no room: {0}")]
    Full(String),
    /// Perhaps recorded; ask before doing it again.
    #[error("the ledger did not say whether it recorded the change: {0}")]
    Unknown(String),
}

impl From<LedgerError> for Error {
    fn from(error: LedgerError) -> Self {
        let code = match error {
            LedgerError::Failed(_) => Code::LedgerUnavailable,
            LedgerError::Full(_) => Code::LedgerFull,
            LedgerError::Unknown(_) => Code::LedgerUnknown,
        };
        Error::new(code, error.to_string())
    }
}

/// The result of a ledger call.
pub type Result<T> = std::result::Result<T, LedgerError>;

/// What became of a job that was to be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It is recorded as not yet committed, and invisible.
    New,
    /// Its idempotency key was used before, by this committed job.
    Existing(JobId),
    /// Its idempotency key is held by a job that is being recorded right now, or its id is taken.
    Busy,
}

/// What a step of a job's removal did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// There is something left of the job.
    pub more: bool,
    /// Bytes of results that went.
    pub result_bytes: u64,
}

/// What became of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swapped {
    /// The row had the expected version; the change is durable.
    Yes,
    /// It had another version, or there is no such row; nothing changed.
    No,
}

/// See the module. Every method that writes returns once the write is durable (fsync).
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    // ---- one task ----

    /// One task.
    async fn task(&self, key: &TaskKey) -> Result<Option<Task>>;

    /// Those of up to 256 keys that there are, in no order: one read for all of them.
    async fn tasks_of(&self, keys: &[TaskKey]) -> Result<Vec<Task>>;

    /// Stores `change` if the row still has `change.expected_version`; all of it or none.
    async fn swap_task(&self, change: TaskChange) -> Result<Swapped>;

    /// Adds one task to a committed job. `false`: there is one of this id, nothing changed.
    async fn insert_task(&self, task: Task) -> Result<bool>;

    // ---- jobs ----

    /// Records a job, uncommitted: invisible to every read until [`Ledger::commit_job`].
    async fn begin_job(&self, job: Job, idempotency_key: Option<String>) -> Result<Begun>;

    /// Adds up to 1000 tasks to an uncommitted job. `Some(id)`: that id was there already, nothing was added.
    async fn add_tasks(&self, job: &JobId, tasks: Vec<Task>) -> Result<Option<TaskId>>;

    /// Makes the job and all its tasks visible at once.
    async fn commit_job(&self, job: &JobId) -> Result<()>;

    /// The last tasks of an uncommitted job, its row as it is now, and its commit. `Some(id)`: that id was there already, and the job
    /// stays uncommitted; as it may after an error, with some of this. A ledger that can do it in one step saves a small submit
    /// most of its time.
    async fn finish_job(&self, job: Job, tasks: Vec<Task>) -> Result<Option<TaskId>> {
        let id = job.id.clone();
        if let Some(twice) = self.add_tasks(&id, tasks).await? {
            return Ok(Some(twice));
        }
        self.update_job(job).await?;
        self.commit_job(&id).await?;
        Ok(None)
    }

    /// Removes some of a job, committed or not: as much as holds nobody up. No read sees the job from the first step on.
    async fn delete_some(&self, job: &JobId) -> Result<Deleted>;

    /// All of it, in such steps. Says how many bytes of results went with it.
    async fn delete_job(&self, job: &JobId) -> Result<u64> {
        let mut bytes = 0;
        loop {
            let step = self.delete_some(job).await?;
            bytes += step.result_bytes;
            if !step.more {
                return Ok(bytes);
            }
        }
    }

    /// Removes jobs that were begun and never committed, as a crash leaves them.
    async fn delete_uncommitted(&self) -> Result<u64>;

    /// Overwrites what of a job may change: everything but its id, project and spec's tasks.
    async fn update_job(&self, job: Job) -> Result<()>;

    /// One committed job.
    async fn job(&self, id: &JobId) -> Result<Option<Job>>;

    /// Committed jobs whose id starts so, of these projects or of all, at most `limit`.
    async fn jobs_by_prefix(
        &self,
        prefix: &str,
        projects: Option<&[ProjectName]>,
        limit: u32,
    ) -> Result<Vec<Job>>;

    /// Committed jobs, newest first.
    async fn jobs(&self, filter: JobFilter, after: Option<JobId>, limit: u32) -> Result<Vec<Job>>;

    /// Committed jobs that have not ended (`finished_at` is 0), oldest first. All tasks of one may be done.
    async fn unfinished_jobs(&self) -> Result<Vec<JobId>>;

    /// The finished jobs that retention lets go: finished before `before`, or beyond the newest `keep`. Not one with a result
    /// that is not published yet.
    async fn expired_jobs(&self, before: Millis, keep: u64, limit: u32) -> Result<Vec<JobId>>;

    /// The job's tasks by where they stand, its reduce steps left out.
    async fn counts(&self, job: &JobId) -> Result<TaskCounts>;

    /// The job's newest reduce step.
    async fn newest_reduce(&self, job: &JobId) -> Result<Option<Task>>;

    // ---- pages of tasks ----

    /// Tasks of a job in the order of `seq`, those after `after_seq` first; reduce steps left out. A page of
    /// tasks, here and below, ends after `limit` or some [`PAGE_BYTES`]: only an empty one is the last.
    async fn tasks(
        &self,
        job: &JobId,
        filter: TaskFilter,
        after_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Task>>;

    /// Ready, unpublished tasks of a project whose time has come, of jobs that are neither paused nor among those to be
    /// passed over, oldest first. A time further ahead than any pause was written under a clock that has been set back
    /// since: it has come too.
    async fn unpublished(
        &self,
        project: &ProjectName,
        now: Millis,
        limit: u32,
        over: &HashSet<JobId>,
    ) -> Result<Vec<Task>>;

    /// Projects that have ready, unpublished tasks of unpaused jobs, with the earliest `not_before` of each.
    async fn projects_with_unpublished(&self) -> Result<Vec<(ProjectName, Millis)>>;

    /// Ready tasks of a project that count as published, a page in key order.
    async fn published(&self, project: &ProjectName, after: Option<TaskKey>, limit: u32)
    -> Result<Vec<Task>>;

    /// The same, those first that were published first: by job, and in the order of its tasks.
    async fn longest_published(&self, project: &ProjectName, limit: u32) -> Result<Vec<Task>>;

    /// How many there are of them.
    async fn published_count(&self, project: &ProjectName) -> Result<u64>;

    /// All leased tasks (bounded by the slots of all workers).
    async fn leased(&self) -> Result<Vec<Task>>;

    // ---- results, attempts, builds ----

    /// The recorded result of a task.
    async fn result(&self, key: &TaskKey) -> Result<Option<TaskResult>>;

    /// What it weighs; 0 where there is none.
    async fn result_bytes(&self, key: &TaskKey) -> Result<u64>;

    /// Recorded results of a job in the order of its tasks, with each task's `seq`; reduce steps left out.
    /// A page ends after `limit` results or some [`PAGE_BYTES`].
    async fn results(
        &self,
        job: &JobId,
        outcomes: &[Outcome],
        after_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<(u64, TaskResult)>>;

    /// Recorded results not yet marked as published to the done queue, oldest first; a page as above.
    async fn unpublished_results(&self, limit: u32) -> Result<Vec<TaskResult>>;

    /// Marks results as published, each by its attempt: one that was recorded since is another result.
    async fn mark_results_published(&self, results: Vec<(TaskKey, u32)>) -> Result<()>;

    /// Takes that mark from the results of these tasks; a task without a result is left alone.
    async fn unpublish_results(&self, tasks: Vec<TaskKey>) -> Result<()>;

    /// The attempts that ended, oldest first.
    async fn attempts(&self, key: &TaskKey) -> Result<Vec<Attempt>>;

    /// Keeps a build's log for the job; one for each worker and image, the newest wins.
    async fn put_build(&self, job: &JobId, build: Build) -> Result<()>;

    /// The job's builds, oldest first.
    async fn builds(&self, job: &JobId) -> Result<Vec<Build>>;

    // ---- projects, queues ----

    /// Records or overwrites a project.
    async fn put_project(&self, project: Project) -> Result<()>;

    /// All projects, by name.
    async fn projects(&self) -> Result<Vec<Project>>;

    /// Removes a project and its queues' records; its jobs are deleted one by one before.
    async fn delete_project(&self, name: &ProjectName) -> Result<()>;

    /// What the project holds now, derived.
    async fn usage(&self, name: &ProjectName) -> Result<Usage>;

    /// Records that a queue exists, so that it can be made again. `false`: it was there.
    async fn put_queue(&self, name: &QueueName) -> Result<bool>;

    /// Every recorded queue.
    async fn queues(&self) -> Result<Vec<QueueName>>;

    /// Forgets a queue.
    async fn delete_queue(&self, name: &QueueName) -> Result<()>;

    // ---- tokens, workers ----

    /// Records or overwrites a token.
    async fn put_token(&self, token: Token) -> Result<()>;

    /// All tokens, newest first (bounded: of more than 10,000 the ended ones are removed).
    async fn tokens(&self) -> Result<Vec<Token>>;

    /// One token.
    async fn token(&self, id: &str) -> Result<Option<Token>>;

    /// Removes tokens by their ids.
    async fn delete_tokens(&self, ids: Vec<String>) -> Result<()>;

    /// Uses up a one-use token: sets `revoked_at` if it was not set. `false`: it was used before.
    async fn spend_token(&self, id: &str, now: Millis) -> Result<bool>;

    /// Records or overwrites a worker.
    async fn put_worker(&self, worker: Worker) -> Result<()>;

    /// All workers, by name.
    async fn workers(&self) -> Result<Vec<Worker>>;

    // ---- itself ----

    /// Whether it can be written right now.
    async fn check(&self) -> Result<()>;

    /// Reads all of it, and says what does not fit together. Slow, and in nobody's way.
    async fn audit(&self) -> Result<Report> {
        Err(LedgerError::Failed("its store is checked by the store's own tools".into()))
    }

    /// A copy of one moment, which [`restore`] takes.
    async fn snapshot(&self) -> Result<Snapshot> {
        Err(LedgerError::Failed("its store is backed up by the store's own tools".into()))
    }

    /// What it has written since it was opened, for metrics.
    fn figures(&self) -> Figures;

    /// Finishes what is under way and closes.
    async fn close(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn invariant_9_a_store_that_can_change_one_row_at_a_time_keeps_all_that_a_ledger_promises() {
        conformance::suite(Arc::new(plain::PlainLedger::default())).await;
    }
}
