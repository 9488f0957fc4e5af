//! Fetches what the page of a job tells, and the logs of its builds.

use codering_core::{Code, Error, time::Millis};
use codering_proto::v1::{
    self, Build, GetTaskRequest, Job, JobState, ListTasksRequest, Outcome, Page, Task, TaskResult, TaskState,
};
use tokio::time::{Duration, timeout};

use super::story::Story;
use crate::{
    client::{Jobs, said},
    context::Context,
    verbs::words,
};

/// Failed and running tasks that the page shows of each.
const SHOWN_TASKS: u32 = 5;
/// Results from which the phases of a task are taken; each may hold some MiB of output.
const SAMPLE: usize = 10;
/// How long the sample may take to come; the page goes without it.
const SAMPLE_PATIENCE: Duration = Duration::from_secs(2);
/// Reduce steps looked at for the newest.
const REDUCE_STEPS: u32 = 20;

/// `job show`.
pub async fn run(ctx: &Context, id: String) -> Result<(), Error> {
    let broker = ctx.broker().await?;
    let mut jobs = broker.jobs();
    let job = said(jobs.get(v1::GetJobRequest { job_id: id }).await)?;
    let id = job.job_id.clone();
    let builds = said(jobs.build_logs(v1::BuildLogsRequest { job_id: id.clone() }).await)?.builds;
    let counts = job.tasks.unwrap_or_default();
    let mut failed_tasks = Vec::new();
    if counts.failed > 0 {
        let failures = [
            Outcome::Failed,
            Outcome::TimedOut,
            Outcome::OutOfMemory,
            Outcome::BuildFailed,
            Outcome::InfrastructureError,
        ];
        for task in some_tasks(&mut jobs, &id, TaskState::Unspecified, &failures).await? {
            failed_tasks.push(whole_task(&mut jobs, &id, &task.task_id).await?);
        }
    }
    let running_tasks = match counts.running {
        0 => Vec::new(),
        _ => some_tasks(&mut jobs, &id, TaskState::Running, &[]).await?,
    };
    let reduce_task =
        if job.reduce_command.is_empty() { None } else { newest_reduce(&mut jobs, &id).await? };
    let sample = timeout(SAMPLE_PATIENCE, sample(&mut jobs, &id)).await.unwrap_or(Ok(Vec::new()))?;
    let mut workers_connected = None;
    if job.state() == JobState::Queued {
        // A token that may not see the workers does without this hint.
        let workers = broker.workers().list(v1::ListWorkersRequest {}).await.ok();
        workers_connected = workers.map(|answer| {
            answer.into_inner().workers.iter().filter(|worker| worker.connected && !worker.paused).count()
        });
    }
    let story = Story { job, builds, sample, failed_tasks, running_tasks, reduce_task, workers_connected };
    ctx.out.one(&story, || story.lines(ctx.now()))
}

async fn some_tasks(
    jobs: &mut Jobs,
    id: &str,
    state: TaskState,
    outcomes: &[Outcome],
) -> Result<Vec<Task>, Error> {
    let request = ListTasksRequest {
        job_id: id.to_owned(),
        state: state as i32,
        outcomes: outcomes.iter().map(|outcome| *outcome as i32).collect(),
        page: Some(Page { page_size: SHOWN_TASKS, page_token: String::new() }),
    };
    Ok(said(jobs.list_tasks(request).await)?.tasks)
}

async fn whole_task(jobs: &mut Jobs, job: &str, task: &str) -> Result<Task, Error> {
    said(jobs.get_task(GetTaskRequest { job_id: job.to_owned(), task_id: task.to_owned() }).await)
}

async fn newest_reduce(jobs: &mut Jobs, id: &str) -> Result<Option<Task>, Error> {
    let mut newest = None;
    for run in 1..=REDUCE_STEPS {
        match whole_task(jobs, id, codering_core::TaskId::reduce(run).as_str()).await {
            Ok(task) => newest = Some(task),
            Err(error) if error.code == Code::TaskNotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok(newest)
}

async fn sample(jobs: &mut Jobs, id: &str) -> Result<Vec<TaskResult>, Error> {
    let request = v1::ResultsRequest { job_id: id.to_owned(), outcomes: vec![Outcome::Succeeded as i32] };
    let mut stream = said(jobs.results(request).await)?;
    let mut sample = Vec::new();
    while sample.len() < SAMPLE {
        match stream.message().await {
            Ok(Some(mut result)) => {
                // Only the times are wanted.
                (result.stdout, result.stderr) = Default::default();
                sample.push(result);
            }
            Ok(None) => break,
            Err(status) => return Err(codering_proto::status::from_status(&status)),
        }
    }
    Ok(sample)
}

/// `job logs --build`.
pub async fn build_logs(ctx: &Context, id: String) -> Result<(), Error> {
    let mut jobs = ctx.broker().await?.jobs();
    let job = said(jobs.get(v1::GetJobRequest { job_id: id }).await)?;
    let request = v1::BuildLogsRequest { job_id: job.job_id.clone() };
    let builds = said(jobs.build_logs(request).await)?.builds;
    if builds.is_empty() {
        ctx.out.note(no_builds(&job));
    }
    ctx.out.blocks(&builds, |build| build_lines(build, ctx.now()))
}

fn no_builds(job: &Job) -> String {
    match job.started_at_ms {
        0 => format!("{} has not started, so nothing was built yet", job.job_id),
        _ => format!("no image was built for {}: the workers had it already", job.job_id),
    }
}

fn build_lines(build: &Build, now: Millis) -> Vec<String> {
    let how = if build.succeeded { "built" } else { "FAILED" };
    let mut lines = vec![format!(
        "# {how} on {} {} ago in {}, {} of {} steps cached: {} at {}",
        build.worker,
        words::ago(build.started_at_ms, now),
        codering_core::units::show_duration(build.took_ms),
        build.cached_steps,
        build.steps,
        if build.image.is_empty() { "no image" } else { &build.image },
        words::commit(&build.commit),
    )];
    if build.log_truncated {
        lines.push("# only the end of the log was kept".into());
    }
    lines.extend(build.log.lines().map(words::whole));
    lines
}
