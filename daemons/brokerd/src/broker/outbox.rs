//! What the ledger holds and a queue does not yet: ready tasks and recorded results. Two loops publish
//! them; both can be killed at any step, since publishing twice does no harm and the mark is set after
//! the confirm.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound::{Excluded, Unbounded},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use codering_core::{
    Code, Error, JobId, JobSpec, ProjectName, QueueName, TaskResult,
    message::{DoneMessage, MAX_MESSAGE_BYTES, TodoMessage},
    spec::Reduce,
    task::{Event, LONGEST_PAUSE_MS},
    time::Millis,
};
use codering_kit::fault::{self, Point};
use futures::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use tokio::sync::{RwLock, watch};

use super::{Broker, change::Ended, now};
use crate::{
    ledger::Task,
    queue::{Message, QueueError},
};

/// Tasks of one project published at a time, and at most this many confirms of it awaited.
const BATCH: u32 = 256;
/// Projects published at the same time, so that what is small need not wait for what is large.
const AT_ONCE: usize = 16;
/// After a backend failed, and at most between two looks for work.
const PAUSE: Duration = Duration::from_secs(1);

/// Which projects have something to publish, and from when on.
#[derive(Debug)]
pub(super) struct Outbox {
    due: Mutex<BTreeMap<ProjectName, Millis>>,
    tasks: tokio::sync::Notify,
    results: watch::Sender<u64>,
    /// Read while messages are put and marked as published: whoever has written it knows that every mark before is made.
    pub(super) marking: RwLock<()>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            due: Mutex::default(),
            tasks: tokio::sync::Notify::new(),
            results: watch::Sender::new(0),
            marking: RwLock::default(),
        }
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ProjectName, Millis>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A project has tasks to publish.
    pub(super) fn ring(&self, project: &ProjectName) {
        self.ring_at(project, 0);
    }

    /// A project will have tasks to publish at `at`.
    pub(super) fn ring_at(&self, project: &ProjectName, at: Millis) {
        self.lock().entry(project.clone()).and_modify(|due| *due = at.min(*due)).or_insert(at);
        self.tasks.notify_one();
    }

    /// There are results to publish.
    pub(super) fn ring_results(&self) {
        self.results.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Changes when results come.
    pub(super) fn watch_results(&self) -> watch::Receiver<u64> {
        self.results.subscribe()
    }

    /// At most so many projects that are due and not `busy`, in turn after `last`, and how long until the next one is.
    fn take_due(
        &self,
        now: Millis,
        busy: &HashSet<ProjectName>,
        last: &mut Option<ProjectName>,
    ) -> (Vec<ProjectName>, Duration) {
        let mut due = self.lock();
        // What is further ahead than any pause was noted under a clock that has been set back since.
        let is_due = |at: Millis| at <= now || at > now.saturating_add(LONGEST_PAUSE_MS);
        let after = last.as_ref().map_or(Unbounded, Excluded);
        let in_turn = due.range::<ProjectName, _>((after, Unbounded)).chain(due.iter());
        let mut ready: Vec<ProjectName> = Vec::new();
        for (name, at) in in_turn.take(due.len()) {
            if ready.len() + busy.len() < AT_ONCE && is_due(*at) && !busy.contains(name) {
                ready.push(name.clone());
            }
        }
        for name in &ready {
            due.remove(name);
        }
        if let Some(name) = ready.last() {
            *last = Some(name.clone());
        }
        // One that is due by now has its turn when one of the busy ones is done.
        let later = due.values().filter(|at| !is_due(**at)).min();
        let next = later.map_or(PAUSE, |at| Duration::from_millis(u64::try_from(at - now).unwrap_or(0)));
        (ready, next.min(PAUSE))
    }
}

/// Bytes of each stream of a result that is too large for its queue as a whole. Written as JSON they are
/// [`MOST_IN_JSON`] times as many at worst.
const CUT_BYTES: usize = 1 << 20;
/// What a byte becomes at worst: `\u0001`.
const MOST_IN_JSON: usize = 6;
/// A task, or a result that was cut, with a mebibyte for what else they say: a queue that takes no message of so many
/// bytes would hold up all that is behind it.
pub(crate) const LEAST_MESSAGE_BOUND: usize = {
    let cut = 2 * CUT_BYTES * MOST_IN_JSON;
    (if cut > MAX_MESSAGE_BYTES { cut } else { MAX_MESSAGE_BYTES }) + (1 << 20)
};

