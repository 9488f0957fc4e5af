//! `codering.v1.Projects`.

use codering_proto::{
    convert::id,
    v1::{self, projects_server::Projects},
};
use tonic::{Request, Response, Status, async_trait};

use super::unary;
use crate::api::views;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Service;

#[async_trait]
impl Projects for Service {
    async fn create(
        &self,
        request: Request<v1::CreateProjectRequest>,
    ) -> Result<Response<v1::Project>, Status> {
        unary(request, |call, asked| async move {
            let quota = asked.quota.unwrap_or_default().into();
            let view = call.create_project(id(&asked.name, "name")?, quota).await?;
            Ok(views::project(view))
        })
        .await
    }

    async fn list(
        &self,
        request: Request<v1::ListProjectsRequest>,
    ) -> Result<Response<v1::ListProjectsResponse>, Status> {
        unary(request, |call, _| async move {
            let (broker, only) = call.listing("")?;
            let projects = broker.projects(only.as_deref()).await?;
            Ok(v1::ListProjectsResponse { projects: projects.into_iter().map(views::project).collect() })
        })
        .await
    }

    async fn get(&self, request: Request<v1::GetProjectRequest>) -> Result<Response<v1::Project>, Status> {
        unary(request, |call, asked| async move {
            let name = id(&asked.name, "name")?;
            Ok(views::project(call.project(&name)?.project(&name).await?))
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteProjectRequest>,
    ) -> Result<Response<v1::DeleteProjectResponse>, Status> {
        unary(request, |call, asked| async move {
            let name = id(&asked.name, "name")?;
            call.delete_project(&name, asked.force).await?;
            Ok(v1::DeleteProjectResponse {})
        })
        .await
    }

    async fn set_quota(
        &self,
        request: Request<v1::SetQuotaRequest>,
    ) -> Result<Response<v1::Project>, Status> {
        unary(request, |call, asked| async move {
            let quota = asked.quota.unwrap_or_default().into();
            let view = call.everywhere()?.set_quota(&id(&asked.name, "name")?, quota).await?;
            call.decided("a quota was set", view.project.name.as_str());
            Ok(views::project(view))
        })
        .await
    }
}
