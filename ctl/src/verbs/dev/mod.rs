//! `dev`: a broker and workers of one's own, on loopback, in the foreground. [`run`] is the table of
//! contents; [`place`] is the directory, [`daemon`] keeps one process running, [`ready`] waits for it.

mod daemon;
mod place;
mod ready;

pub use daemon::found;

use std::{path::PathBuf, pin::pin};

use codering_core::{Code, Error};
use codering_proto::v1::{CreateProjectRequest, CreateTokenRequest, Role};
use futures::future::{join, join_all};
use serde::Serialize;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use self::{
    daemon::{Daemon, Phase, keep},
    place::Place,
};
use crate::{
    client::{Broker, Endpoints, Target, said},
    context::Context,
};

/// Run a broker and workers of your own here, on loopback, until Ctrl-C.
///
/// Everything is kept in one directory: started again on it, jobs and results are there as they were.
/// Ctrl-C stops the workers first, then the broker, and leaves no process and no container behind.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    coderingctl dev --data-dir ./dev\n  \
    coderingctl dev --data-dir ./dev --workers 4 --slots 1 --rabbitmq amqp://guest:guest@localhost:5672")]
pub struct Args {
    /// Where everything is kept; made if it is not there.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// How many workers.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=64))]
    workers: u32,
    /// Attempts at once on each worker; by default the machine's cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    slots: Option<u32>,
    /// Queue on this RabbitMQ instead of in a file.
    #[arg(long, value_name = "URL", env = "CODERING_RABBITMQ", hide_env_values = true)]
    rabbitmq: Option<String>,
    /// Show all that the daemons log, not only how they start and stop and what goes wrong.
    #[arg(long, short)]
    verbose: bool,
    /// Pretend to run the tasks: no git, no Docker.
    #[arg(long)]
    simulate: bool,
    /// The port of the REST interface; a free one by default.
    #[arg(long, value_name = "PORT")]
    rest_port: Option<u16>,
    /// The port of the gRPC interface; a free one by default.
    #[arg(long, value_name = "PORT")]
    grpc_port: Option<u16>,
}

/// The project that is there from the start.
const PROJECT: &str = "demo";
/// The variable that says what the daemons log, where it is not set already.
const LOG_FILTER: &str = "CODERING_LOG";
/// Some lines a task are too many for a terminal.
const QUIET_FILTER: &str =
    "warn,codering_brokerd::start=info,codering_workerd::start=info,codering_workerd::stream=info";
/// The variable by which a worker finds its join token.
const JOIN_TOKEN_FILE: &str = "CODERING_ENROLL_TOKEN_FILE";
/// A worker enrols in the second after its token was made; a machine under load takes longer.
const JOIN_TOKEN_SECONDS: u64 = 600;

/// Where everything is, for `--output json`.
#[derive(Serialize)]
struct Started {
    endpoints: PathBuf,
    rest: String,
    grpc: String,
    metrics: String,
    data_dir: PathBuf,
    project: &'static str,
    workers: Vec<String>,
}

/// Runs the verb.
pub async fn run(ctx: &Context, args: Args) -> Result<(), Error> {
    let mut stop = Stop::new()?;
    let place = Place::open(&args)?;
    let (broker_phase, of_broker) = watch::channel(Phase::Run);
    let (worker_phase, of_worker) = watch::channel(Phase::Hold);

    let filter = if args.verbose { "info" } else { QUIET_FILTER };
    let broker =
        Daemon::new("brokerd", "codering-brokerd", &place.broker_config())?.with_default(LOG_FILTER, filter);
    let workers = (1..=args.workers)
        .map(|number| {
            let worker =
                Daemon::new(&format!("workerd-{number}"), "codering-workerd", &place.worker_config(number))?;
            Ok(worker.with_env(JOIN_TOKEN_FILE, place.join_token(number)).with_default(LOG_FILTER, filter))
        })
        .collect::<Result<Vec<_>, Error>>()?;

    let mut stopping = of_worker.clone();
    let keeping_workers = async {
        join_all(workers.iter().map(|worker| keep(ctx, worker, of_worker.clone()))).await;
        // Without a worker there is none to wait for. The sender outlives this.
        let _ = stopping.wait_for(|phase| *phase > Phase::Run).await;
        // A worker reports its last results to a broker that is still there.
        broker_phase.send_if_modified(|phase| phase.raise(Phase::Drain));
    };
    let mut keeping = pin!(join(keep(ctx, &broker, of_broker), keeping_workers));
    let serving = async {
        let endpoints = set_up(ctx, &place, &broker, &workers, &worker_phase).await?;
        tell(ctx, &place, &args, &endpoints)?;
        std::future::pending().await
    };
    let ended = tokio::select! {
        failed = serving => failed,
        () = stop.asked() => Ok(()),
        // It ends only once the workers were told to, which is below.
        _ = &mut keeping => return Err(Error::new(Code::Internal, "the daemons ended unasked")),
    };

    place.remove_endpoints();
    ctx.out.note("stopping: the workers first, then the broker (Ctrl-C again kills them)");
    worker_phase.send_if_modified(|phase| phase.raise(Phase::Drain));
    loop {
        tokio::select! {
            _ = &mut keeping => break,
            () = stop.asked() => {
                worker_phase.send_replace(Phase::Kill);
                broker_phase.send_replace(Phase::Kill);
            }
        }
    }
    if ended.is_ok() {
        ctx.out
            .note(format!("stopped; start it again: coderingctl dev --data-dir {}", args.data_dir.display()));
    }
    ended
}

