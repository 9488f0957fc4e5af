//! The state machine of one task: pure, so that every interleaving can be tested without a runtime.
//!
//! ```text
//!            Publish            Lease                 Complete(token live)
//!   Ready ──────────▶ Ready ──────────▶ Leased ─────────────────────────────▶ Done
//!  (unpublished)   (published)            │  user's failure, attempts left ──▶ Ready (unpublished); never of a build
//!   ▲  ▲   ▲            │                 │  ours, bound not reached ────────▶ Ready (unpublished, later)
//!   │  │   └─ Unpublish, HandBack         │
//!   │  └──────────────── Expire ──────────┘
//!   └──────────────────────────── Retry (a user asks) ────────────────────── Done
//! ```
//!
//! Beside these: Lease takes an unpublished one as well, Renew moves a lease's deadline, Cancel ends a task that is ready and
//! marks one that is leased, which then ends as cancelled unless it succeeds.
//!
//! Whoever stores a [`Progress`] writes the next one by compare-and-set on `version`; that, and the
//! lease token compared here, is what makes one task have at most one recorded result.

use serde::{Deserialize, Serialize};

use crate::{Blame, LeaseToken, Outcome, WorkerName, time::Millis};

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Waits to be leased.
    Ready {
        /// Its message was confirmed by the todo queue and not yet taken.
        published: bool,
        /// Not to be published before this time.
        not_before: Millis,
    },
    /// A worker runs it.
    Leased(Lease),
    /// Its result is recorded.
    Done(Outcome),
}

/// The right to run an attempt until a deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The fencing token.
    pub token: LeaseToken,
    /// Who runs it.
    pub worker: WorkerName,
    /// Since when.
    pub leased_at: Millis,
    /// On the wall clock, for people; the live deadline is on the broker's monotonic clock.
    pub deadline: Millis,
}

/// All of a task that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Where it stands.
    pub state: State,
    /// Leases so far.
    pub attempt: u32,
    /// Attempts that failed by the user's fault since it was submitted or retried.
    pub user_failures: u32,
    /// The same by ours.
    pub infrastructure_failures: u32,
    /// A user wants it cancelled while it runs.
    pub cancel_requested: bool,
    /// When it last became ready.
    pub ready_at: Millis,
    /// Grows by one with every change.
    pub version: u64,
}

/// Bounds that decide when a task gives up.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Failures of the user's own.
    pub max_attempts: u32,
    /// Failures of ours; larger, since no user can mend them.
    pub max_infrastructure_failures: u32,
}

/// Infrastructure failures before a task is given up.
pub const MAX_INFRASTRUCTURE_FAILURES: u32 = 10;

/// What happens to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Its message was confirmed by the todo queue.
    Publish,
    /// The queue no longer has its message.
    Unpublish,
    /// Its message was taken, and nobody may run it now: it waits here instead of in the queue.
    HandBack {
        /// Not to be published before this time.
        not_before: Millis,
    },
    /// A worker gets it.
    Lease(Lease),
    /// The worker lives; the deadline moves.
    Renew {
        /// Whose.
        token: LeaseToken,
        /// The new one, for people.
        deadline: Millis,
    },
    /// The lease ran out, which its holder has established on the monotonic clock.
    Expire {
        /// Whose.
        token: LeaseToken,
    },
    /// The worker reports.
    Complete {
        /// Whose.
        token: LeaseToken,
        /// How it ended.
        outcome: Outcome,
    },
    /// A user cancels.
    Cancel,
    /// A user wants it run again.
    Retry,
}

/// What the caller must do once the new progress is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Publish it to the todo queue when its time has come.
    Publish,
    /// Record its result, publish that to the done queue.
    Finish(Outcome),
    /// Tell the worker to stop the attempt.
    Stop(Lease),
    /// The attempt ended and another will follow.
    AttemptEnded(Outcome),
}

/// Why an event changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The token is not the live one.
    Fenced,
    /// Only a ready task can be leased or published.
    NotReady,
    /// Only a done task can be retried.
    NotDone,
    /// A done task cannot be cancelled.
    AlreadyDone,
    /// It is so already.
    Unchanged,
}

/// No task waits longer than this to be published again.
pub const LONGEST_PAUSE_MS: Millis = 30_000;

/// The pause before a task is published again after our `failures`th failure, in milliseconds.
pub fn infrastructure_backoff_ms(failures: u32) -> Millis {
    (500 << failures.min(6)).min(LONGEST_PAUSE_MS)
}

impl Progress {
    /// A task as it is submitted.
    pub fn new(now: Millis) -> Self {
        Self {
            state: State::Ready { published: false, not_before: 0 },
            attempt: 0,
            user_failures: 0,
            infrastructure_failures: 0,
            cancel_requested: false,
            ready_at: now,
            version: 1,
        }
    }

