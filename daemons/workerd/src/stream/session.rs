//! One stream, from its hello to its end.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use codering_core::{Code, Error, LeaseToken};
use codering_kit::{
    fault::{self, Point},
    shutdown::Shutdown,
};
use codering_proto::{
    status::from_status,
    v1::{self, FromWorker, ToWorker, from_worker::Message, to_worker},
};
use futures::{
    FutureExt, Stream, StreamExt,
    stream::{PollNext, select_with_strategy},
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Signs, clock::Beats, logs, reports::Reports};
use crate::{backoff::Backoff, dispatcher, held::Stop, leases, worker::Worker};

/// Heartbeats that wait to be sent. They go before all else, for leases hang on them; where so many wait, the stream is dead.
const BEAT_ROOM: usize = 16;
/// Progress and build logs that wait; results wait apart behind them, and output behind those.
const ROOM: usize = 64;
const LOG_ROOM: usize = 8;
/// For the answer to the hello, and for room to send.
const PATIENCE: Duration = Duration::from_secs(15);

struct Session<'w> {
    worker: &'w Arc<Worker>,
    beat_to: mpsc::Sender<FromWorker>,
    to: mpsc::Sender<FromWorker>,
    logs: mpsc::Sender<FromWorker>,
    reports: Reports,
    lease: Duration,
    beats: Beats,
    /// When the last word that the broker has answered was sent: whatever it gives came after that.
    answered: Instant,
    pumps: HashMap<LeaseToken, AbortHandle>,
    pumping: JoinSet<()>,
    draining: bool,
}

