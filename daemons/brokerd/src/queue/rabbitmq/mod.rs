//! Queues on RabbitMQ 3.10 or newer, over AMQP alone.
//!
//! Messages are taken with `basic.get`, many at once over [`link::GETTERS`] channels, and not by consumers:
//! a message must be taken only when a slot is free for it, and a quorum queue's consumer cannot follow that.
//! Its prefetch is fixed when it starts, so following demand means a new consumer for every change, which
//! 3.10 does not bear well. Measured on two busy cores with RabbitMQ 3.10.8 on the same machine (get and ack a
//! second, messages of 300 bytes): 1 channel 280 to 340, 8 channels 3,400, 16 4,600, 32 5,100 to 6,100, 64
//! 6,600; a consumer with prefetch 32, acked one by one, 3,800 to 6,200. Publishing with a window of 512
//! unconfirmed: 21,000 to 37,000 a second.
//!
//! - [`supervisor`] keeps the two connections up; [`link`] is one life of the one for taking.
//! - [`publisher`] publishes and counts confirms; [`settle`] acks; [`bell`] hears of what others put.
//! - [`letters`]: dead letters and their headers.
//!
//! Queues are declared with their type as the only argument. Bounds and the delivery limit are a policy of
//! the administrator: `packaging/rabbitmq/`.

mod bell;
mod letters;
mod link;
mod publisher;
mod settle;
mod supervisor;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use codering_core::QueueName;
use lapin::{
    BasicProperties,
    message::BasicGetMessage,
    types::ShortString,
    uri::{AMQPScheme, AMQPUri},
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};

use super::{DeadLetter, Delivery, Depth, Message, QueueConfig, QueueError, Queues, Result, SharedQueues};
use link::Link;
use publisher::Put;
use settle::Held;
use supervisor::Address;

/// How many messages may wait for a place in the window of confirms; a further call waits to be let in.
const WAITING_PUTS: usize = 256;
/// How long a put waits for a connection that is lost or blocked.
const READY: Duration = Duration::from_secs(5);
/// How long a put may take in all; longer than one confirm.
const PUT: Duration = Duration::from_secs(25);
/// The most dead letters that one look at them shows.
const MOST_DEAD: usize = 1_000;
/// Debian's bundle of authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

#[derive(Clone)]
enum State {
    Down(String),
    Up(Arc<Link>),
}

/// What callers, the supervisor and the bell share.
struct Shared {
    prefix: String,
    state: watch::Sender<State>,
    /// Why RabbitMQ takes no messages, while it does not.
    blocked: watch::Sender<Option<String>>,
    puts: mpsc::Sender<Put>,
    /// Queues that were there when last looked at, and how many messages were left on them then.
    known: Mutex<HashMap<QueueName, usize>>,
    listened: Mutex<HashSet<QueueName>>,
    listens: Notify,
    bell: watch::Sender<u64>,
    closing: watch::Sender<bool>,
    closed: watch::Sender<bool>,
    /// Makes message ids: this run's, and a number.
    run_id: u64,
    next_message: AtomicU64,
}

/// The RabbitMQ backend.
struct RabbitMq {
    shared: Arc<Shared>,
    max_message_bytes: usize,
}

