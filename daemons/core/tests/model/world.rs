//! All of it together: what may happen, one step at a time, and what must hold after each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use codering_core::{
    Outcome,
    task::{Event, LONGEST_PAUSE_MS, State},
};

use super::{
    broker::{Broker, Op},
    ledger::{Key, Ledger},
    worker::{FromWorker, LEASE, Worker},
};

pub const TASKS: Key = 3;
pub const WORKERS: usize = 2;

/// A message that was taken and not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub tag: u64,
    pub key: Key,
}

/// What happens next. Numbers choose among what there is.
#[derive(Debug, Clone)]
pub enum Step {
    Submit(Key),
    Cancel(Key),
    Retry(Key),
    Pause(bool),
    /// The broker's loops look at their work.
    Publish,
    Take,
    Expire,
    Reconcile,
    /// An operation of the broker takes one step.
    Broker(usize),
    /// One of the newest waits, for a thread or for a write, while others go on; then all that wait go on.
    Stall(usize),
    GoOn,
    /// All of them take all their steps, but those that wait.
    Drain,
    Attach(usize),
    Cut(usize),
    Beat(usize),
    Finish(usize, usize, Outcome),
    /// All that is spooled is reported, on the stream or by a call of its own.
    Report(usize),
    /// The next message of a stream arrives.
    Hear(usize),
    Speak(usize),
    /// All messages of a stream, both ways.
    Talk(usize),
    /// A report that was under way comes, first or once more.
    Late(usize),
    KillWorker(usize),
    StartWorker(usize),
    KillBroker,
    Wipe,
    Lose(usize),
    Duplicate(usize),
    Turn,
    Wait(u8),
    /// A clock on the wall jumps.
    Jump(i64),
}

pub struct World {
    pub time: i64,
    pub wall: i64,
    pub ledger: Ledger,
    pub broker: Broker,
    pub workers: Vec<Worker>,
    pub todo: VecDeque<Key>,
    pub unacked: Vec<Delivery>,
    pub done: Vec<(Key, u32, Outcome)>,
    pub acknowledged: BTreeSet<Key>,
    pub paused: bool,
    pub tokens: u64,
    /// Every report that was ever sent.
    mail: Vec<(usize, FromWorker)>,
    sessions: u64,
    tags: u64,
}

