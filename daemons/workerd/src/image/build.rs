//! One build: the tree goes to Docker's classic builder as a tar, its log comes back.

use std::{collections::HashMap, time::Duration};

use bollard::{
    Docker,
    auth::DockerCredentials,
    errors::Error,
    query_parameters::{BuildImageOptionsBuilder, TagImageOptionsBuilder},
};
use codering_core::Source;
use futures::StreamExt;
use tokio_util::io::ReaderStream;

use super::{BuildLog, Disk, MAX_BUILDS, Problem, room};
use crate::{
    checkout::{CheckoutError, Look, Mirrors},
    config::{Build, Proxy},
    sandbox::{docker::call, refusal},
};

/// How a step's processor time is counted, in microseconds.
const CPU_PERIOD: i32 = 100_000;
/// For git's process to end, once Docker is done with its tar.
const EXPORT_END: Duration = Duration::from_secs(10);

/// How often Docker's disk is looked at during a build.
const DISK_EVERY: Duration = Duration::from_millis(250);

/// What a build needs.
pub(super) struct Job<'a> {
    pub docker: &'a Docker,
    pub mirrors: &'a Mirrors,
    pub config: &'a Build,
    pub proxy: &'a Proxy,
    pub credentials: Option<HashMap<String, DockerCredentials>>,
    pub source: &'a Source,
    pub look: &'a Look,
    pub name: &'a str,
    pub room: &'a tokio::sync::Semaphore,
}

/// Builds it and tags it.
pub(super) async fn build(job: &Job<'_>, log: &mut BuildLog) -> Result<(), Problem> {
    match tokio::time::timeout(job.config.timeout, run(job, log)).await {
        Ok(done) => done,
        // Docker stops a build whose connection goes away.
        Err(_) => {
            let what = format!(
                "the build was not done within {} ([build] timeout in the worker's workerd.toml)",
                codering_core::units::show_duration(job.config.timeout.as_millis() as u64)
            );
            log.push(&format!("{what}\n"));
            Err(Problem::Failed(format!("{}: {what}", place(job, log))))
        }
    }
}

/// The step that it is at, for people.
fn place(job: &Job<'_>, log: &BuildLog) -> String {
    let at = log.place().map(|step| format!(" {}", refusal::one_line(&step))).unwrap_or_default();
    format!("{}, {}{at}", super::place(job.source, job.look), job.source.dockerfile)
}

async fn run(job: &Job<'_>, log: &mut BuildLog) -> Result<(), Problem> {
    // The tar's beginning is ready when Docker has answered. Where there is no room, its process ends with this value.
    let mut export = job
        .mirrors
        .export(job.source, &job.look.tree, job.config.max_context_bytes)
        .map_err(Problem::from)?;
    let disk = Disk::of(job.docker, job.config.disk_reserve).await;
    disk.as_ref().map_or(Ok(()), Disk::check)?;
    let tar =
        export.output().map(|output| bollard::body_try_stream(ReaderStream::with_capacity(output, 64 << 10)));
    let docker = limited(job.docker, job.config.memory_bytes);
    let mut made = None;
    let built = {
        let mut said = docker.build_image(options(job), job.credentials.clone(), tar);
        let mut look = tokio::time::interval(DISK_EVERY);
        let mut bounded = String::new();
        loop {
            let next = tokio::select! {
                next = said.next() => next,
                _ = look.tick() => {
                    if let Some(disk) = disk.as_ref().filter(|disk| disk.missing() > 0) {
                        return Err(filled(job, log, disk));
                    }
                    continue;
                }
            };
            match next {
                None => break Ok(()),
                Some(Ok(info)) => {
                    made = info.aux.and_then(|aux| aux.id).or(made);
                    if let Some(text) = info.stream {
                        log.push(&text);
                    } else if let Some(status) = info.status.filter(|_| info.progress_detail.is_none()) {
                        log.push(&format!("{status}\n"));
                    }
                    if log.running() != bounded {
                        log.running().clone_into(&mut bounded);
                        room::bound_processes(job.docker, &bounded, job.config.max_pids);
                    }
                }
                Some(Err(error)) => break Err(error),
            }
        }
    };
    // A tar that was cut short makes Docker complain too; git's own account is the better one.
    match tokio::time::timeout(EXPORT_END, job.mirrors.exported(export, job.source)).await {
        Ok(Err(error @ CheckoutError::Refused(_))) => return Err(error.into()),
        Ok(Err(error)) if built.is_ok() => return Err(error.into()),
        _ => {}
    }
    built.map_err(|error| sorted(job, log, &error))?;
    name(job, made).await
}