/// Starts connecting; returns when connected, or shortly after when RabbitMQ is away.
pub(super) async fn open(config: &QueueConfig) -> Result<SharedQueues> {
    let refuse = |why: &str| Err(QueueError::Unavailable(why.to_owned()));
    let Ok(mut uri) = config.address()?.parse::<AMQPUri>() else {
        return refuse("the address of RabbitMQ is not of the form amqp://user:password@host:5672/vhost");
    };
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned();
    }
    uri.query.heartbeat.get_or_insert(10);
    if config.prefix.len() > 100 || config.prefix.contains(|c: char| !c.is_ascii_graphic()) {
        return refuse("queue.prefix has at most 100 printable ASCII characters");
    }
    let authorities = match (&uri.scheme, &config.ca_file) {
        (AMQPScheme::AMQP, _) => None,
        (AMQPScheme::AMQPS, file) => {
            let path = file.as_deref().unwrap_or(Path::new(AUTHORITIES));
            match std::fs::read_to_string(path) {
                Ok(pem) => Some(pem),
                Err(error) => return refuse(&format!("queue.ca_file {}: {error}", path.display())),
            }
        }
    };
    let (puts, waiting) = mpsc::channel(WAITING_PUTS);
    let shared = Arc::new(Shared {
        prefix: config.prefix.clone(),
        state: watch::Sender::new(State::Down("not connected yet".to_owned())),
        blocked: watch::Sender::new(None),
        puts,
        known: Mutex::default(),
        listened: Mutex::default(),
        listens: Notify::new(),
        bell: watch::Sender::new(0),
        closing: watch::Sender::new(false),
        closed: watch::Sender::new(false),
        run_id: rand::random(),
        next_message: AtomicU64::new(0),
    });
    tokio::spawn(supervisor::run(shared.clone(), Address { uri, authorities }, waiting));
    tokio::spawn(bell::run(shared.clone()));
    // Without it, what starts with brokerd would meet a connection that is not there yet.
    let mut state = shared.state.subscribe();
    let _ = timeout(Duration::from_secs(3), state.wait_for(|state| matches!(state, State::Up(_)))).await;
    let max_message_bytes = usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX);
    Ok(Arc::new(RabbitMq { shared, max_message_bytes }))
}

impl Shared {
    fn wire_name(&self, queue: &QueueName) -> ShortString {
        letters::wire_name(&self.prefix, queue)
    }

    fn listened(&self) -> HashSet<QueueName> {
        self.listened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ring(&self) {
        self.bell.send_modify(|count| *count += 1);
    }

    fn known(&self, queue: &QueueName) -> Option<usize> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(queue).copied()
    }

