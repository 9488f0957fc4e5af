//! What callers, the supervisor and the bell share, and the verbs that several of them need.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use codering_core::QueueName;
use lapin::{BasicProperties, message::BasicGetMessage, types::ShortString};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};

use super::{letters, link::Link, publisher::Put, settle::Held};
use crate::queue::{Bell, DeadLetter, Delivery, QueueError, Result, Settle as _};

/// How long a put waits for a connection that is lost or blocked.
const READY: Duration = Duration::from_secs(5);
/// How long a put may take in all; longer than one confirm.
pub(super) const PUT: Duration = Duration::from_secs(25);

#[derive(Clone)]
pub(super) enum State {
    Down(String),
    Up(Arc<Link>),
}

/// What callers, the supervisor and the bell share.
pub(super) struct Shared {
    pub(super) prefix: String,
    pub(super) state: watch::Sender<State>,
    /// Why RabbitMQ takes no messages, while it does not.
    pub(super) blocked: watch::Sender<Option<String>>,
    pub(super) puts: mpsc::Sender<Put>,
    /// Queues that were there when last looked at, and how many messages were left on them then.
    pub(super) known: Mutex<HashMap<QueueName, usize>>,
    pub(super) listened: Mutex<HashSet<QueueName>>,
    pub(super) listens: Notify,
    pub(super) bell: Bell,
    pub(super) closing: watch::Sender<bool>,
    pub(super) closed: watch::Sender<bool>,
    /// Makes message ids: this run's, and a number.
    pub(super) run_id: u64,
    pub(super) next_message: AtomicU64,
    pub(super) load: Arc<Load>,
    /// How many messages of a queue are asked for at once.
    widths: Mutex<HashMap<QueueName, usize>>,
}

/// Of a queue that was never asked: nobody knows how large its messages are.
const FIRST_WIDTH: usize = 4;

/// Bytes of messages taken and not settled, beyond which no more are taken. What one answer may bring on top of them
/// RabbitMQ alone can bound: `max_message_size`.
const LOAD: usize = 64 << 20;
/// How long a question waits for those before it to be settled.
const UNLOADED: Duration = Duration::from_secs(10);

/// How much memory taken messages hold.
#[derive(Default)]
pub(super) struct Load {
    bytes: AtomicUsize,
    freed: Notify,
}

impl Load {
    /// Waits until there is room; `false`: there was none in time.
    async fn has_room(&self) -> bool {
        let room = async {
            loop {
                let freed = self.freed.notified();
                if self.bytes.load(Ordering::SeqCst) < LOAD {
                    return;
                }
                freed.await;
            }
        };
        timeout(UNLOADED, room).await.is_ok()
    }

    /// Counts so many bytes until the answer is dropped.
    pub(super) fn hold(self: &Arc<Self>, bytes: usize) -> Weight {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
        Weight { load: self.clone(), bytes }
    }
}

/// A taken message's share.
pub(super) struct Weight {
    load: Arc<Load>,
    bytes: usize,
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.load.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        self.load.freed.notify_waiters();
    }
}

impl Shared {
    pub(super) fn new(prefix: String, puts: mpsc::Sender<Put>) -> Self {
        Self {
            prefix,
            state: watch::Sender::new(State::Down("not connected yet".to_owned())),
            blocked: watch::Sender::new(None),
            puts,
            known: Mutex::default(),
            listened: Mutex::default(),
            listens: Notify::new(),
            bell: Bell::default(),
            closing: watch::Sender::new(false),
            closed: watch::Sender::new(false),
            run_id: rand::random(),
            next_message: AtomicU64::new(0),
            load: Arc::default(),
            widths: Mutex::default(),
        }
    }

    pub(super) fn wire_name(&self, queue: &QueueName) -> ShortString {
        letters::wire_name(&self.prefix, queue)
    }

    pub(super) fn listened(&self) -> HashSet<QueueName> {
        self.listened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn known(&self, queue: &QueueName) -> Option<usize> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(queue).copied()
    }

