//! The verbs, and the only place that changes a task.
//!
//! A submit is committed to the ledger and then answered; `outbox` publishes what the ledger says
//! is ready; `dispatch` takes a message when a slot is free for it, leases the task and sends it down a
//! worker's stream (`fleet`); `leases` ends what was not renewed; `change` applies the state machine by
//! compare-and-set; `reconcile` repairs at start and on a timer whatever a crash left between two steps.
//! REST and gRPC call the same verbs and hold no state of their own.

mod adopt;
mod change;
mod dispatch;
mod fleet;
mod jobs;
mod leases;
mod live;
mod logs;
mod lost;
mod outbox;
mod projects;
mod queues;
mod reconcile;
mod reduce;
mod refill;
mod reports;
mod retention;
mod room;
pub mod scheduler;
mod settings;
mod submit;
mod subscribe;
mod tasks;
mod waiting;
mod workers;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::Duration,
};

use codering_core::{Code, Error, JobId, LeaseToken};
use codering_kit::live::Live;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use codering_kit::clock::now;
pub use fleet::{Session, Speaker, ToWorker};
pub use leases::Running;
pub use live::{JobEvent, shown_state};
pub use logs::{LogPiece, Stream};
pub(crate) use outbox::LEAST_MESSAGE_BOUND;
pub use projects::ProjectView;
pub use queues::QueueView;
pub use settings::Settings;
pub use submit::{NewJob, Submission};
pub use tasks::TaskView;
pub use workers::WorkerView;

use crate::{
    ledger::{Ledger, Report, Snapshot},
    metrics::Metrics,
    queue::Queues,
};

/// What is in hand at a stop has so long until the workers' streams end: a queue that is away would take longer.
const IN_HAND: Duration = Duration::from_secs(1);

/// A handle; clones share one broker.
#[derive(Clone)]
pub struct Broker(Arc<Parts>);

/// What a broker is made of; private, and named only because a handle derefs to it.
pub struct Parts {
    settings: Live<Settings>,
    ledger: Arc<dyn Ledger>,
    queues: Arc<dyn Queues>,
    metrics: Arc<Metrics>,
    jobs: live::LiveJobs,
    projects: projects::Projects,
    scheduler: Mutex<scheduler::Scheduler>,
    fleet: fleet::Fleet,
    leases: leases::Leases,
    logs: logs::LiveLogs,
    outbox: outbox::Outbox,
    waiting: waiting::Waiting,
    /// Held while a raw message is adopted, so that one open job serves all.
    adopting: tokio::sync::Mutex<()>,
    /// Held while a finished job is let go, and shared by verbs that take one up again.
    letting_go: tokio::sync::RwLock<()>,
    /// Held while a worker's row is read and written, so that none of its writers undoes another.
    worker_rows: tokio::sync::Mutex<()>,
    /// Held while a project is made, changed or removed.
    tenants: tokio::sync::Mutex<()>,
    /// Submits under way, which will be jobs in memory.
    submitting: AtomicUsize,
    /// Jobs that could not be removed yet.
    abandoned: room::Abandoned,
    /// Whether the last lease could not be recorded, for the ledger's sake.
    ledger_failed: AtomicBool,
    /// Rung when a slot is freed or a queue may have something.
    dispatch: Notify,
    stop: CancellationToken,
    /// The workers' streams end a moment later than the loops.
    streams: CancellationToken,
    tracker: TaskTracker,
}

impl std::ops::Deref for Broker {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Broker {
    /// Loads what is unfinished and starts the loops. The queue backend may be away.
    pub async fn start(
        settings: Settings,
        ledger: Arc<dyn Ledger>,
        queues: Arc<dyn Queues>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let logs = logs::LiveLogs::open(&settings.live_dir)?;
        let broker = Self(Arc::new(Parts {
            settings: Live::new(settings),
            ledger,
            queues,
            metrics,
            jobs: live::LiveJobs::default(),
            projects: projects::Projects::default(),
            scheduler: Mutex::default(),
            fleet: fleet::Fleet::default(),
            leases: leases::Leases::default(),
            logs,
            outbox: outbox::Outbox::default(),
            waiting: waiting::Waiting::default(),
            adopting: tokio::sync::Mutex::new(()),
            letting_go: tokio::sync::RwLock::new(()),
            worker_rows: tokio::sync::Mutex::new(()),
            tenants: tokio::sync::Mutex::new(()),
            submitting: AtomicUsize::new(0),
            abandoned: room::Abandoned::default(),
            ledger_failed: AtomicBool::new(false),
            dispatch: Notify::new(),
            stop: CancellationToken::new(),
            streams: CancellationToken::new(),
            tracker: TaskTracker::new(),
        }));
        broker.load().await?;
        if let Err(error) = broker.refill().await {
            tracing::warn!(%error, "the queue backend is looked at again later");
        }
        broker.spawn(broker.clone().publish_tasks());
        broker.spawn(broker.clone().publish_results());
        broker.spawn(broker.clone().dispatch_loop());
        broker.spawn(broker.clone().expire_leases());
        broker.spawn(broker.clone().reconcile_loop());
        broker.spawn(broker.clone().retention_loop());
        Ok(broker)
    }

    /// What it goes by now; a decision takes it once.
    fn settings(&self) -> Arc<Settings> {
        self.settings.get()
    }

    /// Other settings from now on. Leases, the disk's reserve and where live output is kept stay as they were: the workers were
    /// told how long a lease is, and the queue goes by the same reserve.
    pub fn reconfigure(&self, new: Settings) {
        let Settings { lease, live_dir, reserve, .. } = Settings::clone(&self.settings());
        self.settings.set(Settings { lease, live_dir, reserve, ..new });
    }

    /// Stops the loops and waits for what they have in hand. Leases stay as they are: workers go on and
    /// report to the next process.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
        // A lease that is being recorded gets to its worker: it would end as an attempt that nobody made.
        let _ = tokio::time::timeout(IN_HAND, self.tracker.wait()).await;
        self.streams.cancel();
        self.tracker.wait().await;
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(work);
    }

    fn scheduler(&self) -> MutexGuard<'_, scheduler::Scheduler> {
        self.scheduler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the queue backend answers, and if not, why.
    pub fn queue_connected(&self) -> Result<(), String> {
        self.queues.connected()
    }

    /// The queue backend's name.
    pub fn queue_backend(&self) -> &'static str {
        self.queues.backend()
    }

    /// Reads all of the ledger.
    pub async fn audit_ledger(&self) -> Result<Report, Error> {
        Ok(self.ledger.audit().await?)
    }

    /// A copy of the ledger as it is now.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        Ok(self.ledger.snapshot().await?)
    }

    /// Whether the ledger can be written.
    pub async fn check_ledger(&self) -> Result<(), Error> {
        Ok(self.ledger.check().await?)
    }
}

/// What should not happen: the code says so, the log has the rest.
pub(crate) fn internal(error: impl std::fmt::Display) -> Error {
    Error::new(Code::Internal, error.to_string())
}

fn new_job_id() -> JobId {
    JobId::at(now(), rand::random())
}

fn new_token() -> LeaseToken {
    LeaseToken::from_bytes(rand::random())
}

#[cfg(test)]
mod tests;
