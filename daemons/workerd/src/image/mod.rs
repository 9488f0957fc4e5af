//! Images: each is named after the content that it is built from, so that one build serves all tasks that share it.

mod build;
pub(crate) mod credentials;
pub(crate) mod log;
mod room;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bollard::{Docker, auth::DockerCredentials, query_parameters::RemoveImageOptionsBuilder};
use codering_core::{Code, Error, JobId, Source, time::Millis};
use codering_kit::{
    clock::now,
    fault::{self, Point},
    live::Live,
};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use sha2::{Digest, Sha256};

pub use self::{log::BuildLog, room::Disk};
use crate::{
    checkout::{CheckoutError, Look, Mirrors},
    config::{Build, Config, Proxy},
    sandbox::{Image, docker::call, refusal},
};

/// The repository of all tags.
pub const REPOSITORY: &str = "codering/ctx";
/// Before the short id of an image without a name, where its use is noted.
pub(crate) const LEFTOVER: &str = "step-";
/// So long a build that failed answers those who asked before it ended: a job's tasks come one after the other.
const FAILED_FOR: Duration = Duration::from_secs(3600);
/// So many failures are remembered.
const MAX_FAILED: usize = 64;
/// The lines of the log that a failed task shows.
const SHOWN_LINES: usize = 25;
/// Builds at once on this worker.
const MAX_BUILDS: usize = 4;

/// Why there is no image.
#[derive(Debug, Clone)]
pub enum BuildError {
    /// The Dockerfile's fault, or the repository's.
    Failed {
        /// One sentence that names the step.
        message: String,
        /// The log's last lines.
        lines: String,
        /// What to tell the broker, where Docker got as far as building.
        report: Option<Arc<Report>>,
    },
    /// Docker's fault or git's.
    Unavailable(String),
}

/// Where a build failed, for people: `https://host/demo.git at 3f2a9c1`.
fn place(source: &Source, look: &Look) -> String {
    let commit = look.commit.get(..7).unwrap_or(&look.commit);
    format!("{} at {commit}", codering_core::spec::without_password(&source.git_url))
}

/// What became of a build, without a report.
#[derive(Debug, Clone)]
enum Problem {
    Failed(String),
    Unavailable(String),
}

impl From<CheckoutError> for Problem {
    fn from(error: CheckoutError) -> Self {
        match error {
            CheckoutError::Refused(error) => Self::Failed(error.to_string()),
            CheckoutError::Unreachable(error) => Self::Unavailable(error.to_string()),
        }
    }
}

/// A build that was made, told once to each job that waited for it.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Report {
    pub image: String,
    pub commit: String,
    pub succeeded: bool,
    pub started_at: Millis,
    pub took_ms: u64,
    pub steps: u32,
    pub cached_steps: u32,
    pub log: String,
    pub log_truncated: bool,
    told: Mutex<HashSet<JobId>>,
}

impl Report {
    /// Whether this job was not told yet. It counts as told from now on.
    pub fn first_for(&self, job: &JobId) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone())
    }
}

/// An image that is there, and stays while this is held.
#[derive(Debug)]
pub struct Ready {
    /// The image.
    pub image: Image,
    /// The build, where one was made for it.
    pub report: Option<Arc<Report>>,
    _use: InUse,
}

type Flight = BoxFuture<'static, Result<Arc<Report>, BuildError>>;

/// All images of this worker.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

/// What a reload may change.
pub struct How {
    build: Build,
    proxy: Proxy,
    credentials: Option<PathBuf>,
}

impl How {
    /// As the configuration says.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] for the registry credentials.
    pub fn of(config: &Config) -> Result<Self, Error> {
        if let Some(file) = &config.docker_credentials {
            credentials::read(file)?;
        }
        Ok(Self {
            build: config.build.clone(),
            proxy: config.proxy.clone(),
            credentials: config.docker_credentials.clone(),
        })
    }
}

struct Inner {
    docker: Docker,
    mirrors: Mirrors,
    how: Live<How>,
    stamps: PathBuf,
    flights: Mutex<HashMap<String, WeakShared<Flight>>>,
    failed: Mutex<HashMap<String, (Instant, BuildError)>>,
    used: Arc<Mutex<HashMap<String, usize>>>,
    room: tokio::sync::Semaphore,
    builds: std::sync::atomic::AtomicU64,
}

