//! Where tasks and results wait. Two backends, one conformance suite.
//!
//! A queue holds bytes, at least once, durably. It knows nothing of tasks: what a message means is the
//! broker's business, and a message that was lost or doubled does no harm, since the ledger decides.

mod bell;
mod config;
#[cfg(test)]
mod conformance;
mod embedded;
mod rabbitmq;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use codering_core::{Code, Error, QueueName};

use bell::Bell;
pub use bell::{Listener, Rung};
pub use config::{Backend, QueueConfig};

/// How often a message is handed out before it is put among the dead letters: a backstop, since what a
/// task may cost is counted in the ledger.
pub const DELIVERY_LIMIT: i64 = 100;

/// Of a dead letter no more bytes than these are shown; all of them are kept, and put back when it is requeued.
pub const SHOWN_BYTES: usize = 64 << 10;

/// The beginning of a dead letter, where text ends with a whole character.
fn shown_part(body: &[u8]) -> Bytes {
    let head = &body[..body.len().min(SHOWN_BYTES)];
    let whole = match std::str::from_utf8(head) {
        Err(error) if error.error_len().is_none() && head.len() < body.len() => &head[..error.valid_up_to()],
        _ => head,
    };
    Bytes::copy_from_slice(whole)
}

/// Why a call did not do what it should.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// The backend cannot be reached or did not confirm in time; a message may still have been queued.
    #[error("the queue backend cannot be reached: {0}")]
    Unavailable(String),
    /// There is no such queue.
    #[error("there is no queue {0}")]
    NotFound(QueueName),
    /// The queue is at its bound; nothing was put.
    #[error("queue {0} is full")]
    Full(QueueName),
    /// The disk under the backend is full, or down to its reserve; nothing was put.
    #[error("the queue has no room: {0}")]
    DiskFull(String),
    /// The message is over the bound; nothing was put.
    #[error("a message has at most {limit} bytes, this one {bytes}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
}

impl From<QueueError> for Error {
    fn from(error: QueueError) -> Self {
        let code = match &error {
            QueueError::Unavailable(_) => Code::QueueUnavailable,
            QueueError::NotFound(_) => Code::QueueNotFound,
            QueueError::Full(_) => Code::QueueFull,
            QueueError::DiskFull(_) => Code::QueueDiskFull,
            QueueError::TooLarge { .. } => Code::TooLarge,
        };
        let told = Error::new(code, error.to_string());
        if code == Code::QueueDiskFull {
            told.hint("free space on that disk, and it goes on by itself")
        } else {
            told
        }
    }
}

/// The result of a queue call.
pub type Result<T> = std::result::Result<T, QueueError>;

/// A message to put.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its bytes, JSON by convention.
    pub body: Bytes,
    /// Higher first, where the backend can.
    pub priority: i32,
}

impl Message {
    /// A message of plain priority.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), priority: 0 }
    }
}

/// A message taken and not yet settled. Dropped unsettled, it returns to its queue.
#[derive(Debug)]
pub struct Delivery {
    /// Its bytes.
    pub body: Bytes,
    /// It was delivered before, so its effect may have been recorded already.
    pub redelivered: bool,
    /// How to settle it.
    pub settle: Box<dyn Settle>,
}

/// Settles one delivery. An error means that it may come again.
#[async_trait]
pub trait Settle: Send + Sync + std::fmt::Debug {
    /// It is done with.
    async fn ack(self: Box<Self>) -> Result<()>;
    /// Back to its queue.
    async fn requeue(self: Box<Self>) -> Result<()>;
    /// To the project's dead-letter queue, with the reason.
    async fn reject(self: Box<Self>, reason: String) -> Result<()>;
}

/// How full a queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Waiting.
    pub ready: u64,
    /// Taken, not settled; 0 where the backend does not tell.
    pub unacked: u64,
}

/// A message that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Names it among the dead.
    pub id: String,
    /// The queue that it was on.
    pub queue: QueueName,
    /// Why.
    pub reason: String,
    /// Since when, Unix milliseconds.
    pub at: i64,
    /// As it came, up to [`SHOWN_BYTES`].
    pub body: Bytes,
}

/// See the module.
#[async_trait]
pub trait Queues: Send + Sync + 'static {
    /// `rabbitmq` or `embedded`.
    fn backend(&self) -> &'static str;

    /// Makes the queue durable and known; `false`: it was there.
    async fn create(&self, queue: &QueueName) -> Result<bool>;

    /// Removes it with what is in it; no error where there is none.
    async fn delete(&self, queue: &QueueName) -> Result<()>;

    /// Removes what waits in it, and says how much.
    async fn purge(&self, queue: &QueueName) -> Result<u64>;

    /// How full it is; `NotFound` where there is none.
    async fn depth(&self, queue: &QueueName) -> Result<Depth>;

    /// Puts one message; returns once it is durable (publisher confirm, fsync). Many calls may run at once;
    /// they share a window of confirms or a group commit, and order is kept among calls from one task.
    async fn put(&self, queue: &QueueName, message: Message) -> Result<()>;

    /// Takes up to `max` messages that are there now; waits for none, so an empty answer means empty.
    async fn take(&self, queue: &QueueName, max: usize) -> Result<Vec<Delivery>>;

    /// The dead letters of a project's dead-letter queue (`<project>.dead`), without taking them.
    async fn dead(&self, queue: &QueueName, limit: usize) -> Result<Vec<DeadLetter>>;

    /// Puts dead letters back on the queues that they were on; `None`: all. Says how many.
    async fn requeue_dead(&self, queue: &QueueName, ids: Option<Vec<String>>) -> Result<u64>;

    /// Says which queues the broker wants to hear of when messages arrive that others put (raw AMQP clients).
    fn listen_to(&self, queues: Vec<QueueName>);

    /// Hears of queues that are listened to and may have new messages, and of a lost backend that is back.
    fn bell(&self) -> Listener;

    /// Whether the backend does not know this broker: it is new, or it lost its data. `false` only after
    /// [`Queues::remember`].
    async fn is_blank(&self) -> Result<bool>;

    /// From now on the backend knows this broker, for as long as it keeps its data.
    async fn remember(&self) -> Result<()>;

    /// Whether the backend answers right now, and if not, why.
    fn connected(&self) -> std::result::Result<(), String>;

    /// Finishes what is under way and closes.
    async fn close(&self);
}

/// A backend chosen at start.
pub type SharedQueues = Arc<dyn Queues>;

/// Opens the backend that the configuration names. RabbitMQ need not be there yet.
pub async fn open(config: &QueueConfig) -> Result<SharedQueues> {
    match config.chosen() {
        Backend::Embedded => {
            let directory = config.data_dir.as_deref().ok_or_else(|| {
                QueueError::Unavailable("the embedded queue needs queue.data_dir".to_owned())
            })?;
            embedded::open(directory, config).await
        }
        Backend::Rabbitmq => rabbitmq::open(config).await,
    }
}
