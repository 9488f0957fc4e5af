//! New tasks.

use std::collections::HashSet;

use codering_core::{JobId, TaskId, task::State};
use sqlx::Row;

use super::{
    batch::Batch,
    codec::{json, or_null, spec_or_null, state_code},
};
use crate::{
    bulk::{Bulk, MOST_ROWS},
    ledger::Task,
};

static TASKS: Bulk = Bulk::new(
    "INSERT INTO tasks (number, job, id, seq, reduce, commit_id, state, not_before, attempt, user_failures,
        infrastructure_failures, cancel_requested, ready_at, version, lease_token, lease_worker, leased_at,
        lease_deadline) SELECT v.* FROM",
    18,
    "WHERE v.column1 IS NOT NULL",
);

static SPECS: Bulk =
    Bulk::new("INSERT INTO task_specs (task, spec) SELECT v.* FROM", 2, "WHERE v.column1 IS NOT NULL");

/// What became of tasks that were to be added.
pub(super) enum Added {
    /// They are there.
    All,
    /// None was added: this one was there already.
    There(TaskId),
    /// None was added: there is no such job to add tasks to.
    NoJob,
}

/// The phase of a job whose tasks are still added.
pub(super) const BEGUN: i64 = 0;
/// The phase of a visible job.
pub(super) const COMMITTED: i64 = 1;
/// The phase of a job that is being deleted.
pub(super) const GOING: i64 = 2;

/// Adds `tasks` to a job in `phase`, or none of them.
pub(super) async fn add(batch: &mut Batch, job: &JobId, phase: i64, tasks: &[Task]) -> sqlx::Result<Added> {
    let row = sqlx::query("SELECT number FROM jobs WHERE id = ? AND phase = ?")
        .bind(job.as_str())
        .bind(phase)
        .fetch_optional(&mut batch.connection)
        .await?;
    let Some(row) = row else { return Ok(Added::NoJob) };
    let number = row.try_get(0)?;
    if let Some(there) = already_there(batch, number, tasks).await? {
        return Ok(Added::There(there));
    }
    let mut first = batch.task_numbers(tasks.len()).await?;
    for some in tasks.chunks(MOST_ROWS) {
        insert(batch, number, first, some).await?;
        insert_specs(batch, first, some).await?;
        first += some.len() as i64;
    }
    Ok(Added::All)
}

async fn already_there(batch: &mut Batch, job: i64, tasks: &[Task]) -> sqlx::Result<Option<TaskId>> {
    let mut ids = HashSet::with_capacity(tasks.len());
    if let Some(twice) = tasks.iter().find(|task| !ids.insert(task.key.task.as_str())) {
        return Ok(Some(twice.key.task.clone()));
    }
    let ids: Vec<&str> = tasks.iter().map(|task| task.key.task.as_str()).collect();
    let row = sqlx::query(
        "SELECT t.id FROM json_each(?) e CROSS JOIN tasks t ON t.job = ? AND t.id = e.value LIMIT 1",
    )
    .bind(json(&ids)?)
    .bind(job)
    .fetch_optional(&mut batch.connection)
    .await?;
    row.map(|row| row.try_get::<&str, _>(0)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error))))
        .transpose()
}

async fn insert(batch: &mut Batch, job: i64, first: i64, tasks: &[Task]) -> sqlx::Result<()> {
    let mut query = TASKS.query(tasks.len());
    for (number, task) in (first..).zip(tasks) {
        let progress = &task.progress;
        let not_before = match progress.state {
            State::Ready { not_before, .. } => not_before,
            State::Leased(_) | State::Done(_) => 0,
        };
        let lease = progress.lease();
        let state = state_code(&progress.state);
        query = query
            .bind(number)
            .bind(job)
            .bind(task.key.task.as_str())
            .bind(task.seq.cast_signed())
            .bind(task.reduce)
            .bind(or_null(&task.commit))
            .bind(state)
            .bind(not_before)
            .bind(progress.attempt)
            .bind(progress.user_failures)
            .bind(progress.infrastructure_failures)
            .bind(progress.cancel_requested)
            .bind(progress.ready_at)
            .bind(progress.version.cast_signed())
            .bind(lease.map(|lease| lease.token.as_str()))
            .bind(lease.map(|lease| lease.worker.as_str()))
            .bind(lease.map(|lease| lease.leased_at))
            .bind(lease.map(|lease| lease.deadline));
        batch.count(job, task.reduce, state, 1);
        batch.count_retried(job, task.reduce, i64::from(progress.attempt.saturating_sub(1)));
    }
    query.execute(&mut batch.connection).await.map(drop)
}

async fn insert_specs(batch: &mut Batch, first: i64, tasks: &[Task]) -> sqlx::Result<()> {
    let mut specs = Vec::new();
    for (number, task) in (first..).zip(tasks) {
        specs.extend(spec_or_null(&task.spec)?.map(|spec| (number, spec)));
    }
    if specs.is_empty() {
        return Ok(());
    }
    let mut query = SPECS.query(specs.len());
    for (number, spec) in specs {
        query = query.bind(number).bind(spec);
    }
    query.execute(&mut batch.connection).await.map(drop)
}

/// What tasks weigh for the writer's batch.
pub(super) fn weight(tasks: &[Task]) -> usize {
    tasks.iter().map(|task| 1 + task.spec.stdin.len() / 65_536).sum()
}
