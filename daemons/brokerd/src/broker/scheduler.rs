//! Who gets a free slot: pure, so that fairness is tested without a runtime.
//!
//! A slot is *reserved* for a project before its queue is asked, so that no more messages are taken than
//! there are slots. A reservation becomes a busy slot of one worker, or is given back.

use std::collections::{BTreeMap, HashMap, HashSet};

use codering_core::{LeaseToken, ProjectName, WorkerName};

/// A worker's labels.
pub type Labels = HashMap<String, String>;

#[derive(Debug)]
struct Slots {
    session: u64,
    slots: u32,
    /// By the attempt in each, so that one that ended while the worker came back counts neither twice nor for ever.
    busy: HashSet<LeaseToken>,
    /// A user paused it.
    paused: bool,
    /// It drains, by its own word.
    draining: bool,
    labels: Labels,
}

impl Slots {
    fn free(&self) -> u32 {
        if self.paused || self.draining {
            return 0;
        }
        self.slots.saturating_sub(u32::try_from(self.busy.len()).unwrap_or(u32::MAX))
    }

    fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

#[derive(Debug, Default)]
struct Share {
    running: u32,
    reserved: u32,
    /// 0: no quota.
    quota: u32,
    /// Its queue may hold something.
    maybe_ready: bool,
    /// Messages that its queue has handed out.
    taken: u64,
    /// At its quota when last asked: the next slot that it frees is worth another question.
    full: bool,
    /// Counts the times it was rung, so that an empty answer to an older question does not hide a newer message.
    rung: u64,
}

/// What to ask of a project's queue. Give it back through [`Scheduler::took`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    /// Whose queue.
    pub project: ProjectName,
    /// At most this many.
    pub max: u32,
    rung: u64,
}

/// Whether there are workers with certain labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// With so many free slots in all.
    Free(u32),
    /// All their slots are busy, or they take nothing now.
    Busy,
    /// None is connected.
    Nobody,
}

/// Workers, slots and shares.
#[derive(Debug, Default)]
pub struct Scheduler {
    workers: HashMap<WorkerName, Slots>,
    shares: BTreeMap<ProjectName, Share>,
    /// Whose turn it is when several are equal.
    turn: usize,
}

/// No question asks for more, so that one project's batch does not hold up the others' turn.
const MAX_TAKE: u32 = 64;

impl Scheduler {
    /// A worker is there, with the attempts that it holds already counted in `busy`.
    pub fn join(
        &mut self,
        name: WorkerName,
        session: u64,
        slots: u32,
        busy: HashSet<LeaseToken>,
        paused: bool,
        labels: Labels,
    ) {
        self.workers.insert(name, Slots { session, slots, busy, paused, draining: false, labels });
    }

    /// A worker's stream ended; a newer session of the same worker stays.
    pub fn leave(&mut self, name: &WorkerName, session: u64) {
        if self.workers.get(name).is_some_and(|w| w.session == session) {
            self.workers.remove(name);
        }
    }

    /// A paused worker takes nothing new.
    pub fn set_paused(&mut self, name: &WorkerName, paused: bool) {
        if let Some(worker) = self.workers.get_mut(name) {
            worker.paused = paused;
        }
    }

    /// Neither does one that drains.
    pub fn set_draining(&mut self, name: &WorkerName, draining: bool) {
        if let Some(worker) = self.workers.get_mut(name) {
            worker.draining = draining;
        }
    }

    /// A project's bound on running slots; 0 is none.
    pub fn set_quota(&mut self, project: &ProjectName, running_slots: u32) {
        self.shares.entry(project.clone()).or_default().quota = running_slots;
    }

    /// Forgets a project.
    pub fn forget(&mut self, project: &ProjectName) {
        self.shares.remove(project);
    }

    /// The project's queue may hold something.
    pub fn ring(&mut self, project: &ProjectName) {
        let share = self.shares.entry(project.clone()).or_default();
        share.maybe_ready = true;
        share.rung += 1;
    }

    /// Any queue may hold something.
    pub fn ring_all(&mut self) {
        for share in self.shares.values_mut() {
            share.maybe_ready = true;
            share.rung += 1;
        }
    }

    /// A slot of the project is in use without having been placed here (a lease found after a restart).
    pub fn count_running(&mut self, project: &ProjectName) {
        self.shares.entry(project.clone()).or_default().running += 1;
    }

    fn free(&self) -> u32 {
        let open: u32 = self.workers.values().map(Slots::free).sum();
        open.saturating_sub(self.reserved())
    }