impl World {
    pub fn new() -> Self {
        Self {
            time: 0,
            wall: 1_763_722_560_000,
            ledger: Ledger::default(),
            broker: Broker::default(),
            // One clock is slower than the broker's by a tenth, one is faster, and both began elsewhere.
            workers: vec![Worker::new(900, 5_000_000), Worker::new(1100, -700)],
            todo: VecDeque::new(),
            unacked: Vec::new(),
            done: Vec::new(),
            acknowledged: BTreeSet::new(),
            paused: false,
            tokens: 0,
            mail: Vec::new(),
            sessions: 0,
            tags: 0,
        }
    }

    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Submit(key) => {
                let there = self.ledger.rows.contains_key(key)
                    || self.broker.all().any(|op| matches!(op, Op::Insert(k) if k == key));
                if !there {
                    self.broker.ops.push(Op::Insert(*key));
                }
            }
            Step::Cancel(key) => self.broker.ops.push(Op::only(*key, Event::Cancel)),
            Step::Retry(key) => self.broker.ops.push(Op::only(*key, Event::Retry)),
            Step::Pause(on) => self.paused = *on,
            Step::Publish => Broker::publish(self),
            Step::Take => self.take(),
            Step::Expire => Broker::expire(self),
            Step::Reconcile => Broker::reconcile(self),
            Step::Broker(n) => Broker::advance(self, *n),
            Step::Stall(n) => self.broker.stall(*n),
            Step::GoOn => self.broker.go_on(),
            Step::Drain => self.drain(),
            Step::Talk(w) => self.talk(*w),
            Step::Attach(w) => self.attach(*w),
            Step::Cut(w) => drop(self.broker.streams.remove(w)),
            Step::Beat(w) => {
                if self.workers[*w].running
                    && let Some(stream) = self.broker.streams.get_mut(w)
                {
                    stream.up.push_back(self.workers[*w].beat());
                }
            }
            Step::Finish(w, n, outcome) => {
                self.workers[*w].finish(*n, *outcome);
            }
            Step::Report(w) => self.report(*w),
            Step::Hear(w) => {
                let message = self.broker.streams.get_mut(w).and_then(|stream| stream.down.pop_front());
                if let Some(message) = message {
                    self.workers[*w].hear(message);
                }
            }
            Step::Speak(w) => {
                let message = self.broker.streams.get_mut(w).and_then(|stream| stream.up.pop_front());
                if let Some(message) = message {
                    self.broker.hear(*w, message, self.time);
                }
            }
            Step::Late(n) => {
                if !self.mail.is_empty() {
                    let (worker, report) = self.mail[n % self.mail.len()].clone();
                    self.broker.hear(worker, report, self.time);
                }
            }
            Step::KillWorker(w) => {
                self.workers[*w].running = false;
                self.broker.streams.remove(w);
            }
            Step::StartWorker(w) if !self.workers[*w].running => self.workers[*w].start(),
            Step::StartWorker(_) => {}
            Step::KillBroker => {
                let back: Vec<_> = self.unacked.drain(..).map(|delivery| delivery.key).collect();
                self.todo.extend(back);
                Broker::start(self);
            }
            Step::Wipe => {
                self.todo.clear();
                self.unacked.clear();
            }
            Step::Lose(n) if !self.todo.is_empty() => drop(self.todo.remove(n % self.todo.len())),
            Step::Duplicate(n) if !self.todo.is_empty() => {
                let key = self.todo[n % self.todo.len()];
                self.todo.push_back(key);
            }
            Step::Lose(_) | Step::Duplicate(_) => {}
            Step::Turn => {
                if let Some(first) = self.todo.pop_front() {
                    self.todo.push_back(first);
                }
            }
            Step::Wait(n) => {
                for _ in 0..*n {
                    self.time += 1;
                    self.wall += 1;
                    self.workers.iter_mut().for_each(Worker::tick);
                    self.check_containers();
                }
            }
            Step::Jump(by) => self.wall += by,
        }
        self.check();
    }

    fn take(&mut self) {
        let Some(key) = self.todo.pop_front() else { return };
        self.tags += 1;
        let delivery = Delivery { tag: self.tags, key };
        self.unacked.push(delivery.clone());
        self.broker.ops.push(Op::Look(delivery));
    }

    fn attach(&mut self, worker: usize) {
        if !self.workers[worker].running {
            return;
        }
        self.sessions += 1;
        let tokens = self.workers[worker].hello();
        self.broker.attach(worker, self.sessions, &tokens, self.time);
    }

    fn report(&mut self, worker: usize) {
        if !self.workers[worker].running {
            return;
        }
        for (token, outcome) in self.workers[worker].spool.clone() {
            let report = FromWorker::Report { token, outcome };
            self.mail.push((worker, report.clone()));
            if let Some(stream) = self.broker.streams.get_mut(&worker) {
                stream.up.push_back(report);
            }
        }
    }

    fn check(&self) {
        for key in &self.acknowledged {
            assert!(self.ledger.read(*key).is_some(), "invariant 1: acknowledged task {key} is gone");
        }
        for (key, row) in &self.ledger.rows {
            let done = matches!(row.progress.state, State::Done(_));
            assert_eq!(
                done,
                row.result.is_some(),
                "invariant 2: task {key} is done with a result or not at all"
            );
        }
        for (key, attempt, outcome) in &self.done {
            let known = self.ledger.stories[key].results.iter().any(|(_, a, o)| (a, o) == (attempt, outcome));
            assert!(
                known,
                "invariant 2: the done queue tells of a result of task {key} that was never recorded"
            );
        }
        if self.broker.all().next().is_none() {
            let (counted, derived) = (self.broker.tally.counts(), self.ledger.counts());
            assert_eq!(counted, derived, "invariant 9: what is counted is what the ledger has");
        }
        self.check_containers();
    }

    fn check_containers(&self) {
        let mut running = BTreeMap::new();
        for (n, worker) in self.workers.iter().enumerate() {
            for key in worker.containers() {
                if let Some(other) = running.insert(key, n) {
                    panic!("invariant 3: task {key} runs on workers {other} and {n} at the same time");
                }
            }
        }
    }

    /// No more faults: whatever there is goes on, and in so many rounds everything is done. What the attempts end with from
    /// now on is the same for all of them, at first: so both bounds on failures are met.
    pub fn settles(&mut self) {
        let ends = [Outcome::Succeeded, Outcome::Failed, Outcome::InfrastructureError];
        let ends = ends[usize::try_from(self.tokens).unwrap() % ends.len()];
        self.paused = false;
        self.apply(&Step::GoOn);
        for w in 0..WORKERS {
            self.apply(&Step::StartWorker(w));
            self.apply(&Step::Attach(w));
        }
        for round in 0..ROUNDS {
            let over = self.ledger.rows.values().all(|row| row.result.as_ref().is_some_and(|r| r.published));
            if over && self.broker.ops.is_empty() {
                let told =
                    |key: &Key, attempt: u32| self.done.iter().any(|(k, a, _)| (k, *a) == (key, attempt));
                for (key, row) in &self.ledger.rows {
                    let result = row.result.as_ref().unwrap();
                    assert!(
                        told(key, result.attempt),
                        "invariant 1: the result of task {key} is on no queue"
                    );
                }
                return;
            }
            self.round(if round < ROUNDS / 2 { ends } else { Outcome::Succeeded });
        }
        panic!("invariant 1: after {ROUNDS} rounds without a fault not all is done: {:#?}", self.ledger.rows);
    }

    fn round(&mut self, ends: Outcome) {
        for step in [Step::Publish, Step::Take, Step::Take, Step::Take, Step::Expire, Step::Reconcile] {
            self.apply(&step);
            self.drain();
        }
        for w in 0..WORKERS {
            self.apply(&Step::Beat(w));
            while self.workers[w].finish(0, ends) {}
            self.apply(&Step::Report(w));
            self.talk(w);
            self.drain();
            self.talk(w);
        }
        self.apply(&Step::Wait(u8::try_from(LEASE / 4).unwrap()));
        // Pauses before a task is tried again are on the wall's clock.
        self.wall += LONGEST_PAUSE_MS;
    }

    fn talk(&mut self, w: usize) {
        while self.broker.streams.get(&w).is_some_and(|stream| !stream.up.is_empty()) {
            self.apply(&Step::Speak(w));
        }
        while self.broker.streams.get(&w).is_some_and(|stream| !stream.down.is_empty()) {
            self.apply(&Step::Hear(w));
        }
    }

    fn drain(&mut self) {
        for _ in 0..10_000 {
            if self.broker.ops.is_empty() {
                return;
            }
            self.apply(&Step::Broker(0));
        }
        panic!("an operation never ends: {:?}", self.broker.ops);
    }
}

/// Enough for every pause and for a lease that nobody holds.
const ROUNDS: u32 = 40;
