//! Queues on RabbitMQ 3.10 or newer, over AMQP alone.
//!
//! Messages are taken with `basic.get`, many at once over [`link::GETTERS`] channels, and not by consumers:
//! a message must be taken only when a slot is free for it, and a quorum queue's consumer cannot follow that:
//! its prefetch is fixed when it starts, so following demand means a new consumer for every change, which
//! 3.10 does not bear well. Measured on two busy cores with RabbitMQ 3.10.8 on the same machine (debug build, messages of
//! 300 bytes, get and ack a second): 1 channel 300, 8 channels 3,400, 16 4,600, 32 5,100 to 6,100, 64 6,600; a
//! consumer with prefetch 32, acked one by one, 3,800 to 6,200. Through `take(32)` and ack: 6,200 with one taker,
//! 7,700 with two, each message costing brokerd and RabbitMQ some 90 µs of a core. Put: 22,000 to 34,000 a second
//! with 512 waiting, 2 ms for one alone. Listening to 50 idle queues: 0.3 % of a core here, 0.85 % in RabbitMQ.
//!
//! - [`supervisor`] keeps the two connections up; [`link`] is one life of the one for taking.
//! - [`publisher`] publishes and counts confirms; [`settle`] acks; [`bell`] hears of what others put.
//! - [`letters`]: dead letters and their headers; [`encrypted`]: TLS; [`shared`]: what all of them use.
//!
//! Queues are declared with their type as the only argument. Bounds and the delivery limit are a policy of
//! the administrator: `packaging/rabbitmq/`.

mod bell;
mod encrypted;
mod letters;
mod link;
mod publisher;
mod settle;
mod shared;
mod supervisor;

#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use codering_core::QueueName;
use lapin::{
    BasicProperties,
    uri::{AMQPScheme, AMQPUri},
};
use tokio::{sync::mpsc, time::timeout};

use super::{
    DeadLetter, Delivery, Depth, Listener, Message, QueueConfig, QueueError, Queues, Result, Settle as _,
    SharedQueues,
};
use shared::{PUT, Shared, State};
use supervisor::Address;

/// How many messages may wait for a place in the window of confirms; a further call waits to be let in.
const WAITING_PUTS: usize = 256;
/// The most dead letters that one look at them shows.
const MOST_DEAD: usize = 1_000;
/// Debian's bundle of authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// lapin holds 64 frames' worth of buffers per connection: 8 MB with RabbitMQ's own 128 KiB. Larger messages take more frames.
const FRAME_BYTES: u32 = 32 << 10;

/// The RabbitMQ backend.
struct RabbitMq {
    shared: Arc<Shared>,
    max_message_bytes: usize,
}

/// Reads where RabbitMQ is; again before each connection, so that a password may change in its file.
fn address(config: &QueueConfig) -> Result<Address> {
    let refuse = |why: &str| Err(QueueError::Unavailable(why.to_owned()));
    let Ok(mut uri) = config.address()?.parse::<AMQPUri>() else {
        return refuse("the address of RabbitMQ is not of the form amqp://user:password@host:5672/vhost");
    };
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned();
    }
    uri.query.heartbeat.get_or_insert(10);
    uri.query.frame_max.get_or_insert(FRAME_BYTES);
    let tls = match uri.scheme {
        AMQPScheme::AMQP => None,
        AMQPScheme::AMQPS => {
            let path = config.ca_file.as_deref().unwrap_or(Path::new(AUTHORITIES));
            let trusted = std::fs::read(path).map_err(|error| error.to_string());
            match trusted.and_then(|pem| encrypted::trust(&pem)) {
                Ok(tls) => Some(tls),
                Err(why) => return refuse(&format!("queue.ca_file {}: {why}", path.display())),
            }
        }
    };
    Ok(Address { uri, tls })
}

/// Starts connecting; returns when connected, or shortly after when RabbitMQ is away.
pub(super) async fn open(config: &QueueConfig) -> Result<SharedQueues> {
    address(config)?;
    if config.prefix.len() > 100 || config.prefix.contains(|c: char| !c.is_ascii_graphic()) {
        let why = "queue.prefix has at most 100 printable ASCII characters";
        return Err(QueueError::Unavailable(why.to_owned()));
    }
    let (puts, waiting) = mpsc::channel(WAITING_PUTS);
    let shared = Arc::new(Shared::new(config.prefix.clone(), puts));
    tokio::spawn(supervisor::run(shared.clone(), config.clone(), waiting));
    tokio::spawn(bell::run(shared.clone()));
    // Without it, what starts with brokerd would meet a connection that is not there yet.
    let mut state = shared.state.subscribe();
    let _ = timeout(Duration::from_secs(3), state.wait_for(|state| matches!(state, State::Up(_)))).await;
    let max_message_bytes = usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX);
    Ok(Arc::new(RabbitMq { shared, max_message_bytes }))
}

