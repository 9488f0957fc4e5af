//! The connected workers: their streams, what they hold, what they report.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use codering_core::{Code, Error, LeaseToken, TaskResult, WorkerName, message::DoneMessage, task::Event};
use codering_proto::v1::{self, from_worker, to_worker};
use futures::{Stream, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Broker, Running,
    change::{Changed, Ended},
    logs, now,
};
use crate::ledger::{self, TaskChange};

/// What is sent down a worker's stream.
pub type ToWorker = v1::ToWorker;

/// Messages that may wait for a slow worker; one that is slower loses its stream and comes back.
const STREAM_ROOM: usize = 1024;
/// No worker has more slots.
const MAX_SLOTS: u32 = 4096;

#[derive(Debug)]
struct Connected {
    session: u64,
    to: mpsc::Sender<ToWorker>,
    closed: CancellationToken,
    slots: u32,
    labels: HashMap<String, String>,
    version: String,
    connected_at: i64,
    last_seen: Instant,
    draining: bool,
    cancelled: HashSet<LeaseToken>,
}

/// The connected workers.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    connected: Mutex<HashMap<WorkerName, Connected>>,
    sessions: std::sync::atomic::AtomicU64,
}

impl Fleet {
    fn lock(&self) -> MutexGuard<'_, HashMap<WorkerName, Connected>> {
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

    fn forget_cancelled(&self, worker: &WorkerName, token: &LeaseToken) {
        if let Some(connected) = self.lock().get_mut(worker) {
            connected.cancelled.remove(token);
        }
    }
}

