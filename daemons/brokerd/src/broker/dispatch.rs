//! From the todo queue to a worker: a message is taken when a slot is free for it, the lease is recorded,
//! the worker is told, and the message acked.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use codering_core::{
    AttemptSpec, Code, Error, JobSpec, Limits, ProjectName, QueueName, TaskKey, WorkerName,
    message::TodoMessage,
    spec::Reduce,
    task::{Event, Lease, State},
};
use codering_kit::fault::{self, Point};
use codering_proto::convert::Assigned;
use futures::future::join_all;

use super::{
    Broker,
    change::{Changed, Ended},
    leases::Held,
    new_token, now,
    scheduler::Take,
};
use crate::{
    ledger::Task,
    queue::{Delivery, Rung},
};

/// A task that no connected worker can run is looked at again after this, in milliseconds.
const UNPLACED_PAUSE_MS: i64 = 2000;
/// A message whose task could not be leased returns to its queue after this. At once, it would go round and round
/// for as long as the ledger is away, until its queue counts it as undeliverable.
const REQUEUE_PAUSE: Duration = Duration::from_secs(1);

/// What an attempt at `task` is told to do.
pub(super) fn attempt_spec(
    spec: &JobSpec,
    reduce: Option<&Reduce>,
    task: &Task,
    defaults: &Limits,
) -> AttemptSpec {
    match reduce.filter(|_| task.reduce) {
        Some(reduce) => spec.reduce_attempt(reduce, defaults),
        None => spec.attempt(&task.spec, defaults),
    }
}

/// The tasks that a fill's messages name, as the ledger had them.
type Known = Result<HashMap<TaskKey, Task>, Error>;

/// What became of a delivery, which decides how it is settled.
enum Fate {
    /// Leased: the reservation became a busy slot.
    Leased,
    /// Nothing to do for it: done, running, cancelled, paused or handed back to the ledger.
    Dropped,
    /// It can never be used.
    Rejected(String),
    /// Its project is at a quota: it waits on its queue.
    Held,
}