    /// Shares the free slots out, one at a time to whoever has least, and says what to ask for.
    pub fn plan(&mut self) -> Vec<Take> {
        let mut free = self.free();
        let mut asked: BTreeMap<ProjectName, u32> = BTreeMap::new();
        self.turn = self.turn.wrapping_add(1);
        while free > 0 {
            let mut eager: Vec<_> = self
                .shares
                .iter()
                .filter(|(name, s)| {
                    let used = s.running + s.reserved;
                    s.maybe_ready
                        && (s.quota == 0 || used < s.quota)
                        && asked.get(*name).copied().unwrap_or(0) < MAX_TAKE
                })
                .map(|(name, s)| (s.running + s.reserved, name.clone()))
                .collect();
            let Some(least) = eager.iter().map(|(used, _)| *used).min() else { break };
            eager.retain(|(used, _)| *used == least);
            let (_, project) = eager.swap_remove(self.turn % eager.len());
            if let Some(share) = self.shares.get_mut(&project) {
                share.reserved += 1;
            }
            *asked.entry(project).or_default() += 1;
            free -= 1;
        }
        asked
            .into_iter()
            .map(|(project, max)| {
                let rung = self.shares.get(&project).map_or(0, |s| s.rung);
                Take { project, max, rung }
            })
            .collect()
    }

    /// What a question brought: the reservations beyond `got` are given back, and a queue that had less than was
    /// asked counts as empty until it is rung again.
    pub fn took(&mut self, take: &Take, got: u32) {
        if let Some(share) = self.shares.get_mut(&take.project) {
            share.reserved = share.reserved.saturating_sub(take.max.saturating_sub(got));
            share.taken += u64::from(got);
            if got < take.max && share.rung == take.rung {
                share.maybe_ready = false;
            }
        }
    }

    /// The project is at its quota: what waits on its queue waits until something of it is done.
    pub fn is_full(&mut self, project: &ProjectName) {
        self.shares.entry(project.clone()).or_default().full = true;
    }

    /// Whether any worker has `labels`, and room.
    pub fn matching(&self, labels: &BTreeMap<String, String>) -> Match {
        let mut fitting = self.workers.values().filter(|w| w.has(labels)).peekable();
        if fitting.peek().is_none() {
            return Match::Nobody;
        }
        match fitting.map(Slots::free).sum() {
            0 => Match::Busy,
            free => Match::Free(free),
        }
    }

    /// Turns a reservation into a busy slot of the worker with most room among those that have `labels`.
    pub fn place(
        &mut self,
        project: &ProjectName,
        labels: &BTreeMap<String, String>,
        token: &LeaseToken,
    ) -> Option<(WorkerName, u64)> {
        let (name, worker) = self
            .workers
            .iter_mut()
            .filter(|(_, w)| w.free() > 0 && w.has(labels))
            .max_by_key(|(name, w)| (w.free(), std::cmp::Reverse((*name).clone())))?;
        worker.busy.insert(token.clone());
        let placed = (name.clone(), worker.session);
        if let Some(share) = self.shares.get_mut(project) {
            share.reserved = share.reserved.saturating_sub(1);
            share.running += 1;
        }
        Some(placed)
    }

    /// The lease could not be recorded: a busy slot becomes a reservation again.
    pub fn unplace(&mut self, project: &ProjectName, worker: &WorkerName, token: &LeaseToken) {
        self.release(project, worker, token);
        if let Some(share) = self.shares.get_mut(project) {
            share.reserved += 1;
        }
    }

    /// How many messages a project's queue has handed out, since this process began.
    pub fn taken(&self, project: &ProjectName) -> u64 {
        self.shares.get(project).map_or(0, |s| s.taken)
    }

    /// Slots between a question and a lease.
    pub fn reserved(&self) -> u32 {
        self.shares.values().map(|s| s.reserved).sum()
    }

    /// A reservation is not needed after all.
    pub fn unreserve(&mut self, project: &ProjectName) {
        if let Some(share) = self.shares.get_mut(project) {
            share.reserved = share.reserved.saturating_sub(1);
        }
    }

