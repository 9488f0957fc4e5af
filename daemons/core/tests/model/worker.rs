//! A worker: attempts under leases on its own clock, a spool, and heartbeats that count from when they were sent.

use std::collections::{BTreeMap, BTreeSet};

use codering_core::{LeaseToken, Outcome};

use super::ledger::Key;

/// On the broker's clock and on the worker's own alike.
pub const LEASE: i64 = 100;
/// A worker lets go that much before, as workerd does: a fifth of the lease.
const MARGIN: i64 = LEASE / 5;

#[derive(Debug, Clone)]
pub enum ToWorker {
    Welcome { fenced: Vec<LeaseToken> },
    Assignment { token: LeaseToken, key: Key },
    Heartbeat { seq: u64, fenced: Vec<LeaseToken>, cancelled: Vec<LeaseToken> },
    Cancel { token: LeaseToken },
    Received { token: LeaseToken },
}

#[derive(Debug, Clone)]
pub enum FromWorker {
    Heartbeat { seq: u64, tokens: Vec<LeaseToken> },
    Report { token: LeaseToken, outcome: Outcome },
}

#[derive(Debug, Clone)]
struct Attempt {
    key: Key,
    deadline: i64,
}

#[derive(Debug)]
pub struct Worker {
    /// Thousandths of the broker's seconds that its own have, and where it began.
    rate: i64,
    offset: i64,
    real: i64,
    pub running: bool,
    attempts: BTreeMap<LeaseToken, Attempt>,
    pub spool: BTreeMap<LeaseToken, Outcome>,
    beats: Vec<(u64, i64, Vec<LeaseToken>)>,
    seq: u64,
    answered: i64,
    hello: (i64, Vec<LeaseToken>),
}

impl Worker {
    pub fn new(rate: i64, offset: i64) -> Self {
        Self {
            rate,
            offset,
            real: 0,
            running: true,
            attempts: BTreeMap::new(),
            spool: BTreeMap::new(),
            beats: Vec::new(),
            seq: 0,
            answered: offset,
            hello: (offset, Vec::new()),
        }
    }

    fn now(&self) -> i64 {
        self.offset + self.real * self.rate / 1000
    }

    /// Time passes. What can no longer be renewed is stopped, but by a process that does not run.
    pub fn tick(&mut self) {
        self.real += 1;
        if self.running {
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        let now = self.now();
        let over: Vec<_> = self
            .attempts
            .iter()
            .filter(|(_, a)| a.deadline - MARGIN <= now)
            .map(|(t, _)| t.clone())
            .collect();
        for token in over {
            self.end(&token, Outcome::InfrastructureError);
        }
    }

    fn end(&mut self, token: &LeaseToken, outcome: Outcome) {
        if self.attempts.remove(token).is_some() {
            self.spool.insert(token.clone(), outcome);
        }
    }

    /// The tasks whose containers run. Those of a process that is gone count up to the end of their lease: nobody is
    /// there to stop them, and the next process removes them.
    pub fn containers(&self) -> Vec<Key> {
        let now = self.now();
        let counts = |a: &&Attempt| self.running || a.deadline - MARGIN > now;
        self.attempts.values().filter(counts).map(|a| a.key).collect()
    }

    pub fn held(&self) -> Vec<LeaseToken> {
        self.attempts.keys().chain(self.spool.keys()).cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The next process takes up what runs, unless its lease ended meanwhile. Nothing else of memory is left.
    pub fn start(&mut self) {
        self.running = true;
        self.let_go();
    }

    pub fn hello(&mut self) -> Vec<LeaseToken> {
        self.beats.clear();
        self.answered = self.now();
        self.hello = (self.now(), self.held());
        self.hello.1.clone()
    }

    pub fn beat(&mut self) -> FromWorker {
        self.seq += 1;
        self.beats.push((self.seq, self.now(), self.held()));
        FromWorker::Heartbeat { seq: self.seq, tokens: self.held() }
    }

    /// The `n`th of what runs ends by itself.
    pub fn finish(&mut self, n: usize, outcome: Outcome) -> bool {
        let Some(token) = self.attempts.keys().nth(n).cloned() else { return false };
        self.end(&token, outcome);
        true
    }

    pub fn hear(&mut self, message: ToWorker) {
        match message {
            ToWorker::Welcome { fenced } => {
                let (sent, tokens) = self.hello.clone();
                self.settle(sent, &tokens, &fenced);
            }
            ToWorker::Assignment { token, key } => {
                if !self.attempts.contains_key(&token) && !self.spool.contains_key(&token) {
                    self.attempts.insert(token, Attempt { key, deadline: self.answered + LEASE });
                    self.let_go();
                }
            }
            ToWorker::Heartbeat { seq, fenced, cancelled } => {
                if let Some(at) = self.beats.iter().position(|(n, ..)| *n == seq) {
                    let (_, sent, tokens) = self.beats.drain(..=at).next_back().unwrap();
                    self.answered = sent;
                    self.settle(sent, &tokens, &fenced);
                }
                for token in cancelled {
                    self.end(&token, Outcome::Cancelled);
                }
            }
            ToWorker::Cancel { token } => self.end(&token, Outcome::Cancelled),
            ToWorker::Received { token } => drop(self.spool.remove(&token)),
        }
    }

    fn settle(&mut self, sent: i64, tokens: &[LeaseToken], fenced: &[LeaseToken]) {
        for token in tokens {
            if fenced.contains(token) {
                self.attempts.remove(token);
                self.spool.remove(token);
            } else if let Some(attempt) = self.attempts.get_mut(token) {
                attempt.deadline = attempt.deadline.max(sent + LEASE);
            }
        }
    }
}
