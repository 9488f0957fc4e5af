//! From a command line to a drained process. [`run`] is the table of contents.

mod repair;
mod room;
mod supervise;

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use codering_core::{Code, Error};
use codering_kit::{
    fault,
    health::{self, Readiness},
    listen::{self, Bounds},
    notify, open_files,
    shutdown::{self, Shutdown},
    telemetry, tls,
};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

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
}

/// The closing of ledger and queue gets this long, even where the drain's deadline has passed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// All of `main`.
pub fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(Verb::Ledger(verb)) = &options.verb {
        return repair::main(verb, options.config.as_deref());
    }
    match start(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => codering_kit::failed(&error),
    }
}

fn start(options: &Options) -> Result<(), Error> {
    tls::install_provider();
    if options.check {
        return check(options.config.as_deref());
    }
    telemetry::init("codering-brokerd")?;
    if fault::BUILT_IN {
        tracing::warn!("{}", fault::SAYS);
    }
    let config = Config::load(options.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(Code::Internal, format!("no runtime: {e}")))?;
    let result = runtime.block_on(run(config));
    // Whatever still blocks was given its time in the drain.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Reads all that the configuration points to; makes and changes nothing.
fn check(file: Option<&Path>) -> Result<(), Error> {
    let config = Config::load(file)?;
    if let Some((chain, key)) = &config.rest_certificate {
        pki::given_certificate(chain, key)?;
    }
    if let Some(url) = &config.queue.url_file {
        codering_kit::config::secret_file("queue.url_file", url)?;
    }
    let ca = config.data_dir.join("ca");
    if ca.join("ca.pem").exists() {
        tls::Ca::at(&ca)?;
    }
    eprintln!("the configuration is valid");
    Ok(())
}

async fn run(config: Config) -> Result<(), Error> {
    let shutdown = shutdown::on_signals(config.drain)
        .map_err(|e| Error::new(Code::Internal, format!("no signal handlers: {e}")))?;
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let readiness = Readiness::new();
    let (ledger_open, queue_known, serving) =
        (readiness.latch("ledger"), readiness.latch("queue"), readiness.latch("listeners"));

    make_data_dir(&config.data_dir)?;
    let pki = Pki::open(&config)?;
    // Bound before anything is opened: a port that is taken is found while nothing has been touched.
    let grpc_listener = listen::bind(config.grpc).await?;
    let rest_listener = listen::bind(config.rest).await?;

    notify::status("opening the ledger");
    let opened = tokio::select! {
        opened = room::waited_for(|| open(&config, &pki, &metrics)) => opened?,
        () = shutdown.begun() => return Ok(()),
    };
    let Opened { ledger, queues, auth, broker } = opened;
    drop(ledger_open);
    // RabbitMQ may be away: submits are recorded all the same, and published when it is back.
    drop(queue_known);

    let api = Api::new(broker.clone(), auth, shutdown.clone());
    let grpc = api::grpc::router(&api);
    let rest = api::rest::router(&api, health::router(readiness.clone(), Arc::new(registry)));
    let addresses = (grpc_listener.local_addr(), rest_listener.local_addr());
    let mut servers = JoinSet::new();
    let bounds = Bounds { connections: open_files::connections(open_files::raise(), 2), ..Bounds::default() };
    servers.spawn(listen::serve(grpc_listener, Some(pki.grpc), grpc, bounds.clone(), shutdown.clone()));
    servers.spawn(listen::serve(rest_listener, pki.rest, rest, bounds, shutdown.clone()));
    if let (Ok(grpc), Ok(rest)) = addresses {
        tracing::info!(
            %grpc, %rest, rest_tls = config.rest_tls, queue = queues.backend(),
            data_dir = %config.data_dir.display(), version = env!("CARGO_PKG_VERSION"), "serving"
        );
    }
    drop(serving);

    let supervisor = Supervisor::new(broker.clone(), readiness.clone(), metrics);
    let alive = supervisor.alive();
    tokio::spawn(notify::watchdog(alive, shutdown.clone()));
    let supervising = tokio::spawn(supervisor.run(shutdown.clone()));
    readiness.ready().await;
    notify::ready();

    shutdown.begun().await;
    readiness.stopping();
    notify::stopping();
    notify::status("draining");
    drain(broker, servers, shutdown).await;
    supervising.abort();
    close(queues, ledger).await;
    Ok(())
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
        auth.ensure_admin(&config.data_dir.join("admin.token")).await?;
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