/// From nothing to workers that are connected. Answers what was written into `endpoints.json`.
async fn set_up(
    ctx: &Context,
    place: &Place,
    broker: &Daemon,
    workers: &[Daemon],
    worker_phase: &watch::Sender<Phase>,
) -> Result<Endpoints, Error> {
    ready::answers(broker, place.rest_port()).await?;
    let endpoints = place.endpoints(PROJECT)?;
    let connected = Broker::connect(Target::of(&endpoints, "coderingctl dev")?).await?;
    for number in 1..=u32::try_from(workers.len()).unwrap_or(u32::MAX) {
        // A worker that enrolled before keeps its certificate.
        if !place.has_certificate(number) {
            let request = CreateTokenRequest {
                // Called like the worker, it also replaces one whose directory was removed.
                name: place.worker_name(number),
                role: Role::Worker as i32,
                projects: Vec::new(),
                ttl_seconds: JOIN_TOKEN_SECONDS,
            };
            place.write_join_token(number, &said(connected.tokens().create(request).await)?.secret)?;
        }
    }
    worker_phase.send_if_modified(|phase| phase.raise(Phase::Run));
    let request = CreateProjectRequest { name: PROJECT.into(), quota: None };
    match said(connected.projects().create(request).await) {
        Ok(_) => {}
        Err(error) if error.code == Code::ProjectExists => {}
        Err(error) => return Err(error),
    }
    let names: Vec<_> = (1..).take(workers.len()).map(|number| place.worker_name(number)).collect();
    ready::connected(ctx, &connected, workers, &names).await?;
    // Used once, or taken by a worker that is not there yet and lives no longer than its time.
    (1..)
        .take(workers.len())
        .filter(|number| place.has_certificate(*number))
        .for_each(|number| place.remove_join_token(number));
    place.write_endpoints(&endpoints)?;
    Ok(endpoints)
}

/// Where everything is, and what to type next.
fn tell(ctx: &Context, place: &Place, args: &Args, endpoints: &Endpoints) -> Result<(), Error> {
    let started = Started {
        endpoints: place.endpoints_file(),
        rest: endpoints.rest.clone(),
        grpc: endpoints.grpc.clone(),
        metrics: endpoints.metrics.clone(),
        data_dir: place.dir().to_path_buf(),
        project: PROJECT,
        workers: (1..=args.workers).map(|number| place.worker_name(number)).collect(),
    };
    ctx.out.one(&started, || {
        let queue = if args.rabbitmq.is_some() { "RabbitMQ" } else { "embedded" };
        let mut what = match args.workers {
            0 => "none".to_owned(),
            1 => "1 worker".to_owned(),
            n => format!("{n} workers"),
        };
        if args.simulate {
            what.push_str(", simulating");
        }
        vec![
            format!("broker   gRPC {}, REST {}, {queue} queue", started.grpc, started.rest),
            format!(
                "workers  {what}{}{}",
                if args.workers > 0 { ": " } else { "" },
                started.workers.join(", ")
            ),
            format!("project  {PROJECT}"),
            format!("kept in  {}", started.data_dir.display()),
            "next     in another terminal:".into(),
            format!("           export CODERING_ENDPOINTS={}", started.endpoints.display()),
            "           coderingctl submit --push DIR --watch".into(),
            "         Ctrl-C here stops all of it".into(),
        ]
    })
}

/// The signals that end it.
struct Stop {
    signals: [Signal; 3],
}

impl Stop {
    fn new() -> Result<Self, Error> {
        let on = |kind| {
            signal(kind).map_err(|error| Error::new(Code::Internal, format!("no signal handler: {error}")))
        };
        let signals = [on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?];
        Ok(Self { signals })
    }

    /// Waits for the next of them.
    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
