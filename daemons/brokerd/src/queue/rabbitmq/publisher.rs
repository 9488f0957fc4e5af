//! The one task that publishes, so that delivery tags keep the order of the messages: a window of publisher
//! confirms, each with a time-out.

use std::{collections::HashSet, pin::Pin, task::Poll, time::Duration};

use bytes::Bytes;
use codering_core::QueueName;
use futures::{Future, FutureExt, StreamExt, poll, stream::FuturesUnordered};
use lapin::{BasicProperties, Channel, Confirmation, options::BasicPublishOptions, types::ShortString};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::queue::{QueueError, Result};

/// The most unconfirmed messages.
const WINDOW: usize = 512;
/// The most bytes of them, save that one message always fits.
const WINDOW_BYTES: usize = 64 << 20;
/// How long one confirm may take.
const CONFIRM: Duration = Duration::from_secs(15);

/// A message on its way.
pub(super) struct Put {
    pub(super) queue: QueueName,
    pub(super) name: ShortString,
    pub(super) body: Bytes,
    pub(super) properties: BasicProperties,
    pub(super) reply: oneshot::Sender<Result<()>>,
}

struct Settled {
    queue: QueueName,
    id: Option<ShortString>,
    bytes: usize,
    reply: oneshot::Sender<Result<()>>,
    /// `None`: no answer came in time.
    outcome: Option<lapin::Result<Confirmation>>,
}

type Flight = Pin<Box<dyn Future<Output = Settled> + Send>>;

async fn publish(channel: Channel, put: Put) -> Settled {
    let Put { queue, name, body, properties, reply } = put;
    let id = properties.message_id().clone();
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirmed = async {
        let confirm = channel.basic_publish("".into(), name, options, &body, properties);
        confirm.await?.await
    };
    let outcome = timeout(CONFIRM, confirmed).await.ok();
    Settled { queue, id, bytes: body.len(), reply, outcome }
}

/// Publishes until the channel fails, and says why; or until `closing` and nothing is left. Dropped, it
/// leaves the callers of what is in its window without an answer, which tells them that it is unknown.
pub(super) async fn run(
    channel: &Channel,
    waiting: &mut mpsc::Receiver<Put>,
    mut closing: watch::Receiver<bool>,
    is_blocked: impl Fn() -> bool,
) -> String {
    let mut window: FuturesUnordered<Flight> = FuturesUnordered::new();
    let mut window_bytes = 0;
    let mut settled = Vec::new();
    let mut returned = HashSet::new();
    loop {
        let has_room = window.len() < WINDOW && (window_bytes < WINDOW_BYTES || window.is_empty());
        let is_closing = *closing.borrow();
        tokio::select! {
            biased;
            Some(one) = window.next(), if !window.is_empty() => settled.push(one),
            put = waiting.recv(), if has_room && !is_blocked() => {
                let Some(put) = put else { return "closed".to_owned() };
                // Whoever has given up waiting was told that it is not there.
                if put.reply.is_closed() {
                    continue;
                }
                window_bytes += put.body.len();
                let mut flight: Flight = Box::pin(publish(channel.clone(), put));
                // The first poll gives the message its delivery tag and its place in the socket's queue.
                match poll!(&mut flight) {
                    Poll::Ready(one) => settled.push(one),
                    Poll::Pending => window.push(flight),
                }
            }
            () = std::future::ready(()), if is_closing && window.is_empty() => {
                return "closed".to_owned();
            }
            _ = closing.changed(), if !is_closing => continue,
            // An unblocked connection is looked at again.
            () = tokio::time::sleep(Duration::from_millis(100)), if is_blocked() => continue,
        }
        while let Some(Some(more)) = window.next().now_or_never() {
            settled.push(more);
        }
        for one in &settled {
            window_bytes -= one.bytes;
            // A returned message comes with whichever confirm settles next.
            if let Some(Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message)))) =
                &one.outcome
                && let Some(id) = message.delivery.properties.message_id()
            {
                returned.insert(id.clone());
            }
        }
        for one in settled.drain(..) {
            let unroutable = one.id.is_some_and(|id| returned.remove(&id));
            let result = match one.outcome {
                _ if unroutable => Err(QueueError::NotFound(one.queue)),
                Some(Ok(Confirmation::Ack(_))) => Ok(()),
                Some(Ok(Confirmation::Nack(_))) => Err(QueueError::Full(one.queue)),
                Some(Ok(Confirmation::NotRequested)) => {
                    Err(QueueError::Unavailable("the channel does not confirm".to_owned()))
                }
                Some(Err(error)) => return error.to_string(),
                None if is_blocked() => Err(QueueError::Unavailable(
                    "RabbitMQ blocks publishers; the message may be queued later".to_owned(),
                )),
                None => return format!("no confirm within {} s", CONFIRM.as_secs()),
            };
            // A caller that is gone needs no answer.
            drop(one.reply.send(result));
        }
    }
}
