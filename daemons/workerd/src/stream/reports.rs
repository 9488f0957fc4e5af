//! Results on their way: small ones on the stream, large ones by calls of their own. Tasks beside the stream's loop read
//! them and wait for room, so that answers to heartbeats are read meanwhile.

use std::{collections::HashMap, sync::Arc, time::Duration};

use codering_core::{Error, LeaseToken};
use codering_kit::fault::{self, Point};
use codering_proto::v1::{self, FromWorker, from_worker::Message};
use futures::{Stream, StreamExt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;

use super::session::takes_nothing;
use crate::{broker::Broker, spool::Spool, worker::Worker};

/// Results that wait to be sent, and their bytes: few, or on a slow link each would be sent again before it had arrived.
const ROOM: usize = 64;
const ROOM_BYTES: usize = 512 << 10;
/// Larger results go by a call of their own.
const MAX_ON_STREAM: usize = 256 << 10;
/// A result that was sent is sent again after this time without an answer.
const AGAIN: Duration = Duration::from_secs(15);
/// Large results reported at once.
const LARGE_AT_ONCE: usize = 2;
/// Results read from the spool in one go.
const READ_AT_ONCE: usize = 16;

/// A message, and its bytes' place, which is free again once the stream has taken it.
type Waiting = (FromWorker, OwnedSemaphorePermit);

/// The results that one stream reports.
pub(super) struct Reports {
    worker: Arc<Worker>,
    to: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    /// Without an answer so far, and when they were sent.
    sent: HashMap<LeaseToken, Instant>,
    /// One task at most: it says which ones it sent.
    sending: JoinSet<Vec<LeaseToken>>,
    large: JoinSet<Result<v1::ReportReceived, LeaseToken>>,
}

impl Reports {
    /// None sent yet, and what the stream is to take them from.
    pub fn new(worker: &Arc<Worker>) -> (Self, impl Stream<Item = FromWorker> + Send + use<>) {
        let (to, waiting) = mpsc::channel::<Waiting>(ROOM);
        let reports = Self {
            worker: worker.clone(),
            to,
            room: Arc::new(Semaphore::new(ROOM_BYTES)),
            sent: HashMap::new(),
            sending: JoinSet::new(),
            large: JoinSet::new(),
        };
        (reports, ReceiverStream::new(waiting).map(|(message, _room)| message))
    }

    /// Begins to send what waits in the spool and was not sent lately.
    pub fn send_due(&mut self) -> Result<(), Error> {
        if self.to.is_closed() {
            return Err(takes_nothing());
        }
        let waiting = self.worker.spool.waiting();
        self.worker.metrics.spooled.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
        // What comes while some are being sent is looked at when they are.
        let takes_small = self.sending.is_empty();
        let mut small = Vec::new();
        for (token, bytes) in waiting {
            if self.sent.get(&token).is_some_and(|at| at.elapsed() < AGAIN) {
                continue;
            }
            if bytes > MAX_ON_STREAM {
                self.call(token);
            } else if takes_small {
                small.push(token);
            }
        }
        if !small.is_empty() {
            self.sending.spawn(send(self.worker.spool.clone(), small, self.to.clone(), self.room.clone()));
        }
        Ok(())
    }

    /// Reports a large one, unless as many as may are on their way; those that wait are not even read.
    fn call(&mut self, token: LeaseToken) {
        if self.large.len() >= LARGE_AT_ONCE {
            return;
        }
        // No time of its own: the call has a bound.
        self.sent.insert(token.clone(), Instant::now() + AGAIN * 8);
        self.large.spawn(call(self.worker.broker.clone(), self.worker.spool.clone(), token));
    }

    /// Resolves when some were sent or a call is over, with its answer. Nothing is lost where it is dropped before.
    pub async fn over(&mut self) -> Option<v1::ReportReceived> {
        let unanswered = tokio::select! {
            Some(sent) = self.sending.join_next() => sent.unwrap_or_default(),
            Some(done) = self.large.join_next() => match done {
                Ok(Ok(received)) => return Some(received),
                // From now on as any other that was not answered.
                Ok(Err(token)) => vec![token],
                Err(_) => vec![],
            },
            else => std::future::pending().await,
        };
        for token in unanswered {
            // One that was answered meanwhile is forgotten already.
            if self.worker.spool.contains(&token) {
                self.sent.insert(token, Instant::now());
            }
        }
        None
    }

    /// It was recorded or fenced. The spool tells of it, and what waits is counted then.
    pub fn settled(&mut self, token: &LeaseToken) {
        self.sent.remove(token);
        // fault: the spool names its own.
        self.worker.spool.remove(token);
    }
}

async fn read(spool: &Arc<Spool>, wanted: Vec<LeaseToken>) -> Vec<(LeaseToken, v1::AttemptReport)> {
    let spool = spool.clone();
    let one = move |token: LeaseToken| spool.get(&token).map(|report| (token, report));
    let read = tokio::task::spawn_blocking(move || wanted.into_iter().filter_map(one).collect());
    read.await.unwrap_or_default()
}

/// Sends small ones for as long as the stream takes them; says which.
async fn send(
    spool: Arc<Spool>,
    small: Vec<LeaseToken>,
    to: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
) -> Vec<LeaseToken> {
    let mut sent = Vec::new();
    for batch in small.chunks(READ_AT_ONCE) {
        for (token, report) in read(&spool, batch.to_vec()).await {
            let bytes = prost::Message::encoded_len(&report).min(ROOM_BYTES);
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            let Ok(place) = room.clone().acquire_many_owned(bytes).await else { return sent };
            let message = FromWorker { message: Some(Message::Report(report)) };
            if to.send((message, place)).await.is_err() {
                return sent;
            }
            fault::reached(Point::ReportSent);
            sent.push(token);
        }
    }
    sent
}

async fn call(
    broker: Broker,
    spool: Arc<Spool>,
    token: LeaseToken,
) -> Result<v1::ReportReceived, LeaseToken> {
    let Some((_, report)) = read(&spool, vec![token.clone()]).await.pop() else { return Err(token) };
    let received = broker.report(report).await;
    fault::reached(Point::LargeReported);
    // The answer names the token; one that does not is taken as none.
    received.filter(|received| received.token == token.as_str()).ok_or(token)
}
