//! The attempts that this worker holds, each with its lease clock and what could stop it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use codering_core::{JobId, LeaseToken, ProjectName, TaskId};
use codering_proto::v1;
use tokio::{sync::watch, time::Instant};

use crate::output::Capture;

/// Why an attempt is to end before its command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A user cancelled it.
    Cancelled,
    /// The broker gave it up: nothing that it produces counts any more.
    Fenced,
    /// The lease could not be renewed in time.
    LeaseLost,
    /// This process ends and leaves nothing behind.
    Shutdown,
    /// This process ends; a container that runs is left to the next one.
    Detach,
}

/// One attempt.
#[derive(Debug)]
pub struct Held {
    /// The fencing token.
    pub token: LeaseToken,
    /// The tenant.
    pub project: ProjectName,
    /// The job.
    pub job: JobId,
    /// The task.
    pub task: TaskId,
    /// Which try.
    pub attempt: u32,
    /// What it wrote.
    pub capture: Capture,
    lease: Duration,
    state: Mutex<State>,
    deadline: watch::Sender<Instant>,
    stop: watch::Sender<Option<Stop>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    phase: &'static str,
    container: String,
    image: String,
    fed: bool,
}

impl Held {
    /// An attempt whose lease runs until `deadline`.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        token: LeaseToken,
        project: ProjectName,
        job: JobId,
        task: TaskId,
        attempt: u32,
        output_bytes: u64,
        lease: Duration,
        deadline: Instant,
    ) -> Arc<Self> {
        Arc::new(Self {
            token,
            project,
            job,
            task,
            attempt,
            capture: Capture::new(output_bytes),
            lease,
            state: Mutex::default(),
            deadline: watch::Sender::new(deadline),
            stop: watch::Sender::new(None),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It goes on to its next phase: `checkout`, `build`, `start`, `run`.
    pub fn enter(&self, phase: &'static str) {
        self.state().phase = phase;
    }

    /// Where it runs.
    pub fn runs_in(&self, container: &str, image: &str) {
        let mut state = self.state();
        container.clone_into(&mut state.container);
        image.clone_into(&mut state.image);
    }

    /// Its standard input is written to the end, or it has none.
    pub fn fed(&self) {
        self.state().fed = true;
    }

    /// Whether a later process could take its container up.
    pub fn is_fed(&self) -> bool {
        self.state().fed
    }

    /// The container, once there is one.
    pub fn container(&self) -> String {
        self.state().container.clone()
    }

    /// For the broker.
    pub fn progress(&self) -> v1::Progress {
        let state = self.state();
        v1::Progress {
            token: self.token.to_string(),
            phase: state.phase.to_owned(),
            container_id: state.container.clone(),
            image: state.image.clone(),
        }
    }

    /// Asks it to end; the first reason stands.
    pub fn stop(&self, why: Stop) {
        self.stop.send_if_modified(|stop| match stop {
            Some(_) => false,
            None => {
                *stop = Some(why);
                true
            }
        });
    }

    /// Resolves when it is to end, the end of its lease included.
    pub async fn stopped(&self) -> Stop {
        let mut asked = self.stop.subscribe();
        let mut deadline = self.deadline.subscribe();
        loop {
            if let Some(why) = *asked.borrow_and_update() {
                return why;
            }
            let until = self.lets_go_at(*deadline.borrow_and_update());
            tokio::select! {
                // Both senders live in self.
                _ = asked.changed() => {}
                _ = deadline.changed() => {}
                () = tokio::time::sleep_until(until) => {
                    tracing::warn!(job = %self.job, task = %self.task, "the lease could not be renewed: stopping the attempt");
                    self.stop(Stop::LeaseLost);
                }
            }
        }
    }

    /// The lease was renewed by a heartbeat sent at `sent`, or counts from then.
    pub fn renewed(&self, sent: Instant, lease: Duration) {
        let until = sent + lease;
        self.deadline.send_if_modified(|deadline| {
            let later = until > *deadline;
            *deadline = (*deadline).max(until);
            later
        });
    }

    /// When it is stopped unless it is renewed before: followed by whoever is about to start it.
    pub fn lease(&self) -> LeaseEnd {
        LeaseEnd { deadline: self.deadline.subscribe(), margin: self.margin() }
    }

    /// When the lease ends.
    pub fn deadline(&self) -> Instant {
        *self.deadline.borrow()
    }

    /// A container takes a while to die: it is stopped that much before.
    fn lets_go_at(&self, deadline: Instant) -> Instant {
        deadline.checked_sub(self.margin()).unwrap_or(deadline)
    }

    fn margin(&self) -> Duration {
        (self.lease / 5).min(Duration::from_secs(5))
    }
}

/// How long an attempt may still run, as its renewals move it.
#[derive(Debug, Clone)]
pub struct LeaseEnd {
    deadline: watch::Receiver<Instant>,
    margin: Duration,
}

impl LeaseEnd {
    /// One that ends at `deadline`, whatever happens.
    pub fn at(deadline: Instant) -> Self {
        Self { deadline: watch::Sender::new(deadline).subscribe(), margin: Duration::ZERO }
    }

    /// Whether something that was started now would be stopped at once.
    pub fn is_over(&self) -> bool {
        Instant::now() + self.margin >= *self.deadline.borrow()
    }
}

/// All of them.
#[derive(Debug)]
pub struct Attempts {
    held: Mutex<HashMap<LeaseToken, Arc<Held>>>,
    changed: watch::Sender<u64>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { held: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Attempts {
    fn held(&self) -> MutexGuard<'_, HashMap<LeaseToken, Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one in; `false` when it is there already.
    pub fn insert(&self, held: Arc<Held>) -> bool {
        let new = {
            let mut all = self.held();
            let new = !all.contains_key(&held.token);
            if new {
                all.insert(held.token.clone(), held);
            }
            new
        };
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
        new
    }

    /// Lets one go.
    pub fn remove(&self, token: &LeaseToken) {
        self.held().remove(token);
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// One of them.
    pub fn get(&self, token: &LeaseToken) -> Option<Arc<Held>> {
        self.held().get(token).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Held>> {
        self.held().values().cloned().collect()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.held().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.held().is_empty()
    }

    /// Tells of comings and goings.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Resolves when there is none.
    pub async fn gone(&self) {
        let mut changed = self.changed();
        while !self.is_empty() {
            // The sender lives in self.
            let _ = changed.changed().await;
        }
    }

    /// Asks all to end.
    pub fn stop_all(&self, why: Stop) {
        for held in self.all() {
            held.stop(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(lease: Duration) -> Arc<Held> {
        Held::new(
            LeaseToken::from_bytes([7; 16]),
            "p".parse().expect("valid"),
            JobId::at(1_763_722_560_000, 1),
            "t".parse().expect("valid"),
            1,
            10,
            lease,
            Instant::now() + lease,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_is_not_renewed_stops_before_its_lease_ends() {
        let held = held(Duration::from_secs(30));
        assert_eq!(held.stopped().await, Stop::LeaseLost);
        assert!(Instant::now() < held.deadline(), "stopped too late");
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_moves_the_end_and_an_older_one_does_not_move_it_back() {
        let lease = Duration::from_secs(30);
        let held = held(lease);
        let began = Instant::now();
        tokio::time::advance(Duration::from_secs(10)).await;
        held.renewed(Instant::now(), lease);
        held.renewed(began, lease);
        assert_eq!(held.deadline(), began + Duration::from_secs(40));
        assert_eq!(held.stopped().await, Stop::LeaseLost);
        assert_eq!(Instant::now(), began + Duration::from_secs(35));
    }

    #[tokio::test(start_paused = true)]
    async fn what_would_be_stopped_at_once_is_not_started_and_a_renewal_lets_it() {
        let held = held(Duration::from_secs(30));
        let lease = held.lease();
        assert!(!lease.is_over());
        tokio::time::advance(Duration::from_secs(25)).await;
        assert!(lease.is_over(), "a container takes a while to die");
        held.renewed(Instant::now(), Duration::from_secs(30));
        assert!(!lease.is_over());
    }

    #[tokio::test]
    async fn the_first_reason_to_stop_stands() {
        let held = held(Duration::from_secs(30));
        held.stop(Stop::Cancelled);
        held.stop(Stop::Fenced);
        assert_eq!(held.stopped().await, Stop::Cancelled);
    }
}
