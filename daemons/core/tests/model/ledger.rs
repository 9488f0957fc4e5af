//! The ledger as the protocol needs it: compare-and-set on a row, and what the rules make of every change that it takes.
//! What was counted and recorded is written down here a second time, from the events alone, and compared.

use std::collections::{BTreeMap, BTreeSet};

use codering_core::{
    Blame, LeaseToken, Outcome,
    job::TaskCounts,
    task::{Event, MAX_INFRASTRUCTURE_FAILURES, Policy, Progress, State},
};

pub type Key = u8;

pub const POLICY: Policy =
    Policy { max_attempts: 3, max_infrastructure_failures: MAX_INFRASTRUCTURE_FAILURES };

/// A row: the task, and its result once there is one.
#[derive(Debug, Clone)]
pub struct Row {
    pub committed: bool,
    pub progress: Progress,
    pub result: Option<Recorded>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub attempt: u32,
    pub outcome: Outcome,
    pub published: bool,
}

/// What really happened to a task, kept beside the row.
#[derive(Debug, Default)]
pub struct Story {
    /// Grows with each retry.
    run: u32,
    leases: u32,
    ended: Vec<(u32, Outcome)>,
    /// The run, the attempt and the outcome of every result that was ever recorded.
    pub results: Vec<(u32, u32, Outcome)>,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub rows: BTreeMap<Key, Row>,
    pub stories: BTreeMap<Key, Story>,
    tokens: BTreeSet<LeaseToken>,
}

impl Ledger {
    pub fn read(&self, key: Key) -> Option<&Row> {
        self.rows.get(&key).filter(|row| row.committed)
    }

    /// Writes `next`, which is what `event` makes of it, if the row is still at `expected`.
    pub fn swap(&mut self, key: Key, expected: &Progress, next: &Progress, event: &Event) -> bool {
        let Some(row) = self.rows.get_mut(&key).filter(|row| row.progress.version == expected.version) else {
            return false;
        };
        let before = std::mem::replace(&mut row.progress, next.clone());
        assert_eq!(next.version, before.version + 1, "invariant 2: a change skips no version");
        match (&before.state, &next.state) {
            (State::Done(_), State::Done(_)) => panic!("invariant 2: a done task {key} is done again"),
            (_, State::Done(outcome)) => {
                row.result = Some(Recorded { attempt: next.attempt, outcome: *outcome, published: false });
            }
            (State::Done(_), _) => row.result = None,
            _ => {}
        }
        self.stories.entry(key).or_default().check(key, &before, next, event, &mut self.tokens);
        true
    }

    pub fn counts(&self) -> TaskCounts {
        let mut counts = TaskCounts::default();
        for row in self.rows.values().filter(|row| row.committed) {
            counts.add(&row.progress.state, 1);
        }
        counts
    }
}

impl Story {
    fn check(
        &mut self,
        key: Key,
        before: &Progress,
        next: &Progress,
        event: &Event,
        tokens: &mut BTreeSet<LeaseToken>,
    ) {
        match event {
            Event::Lease(lease) => {
                assert!(matches!(before.state, State::Ready { .. }), "invariant 3: task {key} leased twice");
                assert!(tokens.insert(lease.token.clone()), "invariant 2: a token was used before");
                self.leases += 1;
            }
            Event::Complete { token, outcome } => {
                assert_eq!(
                    before.lease().map(|l| &l.token),
                    Some(token),
                    "invariant 2: recorded without the live token"
                );
                self.ended.push((self.run, *outcome));
            }
            Event::Expire { token } => {
                assert_eq!(
                    before.lease().map(|l| &l.token),
                    Some(token),
                    "invariant 3: another's lease ended"
                );
                self.ended.push((self.run, Outcome::InfrastructureError));
            }
            Event::Renew { token, .. } => {
                assert_eq!(
                    before.lease().map(|l| &l.token),
                    Some(token),
                    "invariant 3: another's lease was renewed"
                );
            }
            Event::Retry => self.run += 1,
            _ => {}
        }
        let of = |blame| {
            let ended =
                self.ended.iter().filter(|(run, outcome)| *run == self.run && outcome.blame() == blame);
            u32::try_from(ended.count()).unwrap()
        };
        let (users, ours) = (of(Blame::User), of(Blame::Infrastructure));
        assert_eq!(next.attempt, self.leases, "invariant 4: an attempt of task {key} was not counted");
        assert_eq!(next.user_failures, users, "invariant 4: the user's failures of task {key}");
        assert_eq!(next.infrastructure_failures, ours, "invariant 4: our failures of task {key}");
        assert!(
            users <= POLICY.max_attempts && ours <= POLICY.max_infrastructure_failures,
            "invariant 4: no bound"
        );
        if let State::Done(outcome) = next.state {
            assert!(
                self.results.iter().all(|(run, ..)| *run != self.run),
                "invariant 2: task {key} has two results of one run"
            );
            self.results.push((self.run, next.attempt, outcome));
            match outcome.blame() {
                // One commit fails to build once.
                Blame::User if outcome == Outcome::BuildFailed => {}
                Blame::User => {
                    assert_eq!(users, POLICY.max_attempts, "invariant 4: task {key} was given up too early")
                }
                Blame::Infrastructure => assert_eq!(
                    ours, POLICY.max_infrastructure_failures,
                    "invariant 4: task {key} was given up too early"
                ),
                Blame::None => {}
            }
        } else {
            let unbuilt = self.ended.contains(&(self.run, Outcome::BuildFailed));
            let given_up =
                unbuilt || users == POLICY.max_attempts || ours == POLICY.max_infrastructure_failures;
            assert!(!given_up, "invariant 4: task {key} goes on beyond its bound");
        }
    }
}
