//! `task`: list, show, logs, cancel, retry. A task is named `JOB/TASK`.

mod logs;
mod position;
mod show;

use std::str::FromStr;

use clap::{Subcommand, ValueEnum};
use codering_core::{Error, Outcome, TaskId};
use codering_proto::v1::{self, ListTasksRequest, Page, Task, TaskState};

use crate::{
    client::said,
    context::Context,
    verbs::{complete, words},
};

/// Tasks: one command each, of a job.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the tasks of a job.
    #[command(after_help = "Examples:\n  \
        coderingctl task list j-01jd8q --failed\n  \
        coderingctl task list j-01jd8q --outcome out_of_memory --output jsonl | jq -r .task_id")]
    List {
        /// Its id, or any unambiguous beginning of it.
        #[arg(add = complete::jobs())]
        job: String,
        /// Only those that wait, run, or are done.
        #[arg(long, short)]
        state: Option<State>,
        /// Only those that ended so; may be given several times.
        #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
        outcome: Vec<Outcome>,
        /// Only those that did not succeed and were not cancelled.
        #[arg(long, conflicts_with_all = ["outcome", "state"])]
        failed: bool,
        /// How many at most.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// All of them, page by page.
        #[arg(long, conflicts_with = "limit")]
        all: bool,
        /// Go on where an earlier list ended: the token that it printed.
        #[arg(long, value_name = "TOKEN")]
        page: Option<String>,
    },
    /// Show a task: its command, every try at it, and its result.
    #[command(after_help = "Examples:\n  \
        coderingctl task show j-01jd8q/17\n  \
        coderingctl task show j-01jd8q/17 --output json | jq .result.exit_code")]
    Show {
        /// JOB/TASK; of the job, any unambiguous beginning.
        #[arg(value_name = "JOB/TASK", add = complete::job_slash())]
        task: TaskName,
    },
    /// Print what a task printed: its stdout to stdout, its stderr to stderr.
    #[command(after_help = "Examples:\n  \
        coderingctl task logs j-01jd8q/17 --follow\n  \
        coderingctl task logs j-01jd8q/17 --stream stderr --offset 1048576 > errors.log")]
    Logs(logs::LogsArgs),
    /// Stop a task, or forget it where it still waits.
    #[command(after_help = "Examples:\n  \
        coderingctl task cancel j-01jd8q/17\n  \
        coderingctl task cancel j-01jd8q/17 --output json | jq .cancel_requested")]
    Cancel {
        /// JOB/TASK; of the job, any unambiguous beginning.
        #[arg(value_name = "JOB/TASK", add = complete::job_slash())]
        task: TaskName,
    },
    /// Run a task again that is done, whatever came of it.
    #[command(after_help = "Examples:\n  \
        coderingctl task retry j-01jd8q/17\n  \
        coderingctl task retry j-01jd8q/17 && coderingctl task logs j-01jd8q/17 --follow")]
    Retry {
        /// JOB/TASK; of the job, any unambiguous beginning.
        #[arg(value_name = "JOB/TASK", add = complete::job_slash())]
        task: TaskName,
    },
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(missing_docs)]
pub enum State {
    Queued,
    Running,
    Done,
}

/// `JOB/TASK`; the job may be a prefix, which the broker resolves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskName {
    /// The job's id or a prefix of it.
    pub job: String,
    /// The task's id.
    pub task: String,
}

impl FromStr for TaskName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((job, task)) = text.split_once('/').filter(|(job, _)| !job.is_empty()) else {
            return Err(
                "a task is named JOB/TASK, e.g. j-01jd8q/17; list them: coderingctl task list JOB".into()
            );
        };
        let task = TaskId::new(task).map_err(|error| error.to_string())?;
        Ok(Self { job: job.to_owned(), task: task.into() })
    }
}

fn outcome(text: &str) -> Result<Outcome, String> {
    Outcome::parse(text).ok_or_else(|| {
        let known = Outcome::ALL.map(Outcome::as_str);
        format!("expected one of {}", known.join(", "))
    })
}

