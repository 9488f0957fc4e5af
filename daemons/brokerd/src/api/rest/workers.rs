//! `/api/v1/workers`.

use axum::Json as Answer;
use codering_proto::v1;

use super::{
    input::{self, Named},
    problem::Problem,
};
use crate::api::{call::Call, views};

pub(super) async fn list(call: Call) -> Result<Answer<v1::ListWorkersResponse>, Problem> {
    let workers = call.everywhere()?.workers().await?.into_iter().map(views::worker).collect();
    Ok(Answer(v1::ListWorkersResponse { workers }))
}

pub(super) async fn get(call: Call, Named(name): Named<String>) -> Result<Answer<v1::Worker>, Problem> {
    Ok(Answer(views::worker(call.everywhere()?.worker(&input::worker(&name)?).await?)))
}

pub(super) async fn pause(call: Call, Named(name): Named<String>) -> Result<Answer<v1::Worker>, Problem> {
    let worker = call.everywhere()?.pause_worker(&input::worker(&name)?, true).await?;
    call.decided("a worker was paused", worker.worker.name.as_str());
    Ok(Answer(views::worker(worker)))
}

pub(super) async fn resume(call: Call, Named(name): Named<String>) -> Result<Answer<v1::Worker>, Problem> {
    let worker = call.everywhere()?.pause_worker(&input::worker(&name)?, false).await?;
    call.decided("a worker was resumed", worker.worker.name.as_str());
    Ok(Answer(views::worker(worker)))
}

pub(super) async fn revoke(call: Call, Named(name): Named<String>) -> Result<Answer<v1::Worker>, Problem> {
    let worker = call.everywhere()?.revoke_worker(&input::worker(&name)?).await?;
    call.decided("a worker was revoked", worker.worker.name.as_str());
    Ok(Answer(views::worker(worker)))
}
