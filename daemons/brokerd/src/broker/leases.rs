//! Live leases, on the monotonic clock: a clock that jumps changes nothing. The ledger knows that a
//! lease exists and whose it is; until when is known here. After a restart each gets its full time anew.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use codering_core::{JobId, LeaseToken, TaskKey, WorkerName, task::Event, time::Millis};

use futures::{StreamExt, stream};

use super::{Broker, change::Changed, change::Ended, now};
use crate::ledger::Task;

/// A lease in memory.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// The row as it was when it was leased; `change` reads it anew when it is stale.
    pub task: Task,
    /// Until when.
    pub deadline: Instant,
    /// When the renewal was last written to the ledger.
    pub written: Instant,
    /// That it ended was told, though it is not recorded yet.
    pub over: bool,
    /// What the worker is at.
    pub phase: String,
    /// Where it runs.
    pub container_id: String,
    /// In what.
    pub image: String,
}

impl Held {
    pub(super) fn new(task: Task, lease: Duration) -> Self {
        let now = Instant::now();
        Self {
            task,
            deadline: now + lease,
            written: now,
            over: false,
            phase: "assigned".into(),
            container_id: String::new(),
            image: String::new(),
        }
    }

    fn worker(&self) -> Option<&WorkerName> {
        self.task.progress.lease().map(|lease| &lease.worker)
    }
}

/// An attempt on a worker, for people.
#[derive(Debug, Clone)]
pub struct Running {
    /// The task, as it was leased.
    pub task: Task,
    /// `assigned`, `checkout`, `build`, `start`, `run`.
    pub phase: String,
    /// Empty before it started.
    pub container_id: String,
    /// Empty before it was built.
    pub image: String,
}

impl From<Held> for Running {
    fn from(held: Held) -> Self {
        Self { task: held.task, phase: held.phase, container_id: held.container_id, image: held.image }
    }
}

/// All live leases.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<LeaseToken, Held>>);

impl Leases {
    fn lock(&self) -> MutexGuard<'_, HashMap<LeaseToken, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, token: LeaseToken, held: Held) {
        self.lock().insert(token, held);
    }

    /// The lease, if it is live and this worker's.
    pub(super) fn get(&self, token: &LeaseToken, worker: &WorkerName) -> Option<Held> {
        self.update(token, worker, |held| held.clone())
    }

    pub(super) fn remove(&self, token: &LeaseToken) -> Option<Held> {
        self.lock().remove(token)
    }

    /// Changes one, if it is live and this worker's.
    pub(super) fn update<T>(
        &self,
        token: &LeaseToken,
        worker: &WorkerName,
        change: impl FnOnce(&mut Held) -> T,
    ) -> Option<T> {
        let mut leases = self.lock();
        let held = leases.get_mut(token)?;
        if held.worker() == Some(worker) {
            return Some(change(held));
        }
        // Tokens are random and told to one worker alone: this is no mistake.
        let owner = held.worker().cloned();
        let key = held.task.key.clone();
        drop(leases);
        let owner = owner.as_ref().map_or("", |owner| owner.as_str());
        tracing::warn!(%worker, owner, job = %key.job, task = %key.task, "a worker named another's lease: fenced");
        None
    }

    pub(super) fn of_worker(&self, worker: &WorkerName) -> Vec<(LeaseToken, Held)> {
        let leases = self.lock();
        leases
            .iter()
            .filter(|(_, h)| h.worker() == Some(worker))
            .map(|(t, h)| (t.clone(), h.clone()))
            .collect()
    }

    pub(super) fn of_job(&self, job: &JobId) -> Vec<(LeaseToken, WorkerName)> {
        let leases = self.lock();
        let of_job = leases.iter().filter(|(_, held)| held.task.key.job == *job);
        of_job.filter_map(|(token, held)| Some((token.clone(), held.worker()?.clone()))).collect()
    }

    /// The live lease of a task.
    pub(super) fn of_task(&self, key: &TaskKey) -> Option<(LeaseToken, Held)> {
        let leases = self.lock();
        leases.iter().find(|(_, held)| held.task.key == *key).map(|(t, h)| (t.clone(), h.clone()))
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Takes one out that has run out, and not one that was renewed meanwhile.
    fn take_expired(&self, token: &LeaseToken, now: Instant) -> Option<Held> {
        let mut leases = self.lock();
        leases.get(token).is_some_and(|held| held.deadline <= now).then(|| leases.remove(token))?
    }

    fn expired(&self, now: Instant) -> Vec<LeaseToken> {
        self.lock().iter().filter(|(_, held)| held.deadline <= now).map(|(token, _)| token.clone()).collect()
    }
}

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(500);
/// Leases ended at the same time: a group commit's worth.
const AT_ONCE: usize = 256;

