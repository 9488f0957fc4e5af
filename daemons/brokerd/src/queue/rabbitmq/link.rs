//! One life of the connection for taking, and what is asked over it. Publishing has a connection of its own:
//! `connection.blocked` stops all writes on one, acks included.

use std::{
    cmp::Reverse,
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use codering_core::QueueName;
use futures::future::join_all;
use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    message::BasicGetMessage,
    options::{
        BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
        QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{sync::Mutex, time::timeout};

use crate::queue::{QueueError, Result};

/// A channel does one `basic.get` at a time, so this is how many run at once; see the figures in the module.
pub(super) const GETTERS: usize = 64;
/// The bytes after which one question brings no more messages; those on their way are on top of it.
const BATCH_BYTES: usize = 32 << 20;
/// How long RabbitMQ may take for one answer.
const ANSWER: Duration = Duration::from_secs(15);

/// A channel that is opened when it is needed, and again after an error has closed it.
#[derive(Default)]
struct Slot(Mutex<Option<Channel>>);

/// See the module.
pub(super) struct Link {
    connection: Connection,
    getters: Vec<Slot>,
    next: AtomicUsize,
    control: Slot,
    peek: Slot,
}

/// What a lapin error means to a caller.
pub(super) fn fault(queue: &QueueName, error: &lapin::Error) -> QueueError {
    match error.kind() {
        ErrorKind::ProtocolError(error) if error.get_id() == 404 => QueueError::NotFound(queue.clone()),
        _ => QueueError::Unavailable(error.to_string()),
    }
}

impl Slot {
    /// Runs one exchange on the channel. The channel is given up when the answer does not come, since a
    /// message in a late answer would be held by nobody.
    async fn ask<T, F>(
        &self,
        connection: &Connection,
        queue: &QueueName,
        ask: impl FnOnce(Channel) -> F,
    ) -> Result<T>
    where
        F: Future<Output = lapin::Result<T>>,
    {
        let mut slot = self.0.lock().await;
        let channel = match slot.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => timeout(ANSWER, connection.create_channel())
                .await
                .map_err(|_| silent())?
                .map_err(|e| fault(queue, &e))?,
        };
        let answer = timeout(ANSWER, ask(channel.clone())).await.map_err(|_| silent())?;
        *slot = Some(channel);
        answer.map_err(|e| fault(queue, &e))
    }
}

fn silent() -> QueueError {
    QueueError::Unavailable(format!("RabbitMQ did not answer within {} s", ANSWER.as_secs()))
}

fn passive() -> QueueDeclareOptions {
    QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() }
}

impl Link {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            getters: (0..GETTERS).map(|_| Slot::default()).collect(),
            next: AtomicUsize::new(0),
            control: Slot::default(),
            peek: Slot::default(),
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// How many messages wait.
    pub(super) async fn count(&self, queue: &QueueName, name: &ShortString) -> Result<u32> {
        self.control
            .ask(&self.connection, queue, |channel| async move {
                let declared = channel.queue_declare(name.clone(), passive(), FieldTable::default());
                Ok(declared.await?.message_count())
            })
            .await
    }

    /// The counts of many queues with one exchange; `None` for a queue that is not there.
    pub(super) async fn counts(&self, queues: &[(QueueName, ShortString)]) -> Result<Vec<Option<u32>>> {
        let Some((first, _)) = queues.first() else { return Ok(Vec::new()) };
        let all = self.peek.ask(&self.connection, first, |channel| async move {
            let asked = queues.iter().map(|(_, name)| {
                let declared = channel.queue_declare(name.clone(), passive(), FieldTable::default());
                async move { declared.await.map(|queue| queue.message_count()) }
            });
            join_all(asked).await.into_iter().collect::<lapin::Result<Vec<u32>>>()
        });
        match all.await {
            Ok(counts) => return Ok(counts.into_iter().map(Some).collect()),
            Err(QueueError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        // One that is missing spoils the answers of all: ask for each.
        let mut counts = Vec::with_capacity(queues.len());
        for (queue, name) in queues {
            counts.push(match self.count(queue, name).await {
                Ok(count) => Some(count),
                Err(QueueError::NotFound(_)) => None,
                Err(error) => return Err(error),
            });
        }
        Ok(counts)
    }

    /// Declares a quorum queue. Its type is its only argument: arguments can never change, all else is policy.
    pub(super) async fn declare(&self, queue: &QueueName, name: &ShortString) -> Result<()> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.control
            .ask(&self.connection, queue, |channel| async move {
                channel.queue_declare(name.clone(), options, arguments).await.map(drop)
            })
            .await
    }

    /// Lets what RabbitMQ itself gives up on a project's queues come to its dead letters: a policy can name
    /// one exchange for all projects, but not a queue for each.
    pub(super) async fn bind_dead(
        &self,
        dead: &QueueName,
        name: &ShortString,
        exchange: ShortString,
        pattern: ShortString,
    ) -> Result<()> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        self.control
            .ask(&self.connection, dead, |channel| async move {
                let none = FieldTable::default;
                channel.exchange_declare(exchange.clone(), ExchangeKind::Topic, options, none()).await?;
                let bind = QueueBindOptions::default();
                channel.queue_bind(name.clone(), exchange, pattern, bind, none()).await
            })
            .await
    }

