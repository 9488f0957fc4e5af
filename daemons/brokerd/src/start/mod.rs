//! From a command line to a drained process. [`run`] is the table of contents.

mod reload;
mod repair;
mod room;
mod supervise;

use std::{
    fs::DirBuilder,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{CommandFactory, Parser};
use codering_core::{Code, Error};
use codering_kit::{
    fault,
    health::{self, Readiness},
    inherited::Inherited,
    listen::{self, Bounds},
    notify, open_files,
    reload::{self as hangup, Hangups, Told},
    shutdown::{self, Shutdown},
    telemetry, tls,
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    api::{self, Api},
    auth::Auth,
    broker::Broker,
    config::Config,
    ledger::{self, SharedLedger},
    metrics::Metrics,
    pki::{self, Pki},
    queue::{self, SharedQueues},
};
use supervise::Supervisor;

/// codering's broker: takes jobs, queues their tasks, leases them to workers, keeps the results.
#[derive(Debug, Parser)]
#[command(name = "codering-brokerd", version)]
struct Options {
    /// Its configuration, with drop-ins in FILE's `.d` beside it [default: /etc/codering/brokerd.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Checks the configuration, and what it points to, and exits.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What is done instead of serving.
#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Looks into a ledger's file, or puts a backup in its place, while no brokerd runs. `coderingctl ledger` calls this.
    #[command(subcommand)]
    Ledger(repair::Verb),
    /// Has the running brokerd read its configuration, certificates and secrets again, and says what came of it: what the unit's
    /// ExecReload= runs. For yourself: systemctl reload codering-brokerd.
    Reload,
    /// Makes the CA, brokerd's certificate, the ledger and an administrator's token where they are missing, and exits.
    ///
    /// A start does the same; this is for doing it before anything listens.
    Init,
    /// Prints completions of these flags, as the packages install them.
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
}

/// In the data directory. `coderingctl` on this machine looks for it there.
const ADMIN_TOKEN: &str = "admin.token";
/// The closing of ledger and queue gets this long, even where the drain's deadline has passed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// All of `main`.
pub fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.verb {
        Some(Verb::Ledger(verb)) => return repair::main(verb, options.config.as_deref()),
        Some(Verb::Reload) => hangup::request("codering-brokerd").map(|said| eprintln!("{said}")),
        Some(Verb::Init) => init(options.config.as_deref()),
        Some(Verb::Completions { shell }) => {
            clap_complete::generate(
                *shell,
                &mut Options::command(),
                "codering-brokerd",
                &mut std::io::stdout(),
            );
            Ok(())
        }
        None => start(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => codering_kit::failed(&error),
    }
}

fn start(options: &Options) -> Result<(), Error> {
    tls::install_provider();
    if options.check {
        return check(options.config.as_deref());
    }
    // Before there are threads, as it changes the environment.
    let sockets = Inherited::take(&[GRPC, REST])?;
    let (config, written) = Config::load_written(options.config.as_deref())?;
    let filter = telemetry::init("codering-brokerd", telemetry::filter(&config.log)?)?;
    if fault::BUILT_IN {
        tracing::warn!("{}", fault::SAYS);
    }
    let told = Told { file: options.config.clone(), filter, in_force: written };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(Code::Internal, format!("no runtime: {e}")))?;
    let result = runtime.block_on(run(config, told, sockets));
    // Whatever still blocks was given its time in the drain.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Reads all that the configuration points to; makes and changes nothing.
fn check(file: Option<&Path>) -> Result<(), Error> {
    let config = Config::load(file)?;
    check_files(&config)?;
    let ca = config.data_dir.join("ca");
    if ca.join("ca.pem").exists() {
        tls::Ca::at(&ca)?;
    }
    eprintln!("the configuration is valid");
    Ok(())
}

/// [`Verb::Init`]. What is there is left as it is.
fn init(file: Option<&Path>) -> Result<(), Error> {
    tls::install_provider();
    let config = Config::load(file)?;
    telemetry::init("codering-brokerd", telemetry::filter(&config.log)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(Code::Internal, format!("no runtime: {e}")))?;
    runtime.block_on(make(&config))
}

async fn make(config: &Config) -> Result<(), Error> {
    make_data_dir(&config.data_dir)?;
    let pki = Pki::open(config)?;
    let ledger = ledger::open(&config.data_dir.join("ledger.db")).await?;
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let made =
        Auth::new(ledger.clone(), pki.ca, metrics).ensure_admin(&config.data_dir.join(ADMIN_TOKEN)).await;
    ledger.close().await;
    made
}

fn check_files(config: &Config) -> Result<(), Error> {
    if let Some((chain, key)) = &config.rest_certificate {
        pki::given_certificate(chain, key)?;
    }
    if let Some(url) = &config.queue.url_file {
        codering_kit::config::secret_file("queue.url_file", url)?;
    }
    Ok(())
}

async fn run(config: Config, told: Told, mut sockets: Inherited) -> Result<(), Error> {
    let shutdown = shutdown::on_signals(config.drain)
        .map_err(|e| Error::new(Code::Internal, format!("no signal handlers: {e}")))?;
    let hangups =
        Hangups::listen().map_err(|e| Error::new(Code::Internal, format!("no signal handler: {e}")))?;
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let readiness = Readiness::new();
    let (ledger_open, queue_known, serving) =
        (readiness.latch("ledger"), readiness.latch("queue"), readiness.latch("listeners"));

    make_data_dir(&config.data_dir)?;
    let pki = Pki::open(&config)?;
    // Bound before anything is opened: a port that is taken is found while nothing has been touched.
    let grpc_listeners = listeners(sockets.of(GRPC), config.grpc).await?;
    let rest_listeners = listeners(sockets.of(REST), config.rest).await?;
    must_be_private(&config, &rest_listeners)?;

    notify::status("opening the ledger");
    let opened = tokio::select! {
        opened = room::waited_for(|| open(&config, &pki, &metrics)) => opened?,
        () = shutdown.begun() => return Ok(()),
    };
    let Opened { ledger, queues, auth, broker } = opened;
    drop(ledger_open);
    // RabbitMQ may be away: submits are recorded all the same, and published when it is back.
    drop(queue_known);

    let api = Api::new(broker.clone(), auth.clone(), shutdown.clone());
    let grpc = api::grpc::router(&api);
    let rest = api::rest::router(&api, health::router(readiness.clone(), Arc::new(registry)));
    tracing::info!(
        grpc = addresses(&grpc_listeners), rest = addresses(&rest_listeners), rest_tls = config.rest_tls,
        queue = queues.backend(), data_dir = %config.data_dir.display(), version = env!("CARGO_PKG_VERSION"), "serving"
    );
    let mut servers = JoinSet::new();
    let all = (grpc_listeners.len() + rest_listeners.len()) as u64;
    let bounds =
        Bounds { connections: open_files::connections(open_files::raise(), all), ..Bounds::default() };
    for listener in grpc_listeners {
        let tls = Some(pki.grpc.clone());
        servers.spawn(listen::serve(listener, tls, grpc.clone(), bounds.clone(), shutdown.clone()));
    }
    for listener in rest_listeners {
        servers.spawn(listen::serve(
            listener,
            pki.rest.clone(),
            rest.clone(),
            bounds.clone(),
            shutdown.clone(),
        ));
    }
    drop(serving);

    let reloading =
        reload::Reloading::new(config, told, pki.clone(), (broker.clone(), auth), shutdown.clone());
    let valid = pki.keep_valid(reloading.config(), reloading.data_dir(), shutdown.clone());
    tokio::spawn(valid);
    let supervisor = Supervisor::new(broker.clone(), readiness.clone(), metrics);
    let alive = supervisor.alive();
    tokio::spawn(notify::watchdog(alive, shutdown.clone()));
    let supervising = tokio::spawn(supervisor.run(shutdown.clone()));
    readiness.ready().await;
    notify::ready();
    let settled = "the configuration was read again".to_owned();
    tokio::spawn(hangups.serve(readiness.clone(), shutdown.clone(), settled, reloading.again()));

    shutdown.begun().await;
    readiness.stopping();
    notify::stopping();
    notify::status("draining");
    drain(broker, servers, shutdown).await;
    supervising.abort();
    close(queues, ledger).await;
    Ok(())
}

/// What a socket unit calls its socket (`FileDescriptorName=`): as the configuration calls its table.
const GRPC: &str = "grpc";
const REST: &str = "rest";

/// Those that systemd holds, or one of our own.
async fn listeners(held: Vec<std::net::TcpListener>, own: SocketAddr) -> Result<Vec<TcpListener>, Error> {
    if held.is_empty() {
        return Ok(vec![listen::bind(own).await?]);
    }
    held.into_iter().map(listen::adopt).collect()
}

/// What the configuration says of REST's address is asked of the address that it has.
fn must_be_private(config: &Config, rest: &[TcpListener]) -> Result<(), Error> {
    let open = rest.iter().filter_map(|l| l.local_addr().ok()).find(|at| !at.ip().is_loopback());
    match open.filter(|_| !config.rest_tls) {
        None => Ok(()),
        Some(at) => Err(Error::new(Code::ConfigInvalid, "tokens would cross the network readable")
            .at(format!("the socket unit's ListenStream={at}"))
            .hint("set rest.tls = true; or ListenStream=127.0.0.1:7480, behind a proxy with TLS")),
    }
}

fn addresses(of: &[TcpListener]) -> String {
    let all: Vec<_> = of.iter().filter_map(|l| Some(l.local_addr().ok()?.to_string())).collect();
    all.join(" ")
}

/// What is opened at start, and closed at the end.
struct Opened {
    ledger: SharedLedger,
    queues: SharedQueues,
    auth: Auth,
    broker: Broker,
}

async fn open(config: &Config, pki: &Pki, metrics: &Arc<Metrics>) -> Result<Opened, Error> {
    let ledger = ledger::open(&config.data_dir.join("ledger.db")).await?;
    let queues = match queue::open(&config.queue).await {
        Ok(queues) => queues,
        Err(error) => {
            ledger.close().await;
            return Err(error.into());
        }
    };
    let opened = async {
        let auth = Auth::new(ledger.clone(), pki.ca.clone(), metrics.clone());
        auth.set_certificate_life(config.certificate_life);
        auth.ensure_admin(&config.data_dir.join(ADMIN_TOKEN)).await?;
        let (ledger, queues) = (ledger.clone(), queues.clone());
        let broker = Broker::start(config.settings.clone(), ledger, queues, metrics.clone()).await?;
        Ok((auth, broker))
    };
    match opened.await {
        Ok((auth, broker)) => Ok(Opened { ledger, queues, auth, broker }),
        Err(error) => {
            close(queues, ledger).await;
            Err(error)
        }
    }
}

fn make_data_dir(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| {
        Error::new(Code::ConfigInvalid, format!("cannot be made: {e}"))
            .at(path.display().to_string())
            .hint("make it, owned by brokerd's user; or set data_dir")
    })
}

/// Ends the workers' streams and the loops, lets calls finish, and gives up at the deadline. Leases stay as they are:
/// workers go on, and report to the next brokerd.
async fn drain(broker: Broker, mut servers: JoinSet<()>, shutdown: Shutdown) {
    let drained = async {
        broker.stop().await;
        while servers.join_next().await.is_some() {}
    };
    tokio::select! {
        () = drained => tracing::info!("drained"),
        () = shutdown.ended() => tracing::warn!("the drain's deadline has passed: what was under way is dropped"),
    }
}

async fn close(queues: SharedQueues, ledger: SharedLedger) {
    for (what, closing) in [("queue", queues.close()), ("ledger", ledger.close())] {
        if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!("the {what} did not close in time");
        }
    }
}
