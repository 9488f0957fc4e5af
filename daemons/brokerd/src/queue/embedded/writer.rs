//! The one task that changes `queue.db`. What has gathered while the last group was being committed is the
//! next group: alone, a call waits for its own fsync only; under load, some 256 share one.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use codering_core::QueueName;
use tokio::sync::{mpsc, oneshot};

use super::{
    STEP_MESSAGES, Shared,
    books::{Account, Books, Bounds},
    settle::{Row, Taken},
    store::Store,
};
use crate::queue::{DELIVERY_LIMIT, Delivery, Message, QueueError, Result};

/// The most operations of one group.
const GROUP: usize = 256;

type Reply<T> = oneshot::Sender<Result<T>>;
type Answer = Box<dyn FnOnce() + Send>;
type Sql<T> = std::result::Result<T, sqlx::Error>;

/// What a step of a long operation did.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) moved: u64,
    pub(super) more: bool,
    /// Where the next step goes on.
    pub(super) last: i64,
}

/// A call on the writer.
#[derive(Debug)]
pub(super) enum Op {
    Put { queue: QueueName, message: Message, reply: Reply<()> },
    Ack { row: Row, reply: Reply<()> },
    Release { row: Row, reply: Option<Reply<()>> },
    Take { queue: QueueName, max: usize, reply: Reply<Vec<Delivery>> },
    Reject { row: Row, reason: String, reply: Reply<()> },
    Create { queue: QueueName, reply: Reply<bool> },
    Delete { queue: QueueName, reply: Reply<()> },
    Sweep { reply: Reply<bool> },
    Purge { queue: QueueName, last: Option<i64>, reply: Reply<Step> },
    RequeueDead { queue: QueueName, ids: Option<Vec<i64>>, last: Option<i64>, reply: Reply<Step> },
    Close { reply: Reply<()> },
}

impl Op {
    /// These are done in one sweep, in the order settle, put, take; any other ends its group.
    fn is_plain(&self) -> bool {
        matches!(self, Op::Put { .. } | Op::Ack { .. } | Op::Release { .. } | Op::Take { .. })
    }

    fn row(&self) -> Option<Row> {
        match self {
            Op::Ack { row, .. } | Op::Release { row, .. } | Op::Reject { row, .. } => Some(*row),
            _ => None,
        }
    }
}

/// See the module.
pub(super) struct Writer {
    store: Store,
    books: Books,
    bounds: Bounds,
    next_id: i64,
    shared: Arc<Shared>,
    waiting: mpsc::Receiver<Op>,
    /// For the deliveries handed out; weak, so that the last handle's drop ends the writer.
    ops: mpsc::WeakSender<Op>,
    /// Settled in groups that could not be committed: they go back to their queues.
    owed: Vec<Row>,
    rang: bool,
}

fn answer<T: Send + 'static>(reply: Reply<T>, value: Result<T>) -> Answer {
    // A caller that went away needs no answer; a delivery in it returns to its queue by being dropped.
    Box::new(move || drop(reply.send(value)))
}

impl Writer {
    pub(super) async fn new(
        mut store: Store,
        bounds: Bounds,
        shared: Arc<Shared>,
        waiting: mpsc::Receiver<Op>,
        ops: mpsc::WeakSender<Op>,
    ) -> Sql<Self> {
        store.release_all().await?;
        let books = store.books().await?;
        let next_id = store.last_id().await? + 1;
        let mut writer =
            Self { store, books, bounds, next_id, shared, waiting, ops, owed: Vec::new(), rang: false };
        writer.publish_all();
        Ok(writer)
    }

