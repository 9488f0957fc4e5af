//! `codering.v1.Jobs`.

mod lists;
mod submit;

use codering_core::Error;
use codering_proto::v1::{self, jobs_server::Jobs};
use futures::{StreamExt, TryStreamExt};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Answers, streamed, unary};
use crate::{
    api::{follow, views},
    broker,
};
pub use lists::{PageOf, list_jobs, list_tasks, outcomes};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Service;

#[async_trait]
impl Jobs for Service {
    type WatchStream = Answers<v1::JobEvent>;
    type ResultsStream = Answers<v1::TaskResult>;
    type AnswerStream = Answers<v1::AnswerChunk>;
    type LogsStream = Answers<v1::LogChunk>;

    async fn submit(
        &self,
        request: Request<Streaming<v1::SubmitRequest>>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        unary(request, submit::submit).await
    }

    async fn list(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        unary(request, |call, asked| async move { list_jobs(&call, asked).await }).await
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        unary(request, |call, asked| async move { get_job(&call, &asked.job_id).await }).await
    }

    async fn watch(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        streamed(request, |call, asked| async move {
            let (broker, job) = call.job(&asked.job_id).await?;
            Ok(broker.watch(job.id).map_ok(views::event))
        })
        .await
    }

    async fn cancel(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        unary(request, |call, asked| async move {
            let (broker, job) = call.job(&asked.job_id).await?;
            Ok(views::job(broker.cancel_job(&job.id).await?))
        })
        .await
    }

    async fn retry(
        &self,
        request: Request<v1::RetryJobRequest>,
    ) -> Result<Response<v1::RetryJobResponse>, Status> {
        unary(request, |call, asked| async move {
            let (broker, job) = call.job(&asked.job_id).await?;
            let (job, retried) = broker.retry_job(&job.id).await?;
            Ok(v1::RetryJobResponse { job: Some(views::job(job)), retried })
        })
        .await
    }

    async fn pause(&self, request: Request<v1::PauseJobRequest>) -> Result<Response<v1::Job>, Status> {
        unary(request, |call, asked| async move {
            let (broker, job) = call.job(&asked.job_id).await?;
            Ok(views::job(broker.pause_job(&job.id).await?))
        })
        .await
    }

    async fn resume(&self, request: Request<v1::ResumeJobRequest>) -> Result<Response<v1::Job>, Status> {
        unary(request, |call, asked| async move {
            let (broker, job) = call.job(&asked.job_id).await?;
            Ok(views::job(broker.resume_job(&job.id).await?))
        })
        .await
    }

    async fn reduce(&self, request: Request<v1::ReduceJobRequest>) -> Result<Response<v1::Job>, Status> {
        unary(request, |call, asked| async move {
            let (broker, job) = call.job(&asked.job_id).await?;
            let reduce = asked.reduce.map(TryInto::try_into).transpose()?;
            Ok(views::job(broker.reduce_job(&job.id, reduce).await?))
        })
        .await
    }

    async fn results(
        &self,
        request: Request<v1::ResultsRequest>,
    ) -> Result<Response<Self::ResultsStream>, Status> {
        streamed(request, |call, asked| async move {
            let (broker, job) = call.job(&asked.job_id).await?;
            let only = outcomes(asked.outcomes().collect())?;
            Ok(follow::results(broker.clone(), job.id, only).map_ok(Into::into))
        })
        .await
    }

    async fn answer(
        &self,
        request: Request<v1::AnswerRequest>,
    ) -> Result<Response<Self::AnswerStream>, Status> {
        streamed(request, |call, asked| async move {
            let (broker, job) = call.job(&asked.job_id).await?;
            let (name, data) = broker.answer(&job.id).await?;
            // The name is told even where the answer is empty.
            let head = v1::AnswerChunk { name: name.clone(), data: bytes::Bytes::new() };
            let rest = follow::pieces(data).map(move |data| v1::AnswerChunk { name: name.clone(), data });
            Ok(futures::stream::iter([head]).chain(rest).map(Ok))
        })
        .await
    }

    async fn build_logs(
        &self,
        request: Request<v1::BuildLogsRequest>,
    ) -> Result<Response<v1::BuildLogsResponse>, Status> {
        unary(request, |call, asked| async move {
            let (broker, job) = call.job(&asked.job_id).await?;
            let builds = broker.builds(&job.id).await?.into_iter().map(views::build).collect();
            Ok(v1::BuildLogsResponse { builds })
        })
        .await
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        unary(request, |call, asked| async move { list_tasks(&call, asked).await }).await
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::Task>, Status> {
        unary(request, |call, asked| async move {
            let (broker, job, key) = call.task(&asked.job_id, &asked.task_id).await?;
            Ok(views::task_story(&job, broker.task(&key).await?))
        })
        .await
    }

    async fn cancel_task(
        &self,
        request: Request<v1::CancelTaskRequest>,
    ) -> Result<Response<v1::Task>, Status> {
        unary(request, |call, asked| async move {
            let (broker, job, key) = call.task(&asked.job_id, &asked.task_id).await?;
            Ok(views::task(&job, broker.cancel_task(&key).await?))
        })
        .await
    }

    async fn retry_task(&self, request: Request<v1::RetryTaskRequest>) -> Result<Response<v1::Task>, Status> {
        unary(request, |call, asked| async move {
            let (broker, job, key) = call.task(&asked.job_id, &asked.task_id).await?;
            Ok(views::task(&job, broker.retry_task(&key).await?))
        })
        .await
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        streamed(request, |call, asked| async move {
            let (broker, _, key) = call.task(&asked.job_id, &asked.task_id).await?;
            let stream = match asked.stream() {
                v1::LogStream::Stderr => broker::Stream::Stderr,
                _ => broker::Stream::Stdout,
            };
            // A task that is not there is told at once.
            broker.task(&key).await?;
            let pieces = follow::log(broker.clone(), key, stream, asked.offset, asked.follow);
            Ok(pieces.map_ok(|piece| v1::LogChunk {
                offset: piece.offset,
                data: piece.data.into(),
                attempt: piece.attempt,
                truncated: piece.truncated,
            }))
        })
        .await
    }
}

/// A job, with what its answer weighs.
pub async fn get_job(call: &crate::api::call::Call, prefix: &str) -> Result<v1::Job, Error> {
    let (broker, job) = call.job(prefix).await?;
    let answer = if views::answered(&job) { broker.answer(&job.id).await.ok() } else { None };
    let answer_bytes = answer.map_or(0, |(_, data)| data.len() as u64);
    Ok(v1::Job { answer_bytes, ..views::job(job) })
}
