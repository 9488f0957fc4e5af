//! The connected workers: their streams, what they hold, what they report.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use codering_core::{Code, Error, LeaseToken, WorkerName};
use codering_kit::fault::{self, Point};
use codering_proto::v1::{self, from_worker, to_worker};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Broker, logs, now};
use crate::ledger;

/// What is sent down a worker's stream.
pub type ToWorker = v1::ToWorker;

/// Messages that may wait for a slow worker; one that is slower loses its stream and comes back.
const STREAM_ROOM: usize = 1024;
/// No worker has more slots.
const MAX_SLOTS: u32 = 4096;

#[derive(Debug)]
pub(super) struct Connected {
    pub(super) session: u64,
    pub(super) to: mpsc::Sender<ToWorker>,
    pub(super) closed: CancellationToken,
    pub(super) slots: u32,
    pub(super) labels: HashMap<String, String>,
    pub(super) version: String,
    pub(super) connected_at: i64,
    pub(super) last_seen: Instant,
    pub(super) draining: bool,
    pub(super) cancelled: HashSet<LeaseToken>,
}

/// The connected workers.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    connected: Mutex<HashMap<WorkerName, Connected>>,
    sessions: std::sync::atomic::AtomicU64,
}

impl Fleet {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<WorkerName, Connected>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, worker: &WorkerName, session: Option<u64>, message: to_worker::Message) -> bool {
        let fleet = self.lock();
        let Some(connected) = fleet.get(worker).filter(|c| session.is_none_or(|s| s == c.session)) else {
            return false;
        };
        let sent = connected.to.try_send(ToWorker { message: Some(message) }).is_ok();
        if !sent {
            connected.closed.cancel();
        }
        sent
    }

    /// Gives a worker's stream its place. One that began before the stream that is there came too late.
    fn seat(&self, name: &WorkerName, connected: Connected) -> Result<(), Error> {
        let mut fleet = self.lock();
        if fleet.get(name).is_some_and(|there| there.session > connected.session) {
            return Err(Error::new(Code::BrokerBusy, format!("worker {name} has a newer stream")));
        }
        if let Some(older) = fleet.insert(name.clone(), connected) {
            older.closed.cancel();
        }
        Ok(())
    }

    /// Sends an assignment to the session that it was planned for.
    pub(super) fn assign(&self, worker: &WorkerName, session: u64, assignment: v1::Assignment) -> bool {
        self.send(worker, Some(session), to_worker::Message::Assignment(assignment))
    }

    /// Asks a worker to stop an attempt, now and on each heartbeat.
    pub(super) fn cancel(&self, worker: &WorkerName, token: &LeaseToken) {
        if let Some(connected) = self.lock().get_mut(worker) {
            connected.cancelled.insert(token.clone());
        }
        let message = v1::CancelAttempt { token: token.to_string() };
        self.send(worker, None, to_worker::Message::Cancel(message));
    }

    pub(super) fn is_cancelled(&self, worker: &WorkerName, token: &LeaseToken) -> bool {
        self.lock().get(worker).is_some_and(|c| c.cancelled.contains(token))
    }

    /// Ends the streams of workers that were not heard of for so long: a stream may look alive while its other end
    /// is gone, and such a worker must get nothing new.
    pub(super) fn close_silent(&self, longest: std::time::Duration) -> Vec<(WorkerName, u64)> {
        let mut fleet = self.lock();
        let silent = fleet.extract_if(|_, connected| connected.last_seen.elapsed() > longest);
        silent
            .map(|(name, connected)| {
                tracing::warn!(worker = %name, "a worker was silent for longer than a lease; its stream is ended");
                connected.closed.cancel();
                (name, connected.session)
            })
            .collect()
    }

    pub(super) fn forget_cancelled(&self, worker: &WorkerName, token: &LeaseToken) {
        if let Some(connected) = self.lock().get_mut(worker) {
            connected.cancelled.remove(token);
        }
    }
}

/// A worker's stream. Dropped, the worker counts as disconnected; its leases run on until their deadline.
pub struct Session {
    broker: Broker,
    name: WorkerName,
    id: u64,
    inbox: mpsc::Receiver<ToWorker>,
    closed: CancellationToken,
}

