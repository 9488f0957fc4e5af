//! Queues in one SQLite file, `queue.db`: the default where no RabbitMQ is configured.
//!
//! One writer owns the only connection that writes and commits what is waiting in groups, so that one
//! fsync serves many calls ([`writer`], [`rare`]); [`store`] has the SQL and [`books`] the counters. A taken
//! message is marked in its row: after a restart it is back in its queue, `redelivered`.
//!
//! Measured on two busy cores (debug build, messages of 300 bytes): 94,000 puts a second with 512 waiting, 23,000
//! taken and acked a second by `take(32)`; alone, a put takes 0.6 ms, a take and ack 1.6 ms.

mod books;
mod rare;
mod settle;
mod store;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use codering_core::QueueName;
use codering_kit::disk::Reserve;
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    Bell, DeadLetter, Delivery, Depth, Listener, Message, QueueConfig, QueueError, Queues, Result,
    SharedQueues,
};
use books::Bounds;
use writer::{Op, Writer};

/// How many calls may wait for the writer; a further one waits to be let in.
const WAITING_CALLS: usize = 1024;
/// A file up to this size is checked all through at every start.
const CHECKED_BYTES: u64 = 16 << 20;
/// Removing and moving of many messages goes in steps, so that other calls get their turn.
const STEP_MESSAGES: i64 = 5_000;

/// What callers and the writer share.
#[derive(Debug)]
struct Shared {
    depths: Mutex<HashMap<QueueName, Depth>>,
    listened: Mutex<HashSet<QueueName>>,
    bell: Bell,
    /// Why the last group of calls could not be committed; `None` when it was.
    failure: Mutex<Option<QueueError>>,
}

impl Shared {
    fn failure(&self) -> Option<QueueError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_failure(&self, failure: Option<QueueError>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    fn depth(&self, queue: &QueueName) -> Option<Depth> {
        self.depths.lock().unwrap_or_else(PoisonError::into_inner).get(queue).copied()
    }

    fn is_listened(&self, queue: &QueueName) -> bool {
        self.listened.lock().unwrap_or_else(PoisonError::into_inner).contains(queue)
    }
}

/// The embedded backend.
#[derive(Debug)]
pub struct Embedded {
    shared: std::sync::Arc<Shared>,
    ops: mpsc::Sender<Op>,
    readers: SqlitePool,
    max_message_bytes: usize,
    /// There from the first [`Queues::remember`] on, for as long as `queue.db` is.
    known: PathBuf,
    reserve: Reserve,
    /// Held while open: the counters are this process's own.
    _lock: File,
}

/// Opens `DIR/queue.db`, making it where it is missing.
pub(super) async fn open(directory: &Path, config: &QueueConfig) -> Result<SharedQueues> {
    let say = |what: &str, error: String| {
        QueueError::Unavailable(format!("{}: {what}: {error}", directory.join("queue.db").display()))
    };
    std::fs::create_dir_all(directory).map_err(|e| say("cannot make its directory", e.to_string()))?;
    let lock = File::create(directory.join("queue.db.lock"))
        .map_err(|e| say("cannot make its lock", e.to_string()))?;
    lock.try_lock().map_err(|e| say("another process has it open", e.to_string()))?;

    let known = directory.join("queue.known");
    if !directory.join("queue.db").exists() && known.exists() {
        std::fs::remove_file(&known)
            .map_err(|e| say("cannot remove queue.known beside it", e.to_string()))?;
    }
    let options = SqliteConnectOptions::new()
        .filename(directory.join("queue.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("journal_size_limit", "67108864")
        .busy_timeout(Duration::from_secs(2));
    let sql = |what: &str, error: sqlx::Error| match store::told(&error) {
        full @ QueueError::DiskFull(_) => full,
        _ if store::is_damage(&error) => damaged(directory, &error.to_string()),
        _ => say(what, error.to_string()),
    };
    let mut store = store::Store::open(&options).await.map_err(|e| sql("cannot open it", e))?;
    let bytes = std::fs::metadata(directory.join("queue.db")).map_or(0, |about| about.len());
    if bytes <= CHECKED_BYTES
        && let Some(fault) = store.fault().await.map_err(|e| sql("cannot read it", e))?
    {
        return Err(damaged(directory, &fault));
    }
    let readers = SqlitePoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(10))
        .connect_lazy_with(options.read_only(true));

    let shared = std::sync::Arc::new(Shared {
        depths: Mutex::default(),
        listened: Mutex::default(),
        bell: Bell::default(),
        failure: Mutex::default(),
    });
    let bounds = Bounds { messages: config.max_messages, bytes: config.max_bytes };
    let (ops, waiting) = mpsc::channel(WAITING_CALLS);
    let writer = Writer::new(store, bounds, shared.clone(), waiting, ops.downgrade())
        .await
        .map_err(|e| sql("cannot read it", e))?;
    tokio::spawn(writer.run());
    let max_message_bytes = usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX);
    let queues = std::sync::Arc::new(Embedded {
        shared,
        ops,
        readers,
        max_message_bytes,
        known,
        reserve: Reserve::new(directory, config.min_free_disk),
        _lock: lock,
    });
    // What a delete of an earlier run did not finish.
    while queues.call(|reply| Op::Sweep { reply }).await? {}
    Ok(queues)
}

/// It may go: what waits for workers is in the ledger as well.
fn damaged(directory: &Path, why: &str) -> QueueError {
    let file = directory.join("queue.db").display().to_string();
    QueueError::Unavailable(format!(
        "{file}: the file is damaged: {why}. Move it away, with {file}-wal where there is one, and start again: brokerd \
         makes a new one and puts every task that waits on it again from the ledger. Lost are only messages that others \
         put and nobody took yet; those of the done queues come once more"
    ))
}

impl Embedded {
    async fn call<T>(&self, op: impl FnOnce(oneshot::Sender<Result<T>>) -> Op) -> Result<T> {
        call(&self.ops, &self.shared, op).await
    }