/// Runs the verb.
pub async fn run(ctx: &Context, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::List { job, state, mut outcome, failed, limit, all, page } => {
            if failed {
                let not = [Outcome::Succeeded, Outcome::Cancelled];
                outcome = Outcome::ALL.into_iter().filter(|outcome| !not.contains(outcome)).collect();
            }
            let limit = if all { usize::MAX } else { limit as usize };
            list(ctx, job, state, &outcome, limit, page).await
        }
        Verb::Show { task } => show::run(ctx, task).await,
        Verb::Logs(args) => logs::run(ctx, args).await,
        Verb::Cancel { task } => cancel(ctx, task).await,
        Verb::Retry { task } => {
            let request = v1::RetryTaskRequest { job_id: task.job, task_id: task.task };
            let task = said(ctx.broker().await?.jobs().retry_task(request).await)?;
            let name = format!("{}/{}", task.job_id, task.task_id);
            ctx.out.one(&task, || {
                vec![format!("retried  {name} (see it run: coderingctl task logs {name} --follow)")]
            })
        }
    }
}

async fn cancel(ctx: &Context, task: TaskName) -> Result<(), Error> {
    let request = v1::CancelTaskRequest { job_id: task.job, task_id: task.task };
    let task = said(ctx.broker().await?.jobs().cancel_task(request).await)?;
    let name = format!("{}/{}", task.job_id, task.task_id);
    let line = match task.state() {
        TaskState::Done => format!("cancelled  {name} (run it all the same: coderingctl task retry {name})"),
        _ => format!("cancelling  {name}: {} was told to stop it", task.worker),
    };
    ctx.out.one(&task, || vec![line])
}

async fn list(
    ctx: &Context,
    job: String,
    state: Option<State>,
    outcomes: &[Outcome],
    limit: usize,
    page: Option<String>,
) -> Result<(), Error> {
    let state = match state {
        None => TaskState::Unspecified,
        Some(State::Queued) => TaskState::Queued,
        Some(State::Running) => TaskState::Running,
        Some(State::Done) => TaskState::Done,
    };
    let outcomes: Vec<i32> = outcomes.iter().map(|outcome| v1::Outcome::from(*outcome) as i32).collect();
    let mut client = ctx.broker().await?.jobs();
    let mut token = page.unwrap_or_default();
    let mut tasks: Vec<Task> = Vec::new();
    loop {
        let page_size = u32::try_from((limit - tasks.len()).min(1000)).unwrap_or(1000);
        let request = ListTasksRequest {
            job_id: job.clone(),
            state: state as i32,
            outcomes: outcomes.clone(),
            page: Some(Page { page_size, page_token: token }),
        };
        let answer = said(client.list_tasks(request).await)?;
        tasks.extend(answer.tasks);
        token = answer.next_page_token;
        if token.is_empty() || tasks.len() >= limit {
            break;
        }
    }
    if tasks.is_empty() {
        ctx.out.note("no such task");
    }
    let now = ctx.now();
    ctx.out
        .list(&tasks, &["TASK", "STATE", "ATTEMPT", "WORKER", "SINCE", "COMMAND"], |task| row(task, now))?;
    if !token.is_empty() {
        ctx.out.note(format!("there are more: --all, or go on with --page {token}"));
    }
    Ok(())
}

fn row(task: &Task, now: i64) -> Vec<String> {
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    vec![
        format!("{}/{}", task.job_id, task.task_id),
        words::task_state(task),
        or_dash(if task.attempt == 0 { String::new() } else { task.attempt.to_string() }),
        or_dash(task.worker.clone()),
        // A list does not know when a task ended; `task show` does.
        if task.state() == TaskState::Done { "-".into() } else { words::ago(task.updated_at_ms, now) },
        or_dash(words::brief(&words::command(task.command.as_ref()), 60)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_named_by_its_job_and_its_id() {
        let name: TaskName = "j-01jd/17".parse().expect("valid");
        assert_eq!((name.job.as_str(), name.task.as_str()), ("j-01jd", "17"));
        for bad in ["17", "/17", "j-01jd/", "j-01jd/a/b", ""] {
            assert!(bad.parse::<TaskName>().is_err(), "{bad}");
        }
    }
}
