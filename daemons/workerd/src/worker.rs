//! What all parts of a worker share.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use codering_core::{Error, WorkerName};
use codering_kit::{disk::Reserve, live::Live};
use codering_proto::v1::{self, from_worker::Message};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use crate::{
    broker::Broker,
    checkout::Mirrors,
    config::{Config, SandboxConfig},
    held::{Attempts, Held},
    image::{Images, Report},
    metrics::Metrics,
    sandbox::Sandbox,
    spool::Spool,
};

/// Progress and build logs that wait for the stream; more is dropped, for results do not go this way.
const EVENTS: usize = 256;

/// How attempts are run.
pub enum Work {
    /// With git and Docker.
    Real(Box<Real>),
    /// Without.
    Simulated,
}

/// Git and Docker.
pub struct Real {
    /// Repositories.
    pub mirrors: Mirrors,
    /// Images.
    pub images: Images,
    /// Containers.
    pub sandbox: Arc<dyn Sandbox>,
    /// What they are made by.
    pub sandbox_config: Live<SandboxConfig>,
}

/// A worker.
pub struct Worker {
    /// Its name, as its certificate has it.
    pub name: WorkerName,
    /// Its configuration, as it started with it.
    pub config: Config,
    /// The same as it is now: what a reload may change is read here.
    pub now: Live<Config>,
    /// The broker.
    pub broker: Broker,
    /// What it holds.
    pub attempts: Attempts,
    /// Results on their way.
    pub spool: Arc<Spool>,
    /// What stays free on the disk.
    pub reserve: Reserve,
    /// How attempts are run.
    pub work: Work,
    /// Room for attempts.
    pub slots: Semaphore,
    /// Running attempts.
    pub tasks: TaskTracker,
    /// Counters.
    pub metrics: Metrics,
    /// Wakes the look at Docker's health.
    pub check_docker: Notify,
    /// Wakes the cache's upkeep.
    pub tidy: Notify,
    /// Held while the leases are written down.
    pub(crate) writing_leases: Mutex<()>,
    /// Held while the certificate and its key are read or replaced.
    pub(crate) proof_files: Mutex<()>,
    docker_down: AtomicBool,
    events: mpsc::Sender<Message>,
}

impl Worker {
    /// A worker that holds nothing yet, and the events that it will tell.
    ///
    /// # Errors
    /// Those of the spool.
    pub fn new(
        name: WorkerName,
        config: Config,
        broker: Broker,
        work: Work,
        metrics: Metrics,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Message>), Error> {
        let (events, told) = mpsc::channel(EVENTS);
        let spool = Arc::new(Spool::open(&config.path("spool"), matches!(work, Work::Real(_)))?);
        let worker = Self {
            name,
            broker,
            attempts: Attempts::default(),
            spool,
            reserve: Reserve::new(&config.data_dir, config.min_free_disk),
            work,
            slots: Semaphore::new(config.slots as usize),
            tasks: TaskTracker::new(),
            metrics,
            check_docker: Notify::new(),
            tidy: Notify::new(),
            writing_leases: Mutex::default(),
            proof_files: Mutex::default(),
            docker_down: AtomicBool::new(false),
            events,
            now: Live::new(config.clone()),
            config,
        };
        Ok((Arc::new(worker), told))
    }

    /// An attempt goes on to its next phase.
    pub(crate) fn enter(&self, held: &Held, phase: &'static str) {
        held.enter(phase);
        // Told again at each new stream, so one may be lost.
        let _ = self.events.try_send(Message::Progress(held.progress()));
    }

    /// A build that this attempt waited for.
    pub(crate) fn tell_build(&self, held: &Held, report: &Report) {
        let build = v1::Build {
            worker: self.name.to_string(),
            image: report.image.clone(),
            commit: report.commit.clone(),
            succeeded: report.succeeded,
            started_at_ms: report.started_at,
            took_ms: report.took_ms,
            steps: report.steps,
            cached_steps: report.cached_steps,
            log: report.log.clone(),
            log_truncated: report.log_truncated,
        };
        let done = v1::BuildDone { token: held.token.to_string(), build: Some(build) };
        if self.events.try_send(Message::Build(done)).is_err() {
            tracing::warn!(image = report.image, "a build log was dropped: too many wait for the broker");
        }
        self.tidy.notify_one();
    }

    /// Why the disk lets nothing new be taken: results wait in memory for it, or its reserve is touched.
    pub(crate) fn no_room(&self) -> Option<String> {
        match self.spool.in_memory() {
            0 => self.reserve.touched().map(|short| short.to_string()),
            1 => Some("a result waits in memory: the disk did not take it".to_owned()),
            n => Some(format!("{n} results wait in memory: the disk did not take them")),
        }
    }

    /// Whether the broker is asked to send nothing new.
    pub(crate) fn takes_nothing(&self) -> bool {
        self.docker_down() || self.no_room().is_some()
    }

    /// Whether nothing new can be run.
    pub(crate) fn docker_down(&self) -> bool {
        self.docker_down.load(Ordering::Relaxed)
    }

    /// Docker answers, or does not. `true`: that is news.
    pub(crate) fn set_docker_down(&self, down: bool) -> bool {
        self.metrics.docker.set(i64::from(!down));
        self.docker_down.swap(down, Ordering::Relaxed) != down
    }

    /// Where the leases' ends are written down for the next process.
    pub(crate) fn leases_file(&self) -> PathBuf {
        self.config.path("leases.json")
    }
}
