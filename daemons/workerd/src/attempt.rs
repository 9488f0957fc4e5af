//! One attempt, phase by phase: checkout, build, start, run. Whose fault an end was is decided here.

use std::{sync::Arc, time::Duration};

use codering_core::{Outcome, Source, TaskResult, result::Phases, time::Millis};
use codering_kit::{
    clock::now,
    fault::{self, Point},
};
use codering_proto::{convert::Assigned, v1};
use tokio::time::Instant;

use crate::{
    checkout::CheckoutError,
    held::{Held, Stop},
    image::BuildError,
    output::Stream,
    run::{self, Feed, Order},
    sandbox::{Exit, Record, Running, Spec, StartError, Unavailable},
    simulate,
    worker::{Real, Work, Worker},
};

/// How a command ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ended {
    pub outcome: Outcome,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub message: String,
}

impl Ended {
    /// An end without an exit code.
    pub fn of(outcome: Outcome, message: impl Into<String>) -> Self {
        Self { outcome, exit_code: None, signal: None, message: message.into() }
    }

    /// By an exit code as a shell tells it.
    pub fn exited(code: i32) -> Self {
        let outcome = if code == 0 { Outcome::Succeeded } else { Outcome::Failed };
        // Beyond 128 it was a signal, unless the number is none.
        let signal = (129..=192).contains(&code).then_some(code - 128);
        let message = match (code, signal) {
            (126, _) => "exit code 126: the command could not be executed".to_owned(),
            (127, _) => "exit code 127: the command was not found".to_owned(),
            (_, Some(signal)) => format!("ended by signal {signal}{}", signal_name(signal)),
            _ => String::new(),
        };
        Self { outcome, exit_code: Some(code), signal, message }
    }

    /// By the container's account.
    pub fn by(exit: Exit, memory_bytes: u64) -> Self {
        if exit.out_of_memory && exit.code != 0 {
            let limit = codering_core::units::show_size(memory_bytes);
            let message = format!("out of memory: the limit is {limit}");
            return Self { outcome: Outcome::OutOfMemory, message, ..Self::exited(exit.code) };
        }
        Self::exited(exit.code)
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        6 => " (SIGABRT)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

/// Why a command did not come to an end of its own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// The user's: with what goes to standard error.
    User { outcome: Outcome, message: String, exit_code: Option<i32>, lines: String },
    /// Ours.
    Ours(String),
    /// It was asked to stop.
    Stopped(Stop),
    /// Its container was left to the next process.
    Detached,
}

impl From<Unavailable> for Fault {
    fn from(error: Unavailable) -> Self {
        Self::Ours(error.0)
    }
}

impl From<CheckoutError> for Fault {
    fn from(error: CheckoutError) -> Self {
        match error {
            CheckoutError::Unreachable(error) => Self::Ours(error.to_string()),
            CheckoutError::Refused(error) => Self::User {
                outcome: Outcome::BuildFailed,
                message: error.to_string(),
                exit_code: None,
                lines: String::new(),
            },
        }
    }
}

/// What is known of an attempt so far.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub started_at: Millis,
    /// When the task became ready to run, as far as it is known.
    pub ready_at: Option<std::time::Instant>,
    pub phases: Phases,
    pub commit: String,
    pub image: String,
}

/// Runs one attempt to its end and spools its result.
pub(crate) async fn run(worker: Arc<Worker>, assigned: Assigned, held: Arc<Held>) {
    let ready_at = std::time::Instant::now().checked_sub(Duration::from_millis(assigned.queued_ms));
    // A worker that was sent more than its slots runs them one after the other.
    let _slot = worker.slots.acquire().await;
    let mut trace = Trace { started_at: now(), ready_at, ..Trace::default() };
    trace.phases.queued = assigned.queued_ms;
    let timeout = Duration::from_millis(assigned.spec.limits.timeout_ms);
    let ended = match &worker.work {
        Work::Simulated => {
            let began = Instant::now();
            let ended = simulate::run(&assigned.spec.command, timeout, &held).await;
            trace.phases.run = ms_since(began);
            ended
        }
        Work::Real(real) => phases(&worker, real, assigned, &held, &mut trace).await,
    };
    finish(&worker, &held, &trace, ended).await;
}

async fn phases(
    worker: &Arc<Worker>,
    real: &Real,
    assigned: Assigned,
    held: &Arc<Held>,
    trace: &mut Trace,
) -> Result<Ended, Fault> {
    let (ready, spec, running) = started(worker, real, &assigned, held, trace).await?;
    held.runs_in(&running.id, &trace.image);
    worker.enter(held, "run");
    let began = Instant::now();
    let feed = match (assigned.spec.stdin_from_results, assigned.spec.stdin.is_empty()) {
        (true, _) => Feed::Results(worker.broker.clone(), held.token.clone()),
        (false, false) => Feed::Bytes(assigned.spec.stdin.clone()),
        (false, true) => Feed::Nothing,
    };
    let until = began + Duration::from_millis(spec.limits.timeout_ms);
    let order = Order { worker, feed, until, record: &spec.record, adopted: false };
    let ended = run::supervise(running, held, order).await.map(|(ended, _)| ended);
    fault::reached(Point::CommandEnded);
    trace.phases.run = ms_since(began);
    drop(ready);
    ended
}