#[async_trait]
impl Queues for RabbitMq {
    fn backend(&self) -> &'static str {
        "rabbitmq"
    }

    async fn create(&self, queue: &QueueName) -> Result<bool> {
        self.shared.create(queue).await
    }

    async fn delete(&self, queue: &QueueName) -> Result<()> {
        self.shared.forget(queue);
        match self.shared.link()?.delete(queue, &self.shared.wire_name(queue)).await {
            Err(QueueError::NotFound(_)) => Ok(()),
            done => done,
        }
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64> {
        self.shared.link()?.purge(queue, &self.shared.wire_name(queue)).await
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth> {
        // AMQP tells only what waits.
        Ok(Depth { ready: self.shared.count(queue).await?.into(), unacked: 0 })
    }

    async fn put(&self, queue: &QueueName, message: Message) -> Result<()> {
        let Message { body, priority } = message;
        if body.len() > self.max_message_bytes {
            return Err(QueueError::TooLarge { bytes: body.len(), limit: self.max_message_bytes });
        }
        // Quorum queues know two levels from RabbitMQ 4.0 on, above 4 and the rest; none before.
        let properties = BasicProperties::default().with_priority(if priority > 0 { 9 } else { 0 });
        self.shared.publish(queue, body, properties).await
    }

    async fn take(&self, queue: &QueueName, max: usize) -> Result<Vec<Delivery>> {
        if max == 0 {
            return self.shared.count(queue).await.map(|_| Vec::new());
        }
        let (shared, queue) = (self.shared.clone(), queue.clone());
        let taking = tokio::spawn(async move {
            let messages = shared.clone().get(queue.clone(), max).await?;
            Ok(messages.into_iter().map(|message| shared.hold(&queue, message)).collect())
        });
        taking.await.map_err(|error| QueueError::Unavailable(error.to_string()))?
    }

    async fn dead(&self, queue: &QueueName, limit: usize) -> Result<Vec<DeadLetter>> {
        let mut letters = match self.shared.look(queue, limit.min(MOST_DEAD)).await {
            Err(QueueError::NotFound(_)) => return Ok(Vec::new()),
            letters => letters?,
        };
        letters.sort_by_key(|letter| letter.at);
        Ok(letters)
    }

    async fn requeue_dead(&self, queue: &QueueName, ids: Option<Vec<String>>) -> Result<u64> {
        let mut wanted = ids.map(|ids| ids.into_iter().collect::<HashSet<String>>());
        let mut left = match self.shared.count(queue).await {
            Err(QueueError::NotFound(_)) => return Ok(0),
            count => count? as usize,
        };
        let (mut moved, mut refused) = (0, None);
        // Held until the end, or they would be met again and again.
        let mut others = Vec::new();
        while left > 0 && wanted.as_ref().is_none_or(|wanted| !wanted.is_empty()) {
            let batch = self.shared.take(queue, left.min(link::GETTERS)).await?;
            if batch.is_empty() {
                break;
            }
            for (letter, held) in batch {
                left = left.saturating_sub(1);
                let is_wanted = wanted.as_mut().is_none_or(|wanted| wanted.remove(&letter.id));
                if !is_wanted || letter.queue == *queue {
                    others.push(held.without_body());
                    continue;
                }
                let body = held.body.clone();
                match self.shared.publish(&letter.queue, body, BasicProperties::default()).await {
                    Ok(()) => {
                        Box::new(held).ack().await?;
                        moved += 1;
                    }
                    Err(error) => {
                        refused = Some(error);
                        others.push(held.without_body());
                    }
                }
            }
        }
        for held in others {
            Box::new(held).requeue().await?;
        }
        match refused {
            Some(error) if moved == 0 => Err(error),
            _ => Ok(moved),
        }
    }

    fn listen_to(&self, queues: Vec<QueueName>) {
        *self.shared.listened.lock().unwrap_or_else(PoisonError::into_inner) = queues.into_iter().collect();
        self.shared.listens.notify_one();
    }

    fn bell(&self) -> Listener {
        self.shared.bell.listen()
    }

    async fn is_blank(&self) -> Result<bool> {
        Ok(!self.shared.link()?.has_exchange(letters::known_exchange(&self.shared.prefix)).await?)
    }

    async fn remember(&self) -> Result<()> {
        self.shared.link()?.make_exchange(letters::known_exchange(&self.shared.prefix)).await
    }

    fn connected(&self) -> std::result::Result<(), String> {
        self.shared.trouble().map_or(Ok(()), Err)
    }

    async fn close(&self) {
        self.shared.closing.send_replace(true);
        let mut closed = self.shared.closed.subscribe();
        // Bounded by the confirms that are still out, and twice the time to close a connection.
        let _ = timeout(PUT, closed.wait_for(|closed| *closed)).await;
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.shared.closing.send_replace(true);
    }
}