impl Broker {
    /// A worker's stream begins: what it no longer holds is freed, what it should not hold is fenced. `serial` is that of the
    /// certificate that it shows, which may have been replaced since the call was let in.
    pub async fn attach(&self, name: WorkerName, serial: &str, hello: v1::Hello) -> Result<Session, Error> {
        if hello.slots == 0 || hello.slots > MAX_SLOTS {
            return Err(Error::new(Code::InvalidInput, format!("a worker has 1 to {MAX_SLOTS} slots")));
        }
        codering_core::spec::validate_labels(hello.labels.iter())?;
        let id = self.fleet.sessions.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let _row = self.worker_rows.lock().await;
        let mut row = self.worker_row(&name, serial).await?;
        row.last_seen_at = now();
        self.ledger.put_worker(row.clone()).await?;
        fault::reached(Point::WorkerSeen);
        let (to, inbox) = mpsc::channel(STREAM_ROOM);
        let closed = CancellationToken::new();
        let (fenced, cancelled) = self.renew(&name, &hello.held_tokens);
        let welcome = v1::Welcome {
            worker: name.to_string(),
            lease_ms: self.settings().lease.as_millis() as u64,
            heartbeat_ms: self.settings().heartbeat().as_millis() as u64,
            fenced_tokens: fenced,
        };
        // The channel is new and empty: both always fit.
        let _ = to.try_send(ToWorker { message: Some(to_worker::Message::Welcome(welcome)) });
        let connected = Connected {
            session: id,
            to,
            closed: closed.clone(),
            slots: hello.slots,
            labels: hello.labels.clone(),
            version: hello.version,
            connected_at: now(),
            last_seen: Instant::now(),
            draining: false,
            cancelled: cancelled.iter().filter_map(|t| LeaseToken::new(t).ok()).collect(),
        };
        self.fleet.seat(&name, connected)?;
        let session = Session { broker: self.clone(), name: name.clone(), id, inbox, closed };
        // From here on nothing is assigned to the stream before this one: what the worker does not hold by now, it
        // will never hear of.
        let holds: HashSet<&str> = hello.held_tokens.iter().map(String::as_str).collect();
        for (token, held) in self.leases.of_worker(&name) {
            if !holds.contains(token.as_str()) {
                self.expire(&token, "the worker came back without it").await;
            } else if self.ledger.task(&held.task.key).await?.is_some_and(|t| t.progress.cancel_requested) {
                self.fleet.cancel(&name, &token);
            }
        }
        {
            let mut scheduler = self.scheduler();
            // Looked at with the scheduler held: an attempt that ends now is in both or in neither.
            let busy: HashSet<_> = self.leases.of_worker(&name).into_iter().map(|(token, _)| token).collect();
            tracing::info!(worker = %name, slots = hello.slots, held = busy.len(), "a worker is connected");
            scheduler.join(name, id, hello.slots, busy, row.paused, hello.labels);
        }
        self.metrics.workers.set(self.fleet.lock().len() as i64);
        self.scheduler().ring_all();
        self.dispatch.notify_one();
        Ok(session)
    }

    async fn worker_row(&self, name: &WorkerName, serial: &str) -> Result<ledger::Worker, Error> {
        let rows = self.ledger.workers().await?;
        let row = rows.into_iter().find(|row| row.name == *name);
        let row =
            row.ok_or_else(|| Error::new(Code::WorkerNotFound, format!("there is no worker {name}")))?;
        if row.revoked {
            return Err(Error::new(Code::WorkerRevoked, format!("worker {name} was revoked")));
        }
        if !row.has_certificate(serial) {
            return Err(Error::new(
                Code::AuthInvalid,
                format!("worker {name}: a newer certificate has replaced this one"),
            )
            .hint(format!("enroll it again: coderingctl worker token --name {name}")));
        }
        Ok(row)
    }
}

impl Session {
    /// Whose it is.
    pub fn name(&self) -> &WorkerName {
        &self.name
    }

    /// The next message for the worker; `None` when the stream is over: a newer one took its place, the worker was
    /// revoked or too slow, or the broker stops.
    pub async fn next(&mut self) -> Option<ToWorker> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            message = self.inbox.recv() => message,
            () = self.broker.streams.cancelled() => None,
        }
    }

    /// A handle that takes what the worker says, apart from the one that reads what it is told.
    pub fn speaker(&self) -> Speaker {
        Speaker { broker: self.broker.clone(), name: self.name.clone(), id: self.id }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut fleet = self.broker.fleet.lock();
        let current = fleet.get(&self.name).is_some_and(|c| c.session == self.id);
        if current {
            fleet.remove(&self.name);
            tracing::info!(worker = %self.name, "a worker's stream ended");
        }
        let connected = fleet.len() as i64;
        drop(fleet);
        self.broker.scheduler().leave(&self.name, self.id);
        self.broker.metrics.workers.set(connected);
    }
}

