//! `job`: list, show, logs, cancel, retry, pause, resume.

mod show;
pub mod story;

use clap::{Subcommand, ValueEnum};
use codering_core::Error;
use codering_proto::v1::{self, Job, JobState, ListJobsRequest, Page};

use crate::{
    client::said,
    context::Context,
    verbs::{complete, words},
};

/// Jobs: what they are doing, and what to do about it.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List jobs, newest first.
    #[command(after_help = "Examples:\n  \
        coderingctl job list --project demo --state failed\n  \
        coderingctl job list --all --output jsonl | jq -r .job_id")]
    List {
        /// Only of this project.
        #[arg(long, short, add = complete::projects())]
        project: Option<String>,
        /// Only in this state.
        #[arg(long, short)]
        state: Option<State>,
        /// How many at most.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// All of them, page by page.
        #[arg(long, conflicts_with = "limit")]
        all: bool,
        /// Go on where an earlier list ended: the token that it printed.
        #[arg(long, value_name = "TOKEN")]
        page: Option<String>,
    },
    /// Show the whole story of a job, and the command for each question that it raises.
    #[command(after_help = "Examples:\n  \
        coderingctl job show j-01jd8q\n  \
        coderingctl job show j-01jd8q --output json | jq .tasks")]
    Show {
        /// Its id, or any unambiguous beginning of it.
        #[arg(add = complete::jobs())]
        job: String,
    },
    /// Print the log of its image's builds.
    #[command(after_help = "Examples:\n  \
        coderingctl job logs j-01jd8q --build\n  \
        coderingctl job logs j-01jd8q --build --output json | jq '.[].took_ms'")]
    Logs {
        /// Its id, or any unambiguous beginning of it.
        #[arg(add = complete::jobs())]
        job: String,
        /// The builds of its image; the log of a task is `coderingctl task logs JOB/TASK`.
        #[arg(long, required = true)]
        build: bool,
    },
    /// Stop what runs of a job and drop what waits; its results stay, and a retry takes it up again.
    #[command(after_help = "Examples:\n  \
        coderingctl job cancel j-01jd8q\n  \
        coderingctl job cancel j-01jd8q --output json | jq .tasks.running")]
    Cancel {
        /// Its id, or any unambiguous beginning of it.
        #[arg(add = complete::jobs())]
        job: String,
    },
    /// Run again what failed or was cancelled of a job, and nothing else.
    #[command(after_help = "Examples:\n  \
        coderingctl job retry j-01jd8q\n  \
        coderingctl job retry j-01jd8q && coderingctl watch j-01jd8q")]
    Retry {
        /// Its id, or any unambiguous beginning of it.
        #[arg(add = complete::jobs())]
        job: String,
    },
    /// Start nothing more of a job; what runs goes on.
    #[command(after_help = "Examples:\n  \
        coderingctl job pause j-01jd8q\n  \
        coderingctl job pause j-01jd8q --output json | jq -r .state")]
    Pause {
        /// Its id, or any unambiguous beginning of it.
        #[arg(add = complete::jobs())]
        job: String,
    },
    /// Let a paused job go on.
    #[command(after_help = "Examples:\n  \
        coderingctl job resume j-01jd8q\n  \
        coderingctl job resume j-01jd8q && coderingctl watch j-01jd8q")]
    Resume {
        /// Its id, or any unambiguous beginning of it.
        #[arg(add = complete::jobs())]
        job: String,
    },
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(missing_docs)]
pub enum State {
    Queued,
    Running,
    Paused,
    Reducing,
    Succeeded,
    Failed,
    Cancelled,
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Running => Self::Running,
            State::Paused => Self::Paused,
            State::Reducing => Self::Reducing,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
        }
    }
}

