//! Submit: the job in the first request, tasks in all of them, their number in the last.

use std::time::Duration;

use codering_core::{Code, Error, JobSpec, TaskSpec};
use codering_proto::v1;
use tonic::Streaming;

use super::super::next;
use crate::{
    api::{call::Call, views},
    broker::{NewJob, Submission},
};

/// Between two requests of one submit.
const PAUSE: Duration = Duration::from_secs(60);

pub(super) async fn submit(
    call: Call,
    mut stream: Streaming<v1::SubmitRequest>,
) -> Result<v1::SubmitResponse, Error> {
    let first = soon(&mut stream).await?.ok_or_else(|| cut_short("before its first request"))?;
    let wire =
        first.job.ok_or_else(|| Error::new(Code::JobInvalid, "the first request holds the job").at("job"))?;
    let spec = JobSpec::try_from(wire)?;
    let broker = call.project(&spec.project)?;
    let idempotency_key = Some(first.idempotency_key).filter(|key| !key.is_empty());
    let new = NewJob { spec, idempotency_key, submitted_by: call.caller()?.name().to_owned() };
    let mut submission = broker.submit(new).await?;
    let mut sent = add(&mut submission, first.tasks, 0).await?;
    let mut end = first.end_of_tasks;
    while end.is_none() {
        let Some(more) = soon(&mut stream).await? else { break };
        if more.job.is_some() || !more.idempotency_key.is_empty() {
            return Err(Error::new(Code::JobInvalid, "the job is in the first request only").at("job"));
        }
        sent = add(&mut submission, more.tasks, sent).await?;
        end = more.end_of_tasks;
    }
    match end {
        None => return Err(cut_short("before it said how many tasks it holds")),
        Some(said) if said != sent => {
            let what = format!("it holds {sent} tasks and says that it holds {said}");
            return Err(Error::new(Code::InvalidInput, what).at("end_of_tasks"));
        }
        Some(_) => {}
    }
    let (job, existed) = submission.finish().await?;
    Ok(v1::SubmitResponse { job: Some(views::job(job)), existed })
}

async fn soon(stream: &mut Streaming<v1::SubmitRequest>) -> Result<Option<v1::SubmitRequest>, Error> {
    let waited = tokio::time::timeout(PAUSE, next(stream)).await;
    waited.map_err(|_| {
        Error::new(Code::TimedOut, "the rest of the submit did not come; nothing was recorded")
    })?
}

async fn add(submission: &mut Submission, tasks: Vec<v1::TaskSpec>, before: u64) -> Result<u64, Error> {
    let mut specs = Vec::with_capacity(tasks.len());
    for (task, number) in tasks.into_iter().zip(before..) {
        specs.push(TaskSpec::try_from(task).map_err(|mut error| {
            error.place = format!("tasks[{number}].{}", error.place);
            error
        })?);
    }
    let added = specs.len() as u64;
    submission.add(specs).await?;
    Ok(before + added)
}

fn cut_short(when: &str) -> Error {
    Error::new(Code::InvalidInput, format!("the submit ended {when}; nothing was recorded"))
}