/// What of a result fits into a message; the whole of it stays in the ledger.
fn cut(result: &TaskResult) -> TaskResult {
    let mut cut = result.clone();
    cut.stdout_truncated |= cut.stdout.len() > CUT_BYTES;
    cut.stderr_truncated |= cut.stderr.len() > CUT_BYTES;
    cut.stdout.truncate(CUT_BYTES);
    cut.stderr.truncate(CUT_BYTES);
    cut
}

impl Broker {
    /// Publishes ready tasks, a batch of each project in turn and several projects at once.
    pub(super) async fn publish_tasks(self) {
        let mut batches = FuturesUnordered::new();
        let (mut busy, mut last) = (HashSet::new(), None);
        while !self.stop.is_cancelled() {
            let (projects, next) = self.outbox.take_due(now(), &busy, &mut last);
            for project in projects {
                busy.insert(project.clone());
                batches.push(async { (self.publish_batch(&project).await, project) });
            }
            tokio::select! {
                Some((published, project)) = batches.next() => {
                    busy.remove(&project);
                    self.batch_ended(&project, published);
                }
                () = self.outbox.tasks.notified() => {}
                () = tokio::time::sleep(next) => {}
                () = self.stop.cancelled() => {}
            }
        }
        // What was put is to be marked.
        while batches.next().await.is_some() {}
    }

