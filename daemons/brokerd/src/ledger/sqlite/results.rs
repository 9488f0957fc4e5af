//! Reading results, and marking them as published.

use codering_core::{JobId, Outcome, TaskKey, TaskResult};
use sqlx::{SqliteConnection, SqlitePool, sqlite::SqliteRow};

use super::{
    batch::Batch,
    codec::{Columns, json, outcome, outcome_code, result, select_results},
    tasks,
};
use crate::ledger::{Attempt, PAGE_BYTES};

pub(super) async fn get(readers: &SqlitePool, key: &TaskKey) -> sqlx::Result<Option<TaskResult>> {
    let row = sqlx::query(select_results!(
        "FROM jobs j CROSS JOIN tasks t ON t.job = j.number AND t.id = ?2
         CROSS JOIN results r ON r.task = t.number WHERE j.id = ?1 AND j.phase = 1"
    ))
    .bind(key.job.as_str())
    .bind(key.task.as_str())
    .fetch_optional(readers)
    .await?;
    row.map(|row| Ok(result(&row)?.1)).transpose()
}

pub(super) async fn bytes(readers: &SqlitePool, key: &TaskKey) -> sqlx::Result<u64> {
    let row = sqlx::query(
        "SELECT r.bytes FROM jobs j CROSS JOIN tasks t ON t.job = j.number AND t.id = ?2
         CROSS JOIN results r ON r.task = t.number WHERE j.id = ?1 AND j.phase = 1",
    )
    .bind(key.job.as_str())
    .bind(key.task.as_str())
    .fetch_optional(readers)
    .await?;
    row.map_or(Ok(0), |row| Columns::of(&row).unsigned())
}

/// Looks at the sizes first: a page must not hold more than [`PAGE_BYTES`] and one result.
pub(super) async fn page(
    readers: &SqlitePool,
    job: &JobId,
    outcomes: &[Outcome],
    after_seq: Option<u64>,
    limit: u32,
) -> sqlx::Result<Vec<(u64, TaskResult)>> {
    let wanted = if outcomes.is_empty() { &Outcome::ALL[..] } else { outcomes };
    let codes: Vec<i64> = wanted.iter().map(|outcome| outcome_code(*outcome)).collect();
    let mut reading = readers.begin().await?;
    let sizes = sqlx::query(
        "SELECT t.number, r.bytes FROM jobs j CROSS JOIN json_each(?2) s CROSS JOIN tasks t ON t.number IN (
            SELECT number FROM tasks WHERE job = j.number AND state = s.value AND seq > ?3 AND reduce = 0
            ORDER BY seq LIMIT ?4)
         CROSS JOIN results r ON r.task = t.number
         WHERE j.id = ?1 AND j.phase = 1 ORDER BY t.seq LIMIT ?4",
    )
    .bind(job.as_str())
    .bind(json(&codes)?)
    .bind(tasks::after(after_seq))
    .bind(limit)
    .fetch_all(&mut *reading)
    .await?;
    of_tasks(&mut reading, &within_page(&sizes)?).await
}

/// The tasks whose results fit one page; at least one.
fn within_page(sizes: &[SqliteRow]) -> sqlx::Result<Vec<i64>> {
    let mut tasks = Vec::with_capacity(sizes.len());
    let mut bytes = 0;
    for row in sizes {
        let mut columns = Columns::of(row);
        let task = columns.next()?;
        bytes += columns.unsigned()?;
        if bytes > PAGE_BYTES as u64 && !tasks.is_empty() {
            break;
        }
        tasks.push(task);
    }
    Ok(tasks)
}

/// In the order in which they are named.
async fn of_tasks(reading: &mut SqliteConnection, tasks: &[i64]) -> sqlx::Result<Vec<(u64, TaskResult)>> {
    let rows = sqlx::query(select_results!(
        "FROM json_each(?) e CROSS JOIN tasks t ON t.number = e.value
         CROSS JOIN results r ON r.task = t.number CROSS JOIN jobs j ON j.number = t.job ORDER BY e.key"
    ))
    .bind(json(&tasks)?)
    .fetch_all(reading)
    .await?;
    rows.iter().map(result).collect()
}

pub(super) async fn unpublished(readers: &SqlitePool, limit: u32) -> sqlx::Result<Vec<TaskResult>> {
    let mut reading = readers.begin().await?;
    let sizes = sqlx::query(
        "SELECT r.task, r.bytes FROM unpublished_results u CROSS JOIN results r ON r.task = u.task
         CROSS JOIN tasks t ON t.number = r.task CROSS JOIN jobs j ON j.number = t.job
         WHERE j.phase = 1 ORDER BY u.number LIMIT ?",
    )
    .bind(limit)
    .fetch_all(&mut *reading)
    .await?;
    let results = of_tasks(&mut reading, &within_page(&sizes)?).await?;
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

pub(super) async fn mark_published(batch: &mut Batch, results: &[(TaskKey, u32)]) -> sqlx::Result<()> {
    let which: Vec<_> =
        results.iter().map(|(key, attempt)| (key.job.as_str(), key.task.as_str(), attempt)).collect();
    sqlx::query(
        "DELETE FROM unpublished_results WHERE task IN (
            SELECT t.number FROM json_each(?) e CROSS JOIN jobs j ON j.id = e.value ->> 0
            CROSS JOIN tasks t ON t.job = j.number AND t.id = e.value ->> 1
            CROSS JOIN results r ON r.task = t.number AND r.attempt = e.value ->> 2)",
    )
    .bind(json(&which)?)
    .execute(&mut batch.connection)
    .await
    .map(drop)
}

pub(super) async fn unpublish(batch: &mut Batch, tasks: &[TaskKey]) -> sqlx::Result<()> {
    let which: Vec<_> = tasks.iter().map(|key| (key.job.as_str(), key.task.as_str())).collect();
    sqlx::query(
        "INSERT OR IGNORE INTO unpublished_results (task)
         SELECT r.task FROM json_each(?) e CROSS JOIN jobs j ON j.id = e.value ->> 0
         CROSS JOIN tasks t ON t.job = j.number AND t.id = e.value ->> 1
         CROSS JOIN results r ON r.task = t.number",
    )
    .bind(json(&which)?)
    .execute(&mut batch.connection)
    .await
    .map(drop)
}

pub(super) async fn attempts(readers: &SqlitePool, key: &TaskKey) -> sqlx::Result<Vec<Attempt>> {
    let rows = sqlx::query(
        "SELECT a.attempt, a.worker, a.leased_at, a.finished_at, a.outcome, a.message
         FROM jobs j CROSS JOIN tasks t ON t.job = j.number AND t.id = ?2
         CROSS JOIN attempts a ON a.task = t.number
         WHERE j.id = ?1 AND j.phase = 1 ORDER BY a.attempt",
    )
    .bind(key.job.as_str())
    .bind(key.task.as_str())
    .fetch_all(readers)
    .await?;
    rows.iter()
        .map(|row| {
            let mut columns = Columns::of(row);
            Ok(Attempt {
                attempt: columns.next()?,
                worker: columns.text()?,
                leased_at: columns.next()?,
                finished_at: columns.next()?,
                outcome: outcome(columns.next()?)?,
                message: columns.or_empty()?,
            })
        })
        .collect()
}