/// Up to a started container. An image that went between its check and the start is made once more.
async fn started(
    worker: &Arc<Worker>,
    real: &Real,
    assigned: &Assigned,
    held: &Arc<Held>,
    trace: &mut Trace,
) -> Result<(crate::image::Ready, Spec, Running), Fault> {
    let mut again = true;
    loop {
        let (ready, spec) = tokio::select! {
            biased;
            why = held.stopped() => return Err(Fault::Stopped(why)),
            prepared = prepare(worker, real, assigned, held, trace) => prepared?,
        };
        worker.enter(held, "start");
        let began = Instant::now();
        // Run to its end in any case: half a start could leave a container behind.
        let (sandbox, wanted) = (real.sandbox.clone(), spec.clone());
        let started = tokio::spawn(async move { sandbox.start(&wanted).await }).await;
        trace.phases.start = ms_since(began);
        match started {
            Ok(Ok(running)) => return Ok((ready, spec, running)),
            Ok(Err(StartError::ImageGone)) if again => again = false,
            Ok(Err(error)) => return Err(of_start(error)),
            Err(e) => return Err(Fault::Ours(format!("starting the container ended early: {e}"))),
        }
    }
}

fn of_start(error: StartError) -> Fault {
    match error {
        StartError::Refused { code, message } => {
            Fault::User { outcome: Outcome::Failed, exit_code: Some(code), lines: message.clone(), message }
        }
        StartError::ImageGone => Fault::Ours("the image was removed before the container started".into()),
        StartError::Unavailable(error) => error.into(),
    }
}

/// Checkout and build.
async fn prepare(
    worker: &Arc<Worker>,
    real: &Real,
    assigned: &Assigned,
    held: &Arc<Held>,
    trace: &mut Trace,
) -> Result<(crate::image::Ready, Spec), Fault> {
    let source = &assigned.spec.source;
    worker.enter(held, "checkout");
    let began = Instant::now();
    let look = match &assigned.commit {
        Some(commit) => real.mirrors.at(source, commit).await?,
        None => resolve(worker, real, source, held).await?,
    };
    trace.phases.checkout = ms_since(began);
    trace.commit.clone_from(&look.commit);

    worker.enter(held, "build");
    let began = Instant::now();
    let asked = trace.ready_at.unwrap_or_else(std::time::Instant::now);
    let built = real.images.ready(source, &look, asked).await;
    trace.phases.build = ms_since(began);
    worker.metrics.fetches.set(i64::try_from(real.mirrors.fetches()).unwrap_or(i64::MAX));
    worker.metrics.builds.set(i64::try_from(real.images.builds()).unwrap_or(i64::MAX));
    let report = match &built {
        Ok(ready) => ready.report.clone(),
        Err(BuildError::Failed { report, .. }) => report.clone(),
        Err(BuildError::Unavailable(_)) => None,
    };
    let first = report.filter(|report| report.first_for(&held.job));
    if let Some(report) = &first {
        worker.tell_build(held, report);
    }
    if built.is_err() {
        worker.tidy.notify_one();
    }
    let ready = built.map_err(|error| match error {
        BuildError::Failed { message, lines, .. } => {
            // One task of the job shows how the log ends; the job has it whole.
            let lines = if first.is_some() { lines } else { String::new() };
            Fault::User { outcome: Outcome::BuildFailed, message, exit_code: None, lines }
        }
        BuildError::Unavailable(why) => Fault::Ours(why),
    })?;
    trace.image.clone_from(&ready.image.name);
    let spec = spec(assigned, held, &ready.image, trace);
    Ok((ready, spec))
}

/// What the ref stands for, pinned for the whole job: perhaps what another worker found first.
async fn resolve(
    worker: &Arc<Worker>,
    real: &Real,
    source: &Source,
    held: &Held,
) -> Result<crate::checkout::Look, Fault> {
    let found = real.mirrors.resolve(source).await?;
    fault::reached(Point::CommitResolved);
    let pinned = worker.broker.pin(&held.token, &found.commit).await?;
    fault::reached(Point::CommitAgreed);
    if pinned == found.commit {
        return Ok(found);
    }
    Ok(real.mirrors.at(source, &pinned).await?)
}