/// Runs a stream until it ends; says why it did.
pub(super) async fn run(
    worker: &Arc<Worker>,
    events: &mut mpsc::Receiver<Message>,
    signs: &mut Signs,
    shutdown: &Shutdown,
    backoff: &mut Backoff,
) -> Error {
    match attached(worker, events, signs, shutdown, backoff).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn attached(
    worker: &Arc<Worker>,
    events: &mut mpsc::Receiver<Message>,
    signs: &mut Signs,
    shutdown: &Shutdown,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, Error> {
    let (beat_to, beats) = mpsc::channel(BEAT_ROOM);
    let (to, outbox) = mpsc::channel(ROOM);
    let (logs, logbox) = mpsc::channel(LOG_ROOM);
    let (reports, results) = Reports::new(worker);
    let upward = before(results, ReceiverStream::new(logbox));
    let upward = before(ReceiverStream::new(beats), before(ReceiverStream::new(outbox), upward));
    let held_tokens = held_tokens(worker);
    let hello = v1::Hello {
        slots: worker.config.slots,
        labels: worker.config.labels.clone().into_iter().collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        held_tokens: held_tokens.iter().map(ToString::to_string).collect(),
    };
    let said_hello = Instant::now();
    // The channel is new: there is room.
    let _ = beat_to.try_send(FromWorker { message: Some(Message::Hello(hello)) });
    let mut client = worker.broker.client();
    let mut downward = timeout(PATIENCE, client.attach(upward))
        .await
        .map_err(|_| silent())?
        .map_err(|status| from_status(&status))?
        .into_inner();
    let welcome = match timeout(PATIENCE, next(&mut downward)).await.map_err(|_| silent())?? {
        to_worker::Message::Welcome(welcome) => welcome,
        _ => return Err(Error::new(Code::Internal, "the broker's first word was not a welcome")),
    };
    let lease = Duration::from_millis(welcome.lease_ms.max(1000));
    let every = Duration::from_millis(welcome.heartbeat_ms.clamp(100, welcome.lease_ms.max(1000)));
    tracing::info!(
        worker = welcome.worker,
        lease_ms = welcome.lease_ms,
        held = held_tokens.len(),
        "attached"
    );
    backoff.reset();
    worker.metrics.connected.set(1);
    signs.readiness.degraded("broker", None);
    signs.latch = None;
    let mut session = Session {
        worker,
        beat_to,
        to,
        logs,
        reports,
        lease,
        beats: Beats::default(),
        answered: said_hello,
        pumps: HashMap::new(),
        pumping: JoinSet::new(),
        draining: false,
    };
    session.settle(said_hello, &held_tokens, &welcome.fenced_tokens);
    for held in worker.attempts.all() {
        let told = FromWorker { message: Some(Message::Progress(held.progress())) };
        session.to.send_timeout(told, PATIENCE).await.map_err(|_| takes_nothing())?;
    }
    session.serve(&mut downward, events, signs, shutdown, every).await
}

/// All that waits in `first` goes before anything of `second`.
fn before(
    first: impl Stream<Item = FromWorker> + Send + 'static,
    second: impl Stream<Item = FromWorker> + Send + 'static,
) -> impl Stream<Item = FromWorker> + Send + 'static {
    select_with_strategy(first.boxed(), second.boxed(), |(): &mut ()| PollNext::Left)
}

fn held_tokens(worker: &Worker) -> Vec<LeaseToken> {
    // The spool is read second: an attempt is in it before it leaves the attempts.
    let mut tokens: HashSet<LeaseToken> = worker.attempts.all().iter().map(|h| h.token.clone()).collect();
    tokens.extend(worker.spool.tokens());
    tokens.into_iter().collect()
}

fn tell_fenced(token: &LeaseToken) {
    tracing::warn!(token = &token.as_str()[..8], "a result was fenced: another attempt has its place");
}

fn silent() -> Error {
    Error::new(Code::BrokerUnreachable, "the broker does not answer")
}

pub(super) fn takes_nothing() -> Error {
    Error::new(Code::BrokerUnreachable, "the broker takes nothing any more")
}

async fn next(downward: &mut Streaming<ToWorker>) -> Result<to_worker::Message, Error> {
    loop {
        match downward.message().await.map_err(|status| from_status(&status))? {
            Some(ToWorker { message: Some(message) }) => return Ok(message),
            // A message of a newer broker, unknown here.
            Some(ToWorker { message: None }) => {}
            None => return Err(Error::new(Code::BrokerUnreachable, "the broker ended the stream")),
        }
    }
}

/// Hands one event to the stream once it has room. Dropped before, it has taken none.
async fn forward(events: &mut mpsc::Receiver<Message>, to: &mpsc::Sender<FromWorker>) -> Option<()> {
    let place = to.reserve().await.ok()?;
    place.send(FromWorker { message: Some(events.recv().await?) });
    Some(())
}

impl Session<'_> {
    async fn serve(
        &mut self,
        downward: &mut Streaming<ToWorker>,
        events: &mut mpsc::Receiver<Message>,
        signs: &Signs,
        shutdown: &Shutdown,
        every: Duration,
    ) -> Result<std::convert::Infallible, Error> {
        let worker = self.worker;
        let (mut attempts, mut spool) = (worker.attempts.changed(), worker.spool.changed());
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        self.pump_all();
        self.reports.send_due()?;
        // Nothing in here waits for room: while it did, no answer would be read, and leases would end that were renewed.
        loop {
            signs.pulse.beat();
            tokio::select! {
                message = next(downward) => {
                    heard = Instant::now();
                    self.take(message?);
                }
                _ = tick.tick() => {
                    // Heartbeats are answered: silence means that the stream is dead, whatever TCP thinks.
                    if heard.elapsed() > every * 3 + Duration::from_secs(1) {
                        // Unless it was us who did not listen.
                        let message = next(downward).now_or_never().ok_or_else(silent)?;
                        heard = Instant::now();
                        self.take(message?);
                    }
                    self.draining = shutdown.is_begun() || worker.takes_nothing();
                    self.beat()?;
                    self.reports.send_due()?;
                }
                Some(()) = forward(events, &self.to) => {}
                _ = attempts.changed() => self.pump_all(),
                _ = spool.changed() => {
                    // Said at once: each further result would wait in memory as well.
                    if !self.draining && worker.takes_nothing() {
                        self.draining = true;
                        self.beat()?;
                    }
                    self.reports.send_due()?;
                }
                received = self.reports.over() => {
                    if let Some(received) = received {
                        self.received(&received);
                    }
                    self.reports.send_due()?;
                }
                () = shutdown.begun(), if !self.draining => {
                    self.draining = true;
                    self.beat()?;
                }
            }
        }
    }

    fn beat(&mut self) -> Result<(), Error> {
        let tokens = held_tokens(self.worker);
        let wire = tokens.iter().map(ToString::to_string).collect();
        // Taken before it is sent: a lease never counts from later than the broker heard of it.
        let seq = self.beats.send(Instant::now(), tokens);
        let beat = v1::Heartbeat { seq, tokens: wire, draining: self.draining };
        let beat = FromWorker { message: Some(Message::Heartbeat(beat)) };
        self.beat_to.try_send(beat).map_err(|_| takes_nothing())
    }

    /// Leases that were renewed, and those that were not.
    fn settle(&mut self, sent: Instant, tokens: &[LeaseToken], fenced: &[String]) {
        for token in tokens {
            let lost = fenced.iter().any(|f| f == token.as_str());
            match self.worker.attempts.get(token) {
                Some(held) if lost => {
                    tracing::warn!(job = %held.job, task = %held.task, "fenced: the broker gave this attempt up");
                    held.stop(Stop::Fenced);
                }
                Some(held) => held.renewed(sent, self.lease),
                None => {}
            }
            if lost && self.worker.spool.contains(token) {
                tell_fenced(token);
                self.reports.settled(token);
            }
        }
        leases::write(self.worker);
    }

    fn take(&mut self, message: to_worker::Message) {
        match message {
            to_worker::Message::Assignment(assignment) => {
                dispatcher::assign(self.worker, assignment, self.answered);
            }
            to_worker::Message::Heartbeat(reply) => {
                if let Some(beat) = self.beats.answered(reply.seq) {
                    self.answered = beat.sent;
                    self.settle(beat.sent, &beat.tokens, &reply.fenced_tokens);
                }
                for token in &reply.cancelled_tokens {
                    self.cancel(token);
                }
            }
            to_worker::Message::Received(received) => self.received(&received),
            to_worker::Message::Cancel(cancel) => self.cancel(&cancel.token),
            to_worker::Message::Welcome(_) => tracing::warn!("a second welcome"),
        }
    }

    fn cancel(&self, token: &str) {
        let held = LeaseToken::new(token).ok().and_then(|token| self.worker.attempts.get(&token));
        if let Some(held) = held {
            held.stop(Stop::Cancelled);
        }
    }

    fn received(&mut self, received: &v1::ReportReceived) {
        let Ok(token) = LeaseToken::new(&received.token) else { return };
        if !received.recorded {
            tell_fenced(&token);
        }
        fault::reached(Point::ReportSettled);
        self.reports.settled(&token);
    }

    /// Streams the output of all attempts, and no more of those that are gone.
    fn pump_all(&mut self) {
        let all = self.worker.attempts.all();
        let there: HashSet<&LeaseToken> = all.iter().map(|held| &held.token).collect();
        self.pumps.retain(|token, pump| {
            let keep = there.contains(token);
            if !keep {
                pump.abort();
            }
            keep
        });
        for held in &all {
            if !self.pumps.contains_key(&held.token) {
                let pump = self.pumping.spawn(logs::pump(held.clone(), self.logs.clone()));
                self.pumps.insert(held.token.clone(), pump);
            }
        }
        // Those that ended are let go.
        while self.pumping.try_join_next().is_some() {}
    }
}