/// A worker with what runs there.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// The row.
    pub worker: ledger::Worker,
    /// Whether its stream is up.
    pub connected: bool,
    /// Its slots; 0 where it is not connected.
    pub slots: u32,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// Its version.
    pub version: String,
    /// Since when; 0 where it is not.
    pub connected_at: i64,
    /// When it was last heard of.
    pub last_seen_at: i64,
    /// It was told to take nothing new.
    pub draining: bool,
    /// What it runs.
    pub running: Vec<Running>,
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
    /// A worker's stream begins: what it no longer holds is freed, what it should not hold is fenced.
    pub async fn attach(&self, name: WorkerName, hello: v1::Hello) -> Result<Session, Error> {
        if hello.slots == 0 || hello.slots > MAX_SLOTS || hello.labels.len() > 100 {
            return Err(Error::new(
                Code::InvalidInput,
                format!("a worker has 1 to {MAX_SLOTS} slots and at most 100 labels"),
            ));
        }
        let id = self.fleet.sessions.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let _row = self.worker_rows.lock().await;
        let mut row = self.worker_row(&name).await?;
        row.last_seen_at = now();
        self.ledger.put_worker(row.clone()).await?;
        let (to, inbox) = mpsc::channel(STREAM_ROOM);
        let closed = CancellationToken::new();
        let (fenced, cancelled) = self.renew(&name, &hello.held_tokens);
        let welcome = v1::Welcome {
            worker: name.to_string(),
            lease_ms: self.settings.lease.as_millis() as u64,
            heartbeat_ms: self.settings.heartbeat().as_millis() as u64,
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

    async fn worker_row(&self, name: &WorkerName) -> Result<ledger::Worker, Error> {
        let rows = self.ledger.workers().await?;
        let row = rows.into_iter().find(|row| row.name == *name);
        let row =
            row.ok_or_else(|| Error::new(Code::WorkerNotFound, format!("there is no worker {name}")))?;
        match row.revoked {
            true => Err(Error::new(Code::WorkerRevoked, format!("worker {name} was revoked"))),
            false => Ok(row),
        }
    }

    /// Records an attempt's result if its token is the live one. `false`: fenced.
    pub async fn report(&self, worker: &WorkerName, report: v1::AttemptReport) -> Result<bool, Error> {
        let token = codering_proto::convert::id::<LeaseToken>(&report.token, "token")?;
        let Some(held) = self.leases.get(&token, worker) else {
            self.metrics.fenced.inc();
            tracing::info!(worker = %worker, "a result was fenced: its lease had ended");
            return Ok(false);
        };
        let wire =
            report.result.ok_or_else(|| Error::new(Code::InvalidInput, "a report without a result"))?;
        let mut result = TaskResult::try_from(wire)?;
        // Whose it is follows from the token, not from what the worker says.
        result.project = held.task.project.clone();
        result.job = held.task.key.job.clone();
        result.task = held.task.key.task.clone();
        result.attempt = held.task.progress.attempt;
        result.worker = worker.to_string();
        self.check_size(&held, &mut result);
        let outcome = result.outcome;
        let key = held.task.key.clone();
        let ended = Ended { result: Some(result), ..Ended::default() };
        let changed = self
            .change(&key, Some(held.task.clone()), Event::Complete { token: token.clone(), outcome }, ended)
            .await?;
        let recorded = matches!(changed, Changed::Yes(_));
        if recorded {
            tracing::info!(
                job = %key.job, task = %key.task, attempt = held.task.progress.attempt, worker = %worker,
                outcome = outcome.as_str(), "recorded"
            );
            self.metrics.results(outcome).inc();
        } else {
            self.metrics.fenced.inc();
        }
        if self.leases.remove(&token).is_some() {
            self.let_go(&token, &held);
        }
        self.fleet.forget_cancelled(worker, &token);
        Ok(recorded)
    }

    /// A worker keeps the bound itself; one that does not is cut here.
    fn check_size(&self, held: &super::leases::Held, result: &mut TaskResult) {
        let most = match held.task.reduce {
            true => codering_core::limits::REDUCE_OUTPUT_BYTES,
            false => codering_core::limits::MAX_OUTPUT_BYTES,
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        for (stream, truncated) in [
            (&mut result.stdout, &mut result.stdout_truncated),
            (&mut result.stderr, &mut result.stderr_truncated),
        ] {
            if stream.len() > most {
                stream.truncate(most);
                *truncated = true;
            }
        }
        result.message.truncate(result.message.floor_char_boundary(4000));
    }

    /// Pins a commit: for its whole job, or for a raw message's task alone. Answers with the one in force.
    pub async fn pin_commit(
        &self,
        worker: &WorkerName,
        token: &LeaseToken,
        commit: &str,
    ) -> Result<String, Error> {
        let fenced = || Error::new(Code::LeaseFenced, "the lease has ended");
        let held = self.leases.get(token, worker).ok_or_else(fenced)?;
        if commit.len() != 40 || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::new(Code::InvalidInput, "a commit is 40 hexadecimal digits").at("commit"));
        }
        if held.task.spec.source.is_some() {
            return self.pin_task(&held.task, commit).await;
        }
        let job = self.jobs.get(&held.task.key.job).ok_or_else(fenced)?;
        let _writing = job.writing.lock().await;
        let pinned = job.with(|j| j.commit.clone());
        if !pinned.is_empty() {
            return Ok(pinned);
        }
        let mut row = job.job();
        row.commit = commit.to_owned();
        self.ledger.update_job(row).await?;
        job.update(|j| j.commit = commit.to_owned());
        Ok(commit.to_owned())
    }

    async fn pin_task(&self, leased: &ledger::Task, commit: &str) -> Result<String, Error> {
        for _ in 0..5 {
            let Some(task) = self.ledger.task(&leased.key).await? else { break };
            if !task.commit.is_empty() {
                return Ok(task.commit);
            }
            let mut progress = task.progress.clone();
            progress.version += 1;
            let change = TaskChange {
                key: task.key.clone(),
                expected_version: task.progress.version,
                progress,
                commit: Some(commit.to_owned()),
                record: Default::default(),
            };
            if self.store(change).await? {
                return Ok(commit.to_owned());
            }
        }
        Err(Error::new(Code::LeaseFenced, "the task changed while its commit was pinned"))
    }

    /// The standard input of a reduce attempt: the results as JSONL, read from the ledger page by page.
    pub fn reduce_input(
        &self,
        worker: &WorkerName,
        token: &LeaseToken,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let held = self.leases.get(token, worker).filter(|held| held.task.reduce);
        let job = held.ok_or_else(|| Error::new(Code::LeaseFenced, "the lease has ended"))?.task.key.job;
        Ok(stream::unfold((self.clone(), job, None, false), async |(broker, job, after, over)| {
            if over {
                return None;
            }
            let page = match broker.results_page(&job, &[], after, 200).await {
                Ok(page) => page,
                Err(error) => return Some((Err(error), (broker, job, after, true))),
            };
            let last = page.last().map(|(seq, _)| *seq)?;
            let mut lines = Vec::new();
            for (_, result) in &page {
                if let Err(error) = serde_json::to_writer(&mut lines, &DoneMessage::from(result)) {
                    return Some((Err(super::internal(error)), (broker, job, after, true)));
                }
                lines.push(b'\n');
            }
            Some((Ok(Bytes::from(lines)), (broker, job, Some(last), false)))
        }))
    }

    /// All workers that ever enrolled.
    pub async fn workers(&self) -> Result<Vec<WorkerView>, Error> {
        let rows = self.ledger.workers().await?;
        Ok(rows.into_iter().map(|row| self.worker_view(row)).collect())
    }

    /// One worker.
    pub async fn worker(&self, name: &WorkerName) -> Result<WorkerView, Error> {
        let rows = self.workers().await?;
        let found = rows.into_iter().find(|view| view.worker.name == *name);
        found.ok_or_else(|| Error::new(Code::WorkerNotFound, format!("there is no worker {name}")))
    }

    fn worker_view(&self, row: ledger::Worker) -> WorkerView {
        let mut running: Vec<Running> = self
            .leases
            .of_worker(&row.name)
            .into_iter()
            .map(|(_, held)| Running {
                task: held.task,
                phase: held.phase,
                container_id: held.container_id,
                image: held.image,
            })
            .collect();
        running.sort_by(|a, b| a.task.key.cmp(&b.task.key));
        let fleet = self.fleet.lock();
        let connected = fleet.get(&row.name);
        let seen = connected.map_or(row.last_seen_at, |c| now() - c.last_seen.elapsed().as_millis() as i64);
        WorkerView {
            connected: connected.is_some(),
            slots: connected.map_or(0, |c| c.slots),
            labels: connected.map(|c| c.labels.clone()).unwrap_or_default(),
            version: connected.map(|c| c.version.clone()).unwrap_or_default(),
            connected_at: connected.map_or(0, |c| c.connected_at),
            last_seen_at: seen,
            draining: connected.is_some_and(|c| c.draining),
            running,
            worker: row,
        }
    }

    /// A paused worker finishes what it runs and takes nothing new.
    pub async fn pause_worker(&self, name: &WorkerName, paused: bool) -> Result<WorkerView, Error> {
        let _row = self.worker_rows.lock().await;
        let mut view = self.worker(name).await?;
        view.worker.paused = paused;
        self.ledger.put_worker(view.worker.clone()).await?;
        self.scheduler().set_paused(name, paused);
        self.dispatch.notify_one();
        Ok(view)
    }

    /// Refuses a worker from now on; what it ran runs elsewhere.
    pub async fn revoke_worker(&self, name: &WorkerName) -> Result<WorkerView, Error> {
        let _row = self.worker_rows.lock().await;
        let mut view = self.worker(name).await?;
        view.worker.revoked = true;
        self.ledger.put_worker(view.worker.clone()).await?;
        if let Some(connected) = self.fleet.lock().get(name) {
            connected.closed.cancel();
        }
        Ok(view)
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
            () = self.broker.stop.cancelled() => None,
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
        let row = ledger::Build {
            worker: self.name.to_string(),
            image: build.image,
            commit: build.commit,
            succeeded: build.succeeded,
            started_at: build.started_at_ms,
            took_ms: build.took_ms,
            steps: build.steps,
            cached_steps: build.cached_steps,
            log: build.log,
            log_truncated: build.log_truncated,
        };
        Ok(self.broker.ledger.put_build(&key.job, row).await?)
    }
}
