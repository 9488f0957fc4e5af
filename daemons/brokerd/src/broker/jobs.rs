//! Verbs on jobs, and what follows when a job's last task is done.

use std::{sync::Arc, time::Duration};

use codering_core::{
    Code, Error, JobId, Outcome, ProjectName, TaskId, TaskKey, TaskResult,
    job::{JobState, reduce_is_due},
    task::Event,
};
use codering_kit::fault::{self, Point};
use futures::{Stream, StreamExt, stream};

use super::{
    Broker, JobEvent,
    change::{Changed, Ended},
    live::{self, Awake, LiveJob},
    now,
};
use crate::ledger::{Build, Job, JobFilter, Stands, TaskFilter};

/// Tasks changed at the same time by one verb: a group commit's worth.
const AT_ONCE: usize = 256;
/// Watchers hear at most this often.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// A verb that has to wait for what is under way.
pub(super) fn still(id: &JobId, what: &str) -> Error {
    Error::new(Code::JobUnfinished, format!("job {id} {what}"))
        .hint(format!("coderingctl watch {id}, then try again"))
}

impl Broker {
    /// The row with its counters as they are now. A job that ended since its row was read is in memory no more: then
    /// the row is read again.
    async fn current(&self, job: Job) -> Result<Job, Error> {
        match self.jobs.get(&job.id) {
            Some(live) => Ok(self.told(&live)),
            None if job.finished_at == 0 => Ok(self.ledger.job(&job.id).await?.unwrap_or(job)),
            None => Ok(job),
        }
    }

    /// The row of a job that there must be.
    pub(super) async fn known_job(&self, id: &JobId) -> Result<Job, Error> {
        match self.ledger.job(id).await? {
            Some(job) => self.current(job).await,
            None => Err(Error::new(Code::JobNotFound, format!("there is no job {id}"))),
        }
    }

    /// The job that an id or an unambiguous prefix stands for, among the projects that a token may see.
    pub async fn find_job(&self, prefix: &str, only: Option<&[ProjectName]>) -> Result<Job, Error> {
        let not_found = || {
            Error::new(Code::JobNotFound, format!("there is no job {}", codering_core::ids::shown(prefix)))
                .hint("coderingctl job list")
        };
        if prefix.len() > 12
            || !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            || prefix.is_empty()
        {
            return Err(not_found());
        }
        let prefix = if prefix.starts_with("j-") { prefix.to_owned() } else { format!("j-{prefix}") };
        let mut found = self.ledger.jobs_by_prefix(&prefix, only, 20).await?;
        match found.len() {
            0 => Err(not_found()),
            1 => self.current(found.swap_remove(0)).await,
            n => {
                let ids: Vec<_> = found.iter().take(3).map(|job| job.id.to_string()).collect();
                Err(Error::new(
                    Code::JobAmbiguous,
                    format!("{prefix} stands for {n} jobs: {} …", ids.join(", ")),
                )
                .hint("type more of the id"))
            }
        }
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, filter: JobFilter, after: Option<JobId>, limit: u32) -> Result<Vec<Job>, Error> {
        let jobs = self.ledger.jobs(filter, after, limit).await?;
        let mut current = Vec::with_capacity(jobs.len());
        for job in jobs {
            current.push(self.current(job).await?);
        }
        Ok(current)
    }

    /// A job's changes, at most ten a second, until it is over. Holds one row, however large the job.
    pub fn watch(&self, id: JobId) -> impl Stream<Item = Result<JobEvent, Error>> + Send + use<> {
        let live = self.jobs.get(&id);
        let changed = live.as_ref().map(|live| live.watch());
        // Whether the event before this one was the last; `None` before the first.
        let was_last = None;
        let state = (self.clone(), id, live, changed, 0u64, was_last);
        stream::unfold(state, async |(broker, id, live, mut changed, seen, was_last)| {
            if let Some(last) = was_last {
                if last {
                    return None;
                }
                let changed = changed.as_mut()?;
                tokio::select! {
                    rung = changed.changed() => rung.ok()?,
                    () = broker.stop.cancelled() => return None,
                }
                tokio::time::sleep(WATCH_EVERY).await;
                changed.mark_unchanged();
            }
            let event = match &live {
                Some(live) => {
                    let (notes, now_seen) = live.notes_after(seen);
                    let event = JobEvent { job: broker.told(live), rate: live.rate(), notes };
                    let last = Some(live::is_over(&event.job));
                    return Some((Ok(event), (broker, id, Some(live.clone()), changed, now_seen, last)));
                }
                None => match broker.ledger.job(&id).await {
                    Ok(Some(job)) => Ok(JobEvent { job, rate: 0.0, notes: Vec::new() }),
                    Ok(None) => Err(Error::new(Code::JobNotFound, format!("there is no job {id}"))),
                    Err(error) => Err(error.into()),
                },
            };
            Some((event, (broker, id, None, None, seen, Some(true))))
        })
    }