    pub(super) async fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP);
        while let Some(first) = self.waiting.recv().await {
            group.push(first);
            // Lets those who were just answered put their next call into this group.
            tokio::task::yield_now().await;
            while group.len() < GROUP && group.last().is_some_and(Op::is_plain) {
                match self.waiting.try_recv() {
                    Ok(op) => group.push(op),
                    Err(_) => break,
                }
            }
            let closing = match group.pop() {
                Some(Op::Close { reply }) => Some(reply),
                other => {
                    group.extend(other);
                    None
                }
            };
            self.group(&mut group).await;
            if let Some(reply) = closing {
                let closed = self.store.close().await;
                let closed = closed.map_err(|e| QueueError::Unavailable(format!("queue.db: {e}")));
                drop(reply.send(closed));
                return;
            }
        }
        if let Err(error) = self.store.close().await {
            tracing::warn!(%error, "queue.db did not close cleanly");
        }
    }

    async fn group(&mut self, group: &mut Vec<Op>) {
        if group.is_empty() {
            return;
        }
        let rows: Vec<Row> = group.iter().filter_map(Op::row).collect();
        let done = match self.recover().await {
            Ok(()) => self.attempt(group).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(answers) => {
                self.shared.set_failure(None);
                for answer in answers {
                    answer();
                }
                if std::mem::take(&mut self.rang) {
                    self.shared.bell.send_modify(|count| *count += 1);
                }
            }
            Err(error) => {
                tracing::error!(%error, "queue.db cannot be written");
                self.store.roll_back().await;
                self.shared.set_failure(Some(format!("queue.db cannot be written: {error}")));
                // Rows of an outage stay bounded by what was taken before it.
                self.owed.extend(rows);
                self.rang = false;
                // Dropping the calls answers them with the failure.
                group.clear();
            }
        }
    }

    /// After a failure: gives back what was settled in vain and counts anew.
    async fn recover(&mut self) -> Sql<()> {
        if self.shared.failure().is_none() {
            return Ok(());
        }
        self.store.begin().await?;
        self.store.release(self.owed.iter().map(|row| row.id)).await?;
        self.store.commit().await?;
        self.owed.clear();
        self.books = self.store.books().await?;
        self.publish_all();
        Ok(())
    }

    async fn attempt(&mut self, group: &mut Vec<Op>) -> Sql<Vec<Answer>> {
        let mut answers: Vec<Answer> = Vec::with_capacity(group.len());
        self.store.begin().await?;
        let (mut acked, mut released, mut puts, mut takes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut other = None;
        for op in group.drain(..) {
            match op {
                Op::Ack { row, reply } => {
                    acked.push(row);
                    answers.push(answer(reply, Ok(())));
                }
                Op::Release { row, reply } => {
                    released.push(row);
                    answers.extend(reply.map(|reply| answer(reply, Ok(()))));
                }
                Op::Put { queue, message, reply } => puts.push((queue, message, reply)),
                Op::Take { queue, max, reply } => takes.push((queue, max, reply)),
                op => other = Some(op),
            }
        }
        self.settle(&acked, &released).await?;
        self.put(puts, &mut answers).await?;
        for (queue, max, reply) in takes {
            let taken = self.take(&queue, max).await?;
            answers.push(answer(reply, taken));
        }
        if let Some(op) = other {
            answers.push(self.other(op).await?);
        }
        let touched = self.books.take_touched();
        self.store.save(&touched).await?;
        self.store.commit().await?;
        self.publish(touched.into_iter().map(|(_, account)| account));
        Ok(answers)
    }

    async fn settle(&mut self, acked: &[Row], released: &[Row]) -> Sql<()> {
        if !acked.is_empty() {
            self.store.remove(acked.iter().map(|row| row.id)).await?;
        }
        if !released.is_empty() {
            self.store.release(released.iter().map(|row| row.id)).await?;
        }
        for row in acked.iter().chain(released) {
            if let Some(account) = self.books.change(row.queue) {
                account.taken = account.taken.saturating_sub(1);
            }
        }
        for row in acked {
            if let Some(account) = self.books.change(row.queue) {
                account.remove(1, row.bytes);
            }
        }
        for row in released {
            self.ring(row.queue);
        }
        Ok(())
    }

    async fn put(
        &mut self,
        puts: Vec<(QueueName, Message, Reply<()>)>,
        answers: &mut Vec<Answer>,
    ) -> Sql<()> {
        let mut rows = Vec::with_capacity(puts.len());
        for (queue, message, reply) in puts {
            let bytes = message.body.len() as u64;
            let fits = self.books.known(&queue);
            let fits = fits.and_then(|id| self.books.room(id, 1, bytes, self.bounds).map(|()| id));
            if let Ok(id) = fits {
                if let Some(account) = self.books.change(id) {
                    account.add(1, bytes);
                }
                rows.push((self.next_id, id, message));
                self.next_id += 1;
            }
            answers.push(answer(reply, fits.map(drop)));
        }
        self.store.insert(&rows).await?;
        let mut queues: Vec<i64> = rows.iter().map(|(_, queue, _)| *queue).collect();
        queues.dedup();
        for queue in queues {
            self.ring(queue);
            self.drop_oldest(queue).await?;
        }
        Ok(())
    }

    async fn drop_oldest(&mut self, queue: i64) -> Sql<()> {
        let bounds = self.bounds;
        while let Some(account) = self.books.get(queue).filter(|a| a.drops_oldest() && a.over(bounds)) {
            let over = account.messages.saturating_sub(bounds.messages).max(1);
            let most = i64::try_from(over).unwrap_or(1);
            let (messages, bytes) = self.store.drop_head(queue, most, i64::MAX).await?;
            if messages == 0 {
                break;
            }
            if let Some(account) = self.books.change(queue) {
                account.remove(messages, bytes);
            }
        }
        Ok(())
    }

    async fn take(&mut self, queue: &QueueName, max: usize) -> Sql<Result<Vec<Delivery>>> {
        let id = match self.books.known(queue) {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        let Some(ops) = self.ops.upgrade() else { return Ok(Ok(Vec::new())) };
        let mut deliveries = Vec::new();
        while deliveries.len() < max && self.books.get(id).is_some_and(|a| a.depth().ready > 0) {
            let most = i64::try_from(max - deliveries.len()).unwrap_or(i64::MAX);
            let rows = self.store.take(id, most).await?;
            if rows.is_empty() {
                break;
            }
            if let Some(account) = self.books.change(id) {
                account.taken += rows.len() as u64;
            }
            for taken in rows {
                let worn = taken.deliveries > DELIVERY_LIMIT;
                let why = "taken and given back too often";
                if worn && self.bury(taken.row, why).await?.is_ok() {
                    continue;
                }
                let settle = Taken { row: Some(taken.row), ops: ops.clone(), shared: self.shared.clone() };
                deliveries.push(Delivery {
                    body: taken.body.into(),
                    redelivered: taken.deliveries > 1,
                    settle: Box::new(settle),
                });
            }
        }
        Ok(Ok(deliveries))
    }

    async fn other(&mut self, op: Op) -> Sql<Answer> {
        Ok(match op {
            Op::Reject { row, reason, reply } => {
                let buried = self.bury(row, &reason).await?;
                if buried.is_err() {
                    self.settle(&[], &[row]).await?;
                }
                answer(reply, buried)
            }
            Op::Create { queue, reply } => {
                let new = self.books.id(&queue).is_none();
                self.ensure(&queue).await?;
                answer(reply, Ok(new))
            }
            Op::Delete { queue, reply } => {
                if let Some(id) = self.books.id(&queue) {
                    self.store.unname(id).await?;
                    self.books.close(id);
                    self.shared.depths.lock().unwrap_or_else(PoisonError::into_inner).remove(&queue);
                }
                answer(reply, Ok(()))
            }
            Op::Sweep { reply } => answer(reply, Ok(self.store.sweep(STEP_MESSAGES).await?)),
            Op::Purge { queue, last, reply } => {
                let purged = self.purge(&queue, last.unwrap_or(self.next_id)).await?;
                answer(reply, purged)
            }
            Op::RequeueDead { queue, ids, last, reply } => {
                let moved = self.requeue_dead(&queue, ids.as_deref(), last.unwrap_or(0)).await?;
                answer(reply, moved)
            }
            Op::Put { .. } | Op::Ack { .. } | Op::Release { .. } | Op::Take { .. } | Op::Close { .. } => {
                Box::new(|| ())
            }
        })
    }

    async fn ensure(&mut self, queue: &QueueName) -> Sql<i64> {
        if let Some(id) = self.books.id(queue) {
            return Ok(id);
        }
        let id = self.store.create(queue).await?;
        self.books.open(id, Account { name: queue.clone(), messages: 0, taken: 0, bytes: 0 });
        Ok(id)
    }

    /// Moves a taken message to its project's dead letters.
    async fn bury(&mut self, row: Row, why: &str) -> Sql<Result<()>> {
        let Some(from) = self.books.get(row.queue).map(|account| account.name.clone()) else {
            return Ok(Ok(()));
        };
        let dead = self.ensure(&QueueName::dead(&from.project())).await?;
        if dead != row.queue
            && let Err(full) = self.books.room(dead, 1, row.bytes, self.bounds)
        {
            return Ok(Err(full));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.store.bury(row.id, dead, &from, why, now).await?;
        if let Some(account) = self.books.change(row.queue) {
            account.taken = account.taken.saturating_sub(1);
            account.remove(1, row.bytes);
        }
        if let Some(account) = self.books.change(dead) {
            account.add(1, row.bytes);
        }
        Ok(Ok(()))
    }

    async fn purge(&mut self, queue: &QueueName, last: i64) -> Sql<Result<Step>> {
        let id = match self.books.known(queue) {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        let (moved, bytes) = self.store.drop_head(id, STEP_MESSAGES, last).await?;
        if let Some(account) = self.books.change(id) {
            account.remove(moved, bytes);
        }
        Ok(Ok(Step { moved, more: moved >= STEP_MESSAGES.unsigned_abs(), last }))
    }

    async fn requeue_dead(&mut self, queue: &QueueName, ids: Option<&[i64]>, last: i64) -> Sql<Result<Step>> {
        let Some(dead) = self.books.id(queue) else {
            return Ok(Ok(Step { moved: 0, more: false, last }));
        };
        let rows = self.store.dead(dead, ids, last, STEP_MESSAGES).await?;
        let more = rows.len() as u64 >= STEP_MESSAGES.unsigned_abs();
        let last = rows.last().map_or(last, |row| row.id);
        let mut by_queue: BTreeMap<String, (Vec<i64>, u64)> = BTreeMap::new();
        for row in rows {
            let group = by_queue.entry(row.from).or_default();
            group.0.push(row.id);
            group.1 += row.bytes;
        }
        let (mut moved, mut refused) = (0, None);
        for (name, (ids, bytes)) in by_queue {
            let Ok(name) = QueueName::new(name) else { continue };
            let count = ids.len() as u64;
            let fits = self.books.known(&name);
            match fits.and_then(|id| self.books.room(id, count, bytes, self.bounds).map(|()| id)) {
                Ok(id) => {
                    self.store.revive(ids, id).await?;
                    if let Some(account) = self.books.change(dead) {
                        account.remove(count, bytes);
                    }
                    if let Some(account) = self.books.change(id) {
                        account.add(count, bytes);
                    }
                    self.ring(id);
                    moved += count;
                }
                Err(error) => refused = Some(error),
            }
        }
        Ok(match refused {
            Some(error) if moved == 0 => Err(error),
            _ => Ok(Step { moved, more, last }),
        })
    }

    fn ring(&mut self, queue: i64) {
        self.rang |= self.books.get(queue).is_some_and(|account| self.shared.is_listened(&account.name));
    }

    fn publish(&self, accounts: impl IntoIterator<Item = Account>) {
        let mut depths = self.shared.depths.lock().unwrap_or_else(PoisonError::into_inner);
        for account in accounts {
            depths.insert(account.name.clone(), account.depth());
        }
    }

    fn publish_all(&mut self) {
        let accounts: Vec<Account> = self.books.all().cloned().collect();
        self.shared.depths.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.publish(accounts);
    }
}
