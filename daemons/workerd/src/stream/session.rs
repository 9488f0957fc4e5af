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
use futures::stream::{PollNext, select_with_strategy};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Signs, clock::Beats, logs};
use crate::{backoff::Backoff, dispatcher, held::Stop, leases, worker::Worker};

/// Messages that wait to be sent; output waits apart, behind them.
const ROOM: usize = 64;
const LOG_ROOM: usize = 8;
/// For the answer to the hello, and for room to send.
const PATIENCE: Duration = Duration::from_secs(15);
/// Larger results go by a call of their own.
const MAX_ON_STREAM: usize = 256 << 10;
/// A result that was sent is sent again after this time without an answer.
const REPORT_AGAIN: Duration = Duration::from_secs(15);
/// Large results reported at once.
const LARGE_AT_ONCE: usize = 2;
/// Results read from the spool in one go.
const READ_AT_ONCE: usize = 16;

struct Session<'w> {
    worker: &'w Arc<Worker>,
    to: mpsc::Sender<FromWorker>,
    logs: mpsc::Sender<FromWorker>,
    lease: Duration,
    beats: Beats,
    /// When the last word that the broker has answered was sent: whatever it gives came after that.
    answered: Instant,
    pumps: HashMap<LeaseToken, AbortHandle>,
    pumping: JoinSet<()>,
    reported: HashMap<LeaseToken, Instant>,
    large: JoinSet<Result<v1::ReportReceived, LeaseToken>>,
    draining: bool,
    /// Between heartbeats, and when the last one was sent.
    every: Duration,
    beaten: Instant,
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
    let (to, outbox) = mpsc::channel(ROOM);
    let (logs, logbox) = mpsc::channel(LOG_ROOM);
    let first = |(): &mut ()| PollNext::Left;
    let upward = select_with_strategy(ReceiverStream::new(outbox), ReceiverStream::new(logbox), first);
    let held_tokens = held_tokens(worker);
    let hello = v1::Hello {
        slots: worker.config.slots,
        labels: worker.config.labels.clone().into_iter().collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        held_tokens: held_tokens.iter().map(ToString::to_string).collect(),
    };
    let said_hello = Instant::now();
    // The channel is new: there is room.
    let _ = to.try_send(FromWorker { message: Some(Message::Hello(hello)) });
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
        to,
        logs,
        lease,
        beats: Beats::default(),
        answered: said_hello,
        pumps: HashMap::new(),
        pumping: JoinSet::new(),
        reported: HashMap::new(),
        large: JoinSet::new(),
        draining: false,
        every,
        beaten: said_hello,
    };
    session.settle(said_hello, &held_tokens, &welcome.fenced_tokens);
    for held in worker.attempts.all() {
        session.send(Message::Progress(held.progress())).await?;
    }
    session.serve(&mut downward, events, signs, shutdown, every).await
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
        self.report_all().await?;
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
                        return Err(silent());
                    }
                    self.draining = shutdown.is_begun() || worker.takes_nothing();
                    self.beat().await?;
                    self.report_all().await?;
                }
                Some(event) = events.recv() => self.send(event).await?,
                _ = attempts.changed() => self.pump_all(),
                _ = spool.changed() => {
                    // Said at once: each further result would wait in memory as well.
                    if !self.draining && worker.takes_nothing() {
                        self.draining = true;
                        self.beat().await?;
                    }
                    self.report_all().await?;
                }
                Some(done) = self.large.join_next() => {
                    match done {
                        Ok(Ok(received)) => self.received(&received),
                        // From now on as any other that was not answered.
                        Ok(Err(token)) => drop(self.reported.insert(token, Instant::now())),
                        Err(_) => {}
                    }
                    self.report_all().await?;
                }
                () = shutdown.begun(), if !self.draining => {
                    self.draining = true;
                    self.beat().await?;
                }
            }
        }
    }

    async fn send(&self, message: Message) -> Result<(), Error> {
        let sent = self.to.send_timeout(FromWorker { message: Some(message) }, PATIENCE).await;
        sent.map_err(|_| Error::new(Code::BrokerUnreachable, "the broker takes nothing any more"))
    }

    async fn beat(&mut self) -> Result<(), Error> {
        let tokens = held_tokens(self.worker);
        let wire = tokens.iter().map(ToString::to_string).collect();
        // Taken before it is sent: a lease never counts from later than the broker heard of it.
        self.beaten = Instant::now();
        let seq = self.beats.send(self.beaten, tokens);
        self.send(Message::Heartbeat(v1::Heartbeat { seq, tokens: wire, draining: self.draining })).await
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
                // fault: the spool names its own.
                self.worker.spool.remove(token);
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
        self.reported.remove(&token);
        // fault: the spool names its own.
        self.worker.spool.remove(&token);
        self.count_spooled();
    }

    fn count_spooled(&self) {
        let waiting = self.worker.spool.tokens().len();
        self.worker.metrics.spooled.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// Sends what waits and was not sent lately.
    async fn report_all(&mut self) -> Result<(), Error> {
        self.count_spooled();
        let worker = self.worker;
        let mut due = worker.spool.tokens();
        due.retain(|token| self.reported.get(token).is_none_or(|at| at.elapsed() >= REPORT_AGAIN));
        for batch in due.chunks(READ_AT_ONCE) {
            // However many wait: the leases of all of them hang on the next heartbeat.
            if self.beaten.elapsed() >= self.every {
                self.beat().await?;
            }
            let (spool, wanted) = (worker.spool.clone(), batch.to_vec());
            let read = tokio::task::spawn_blocking(move || {
                wanted.into_iter().filter_map(|token| Some((spool.get(&token)?, token))).collect::<Vec<_>>()
            });
            for (report, token) in read.await.unwrap_or_default() {
                self.report(token, report).await?;
            }
        }
        Ok(())
    }

    async fn report(&mut self, token: LeaseToken, report: v1::AttemptReport) -> Result<(), Error> {
        if prost::Message::encoded_len(&report) <= MAX_ON_STREAM {
            self.reported.insert(token, Instant::now());
            self.send(Message::Report(report)).await?;
            fault::reached(Point::ReportSent);
        } else if self.large.len() < LARGE_AT_ONCE {
            self.reported.insert(token.clone(), Instant::now() + REPORT_AGAIN * 8);
            let broker = self.worker.broker.clone();
            self.large.spawn(async move {
                let received = broker.report(report).await;
                fault::reached(Point::LargeReported);
                // The answer names the token; one that does not is taken as none.
                received.filter(|received| received.token == token.as_str()).ok_or(token)
            });
        }
        Ok(())
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
