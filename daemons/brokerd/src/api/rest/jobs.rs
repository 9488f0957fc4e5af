//! `/api/v1/jobs`: submitted, listed, shown, changed.

use axum::{
    Json as Answer,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use codering_core::{
    Code, Error, JobSpec, Reduce, TaskSpec,
    ids::shown,
    job::JobState,
    jobfile::{JobFile, ReduceFile, explained},
};
use codering_proto::v1;
use serde::Deserialize;

use super::{
    input::{Asked, Named, Optional, Raw, parsed},
    problem::Problem,
};
use crate::{
    api::{call::Call, grpc, views},
    broker::{NewJob, internal},
};

/// A job with many tasks is a large body.
pub(super) const JOB_BYTES: usize = 64 << 20;
/// Tasks handed to the ledger at once.
const CHUNK: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct List {
    project: String,
    state: String,
    page_size: u32,
    page_token: String,
}

/// 201 with the job, or 200 where its idempotency key was used before.
pub(super) async fn submit(
    call: Call,
    headers: HeaderMap,
    body: Raw<JOB_BYTES>,
) -> Result<Response, Problem> {
    let only = call.caller()?.projects().unwrap_or_default().to_vec();
    // Many megabytes of JSON would keep the runtime from everything else.
    let read = tokio::task::spawn_blocking(move || -> Result<(JobSpec, Vec<TaskSpec>), Error> {
        let file: JobFile = parsed(&body.bytes, explained)?;
        // A token of one project needs not name it.
        file.job(if let [one] = only.as_slice() { Some(one) } else { None })
    });
    let (spec, tasks) = read.await.map_err(internal)??;
    let broker = call.project(&spec.project)?;
    let idempotency_key = match headers.get("idempotency-key") {
        None => None,
        Some(key) => Some(key.to_str().map(str::to_owned).map_err(|_| {
            Error::new(Code::InvalidInput, "an idempotency key is plain text").at("idempotency-key")
        })?),
    };
    let submitted_by = call.caller()?.name().to_owned();
    let mut submission = broker.submit(NewJob { spec, idempotency_key, submitted_by }).await?;
    let mut tasks = tasks.into_iter();
    loop {
        let chunk: Vec<_> = tasks.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            break;
        }
        submission.add(chunk).await?;
    }
    let (job, existed) = submission.finish().await?;
    let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
    let place = format!("/api/v1/jobs/{}", job.id);
    Ok((status, [(header::LOCATION, place)], Answer(views::job(job))).into_response())
}

pub(super) async fn list(
    call: Call,
    Asked(asked): Asked<List>,
) -> Result<Answer<v1::ListJobsResponse>, Problem> {
    let state = match asked.state.as_str() {
        "" => v1::JobState::Unspecified,
        name => JobState::parse(name)
            .ok_or_else(|| {
                Error::new(Code::InvalidInput, format!("`{}` is no job's state", shown(name))).at("state")
            })?
            .into(),
    };
    let request = v1::ListJobsRequest {
        project: asked.project,
        state: state.into(),
        page: Some(v1::Page { page_size: asked.page_size, page_token: asked.page_token }),
    };
    Ok(Answer(grpc::jobs::list_jobs(&call, request).await?))
}

pub(super) async fn get(call: Call, Named(id): Named<String>) -> Result<Answer<v1::Job>, Problem> {
    Ok(Answer(grpc::jobs::get_job(&call, &id).await?))
}

pub(super) async fn cancel(call: Call, Named(id): Named<String>) -> Result<Answer<v1::Job>, Problem> {
    let (broker, job) = call.job(&id).await?;
    Ok(Answer(views::job(broker.cancel_job(&job.id).await?)))
}

pub(super) async fn retry(
    call: Call,
    Named(id): Named<String>,
) -> Result<Answer<v1::RetryJobResponse>, Problem> {
    let (broker, job) = call.job(&id).await?;
    let (job, retried) = broker.retry_job(&job.id).await?;
    Ok(Answer(v1::RetryJobResponse { job: Some(views::job(job)), retried }))
}

pub(super) async fn pause(call: Call, Named(id): Named<String>) -> Result<Answer<v1::Job>, Problem> {
    let (broker, job) = call.job(&id).await?;
    Ok(Answer(views::job(broker.pause_job(&job.id).await?)))
}

pub(super) async fn resume(call: Call, Named(id): Named<String>) -> Result<Answer<v1::Job>, Problem> {
    let (broker, job) = call.job(&id).await?;
    Ok(Answer(views::job(broker.resume_job(&job.id).await?)))
}

/// With the job's own reduce step, or with the one in the body.
pub(super) async fn reduce(
    call: Call,
    Named(id): Named<String>,
    Optional(with): Optional<ReduceFile>,
) -> Result<Answer<v1::Job>, Problem> {
    let (broker, job) = call.job(&id).await?;
    let reduce = with.map(reduce_of).transpose()?;
    Ok(Answer(views::job(broker.reduce_job(&job.id, reduce).await?)))
}

pub(super) fn reduce_of(written: ReduceFile) -> Result<Reduce, Error> {
    let command = written
        .command
        .ok_or_else(|| Error::new(Code::JobInvalid, "a reduce step needs a command").at("command"))?;
    let output = written.output.unwrap_or_else(|| "answer".into());
    Ok(Reduce { command, output, limits: written.limits.patch() })
}

pub(super) async fn builds(
    call: Call,
    Named(id): Named<String>,
) -> Result<Answer<v1::BuildLogsResponse>, Problem> {
    let (broker, job) = call.job(&id).await?;
    let builds = broker.builds(&job.id).await?.into_iter().map(views::build).collect();
    Ok(Answer(v1::BuildLogsResponse { builds }))
}
