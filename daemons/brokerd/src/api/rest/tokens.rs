//! `/api/v1/tokens` and `/api/v1/whoami`.

use axum::{
    Json as Answer,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use codering_proto::{convert::id, v1};
use serde::Deserialize;

use super::{
    input::{Json, Named},
    problem::Problem,
};
use crate::{
    api::{call::Call, views},
    auth::NewToken,
    ledger::Role,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    name: String,
    role: Role,
    #[serde(default)]
    projects: Vec<String>,
    #[serde(default)]
    ttl_seconds: u64,
}

pub(super) async fn create(call: Call, Json(asked): Json<Create>) -> Result<Response, Problem> {
    let (auth, caller) = call.tokens()?;
    let projects = asked.projects.iter().map(|name| id(name, "projects")).collect::<Result<_, _>>()?;
    let wanted = NewToken { name: asked.name, role: asked.role, projects, ttl_seconds: asked.ttl_seconds };
    let (token, secret) = auth.create_token(caller, wanted).await?;
    let answer = v1::CreateTokenResponse { token: Some(views::token(&token)), secret };
    Ok((StatusCode::CREATED, Answer(answer)).into_response())
}

pub(super) async fn list(call: Call) -> Result<Answer<v1::ListTokensResponse>, Problem> {
    let (auth, caller) = call.tokens()?;
    let tokens = auth.tokens(caller).await?.iter().map(views::token).collect();
    Ok(Answer(v1::ListTokensResponse { tokens }))
}

pub(super) async fn revoke(call: Call, Named(token): Named<String>) -> Result<Answer<v1::Token>, Problem> {
    let (auth, caller) = call.tokens()?;
    Ok(Answer(views::token(&auth.revoke_token(caller, &token).await?)))
}

pub(super) async fn whoami(call: Call) -> Result<Answer<v1::Token>, Problem> {
    Ok(Answer(views::token(call.caller()?.token())))
}
