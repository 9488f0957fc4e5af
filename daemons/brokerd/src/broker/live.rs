//! What the broker holds in memory of jobs that are not finished: their row, counters that are kept in
//! step with every committed change, and who watches. Bounded by `max_unfinished_jobs`, whatever their tasks.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use codering_core::{
    JobId, Outcome, TaskId,
    job::{JobFlags, JobState, Tally, job_state},
    task::State,
};
use tokio::sync::watch;

use crate::ledger;

/// Notes for watchers beyond this are dropped, oldest first.
const MAX_NOTES: usize = 32;
/// The rate is that of this window.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// A job in memory.
#[derive(Debug)]
pub struct LiveJob {
    state: Mutex<Inner>,
    /// Held while the row is written, so that an older row never overwrites a newer one.
    pub(super) writing: tokio::sync::Mutex<()>,
    /// Verbs that took it up again and are not done with its tasks; it does not end before them.
    awake: AtomicUsize,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    job: ledger::Job,
    /// Where the row's counters come from.
    tally: Tally,
    /// The reduce step that counts: `None` outside while there is none, inside while it is not done.
    reduced: Option<Option<Outcome>>,
    notes: VecDeque<(u64, String)>,
    notes_made: u64,
    finishes: VecDeque<(Instant, u64)>,
    last_message: Instant,
}