/// Only now: Docker may take a tar that was cut short for a whole one, and what has the name is used by every task.
async fn name(job: &Job<'_>, made: Option<String>) -> Result<(), Problem> {
    let unnamed = |why: String| Problem::Unavailable(format!("the image could not be named: {why}"));
    let made = made.ok_or_else(|| unnamed("Docker did not say which it built".into()))?;
    let (repository, tag) = job.name.rsplit_once(':').unwrap_or((job.name, "latest"));
    let options = TagImageOptionsBuilder::default().repo(repository).tag(tag).build();
    let named = call(job.docker.tag_image(&made, Some(options))).await;
    named.map_err(|error| unnamed(refusal::unavailable("tag an image", &error).0))
}

/// Docker stops a build whose connection goes away.
fn filled(job: &Job<'_>, log: &mut BuildLog, disk: &Disk) -> Problem {
    match disk.ran_low(job.room.available_permits() + 1 == MAX_BUILDS) {
        Problem::Failed(what) => {
            log.push(&format!("{what}\n"));
            Problem::Failed(format!("{}: {what}", place(job, log)))
        }
        other => other,
    }
}

fn options(job: &Job<'_>) -> bollard::query_parameters::BuildImageOptions {
    let arguments: HashMap<String, String> = job.proxy.variables().into_iter().collect();
    let quota = (job.config.cpus * f64::from(CPU_PERIOD)).min(f64::from(i32::MAX)) as i32;
    BuildImageOptionsBuilder::default()
        .dockerfile(&job.source.dockerfile)
        .rm(true)
        .forcerm(true)
        .cpuperiod(CPU_PERIOD)
        .cpuquota(quota)
        .networkmode(if job.config.network { "default" } else { "none" })
        .buildargs(&arguments)
        .build()
}

/// bollard's option for memory has 32 bits, too few; so the request itself gets it.
fn limited(docker: &Docker, memory_bytes: u64) -> Docker {
    docker.clone().with_request_modifier(move |mut request| {
        let uri = format!("{}&memory={memory_bytes}&memswap={memory_bytes}", request.uri());
        if let Ok(uri) = uri.parse() {
            *request.uri_mut() = uri;
        }
        request
    })
}

/// Whose fault it was that the build ended.
fn sorted(job: &Job<'_>, log: &mut BuildLog, error: &Error) -> Problem {
    let what = match error {
        Error::DockerStreamError { error } => error.as_str(),
        Error::DockerResponseServerError { status_code: 400 | 404, message } => message,
        // A Dockerfile that cannot be read comes with the status of a server's own fault.
        Error::DockerResponseServerError { message, .. }
            if message.to_lowercase().contains("dockerfile") || message.contains("failed to process") =>
        {
            message
        }
        other => return Problem::Unavailable(refusal::unavailable("build the image", other).0),
    };
    if what.contains("no space left on device") {
        return Problem::Unavailable(format!(
            "Docker could not build the image: {}",
            refusal::one_line(what)
        ));
    }
    log.push(&format!("{what}\n"));
    let what = refusal::one_line(what);
    let unreached = ["dial tcp", "i/o timeout", "TLS handshake", "no such host"];
    let killed = what.ends_with("returned a non-zero code: 137");
    let memory = codering_core::units::show_size(job.config.memory_bytes);
    let out_of_memory = format!(
        " (it was killed, as when it needs more than the {memory} of a step: [build] memory in the worker's workerd.toml)"
    );
    let hint = if killed {
        &out_of_memory
    } else if unreached.iter().any(|text| what.contains(text)) && log.step().contains(" : FROM ") {
        " (this worker does not reach the image registry; an image that is on it already needs none)"
    } else if what.contains("pull access denied") || what.contains("manifest unknown") {
        " (there is no such base image, or no permission to pull it)"
    } else {
        ""
    };
    Problem::Failed(format!("{}: {what}{hint}", place(job, log)))
}