fn spec(assigned: &Assigned, held: &Held, image: &crate::sandbox::Image, trace: &Trace) -> Spec {
    let limits = assigned.spec.limits.clone();
    let stdin = assigned.spec.stdin_from_results || !assigned.spec.stdin.is_empty();
    Spec {
        token: held.token.clone(),
        project: held.project.clone(),
        job: held.job.clone(),
        task: held.task.clone(),
        attempt: held.attempt,
        image: image.clone(),
        argv: assigned.spec.command.argv(),
        env: assigned.spec.env.clone(),
        record: Record {
            started_at: trace.started_at,
            phases: trace.phases,
            commit: trace.commit.clone(),
            image: trace.image.clone(),
            timeout_ms: limits.timeout_ms,
            output_bytes: limits.output_bytes,
            memory_bytes: limits.memory_bytes,
            lease_ms: assigned.lease_ms,
            stdin,
        },
        limits,
        stdin,
        lease: held.lease(),
    }
}

pub(crate) fn ms_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Spools what the attempt came to, and lets it go. In this order: it is named in each heartbeat until it is reported.
pub(crate) async fn finish(
    worker: &Arc<Worker>,
    held: &Arc<Held>,
    trace: &Trace,
    ended: Result<Ended, Fault>,
) {
    let ended = match ended {
        Ok(ended) => ended,
        Err(Fault::Detached | Fault::Stopped(Stop::Fenced)) => {
            worker.attempts.remove(&held.token);
            return;
        }
        Err(fault) => of_fault(fault, held),
    };
    let (stdout, stderr) = held.capture.finish();
    let result = TaskResult {
        project: held.project.clone(),
        job: held.job.clone(),
        task: held.task.clone(),
        attempt: held.attempt,
        outcome: ended.outcome,
        exit_code: ended.exit_code,
        signal: ended.signal,
        stdout: stdout.data,
        stderr: stderr.data,
        stdout_truncated: stdout.truncated,
        stderr_truncated: stderr.truncated,
        started_at: trace.started_at,
        finished_at: now(),
        phases: trace.phases,
        worker: worker.name.to_string(),
        commit: trace.commit.clone(),
        image: trace.image.clone(),
        message: ended.message,
    };
    tracing::info!(
        job = %held.job, task = %held.task, attempt = held.attempt, outcome = result.outcome.as_str(),
        exit_code = result.exit_code, why = result.message, "attempt ended"
    );
    worker.metrics.ended(result.outcome, &result.phases);
    if result.outcome == Outcome::InfrastructureError {
        worker.check_docker.notify_one();
    }
    let report = v1::AttemptReport { token: held.token.to_string(), result: Some(result.into()) };
    let (spool, token) = (worker.spool.clone(), held.token.clone());
    // fault: the spool names its own.
    if let Err(e) = tokio::task::spawn_blocking(move || spool.put(&token, report)).await {
        tracing::error!(job = %held.job, task = %held.task, "a result was not spooled: {e}");
    }
    worker.attempts.remove(&held.token);
    fault::reached(Point::AttemptLetGo);
}

fn of_fault(fault: Fault, held: &Held) -> Ended {
    match fault {
        Fault::User { outcome, message, exit_code, lines } => {
            if !lines.is_empty() {
                held.capture.push(Stream::Stderr, lines.as_bytes());
                held.capture.push(Stream::Stderr, b"\n");
            }
            Ended { outcome, exit_code, signal: None, message }
        }
        Fault::Ours(message) => Ended::of(Outcome::InfrastructureError, message),
        Fault::Stopped(Stop::Cancelled) => Ended::of(Outcome::Cancelled, "cancelled by a user"),
        Fault::Stopped(Stop::LeaseLost) => Ended::of(
            Outcome::InfrastructureError,
            "the worker could not renew the lease in time and stopped the attempt",
        ),
        Fault::Stopped(Stop::Shutdown | Stop::Detach | Stop::Fenced) | Fault::Detached => {
            Ended::of(Outcome::InfrastructureError, "the worker was stopped")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32, out_of_memory: bool) -> Exit {
        Exit { code, out_of_memory, started_at: 0, finished_at: 0 }
    }

    #[test]
    fn signal_9_is_out_of_memory_only_with_the_cgroups_evidence() {
        let killed = Ended::by(exit(137, false), 1 << 20);
        assert_eq!((killed.outcome, killed.signal), (Outcome::Failed, Some(9)));
        let oom = Ended::by(exit(137, true), 1 << 20);
        assert_eq!((oom.outcome, oom.exit_code), (Outcome::OutOfMemory, Some(137)));
        assert!(oom.message.contains("1.0 MB"), "{}", oom.message);
        // A child was killed, and the command coped with it.
        assert_eq!(Ended::by(exit(0, true), 1 << 20).outcome, Outcome::Succeeded);
    }

    #[test]
    fn a_plain_exit_code_needs_no_words() {
        let ended = Ended::exited(3);
        assert_eq!((ended.outcome, ended.signal, ended.message.as_str()), (Outcome::Failed, None, ""));
        assert!(Ended::exited(127).message.contains("not found"));
    }
}
