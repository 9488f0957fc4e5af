//! `/api/v1/queues`. Messages themselves go over `/rabbit/`.

use axum::{Json as Answer, http::StatusCode};
use codering_proto::v1;
use serde::Deserialize;

use super::{
    input::{self, Asked, Named},
    problem::Problem,
};
use crate::api::{call::Call, views};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Of {
    #[serde(default)]
    project: String,
}

pub(super) async fn list(
    call: Call,
    Asked(of): Asked<Of>,
) -> Result<Answer<v1::ListQueuesResponse>, Problem> {
    let (broker, only) = call.listing(&of.project)?;
    let queues = broker.queues(only.as_deref()).await?.into_iter().map(views::queue).collect();
    Ok(Answer(v1::ListQueuesResponse { queues, backend: broker.queue_backend().into() }))
}

pub(super) async fn delete(call: Call, Named(name): Named<String>) -> Result<StatusCode, Problem> {
    let name = input::queue(&name)?;
    call.queue(&name)?.delete_queue(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn purge(
    call: Call,
    Named(name): Named<String>,
) -> Result<Answer<v1::PurgeQueueResponse>, Problem> {
    let name = input::queue(&name)?;
    Ok(Answer(v1::PurgeQueueResponse { purged: call.queue(&name)?.purge(&name).await? }))
}
