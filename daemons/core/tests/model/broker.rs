//! What brokerd does around the state machine, cut where it waits: each operation is a list of small steps, and between
//! any two of them anything else may happen, the end of the process included. It mirrors `broker/{outbox, dispatch,
//! change, reports, leases, reconcile}.rs` of codering-brokerd; the decisions are the real ones of `task::Progress::step`.

use std::collections::{BTreeMap, VecDeque};

use codering_core::{
    LeaseToken, Outcome, WorkerName,
    job::Tally,
    task::{Effect, Event, LONGEST_PAUSE_MS, Lease, Progress, State},
};

use super::{
    ledger::{Key, POLICY, Recorded, Row},
    worker::{FromWorker, LEASE, ToWorker},
    world::{Delivery, World},
};

/// One worker's stream; a message that is under way when it ends is lost.
#[derive(Debug, Default)]
pub struct Stream {
    pub session: u64,
    pub down: VecDeque<ToWorker>,
    pub up: VecDeque<FromWorker>,
    cancelled: Vec<LeaseToken>,
}

#[derive(Debug, Clone)]
pub struct Held {
    pub key: Key,
    row: Progress,
    pub worker: usize,
    pub deadline: i64,
}

/// What a process has in memory, and what it is at.
#[derive(Debug, Default)]
pub struct Broker {
    pub leases: BTreeMap<LeaseToken, Held>,
    pub streams: BTreeMap<usize, Stream>,
    pub ops: Vec<Op>,
    /// Operations that wait, for however long.
    stalled: Vec<Op>,
    pub tally: Tally,
    short: Option<u64>,
}