    fn learn(&self, queue: &QueueName, left: usize) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), left);
    }

    fn forget(&self, queue: &QueueName) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
    }

    fn link(&self) -> Result<Arc<Link>> {
        match &*self.state.borrow() {
            State::Up(link) => Ok(link.clone()),
            State::Down(why) => Err(QueueError::Unavailable(why.clone())),
        }
    }

    /// How many messages wait; remembers whether the queue is there.
    async fn count(&self, queue: &QueueName) -> Result<u32> {
        let counted = self.link()?.count(queue, &self.wire_name(queue)).await;
        match &counted {
            Ok(count) => self.learn(queue, *count as usize),
            Err(QueueError::NotFound(_)) => self.forget(queue),
            Err(_) => {}
        }
        counted
    }

    async fn create(&self, queue: &QueueName) -> Result<bool> {
        let name = self.wire_name(queue);
        let new = match self.count(queue).await {
            Ok(_) => false,
            Err(QueueError::NotFound(_)) => {
                self.link()?.declare(queue, &name).await?;
                self.learn(queue, 0);
                true
            }
            Err(error) => return Err(error),
        };
        let project = queue.project();
        if *queue == QueueName::dead(&project) {
            let exchange = letters::dead_exchange(&self.prefix);
            let pattern = letters::wire_text(&self.prefix, &format!("{project}.#"));
            self.link()?.bind_dead(queue, &name, exchange, pattern).await?;
        }
        Ok(new)
    }

    /// Waits, for a bounded time, until RabbitMQ takes messages.
    async fn ready(&self) -> Result<()> {
        let (mut state, mut blocked) = (self.state.subscribe(), self.blocked.subscribe());
        let ready = async {
            loop {
                if state.wait_for(|state| matches!(state, State::Up(_))).await.is_err()
                    || blocked.wait_for(Option::is_none).await.is_err()
                    || matches!(*state.borrow(), State::Up(_))
                {
                    return;
                }
            }
        };
        if timeout(READY, ready).await.is_ok() {
            return Ok(());
        }
        Err(QueueError::Unavailable(self.trouble().unwrap_or_else(|| "not connected".to_owned())))
    }

    fn trouble(&self) -> Option<String> {
        if let State::Down(why) = &*self.state.borrow() {
            return Some(why.clone());
        }
        let blocked = self.blocked.borrow().clone();
        blocked.map(|reason| format!("RabbitMQ blocks publishers: {reason}"))
    }

    async fn publish(&self, queue: &QueueName, body: Bytes, properties: BasicProperties) -> Result<()> {
        let number = self.next_message.fetch_add(1, Ordering::Relaxed);
        let id = format!("cdr-{:016x}-{number}", self.run_id);
        let properties = properties
            .with_message_id(id.into())
            .with_content_type("application/json".into())
            .with_delivery_mode(2);
        let unknown = |why: &str| QueueError::Unavailable(format!("{why}; the message may be queued or not"));
        let put = async {
            // Not awaited where there is nothing to wait for, so that calls made together keep their order.
            if self.trouble().is_some() {
                self.ready().await?;
            }
            if self.known(queue).is_none() {
                self.count(queue).await?;
            }
            let (reply, answer) = oneshot::channel();
            let put = Put { queue: queue.clone(), name: self.wire_name(queue), body, properties, reply };
            let closed = |_| QueueError::Unavailable("the queue backend is closed".to_owned());
            match self.puts.try_send(put) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(put) | mpsc::error::TrySendError::Closed(put)) => {
                    self.puts.send(put).await.map_err(closed)?;
                }
            }
            answer.await.map_err(|_| unknown("the connection was lost before the confirm"))?
        };
        let done = match timeout(PUT, put).await {
            Ok(done) => done,
            Err(_) => Err(unknown(&self.trouble().unwrap_or_else(|| "no confirm in time".to_owned()))),
        };
        match &done {
            Ok(()) if self.listened.lock().unwrap_or_else(PoisonError::into_inner).contains(queue) => {
                self.ring()
            }
            Err(QueueError::NotFound(_)) => self.forget(queue),
            _ => {}
        }
        done
    }

    async fn get(self: Arc<Self>, queue: QueueName, max: usize) -> Result<Vec<BasicGetMessage>> {
        let expected = match self.known(&queue) {
            Some(left) => left,
            None => self.count(&queue).await? as usize,
        };
        let (got, left) = self.link()?.get_many(&queue, &self.wire_name(&queue), max, expected).await;
        match &got {
            Ok(_) => self.learn(&queue, left),
            Err(QueueError::NotFound(_)) => self.forget(&queue),
            Err(_) => {}
        }
        got
    }

    fn hold(self: &Arc<Self>, queue: &QueueName, message: BasicGetMessage) -> Delivery {
        let lapin::message::Delivery { data, redelivered, acker, .. } = message.delivery;
        let body = Bytes::from(data);
        let held =
            Held { shared: self.clone(), queue: queue.clone(), body: body.clone(), acker: Some(acker) };
        Delivery { body, redelivered, settle: Box::new(held) }
    }

    /// Takes, with what each message says of its death. It runs to its end even when the caller goes away:
    /// a message on its way would be held by nobody.
    async fn take(self: &Arc<Self>, queue: &QueueName, max: usize) -> Result<Vec<(DeadLetter, Delivery)>> {
        let (shared, queue) = (self.clone(), queue.clone());
        let taking = tokio::spawn(async move {
            let messages = shared.clone().get(queue.clone(), max).await?;
            let held = messages.into_iter().map(|message| {
                let letter = letters::read(&message.delivery, &queue, &shared.prefix);
                (letter, shared.hold(&queue, message))
            });
            Ok(held.collect())
        });
        taking.await.map_err(|error| QueueError::Unavailable(error.to_string()))?
    }
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
        let all = match self.shared.take(queue, limit.min(MOST_DEAD)).await {
            Err(QueueError::NotFound(_)) => return Ok(Vec::new()),
            all => all?,
        };
        let mut letters = Vec::with_capacity(all.len());
        for (letter, delivery) in all {
            delivery.settle.requeue().await?;
            letters.push(letter);
        }
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
            for (letter, delivery) in batch {
                left = left.saturating_sub(1);
                let is_wanted = wanted.as_mut().is_none_or(|wanted| wanted.remove(&letter.id));
                if !is_wanted || letter.queue == *queue {
                    others.push(delivery.settle);
                    continue;
                }
                match self.shared.publish(&letter.queue, letter.body, BasicProperties::default()).await {
                    Ok(()) => {
                        delivery.settle.ack().await?;
                        moved += 1;
                    }
                    Err(error) => {
                        refused = Some(error);
                        others.push(delivery.settle);
                    }
                }
            }
        }
        for settle in others {
            settle.requeue().await?;
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

    fn bell(&self) -> watch::Receiver<u64> {
        self.shared.bell.subscribe()
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
