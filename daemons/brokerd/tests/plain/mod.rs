//! A ledger that can do no more than the design asks of a store: read one row, put one row, compare-and-set one row. It has no
//! transaction over two rows, no index and no counter: every batch is written row by row and every answer is derived from a
//! scan, and between two rows others run. What holds here can stand on any store.
//!
//! It forgets all when it is dropped, so it is for tests alone.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use codering_brokerd::ledger::*;
use codering_core::{
    JobId, Outcome, ProjectName, QueueName, TaskId, TaskKey, TaskResult,
    job::TaskCounts,
    task::{LONGEST_PAUSE_MS, State},
    time::Millis,
};
use tokio::task::yield_now;

/// A table whose rows are read, put and changed one at a time.
struct Rows<K, V>(Mutex<BTreeMap<K, V>>);

impl<K, V> Default for Rows<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone, V: Clone> Rows<K, V> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &K) -> Option<V> {
        self.lock().get(key).cloned()
    }

    fn put(&self, key: K, value: V) -> Option<V> {
        self.lock().insert(key, value)
    }

    fn remove(&self, key: &K) {
        self.lock().remove(key);
    }

    /// `false`: there is one already.
    fn put_new(&self, key: K, value: V) -> bool {
        use std::collections::btree_map::Entry;
        match self.lock().entry(key) {
            Entry::Vacant(free) => {
                free.insert(value);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// The one atomic step: looks at a row and changes it.
    fn change<T>(&self, key: &K, change: impl FnOnce(&mut V) -> T) -> Option<T> {
        self.lock().get_mut(key).map(change)
    }

    /// Each row on its own; others change rows between two of them.
    async fn scan(&self, wanted: impl Fn(&K, &V) -> bool) -> Vec<V> {
        let keys: Vec<K> = self.lock().keys().cloned().collect();
        let mut found = Vec::new();
        for (n, key) in keys.into_iter().enumerate() {
            if n % 16 == 15 {
                yield_now().await;
            }
            found.extend(self.get(&key).filter(|value| wanted(&key, value)));
        }
        found
    }
}

#[derive(Clone)]
struct JobRow {
    job: Job,
    committed: bool,
    key: Option<String>,
}

/// A task with all that is written together with it.
#[derive(Clone)]
struct TaskRow {
    task: Task,
    result: Option<TaskResult>,
    /// The place of its unpublished result among all.
    unpublished: Option<u64>,
    attempts: Vec<Attempt>,
}

impl TaskRow {
    fn new(task: Task) -> Self {
        Self { task, result: None, unpublished: None, attempts: Vec::new() }
    }

    fn state(&self) -> &State {
        &self.task.progress.state
    }

    fn is_published(&self) -> bool {
        matches!(self.state(), State::Ready { published: true, .. })
    }

    /// When it is due, and since when it waits.
    fn due(&self) -> Option<(Millis, Millis)> {
        match self.state() {
            State::Ready { published: false, not_before } => Some((*not_before, self.task.progress.ready_at)),
            _ => None,
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct PlainLedger {
    jobs: Rows<JobId, JobRow>,
    keys: Rows<String, JobId>,
    tasks: Rows<TaskKey, TaskRow>,
    builds: Rows<(JobId, String, String), Build>,
    projects: Rows<ProjectName, Project>,
    queues: Rows<QueueName, QueueName>,
    tokens: Rows<String, Token>,
    workers: Rows<codering_core::WorkerName, Worker>,
    recorded: AtomicU64,
    written: AtomicU64,
}

impl PlainLedger {
    fn wrote(&self) {
        self.written.fetch_add(1, Ordering::Relaxed);
    }

    fn visible(&self, job: &JobId) -> Option<Job> {
        self.jobs.get(job).filter(|row| row.committed).map(|row| row.job)
    }

    async fn all_jobs(&self, wanted: impl Fn(&Job) -> bool) -> Vec<Job> {
        let rows = self.jobs.scan(|_, row| row.committed && wanted(&row.job)).await;
        rows.into_iter().map(|row| row.job).collect()
    }

    /// Tasks of visible jobs.
    async fn all_tasks(&self, wanted: impl Fn(&TaskRow) -> bool) -> Vec<TaskRow> {
        self.tasks.scan(|key, row| wanted(row) && self.visible(&key.job).is_some()).await
    }

    async fn of_job(&self, job: &JobId) -> Vec<TaskRow> {
        let mut rows = self.all_tasks(|row| row.task.key.job == *job && !row.task.reduce).await;
        rows.sort_by_key(|row| row.task.seq);
        rows
    }

    async fn unpublished_rows(&self, wanted: impl Fn(&TaskRow) -> bool) -> Vec<TaskRow> {
        let due = |row: &TaskRow| row.due().is_some() && wanted(row);
        let mut rows = self.all_tasks(due).await;
        rows.retain(|row| self.visible(&row.task.key.job).is_some_and(|job| !job.paused));
        rows.sort_by_key(|row| (row.due(), row.task.key.job.clone(), row.task.seq));
        rows
    }

    async fn delete(&self, id: &JobId) -> u64 {
        let Some(row) = self.jobs.get(id) else { return 0 };
        self.jobs.change(id, |row| row.committed = false);
        let mut bytes = 0;
        for row in self.tasks.scan(|key, _| key.job == *id).await {
            bytes += row.result.as_ref().map_or(0, TaskResult::bytes);
            self.tasks.remove(&row.task.key);
        }
        let builds: Vec<_> = self.builds.lock().keys().filter(|(job, ..)| job == id).cloned().collect();
        builds.iter().for_each(|key| self.builds.remove(key));
        if let Some(key) = row.key.filter(|key| self.keys.get(key).as_ref() == Some(id)) {
            self.keys.remove(&key);
        }
        self.jobs.remove(id);
        self.wrote();
        bytes
    }

    /// What goes into the task's own row with a change of it.
    fn record(&self, row: &mut TaskRow, record: Record) {
        match record {
            Record::Nothing => {}
            Record::Attempt(attempt) => row.attempts.push(attempt),
            Record::Result(result, attempt) => {
                assert!(row.result.is_none(), "a second result for {}", row.task.key);
                row.result = Some(*result);
                row.unpublished = Some(self.recorded.fetch_add(1, Ordering::Relaxed));
                row.attempts.extend(attempt);
            }
            Record::Forget => (row.result, row.unpublished) = (None, None),
        }
    }
}

fn failed<T>(why: &str) -> Result<T> {
    Err(LedgerError::Failed(why.into()))
}

/// The first so many, or fewer where they weigh too much; at least one.
fn page<T>(rows: Vec<T>, limit: u32, weight: impl Fn(&T) -> u64) -> Vec<T> {
    let mut bytes = 0;
    let fits = rows.into_iter().take(limit as usize).enumerate().take_while(|(n, row)| {
        bytes += weight(row);
        *n == 0 || bytes <= PAGE_BYTES as u64
    });
    fits.map(|(_, row)| row).collect()
}

fn tasks_page(rows: Vec<TaskRow>, limit: u32) -> Vec<Task> {
    let rows = page(rows, limit, |row| row.task.spec.stdin.len() as u64);
    rows.into_iter().map(|row| row.task).collect()
}

#[async_trait]
impl Ledger for PlainLedger {
    async fn task(&self, key: &TaskKey) -> Result<Option<Task>> {
        yield_now().await;
        Ok(self.tasks.get(key).filter(|_| self.visible(&key.job).is_some()).map(|row| row.task))
    }

    async fn tasks_of(&self, keys: &[TaskKey]) -> Result<Vec<Task>> {
        let mut tasks = Vec::new();
        for key in keys {
            tasks.extend(self.task(key).await?);
        }
        Ok(tasks)
    }

    async fn swap_task(&self, change: TaskChange) -> Result<Swapped> {
        yield_now().await;
        if self.visible(&change.key.job).is_none() {
            return Ok(Swapped::No);
        }
        let swapped = self.tasks.change(&change.key, |row| {
            if row.task.progress.version != change.expected_version {
                return false;
            }
            row.task.progress = change.progress;
            row.task.commit = change.commit.unwrap_or(std::mem::take(&mut row.task.commit));
            self.record(row, change.record);
            true
        });
        self.wrote();
        yield_now().await;
        Ok(if swapped == Some(true) { Swapped::Yes } else { Swapped::No })
    }

    async fn insert_task(&self, task: Task) -> Result<bool> {
        if self.visible(&task.key.job).is_none() {
            return failed("there is no such job");
        }
        self.wrote();
        Ok(self.tasks.put_new(task.key.clone(), TaskRow::new(task)))
    }

    async fn begin_job(&self, job: Job, key: Option<String>) -> Result<Begun> {
        let key = key.map(|key| format!("{}/{key}", job.spec.project));
        if let Some(key) = &key
            && !self.keys.put_new(key.clone(), job.id.clone())
        {
            let holder = self.keys.get(key).and_then(|holder| self.visible(&holder));
            return Ok(holder.map_or(Begun::Busy, |holder| Begun::Existing(holder.id)));
        }
        self.wrote();
        let row = JobRow { job: job.clone(), committed: false, key };
        Ok(if self.jobs.put_new(job.id, row) { Begun::New } else { Begun::Busy })
    }

    async fn add_tasks(&self, job: &JobId, tasks: Vec<Task>) -> Result<Option<TaskId>> {
        if self.jobs.get(job).is_none_or(|row| row.committed) {
            return failed("the job is not being recorded");
        }
        let mut seen = std::collections::BTreeSet::new();
        let twice = tasks.iter().find(|t| !seen.insert(&t.key) || self.tasks.get(&t.key).is_some());
        if let Some(twice) = twice {
            return Ok(Some(twice.key.task.clone()));
        }
        for task in tasks {
            self.tasks.put(task.key.clone(), TaskRow::new(task));
            self.wrote();
            yield_now().await;
        }
        Ok(None)
    }

    async fn commit_job(&self, job: &JobId) -> Result<()> {
        self.wrote();
        match self.jobs.change(job, |row| row.committed = true) {
            Some(()) => Ok(()),
            None => failed("there is no such job"),
        }
    }

    async fn delete_some(&self, job: &JobId) -> Result<Deleted> {
        Ok(Deleted { more: false, result_bytes: self.delete(job).await })
    }

    async fn delete_uncommitted(&self) -> Result<u64> {
        let left = self.jobs.scan(|_, row| !row.committed).await;
        for row in &left {
            self.delete(&row.job.id).await;
        }
        Ok(left.len() as u64)
    }

    async fn update_job(&self, job: Job) -> Result<()> {
        self.wrote();
        self.jobs.change(&job.id.clone(), |row| row.job = job);
        Ok(())
    }

    async fn job(&self, id: &JobId) -> Result<Option<Job>> {
        Ok(self.visible(id))
    }

    async fn jobs_by_prefix(
        &self,
        prefix: &str,
        projects: Option<&[ProjectName]>,
        limit: u32,
    ) -> Result<Vec<Job>> {
        let wanted = |job: &Job| {
            job.id.as_str().starts_with(prefix) && projects.is_none_or(|of| of.contains(&job.spec.project))
        };
        let mut found = self.all_jobs(wanted).await;
        found.truncate(limit as usize);
        Ok(found)
    }

    async fn jobs(&self, filter: JobFilter, after: Option<JobId>, limit: u32) -> Result<Vec<Job>> {
        let wanted = |job: &Job| {
            filter.projects.as_ref().is_none_or(|of| of.contains(&job.spec.project))
                && filter.state.is_none_or(|state| job.state == state)
                && after.as_ref().is_none_or(|after| job.id < *after)
        };
        let mut found = self.all_jobs(wanted).await;
        found.sort_by(|a, b| b.id.cmp(&a.id));
        found.truncate(limit as usize);
        Ok(found)
    }

    async fn unfinished_jobs(&self) -> Result<Vec<JobId>> {
        let mut found = self.all_jobs(|job| job.finished_at == 0).await;
        found.sort_by_key(|job| job.created_at);
        Ok(found.into_iter().map(|job| job.id).collect())
    }

    async fn expired_jobs(&self, before: Millis, keep: u64, limit: u32) -> Result<Vec<JobId>> {
        let mut finished = self.all_jobs(|job| job.finished_at != 0).await;
        finished.sort_by_key(|job| job.finished_at);
        let beyond = (finished.len() as u64).saturating_sub(keep);
        let waiting = self.all_tasks(|row| row.unpublished.is_some()).await;
        finished.retain(|job| waiting.iter().all(|row| row.task.key.job != job.id));
        let expired = (0..).zip(finished).filter(|(n, job)| *n < beyond || job.finished_at < before);
        Ok(expired.map(|(_, job)| job.id).take(limit as usize).collect())
    }

    async fn counts(&self, job: &JobId) -> Result<TaskCounts> {
        let mut counts = TaskCounts::default();
        for row in self.of_job(job).await {
            counts.total += 1;
            let of_state = match row.state() {
                State::Ready { .. } => &mut counts.queued,
                State::Leased(_) => &mut counts.running,
                State::Done(Outcome::Succeeded) => &mut counts.succeeded,
                State::Done(Outcome::Cancelled) => &mut counts.cancelled,
                State::Done(_) => &mut counts.failed,
            };
            *of_state += 1;
            counts.retried += u64::from(row.task.progress.attempt > 1);
        }
        Ok(counts)
    }

    async fn newest_reduce(&self, job: &JobId) -> Result<Option<Task>> {
        let rows = self.all_tasks(|row| row.task.key.job == *job && row.task.reduce).await;
        // Their numbers count down from the end.
        Ok(rows.into_iter().map(|row| row.task).min_by_key(|task| task.seq))
    }

    async fn tasks(
        &self,
        job: &JobId,
        filter: TaskFilter,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Task>> {
        let mut rows = self.of_job(job).await;
        rows.retain(|row| {
            let (stands, outcome) = match row.state() {
                State::Ready { .. } => (Stands::Queued, None),
                State::Leased(_) => (Stands::Running, None),
                State::Done(outcome) => (Stands::Done, Some(outcome)),
            };
            after.is_none_or(|after| row.task.seq > after)
                && filter.stands.is_none_or(|wanted| wanted == stands)
                && (filter.outcomes.is_empty() || outcome.is_some_and(|o| filter.outcomes.contains(o)))
        });
        Ok(tasks_page(rows, limit))
    }

    async fn unpublished(
        &self,
        project: &ProjectName,
        now: Millis,
        limit: u32,
        over: &HashSet<JobId>,
    ) -> Result<Vec<Task>> {
        let due = |row: &TaskRow| {
            row.task.project == *project
                && !over.contains(&row.task.key.job)
                && row.due().is_some_and(|(at, _)| at <= now || at > now + LONGEST_PAUSE_MS)
        };
        Ok(tasks_page(self.unpublished_rows(due).await, limit))
    }

    async fn projects_with_unpublished(&self) -> Result<Vec<(ProjectName, Millis)>> {
        let mut earliest = BTreeMap::new();
        for row in self.unpublished_rows(|_| true).await {
            let at = row.due().map_or(0, |(at, _)| at);
            earliest.entry(row.task.project).or_insert(at);
        }
        Ok(earliest.into_iter().collect())
    }

    async fn published(
        &self,
        project: &ProjectName,
        after: Option<TaskKey>,
        limit: u32,
    ) -> Result<Vec<Task>> {
        let wanted = |row: &TaskRow| {
            row.task.project == *project
                && row.is_published()
                && after.as_ref().is_none_or(|after| row.task.key > *after)
        };
        Ok(tasks_page(self.all_tasks(wanted).await, limit))
    }

    async fn longest_published(&self, project: &ProjectName, limit: u32) -> Result<Vec<Task>> {
        let mut rows = self.all_tasks(|row| row.task.project == *project && row.is_published()).await;
        rows.sort_by_key(|row| (row.task.key.job.clone(), row.task.seq));
        Ok(tasks_page(rows, limit))
    }

    async fn published_count(&self, project: &ProjectName) -> Result<u64> {
        let rows = self.all_tasks(|row| row.task.project == *project && row.is_published()).await;
        Ok(rows.len() as u64)
    }

    async fn leased(&self) -> Result<Vec<Task>> {
        let rows = self.all_tasks(|row| matches!(row.state(), State::Leased(_))).await;
        Ok(rows.into_iter().map(|row| row.task).collect())
    }

    async fn result(&self, key: &TaskKey) -> Result<Option<TaskResult>> {
        Ok(self.tasks.get(key).filter(|_| self.visible(&key.job).is_some()).and_then(|row| row.result))
    }

    async fn result_bytes(&self, key: &TaskKey) -> Result<u64> {
        Ok(self.result(key).await?.as_ref().map_or(0, TaskResult::bytes))
    }

    async fn results(
        &self,
        job: &JobId,
        outcomes: &[Outcome],
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<(u64, TaskResult)>> {
        let rows = self.of_job(job).await.into_iter();
        let results = rows.filter_map(|row| Some((row.task.seq, row.result?))).filter(|(seq, result)| {
            after.is_none_or(|after| *seq > after)
                && (outcomes.is_empty() || outcomes.contains(&result.outcome))
        });
        Ok(page(results.collect(), limit, |(_, result)| result.bytes()))
    }

    async fn unpublished_results(&self, limit: u32) -> Result<Vec<TaskResult>> {
        let mut rows = self.all_tasks(|row| row.unpublished.is_some()).await;
        rows.sort_by_key(|row| row.unpublished);
        Ok(page(rows.into_iter().filter_map(|row| row.result).collect(), limit, TaskResult::bytes))
    }

    async fn mark_results_published(&self, results: Vec<(TaskKey, u32)>) -> Result<()> {
        for (key, attempt) in results {
            self.tasks.change(&key, |row| {
                if row.result.as_ref().is_some_and(|result| result.attempt == attempt) {
                    row.unpublished = None;
                }
            });
            self.wrote();
            yield_now().await;
        }
        Ok(())
    }

    async fn unpublish_results(&self, tasks: Vec<TaskKey>) -> Result<()> {
        for key in tasks {
            self.tasks.change(&key, |row| {
                if row.result.is_some() && row.unpublished.is_none() {
                    row.unpublished = Some(self.recorded.fetch_add(1, Ordering::Relaxed));
                }
            });
            self.wrote();
            yield_now().await;
        }
        Ok(())
    }

    async fn attempts(&self, key: &TaskKey) -> Result<Vec<Attempt>> {
        let row = self.tasks.get(key).filter(|_| self.visible(&key.job).is_some());
        let mut attempts = row.map(|row| row.attempts).unwrap_or_default();
        attempts.sort_by_key(|attempt| attempt.attempt);
        Ok(attempts)
    }

    async fn put_build(&self, job: &JobId, build: Build) -> Result<()> {
        if self.visible(job).is_some() {
            self.builds.put((job.clone(), build.worker.clone(), build.image.clone()), build);
        }
        self.wrote();
        Ok(())
    }

    async fn builds(&self, job: &JobId) -> Result<Vec<Build>> {
        let mut builds = self.builds.scan(|(of, ..), _| of == job).await;
        builds.sort_by_key(|build| build.started_at);
        Ok(builds)
    }

    async fn put_project(&self, project: Project) -> Result<()> {
        self.wrote();
        self.projects.put(project.name.clone(), project);
        Ok(())
    }

    async fn projects(&self) -> Result<Vec<Project>> {
        Ok(self.projects.scan(|_, _| true).await)
    }

    async fn delete_project(&self, name: &ProjectName) -> Result<()> {
        self.projects.remove(name);
        for queue in self.queues.scan(|queue, _| queue.project() == *name).await {
            self.queues.remove(&queue);
        }
        self.wrote();
        Ok(())
    }

    async fn usage(&self, name: &ProjectName) -> Result<Usage> {
        let mut usage = Usage::default();
        for row in self.all_tasks(|row| row.task.project == *name).await {
            match row.state() {
                State::Ready { .. } => usage.queued_tasks += 1,
                State::Leased(_) => usage.running_tasks += 1,
                State::Done(_) => {}
            }
            usage.result_bytes += row.result.as_ref().map_or(0, TaskResult::bytes);
        }
        let unfinished = self.all_jobs(|job| job.spec.project == *name && job.finished_at == 0).await;
        usage.unfinished_jobs = unfinished.len() as u64;
        Ok(usage)
    }

    async fn put_queue(&self, name: &QueueName) -> Result<bool> {
        self.wrote();
        Ok(self.queues.put_new(name.clone(), name.clone()))
    }

    async fn queues(&self) -> Result<Vec<QueueName>> {
        Ok(self.queues.scan(|_, _| true).await)
    }

    async fn delete_queue(&self, name: &QueueName) -> Result<()> {
        self.wrote();
        self.queues.remove(name);
        Ok(())
    }

    async fn put_token(&self, token: Token) -> Result<()> {
        self.wrote();
        self.tokens.put(token.id.clone(), token);
        Ok(())
    }

    async fn tokens(&self) -> Result<Vec<Token>> {
        let mut tokens = self.tokens.scan(|_, _| true).await;
        tokens.sort_by_key(|token| std::cmp::Reverse(token.created_at));
        Ok(tokens)
    }

    async fn token(&self, id: &str) -> Result<Option<Token>> {
        Ok(self.tokens.get(&id.to_owned()))
    }

    async fn delete_tokens(&self, ids: Vec<String>) -> Result<()> {
        self.wrote();
        ids.iter().for_each(|id| self.tokens.remove(id));
        Ok(())
    }

    async fn spend_token(&self, id: &str, now: Millis) -> Result<bool> {
        yield_now().await;
        self.wrote();
        let spent = self.tokens.change(&id.to_owned(), |token| {
            let live = token.revoked_at == 0;
            if live {
                token.revoked_at = now;
            }
            live
        });
        Ok(spent == Some(true))
    }

    async fn put_worker(&self, worker: Worker) -> Result<()> {
        self.wrote();
        self.workers.put(worker.name.clone(), worker);
        Ok(())
    }

    async fn workers(&self) -> Result<Vec<Worker>> {
        Ok(self.workers.scan(|_, _| true).await)
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }

    fn figures(&self) -> Figures {
        let written = self.written.load(Ordering::Relaxed);
        Figures { operations: written, commits: written }
    }

    async fn close(&self) {}
}
