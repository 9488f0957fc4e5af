//! The ledger in one SQLite file.
//!
//! - [`open`]: finding the file sound, or refusing it.
//! - [`writer`]: the one writer, which lets many operations share one fsync; [`batch`]: its transaction.
//! - [`change`]: compare-and-set; [`add`], [`delete`]: tasks that come and jobs that go.
//! - [`jobs`], [`tasks`], [`results`], [`records`]: everything else, by what it is about.
//! - [`audit`], [`snapshot`], [`restore`]: is it whole, a copy of it, and a copy in its place.
//! - [`codec`]: rows to types and back; [`error`]: what SQLite says.

mod add;
mod audit;
mod batch;
mod change;
mod codec;
mod delete;
mod error;
mod jobs;
mod open;
mod records;
mod restore;
mod results;
mod snapshot;
mod tasks;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::HashSet,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use codering_core::{
    Error, JobId, Outcome, ProjectName, QueueName, TaskId, TaskKey, TaskResult, job::TaskCounts, time::Millis,
};
use sqlx::{ConnectOptions, Connection, SqlitePool};
use tokio::{sync::Mutex, task::JoinHandle};

use self::{
    add::{Added, BEGUN, COMMITTED},
    error::failed,
    writer::Writer,
};
use super::*;

/// A ledger file, open. One process at a time.
pub(super) struct SqliteLedger {
    path: PathBuf,
    /// One at a time: each takes as much room as the ledger.
    snapshots: Mutex<()>,
    writer: Writer,
    readers: SqlitePool,
    open: Mutex<Option<(JoinHandle<()>, File)>>,
}

impl SqliteLedger {
    /// Opens the file, or makes it where there is none.
    pub(super) async fn open(path: &Path) -> std::result::Result<Arc<Self>, Error> {
        let opened = open::open(path).await?;
        let (writer, ended) = Writer::start(path.to_owned(), opened.options, opened.writer);
        let open = Mutex::new(Some((ended, opened.lock)));
        let (path, snapshots) = (path.to_owned(), Mutex::default());
        Ok(Arc::new(Self { path, snapshots, writer, readers: opened.readers, open }))
    }
}

/// Reads a file that nothing writes; one that cannot be opened at all has that as its problem.
pub(super) async fn inspect(path: &Path) -> std::result::Result<Report, Error> {
    open::inspect(path).await
}

/// See [`restore`].
pub(super) async fn restore(path: &Path, backup: &Path) -> std::result::Result<Restored, Error> {
    restore::restore(path, backup).await
}

fn no_job(id: &JobId) -> LedgerError {
    LedgerError::Failed(format!("it has no job {id} that this could be added to"))
}

