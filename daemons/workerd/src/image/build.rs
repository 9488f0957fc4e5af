//! One build: the tree goes to Docker's classic builder as a tar, its log comes back.

use std::{collections::HashMap, time::Duration};

use bollard::{Docker, auth::DockerCredentials, errors::Error, query_parameters::BuildImageOptionsBuilder};
use codering_core::{Source, spec::without_password};
use futures::StreamExt;
use tokio_util::io::ReaderStream;

use super::{BuildLog, Problem};
use crate::{
    checkout::{CheckoutError, Look, Mirrors},
    config::{Build, Proxy},
    sandbox::refusal,
};

/// How a step's processor time is counted, in microseconds.
const CPU_PERIOD: i32 = 100_000;
/// For git's process to end, once Docker is done with its tar.
const EXPORT_END: Duration = Duration::from_secs(10);

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
}

/// Builds it and tags it.
pub(super) async fn build(job: &Job<'_>, log: &mut BuildLog) -> Result<(), Problem> {
    match tokio::time::timeout(job.config.timeout, run(job, log)).await {
        Ok(done) => done,
        // Docker stops a build whose connection goes away.
        Err(_) => Err(Problem::Failed(format!(
            "the build was not done within {}",
            codering_core::units::show_duration(job.config.timeout.as_millis() as u64)
        ))),
    }
}

async fn run(job: &Job<'_>, log: &mut BuildLog) -> Result<(), Problem> {
    let mut export = job
        .mirrors
        .export(job.source, &job.look.tree, job.config.max_context_bytes)
        .map_err(Problem::from)?;
    let tar =
        export.output().map(|output| bollard::body_try_stream(ReaderStream::with_capacity(output, 64 << 10)));
    let docker = limited(job.docker, job.config.memory_bytes);
    let built = {
        let mut said = docker.build_image(options(job), job.credentials.clone(), tar);
        loop {
            match said.next().await {
                None => break Ok(()),
                Some(Ok(info)) => {
                    if let Some(text) = info.stream {
                        log.push(&text);
                    } else if let Some(status) = info.status.filter(|_| info.progress_detail.is_none()) {
                        log.push(&format!("{status}\n"));
                    }
                }
                Some(Err(error)) => break Err(error),
            }
        }
    };
    // A tar that was cut short makes Docker complain too; git's own account is the better one.
    match tokio::time::timeout(EXPORT_END, export.end(job.source)).await {
        Ok(Err(error @ CheckoutError::Refused(_))) => return Err(error.into()),
        Ok(Err(error)) if built.is_ok() => return Err(error.into()),
        _ => {}
    }
    built.map_err(|error| sorted(job, log, &error))
}

fn options(job: &Job<'_>) -> bollard::query_parameters::BuildImageOptions {
    let arguments: HashMap<String, String> = job.proxy.variables().into_iter().collect();
    let quota = (job.config.cpus * f64::from(CPU_PERIOD)).min(f64::from(i32::MAX)) as i32;
    BuildImageOptionsBuilder::default()
        .dockerfile(&job.source.dockerfile)
        .t(job.name)
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
    let place = match log.step() {
        "" => format!("{} of {}", job.source.dockerfile, without_password(&job.source.git_url)),
        step => refusal::one_line(step),
    };
    let unreached = ["dial tcp", "i/o timeout", "TLS handshake", "no such host"];
    let hint = if unreached.iter().any(|text| what.contains(text)) && log.step().contains(" : FROM ") {
        " (this worker does not reach the image registry; an image that is on it already needs none)"
    } else if what.contains("pull access denied") || what.contains("manifest unknown") {
        " (there is no such base image, or no permission to pull it)"
    } else {
        ""
    };
    Problem::Failed(format!("{place}: {what}{hint}"))
}