/// An event on its way into the ledger: read, stepped and swapped, then told.
#[derive(Debug, Clone)]
pub struct Change {
    key: Key,
    event: Event,
    known: Option<Progress>,
    stored: Option<(Progress, Progress, Option<Effect>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Came {
    NotYet,
    Stored(Progress),
    Refused,
}

impl Change {
    fn new(key: Key, known: Option<Progress>, event: Event) -> Self {
        Self { key, event, known, stored: None }
    }

    /// One step further.
    fn advance(&mut self, world: &mut World) -> Came {
        if let Some((before, after, effect)) = self.stored.take() {
            world.broker.told(self.key, &before.state, &after.state, effect);
            return Came::Stored(after);
        }
        let Some(known) = self.known.clone() else {
            match world.ledger.read(self.key) {
                Some(row) => self.known = Some(row.progress.clone()),
                None => return Came::Refused,
            }
            return Came::NotYet;
        };
        match known.step(self.event.clone(), POLICY, world.wall) {
            Err(_) => Came::Refused,
            Ok((next, effect)) if world.ledger.swap(self.key, &known, &next, &self.event) => {
                self.stored = Some((known, next, effect));
                Came::NotYet
            }
            Ok(_) => {
                self.known = None;
                Came::NotYet
            }
        }
    }
}

/// An operation, by what its next step is.
#[derive(Debug, Clone)]
pub enum Op {
    Insert(Key),
    Commit(Key),
    Answer(Key),
    Put(Key, Progress),
    /// Ends when it is stored or refused.
    Only(Change),
    Look(Delivery),
    Lease(Delivery, LeaseToken, usize, u64, Change),
    HandBack(Delivery, Change),
    Hold(Delivery, LeaseToken, usize, u64, Progress),
    Ack(Delivery),
    Expire(LeaseToken),
    Expiring(LeaseToken, Held, Change),
    Find(usize, LeaseToken, Outcome),
    Complete(usize, LeaseToken, Change),
    PutResult(Key, Recorded),
    MarkResult(Key, Recorded),
}

impl Op {
    pub fn only(key: Key, event: Event) -> Self {
        Self::Only(Change::new(key, None, event))
    }
}

impl Broker {
    /// A process starts: memory is made from the ledger, each lease gets its full time anew.
    pub fn start(world: &mut World) {
        world.ledger.rows.retain(|_, row| row.committed);
        let mut broker = Broker { tally: world.ledger.counts().into(), ..Broker::default() };
        for (key, row) in &world.ledger.rows {
            if let State::Leased(lease) = &row.progress.state {
                let worker = worker_index(&lease.worker);
                let held =
                    Held { key: *key, row: row.progress.clone(), worker, deadline: world.time + LEASE };
                broker.leases.insert(lease.token.clone(), held);
            }
        }
        world.broker = broker;
    }

    fn told(&mut self, _key: Key, from: &State, to: &State, effect: Option<Effect>) {
        if std::mem::discriminant(from) != std::mem::discriminant(to) {
            self.tally.moved(from, to);
        }
        if let Some(Effect::Stop(lease)) = effect
            && let Some(stream) = self.streams.get_mut(&worker_index(&lease.worker))
        {
            stream.cancelled.push(lease.token.clone());
            stream.down.push_back(ToWorker::Cancel { token: lease.token });
        }
    }

    pub fn renew(&mut self, worker: usize, tokens: &[LeaseToken], time: i64) -> Vec<LeaseToken> {
        let mut fenced = Vec::new();
        for token in tokens {
            match self.leases.get_mut(token).filter(|held| held.worker == worker) {
                Some(held) => held.deadline = time + LEASE,
                None => fenced.push(token.clone()),
            }
        }
        fenced
    }

    /// A worker's stream begins; the one before it is no more.
    pub fn attach(&mut self, worker: usize, session: u64, tokens: &[LeaseToken], time: i64) {
        let fenced = self.renew(worker, tokens, time);
        let mut stream = Stream { session, ..Stream::default() };
        stream.down.push_back(ToWorker::Welcome { fenced });
        self.streams.insert(worker, stream);
        let gone =
            self.leases.iter().filter(|(token, held)| held.worker == worker && !tokens.contains(token));
        let gone: Vec<_> = gone.map(|(token, _)| Op::Expire(token.clone())).collect();
        self.ops.extend(gone);
    }

    pub fn hear(&mut self, worker: usize, message: FromWorker, time: i64) {
        match message {
            FromWorker::Heartbeat { seq, tokens } => {
                let fenced = self.renew(worker, &tokens, time);
                let Some(stream) = self.streams.get_mut(&worker) else { return };
                let cancelled = stream.cancelled.iter().filter(|t| tokens.contains(t)).cloned().collect();
                stream.down.push_back(ToWorker::Heartbeat { seq, fenced, cancelled });
                let renewed = tokens.into_iter().filter_map(|token| {
                    let key = self.leases.get(&token)?.key;
                    Some(Op::only(key, Event::Renew { token, deadline: time + LEASE }))
                });
                let renewed: Vec<_> = renewed.collect();
                self.ops.extend(renewed);
            }
            FromWorker::Report { token, outcome } => self.ops.push(Op::Find(worker, token, outcome)),
        }
    }

    /// Ready tasks that no message stands for.
    pub fn publish(world: &mut World) {
        // What is further ahead than any pause was written under a clock that has been set back since.
        let now = world.wall;
        let due = |row: &Row| not_before(row).is_some_and(|at| at <= now || at > now + LONGEST_PAUSE_MS);
        let ready = world.ledger.rows.iter().filter(|(_, row)| row.committed && due(row));
        let puts: Vec<_> = ready.map(|(key, row)| Op::Put(*key, row.progress.clone())).collect();
        world.broker.ops.extend(puts);
        let results = world.ledger.rows.iter().filter_map(|(key, row)| Some((*key, row.result.clone()?)));
        let puts: Vec<_> = results
            .filter(|(_, result)| !result.published)
            .map(|(key, result)| Op::PutResult(key, result))
            .collect();
        world.broker.ops.extend(puts);
    }

    /// Messages that the queue lost: fewer there than the ledger has tasks for it, twice in a row.
    pub fn reconcile(world: &mut World) {
        let published: Vec<Key> = world
            .ledger
            .rows
            .iter()
            .filter(|(_, row)| matches!(row.progress.state, State::Ready { published: true, .. }))
            .map(|(key, _)| *key)
            .collect();
        let (expected, found) = (published.len() as u64, world.todo.len() as u64);
        if found >= expected {
            world.broker.short = None;
        } else if world.broker.short.replace(expected).is_some() {
            world.broker.short = None;
            world.broker.ops.extend(published.into_iter().map(|key| Op::only(key, Event::Unpublish)));
        }
        // A worker that came back may not have heard that what it holds was cancelled.
        for (token, held) in &world.broker.leases {
            let asked = world.ledger.read(held.key).is_some_and(|row| row.progress.cancel_requested);
            if let Some(stream) = world.broker.streams.get_mut(&held.worker).filter(|_| asked) {
                stream.cancelled.push(token.clone());
            }
        }
    }

    pub fn expire(world: &mut World) {
        let over = world.broker.leases.iter().filter(|(_, held)| held.deadline <= world.time);
        let over: Vec<_> = over.map(|(token, _)| Op::Expire(token.clone())).collect();
        world.broker.ops.extend(over);
    }

    pub fn all(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().chain(&self.stalled)
    }

    /// The `n`th from the last waits from now on.
    pub fn stall(&mut self, n: usize) {
        if let Some(at) = self.ops.len().checked_sub(1 + n) {
            let op = self.ops.remove(at);
            self.stalled.push(op);
        }
    }

    pub fn go_on(&mut self) {
        self.ops.append(&mut self.stalled);
    }

    /// The `n`th operation takes its next step.
    pub fn advance(world: &mut World, n: usize) {
        if world.broker.ops.is_empty() {
            return;
        }
        let at = n % world.broker.ops.len();
        let op = world.broker.ops.remove(at);
        if let Some(next) = op.step(world) {
            let at = at.min(world.broker.ops.len());
            world.broker.ops.insert(at, next);
        }
    }
}

impl Op {
    fn step(self, world: &mut World) -> Option<Op> {
        match self {
            Op::Insert(key) => {
                let row = Row { committed: false, progress: Progress::new(world.wall), result: None };
                world.ledger.rows.insert(key, row);
                Some(Op::Commit(key))
            }
            Op::Commit(key) => {
                let row = world.ledger.rows.get_mut(&key)?;
                row.committed = true;
                world.broker.tally.add(&row.progress.state, 1);
                Some(Op::Answer(key))
            }
            Op::Answer(key) => {
                world.acknowledged.insert(key);
                None
            }
            Op::Put(key, row) => {
                world.todo.push_back(key);
                Some(Op::Only(Change::new(key, Some(row), Event::Publish)))
            }
            Op::Only(mut change) => match change.advance(world) {
                Came::NotYet => Some(Op::Only(change)),
                _ => None,
            },
            Op::Look(delivery) => Some(look(world, delivery)),
            Op::Lease(delivery, token, worker, session, mut change) => match change.advance(world) {
                Came::NotYet => Some(Op::Lease(delivery, token, worker, session, change)),
                Came::Stored(row) => Some(Op::Hold(delivery, token, worker, session, row)),
                Came::Refused => Some(Op::Ack(delivery)),
            },
            Op::HandBack(delivery, mut change) => match change.advance(world) {
                Came::NotYet => Some(Op::HandBack(delivery, change)),
                _ => Some(Op::Ack(delivery)),
            },
            Op::Hold(delivery, token, worker, session, row) => {
                let held = Held { key: delivery.key, row, worker, deadline: world.time + LEASE };
                world.broker.leases.insert(token.clone(), held);
                match world.broker.streams.get_mut(&worker).filter(|stream| stream.session == session) {
                    Some(stream) => {
                        stream.down.push_back(ToWorker::Assignment { token, key: delivery.key });
                    }
                    None => world.broker.ops.push(Op::Expire(token)),
                }
                Some(Op::Ack(delivery))
            }
            Op::Ack(delivery) => {
                world.unacked.retain(|other| other.tag != delivery.tag);
                None
            }
            Op::Expire(token) => {
                let held = world.broker.leases.remove(&token)?;
                let change =
                    Change::new(held.key, Some(held.row.clone()), Event::Expire { token: token.clone() });
                Some(Op::Expiring(token, held, change))
            }
            Op::Expiring(token, held, mut change) => match change.advance(world) {
                Came::NotYet => Some(Op::Expiring(token, held, change)),
                _ => None,
            },
            Op::Find(worker, token, outcome) => match world.broker.leases.get(&token) {
                Some(held) if held.worker == worker => {
                    let event = Event::Complete { token: token.clone(), outcome };
                    Some(Op::Complete(worker, token, Change::new(held.key, Some(held.row.clone()), event)))
                }
                _ => {
                    world.broker.answer(worker, token);
                    None
                }
            },
            Op::Complete(worker, token, mut change) => match change.advance(world) {
                Came::NotYet => Some(Op::Complete(worker, token, change)),
                _ => {
                    world.broker.leases.remove(&token);
                    world.broker.answer(worker, token);
                    None
                }
            },
            Op::PutResult(key, result) => {
                world.done.push((key, result.attempt, result.outcome));
                Some(Op::MarkResult(key, result))
            }
            Op::MarkResult(key, result) => {
                let row = world.ledger.rows.get_mut(&key)?;
                if let Some(recorded) = row.result.as_mut().filter(|r| r.attempt == result.attempt) {
                    recorded.published = true;
                }
                None
            }
        }
    }
}

impl Broker {
    fn answer(&mut self, worker: usize, token: LeaseToken) {
        if let Some(stream) = self.streams.get_mut(&worker) {
            stream.down.push_back(ToWorker::Received { token });
        }
    }
}

/// A message in hand: its task is leased to whoever has room, or it is of no use.
fn look(world: &mut World, delivery: Delivery) -> Op {
    let Some(row) = world.ledger.read(delivery.key).map(|row| row.progress.clone()) else {
        return Op::Ack(delivery);
    };
    if !matches!(row.state, State::Ready { .. }) {
        return Op::Ack(delivery);
    }
    let free = world.broker.streams.iter().min_by_key(|(worker, _)| {
        world.broker.leases.values().filter(|held| held.worker == **worker).count()
    });
    let Some((worker, session)) = free.map(|(w, s)| (*w, s.session)).filter(|_| !world.paused) else {
        let change = Change::new(delivery.key, Some(row), Event::HandBack { not_before: 0 });
        return Op::HandBack(delivery, change);
    };
    world.tokens += 1;
    let token = LeaseToken::from_bytes(u128::from(world.tokens).to_be_bytes());
    let lease = Lease {
        token: token.clone(),
        worker: WorkerName::new(format!("w{worker}")).unwrap(),
        leased_at: world.wall,
        deadline: world.wall + LEASE,
    };
    let change = Change::new(delivery.key, Some(row), Event::Lease(lease));
    Op::Lease(delivery, token, worker, session, change)
}

fn not_before(row: &Row) -> Option<i64> {
    match row.progress.state {
        State::Ready { published: false, not_before } => Some(not_before),
        _ => None,
    }
}

fn worker_index(name: &WorkerName) -> usize {
    name.as_str()[1..].parse().unwrap()
}
