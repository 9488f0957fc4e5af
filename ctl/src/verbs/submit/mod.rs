//! `submit`: everything is checked here first, then the files are pushed, then the job is sent.

mod args;
mod send;

use std::{fs::File, io::BufReader, path::PathBuf, time::Duration};

use codering_core::{Code, Error, JobSpec, ProjectName, TaskSpec, ids::shown};
use codering_proto::v1::{self, SubmitResponse};
use tokio::{task::spawn_blocking, time::timeout};

pub use args::Args;

use crate::{
    client::{Target, said},
    context::Context,
    jobfile::Written,
    push::{Address, branch_of, push},
    verbs::{watch, words},
};

/// A git host that takes longer than this for a push is given up.
const PUSH_PATIENCE: Duration = Duration::from_secs(600);

/// Runs the verb.
pub async fn run(ctx: &Context, args: Args) -> Result<(), Error> {
    let (wait, progress) = (args.wait, args.watch);
    ctx.afterword("nothing was submitted");
    let Some(answer) = submit(ctx, args).await? else { return Ok(()) };
    ctx.afterword("");
    let Some(job) = answer.job else {
        return Err(Error::new(Code::Internal, "the broker answered without a job"));
    };
    ctx.saw(&job, true).await;
    if answer.existed {
        ctx.out.note("this key was submitted before; here is the first job");
    }
    let id = job.job_id.clone();
    match (wait || progress, ctx.out.is_quiet()) {
        // For `JOB=$(coderingctl submit --quiet …)`.
        (false, true) if !ctx.out.is_json() => ctx.out.line(&id)?,
        (false, _) => {
            ctx.out.one(&job, || vec![watch::heading(&job)])?;
            ctx.out.note(format!("         see it run: coderingctl watch {id}"));
        }
        (true, _) if !ctx.out.is_json() => ctx.out.line(&watch::heading(&job))?,
        (true, _) => {}
    }
    match (wait, progress) {
        (true, _) => watch::follow(ctx, &id, watch::Show::End, None).await,
        (_, true) => watch::follow(ctx, &id, watch::Show::Progress, None).await,
        _ => Ok(()),
    }
}

/// The broker's answer; `None` where it was only checked.
async fn submit(ctx: &Context, mut args: Args) -> Result<Option<SubmitResponse>, Error> {
    let asked = args.asked()?;
    let mut written = asked.written;
    if let Some(path) = args.tasks.take() {
        written.job.array = None;
        written.job.task = Some(tasks(ctx, path).await?);
    }
    // Only what is to be sent needs to know where to.
    let target = if args.check { ctx.target().ok() } else { Some(ctx.target()?) };
    let fallback = target.as_ref().and_then(|target| target.project.as_deref());
    let fallback = fallback.map(ProjectName::new).transpose()?;
    let address = match &asked.push {
        Some(_) => Some(address(&written, target.as_ref(), fallback.as_ref())?),
        None => None,
    };
    let branch = branch_of(written.job.git_ref.as_deref(), written.job.name.as_deref().unwrap_or_default());
    if let Some(address) = &address {
        address.check().map_err(|error| written.locate(error))?;
        (written.job.git, written.job.git_ref) = (Some(address.url().to_owned()), None);
    }
    let (mut job, tasks) =
        written.job.clone().job(fallback.as_ref()).map_err(|error| written.locate(error))?;
    if args.check {
        ctx.out.line(&format!(
            "valid    {}  {} tasks  project {}",
            shown(&job.name),
            tasks.len(),
            job.project
        ))?;
        return Ok(None);
    }
    let broker = ctx.broker().await?;
    if let (Some(dir), Some(address)) = (asked.push, address) {
        // What would be refused for want of a project leaves no commit behind.
        let wanted = v1::GetProjectRequest { name: job.project.to_string() };
        said(broker.projects().get(wanted).await).map_err(|error| with_cure(error, &job.project))?;
        job.source.git_ref = pushed(ctx, dir, address, branch, &job).await?;
    }
    let key = args.key.unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
    sent(ctx, broker.jobs(), job, tasks, &key).await.map(Some)
}

async fn tasks(ctx: &Context, path: PathBuf) -> Result<Vec<codering_core::jobfile::TaskFile>, Error> {
    let from_stdin = path.as_os_str() == "-";
    if from_stdin && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        ctx.out.note("reading tasks from the terminal, one JSON a line; Ctrl-D ends");
    }
    let reading = spawn_blocking(move || {
        if from_stdin {
            return args::read_tasks(std::io::stdin().lock(), "stdin");
        }
        let name = path.display().to_string();
        let file = File::open(&path)
            .map_err(|error| Error::new(Code::InvalidInput, format!("cannot be read: {error}")).at(&name))?;
        args::read_tasks(BufReader::new(file), &name)
    });
    reading.await.map_err(|error| Error::new(Code::Internal, error.to_string()))?
}

/// The repository that the files go to.
fn address(
    written: &Written,
    target: Option<&Target>,
    fallback: Option<&ProjectName>,
) -> Result<Address, Error> {
    let root = target.and_then(|target| target.git_root.as_deref());
    let project = written.job.project.as_ref().or(fallback).map_or("project", ProjectName::as_str);
    Address::find(written.job.git.as_deref(), root, project).map_err(|error| written.locate(error))
}

/// Pushes, says what was pushed, and answers with the commit.
async fn pushed(
    ctx: &Context,
    dir: PathBuf,
    address: Address,
    branch: String,
    job: &JobSpec,
) -> Result<String, Error> {
    let (repository, message) = (address.shown(), format!("Submit {}\n", job.name));
    let pushing = spawn_blocking(move || push(&dir, &address, &branch, &message));
    let pushed = timeout(PUSH_PATIENCE, pushing).await.map_err(|_| {
        Error::new(Code::GitPushFailed, "the git host did not take the push in ten minutes").at(&repository)
    })?;
    let pushed = pushed.map_err(|error| Error::new(Code::Internal, error.to_string()))??;
    let commit = words::commit(&pushed.commit);
    let files = |n: usize| if n == 1 { "1 file".to_owned() } else { format!("{n} files") };
    ctx.out.note(match (pushed.changed, pushed.removed) {
        (0, 0) => format!("pushed   nothing new to {repository}, commit {commit}"),
        (changed, 0) => format!("pushed   {} to {repository}, commit {commit}", files(changed)),
        (changed, removed) => {
            format!("pushed   {} to {repository}, {removed} removed, commit {commit}", files(changed))
        }
    });
    Ok(pushed.commit)
}

async fn sent(
    ctx: &Context,
    mut jobs: crate::client::Jobs,
    job: JobSpec,
    tasks: Vec<TaskSpec>,
    key: &str,
) -> Result<SubmitResponse, Error> {
    let project = job.project.clone();
    send::send(ctx, &mut jobs, job, tasks, key).await.map_err(|(error, unknown)| {
        if unknown {
            ctx.afterword(&format!(
                "whether it was submitted is not known; the same again with --key {key} is safe"
            ));
        }
        with_cure(error, &project)
    })
}

fn with_cure(error: Error, project: &ProjectName) -> Error {
    match error.code {
        Code::ProjectNotFound if error.hint.is_empty() => {
            error.hint(format!("make it: coderingctl project create {project}"))
        }
        _ => error,
    }
}