/// Takes what a worker says on its stream.
#[derive(Clone)]
pub struct Speaker {
    broker: Broker,
    name: WorkerName,
    id: u64,
}

impl Speaker {
    /// One message. An error means that the message was of no use; the stream goes on, unless it is the ledger's.
    pub async fn handle(&self, message: v1::FromWorker) -> Result<(), Error> {
        let broker = &self.broker;
        match message.message {
            Some(from_worker::Message::Heartbeat(beat)) => self.heartbeat(beat),
            Some(from_worker::Message::Progress(progress)) => {
                let token = codering_proto::convert::id::<LeaseToken>(&progress.token, "token")?;
                broker.leases.update(&token, &self.name, |held| {
                    held.phase = progress.phase;
                    held.container_id = progress.container_id;
                    held.image = progress.image;
                });
                Ok(())
            }
            Some(from_worker::Message::Log(log)) => {
                let token = codering_proto::convert::id::<LeaseToken>(&log.token, "token")?;
                let stream = match log.stream() {
                    v1::LogStream::Stderr => logs::Stream::Stderr,
                    _ => logs::Stream::Stdout,
                };
                broker.append_log(&self.name, &token, stream, log.offset, &log.data).await
            }
            Some(from_worker::Message::Report(report)) => {
                let token = report.token.clone();
                // Where the ledger cannot answer, neither does the broker: the worker keeps the result and repeats.
                let recorded = broker.report(&self.name, report).await?;
                let answer = v1::ReportReceived { token, recorded };
                broker.fleet.send(&self.name, Some(self.id), to_worker::Message::Received(answer));
                fault::reached(Point::ReportAnswered);
                Ok(())
            }
            Some(from_worker::Message::Build(done)) => self.build(done).await,
            Some(from_worker::Message::Hello(_)) | None => Err(Error::new(
                Code::InvalidInput,
                "a hello belongs at the start of a stream, and only there",
            )),
        }
    }

    fn heartbeat(&self, beat: v1::Heartbeat) -> Result<(), Error> {
        let broker = &self.broker;
        let (fenced_tokens, cancelled_tokens) = broker.renew(&self.name, &beat.tokens);
        if let Some(connected) = broker.fleet.lock().get_mut(&self.name).filter(|c| c.session == self.id) {
            connected.last_seen = Instant::now();
            connected.draining = beat.draining;
        }
        broker.scheduler().set_draining(&self.name, beat.draining);
        let reply = v1::HeartbeatReply { seq: beat.seq, fenced_tokens, cancelled_tokens };
        broker.fleet.send(&self.name, Some(self.id), to_worker::Message::Heartbeat(reply));
        Ok(())
    }

    async fn build(&self, done: v1::BuildDone) -> Result<(), Error> {
        let token = codering_proto::convert::id::<LeaseToken>(&done.token, "token")?;
        let (Some(held), Some(build)) = (self.broker.leases.get(&token, &self.name), done.build) else {
            return Ok(());
        };
        let key = held.task.key;
        if let Some(job) = self.broker.jobs.get(&key.job) {
            let took = build.took_ms as f64 / 1e3;
            let (steps, cached) = (build.steps, build.cached_steps);
            job.note(match build.succeeded {
                true => {
                    format!("image built in {took:.1} s ({cached} of {steps} steps cached) on {}", self.name)
                }
                false => format!(
                    "image could not be built on {}: coderingctl job logs {} --build",
                    self.name, key.job
                ),
            });
        }
        // A worker keeps the bound itself; one that does not is cut here.
        let from = build.log.ceil_char_boundary(build.log.len().saturating_sub(ledger::BUILD_LOG_BYTES));
        let row = ledger::Build {
            worker: self.name.to_string(),
            image: build.image,
            commit: build.commit,
            succeeded: build.succeeded,
            started_at: build.started_at_ms,
            took_ms: build.took_ms,
            steps: build.steps,
            cached_steps: build.cached_steps,
            log: build.log[from..].to_owned(),
            log_truncated: build.log_truncated || from > 0,
        };
        self.broker.ledger.put_build(&key.job, row).await?;
        fault::reached(Point::BuildKept);
        Ok(())
    }
}
