//! `/api/v1/projects`.

use axum::{
    Json as Answer,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use codering_core::quota::Quota;
use codering_proto::{convert::id, v1};
use serde::Deserialize;

use super::{
    input::{self, Asked, Json, Named},
    problem::Problem,
};
use crate::api::{call::Call, grpc, views};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    name: String,
    #[serde(default)]
    quota: Quota,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delete {
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dead {
    #[serde(default)]
    limit: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct Requeue {
    ids: Vec<String>,
    all: bool,
}

pub(super) async fn create(call: Call, Json(asked): Json<Create>) -> Result<Response, Problem> {
    let view = call.create_project(id(&asked.name, "name")?, asked.quota).await?;
    Ok((StatusCode::CREATED, Answer(views::project(view))).into_response())
}

pub(super) async fn list(call: Call) -> Result<Answer<v1::ListProjectsResponse>, Problem> {
    let (broker, only) = call.listing("")?;
    let projects = broker.projects(only.as_deref()).await?.into_iter().map(views::project).collect();
    Ok(Answer(v1::ListProjectsResponse { projects }))
}

pub(super) async fn get(call: Call, Named(name): Named<String>) -> Result<Answer<v1::Project>, Problem> {
    let name = input::project(&name)?;
    Ok(Answer(views::project(call.project(&name)?.project(&name).await?)))
}

pub(super) async fn delete(
    call: Call,
    Named(name): Named<String>,
    Asked(how): Asked<Delete>,
) -> Result<StatusCode, Problem> {
    let name = input::project(&name)?;
    call.delete_project(&name, how.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn set_quota(
    call: Call,
    Named(name): Named<String>,
    Json(quota): Json<Quota>,
) -> Result<Answer<v1::Project>, Problem> {
    let broker = call.everywhere()?;
    let view = broker.set_quota(&input::project(&name)?, quota).await?;
    call.decided("a quota was set", view.project.name.as_str());
    Ok(Answer(views::project(view)))
}

pub(super) async fn dead(
    call: Call,
    Named(name): Named<String>,
    Asked(page): Asked<Dead>,
) -> Result<Answer<v1::ListDeadResponse>, Problem> {
    Ok(Answer(grpc::queues::dead(&call, &input::project(&name)?, page.limit).await?))
}

pub(super) async fn requeue(
    call: Call,
    Named(name): Named<String>,
    Json(asked): Json<Requeue>,
) -> Result<Answer<v1::RequeueDeadResponse>, Problem> {
    let project = input::project(&name)?.to_string();
    let asked = v1::RequeueDeadRequest { project, ids: asked.ids, all: asked.all };
    Ok(Answer(grpc::queues::requeue(&call, asked).await?))
}