/// Keeps an image from being evicted.
#[derive(Debug)]
struct InUse {
    used: Arc<Mutex<HashMap<String, usize>>>,
    name: String,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = used.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                used.remove(&self.name);
            }
        }
    }
}

impl Images {
    /// Those of this worker.
    ///
    /// # Errors
    /// [`Code::Internal`] when its directory cannot be made; [`Code::ConfigInvalid`] for the registry credentials.
    pub fn new(docker: Docker, mirrors: Mirrors, config: &Config) -> Result<Self, Error> {
        let stamps = config.path("contexts");
        std::fs::create_dir_all(&stamps)
            .map_err(|e| Error::new(Code::Internal, e.to_string()).at(stamps.display().to_string()))?;
        let how = Live::new(How::of(config)?);
        Ok(Self(Arc::new(Inner {
            docker,
            mirrors,
            how,
            stamps,
            flights: Mutex::default(),
            failed: Mutex::default(),
            used: Arc::default(),
            room: tokio::sync::Semaphore::new(MAX_BUILDS),
            builds: std::sync::atomic::AtomicU64::new(0),
        })))
    }

    /// From now on in this way.
    pub fn reconfigure(&self, how: How) {
        self.0.how.set(how);
    }

    /// The image of a source at a commit: there already, or built once for all who ask. A build that failed answers all
    /// who `asked` before it ended; who asks later has mended something, or hopes so.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn ready(&self, source: &Source, look: &Look, asked: Instant) -> Result<Ready, BuildError> {
        let failed = |message: String| BuildError::Failed { lines: String::new(), message, report: None };
        if !look.has_dockerfile {
            return Err(failed(format!(
                "{}: there is no file `{}` (`dockerfile` of the job names another; a symlink is none)",
                place(source, look),
                codering_core::ids::shown(&source.dockerfile),
            )));
        }
        let name = self.name(source, look);
        let in_use = self.hold(&name);
        if let Some(image) = self.inspect(&name).await? {
            self.stamp(&name);
            return Ok(Ready { image, report: None, _use: in_use });
        }
        if let Some(error) = self.failed_since(&name, asked) {
            return Err(error);
        }
        let report = self.join(&name, source, look).await?;
        fault::reached(Point::ImageBuilt);
        let image = self.inspect(&name).await?;
        let image = image.ok_or_else(|| {
            BuildError::Unavailable("the image was built, and then it was not there".into())
        })?;
        self.stamp(&name);
        fault::reached(Point::ImageStamped);
        Ok(Ready { image, report: Some(report), _use: in_use })
    }

    /// How many builds were made.
    pub fn builds(&self) -> u64 {
        self.0.builds.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether an attempt uses it now.
    pub fn is_used(&self, name: &str) -> bool {
        self.used().contains_key(name)
    }

    /// When this worker last used it; `None` when it never did: on one Docker, others' images are not its to remove.
    pub fn last_used(&self, name: &str) -> Option<SystemTime> {
        std::fs::metadata(self.stamp_file(name)).and_then(|about| about.modified()).ok()
    }

    /// The short ids of images that builds left without a name. They serve later builds as a cache, until they go.
    pub fn leftovers(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.0.stamps) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.strip_prefix(LEFTOVER).map(str::to_owned)).collect()
    }

    /// Forgets when it was used.
    pub fn forget(&self, name: &str) {
        let _ = std::fs::remove_file(self.stamp_file(name));
    }

    fn used(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, HashMap<String, (Instant, BuildError)>> {
        self.0.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name says the content: git's own hash of the tree, the Dockerfile's path, and what else goes into a build.
    fn name(&self, source: &Source, look: &Look) -> String {
        let mut hash = Sha256::new();
        for part in ["1", &look.tree, &source.dockerfile, &self.0.how.get().build.network.to_string()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let hash: String = hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect();
        format!("{REPOSITORY}:{hash}")
    }

    fn hold(&self, name: &str) -> InUse {
        *self.used().entry(name.to_owned()).or_insert(0) += 1;
        InUse { used: self.0.used.clone(), name: name.to_owned() }
    }

    fn stamp_file(&self, name: &str) -> PathBuf {
        self.0.stamps.join(name.rsplit(':').next().unwrap_or(name))
    }

    fn stamp(&self, name: &str) {
        if let Err(e) = std::fs::write(self.stamp_file(name), b"") {
            tracing::warn!(image = name, "its use was not noted: {e}");
        }
    }

    async fn inspect(&self, name: &str) -> Result<Option<Image>, BuildError> {
        let found = match call(self.0.docker.inspect_image(name)).await {
            Ok(found) => found,
            Err(e) if refusal::answer(&e).is_some_and(|(status, _)| status == 404) => return Ok(None),
            Err(e) => return Err(BuildError::Unavailable(refusal::unavailable("look for the image", &e).0)),
        };
        let config = found.config.unwrap_or_default();
        Ok(Some(Image {
            id: found.id.unwrap_or_else(|| name.to_owned()),
            name: name.to_owned(),
            user: config.user.unwrap_or_default(),
            workdir: config.working_dir.unwrap_or_default(),
            volumes: config.volumes.unwrap_or_default(),
        }))
    }

    fn failed_since(&self, name: &str, asked: Instant) -> Option<BuildError> {
        let mut failed = self.failed();
        failed.retain(|_, (at, _)| at.elapsed() < FAILED_FOR);
        failed.get(name).filter(|(at, _)| *at >= asked).map(|(_, error)| error.clone())
    }

    /// The build that runs, or a new one.
    fn join(&self, name: &str, source: &Source, look: &Look) -> Shared<Flight> {
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.upgrade().is_some());
        if let Some(running) = flights.get(name).and_then(WeakShared::upgrade)
            && running.peek().is_none()
        {
            return running;
        }
        let (images, name_, source, look) = (self.clone(), name.to_owned(), source.clone(), look.clone());
        let flight = async move { images.build(&name_, &source, &look).await }.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(name.to_owned(), weak);
        }
        flight
    }

    async fn build(&self, name: &str, source: &Source, look: &Look) -> Result<Arc<Report>, BuildError> {
        let _room = self.0.room.acquire().await;
        self.0.builds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (started_at, began) = (now(), Instant::now());
        let mut log = BuildLog::default();
        let how = self.0.how.get();
        let job = build::Job {
            docker: &self.0.docker,
            mirrors: &self.0.mirrors,
            config: &how.build,
            proxy: &how.proxy,
            credentials: self.registry_credentials()?,
            source,
            look,
            name,
            room: &self.0.room,
        };
        tracing::info!(image = name, commit = look.commit, "building an image");
        let done = build::build(&job, &mut log).await;
        let took_ms = began.elapsed().as_millis() as u64;
        let (steps, cached_steps) = (log.steps(), log.cached_steps());
        let lines = log.last_lines(SHOWN_LINES);
        for id in log.leftovers(done.is_err()) {
            self.stamp(&format!("{LEFTOVER}{id}"));
        }
        if done.is_err() {
            self.make_room(&mut log).await;
        }
        let (log, log_truncated) = log.finish();
        let report = Arc::new(Report {
            image: name.to_owned(),
            commit: look.commit.clone(),
            succeeded: done.is_ok(),
            started_at,
            took_ms,
            steps,
            cached_steps,
            log,
            log_truncated,
            told: Mutex::default(),
        });
        tracing::info!(
            image = name,
            took_ms,
            steps,
            cached_steps,
            succeeded = report.succeeded,
            "build done"
        );
        match done {
            Ok(()) => Ok(report),
            Err(Problem::Unavailable(why)) => Err(BuildError::Unavailable(why)),
            Err(Problem::Failed(message)) => {
                let error = BuildError::Failed { message, lines, report: Some(report) };
                let mut failed = self.failed();
                if failed.len() >= MAX_FAILED {
                    failed.clear();
                }
                failed.insert(name.to_owned(), (Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// What a failed build left on a disk that is full by now goes at once.
    async fn make_room(&self, log: &mut BuildLog) {
        let full = self.disk().await.is_some_and(|disk| disk.missing() > 0);
        for id in if full { log.leftovers(false) } else { Vec::new() } {
            let options = RemoveImageOptionsBuilder::default().build();
            if call(self.0.docker.remove_image(&id, Some(options), None)).await.is_ok() {
                self.forget(&format!("{LEFTOVER}{id}"));
            }
        }
    }

    /// The disk that builds write to, where it is to be seen.
    pub async fn disk(&self) -> Option<Disk> {
        Disk::of(&self.0.docker, self.0.how.get().build.disk_reserve).await
    }

    fn registry_credentials(&self) -> Result<Option<HashMap<String, DockerCredentials>>, BuildError> {
        let read = self.0.how.get().credentials.as_deref().map(credentials::read).transpose();
        read.map_err(|e| BuildError::Unavailable(e.to_string()))
    }
}
