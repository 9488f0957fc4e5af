//! What its tasks make of a job. Counters are derived from the tasks, never authoritative.

use serde::{Deserialize, Serialize};

use crate::{Outcome, task::State};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// No task was leased yet.
    Queued,
    /// Some were.
    Running,
    /// A user paused it: what runs goes on, nothing new is leased.
    Paused,
    /// All tasks are done; the reduce step is not.
    Reducing,
    /// All succeeded, the reduce step too.
    Succeeded,
    /// All are done, not all succeeded.
    Failed,
    /// A user cancelled it, and nothing of it runs any more.
    Cancelled,
}

impl JobState {
    /// Whether it can change only by a retry or a new reduce.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Reducing => "reducing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The reverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        use JobState::*;
        [Queued, Running, Paused, Reducing, Succeeded, Failed, Cancelled]
            .into_iter()
            .find(|s| s.as_str() == text)
    }
}

/// A job's tasks by where they stand; the reduce step is not among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCounts {
    /// All.
    pub total: u64,
    /// Ready.
    pub queued: u64,
    /// Leased.
    pub running: u64,
    /// Done and succeeded.
    pub succeeded: u64,
    /// Done by any other outcome but cancelled.
    pub failed: u64,
    /// Done and cancelled.
    pub cancelled: u64,
    /// Attempts after the first.
    pub retried: u64,
}

impl TaskCounts {
    /// Counts `n` tasks in `state`.
    pub fn add(&mut self, state: &State, n: u64) {
        *self.bucket(state) += n;
        self.total += n;
    }

    fn bucket(&mut self, state: &State) -> &mut u64 {
        match state {
            State::Ready { .. } => &mut self.queued,
            State::Leased(_) => &mut self.running,
            State::Done(Outcome::Succeeded) => &mut self.succeeded,
            State::Done(Outcome::Cancelled) => &mut self.cancelled,
            State::Done(_) => &mut self.failed,
        }
    }

    /// Tasks whose result is recorded.
    pub fn done(&self) -> u64 {
        self.succeeded + self.failed + self.cancelled
    }
}

/// Counters that are told of changes after they were stored, each by whoever made it: two changes of one task may come in
/// the wrong order. A counter is then below zero until the other one has come, and right from then on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    shown: TaskCounts,
    /// What the counters, which do not go below zero, could not take.
    owed: TaskCounts,
}

impl From<TaskCounts> for Tally {
    fn from(shown: TaskCounts) -> Self {
        Self { shown, owed: TaskCounts::default() }
    }
}

impl Tally {
    /// Counts `n` tasks in `state`.
    pub fn add(&mut self, state: &State, n: u64) {
        self.shown.total += n;
        self.come(state, n);
    }

    /// A task moved.
    pub fn moved(&mut self, from: &State, to: &State) {
        match self.shown.bucket(from) {
            0 => *self.owed.bucket(from) += 1,
            there => *there -= 1,
        }
        self.come(to, 1);
    }

    /// An attempt after the first began.
    pub fn retried(&mut self) {
        self.shown.retried += 1;
    }

    fn come(&mut self, state: &State, n: u64) {
        let owed = self.owed.bucket(state);
        let paid = n.min(*owed);
        *owed -= paid;
        *self.shown.bucket(state) += n - paid;
    }

    /// The counters as they are now.
    pub fn counts(&self) -> TaskCounts {
        self.shown
    }
}

/// What else decides a job's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFlags {
    /// A user paused it.
    pub paused: bool,
    /// A user cancelled it.
    pub cancelled: bool,
    /// It has a reduce step.
    pub reduces: bool,
    /// The newest reduce step, once there is one: `None` inside while it is not done.
    pub reduced: Option<Option<Outcome>>,
    /// The project's job that adopts raw messages.
    pub open: bool,
}