impl Broker {
    /// Ends the streams of silent workers, and leases that were not renewed.
    pub(super) async fn expire_leases(self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.stop.cancelled() => return,
            }
            for (worker, session) in self.fleet.close_silent(self.settings().lease) {
                self.scheduler().leave(&worker, session);
            }
            // Side by side: their writes share commits, and a worker with many slots is not waited for one by one.
            stream::iter(self.leases.expired(Instant::now()))
                .for_each_concurrent(AT_ONCE, async |token| {
                    // Its worker may have renewed it while others were ended.
                    if let Some(held) = self.leases.take_expired(&token, Instant::now()) {
                        self.end_lease(&token, held, "the worker was lost: it did not renew its lease").await;
                    }
                })
                .await;
        }
    }

    /// Ends one lease; the task runs elsewhere, or gives up.
    pub(super) async fn expire(&self, token: &LeaseToken, why: &str) {
        if let Some(held) = self.leases.remove(token) {
            self.end_lease(token, held, why).await;
        }
    }

    async fn end_lease(&self, token: &LeaseToken, held: Held, why: &str) {
        let (key, worker) = (held.task.key.clone(), held.worker().cloned());
        let name = worker.as_ref().map_or("?", |w| w.as_str());
        if !held.over {
            tracing::warn!(job = %key.job, task = %key.task, worker = name, why, "a lease ended");
            self.metrics.lease_expiries.inc();
            if let Some(job) = self.jobs.get(&key.job) {
                job.note(format!("{} goes back to the queue: {why} ({name})", key.task));
            }
        }
        let ended = Ended { message: format!("{why} ({name})"), ..Ended::default() };
        match self.change(&key, Some(held.task.clone()), Event::Expire { token: token.clone() }, ended).await
        {
            Ok(Changed::Yes(_) | Changed::Refused(..) | Changed::Missing) => self.let_go(token, &held),
            Err(error) => {
                // The ledger is away: the lease stays, already over, and is ended when the ledger is back.
                if !held.over {
                    tracing::warn!(job = %key.job, task = %key.task, %error, "a lease could not be ended yet");
                }
                self.leases.insert(token.clone(), Held { over: true, ..held });
            }
        }
    }

    /// After a lease ended in the ledger: its slot is free and its live output is not needed any more.
    pub(super) fn let_go(&self, token: &LeaseToken, held: &Held) {
        if let Some(worker) = held.worker() {
            self.scheduler().release(&held.task.project, worker, token);
        }
        self.logs.end(token);
        self.dispatch.notify_one();
    }

    /// Moves the deadlines of a worker's tokens. Answers those that are fenced and those to be cancelled.
    pub(super) fn renew(&self, worker: &WorkerName, tokens: &[String]) -> (Vec<String>, Vec<String>) {
        let (mut fenced, mut cancelled) = (Vec::new(), Vec::new());
        let now = Instant::now();
        let lease = self.settings().lease;
        for text in tokens {
            let Ok(token) = LeaseToken::new(text) else {
                fenced.push(text.clone());
                continue;
            };
            let renewed = self.leases.update(&token, worker, |held| {
                held.deadline = now + lease;
                let write = now.duration_since(held.written) >= lease / 2;
                if write {
                    held.written = now;
                }
                (held.task.key.clone(), write)
            });
            match renewed {
                None => fenced.push(text.clone()),
                Some((key, write)) => {
                    if self.fleet.is_cancelled(worker, &token) {
                        cancelled.push(text.clone());
                    }
                    if write {
                        self.write_renewal(key, token);
                    }
                }
            }
        }
        (fenced, cancelled)
    }

    /// For people; correctness rests on the token, so it need not be waited for.
    fn write_renewal(&self, key: TaskKey, token: LeaseToken) {
        let broker = self.clone();
        self.tracker.spawn(async move {
            let deadline = now() + Millis::try_from(broker.settings().lease.as_millis()).unwrap_or(0);
            if let Err(error) =
                broker.change(&key, None, Event::Renew { token, deadline }, Ended::default()).await
            {
                tracing::debug!(job = %key.job, task = %key.task, %error, "a renewal was not written");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use codering_core::{TaskId, TaskSpec, task::Progress};

    use super::*;

    #[test]
    fn a_lease_that_was_renewed_while_others_were_ended_is_not_ended() {
        let (leases, token) = (Leases::default(), LeaseToken::from_bytes([1; 16]));
        let id = TaskId::new("1").expect("valid");
        let task = Task {
            key: TaskKey { job: JobId::at(1_763_722_560_000, 1), task: id.clone() },
            project: "p".parse().expect("valid"),
            seq: 0,
            reduce: false,
            spec: TaskSpec::new(id),
            commit: String::new(),
            progress: Progress::new(0),
        };
        leases.insert(token.clone(), Held::new(task, Duration::ZERO));
        let now = Instant::now();
        assert_eq!(leases.expired(now), std::slice::from_ref(&token));
        if let Some(held) = leases.lock().get_mut(&token) {
            held.deadline = now + Duration::from_secs(30);
        }
        assert!(leases.take_expired(&token, now).is_none());
        assert!(leases.take_expired(&token, now + Duration::from_secs(31)).is_some());
    }
}