    async fn known(&self, queue: &QueueName) -> Result<Depth> {
        self.shared.depth(queue).ok_or_else(|| QueueError::NotFound(queue.clone()))
    }
}

/// Hands the writer one operation and waits for its answer.
async fn call<T>(
    ops: &mpsc::Sender<Op>,
    shared: &Shared,
    op: impl FnOnce(oneshot::Sender<Result<T>>) -> Op,
) -> Result<T> {
    let lost =
        || shared.failure().unwrap_or_else(|| QueueError::Unavailable("the embedded queue is closed".into()));
    let (reply, answer) = oneshot::channel();
    ops.send(op(reply)).await.map_err(|_| lost())?;
    answer.await.map_err(|_| lost())?
}

#[async_trait]
impl Queues for Embedded {
    fn backend(&self) -> &'static str {
        "embedded"
    }

    async fn create(&self, queue: &QueueName) -> Result<bool> {
        self.call(|reply| Op::Create { queue: queue.clone(), reply }).await
    }

    async fn delete(&self, queue: &QueueName) -> Result<()> {
        self.call(|reply| Op::Delete { queue: queue.clone(), reply }).await?;
        while self.call(|reply| Op::Sweep { reply }).await? {}
        Ok(())
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64> {
        let mut removed = 0;
        let mut last = None;
        loop {
            let step = self.call(|reply| Op::Purge { queue: queue.clone(), last, reply }).await?;
            removed += step.moved;
            if !step.more {
                return Ok(removed);
            }
            last = Some(step.last);
        }
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth> {
        self.known(queue).await
    }

    async fn put(&self, queue: &QueueName, message: Message) -> Result<()> {
        if message.body.len() > self.max_message_bytes {
            return Err(QueueError::TooLarge { bytes: message.body.len(), limit: self.max_message_bytes });
        }
        // Room for takes and acks, which write as well.
        if let Some(short) = self.reserve.touched() {
            return Err(QueueError::DiskFull(short.to_string()));
        }
        self.call(|reply| Op::Put { queue: queue.clone(), message, reply }).await
    }

    async fn take(&self, queue: &QueueName, max: usize) -> Result<Vec<Delivery>> {
        if self.known(queue).await?.ready == 0 || max == 0 {
            return Ok(Vec::new());
        }
        self.call(|reply| Op::Take { queue: queue.clone(), max, reply }).await
    }

    async fn dead(&self, queue: &QueueName, limit: usize) -> Result<Vec<DeadLetter>> {
        store::dead_letters(&self.readers, queue, limit)
            .await
            .map_err(|e| QueueError::Unavailable(format!("queue.db: {e}")))
    }

    async fn requeue_dead(&self, queue: &QueueName, ids: Option<Vec<String>>) -> Result<u64> {
        // An id that is no number names no message here.
        let ids = ids.map(|ids| ids.iter().filter_map(|id| id.parse().ok()).collect::<Vec<i64>>());
        let mut moved = 0;
        let mut last = None;
        loop {
            let (queue, ids) = (queue.clone(), ids.clone());
            let step = self.call(|reply| Op::RequeueDead { queue, ids, last, reply }).await?;
            moved += step.moved;
            if !step.more {
                return Ok(moved);
            }
            last = Some(step.last);
        }
    }

    fn listen_to(&self, queues: Vec<QueueName>) {
        *self.shared.listened.lock().unwrap_or_else(PoisonError::into_inner) = queues.into_iter().collect();
    }

    fn bell(&self) -> Listener {
        self.shared.bell.listen()
    }

    async fn is_blank(&self) -> Result<bool> {
        Ok(!self.known.exists())
    }

    async fn remember(&self) -> Result<()> {
        let failed = |e| QueueError::Unavailable(format!("{}: {e}", self.known.display()));
        std::fs::write(&self.known, "").map_err(failed)
    }

    fn connected(&self) -> std::result::Result<(), String> {
        if self.ops.is_closed() {
            return Err("the embedded queue is closed".into());
        }
        self.shared.failure().map_or(Ok(()), |error| Err(error.to_string()))
    }

    async fn close(&self) {
        // An error means that it is closed already.
        let _ = self.call(|reply| Op::Close { reply }).await;
        self.readers.close().await;
    }
}
