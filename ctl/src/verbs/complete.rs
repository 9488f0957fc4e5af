//! Candidates for the shell's Tab, from the broker. A shell waits for them, so they come soon or not at
//! all, and an error is no candidates rather than text in the middle of a command line.

use std::{ffi::OsStr, time::Duration};

use clap_complete::{ArgValueCompleter, CompletionCandidate};
use codering_core::Error;
use codering_proto::v1;

use crate::{
    client::{Broker, Target, said},
    contexts::{self, Contexts},
    verbs::words,
};

/// How long a Tab may take.
const PATIENCE: Duration = Duration::from_millis(700);
/// Jobs offered, newest first.
const JOBS: u32 = 50;

/// What stands before the user: a name, and what it is.
type Candidates = Vec<(String, String)>;

/// Projects.
pub fn projects() -> ArgValueCompleter {
    completer(async |broker: Broker| {
        let answer = said(broker.projects().list(v1::ListProjectsRequest {}).await)?;
        Ok(answer.projects.into_iter().map(|project| (project.name, String::new())).collect())
    })
}

/// Jobs, newest first.
pub fn jobs() -> ArgValueCompleter {
    completer(recent_jobs)
}

/// Jobs, each with the slash before its task's id.
pub fn job_slash() -> ArgValueCompleter {
    completer(async |broker: Broker| {
        let jobs = recent_jobs(broker).await?;
        Ok(jobs.into_iter().map(|(id, what)| (format!("{id}/"), what)).collect())
    })
}

async fn recent_jobs(broker: Broker) -> Result<Candidates, Error> {
    let page = Some(v1::Page { page_size: JOBS, page_token: String::new() });
    let answer = said(broker.jobs().list(v1::ListJobsRequest { page, ..Default::default() }).await)?;
    let what = |job: &v1::Job| format!("{} {}", words::harmless(&job.name), words::state(job.state()));
    Ok(answer.jobs.into_iter().map(|job| (job.job_id.clone(), what(&job))).collect())
}

/// Queues.
pub fn queues() -> ArgValueCompleter {
    completer(async |broker: Broker| {
        let answer = said(broker.queues().list(v1::ListQueuesRequest::default()).await)?;
        Ok(answer.queues.into_iter().map(|queue| (queue.name, format!("{} ready", queue.ready))).collect())
    })
}

/// Workers.
pub fn workers() -> ArgValueCompleter {
    completer(async |broker: Broker| {
        let answer = said(broker.workers().list(v1::ListWorkersRequest {}).await)?;
        let what =
            |worker: &v1::Worker| if worker.connected { "connected".to_owned() } else { "gone".to_owned() };
        Ok(answer.workers.into_iter().map(|worker| (worker.name.clone(), what(&worker))).collect())
    })
}

/// The brokers kept by `login`.
pub fn contexts() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let kept = contexts::default_path().and_then(|path| Contexts::load(&path)).unwrap_or_default();
        matching(typed, kept.named.into_iter().map(|(name, saved)| (name, saved.broker)).collect())
    })
}

fn completer<F>(ask: F) -> ArgValueCompleter
where
    F: AsyncFn(Broker) -> Result<Candidates, Error> + Send + Sync + 'static,
{
    ArgValueCompleter::new(move |typed: &OsStr| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return Vec::new();
        };
        let asked = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, async { ask(Broker::connect(target()?).await?).await }).await
        });
        matching(typed, asked.ok().and_then(Result::ok).unwrap_or_default())
    })
}

/// The broker of the command line under the cursor, else the one that any verb would speak to.
fn target() -> Result<Target, Error> {
    let words: Vec<_> = std::env::args().collect();
    let option = |long: &str| {
        let joined = words.iter().find_map(|word| word.strip_prefix(&format!("{long}=")).map(str::to_owned));
        joined.or_else(|| words.iter().skip_while(|word| *word != long).nth(1).cloned())
    };
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let typed_context = option("--context");
    let from_environment = || set("CODERING_ENDPOINTS").filter(|_| typed_context.is_none());
    let endpoints = option("--endpoints").or_else(from_environment).map(std::path::PathBuf::from);
    let context = typed_context.clone().or_else(|| set("CODERING_CONTEXT"));
    Target::find(endpoints.as_deref(), context.as_deref())
}

fn matching(typed: &OsStr, candidates: Candidates) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let fitting = candidates.into_iter().filter(|(name, _)| name.starts_with(&*typed));
    fitting
        .map(|(name, what)| {
            let help = (!what.is_empty()).then(|| what.into());
            CompletionCandidate::new(name).help(help)
        })
        .collect()
}
