//! Pages of jobs and tasks.

use codering_core::{Code, Error, JobId, Outcome, ids::shown, job::JobState};
use codering_proto::v1;

use crate::{
    api::{call::Call, views},
    ledger::{JobFilter, Stands, TaskFilter},
};

/// A page asked for: its size, and after what it begins.
#[derive(Debug)]
pub struct PageOf<T> {
    /// From 1 to 1000.
    pub size: u32,
    /// The last of the page before.
    pub after: Option<T>,
}

impl<T: std::str::FromStr> PageOf<T> {
    /// As asked for; 0 means 100.
    pub fn read(page: Option<v1::Page>) -> Result<Self, Error> {
        let page = page.unwrap_or_default();
        let size = if page.page_size == 0 { 100 } else { page.page_size.min(1000) };
        let after = match page.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                Error::new(Code::InvalidInput, format!("`{}` is no page's token", shown(token)))
                    .at("page_token")
            })?),
        };
        Ok(Self { size, after })
    }
}

/// Jobs, newest first.
pub async fn list_jobs(call: &Call, asked: v1::ListJobsRequest) -> Result<v1::ListJobsResponse, Error> {
    let (broker, projects) = call.listing(&asked.project)?;
    let state = match asked.state() {
        v1::JobState::Unspecified => None,
        state => Some(JobState::try_from(state)?),
    };
    let page = PageOf::<JobId>::read(asked.page)?;
    let jobs = broker.jobs(JobFilter { projects, state }, page.after.clone(), page.size).await?;
    let full = jobs.len() >= page.size as usize;
    let next_page_token = jobs.last().filter(|_| full).map(|job| job.id.to_string()).unwrap_or_default();
    Ok(v1::ListJobsResponse { jobs: jobs.into_iter().map(views::job).collect(), next_page_token })
}

/// Tasks in their order.
pub async fn list_tasks(call: &Call, asked: v1::ListTasksRequest) -> Result<v1::ListTasksResponse, Error> {
    let (broker, job) = call.job(&asked.job_id).await?;
    let stands = match asked.state() {
        v1::TaskState::Unspecified => None,
        v1::TaskState::Queued => Some(Stands::Queued),
        v1::TaskState::Running => Some(Stands::Running),
        v1::TaskState::Done => Some(Stands::Done),
    };
    let filter = TaskFilter { stands, outcomes: outcomes(asked.outcomes().collect())? };
    let page = PageOf::<u64>::read(asked.page)?;
    let tasks = broker.tasks(&job.id, filter, page.after, page.size).await?;
    // A page may end before it is full, by its bytes: only an empty one is the last.
    let next_page_token = tasks.last().map(|task| task.seq.to_string()).unwrap_or_default();
    let tasks = tasks.into_iter().map(|task| views::task(&job, task)).collect();
    Ok(v1::ListTasksResponse { tasks, next_page_token })
}

/// Outcomes to limit to.
pub fn outcomes(wire: Vec<v1::Outcome>) -> Result<Vec<Outcome>, Error> {
    wire.into_iter().map(|outcome| Outcome::try_from(outcome).map_err(|e| e.at("outcomes"))).collect()
}