impl LiveJob {
    /// From the ledger's row, with its counters derived anew.
    pub fn new(job: ledger::Job, reduced: Option<Option<Outcome>>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(Inner {
                tally: job.counts.into(),
                job,
                reduced,
                notes: VecDeque::new(),
                notes_made: 0,
                finishes: VecDeque::new(),
                last_message: Instant::now(),
            }),
            writing: tokio::sync::Mutex::new(()),
            awake: AtomicUsize::new(0),
            changed: watch::Sender::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps it from ending until the answer is dropped. Call it with `writing` held.
    pub(super) fn keep_awake(self: &Arc<Self>) -> Awake {
        self.awake.fetch_add(1, Ordering::SeqCst);
        Awake(self.clone())
    }

    /// Whether a verb is not done with it. Only with `writing` held does the answer last.
    pub(super) fn is_awake(&self) -> bool {
        self.awake_verbs() > 0
    }

    /// How many verbs are not done with it.
    pub(super) fn awake_verbs(&self) -> usize {
        self.awake.load(Ordering::SeqCst)
    }

    /// Whether its reduce step is made and not done.
    pub(super) fn is_being_reduced(&self) -> bool {
        self.lock().reduced == Some(None)
    }

    /// The row as it is now.
    pub fn job(&self) -> ledger::Job {
        self.lock().job.clone()
    }

    /// Reads without cloning the row.
    pub fn with<T>(&self, read: impl FnOnce(&ledger::Job) -> T) -> T {
        read(&self.lock().job)
    }

    /// Changes the row and derives its state anew.
    pub fn update<T>(&self, change: impl FnOnce(&mut ledger::Job) -> T) -> T {
        let mut inner = self.lock();
        let answer = change(&mut inner.job);
        inner.derive();
        drop(inner);
        self.notify();
        answer
    }

    /// A task of it moved, durably.
    pub fn moved(&self, task: &ledger::Task, from: &State, to: &State, retried: bool) {
        let mut inner = self.lock();
        if task.reduce {
            // An older step decides nothing any more.
            let counts = task.key.task == TaskId::reduce(inner.job.reduced_run);
            if let (true, State::Done(outcome)) = (counts, to) {
                inner.reduced = Some(Some(*outcome));
            }
        } else {
            inner.tally.moved(from, to);
            if retried {
                inner.tally.retried();
            }
            if matches!(to, State::Done(_)) {
                inner.count_finish();
                // It gets on: what held it up is over.
                inner.job.message.clear();
            }
        }
        inner.derive();
        drop(inner);
        self.notify();
    }

    /// A task was added to it (a raw message).
    pub fn added(&self, state: &State) {
        let mut inner = self.lock();
        inner.tally.add(state, 1);
        inner.last_message = Instant::now();
        inner.derive();
        drop(inner);
        self.notify();
    }

    /// Its reduce step starts over, or stops counting.
    pub fn set_reduced(&self, reduced: Option<Option<Outcome>>) {
        let mut inner = self.lock();
        inner.reduced = reduced;
        inner.derive();
        drop(inner);
        self.notify();
    }

    /// The flags that decide its state.
    pub fn flags(&self) -> JobFlags {
        self.lock().flags()
    }

    /// How long ago a raw message came.
    pub fn idle(&self) -> Duration {
        self.lock().last_message.elapsed()
    }

    /// Something that a person who watches would want to know.
    pub fn note(&self, text: String) {
        let mut inner = self.lock();
        inner.notes_made += 1;
        let number = inner.notes_made;
        inner.notes.push_back((number, text));
        if inner.notes.len() > MAX_NOTES {
            inner.notes.pop_front();
        }
        drop(inner);
        self.notify();
    }

    /// Why its tasks are tried again through no fault of their own. It is the job's message until one of them is done,
    /// and said once to who watches, however many tasks meet it.
    pub fn trouble(&self, why: &str) {
        let known = std::mem::replace(&mut self.lock().job.message, why.to_owned()) == why;
        if !known {
            self.note(format!("tried again: {why}"));
        }
    }

    /// Notes after the `seen`th, and how many were made in all.
    pub fn notes_after(&self, seen: u64) -> (Vec<String>, u64) {
        let inner = self.lock();
        let new = inner.notes.iter().filter(|(n, _)| *n > seen).map(|(_, text)| text.clone()).collect();
        (new, inner.notes_made)
    }

    /// Results recorded per second, lately.
    pub fn rate(&self) -> f64 {
        let mut inner = self.lock();
        inner.forget_old_finishes();
        let Some((first, _)) = inner.finishes.front() else { return 0.0 };
        let span = first.elapsed().as_secs_f64().max(1.0);
        inner.finishes.iter().map(|(_, n)| *n).sum::<u64>() as f64 / span
    }

    /// Changes whenever something of it does.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn notify(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// A job that a verb has taken up again: finished by all that its tasks say, until the verb has changed one.
pub(super) struct Awake(Arc<LiveJob>);

impl Awake {
    /// The verb is done: what follows may follow.
    pub fn done(self) -> Arc<LiveJob> {
        self.0.clone()
    }
}

impl std::ops::Deref for Awake {
    type Target = LiveJob;
    fn deref(&self) -> &LiveJob {
        &self.0
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.awake.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Inner {
    fn flags(&self) -> JobFlags {
        JobFlags {
            paused: self.job.paused,
            cancelled: self.job.cancelled,
            reduces: self.job.reduce.is_some(),
            reduced: self.reduced,
            open: self.job.open,
        }
    }

    fn derive(&mut self) {
        self.job.counts = self.tally.counts();
        self.job.state = job_state(&self.job.counts, self.flags());
    }

    fn count_finish(&mut self) {
        let now = Instant::now();
        match self.finishes.back_mut() {
            Some((at, n)) if now.duration_since(*at) < Duration::from_millis(200) => *n += 1,
            _ => self.finishes.push_back((now, 1)),
        }
        self.forget_old_finishes();
    }

    fn forget_old_finishes(&mut self) {
        while self.finishes.front().is_some_and(|(at, _)| at.elapsed() > RATE_WINDOW) {
            self.finishes.pop_front();
        }
    }
}

/// The jobs in memory.
#[derive(Debug, Default)]
pub struct LiveJobs(Mutex<HashMap<JobId, Arc<LiveJob>>>);

impl LiveJobs {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Arc<LiveJob>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of them.
    pub fn get(&self, id: &JobId) -> Option<Arc<LiveJob>> {
        self.lock().get(id).cloned()
    }

    /// Adds one, or answers with the one that is there.
    pub fn insert(&self, id: JobId, job: Arc<LiveJob>) -> Arc<LiveJob> {
        self.lock().entry(id).or_insert(job).clone()
    }

    /// Forgets one.
    pub fn remove(&self, id: &JobId) {
        self.lock().remove(id);
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<LiveJob>> {
        self.lock().values().cloned().collect()
    }
}

/// What a watcher is told.
#[derive(Debug, Clone)]
pub struct JobEvent {
    /// The row, with counters as they are.
    pub job: ledger::Job,
    /// Results per second.
    pub rate: f64,
    /// What is new and worth a line.
    pub notes: Vec<String>,
}

/// Whether nothing more can come of a job in this state by itself.
pub fn is_over(job: &ledger::Job) -> bool {
    job.state.is_final() && !(job.open && job.finished_at == 0)
}

/// The state as shown while an open job still adopts: it never looks finished.
pub fn shown_state(job: &ledger::Job) -> JobState {
    if job.open && job.finished_at == 0 && job.state.is_final() { JobState::Running } else { job.state }
}