    fn unfinished(&self, id: &JobId) -> Result<Arc<LiveJob>, Error> {
        let live = self.jobs.get(id).filter(|live| !live.with(live::is_over));
        live.ok_or_else(|| Error::new(Code::JobFinished, format!("job {id} is finished")))
    }

    /// Changes the row, durably, one writer at a time.
    pub(super) async fn rewrite(&self, live: &LiveJob, change: impl Fn(&mut Job)) -> Result<Job, Error> {
        let _writing = live.writing.lock().await;
        let mut row = live.job();
        change(&mut row);
        // fault: its callers name what was changed.
        self.ledger.update_job(row).await?;
        live.update(&change);
        Ok(live.job())
    }

    /// Cancels a job: nothing of it is leased from now on, what runs is stopped. The tasks follow in the background,
    /// after a restart too.
    pub async fn cancel_job(&self, id: &JobId) -> Result<Job, Error> {
        let live = self.unfinished(id)?;
        let job = self.rewrite(&live, |job| job.cancelled = true).await?;
        fault::reached(Point::CancelRecorded);
        let (broker, id) = (self.clone(), id.clone());
        self.tracker.spawn(async move { broker.cancel_rest(&id).await });
        Ok(job)
    }

    /// Cancels what is left of a cancelled job.
    pub(super) async fn cancel_rest(&self, id: &JobId) {
        for stands in [Stands::Queued, Stands::Running] {
            let filter = TaskFilter { stands: Some(stands), outcomes: Vec::new() };
            let ended = || Ended { message: "the job was cancelled".into(), ..Ended::default() };
            if let Err(error) =
                self.each_task(id, filter, |key| self.change_one(key, Event::Cancel, ended())).await
            {
                tracing::warn!(job = %id, %error, "a cancelled job's tasks are cancelled later");
                return;
            }
        }
        match self.ledger.newest_reduce(id).await {
            Ok(Some(reduce)) => drop(self.change_one(reduce.key, Event::Cancel, Ended::default()).await),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(job = %id, %error, "a cancelled job's reduce step is cancelled later")
            }
        }
        if let Some(live) = self.jobs.get(id) {
            self.settle_job(&live).await;
        }
    }

    async fn change_one(&self, key: TaskKey, event: Event, ended: Ended) -> Result<bool, Error> {
        Ok(matches!(self.change(&key, None, event, ended).await?, Changed::Yes(_)))
    }

    /// Does something to every task that matches, a page at a time. Says how many it changed.
    async fn each_task<F: Future<Output = Result<bool, Error>>>(
        &self,
        id: &JobId,
        filter: TaskFilter,
        act: impl Fn(TaskKey) -> F,
    ) -> Result<u64, Error> {
        let (mut after, mut changed) = (None, 0);
        loop {
            let page = self.ledger.tasks(id, filter.clone(), after, 1000).await?;
            let Some(last) = page.last() else { return Ok(changed) };
            after = Some(last.seq);
            let acts = stream::iter(page.into_iter().map(|task| act(task.key))).buffer_unordered(AT_ONCE);
            let done: Vec<Result<bool, Error>> = acts.collect().await;
            for one in done {
                changed += u64::from(one?);
            }
        }
    }

    /// Nothing more of it is leased; what runs goes on.
    pub async fn pause_job(&self, id: &JobId) -> Result<Job, Error> {
        let job = self.rewrite(&*self.unfinished(id)?, |job| job.paused = true).await?;
        fault::reached(Point::JobPaused);
        Ok(job)
    }

    /// It goes on.
    pub async fn resume_job(&self, id: &JobId) -> Result<Job, Error> {
        let job = self.rewrite(&*self.unfinished(id)?, |job| job.paused = false).await?;
        fault::reached(Point::JobResumed);
        self.outbox.ring(&job.spec.project);
        Ok(job)
    }

    /// Tasks that failed or were cancelled become ready again; those that succeeded stay.
    pub async fn retry_job(&self, id: &JobId) -> Result<(Job, u64), Error> {
        let job = self.known_job(id).await?;
        if live::is_over(&job)
            && job.state == JobState::Succeeded
            && job.counts.failed + job.counts.cancelled == 0
        {
            // Its answer stays.
            return Ok((job, 0));
        }
        let room = self.projects.admit(&job.spec.project, job.counts.failed + job.counts.cancelled)?;
        let awake = self.wake_job(id, false).await?;
        let again: Vec<_> =
            Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Succeeded).collect();
        let filter = TaskFilter { stands: Some(Stands::Done), outcomes: again };
        let retry = async |key| {
            let retried = self.change_one(key, Event::Retry, Ended::default()).await?;
            room.counted(retried.into());
            Ok(retried)
        };
        let retried = self.each_task(id, filter, retry).await;
        let live = awake.done();
        self.settle_job(&live).await;
        Ok((live.job(), retried?))
    }

    /// A finished job is held in memory again, and its row says that it is not finished, before any of its tasks
    /// changes: so a crash in between leaves a job that the next start looks at. It does not end again while the answer
    /// is held, although all its tasks are still done. Refused while a reduce step reads the results, and where `alone` is
    /// asked for and another verb is at it.
    pub(super) async fn wake_job(&self, id: &JobId, alone: bool) -> Result<Awake, Error> {
        let _kept = self.letting_go.read().await;
        let live = match self.jobs.get(id) {
            Some(live) => live,
            None => {
                self.check_jobs()?;
                let job = self.ledger.job(id).await?;
                let job =
                    job.ok_or_else(|| Error::new(Code::JobNotFound, format!("there is no job {id}")))?;
                self.load_job(job).await?
            }
        };
        let _writing = live.writing.lock().await;
        // It may have ended, and been forgotten, while its last writer was waited for.
        let there = self.jobs.insert(id.clone(), live.clone());
        if !Arc::ptr_eq(&there, &live) || (alone && live.is_awake()) {
            return Err(Error::new(Code::BrokerBusy, format!("job {id} is being taken up by another call"))
                .hint("try again"));
        }
        let mut row = live.job();
        if !live::is_over(&row) {
            return match () {
                () if row.cancelled => Err(still(id, "is being cancelled")),
                // It would end on an answer from results that are not there any more.
                () if live.is_being_reduced() => Err(still(id, "is being reduced")),
                () => Ok(live.keep_awake()),
            };
        }
        (row.cancelled, row.paused, row.finished_at, row.reduced_run) = (false, false, 0, 0);
        row.message.clear();
        row.state = JobState::Running;
        self.ledger.update_job(row.clone()).await?;
        fault::reached(Point::JobWoken);
        let awake = live.keep_awake();
        live.set_reduced(None);
        live.update(|job| {
            (job.cancelled, job.paused, job.finished_at, job.reduced_run) = (false, false, 0, 0);
            job.message.clear();
        });
        Ok(awake)
    }

    /// Into memory, with everything derived anew.
    pub(super) async fn load_job(&self, mut job: Job) -> Result<Arc<LiveJob>, Error> {
        let retried = job.counts.retried;
        job.counts = self.ledger.counts(&job.id).await?;
        job.counts.retried = retried;
        let reduced = match self.ledger.newest_reduce(&job.id).await? {
            Some(step) if step.key.task == TaskId::reduce(job.reduced_run) => {
                Some(match step.progress.state {
                    codering_core::task::State::Done(outcome) => Some(outcome),
                    _ => None,
                })
            }
            _ => None,
        };
        Ok(self.jobs.insert(job.id.clone(), LiveJob::new(job, reduced)))
    }

    /// What follows when a task is done: the reduce step, or the end. Safe to call at any time, and called again by
    /// the reconciler, so that no last step is missed.
    pub(super) async fn settle_job(&self, live: &LiveJob) {
        let (counts, state, open) = live.with(|job| (job.counts, job.state, job.open));
        if counts.done() < counts.total || open {
            return;
        }
        let settled = if reduce_is_due(&counts, live.flags()) {
            self.make_reduce(live, false).await
        } else if state.is_final() {
            self.finish_job(live).await
        } else {
            Ok(())
        };
        if let Err(error) = settled {
            let id = live.with(|job| job.id.clone());
            tracing::warn!(job = %id, %error, "a job's last step is taken later");
        }
    }

    async fn finish_job(&self, live: &LiveJob) -> Result<(), Error> {
        let _writing = live.writing.lock().await;
        let mut row = live.job();
        if !row.state.is_final() || live.is_awake() {
            return Ok(());
        }
        if row.finished_at != 0 {
            // A verb took it into memory, and could not take it up.
            self.jobs.remove(&row.id);
            return Ok(());
        }
        row.finished_at = now();
        row.message = match (row.counts.failed, row.state) {
            // All tasks are good, and yet it failed.
            (0, JobState::Failed) => match live.flags().reduced.flatten() {
                Some(outcome) => format!("the reduce step ended as {}", outcome.as_str()),
                None => "the reduce step failed".into(),
            },
            (0, _) => String::new(),
            (n, _) => format!("{n} of {} tasks failed", row.counts.total),
        };
        self.ledger.update_job(row.clone()).await?;
        fault::reached(Point::JobFinished);
        live.update(|job| {
            job.finished_at = row.finished_at;
            job.message.clone_from(&row.message);
        });
        // A retry in this very moment has taken the row up again: then it is not over.
        if live.with(live::is_over) {
            self.jobs.remove(&row.id);
        }
        tracing::info!(job = %row.id, project = %row.spec.project, state = row.state.as_str(), "finished");
        Ok(())
    }

    /// Recorded results in the order of the tasks, a page.
    pub async fn results_page(
        &self,
        id: &JobId,
        outcomes: &[Outcome],
        after_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<(u64, TaskResult)>, Error> {
        Ok(self.ledger.results(id, outcomes, after_seq, limit).await?)
    }

    /// The job's image builds.
    pub async fn builds(&self, id: &JobId) -> Result<Vec<Build>, Error> {
        Ok(self.ledger.builds(id).await?)
    }
}
