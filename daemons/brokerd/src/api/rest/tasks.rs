//! `/api/v1/jobs/{job}/tasks`.

use axum::Json as Answer;
use codering_core::{Code, Error, Outcome, ids::shown};
use codering_proto::v1;
use serde::Deserialize;

use super::{
    input::{Asked, Named},
    problem::Problem,
};
use crate::api::{call::Call, grpc, views};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct List {
    state: String,
    outcome: String,
    page_size: u32,
    page_token: String,
}

pub(super) async fn list(
    call: Call,
    Named(job_id): Named<String>,
    Asked(asked): Asked<List>,
) -> Result<Answer<v1::ListTasksResponse>, Problem> {
    let state = match asked.state.as_str() {
        "" => v1::TaskState::Unspecified,
        "queued" => v1::TaskState::Queued,
        "running" => v1::TaskState::Running,
        "done" => v1::TaskState::Done,
        name => {
            let what = format!("`{}` is no task's state", shown(name));
            return Err(Error::new(Code::InvalidInput, what)
                .at("state")
                .hint("queued, running or done")
                .into());
        }
    };
    let outcomes = outcomes(&asked.outcome)?.into_iter().map(|o| v1::Outcome::from(o).into()).collect();
    let page = Some(v1::Page { page_size: asked.page_size, page_token: asked.page_token });
    let request = v1::ListTasksRequest { job_id, state: state.into(), outcomes, page };
    Ok(Answer(grpc::jobs::list_tasks(&call, request).await?))
}

pub(super) async fn get(
    call: Call,
    Named((job, task)): Named<(String, String)>,
) -> Result<Answer<v1::Task>, Problem> {
    let (broker, job, key) = call.task(&job, &task).await?;
    Ok(Answer(views::task_story(&job, broker.task(&key).await?)))
}

pub(super) async fn cancel(
    call: Call,
    Named((job, task)): Named<(String, String)>,
) -> Result<Answer<v1::Task>, Problem> {
    let (broker, job, key) = call.task(&job, &task).await?;
    Ok(Answer(views::task(&job, broker.cancel_task(&key).await?)))
}

pub(super) async fn retry(
    call: Call,
    Named((job, task)): Named<(String, String)>,
) -> Result<Answer<v1::Task>, Problem> {
    let (broker, job, key) = call.task(&job, &task).await?;
    Ok(Answer(views::task(&job, broker.retry_task(&key).await?)))
}

/// `failed,timed_out`; empty means all.
pub(super) fn outcomes(text: &str) -> Result<Vec<Outcome>, Error> {
    let read = |name: &str| {
        Outcome::parse(name).ok_or_else(|| {
            let all: Vec<_> = Outcome::ALL.iter().map(|o| o.as_str()).collect();
            Error::new(Code::InvalidInput, format!("`{}` is no outcome", shown(name)))
                .at("outcome")
                .hint(all.join(", "))
        })
    };
    text.split(',').filter(|name| !name.is_empty()).map(read).collect()
}