/// Runs the verb.
pub async fn run(ctx: &Context, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::List { project, state, limit, all, page } => {
            let limit = if all { usize::MAX } else { limit as usize };
            list(ctx, project, state, limit, page).await
        }
        Verb::Show { job } => show::run(ctx, job).await,
        Verb::Logs { job, build: _ } => show::build_logs(ctx, job).await,
        Verb::Cancel { job } => cancel(ctx, job).await,
        Verb::Retry { job } => retry(ctx, job).await,
        Verb::Pause { job } => {
            let request = v1::PauseJobRequest { job_id: job };
            let job = said(ctx.broker().await?.jobs().pause(request).await)?;
            let running = job.tasks.unwrap_or_default().running;
            let id = &job.job_id;
            ctx.out.one(&job, || {
                vec![format!("paused   {id}; still running: {running} (go on: coderingctl job resume {id})")]
            })
        }
        Verb::Resume { job } => {
            let request = v1::ResumeJobRequest { job_id: job };
            let job = said(ctx.broker().await?.jobs().resume(request).await)?;
            let id = &job.job_id;
            ctx.out.one(&job, || vec![format!("resumed  {id} (see it go on: coderingctl watch {id})")])
        }
    }
}

async fn list(
    ctx: &Context,
    project: Option<String>,
    state: Option<State>,
    limit: usize,
    page: Option<String>,
) -> Result<(), Error> {
    let mut client = ctx.broker().await?.jobs();
    let mut token = page.unwrap_or_default();
    let mut jobs: Vec<Job> = Vec::new();
    let project = project.unwrap_or_default();
    let state = state.map_or(JobState::Unspecified, JobState::from) as i32;
    loop {
        let page_size = u32::try_from((limit - jobs.len()).min(1000)).unwrap_or(1000);
        let page = Some(Page { page_size, page_token: token });
        let answer = said(client.list(ListJobsRequest { project: project.clone(), state, page }).await)?;
        jobs.extend(answer.jobs);
        token = answer.next_page_token;
        if token.is_empty() || jobs.len() >= limit {
            break;
        }
    }
    if jobs.is_empty() {
        ctx.out.note("no such job; coderingctl submit makes one");
    }
    let now = ctx.now();
    let header = ["JOB", "NAME", "PROJECT", "STATE", "TASKS", "AGE", "TOOK"];
    ctx.out.list(&jobs, &header, |job| row(job, now))?;
    if !token.is_empty() {
        ctx.out.note(format!("there are more: --all, or go on with --page {token}"));
    }
    Ok(())
}

fn row(job: &Job, now: i64) -> Vec<String> {
    vec![
        job.job_id.clone(),
        words::harmless(&job.name),
        job.project.clone(),
        words::state(job.state()),
        words::counts(job),
        words::ago(job.created_at_ms, now),
        words::took(job.started_at_ms, job.finished_at_ms),
    ]
}

async fn cancel(ctx: &Context, job: String) -> Result<(), Error> {
    let mut client = ctx.broker().await?.jobs();
    let job = said(client.cancel(v1::CancelJobRequest { job_id: job }).await)?;
    let id = &job.job_id;
    ctx.out.one(&job, || {
        let stopping = match job.tasks.unwrap_or_default().running {
            0 => String::new(),
            n => format!("; being stopped: {}", words::tasks(n)),
        };
        vec![format!("cancelled  {id}{stopping} (take it up again: coderingctl job retry {id})")]
    })
}

async fn retry(ctx: &Context, job: String) -> Result<(), Error> {
    let answer = said(ctx.broker().await?.jobs().retry(v1::RetryJobRequest { job_id: job }).await)?;
    let id = answer.job.as_ref().map(|job| job.job_id.clone()).unwrap_or_default();
    ctx.out.one(&answer, || match answer.retried {
        0 => vec![format!("nothing of {id} failed or was cancelled, so nothing runs again")],
        n => vec![format!("retried  {} of {id} (see it go on: coderingctl watch {id})", words::tasks(n))],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_as_the_table_of_jobs_should() {
        let tasks = v1::TaskCounts { total: 24, succeeded: 24, ..Default::default() };
        let job = Job {
            job_id: "j-01jd8qabcd".into(),
            name: "wordcount".into(),
            project: "demo".into(),
            state: JobState::Succeeded as i32,
            tasks: Some(tasks),
            created_at_ms: 1_000_000,
            started_at_ms: 1_001_000,
            finished_at_ms: 1_010_300,
            ..Default::default()
        };
        let expected = ["j-01jd8qabcd", "wordcount", "demo", "succeeded", "24/24", "2m", "9.3s"];
        assert_eq!(row(&job, 1_120_000), expected);
        let waiting = Job { started_at_ms: 0, finished_at_ms: 0, ..job };
        assert_eq!(row(&waiting, 1_120_000)[6], "-");
    }
}