    /// A task as it is adopted from a message that is in hand, about to be leased.
    pub fn adopted(now: Millis) -> Self {
        Self { state: State::Ready { published: true, not_before: 0 }, ..Self::new(now) }
    }

    /// The lease, while there is one.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Leased(lease) => Some(lease),
            _ => None,
        }
    }

    /// What `event` makes of this task at `now`.
    pub fn step(&self, event: Event, policy: Policy, now: Millis) -> Result<(Self, Option<Effect>), Refusal> {
        let mut next = self.clone();
        next.version += 1;
        let effect = match event {
            Event::Publish => next.publish(true)?,
            Event::Unpublish => next.publish(false)?,
            Event::HandBack { not_before } => next.hand_back(not_before)?,
            Event::Lease(lease) => {
                let State::Ready { .. } = next.state else { return Err(Refusal::NotReady) };
                next.attempt += 1;
                next.state = State::Leased(lease);
                None
            }
            Event::Renew { token, deadline } => {
                next.live_lease(&token)?.deadline = deadline;
                None
            }
            Event::Expire { token } => {
                next.live_lease(&token)?;
                next.end_attempt(Outcome::InfrastructureError, policy, now)
            }
            Event::Complete { token, outcome } => {
                next.live_lease(&token)?;
                next.end_attempt(outcome, policy, now)
            }
            Event::Cancel => next.cancel()?,
            Event::Retry => next.retry(now)?,
        };
        Ok((next, effect))
    }

    fn publish(&mut self, to: bool) -> Result<Option<Effect>, Refusal> {
        let State::Ready { published, .. } = &mut self.state else { return Err(Refusal::NotReady) };
        if *published == to {
            return Err(Refusal::Unchanged);
        }
        *published = to;
        Ok((!to).then_some(Effect::Publish))
    }

    /// Also where it was never marked as published: a crash before the mark leaves a message all the same.
    fn hand_back(&mut self, not_before: Millis) -> Result<Option<Effect>, Refusal> {
        let State::Ready { .. } = self.state else { return Err(Refusal::NotReady) };
        self.state = State::Ready { published: false, not_before };
        Ok(None)
    }

    fn live_lease(&mut self, token: &LeaseToken) -> Result<&mut Lease, Refusal> {
        match &mut self.state {
            State::Leased(lease) if lease.token == *token => Ok(lease),
            _ => Err(Refusal::Fenced),
        }
    }

    fn end_attempt(&mut self, outcome: Outcome, policy: Policy, now: Millis) -> Option<Effect> {
        let (again, not_before) = match outcome.blame() {
            Blame::None => (false, 0),
            Blame::User => {
                self.user_failures += 1;
                // The same commit would fail to build again; what changed meanwhile outside of it is a user's to say.
                (outcome != Outcome::BuildFailed && self.user_failures < policy.max_attempts, 0)
            }
            Blame::Infrastructure => {
                self.infrastructure_failures += 1;
                let pause = infrastructure_backoff_ms(self.infrastructure_failures);
                (self.infrastructure_failures < policy.max_infrastructure_failures, now + pause)
            }
        };
        // Once a user has cancelled, a failure is not tried again; a success that came first still counts.
        if self.cancel_requested && outcome != Outcome::Succeeded {
            return Some(self.finish(Outcome::Cancelled));
        }
        if !again {
            return Some(self.finish(outcome));
        }
        self.make_ready(not_before, now);
        Some(Effect::AttemptEnded(outcome))
    }

    fn finish(&mut self, outcome: Outcome) -> Effect {
        self.state = State::Done(outcome);
        self.cancel_requested = false;
        Effect::Finish(outcome)
    }

    fn make_ready(&mut self, not_before: Millis, now: Millis) {
        self.state = State::Ready { published: false, not_before };
        self.ready_at = now;
    }

    fn cancel(&mut self) -> Result<Option<Effect>, Refusal> {
        match &self.state {
            State::Done(_) => Err(Refusal::AlreadyDone),
            State::Ready { .. } => Ok(Some(self.finish(Outcome::Cancelled))),
            State::Leased(_) if self.cancel_requested => Err(Refusal::Unchanged),
            State::Leased(lease) => {
                let lease = lease.clone();
                self.cancel_requested = true;
                Ok(Some(Effect::Stop(lease)))
            }
        }
    }

    fn retry(&mut self, now: Millis) -> Result<Option<Effect>, Refusal> {
        let State::Done(_) = self.state else { return Err(Refusal::NotDone) };
        self.user_failures = 0;
        self.infrastructure_failures = 0;
        self.make_ready(0, now);
        Ok(Some(Effect::Publish))
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
