//! The one place that changes where a task stands: reads it, asks the state machine, stores the answer by
//! compare-and-set, and only then tells the rest of the broker. What is stored beside it, a raw message's commit, goes by the
//! same compare-and-set (`reports.rs`).

use codering_core::{
    Code, Error, Outcome, TaskKey, TaskResult,
    task::{Effect, Event, MAX_INFRASTRUCTURE_FAILURES, Policy, Progress, Refusal, State},
};
use codering_kit::fault::{self, Point};

use super::{Broker, now};
use crate::ledger::{Attempt, LedgerError, Record, Swapped, Task, TaskChange};

/// What came of an event.
#[derive(Debug)]
pub(super) enum Changed {
    /// Stored: the task as it is now.
    Yes(Box<Task>),
    /// The state machine refused; nothing changed.
    Refused(Box<Task>, Refusal),
    /// There is no such task.
    Missing,
}

/// What an attempt brought, for the record of its end.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// The worker's report.
    pub result: Option<TaskResult>,
    /// Why, where there is no report.
    pub message: String,
}

/// Contention on one task is between a handful of parties; more misses than this mean a defect.
const MAX_SWAPS: u32 = 20;

impl Broker {
    /// Applies `event` to a task. `known` saves a read where the caller holds the newest row.
    pub(super) async fn change(
        &self,
        key: &TaskKey,
        known: Option<Task>,
        event: Event,
        ended: Ended,
    ) -> Result<Changed, Error> {
        let mut known = known;
        for _ in 0..MAX_SWAPS {
            let task = match known.take() {
                Some(task) => task,
                None => match self.ledger.task(key).await? {
                    Some(task) => task,
                    None => return Ok(Changed::Missing),
                },
            };
            let policy = self.policy(&task);
            let (next, effect) = match task.progress.step(event.clone(), policy, now()) {
                Ok(step) => step,
                Err(refusal) => return Ok(Changed::Refused(Box::new(task), refusal)),
            };
            let record = self.record(&task, &next, effect.as_ref(), &event, &ended);
            // Of this very result where the task is swapped: another one would have made another version.
            let forgets = match record {
                Record::Forget => self.ledger.result_bytes(key).await?,
                _ => 0,
            };
            let change = TaskChange {
                key: key.clone(),
                expected_version: task.progress.version,
                progress: next.clone(),
                commit: None,
                record,
            };
            if self.store(change).await? {
                fault::reached(point_of(&event));
                let changed = Task { progress: next, ..task.clone() };
                self.projects.forgot(&task.project, forgets);
                self.changed(&task, &changed, effect.as_ref(), &ended).await;
                return Ok(Changed::Yes(Box::new(changed)));
            }
        }
        Err(Error::new(Code::Internal, format!("task {key} changes faster than it can be changed")))
    }

    /// Compare-and-set; where the ledger does not know whether it stored the change, it is asked.
    pub(super) async fn store(&self, change: TaskChange) -> Result<bool, Error> {
        let wanted = (change.key.clone(), change.progress.clone());
        // fault: its callers name what was changed.
        match self.ledger.swap_task(change).await {
            Ok(swapped) => Ok(swapped == Swapped::Yes),
            Err(LedgerError::Unknown(why)) => match self.ledger.task(&wanted.0).await {
                Ok(Some(task)) if task.progress == wanted.1 => Ok(true),
                Ok(_) => Ok(false),
                Err(_) => Err(LedgerError::Unknown(why).into()),
            },
            Err(failed) => Err(failed.into()),
        }
    }

    fn policy(&self, task: &Task) -> Policy {
        let job = self.jobs.get(&task.key.job);
        let of_job = job.map(|job| job.with(|j| j.spec.limits.clone())).unwrap_or_default();
        let limits = task.spec.limits.over(&of_job.over(&self.settings().default_limits));
        Policy {
            // A reduce step that failed by its own fault would fail again.
            max_attempts: if task.reduce { 1 } else { limits.max_attempts },
            max_infrastructure_failures: MAX_INFRASTRUCTURE_FAILURES,
        }
    }

    fn record(
        &self,
        task: &Task,
        next: &Progress,
        effect: Option<&Effect>,
        event: &Event,
        ended: &Ended,
    ) -> Record {
        let attempt = |outcome: Outcome| {
            let lease = task.progress.lease()?;
            let message = ended.result.as_ref().map_or(&ended.message, |r| &r.message);
            Some(Attempt {
                attempt: task.progress.attempt,
                worker: lease.worker.clone(),
                leased_at: lease.leased_at,
                finished_at: now(),
                outcome,
                message: message.clone(),
            })
        };
        match effect {
            Some(Effect::Finish(outcome)) => {
                let mut result = ended.result.clone().unwrap_or_else(|| {
                    TaskResult::without_attempt(
                        task.project.clone(),
                        task.key.job.clone(),
                        task.key.task.clone(),
                        task.progress.attempt,
                        *outcome,
                        now(),
                        ended.message.clone(),
                    )
                });
                result.outcome = *outcome;
                let own = if *event == Event::Cancel { None } else { attempt(*outcome) };
                Record::Result(Box::new(result), own)
            }
            Some(Effect::AttemptEnded(outcome)) => match attempt(*outcome) {
                Some(attempt) => Record::Attempt(attempt),
                None => Record::Nothing,
            },
            Some(Effect::Publish) if matches!(task.progress.state, State::Done(_)) => Record::Forget,
            _ => {
                debug_assert!(!matches!(next.state, State::Done(_)));
                Record::Nothing
            }
        }
    }

    /// What follows from a stored change.
    async fn changed(&self, before: &Task, after: &Task, effect: Option<&Effect>, ended: &Ended) {
        let (from, to) = (&before.progress.state, &after.progress.state);
        self.projects.moved(&after.project, from, to);
        // Verbs that wake a finished job load it first, so a job that is not in memory was deleted.
        let Some(job) = self.jobs.get(&after.key.job) else { return };
        let retried = matches!(to, State::Leased(_)) && after.progress.attempt > 1;
        if std::mem::discriminant(from) != std::mem::discriminant(to) {
            job.moved(after, from, to, retried);
        }
        match effect {
            Some(Effect::Publish) => self.outbox.ring(&after.project),
            Some(Effect::AttemptEnded(outcome)) => {
                if let (Outcome::InfrastructureError, Some(result)) = (outcome, &ended.result) {
                    job.trouble(&result.message);
                }
                self.outbox.ring_at(&after.project, not_before(to));
            }
            Some(Effect::Stop(lease)) => self.fleet.cancel(&lease.worker, &lease.token),
            Some(Effect::Finish(_)) => {
                self.projects.stored(&after.project, ended.result.as_ref().map_or(0, TaskResult::bytes));
                self.outbox.ring_results();
                self.settle_job(&job).await;
            }
            None => {}
        }
    }
}

/// Where to die once an event is recorded.
fn point_of(event: &Event) -> Point {
    match event {
        Event::Publish => Point::TaskMarked,
        Event::Unpublish => Point::TaskUnmarked,
        Event::HandBack { .. } => Point::TaskHandedBack,
        Event::Lease(_) => Point::LeaseRecorded,
        Event::Renew { .. } => Point::LeaseRenewed,
        Event::Complete { .. } => Point::ResultRecorded,
        Event::Expire { .. } => Point::LeaseEnded,
        Event::Cancel => Point::TaskCancelled,
        Event::Retry => Point::TaskRetried,
    }
}

fn not_before(state: &State) -> codering_core::time::Millis {
    match state {
        State::Ready { not_before, .. } => *not_before,
        _ => 0,
    }
}