/// The state that follows from the tasks.
pub fn job_state(counts: &TaskCounts, flags: JobFlags) -> JobState {
    let unfinished = counts.total - counts.done().min(counts.total);
    if unfinished > 0 {
        return match () {
            () if flags.paused && !flags.cancelled => JobState::Paused,
            () if counts.running > 0 || counts.done() > 0 => JobState::Running,
            () => JobState::Queued,
        };
    }
    if let Some(None) = flags.reduced {
        return JobState::Reducing;
    }
    if flags.cancelled {
        return JobState::Cancelled;
    }
    if let Some(Some(outcome)) = flags.reduced {
        return match (outcome, counts.failed + counts.cancelled) {
            (Outcome::Succeeded, 0) => JobState::Succeeded,
            (Outcome::Cancelled, _) => JobState::Cancelled,
            _ => JobState::Failed,
        };
    }
    if counts.failed + counts.cancelled > 0 {
        return if counts.failed == 0 && counts.succeeded == 0 {
            JobState::Cancelled
        } else {
            JobState::Failed
        };
    }
    if flags.reduces { JobState::Reducing } else { JobState::Succeeded }
}

/// Whether the reduce step is due: all tasks succeeded and none has been made for them.
pub fn reduce_is_due(counts: &TaskCounts, flags: JobFlags) -> bool {
    flags.reduces
        && flags.reduced.is_none()
        && !flags.cancelled
        && counts.total > 0
        && counts.succeeded == counts.total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(queued: u64, running: u64, succeeded: u64, failed: u64) -> TaskCounts {
        TaskCounts {
            total: queued + running + succeeded + failed,
            queued,
            running,
            succeeded,
            failed,
            ..Default::default()
        }
    }

    #[test]
    fn a_job_with_a_reduce_step_succeeds_only_when_that_has() {
        let mut flags = JobFlags { reduces: true, ..Default::default() };
        let all = counts(0, 0, 3, 0);
        assert!(reduce_is_due(&all, flags));
        assert_eq!(job_state(&all, flags), JobState::Reducing);
        flags.reduced = Some(None);
        assert!(!reduce_is_due(&all, flags));
        assert_eq!(job_state(&all, flags), JobState::Reducing);
        flags.reduced = Some(Some(Outcome::Succeeded));
        assert_eq!(job_state(&all, flags), JobState::Succeeded);
        flags.reduced = Some(Some(Outcome::Failed));
        assert_eq!(job_state(&all, flags), JobState::Failed);
    }

    #[test]
    fn a_failed_task_keeps_the_reduce_step_from_running() {
        let flags = JobFlags { reduces: true, ..Default::default() };
        assert!(!reduce_is_due(&counts(0, 0, 2, 1), flags));
        assert_eq!(job_state(&counts(0, 0, 2, 1), flags), JobState::Failed);
    }

    #[test]
    fn a_cancelled_job_is_cancelled_once_nothing_of_it_runs() {
        let flags = JobFlags { cancelled: true, ..Default::default() };
        let mut some = counts(0, 1, 1, 0);
        assert_eq!(job_state(&some, flags), JobState::Running);
        some = TaskCounts { cancelled: 1, ..counts(0, 0, 1, 0) };
        some.total = 2;
        assert_eq!(job_state(&some, flags), JobState::Cancelled);
    }

    #[test]
    fn moving_a_task_keeps_the_total() {
        let mut tally = Tally::from(counts(2, 0, 0, 0));
        let ready = State::Ready { published: true, not_before: 0 };
        tally.moved(&ready, &State::Done(Outcome::OutOfMemory));
        let c = tally.counts();
        assert_eq!((c.total, c.queued, c.failed), (2, 1, 1));
    }

    #[test]
    fn changes_that_are_told_in_the_wrong_order_come_to_the_same() {
        let ready = State::Ready { published: false, not_before: 0 };
        let (failed, good) = (State::Done(Outcome::Failed), State::Done(Outcome::Succeeded));
        let mut tally = Tally::from(counts(1, 0, 0, 0));
        // A retry is told before the failure that it followed.
        for (from, to) in [(&failed, &ready), (&ready, &failed), (&ready, &good)] {
            tally.moved(from, to);
        }
        assert_eq!(tally.counts(), counts(0, 0, 1, 0));
    }
}
