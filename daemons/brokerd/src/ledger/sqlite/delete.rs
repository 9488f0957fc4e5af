//! Removing a job, in steps that each hold the writer up only for milliseconds.

use codering_core::JobId;
use sqlx::Row;

use super::{super::Deleted, add::GOING, batch::Batch, codec::json};

/// Tasks that one step removes.
const STEP_TASKS: i64 = 500;
/// Bytes of results and specs that one step removes; at least one task goes.
const STEP_BYTES: i64 = 16 << 20;

/// Removes some of a job, which is invisible from the first step on.
pub(super) async fn step(batch: &mut Batch, id: &JobId) -> sqlx::Result<Deleted> {
    let row = sqlx::query("SELECT number, project, phase FROM jobs WHERE id = ?")
        .bind(id.as_str())
        .fetch_optional(&mut batch.connection)
        .await?;
    let Some(row) = row else { return Ok(Deleted { more: false, result_bytes: 0 }) };
    let (job, project, phase): (i64, String, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if phase != GOING {
        hide(batch, job).await?;
    }
    let (tasks, step) = next_tasks(batch, job, &project).await?;
    if !tasks.is_empty() {
        sqlx::query("DELETE FROM tasks WHERE number IN (SELECT value FROM json_each(?))")
            .bind(json(&tasks)?)
            .execute(&mut batch.connection)
            .await?;
    }
    if !step.more {
        sqlx::query("DELETE FROM jobs WHERE number = ?").bind(job).execute(&mut batch.connection).await?;
    }
    Ok(step)
}

/// Takes the job out of every read, and frees its idempotency key.
async fn hide(batch: &mut Batch, job: i64) -> sqlx::Result<()> {
    sqlx::query("UPDATE jobs SET phase = ?, idempotency_key = NULL WHERE number = ?")
        .bind(GOING)
        .bind(job)
        .execute(&mut batch.connection)
        .await?;
    sqlx::query("DELETE FROM tallies WHERE job = ?").bind(job).execute(&mut batch.connection).await.map(drop)
}

/// The tasks of one step.
async fn next_tasks(batch: &mut Batch, job: i64, project: &str) -> sqlx::Result<(Vec<i64>, Deleted)> {
    let rows = sqlx::query(
        "SELECT t.number, coalesce(r.bytes, 0), coalesce(octet_length(s.spec), 0) FROM tasks t
         LEFT JOIN results r ON r.task = t.number LEFT JOIN task_specs s ON s.task = t.number
         WHERE t.job = ? LIMIT ?",
    )
    .bind(job)
    .bind(STEP_TASKS + 1)
    .fetch_all(&mut batch.connection)
    .await?;
    let mut tasks = Vec::with_capacity(rows.len());
    let (mut bytes, mut result_bytes) = (0, 0i64);
    for row in rows.iter().take(STEP_TASKS as usize) {
        let (of_result, of_spec): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
        bytes += of_result + of_spec;
        if bytes > STEP_BYTES && !tasks.is_empty() {
            break;
        }
        result_bytes += of_result;
        tasks.push(row.try_get(0)?);
    }
    batch.weigh(project, -result_bytes);
    let more = tasks.len() < rows.len();
    Ok((tasks, Deleted { more, result_bytes: result_bytes.cast_unsigned() }))
}
