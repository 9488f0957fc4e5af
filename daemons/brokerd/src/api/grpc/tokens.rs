//! `codering.v1.Tokens`.

use codering_core::{Code, Error};
use codering_proto::{
    convert::id,
    v1::{self, tokens_server::Tokens},
};
use tonic::{Request, Response, Status, async_trait};

use super::unary;
use crate::{api::views, auth::NewToken, ledger::Role};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Service;

#[async_trait]
impl Tokens for Service {
    async fn create(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        unary(request, |call, asked| async move {
            let (auth, caller) = call.tokens()?;
            let (token, secret) = auth.create_token(caller, new_token(asked)?).await?;
            Ok(v1::CreateTokenResponse { token: Some(views::token(&token)), secret })
        })
        .await
    }

    async fn list(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        unary(request, |call, _| async move {
            let (auth, caller) = call.tokens()?;
            let tokens = auth.tokens(caller).await?;
            Ok(v1::ListTokensResponse { tokens: tokens.iter().map(views::token).collect() })
        })
        .await
    }

    async fn revoke(&self, request: Request<v1::RevokeTokenRequest>) -> Result<Response<v1::Token>, Status> {
        unary(request, |call, asked| async move {
            let (auth, caller) = call.tokens()?;
            Ok(views::token(&auth.revoke_token(caller, &asked.token_id).await?))
        })
        .await
    }

    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Result<Response<v1::Token>, Status> {
        unary(request, |call, _| async move { Ok(views::token(call.caller()?.token())) }).await
    }
}

/// The token that is asked for.
pub fn new_token(asked: v1::CreateTokenRequest) -> Result<NewToken, Error> {
    let role = match asked.role() {
        v1::Role::Admin => Role::Admin,
        v1::Role::Submitter => Role::Submitter,
        v1::Role::Viewer => Role::Viewer,
        v1::Role::Worker => Role::Worker,
        v1::Role::Unspecified => {
            return Err(Error::new(
                Code::InvalidInput,
                "a token has a role: admin, submitter, viewer or worker",
            )
            .at("role"));
        }
    };
    let projects = asked.projects.iter().map(|name| id(name, "projects")).collect::<Result<_, _>>()?;
    Ok(NewToken { name: asked.name, role, projects, ttl_seconds: asked.ttl_seconds })
}
