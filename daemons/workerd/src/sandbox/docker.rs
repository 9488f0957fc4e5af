//! A container for each attempt.

use std::{
    collections::HashMap,
    io::Read,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bollard::{
    Docker,
    container::LogOutput,
    errors::Error,
    models::{ContainerInspectResponse, ContainerSummary},
    query_parameters::{
        AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, DownloadFromContainerOptionsBuilder,
        EventsOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder,
        RemoveContainerOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use codering_core::{
    WorkerName,
    time::{Millis, from_rfc3339},
};
use codering_kit::{
    clock::now,
    fault::{self, Point},
    live::Live,
};
use futures::{StreamExt, stream::BoxStream};
use tokio::{io::AsyncWrite, time::timeout};

use super::{
    Control, Exit, Image, Left, Piece, Running, Sandbox, Spec, StartError, Unavailable, Whose, host, refusal,
    settings,
    settings::label,
    user::{self, Stated},
};
use crate::{config::SandboxConfig, output::Stream};

/// For one short call to Docker.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often Docker is asked again whether a container has ended, when it broke off while it was waited for.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// For so long; then the attempt is given up as the infrastructure's failure.
const RETRIES: u32 = 60;
/// How often, and how many times, a killed container is looked at for the memory cgroup's evidence.
const EVIDENCE_EVERY: Duration = Duration::from_millis(50);
const EVIDENCE_TRIES: u32 = 10;
/// How long after a container's end Docker has noted who killed it.
const KILL_IS_NOTED_MS: Millis = 500;
/// Docker tells of 256 events that lie in the past, until it ends itself.
const EVENTS_KEPT: usize = 256;
/// What an entry of Docker's log weighs at most beyond its text.
const ENTRY_OVERHEAD: u64 = 64;
/// The largest /etc/passwd or /etc/group of an image that is read.
const ACCOUNTS_BYTES: usize = 1 << 20;
/// So many images' users are remembered.
const MAX_USERS: usize = 256;

/// Runs each attempt in a Docker container of its own.
#[derive(Debug, Clone)]
pub struct Containers {
    docker: Docker,
    worker: WorkerName,
    config: Live<SandboxConfig>,
    cores: f64,
    /// By image and what it names: the numbers behind it.
    users: Arc<Mutex<HashMap<(String, String), String>>>,
}

impl Containers {
    /// For this worker's attempts.
    pub fn new(docker: Docker, worker: WorkerName, config: SandboxConfig) -> Self {
        Self::following(docker, worker, Live::new(config))
    }

    /// The same, by what `config` is when each begins.
    pub fn following(docker: Docker, worker: WorkerName, config: Live<SandboxConfig>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
        Self { docker, worker, config, cores, users: Arc::default() }
    }

    async fn create(&self, spec: &Spec) -> Result<String, StartError> {
        let name = format!("codering-{}", spec.token);
        let user = self.user(&spec.image).await?;
        let body = settings::body(spec, &user, &self.worker, &self.config.get(), self.cores)?;
        let create = || {
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            call(self.docker.create_container(Some(options), body.clone()))
        };
        let created = match create().await {
            // Left by an attempt of this very token that did not get further.
            Err(error) if refusal::answer(&error).is_some_and(|(status, _)| status == 409) => {
                self.remove(&name).await?;
                create().await
            }
            created => created,
        };
        let created = created.map_err(|e| refusal::of_start(&e))?;
        if let Err(unheld) = host::held(&created.warnings) {
            self.remove(&created.id).await?;
            return Err(unheld.into());
        }
        Ok(created.id)
    }

    /// As whom the image's commands run.
    async fn user(&self, image: &Image) -> Result<String, StartError> {
        if let Stated::As(user) = user::stated(&image.user) {
            return Ok(user);
        }
        let key = (image.id.clone(), image.user.clone());
        let known = self.users.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(user) = known {
            return Ok(user);
        }
        // Docker reads files out of a container that never ran, so nothing in it moves meanwhile.
        let created =
            call(self.docker.create_container(None, settings::unstarted(image, &self.worker))).await;
        let id = created.map_err(|e| refusal::of_start(&e))?.id;
        let accounts = async {
            Ok::<_, StartError>((self.account(&id, "passwd").await?, self.account(&id, "group").await?))
        };
        let accounts = accounts.await;
        self.remove(&id).await?;
        let (passwd, group) = accounts?;
        let user = user::resolved(&image.user, &passwd, &group).ok_or_else(|| StartError::Refused {
            code: 126,
            message: format!(
                "the image names a user that it does not have: `{}`",
                refusal::one_line(&image.user)
            ),
        })?;
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() >= MAX_USERS {
            users.clear();
        }
        users.insert(key, user.clone());
        Ok(user)
    }

    /// A file of /etc; empty where there is none. Its content is read, its path is never followed on the host.
    async fn account(&self, id: &str, name: &str) -> Result<String, StartError> {
        let options = DownloadFromContainerOptionsBuilder::default().path(&format!("/etc/{name}")).build();
        let mut answer = std::pin::pin!(self.docker.download_from_container(id, Some(options)));
        let mut tar = Vec::new();
        while let Some(piece) = call(async { answer.next().await.transpose() }).await.transpose() {
            match piece {
                Ok(piece) if tar.len() < ACCOUNTS_BYTES => tar.extend_from_slice(&piece),
                Ok(_) => break,
                Err(e) if refusal::answer(&e).is_some_and(|(status, _)| status == 404) => {
                    return Ok(String::new());
                }
                Err(e) => return Err(refusal::unavailable("read the image's users", &e).into()),
            }
        }
        account_in(&tar).ok_or_else(|| StartError::Refused {
            code: 126,
            message: format!(
                "/etc/{name} of the image is not a plain file of at most 1 MB: name its user by a number"
            ),
        })
    }

    async fn launch(&self, id: &str, spec: &Spec) -> Result<Running, StartError> {
        let options = AttachContainerOptionsBuilder::default()
            .stdin(spec.stdin)
            .stdout(true)
            .stderr(true)
            .stream(true)
            .build();
        // Attached before it starts, so that nothing is missed.
        let attached = call(self.docker.attach_container(id, Some(options)))
            .await
            .map_err(|e| refusal::unavailable("attach to the container", &e))?;
        fault::reached(Point::ContainerAttached);
        if spec.lease.is_over() {
            let why = "the lease was over before the container could be started";
            return Err(StartError::Unavailable(Unavailable(why.into())));
        }
        call(self.docker.start_container(id, None)).await.map_err(|e| refusal::of_start(&e))?;
        fault::reached(Point::ContainerStarted);
        let stdin = spec.stdin.then_some(attached.input as Pin<Box<dyn AsyncWrite + Send>>);
        Ok(Running {
            id: id.to_owned(),
            output: pieces(attached.output),
            stdin,
            control: Arc::new(self.container(id, spec.limits.output_bytes)),
        })
    }

    /// Docker says year 1 of one that was never started.
    async fn began_at(&self, id: &str) -> Option<Millis> {
        let found = call(self.docker.inspect_container(id, None)).await.ok()?;
        from_rfc3339(&found.state?.started_at?).filter(|at| *at > 0)
    }

    fn container(&self, id: &str, output_bytes: u64) -> Container {
        let log_bytes = settings::log_bytes(output_bytes);
        Container {
            docker: self.docker.clone(),
            id: id.to_owned(),
            log_bytes,
            killed: AtomicBool::new(false),
        }
    }
}

/// The one plain file in a tar.
fn account_in(tar: &[u8]) -> Option<String> {
    let mut archive = tar::Archive::new(tar);
    let mut entry = archive.entries().ok()?.next()?.ok()?;
    if !entry.header().entry_type().is_file() {
        return None;
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content).ok()?;
    (content.len() as u64 == entry.size()).then(|| String::from_utf8_lossy(&content).into_owned())
}

/// One short call to Docker, with a bound.
pub(crate) async fn call<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(CALL_TIMEOUT, future).await.unwrap_or(Err(Error::RequestTimeoutError))
}

fn pieces<S>(output: S) -> BoxStream<'static, Result<Piece, Unavailable>>
where
    S: futures::Stream<Item = Result<LogOutput, Error>> + Send + 'static,
{
    output
        .filter_map(async |item| match item {
            Ok(LogOutput::StdErr { message }) => Some(Ok((Stream::Stderr, message))),
            Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => {
                Some(Ok((Stream::Stdout, message)))
            }
            Ok(LogOutput::StdIn { .. }) => None,
            Err(error) => Some(Err(refusal::unavailable("read the output", &error))),
        })
        .boxed()
}

#[async_trait]
impl Sandbox for Containers {
    async fn start(&self, spec: &Spec) -> Result<Running, StartError> {
        let id = self.create(spec).await?;
        fault::reached(Point::ContainerCreated);
        match self.launch(&id, spec).await {
            Ok(running) => Ok(running),
            Err(error) => {
                if let Err(left) = self.remove(&id).await {
                    tracing::warn!(container = id, "{left}");
                }
                Err(error)
            }
        }
    }

    async fn left(&self) -> Result<Vec<Left>, Unavailable> {
        let mine = format!("{}={}", label::WORKER, self.worker);
        let filters = HashMap::from([("label".to_owned(), vec![mine])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = call(self.docker.list_containers(Some(options)))
            .await
            .map_err(|e| refusal::unavailable("list containers", &e))?;
        let mut all: Vec<Left> = found.into_iter().filter_map(left).collect();
        for left in &mut all {
            left.began_at = self.began_at(&left.id).await;
        }
        Ok(all)
    }

    async fn adopt(&self, left: &Left) -> Result<Running, Unavailable> {
        let output_bytes = left.whose.as_ref().map_or(0, |whose| whose.record.output_bytes);
        let container = self.container(&left.id, output_bytes);
        Ok(Running {
            id: left.id.clone(),
            output: pieces(container.log(true)),
            stdin: None,
            control: Arc::new(container),
        })
    }

    async fn remove(&self, id: &str) -> Result<(), Unavailable> {
        remove(&self.docker, id).await
    }
}

async fn remove(docker: &Docker, id: &str) -> Result<(), Unavailable> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match call(docker.remove_container(id, Some(options))).await {
        Ok(()) => Ok(()),
        // Not there, or being removed already.
        Err(error) if refusal::answer(&error).is_some_and(|(status, _)| matches!(status, 404 | 409)) => {
            Ok(())
        }
        Err(error) => Err(refusal::unavailable("remove a container", &error)),
    }
}

fn left(summary: ContainerSummary) -> Option<Left> {
    let labels = summary.labels.unwrap_or_default();
    let whose = || {
        let text = |name: &str| labels.get(name).map(String::as_str);
        Some(Whose {
            token: text(label::TOKEN)?.parse().ok()?,
            project: text(label::PROJECT)?.parse().ok()?,
            job: text(label::JOB)?.parse().ok()?,
            task: text(label::TASK)?.parse().ok()?,
            attempt: text(label::ATTEMPT)?.parse().ok()?,
            record: serde_json::from_str(text(label::RECORD)?).ok()?,
        })
    };
    Some(Left {
        whose: whose(),
        created_at: summary.created.unwrap_or(0).saturating_mul(1000),
        began_at: None,
        id: summary.id?,
    })
}

struct Container {
    docker: Docker,
    id: String,
    log_bytes: u64,
    /// This process killed it.
    killed: AtomicBool,
}

impl Container {
    fn log(&self, follow: bool) -> impl futures::Stream<Item = Result<LogOutput, Error>> + Send + use<> {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).follow(follow).build();
        let (docker, id) = (self.docker.clone(), self.id.clone());
        follow_log(docker, id, options)
    }

    /// Of a container that was killed: whether for memory. On cgroup v2 containerd may tell so after it told of the end.
    async fn evidence(&self, mut exit: Exit) -> Exit {
        for _ in 0..EVIDENCE_TRIES {
            tokio::time::sleep(EVIDENCE_EVERY).await;
            exit = self.ended().await.ok().flatten().unwrap_or(exit);
            if exit.out_of_memory {
                break;
            }
        }
        exit
    }

    async fn inspect(&self) -> Result<ContainerInspectResponse, Error> {
        call(self.docker.inspect_container(&self.id, None)).await
    }

    /// Why an end that looks like a stop was not the user's doing, if so: no task reaches Docker.
    async fn stopped_by_others(&self, exit: Exit) -> Result<Option<&'static str>, Error> {
        if !exit.looks_stopped() || self.killed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let at = |ms: Millis| format!("{}.{:03}000000", ms / 1000, ms % 1000);
        // Those of others too: that this one's end is not among them says something where Docker keeps no more than it told.
        let options = EventsOptionsBuilder::default()
            .since(&at(exit.started_at))
            // Without a bound Docker would go on telling. The end is noted by now; who asked for it, a moment after it.
            .until(&at((exit.finished_at + KILL_IS_NOTED_MS).max(now() + 1)))
            .build();
        let mut events = std::pin::pin!(self.docker.events(Some(options)));
        let (mut told, mut seen) = (0, false);
        while let Some(event) = call(async { events.next().await.transpose() }).await? {
            told += 1;
            let its = event.actor.and_then(|actor| actor.id).as_deref() == Some(&self.id);
            match event.action.as_deref() {
                Some("kill") if its => {
                    return Ok(Some("the container was killed through Docker by somebody else"));
                }
                Some("die") if its => seen = true,
                _ => {}
            }
        }
        // It was the Docker before this one that saw the end, and stopped its containers because it was stopped itself. That each
        // call was answered says nothing: systemd holds Docker's socket meanwhile.
        Ok((!seen && told < EVENTS_KEPT).then_some("Docker was restarted while the command ran"))
    }

    async fn ended(&self) -> Result<Option<Exit>, Error> {
        let state = self.inspect().await?.state.unwrap_or_default();
        if state.running == Some(true) || state.paused == Some(true) || state.finished_at.is_none() {
            return Ok(None);
        }
        let at = |text: Option<String>| text.and_then(|t| from_rfc3339(&t)).unwrap_or(0).max(0);
        Ok(Some(Exit {
            code: i32::try_from(state.exit_code.unwrap_or(0)).unwrap_or(-1),
            out_of_memory: state.oom_killed == Some(true),
            started_at: at(state.started_at),
            finished_at: at(state.finished_at),
        }))
    }
}

/// The log as a stream that owns what it needs.
fn follow_log(
    docker: Docker,
    id: String,
    options: bollard::query_parameters::LogsOptions,
) -> impl futures::Stream<Item = Result<LogOutput, Error>> + Send {
    let (to, from) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        let mut log = docker.logs(&id, Some(options));
        while let Some(item) = log.next().await {
            if to.send(item).await.is_err() {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(from)
}

#[async_trait]
impl Control for Container {
    async fn wait(&self) -> Result<Exit, Unavailable> {
        let mut last = None;
        for tries in 0..RETRIES {
            if tries > 0 {
                tokio::time::sleep(RETRY_EVERY).await;
            }
            let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
            // Its own answer gives the code only; what matters is that it has answered.
            let _ = self.docker.wait_container(&self.id, Some(options)).next().await;
            let ended = match self.ended().await {
                Ok(Some(exit)) => self.stopped_by_others(exit).await.map(|why| Some((exit, why))),
                other => other.map(|_| None),
            };
            match ended {
                Ok(Some((_, Some(why)))) => return Err(Unavailable(why.into())),
                Ok(Some((exit, None))) if exit.code == 137 && !exit.out_of_memory => {
                    return Ok(self.evidence(exit).await);
                }
                Ok(Some((exit, None))) => return Ok(exit),
                Ok(None) => {}
                Err(error) if refusal::answer(&error).is_some_and(|(status, _)| status == 404) => {
                    return Err(Unavailable("the container was removed by somebody else".into()));
                }
                Err(error) => last = Some(error),
            }
        }
        let why = last.unwrap_or(Error::RequestTimeoutError);
        Err(refusal::unavailable("wait for the container", &why))
    }

    async fn kill(&self) -> Result<(), Unavailable> {
        self.killed.store(true, Ordering::Relaxed);
        let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        match call(self.docker.kill_container(&self.id, Some(options))).await {
            Ok(()) => Ok(()),
            Err(error) if refusal::answer(&error).is_some_and(|(status, _)| matches!(status, 404 | 409)) => {
                Ok(())
            }
            Err(error) => Err(refusal::unavailable("kill the container", &error)),
        }
    }

    async fn paused(&self) -> bool {
        let state = self.inspect().await.ok().and_then(|found| found.state);
        state.is_some_and(|state| state.paused == Some(true))
    }

    async fn recorded(&self) -> Result<(BoxStream<'static, Result<Piece, Unavailable>>, u64), Unavailable> {
        Ok((pieces(self.log(false)), self.log_bytes))
    }

    async fn remove(&self) -> Result<(), Unavailable> {
        remove(&self.docker, &self.id).await
    }
}

/// Reads a log again from its start into `each`. `false`: it was longer than Docker keeps, its beginning may be gone.
pub async fn read_again(control: &dyn Control, mut each: impl FnMut(Piece)) -> Result<bool, Unavailable> {
    let (mut log, bound) = control.recorded().await?;
    let mut weight = 0;
    while let Some(piece) = log.next().await {
        let piece = piece?;
        weight += piece.1.len() as u64 + ENTRY_OVERHEAD;
        each(piece);
    }
    Ok(weight < bound)
}