    fn batch_ended(&self, project: &ProjectName, published: Result<usize, Error>) {
        match published {
            // A page also ends after some megabytes: only an empty one is the last.
            Ok(published) if published > 0 => self.outbox.ring(project),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(project = %project, %error, "tasks wait in the ledger until they can be queued");
                self.outbox.ring_at(project, now() + PAUSE.as_millis() as Millis);
            }
        }
    }

    async fn publish_batch(&self, project: &ProjectName) -> Result<usize, Error> {
        let _marking = self.outbox.marking.read().await;
        let over = self.pass_over(project);
        let mut tasks = self.ledger.unpublished(project, now(), BATCH, &over).await?;
        let due = tasks.len();
        self.keep_publishable(&mut tasks);
        let found = tasks.len();
        if found == 0 && due > 0 {
            // The slots went to others in this moment. What is behind these tasks is not to wait for them.
            self.outbox.ring_at(project, now() + PAUSE.as_millis() as Millis);
        }
        let todo = QueueName::todo(project);
        // What the tasks of a job share is read once, not cloned for each of them.
        let mut jobs = BTreeMap::new();
        for task in &tasks {
            if !jobs.contains_key(&task.key.job) {
                let job =
                    self.jobs.get(&task.key.job).map(|job| job.with(|j| (j.spec.clone(), j.reduce.clone())));
                jobs.insert(task.key.job.clone(), job);
            }
        }
        let work = tasks.into_iter().map(|task| {
            let job = jobs.get(&task.key.job).and_then(Option::as_ref);
            self.publish_task(&todo, task, job)
        });
        let results: Vec<_> = stream::iter(work).buffer_unordered(BATCH as usize).collect().await;
        results.into_iter().collect::<Result<(), Error>>()?;
        Ok(found)
    }

    /// Of a job with labels no more than can be leased now; the rest has its turn when a slot is free for it.
    fn keep_publishable(&self, tasks: &mut Vec<Task>) {
        let mut left: HashMap<JobId, usize> = HashMap::new();
        tasks.retain(|task| {
            let left = left.entry(task.key.job.clone()).or_insert_with(|| {
                let labels = self.jobs.get(&task.key.job).map(|job| job.with(|j| j.spec.labels.clone()));
                self.publishable(&labels.unwrap_or_default())
            });
            let publish = task.reduce || *left > 0;
            *left = left.saturating_sub(1);
            publish
        });
    }

    async fn publish_task(
        &self,
        todo: &QueueName,
        task: Task,
        job: Option<&(JobSpec, Option<Reduce>)>,
    ) -> Result<(), Error> {
        let Some((spec, reduce)) = job else {
            return Err(Error::new(Code::JobNotFound, format!("job {} is not in memory yet", task.key.job)));
        };
        let attempt =
            super::dispatch::attempt_spec(spec, reduce.as_ref(), &task, &self.settings().default_limits);
        let message = TodoMessage::of(&task.project, &task.key.job, &task.spec, &attempt, spec.priority);
        let mut body = serde_json::to_vec(&message).map_err(super::internal)?;
        if body.len() > MAX_MESSAGE_BYTES {
            // JSON can be several times what it says; the ledger has all of it.
            body = serde_json::to_vec(&message.without_bulk()).map_err(super::internal)?;
        }
        let message = Message { body: body.into(), priority: spec.priority };
        self.put_making(todo, message).await?;
        fault::reached(Point::TaskPut);
        tracing::debug!(job = %task.key.job, task = %task.key.task, "queued");
        // The message may be taken before this line: then the task is leased already, and that is as good.
        self.scheduler().ring(&task.project);
        self.dispatch.notify_one();
        let key = task.key.clone();
        self.change(&key, Some(task), Event::Publish, Ended::default()).await?;
        Ok(())
    }

    /// Publishes recorded results.
    pub(super) async fn publish_results(self) {
        let mut rung = self.outbox.watch_results();
        while !self.stop.is_cancelled() {
            let wait = match self.publish_result_batch().await {
                Ok(published) if published > 0 => continue,
                Ok(_) => Duration::from_secs(30),
                Err(error) => {
                    tracing::warn!(%error, "results wait in the ledger until they can be queued");
                    PAUSE
                }
            };
            tokio::select! {
                _ = rung.changed(), if wait > PAUSE => {}
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn publish_result_batch(&self) -> Result<usize, Error> {
        let _marking = self.outbox.marking.read().await;
        let results = self.ledger.unpublished_results(BATCH).await?;
        let found = results.len();
        if found == 0 {
            return Ok(0);
        }
        let work = results.into_iter().map(async |result| {
            let done = QueueName::done(&result.project);
            let body: Bytes =
                serde_json::to_vec(&DoneMessage::from(&result)).map_err(super::internal)?.into();
            // A project that was deleted meanwhile needs no message.
            if self.projects.get(&result.project).is_some() {
                // fault: below, once one of both is put.
                match self.put_making(&done, Message::new(body)).await {
                    Err(QueueError::TooLarge { .. }) => {
                        let cut = serde_json::to_vec(&DoneMessage::from(&cut(&result)));
                        self.put_making(&done, Message::new(cut.map_err(super::internal)?)).await?;
                    }
                    put => put?,
                }
                fault::reached(Point::DonePut);
            }
            Ok((codering_core::TaskKey { job: result.job, task: result.task }, result.attempt))
        });
        let keys: Vec<Result<_, Error>> = stream::iter(work).buffer_unordered(BATCH as usize).collect().await;
        let (done, failed): (Vec<_>, Vec<_>) = keys.into_iter().partition(Result::is_ok);
        self.ledger.mark_results_published(done.into_iter().flatten().collect()).await?;
        fault::reached(Point::DoneMarked);
        failed.into_iter().next().map_or(Ok(found), |failed| failed.map(|_| found))
    }

    /// Puts a message on a queue of the flow's own, which is made again where the backend lost it.
    async fn put_making(&self, queue: &QueueName, message: Message) -> Result<(), QueueError> {
        // fault: its callers name what was put.
        match self.queues.put(queue, message.clone()).await {
            Err(QueueError::NotFound(_)) => {
                self.queues.create(queue).await?;
                fault::reached(Point::QueueRemade);
                // fault: its callers name what was put.
                self.queues.put(queue, message).await
            }
            answer => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_before_the_clock_was_set_back_by_an_hour_does_not_wait_for_an_hour() {
        let (outbox, project) = (Outbox::default(), ProjectName::new("p").expect("valid"));
        let now = 1_763_722_560_000;
        outbox.ring_at(&project, now + LONGEST_PAUSE_MS);
        let due = |now| outbox.take_due(now, &HashSet::new(), &mut None).0;
        assert_eq!(due(now), []);
        assert_eq!(due(now - 3_600_000), [project]);
    }

    #[test]
    fn all_projects_have_their_turn_however_many_always_have_more_to_publish() {
        let (outbox, mut last) = (Outbox::default(), None);
        let project = |n: usize| ProjectName::new(format!("p{n}")).expect("valid");
        let projects: Vec<_> = (0..3 * AT_ONCE).map(project).collect();
        let mut had_a_turn = HashSet::new();
        for _ in 0..3 {
            projects.iter().for_each(|project| outbox.ring(project));
            let (due, _) = outbox.take_due(0, &HashSet::new(), &mut last);
            assert_eq!(due.len(), AT_ONCE);
            had_a_turn.extend(due);
        }
        assert_eq!(had_a_turn.len(), projects.len());
    }

    #[test]
    fn a_project_whose_batch_is_under_way_waits_for_it_and_keeps_nobody_awake() {
        let (outbox, project) = (Outbox::default(), ProjectName::new("p").expect("valid"));
        outbox.ring(&project);
        let busy = HashSet::from([project.clone()]);
        assert_eq!(outbox.take_due(0, &busy, &mut None), (Vec::new(), PAUSE));
        assert_eq!(outbox.take_due(0, &HashSet::new(), &mut None).0, [project]);
    }
}