    /// Whether there is an exchange of this name.
    pub(super) async fn has_exchange(&self, name: ShortString) -> Result<bool> {
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        match self.exchange(name, options).await {
            Ok(()) => Ok(true),
            Err(QueueError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a durable exchange that nothing is bound to.
    pub(super) async fn make_exchange(&self, name: ShortString) -> Result<()> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        self.exchange(name, options).await
    }

    async fn exchange(&self, name: ShortString, options: ExchangeDeclareOptions) -> Result<()> {
        // Only its error would name a queue.
        let none = QueueName::new("codering.known").map_err(|e| QueueError::Unavailable(e.to_string()))?;
        self.control
            .ask(&self.connection, &none, |channel| async move {
                channel.exchange_declare(name, ExchangeKind::Fanout, options, FieldTable::default()).await
            })
            .await
    }

    pub(super) async fn delete(&self, queue: &QueueName, name: &ShortString) -> Result<()> {
        self.control
            .ask(&self.connection, queue, |channel| async move {
                channel.queue_delete(name.clone(), QueueDeleteOptions::default()).await.map(drop)
            })
            .await
    }

    pub(super) async fn purge(&self, queue: &QueueName, name: &ShortString) -> Result<u64> {
        self.control
            .ask(&self.connection, queue, |channel| async move {
                channel.queue_purge(name.clone(), QueuePurgeOptions::default()).await.map(u64::from)
            })
            .await
    }

    async fn get(&self, queue: &QueueName, name: &ShortString) -> Result<Option<BasicGetMessage>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % GETTERS;
        self.getters[turn]
            .ask(&self.connection, queue, |channel| async move {
                channel.basic_get(name.clone(), BasicGetOptions::default()).await
            })
            .await
    }

    /// Gets up to `max` messages, fewer where they are large, and says how many the last answer saw waiting behind it.
    /// `expected` is how many there probably are: that many are asked for at once, at least one, never more than `max`
    /// nor than `width`, which follows the size of what comes: nobody says how large a message is before it is there.
    pub(super) async fn get_many(
        &self,
        queue: &QueueName,
        name: &ShortString,
        max: usize,
        mut expected: usize,
        width: &mut usize,
    ) -> (Result<Vec<BasicGetMessage>>, usize) {
        let mut all: Vec<BasicGetMessage> = Vec::new();
        let mut bytes = 0;
        while all.len() < max && bytes < BATCH_BYTES {
            let asked = expected.clamp(1, *width).min(max - all.len());
            let mut answers = join_all((0..asked).map(|_| self.get(queue, name))).await;
            // Asked for at once they come in any order; how many were left behind each tells theirs.
            answers.sort_by_key(|answer| match answer {
                Ok(Some(message)) => Reverse(message.message_count),
                _ => Reverse(0),
            });
            let (mut came, mut behind, mut failed, mut largest) = (0, usize::MAX, None, 1);
            for answer in answers {
                match answer {
                    Ok(Some(message)) => {
                        came += 1;
                        behind = behind.min(message.message_count as usize);
                        largest = largest.max(message.delivery.data.len());
                        bytes += message.delivery.data.len();
                        all.push(message);
                    }
                    Ok(None) => behind = 0,
                    Err(error) => failed = Some(error),
                }
            }
            *width = (*width * 2).min(BATCH_BYTES / largest).clamp(1, GETTERS);
            expected = if behind == usize::MAX { 0 } else { behind };
            match failed {
                // What came is kept: the next call meets the error again.
                Some(error) if all.is_empty() => return (Err(error), 0),
                Some(_) => break,
                None if came < asked || expected == 0 => break,
                None => {}
            }
        }
        (Ok(all), expected)
    }
}