/// Which of the tasks was there already.
fn twice(added: Added, job: &JobId) -> Result<Option<TaskId>> {
    match added {
        Added::All => Ok(None),
        Added::There(id) => Ok(Some(id)),
        Added::NoJob => Err(no_job(job)),
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn task(&self, key: &TaskKey) -> Result<Option<Task>> {
        tasks::get(&self.readers, key).await.map_err(failed)
    }

    async fn tasks_of(&self, keys: &[TaskKey]) -> Result<Vec<Task>> {
        tasks::of_keys(&self.readers, keys).await.map_err(failed)
    }

    async fn swap_task(&self, change: TaskChange) -> Result<Swapped> {
        self.writer.swap(change).await
    }

    async fn insert_task(&self, task: Task) -> Result<bool> {
        let job = task.key.job.clone();
        let weight = add::weight(std::slice::from_ref(&task));
        let added = self
            .writer
            .write_heavy(task, weight, |task, batch| {
                Box::pin(add::add(batch, &task.key.job, COMMITTED, std::slice::from_ref(task)))
            })
            .await?;
        Ok(twice(added, &job)?.is_none())
    }

    async fn begin_job(&self, job: Job, idempotency_key: Option<String>) -> Result<Begun> {
        self.writer
            .write((job, idempotency_key), |(job, key), batch| {
                Box::pin(jobs::begin(batch, job, key.as_deref()))
            })
            .await
    }

    async fn add_tasks(&self, job: &JobId, tasks: Vec<Task>) -> Result<Option<TaskId>> {
        let weight = add::weight(&tasks);
        let added = self
            .writer
            .write_heavy((job.clone(), tasks), weight, |(job, tasks), batch| {
                Box::pin(add::add(batch, job, BEGUN, tasks))
            })
            .await?;
        twice(added, job)
    }

    async fn commit_job(&self, job: &JobId) -> Result<()> {
        let committed =
            self.writer.write(job.clone(), |job, batch| Box::pin(jobs::commit(batch, job))).await?;
        if committed { Ok(()) } else { Err(no_job(job)) }
    }

    async fn finish_job(&self, job: Job, tasks: Vec<Task>) -> Result<Option<TaskId>> {
        let (id, weight) = (job.id.clone(), 1 + add::weight(&tasks));
        let added = self
            .writer
            .write_heavy((job, tasks), weight, |(job, tasks), batch| {
                Box::pin(async move {
                    let added = add::add(batch, &job.id, BEGUN, tasks).await?;
                    if matches!(added, Added::All) {
                        jobs::update(batch, job).await?;
                        jobs::commit(batch, &job.id).await?;
                    }
                    Ok(added)
                })
            })
            .await?;
        twice(added, &id)
    }

    async fn delete_some(&self, job: &JobId) -> Result<Deleted> {
        self.writer.write(job.clone(), |job, batch| Box::pin(delete::step(batch, job))).await
    }

    async fn delete_uncommitted(&self) -> Result<u64> {
        let jobs = jobs::invisible(&self.readers).await.map_err(failed)?;
        for job in &jobs {
            self.delete_job(job).await?;
        }
        Ok(jobs.len() as u64)
    }

    async fn update_job(&self, job: Job) -> Result<()> {
        self.writer.write(job, |job, batch| Box::pin(jobs::update(batch, job))).await
    }

    async fn job(&self, id: &JobId) -> Result<Option<Job>> {
        jobs::get(&self.readers, id).await.map_err(failed)
    }

    async fn jobs_by_prefix(
        &self,
        prefix: &str,
        projects: Option<&[ProjectName]>,
        limit: u32,
    ) -> Result<Vec<Job>> {
        jobs::by_prefix(&self.readers, prefix, projects, limit).await.map_err(failed)
    }

    async fn jobs(&self, filter: JobFilter, after: Option<JobId>, limit: u32) -> Result<Vec<Job>> {
        jobs::list(&self.readers, &filter, after.as_ref(), limit).await.map_err(failed)
    }

    async fn unfinished_jobs(&self) -> Result<Vec<JobId>> {
        jobs::unfinished(&self.readers).await.map_err(failed)
    }

    async fn expired_jobs(&self, before: Millis, keep: u64, limit: u32) -> Result<Vec<JobId>> {
        jobs::expired(&self.readers, before, keep, limit).await.map_err(failed)
    }

    async fn counts(&self, job: &JobId) -> Result<TaskCounts> {
        jobs::counts(&self.readers, job).await.map_err(failed)
    }

    async fn newest_reduce(&self, job: &JobId) -> Result<Option<Task>> {
        tasks::newest_reduce(&self.readers, job).await.map_err(failed)
    }

    async fn tasks(
        &self,
        job: &JobId,
        filter: TaskFilter,
        after_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Task>> {
        tasks::page(&self.readers, job, &filter, after_seq, limit).await.map_err(failed)
    }

    async fn unpublished(
        &self,
        project: &ProjectName,
        now: Millis,
        limit: u32,
        over: &HashSet<JobId>,
    ) -> Result<Vec<Task>> {
        tasks::unpublished(&self.readers, project, now, limit, over).await.map_err(failed)
    }

    async fn projects_with_unpublished(&self) -> Result<Vec<(ProjectName, Millis)>> {
        tasks::projects_with_unpublished(&self.readers).await.map_err(failed)
    }

    async fn published(
        &self,
        project: &ProjectName,
        after: Option<TaskKey>,
        limit: u32,
    ) -> Result<Vec<Task>> {
        tasks::published(&self.readers, project, after.as_ref(), limit).await.map_err(failed)
    }

    async fn longest_published(&self, project: &ProjectName, limit: u32) -> Result<Vec<Task>> {
        tasks::longest_published(&self.readers, project, limit).await.map_err(failed)
    }

    async fn published_count(&self, project: &ProjectName) -> Result<u64> {
        Ok(tasks::live(&self.readers, project).await.map_err(failed)?.1)
    }

    async fn leased(&self) -> Result<Vec<Task>> {
        tasks::leased(&self.readers).await.map_err(failed)
    }

    async fn result(&self, key: &TaskKey) -> Result<Option<TaskResult>> {
        results::get(&self.readers, key).await.map_err(failed)
    }

    async fn result_bytes(&self, key: &TaskKey) -> Result<u64> {
        results::bytes(&self.readers, key).await.map_err(failed)
    }

    async fn results(
        &self,
        job: &JobId,
        outcomes: &[Outcome],
        after_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<(u64, TaskResult)>> {
        results::page(&self.readers, job, outcomes, after_seq, limit).await.map_err(failed)
    }

    async fn unpublished_results(&self, limit: u32) -> Result<Vec<TaskResult>> {
        results::unpublished(&self.readers, limit).await.map_err(failed)
    }

    async fn mark_results_published(&self, results: Vec<(TaskKey, u32)>) -> Result<()> {
        let weight = results.len();
        self.writer
            .write_heavy(results, weight, |results, batch| Box::pin(results::mark_published(batch, results)))
            .await
    }

    async fn unpublish_results(&self, tasks: Vec<TaskKey>) -> Result<()> {
        let weight = tasks.len();
        self.writer
            .write_heavy(tasks, weight, |tasks, batch| Box::pin(results::unpublish(batch, tasks)))
            .await
    }

    async fn attempts(&self, key: &TaskKey) -> Result<Vec<Attempt>> {
        results::attempts(&self.readers, key).await.map_err(failed)
    }

    async fn put_build(&self, job: &JobId, build: Build) -> Result<()> {
        let data = (job.clone(), build);
        self.writer.write(data, |(job, build), batch| Box::pin(jobs::put_build(batch, job, build))).await
    }

    async fn builds(&self, job: &JobId) -> Result<Vec<Build>> {
        jobs::builds(&self.readers, job).await.map_err(failed)
    }

    async fn put_project(&self, project: Project) -> Result<()> {
        self.writer.write(project, |project, batch| Box::pin(records::put_project(batch, project))).await
    }

    async fn projects(&self) -> Result<Vec<Project>> {
        records::projects(&self.readers).await.map_err(failed)
    }

    async fn delete_project(&self, name: &ProjectName) -> Result<()> {
        self.writer.write(name.clone(), |name, batch| Box::pin(records::delete_project(batch, name))).await
    }

    async fn usage(&self, name: &ProjectName) -> Result<Usage> {
        tasks::usage(&self.readers, name).await.map_err(failed)
    }

    async fn put_queue(&self, name: &QueueName) -> Result<bool> {
        self.writer.write(name.clone(), |name, batch| Box::pin(records::put_queue(batch, name))).await
    }

    async fn queues(&self) -> Result<Vec<QueueName>> {
        records::queues(&self.readers).await.map_err(failed)
    }

    async fn delete_queue(&self, name: &QueueName) -> Result<()> {
        self.writer.write(name.clone(), |name, batch| Box::pin(records::delete_queue(batch, name))).await
    }

    async fn put_token(&self, token: Token) -> Result<()> {
        self.writer.write(token, |token, batch| Box::pin(records::put_token(batch, token))).await
    }

    async fn tokens(&self) -> Result<Vec<Token>> {
        records::tokens(&self.readers).await.map_err(failed)
    }

    async fn token(&self, id: &str) -> Result<Option<Token>> {
        records::token(&self.readers, id).await.map_err(failed)
    }

    async fn delete_tokens(&self, ids: Vec<String>) -> Result<()> {
        self.writer.write(ids, |ids, batch| Box::pin(records::delete_tokens(batch, ids))).await
    }

    async fn spend_token(&self, id: &str, now: Millis) -> Result<bool> {
        let data = (id.to_owned(), now);
        self.writer.write(data, |(id, now), batch| Box::pin(records::spend_token(batch, id, *now))).await
    }

    async fn put_worker(&self, worker: Worker) -> Result<()> {
        self.writer.write(worker, |worker, batch| Box::pin(records::put_worker(batch, worker))).await
    }

    async fn workers(&self) -> Result<Vec<Worker>> {
        records::workers(&self.readers).await.map_err(failed)
    }

    async fn check(&self) -> Result<()> {
        self.writer.write((), |(), batch| Box::pin(records::beat(batch))).await
    }

    async fn audit(&self) -> Result<Report> {
        // Not one of the readers: it takes long, and they are waited for.
        let mut connection = open::reading(&self.path).connect().await.map_err(failed)?;
        let report = audit::audit(&mut connection).await.map_err(failed);
        connection.close().await.map_err(failed)?;
        let bytes = std::fs::metadata(&self.path).map_or(0, |about| about.len());
        Ok(Report { bytes, ..report? })
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        let Ok(_one) = self.snapshots.try_lock() else {
            return Err(LedgerError::Failed(
                "a backup of it is being made; try again when it is done".into(),
            ));
        };
        snapshot::take(&self.path).await
    }

    fn figures(&self) -> Figures {
        self.writer.figures()
    }

    async fn close(&self) {
        // The readers first: the last connection to close copies the log into the file and removes it.
        self.readers.close().await;
        let opened = self.open.lock().await.take();
        if let Some((_, lock)) = &opened {
            // Before the log goes with the last connection: a log that is gone is no loss from now on.
            open::mark_closed(lock);
        }
        self.writer.close().await;
        if let Some((ended, lock)) = opened {
            if let Err(error) = ended.await {
                tracing::error!(%error, "the ledger's writer failed");
            }
            drop(lock);
        }
    }
}
