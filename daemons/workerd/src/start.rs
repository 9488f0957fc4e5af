//! The process from its start to its end, as a table of contents.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bollard::{API_DEFAULT_VERSION, Docker};
use clap::{CommandFactory, Parser};
use codering_core::{Code, Error};
use codering_kit::{
    config, fault,
    health::{self, Pulse, Readiness},
    listen,
    live::Live,
    notify,
    reload::{self as hangup, Hangups, Told},
    shutdown::{self, Shutdown},
    telemetry,
    tls::{self, Identity},
};
use codering_proto::v1::from_worker::Message;
use prometheus_client::registry::Registry;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::Broker,
    checkout::Mirrors,
    config::{Config, File, OnStop},
    enroll, gc,
    held::Stop,
    image::Images,
    join,
    metrics::Metrics,
    readopt, reload,
    renew::{self, Way},
    room,
    sandbox::{docker::Containers, host},
    stream,
    worker::{Real, Work, Worker},
};

/// Runs tasks for codering-brokerd.
#[derive(Debug, Parser)]
#[command(name = "codering-workerd", version)]
struct Arguments {
    /// The configuration [default: /etc/codering/workerd.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
    /// Run tasks without Docker and git: each succeeds at once. For tests and measurements
    #[arg(long)]
    simulate: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What is done instead of running tasks.
#[derive(Debug, clap::Subcommand)]
enum Verb {
    Enroll(join::Enroll),
    /// Has the running workerd read its configuration, certificate and secrets again, and says what came of it: what the unit's
    /// ExecReload= runs. For yourself: systemctl reload codering-workerd.
    Reload,
    /// Prints completions of these flags, as the packages install them.
    #[command(hide = true)]
    Completions {
        shell: clap_complete::Shell,
    },
}

/// Docker's default for a response's head; an image's build begins to answer when its context is there.
const DOCKER_TIMEOUT_SECONDS: u64 = 600;
const START_IT: &str = "start it with `systemctl start docker`";
/// Between looks for Docker, before it was there for the first time.
const DOCKER_AGAIN: Duration = Duration::from_secs(2);
/// After so many looks it is no start or restart of Docker any more.
const LONG_AWAY: u32 = 15;
/// What is left of the drain's time for containers to be killed and results to be reported.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// What is about to end is reported by the process that watched it. Not for long: an upgrade holds dpkg's lock meanwhile.
const ABOUT_TO_END: Duration = Duration::from_secs(2);
/// What the broker leased to this worker before it knew of the stop is here within this; gone, it would be an attempt that nobody made.
const ON_THE_WAY: Duration = Duration::from_millis(300);
/// A drain that waits for all has no deadline; this is as good as none.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Probes at once.
const PROBES: usize = 64;
/// A stream's loop that does not come round for so long is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// The process.
///
/// # Errors
/// Those of the configuration, of listening, and of the broker when it refuses the join token.
pub fn run() -> Result<(), Error> {
    let arguments = Arguments::parse();
    tls::install_provider();
    match arguments.verb {
        Some(Verb::Reload) => return hangup::request("codering-workerd").map(|said| eprintln!("{said}")),
        Some(Verb::Completions { shell }) => {
            let name = "codering-workerd";
            clap_complete::generate(shell, &mut Arguments::command(), name, &mut std::io::stdout());
            return Ok(());
        }
        Some(Verb::Enroll(asked)) => return join::run(asked, arguments.config.as_deref()),
        None => {}
    }
    let (mut config, written) = config::load_written("workerd", arguments.config.as_deref(), File::check)?;
    config.simulate |= arguments.simulate;
    if arguments.check {
        enroll::check(&config)?;
        eprintln!("the configuration is valid");
        return Ok(());
    }
    let filter = telemetry::init("codering-workerd", telemetry::filter(&config.log)?)?;
    if fault::BUILT_IN {
        tracing::warn!("{}", fault::SAYS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(Code::Internal, format!("no runtime: {e}")))?;
    let told = Told { file: arguments.config, filter, in_force: written };
    let ended = runtime.block_on(Box::pin(serve(config, told)));
    // What hangs in a system call is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// How long a stop may take.
pub(crate) fn drain(config: &Config) -> Duration {
    if config.on_stop == OnStop::Drain { FOREVER } else { config.shutdown }
}

async fn serve(config: Config, told: Told) -> Result<(), Error> {
    let no_handlers = |e| Error::new(Code::Internal, format!("no signal handlers: {e}"));
    let shutdown = shutdown::on_signals(drain(&config)).map_err(no_handlers)?;
    let hangups = Hangups::listen().map_err(no_handlers)?;
    let readiness = Readiness::new();
    let latch = readiness.latch("broker");
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let listener = listen::bind(config.metrics).await?;
    let address = listener.local_addr().map_or_else(|_| String::new(), |a| a.to_string());
    tracing::info!(metrics = address, broker = config.broker, slots = config.slots, "starting");
    let probes = health::router(readiness.clone(), Arc::new(registry));
    let bounds = listen::Bounds { connections: PROBES, ..listen::Bounds::default() };
    let probing = tokio::spawn(listen::serve(listener, None, probes, bounds, shutdown.clone()));

    // Until there is a stream, the process is alive as long as its runtime is.
    let streaming = Arc::new(OnceLock::<Pulse>::new());
    let pulse = streaming.clone();
    let alive = move || pulse.get().is_none_or(|pulse| pulse.alive(STUCK));
    tokio::spawn(notify::watchdog(alive, shutdown.clone()));
    let started = tokio::select! {
        started = start(config, metrics, &readiness) => Some(started?),
        () = shutdown.begun() => None,
    };
    if let Some(Started { worker, events, docker, identity, way }) = started {
        let end = CancellationToken::new();
        let _ended = end.clone().drop_guard();
        tokio::spawn(renew::run(worker.clone(), identity, way.clone(), end));
        let again = reload::again(told, worker.clone(), way, shutdown.clone());
        let settled = format!("attached to {}", worker.config.broker);
        tokio::spawn(hangups.serve(readiness.clone(), shutdown.clone(), settled, again));
        let signs = stream::Signs {
            readiness: readiness.clone(),
            latch: Some(latch),
            pulse: streaming.get_or_init(Pulse::default).clone(),
        };
        Box::pin(work(worker, events, docker, readiness, signs, shutdown)).await;
    }
    // A probe that is still asked does not hold the end up.
    probing.abort();
    Ok(())
}

struct Started {
    worker: Arc<Worker>,
    events: mpsc::Receiver<Message>,
    docker: Option<Docker>,
    identity: Identity,
    way: Way,
}

async fn start(config: Config, metrics: Metrics, readiness: &Readiness) -> Result<Started, Error> {
    private_directory(&config)?;
    notify::status(&format!("enrolling at {}", config.broker));
    let proof = enroll::proof(&config).await?;
    // For systemd it is started: a broker or a Docker that is away is waited for, however long, and whoever started it
    // (a package's installation, a boot) shall not wait with it. /readyz says more.
    notify::ready();
    notify::status(&format!("waiting for {}", config.broker));
    let enroll::Proof { name, identity, tls } = proof;
    let way = Way { proof: Live::from(tls), proxy: Live::new(config.proxy.clone()) };
    let broker = Broker::new(way.channel(&config.broker)?);
    if config.simulate {
        tracing::warn!("simulating: no task is really run");
        let (worker, events) = Worker::new(name, config, broker, Work::Simulated, metrics)?;
        return Ok(Started { worker, events, docker: None, identity, way });
    }
    let docker = docker(&config, readiness).await;
    let program = std::env::current_exe()
        .map_err(|e| Error::new(Code::Internal, format!("this executable is not found: {e}")))?;
    let mirrors = Mirrors::new(
        program,
        config.path("mirrors"),
        config.path("git-home"),
        config.git.clone(),
        config.proxy.clone(),
    )?;
    let images = Images::new(docker.clone(), mirrors.clone(), &config)?;
    let sandbox_config = Live::new(config.sandbox.clone());
    let sandbox = Arc::new(Containers::following(docker.clone(), name.clone(), sandbox_config.clone()));
    let work = Work::Real(Box::new(Real { mirrors, images, sandbox, sandbox_config }));
    let (worker, events) = Worker::new(name, config, broker, work, metrics)?;
    if let Work::Real(real) = &worker.work {
        while let Err(e) = readopt::run(&worker, real).await {
            tracing::warn!("containers of a former process were not looked for: {e}");
            tokio::time::sleep(DOCKER_AGAIN).await;
        }
    }
    Ok(Started { worker, events, docker: Some(docker), identity, way })
}

pub(crate) fn private_directory(config: &Config) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data_dir).map_err(|e| {
        Error::new(Code::ConfigInvalid, format!("{}: cannot be made: {e}", config.data_dir.display()))
            .at("data_dir")
    })
}

/// Docker, once it is there.
async fn docker(config: &Config, readiness: &Readiness) -> Docker {
    let socket = config.docker_socket.display().to_string();
    let mut told = String::new();
    let mut looks = 0;
    loop {
        let why = match Docker::connect_with_unix(&socket, DOCKER_TIMEOUT_SECONDS, API_DEFAULT_VERSION) {
            Ok(docker) => match timeout(LAST_WORDS, docker.ping()).await {
                Ok(Ok(_)) => match host::confines(&docker).await {
                    Ok(()) => {
                        readiness.degraded("docker", None);
                        return docker;
                    }
                    Err(e) => format!("[{}] {e}", e.code.as_str()),
                },
                Ok(Err(e)) => format!("{e}; {START_IT}"),
                Err(_) => format!("it does not answer; {START_IT}"),
            },
            Err(e) => e.to_string(),
        };
        looks += 1;
        if told != why {
            tracing::warn!(socket, "waiting for Docker: {why}");
            notify::status(&format!("waiting for Docker: {why}"));
            told.clone_from(&why);
        } else if looks == LONG_AWAY {
            tracing::error!(socket, "still waiting for Docker: {why}");
        }
        readiness.degraded("docker", Some(why));
        tokio::time::sleep(DOCKER_AGAIN).await;
    }
}

async fn work(
    worker: Arc<Worker>,
    events: mpsc::Receiver<Message>,
    docker: Option<Docker>,
    readiness: Readiness,
    signs: stream::Signs,
    shutdown: Shutdown,
) {
    let end = CancellationToken::new();
    let streaming = tokio::spawn(stream::run(worker.clone(), events, signs, shutdown.clone(), end.clone()));
    tokio::spawn(room::run(worker.clone(), readiness.clone(), end.clone()));
    if let Some(docker) = docker {
        tokio::spawn(gc::health(worker.clone(), docker.clone(), readiness.clone(), end.clone()));
        tokio::spawn(gc::run(worker.clone(), docker, end.clone()));
    }
    tokio::select! {
        () = readiness.ready() => {
            notify::status(&format!("attached to {}", worker.config.broker));
            shutdown.begun().await;
        }
        () = shutdown.begun() => {}
    }
    notify::stopping();
    readiness.stopping();
    stop(&worker, &shutdown).await;
    if let Work::Real(real) = &worker.work
        && !matches!(
            timeout(LAST_WORDS, readopt::last_sweep(&worker, real.sandbox.as_ref())).await,
            Ok(Ok(()))
        )
    {
        tracing::warn!("orphans were not looked for: Docker does not answer");
    }
    end.cancel();
    let _ = timeout(Duration::from_secs(1), streaming).await;
    tracing::info!(left = worker.attempts.len(), spooled = worker.spool.tokens().len(), "stopped");
}

/// What becomes of the running attempts; see [`OnStop`].
async fn stop(worker: &Worker, shutdown: &Shutdown) {
    let attempts = &worker.attempts;
    let gone = async {
        tokio::time::sleep(ON_THE_WAY).await;
        attempts.gone().await;
    };
    match worker.now.get().on_stop {
        OnStop::Kill => attempts.stop_all(Stop::Shutdown),
        OnStop::Drain => tokio::select! {
            () = gone => {}
            () = shutdown.ended() => attempts.stop_all(Stop::Detach),
        },
        OnStop::Detach => {
            tokio::select! {
                () = gone => {}
                () = tokio::time::sleep(ABOUT_TO_END) => {}
                () = shutdown.ended() => {}
            }
            attempts.stop_all(Stop::Detach);
        }
    }
    // Their ends are reported while there is time; what is not stays in the spool.
    let settled = async {
        attempts.gone().await;
        worker.tasks.close();
        worker.tasks.wait().await;
        worker.spool.empty().await;
    };
    tokio::select! {
        () = settled => {}
        () = async {
            shutdown.ended().await;
            // Forced or late: a container that is being killed has a moment to go.
            let _ = timeout(LAST_WORDS, attempts.gone()).await;
        } => tracing::warn!("stopped before all was settled"),
    }
}