impl Broker {
    /// Asks the queues whenever slots are free and something may wait.
    pub(super) async fn dispatch_loop(self) {
        let mut bell = self.queues.bell();
        while !self.stop.is_cancelled() {
            self.wait_for_room().await;
            // Lets those who were just answered free their slots, too: one question for all of them.
            tokio::task::yield_now().await;
            self.wake_waiting();
            let takes = self.scheduler().plan();
            for take in takes {
                let broker = self.clone();
                self.tracker.spawn(async move { broker.fill(take).await });
            }
            tokio::select! {
                () = self.dispatch.notified() => {}
                rung = bell.rung() => match rung {
                    Some(Rung::Queues(queues)) => {
                        queues.iter().for_each(|queue| self.scheduler().ring(&queue.project()));
                    }
                    Some(Rung::All) => self.scheduler().ring_all(),
                    None => return,
                },
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Takes up to the reserved number of messages and leases their tasks.
    async fn fill(&self, take: Take) {
        let queue = QueueName::todo(&take.project);
        let room = self.projects.room(&take.project).min(take.max);
        if room == 0 {
            return self.fill_from_ledger(take).await;
        }
        let deliveries = match self.queues.take(&queue, room as usize).await {
            Ok(deliveries) => deliveries,
            Err(error) => {
                // The bell rings when the backend is back; the reconciler rings in any case.
                tracing::debug!(queue = %queue, %error, "nothing taken");
                Vec::new()
            }
        };
        if !deliveries.is_empty() {
            fault::reached(Point::MessagesTaken);
        }
        let got = u32::try_from(deliveries.len()).unwrap_or(take.max);
        tracing::debug!(queue = %queue, asked = room, got, "taken");
        self.scheduler().took(&take, got);
        if got == room && room < take.max {
            self.scheduler().ring(&take.project);
        }
        let messages: Vec<_> =
            deliveries.into_iter().map(|d| (TodoMessage::read(&d.body, &take.project), d)).collect();
        let known = self.known_tasks(messages.iter().filter_map(|(m, _)| m.as_ref().ok()?.key())).await;
        let known = &known;
        let leases = messages.into_iter().map(async |(message, delivery)| {
            let fate = self.lease_message(&take.project, message, known, delivery.redelivered).await;
            self.settle_delivery(&take.project, fate, delivery).await;
        });
        join_all(leases).await;
        // Reservations were given back, or there may be more.
        self.dispatch.notify_one();
    }

    async fn known_tasks(&self, keys: impl Iterator<Item = TaskKey>) -> Known {
        let keys: Vec<TaskKey> = keys.collect();
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let tasks = self.ledger.tasks_of(&keys).await?;
        Ok(tasks.into_iter().map(|task| (task.key.clone(), task)).collect())
    }

    /// A project at one of its quotas adopts nothing: raw messages wait on its queue, which is not touched. Tasks that it
    /// has already, whose messages may lie behind them, are leased as the ledger has them; those messages are dropped
    /// when they come.
    async fn fill_from_ledger(&self, take: Take) {
        self.scheduler().is_full(&take.project);
        let tasks = self.ledger.published(&take.project, None, take.max).await.unwrap_or_else(|error| {
            tracing::debug!(project = %take.project, %error, "nothing read");
            Vec::new()
        });
        self.scheduler().took(&take, u32::try_from(tasks.len()).unwrap_or(take.max));
        let leases = tasks.into_iter().map(async |task| {
            let fate = match matches!(task.progress.state, State::Ready { .. }) {
                true => self.lease(task).await,
                false => Ok(Fate::Dropped),
            };
            if !matches!(fate, Ok(Fate::Leased)) {
                self.scheduler().unreserve(&take.project);
            }
            if let Err(error) = fate {
                tracing::warn!(project = %take.project, %error, "a task was not leased");
            }
        });
        join_all(leases).await;
        self.dispatch.notify_one();
    }

    /// Acks a message, or what else became of it; where no slot became busy, its reservation is given back.
    async fn settle_delivery(&self, project: &ProjectName, fate: Result<Fate, Error>, delivery: Delivery) {
        let settled = match &fate {
            Ok(Fate::Leased | Fate::Dropped) => {
                let acked = delivery.settle.ack().await;
                fault::reached(Point::MessageAcked);
                acked
            }
            // fault: the message is as it was taken.
            Ok(Fate::Held) => delivery.settle.requeue().await,
            Ok(Fate::Rejected(reason)) => {
                tracing::warn!(project = %project, reason, "a message goes to the dead letters");
                self.metrics.dead_letters.inc();
                let rejected = delivery.settle.reject(reason.clone()).await;
                fault::reached(Point::MessageRejected);
                rejected
            }
            Err(error) => {
                tracing::warn!(project = %project, %error, "a message returns to its queue");
                self.lease_failed(error);
                tokio::select! {
                    () = tokio::time::sleep(REQUEUE_PAUSE) => {}
                    () = self.stop.cancelled() => {}
                }
                // fault: the message is as it was taken.
                delivery.settle.requeue().await
            }
        };
        if let Err(error) = settled {
            // It may come again: its task is then no longer ready, and the message is dropped.
            tracing::debug!(project = %project, %error, "a message was not settled");
        }
        if !matches!(fate, Ok(Fate::Leased)) {
            self.scheduler().unreserve(project);
        }
    }

    async fn lease_message(
        &self,
        project: &ProjectName,
        message: Result<TodoMessage, Error>,
        known: &Known,
        redelivered: bool,
    ) -> Result<Fate, Error> {
        let message = match message {
            Ok(message) => message,
            Err(error) => return Ok(Fate::Rejected(format!("{}: {error}", error.code.as_str()))),
        };
        let task = match message.key() {
            Some(key) => match known.as_ref().map_err(Error::clone)?.get(&key) {
                Some(task) if task.project == *project => task.clone(),
                _ => {
                    return Ok(Fate::Rejected(format!(
                        "{}: there is no task {key}",
                        Code::TaskNotFound.as_str()
                    )));
                }
            },
            // What a submit may not ask for, a raw message may not either.
            None if let Err(error) = self.check_limits(&message.task_spec()?.limits, "limits") => {
                return Ok(Fate::Rejected(format!("{}: {error}", error.code.as_str())));
            }
            None => match self.adopt(project, &message, redelivered).await {
                Ok(Some(task)) => task,
                Ok(None) => return Ok(Fate::Dropped),
                Err(error) if error.code == Code::QuotaExceeded => return Ok(Fate::Held),
                Err(error) => return Err(error),
            },
        };
        if matches!(task.progress.state, State::Ready { .. }) {
            self.lease(task).await
        } else {
            Ok(Fate::Dropped)
        }
    }

    /// Leases a ready task to the worker with most room and sends it there.
    async fn lease(&self, task: Task) -> Result<Fate, Error> {
        let Some(job) = self.jobs.get(&task.key.job) else { return Ok(Fate::Dropped) };
        let (spec, reduce, commit, paused, cancelled) =
            job.with(|j| (j.spec.clone(), j.reduce.clone(), j.commit.clone(), j.paused, j.cancelled));
        let key = task.key.clone();
        if cancelled {
            let ended = Ended { message: "the job was cancelled".into(), ..Ended::default() };
            self.change(&key, Some(task), Event::Cancel, ended).await?;
            return Ok(Fate::Dropped);
        }
        let labels = if task.reduce { BTreeMap::new() } else { spec.labels.clone() };
        let token = new_token();
        let placed = if paused { None } else { self.scheduler().place(&task.project, &labels, &token) };
        let Some((worker, session)) = placed else {
            self.hand_back(task, paused, !labels.is_empty()).await?;
            return Ok(Fate::Dropped);
        };
        let leased_at = now();
        let lease_ms = u64::try_from(self.settings().lease.as_millis()).unwrap_or(u64::MAX);
        let deadline = leased_at + i64::try_from(lease_ms).unwrap_or(0);
        let lease = Lease { token: token.clone(), worker: worker.clone(), leased_at, deadline };
        let queued_ms = u64::try_from(leased_at - task.progress.ready_at).unwrap_or(0);
        let project = task.project.clone();
        let task = match self.change(&key, Some(task), Event::Lease(lease), Ended::default()).await {
            Ok(Changed::Yes(task)) => *task,
            other => {
                self.scheduler().unplace(&project, &worker, &token);
                return other.map(|_| Fate::Dropped);
            }
        };
        let attempt = attempt_spec(&spec, reduce.as_ref(), &task, &self.settings().default_limits);
        let commit = [task.commit.as_str(), if task.spec.source.is_some() { "" } else { &commit }]
            .into_iter()
            .find(|commit| !commit.is_empty())
            .or(attempt.source.pinned())
            .map(str::to_owned);
        let assigned = Assigned {
            token: token.clone(),
            project,
            job: key.job.clone(),
            task: key.task.clone(),
            attempt: task.progress.attempt,
            lease_ms,
            commit,
            queued_ms,
            spec: attempt,
        };
        self.metrics.leases.inc();
        self.metrics.queued_seconds.observe(queued_ms as f64 / 1e3);
        self.hold(&worker, session, Held::new(task, self.settings().lease), assigned, &job).await;
        fault::reached(Point::AssignmentSent);
        Ok(Fate::Leased)
    }

    /// Remembers the lease and tells the worker; one that is gone has its lease ended at once.
    async fn hold(
        &self,
        worker: &WorkerName,
        session: u64,
        held: Held,
        assigned: Assigned,
        job: &super::live::LiveJob,
    ) {
        let (token, task) = (assigned.token.clone(), assigned.task.clone());
        tracing::info!(
            job = %assigned.job, task = %task, attempt = assigned.attempt, worker = %worker, "leased"
        );
        self.leases.insert(token.clone(), held);
        let starts = job.with(|j| j.started_at == 0);
        if starts {
            job.update(|j| j.started_at = now());
        }
        if !self.fleet.assign(worker, session, assigned.into()) {
            // Boxed, since it is rare: every lease under way would have room for it.
            Box::pin(self.expire(&token, "the worker went away before it had the task")).await;
        }
        if starts {
            self.record_start(job).await;
        }
    }

    /// Else a broker that starts again would take the next task's start for the job's.
    async fn record_start(&self, job: &super::live::LiveJob) {
        let _writing = job.writing.lock().await;
        match self.ledger.update_job(job.job()).await {
            Ok(_) => fault::reached(Point::JobStarted),
            Err(error) => {
                tracing::warn!(job = %job.job().id, %error, "the job's start could not be recorded")
            }
        }
    }

    /// The task stays in the ledger instead of the queue: its job is paused, or no free worker has its labels. The latter
    /// it is passed over for until one has, so it needs no pause of its own.
    async fn hand_back(&self, task: Task, paused: bool, labelled: bool) -> Result<(), Error> {
        let (key, project) = (task.key.clone(), task.project.clone());
        let again = now() + UNPLACED_PAUSE_MS;
        let not_before = if paused || labelled { 0 } else { again };
        let changed = self.change(&key, Some(task), Event::HandBack { not_before }, Ended::default()).await?;
        if matches!(changed, Changed::Yes(_)) && !paused {
            self.outbox.ring_at(&project, again);
        }
        Ok(())
    }
}
