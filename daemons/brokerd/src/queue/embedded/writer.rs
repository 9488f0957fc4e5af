//! The one task that changes `queue.db`. What has gathered while the last group was being committed is the
//! next group: alone, a call waits for its own fsync only; under load, some 256 share one.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use codering_core::QueueName;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    Shared,
    books::{Account, Books, Bounds},
    settle::{Row, Taken},
    store::{self, Store},
};
use crate::queue::{DELIVERY_LIMIT, Delivery, Message, QueueError, Result};

/// The most operations of one group.
const GROUP: usize = 256;
/// A take ends with the message that makes it so many bytes: all of them are in memory at once.
const TAKE_BYTES: u64 = 8 << 20;
/// How long the writer is idle before it looks whether a failure is over.
const PROBE: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T>>;
pub(super) type Answer = Box<dyn FnOnce() + Send>;
pub(super) type Sql<T> = std::result::Result<T, sqlx::Error>;

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
    pub(super) store: Store,
    pub(super) books: Books,
    pub(super) bounds: Bounds,
    pub(super) next_id: i64,
    pub(super) shared: Arc<Shared>,
    waiting: mpsc::Receiver<Op>,
    /// For the deliveries handed out; weak, so that the last handle's drop ends the writer.
    ops: mpsc::WeakSender<Op>,
    /// Settled in groups that could not be committed: they go back to their queues.
    owed: Vec<Row>,
    rang: BTreeSet<QueueName>,
}

pub(super) fn answer<T: Send + 'static>(reply: Reply<T>, value: Result<T>) -> Answer {
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
        let mut writer = Self {
            store,
            books,
            bounds,
            next_id,
            shared,
            waiting,
            ops,
            owed: Vec::new(),
            rang: BTreeSet::new(),
        };
        writer.publish_all();
        Ok(writer)
    }

    pub(super) async fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP);
        loop {
            let first = match timeout(PROBE, self.waiting.recv()).await {
                Ok(Some(first)) => first,
                Ok(None) => break,
                Err(_) => {
                    self.probe().await;
                    continue;
                }
            };
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
                for queue in std::mem::take(&mut self.rang) {
                    self.shared.bell.ring(queue);
                }
            }
            Err(error) => {
                tracing::error!(%error, "queue.db cannot be written");
                self.store.roll_back().await;
                self.shared.set_failure(Some(store::told(&error)));
                // Rows of an outage stay bounded by what was taken before it.
                self.owed.extend(rows);
                self.rang.clear();
                // Dropping the calls answers them with the failure.
                group.clear();
            }
        }
    }

    /// Looks whether a failure is over: callers may wait for that before they call again.
    async fn probe(&mut self) {
        if self.shared.failure().is_none() {
            return;
        }
        match self.recover().await {
            Ok(()) => {
                tracing::info!("queue.db can be written again");
                self.shared.set_failure(None);
                self.shared.bell.ring_all();
            }
            Err(_) => self.store.roll_back().await,
        }
    }

    /// After a failure: gives back what was settled in vain and counts anew.
    async fn recover(&mut self) -> Sql<()> {
        if self.shared.failure().is_none() {
            return Ok(());
        }
        // After an error of the disk a connection is not trusted any more.
        self.store.reopen().await?;
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

    pub(super) async fn settle(&mut self, acked: &[Row], released: &[Row]) -> Sql<()> {
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
        let mut bytes = 0;
        while let Some(account) = self.books.get(id).filter(|account| account.depth().ready > 0) {
            if deliveries.len() >= max || bytes >= TAKE_BYTES {
                // Whoever takes that for the end is told that it is not.
                if deliveries.len() < max {
                    self.ring(id);
                }
                break;
            }
            let asked = max - deliveries.len();
            let fits = account.largest.saturating_mul(asked as u64) <= TAKE_BYTES - bytes;
            let bound = (!fits).then_some(TAKE_BYTES - bytes);
            let rows = self.store.take(id, i64::try_from(asked).unwrap_or(i64::MAX), bound).await?;
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
                bytes += taken.row.bytes;
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

    pub(super) fn ring(&mut self, queue: i64) {
        let account = self.books.get(queue).filter(|account| self.shared.is_listened(&account.name));
        self.rang.extend(account.map(|account| account.name.clone()));
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