    /// An attempt is over.
    pub fn release(&mut self, project: &ProjectName, worker: &WorkerName, token: &LeaseToken) {
        if let Some(share) = self.shares.get_mut(project) {
            share.running = share.running.saturating_sub(1);
            if std::mem::take(&mut share.full) {
                share.maybe_ready = true;
                share.rung += 1;
            }
        }
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.busy.remove(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(name: &str) -> ProjectName {
        ProjectName::new(name).expect("valid")
    }

    fn worker(name: &str) -> WorkerName {
        WorkerName::new(name).expect("valid")
    }

    fn token(n: u8) -> LeaseToken {
        LeaseToken::from_bytes([n; 16])
    }

    fn with(slots: u32, projects: &[&str]) -> Scheduler {
        let mut s = Scheduler::default();
        s.join(worker("w1"), 1, slots, HashSet::new(), false, Labels::new());
        for name in projects {
            s.ring(&project(name));
        }
        s
    }

    #[test]
    fn no_more_is_taken_than_there_are_free_slots() {
        let mut s = with(4, &["a", "b", "c"]);
        assert_eq!(s.plan().iter().map(|t| t.max).sum::<u32>(), 4);
        assert_eq!(s.plan(), [], "all slots are reserved");
    }

    #[test]
    fn a_project_with_a_backlog_leaves_the_others_their_share() {
        let mut s = with(6, &["big"]);
        for take in s.plan() {
            s.took(&take, take.max);
            for n in 0..take.max as u8 {
                assert!(s.place(&project("big"), &BTreeMap::new(), &token(n)).is_some());
            }
        }
        s.ring(&project("small"));
        s.release(&project("big"), &worker("w1"), &token(0));
        s.release(&project("big"), &worker("w1"), &token(1));
        let takes = s.plan();
        assert_eq!(takes.len(), 1);
        assert_eq!((takes[0].project.as_str(), takes[0].max), ("small", 2));
    }

    #[test]
    fn an_empty_answer_is_believed_unless_the_bell_rang_meanwhile() {
        let mut s = with(2, &["a"]);
        let take = s.plan().remove(0);
        s.took(&take, 0);
        assert_eq!(s.plan(), [], "the queue was empty");
        s.ring(&project("a"));
        let take = s.plan().remove(0);
        s.ring(&project("a"));
        s.took(&take, 0);
        assert_eq!(s.plan().len(), 1, "a message came after the question was asked");
    }

    #[test]
    fn a_quota_on_slots_holds() {
        let mut s = with(8, &["a"]);
        s.set_quota(&project("a"), 3);
        assert_eq!(s.plan()[0].max, 3);
    }

    #[test]
    fn a_paused_worker_gets_nothing_and_labels_choose() {
        let mut s = with(1, &["a"]);
        s.set_paused(&worker("w1"), true);
        let gpu = Labels::from([("gpu".to_owned(), "yes".to_owned())]);
        s.join(worker("w2"), 2, 1, HashSet::new(), false, gpu);
        let want = BTreeMap::from([("gpu".to_owned(), "yes".to_owned())]);
        s.plan();
        assert_eq!(s.place(&project("a"), &want, &token(1)).map(|p| p.0), Some(worker("w2")));
        assert_eq!(s.place(&project("a"), &BTreeMap::new(), &token(2)), None);
    }

    #[test]
    fn whether_labels_can_be_met_now_later_or_not_at_all_is_known() {
        let mut s = with(1, &["a"]);
        let want = BTreeMap::from([("gpu".to_owned(), "yes".to_owned())]);
        assert_eq!(s.matching(&want), Match::Nobody);
        assert_eq!(s.matching(&BTreeMap::new()), Match::Free(1));
        let gpu = Labels::from([("gpu".to_owned(), "yes".to_owned())]);
        s.join(worker("w2"), 2, 2, HashSet::new(), false, gpu);
        assert_eq!(s.matching(&want), Match::Free(2));
        s.set_paused(&worker("w2"), true);
        assert_eq!(s.matching(&want), Match::Busy);
    }

    #[test]
    fn a_project_at_its_quota_is_asked_again_when_something_of_it_is_done() {
        let mut s = with(2, &["a"]);
        let take = s.plan().remove(0);
        s.took(&take, 1);
        s.place(&project("a"), &BTreeMap::new(), &token(1));
        s.is_full(&project("a"));
        assert_eq!(s.plan(), []);
        s.release(&project("a"), &worker("w1"), &token(1));
        assert_eq!(s.plan().len(), 1);
    }

    #[test]
    fn a_stream_that_ends_late_does_not_remove_its_successor() {
        let mut s = with(1, &["a"]);
        s.join(worker("w1"), 2, 1, HashSet::new(), false, Labels::new());
        s.leave(&worker("w1"), 1);
        assert_eq!(s.plan().len(), 1);
    }

    #[test]
    fn an_attempt_that_began_on_a_former_stream_frees_no_slot_of_the_new_one() {
        let mut s = with(2, &["a"]);
        s.plan();
        assert!(s.place(&project("a"), &BTreeMap::new(), &token(1)).is_some());
        // The worker comes back holding another one; the first was never told to it, and ends.
        s.join(worker("w1"), 2, 2, HashSet::from([token(9)]), false, Labels::new());
        s.release(&project("a"), &worker("w1"), &token(1));
        s.ring(&project("a"));
        s.shares.values_mut().for_each(|share| share.reserved = 0);
        assert_eq!(s.plan().iter().map(|t| t.max).sum::<u32>(), 1, "one of two slots is busy");
        s.release(&project("a"), &worker("w1"), &token(9));
        assert_eq!(s.plan().iter().map(|t| t.max).sum::<u32>(), 1, "and now the other is free");
    }
}