    pub(super) fn learn(&self, queue: &QueueName, left: usize) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), left);
    }

    pub(super) fn forget(&self, queue: &QueueName) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
        self.widths.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
    }

    pub(super) fn link(&self) -> Result<Arc<Link>> {
        match &*self.state.borrow() {
            State::Up(link) => Ok(link.clone()),
            State::Down(why) => Err(QueueError::Unavailable(why.clone())),
        }
    }

    /// How many messages wait; remembers whether the queue is there.
    pub(super) async fn count(&self, queue: &QueueName) -> Result<u32> {
        let counted = self.link()?.count(queue, &self.wire_name(queue)).await;
        match &counted {
            Ok(count) => self.learn(queue, *count as usize),
            Err(QueueError::NotFound(_)) => self.forget(queue),
            Err(_) => {}
        }
        counted
    }

    pub(super) async fn create(&self, queue: &QueueName) -> Result<bool> {
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
    pub(super) async fn ready(&self) -> Result<()> {
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

    pub(super) fn trouble(&self) -> Option<String> {
        if let State::Down(why) = &*self.state.borrow() {
            return Some(why.clone());
        }
        let blocked = self.blocked.borrow().clone();
        blocked.map(|reason| format!("RabbitMQ blocks publishers: {reason}"))
    }

    pub(super) async fn publish(
        &self,
        queue: &QueueName,
        body: Bytes,
        properties: BasicProperties,
    ) -> Result<()> {
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
                self.bell.ring(queue.clone());
            }
            Err(QueueError::NotFound(_)) => self.forget(queue),
            _ => {}
        }
        done
    }

    pub(super) async fn get(self: Arc<Self>, queue: QueueName, max: usize) -> Result<Vec<BasicGetMessage>> {
        let expected = match self.known(&queue) {
            Some(left) => left,
            None => self.count(&queue).await? as usize,
        };
        if !self.load.has_room().await {
            return Err(QueueError::Unavailable("the messages taken before are not settled yet".to_owned()));
        }
        let mut width = self
            .widths
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&queue)
            .copied()
            .unwrap_or(FIRST_WIDTH);
        let name = self.wire_name(&queue);
        let (got, left) = self.link()?.get_many(&queue, &name, max, expected, &mut width).await;
        self.widths.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), width);
        match &got {
            Ok(got) => {
                self.learn(&queue, left);
                // Fewer than were asked for, and yet not all: whoever takes that for the end is told that it is not.
                if got.len() < max && left > 0 {
                    self.bell.ring(queue.clone());
                }
            }
            Err(QueueError::NotFound(_)) => self.forget(&queue),
            Err(_) => {}
        }
        got
    }

    pub(super) fn hold(self: &Arc<Self>, queue: &QueueName, message: BasicGetMessage) -> Delivery {
        let (redelivered, held) = self.held(queue, message);
        Delivery { body: held.body.clone(), redelivered, settle: Box::new(held) }
    }

    fn held(self: &Arc<Self>, queue: &QueueName, message: BasicGetMessage) -> (bool, Held) {
        let lapin::message::Delivery { data, redelivered, acker, .. } = message.delivery;
        let body = Bytes::from(data);
        let weight = self.load.hold(body.len());
        let (shared, queue) = (self.clone(), queue.clone());
        (redelivered, Held { shared, queue, body, acker: Some(acker), weight })
    }

    /// Looks at messages, each with what it says of its death, and puts them back. Of a large one nothing is kept
    /// meanwhile but what is shown.
    pub(super) async fn look(self: &Arc<Self>, queue: &QueueName, most: usize) -> Result<Vec<DeadLetter>> {
        let (shared, queue) = (self.clone(), queue.clone());
        let looking = tokio::spawn(async move {
            let (mut found, mut held) = (Vec::new(), Vec::new());
            while found.len() < most {
                let messages = shared.clone().get(queue.clone(), most - found.len()).await?;
                if messages.is_empty() {
                    break;
                }
                for message in messages {
                    found.push(letters::read(&message.delivery, &queue, &shared.prefix));
                    held.push(shared.held(&queue, message).1.without_body());
                }
            }
            for one in held {
                Box::new(one).requeue().await?;
            }
            Ok(found)
        });
        looking.await.map_err(|error| QueueError::Unavailable(error.to_string()))?
    }

    /// Takes, with what each message says of its death. It runs to its end even when the caller goes away:
    /// a message on its way would be held by nobody.
    pub(super) async fn take(
        self: &Arc<Self>,
        queue: &QueueName,
        max: usize,
    ) -> Result<Vec<(DeadLetter, Held)>> {
        let (shared, queue) = (self.clone(), queue.clone());
        let taking = tokio::spawn(async move {
            let messages = shared.clone().get(queue.clone(), max).await?;
            let held = messages.into_iter().map(|message| {
                let letter = letters::read(&message.delivery, &queue, &shared.prefix);
                (letter, shared.held(&queue, message).1)
            });
            Ok(held.collect())
        });
        taking.await.map_err(|error| QueueError::Unavailable(error.to_string()))?
    }
}
