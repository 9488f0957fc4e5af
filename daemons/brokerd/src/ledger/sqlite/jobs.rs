//! Jobs.

use codering_core::{JobId, ProjectName, job::TaskCounts, time::Millis};
use sqlx::{Row, SqlitePool, sqlite::SqliteRow};

use super::{
    add::{BEGUN, COMMITTED},
    batch::Batch,
    codec::{Columns, job, json, or_null, select_jobs},
};
use crate::ledger::{Begun, Build, Job, JobFilter};

/// Builds that are kept of one job, the newest; each has a log of up to 256 KiB.
const MOST_BUILDS: i64 = 100;

pub(super) async fn begin(batch: &mut Batch, job: &Job, key: Option<&str>) -> sqlx::Result<Begun> {
    let holder = sqlx::query("SELECT id, phase FROM jobs WHERE project = ? AND idempotency_key = ?")
        .bind(job.spec.project.as_str())
        .bind(key)
        .fetch_optional(&mut batch.connection)
        .await?;
    if let Some(row) = holder {
        let mut columns = Columns::of(&row);
        let id = columns.text()?;
        let committed = columns.next::<i64>()? == COMMITTED;
        return Ok(if committed { Begun::Existing(id) } else { Begun::Busy });
    }
    let inserted = sqlx::query(
        "INSERT INTO jobs (id, project, phase, idempotency_key, spec, state, finished, counts, paused,
            cancelled, open, commit_id, reduce, reduce_runs, reduced_run, submitted_by, created_at,
            started_at, finished_at, message) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(job.id.as_str())
    .bind(job.spec.project.as_str())
    .bind(BEGUN)
    .bind(key)
    .bind(json(&job.spec)?)
    .bind(job.state.as_str())
    .bind(job.finished_at != 0)
    .bind(json(&job.counts)?)
    .bind(job.paused)
    .bind(job.cancelled)
    .bind(job.open)
    .bind(or_null(&job.commit))
    .bind(job.reduce.as_ref().map(json).transpose()?)
    .bind(job.reduce_runs)
    .bind(job.reduced_run)
    .bind(&job.submitted_by)
    .bind(job.created_at)
    .bind(job.started_at)
    .bind(job.finished_at)
    .bind(or_null(&job.message))
    .execute(&mut batch.connection)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(Begun::Busy);
    }
    sqlx::query("INSERT INTO tallies (job, reduce) VALUES (?1, 0), (?1, 1)")
        .bind(inserted.last_insert_rowid())
        .execute(&mut batch.connection)
        .await?;
    Ok(Begun::New)
}

/// `false`: there is no such job.
pub(super) async fn commit(batch: &mut Batch, id: &JobId) -> sqlx::Result<bool> {
    let done = sqlx::query("UPDATE jobs SET phase = ? WHERE id = ? AND phase IN (?, ?)")
        .bind(COMMITTED)
        .bind(id.as_str())
        .bind(BEGUN)
        .bind(COMMITTED)
        .execute(&mut batch.connection)
        .await?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn update(batch: &mut Batch, job: &Job) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE jobs SET spec = ?, state = ?, finished = ?, counts = ?, paused = ?, cancelled = ?, open = ?,
            commit_id = ?, reduce = ?, reduce_runs = ?, reduced_run = ?, submitted_by = ?, created_at = ?, started_at = ?,
            finished_at = ?, message = ? WHERE id = ?",
    )
    .bind(json(&job.spec)?)
    .bind(job.state.as_str())
    .bind(job.finished_at != 0)
    .bind(json(&job.counts)?)
    .bind(job.paused)
    .bind(job.cancelled)
    .bind(job.open)
    .bind(or_null(&job.commit))
    .bind(job.reduce.as_ref().map(json).transpose()?)
    .bind(job.reduce_runs)
    .bind(job.reduced_run)
    .bind(&job.submitted_by)
    .bind(job.created_at)
    .bind(job.started_at)
    .bind(job.finished_at)
    .bind(or_null(&job.message))
    .bind(job.id.as_str())
    .execute(&mut batch.connection)
    .await
    .map(drop)
}

/// The jobs that a crash left begun, or half deleted.
pub(super) async fn invisible(readers: &SqlitePool) -> sqlx::Result<Vec<JobId>> {
    let rows = sqlx::query("SELECT id FROM jobs WHERE phase <> 1").fetch_all(readers).await?;
    rows.iter().map(|row| Columns::of(row).text()).collect()
}

pub(super) async fn get(readers: &SqlitePool, id: &JobId) -> sqlx::Result<Option<Job>> {
    let row = sqlx::query(select_jobs!("WHERE id = ? AND phase = 1"))
        .bind(id.as_str())
        .fetch_optional(readers)
        .await?;
    row.as_ref().map(job).transpose()
}

fn all(rows: &[SqliteRow]) -> sqlx::Result<Vec<Job>> {
    rows.iter().map(job).collect()
}

pub(super) async fn by_prefix(
    readers: &SqlitePool,
    prefix: &str,
    projects: Option<&[ProjectName]>,
    limit: u32,
) -> sqlx::Result<Vec<Job>> {
    // No character sorts after U+10FFFF.
    let rows = sqlx::query(select_jobs!(
        "WHERE id >= ?1 AND id < ?1 || char(0x10FFFF) AND phase = 1
         AND (?2 IS NULL OR project IN (SELECT value FROM json_each(?2))) ORDER BY id LIMIT ?3"
    ))
    .bind(prefix)
    .bind(projects.map(|of| json(&of)).transpose()?)
    .bind(limit)
    .fetch_all(readers)
    .await?;
    all(&rows)
}

pub(super) async fn list(
    readers: &SqlitePool,
    filter: &JobFilter,
    after: Option<&JobId>,
    limit: u32,
) -> sqlx::Result<Vec<Job>> {
    let projects = filter.projects.as_ref().map(json).transpose()?;
    let state = filter.state.map(|state| state.as_str());
    let query = sqlx::query(select_jobs!(
        "WHERE phase = 1 AND (?1 IS NULL OR project IN (SELECT value FROM json_each(?1)))
         AND (?2 IS NULL OR state = ?2) AND (?3 IS NULL OR id < ?3) ORDER BY id DESC LIMIT ?4"
    ));
    let rows = query
        .bind(projects)
        .bind(state)
        .bind(after.map(JobId::as_str))
        .bind(limit)
        .fetch_all(readers)
        .await?;
    all(&rows)
}

pub(super) async fn unfinished(readers: &SqlitePool) -> sqlx::Result<Vec<JobId>> {
    let rows =
        sqlx::query("SELECT id FROM jobs WHERE phase = 1 AND finished = 0 ORDER BY created_at, number")
            .fetch_all(readers)
            .await?;
    rows.iter().map(|row| Columns::of(row).text()).collect()
}

/// Oldest first.
pub(super) async fn expired(
    readers: &SqlitePool,
    before: Millis,
    keep: u64,
    limit: u32,
) -> sqlx::Result<Vec<JobId>> {
    let mut reading = readers.begin().await?;
    let finished: i64 = sqlx::query("SELECT count(*) FROM jobs WHERE phase = 1 AND finished = 1")
        .fetch_one(&mut *reading)
        .await?
        .try_get(0)?;
    let beyond = finished.cast_unsigned().saturating_sub(keep).min(limit.into());
    let rows = sqlx::query(
        "SELECT id, finished_at FROM jobs WHERE phase = 1 AND finished = 1
         AND number NOT IN (SELECT t.job FROM unpublished_results u JOIN tasks t ON t.number = u.task)
         ORDER BY finished_at, number LIMIT ?",
    )
    .bind(limit)
    .fetch_all(&mut *reading)
    .await?;
    let mut expired = Vec::new();
    for (place, row) in (0u64..).zip(&rows) {
        let mut columns = Columns::of(row);
        let id = columns.text()?;
        if place >= beyond && columns.next::<Millis>()? >= before {
            break;
        }
        expired.push(id);
    }
    Ok(expired)
}

pub(super) async fn counts(readers: &SqlitePool, id: &JobId) -> sqlx::Result<TaskCounts> {
    let row = sqlx::query(
        "SELECT unpublished + published, leased, succeeded, failed, cancelled, retried FROM tallies
         WHERE job = (SELECT number FROM jobs WHERE id = ? AND phase = 1) AND reduce = 0",
    )
    .bind(id.as_str())
    .fetch_optional(readers)
    .await?;
    let Some(row) = row else { return Ok(TaskCounts::default()) };
    let mut columns = Columns::of(&row);
    let mut counts = TaskCounts {
        total: 0,
        queued: columns.unsigned()?,
        running: columns.unsigned()?,
        succeeded: columns.unsigned()?,
        failed: columns.unsigned()?,
        cancelled: columns.unsigned()?,
        retried: columns.unsigned()?,
    };
    counts.total = counts.queued + counts.running + counts.done();
    Ok(counts)
}

/// Jobs of a project whose state is not final.
pub(super) async fn unfinished_count(readers: &SqlitePool, project: &ProjectName) -> sqlx::Result<u64> {
    let row = sqlx::query("SELECT count(*) FROM jobs WHERE project = ? AND phase = 1 AND finished = 0")
        .bind(project.as_str())
        .fetch_one(readers)
        .await?;
    Columns::of(&row).unsigned()
}

/// A build for a job that is gone is let go.
pub(super) async fn put_build(batch: &mut Batch, id: &JobId, build: &Build) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO builds (job, worker, image, started_at, build)
         SELECT number, ?2, ?3, ?4, ?5 FROM jobs WHERE id = ?1 AND phase < 2
         ON CONFLICT DO UPDATE SET started_at = excluded.started_at, build = excluded.build",
    )
    .bind(id.as_str())
    .bind(&build.worker)
    .bind(&build.image)
    .bind(build.started_at)
    .bind(json(build)?)
    .execute(&mut batch.connection)
    .await?;
    sqlx::query(
        "DELETE FROM builds WHERE job = (SELECT number FROM jobs WHERE id = ?1) AND rowid NOT IN (
            SELECT rowid FROM builds WHERE job = (SELECT number FROM jobs WHERE id = ?1)
            ORDER BY started_at DESC LIMIT ?2)",
    )
    .bind(id.as_str())
    .bind(MOST_BUILDS)
    .execute(&mut batch.connection)
    .await
    .map(drop)
}

pub(super) async fn builds(readers: &SqlitePool, id: &JobId) -> sqlx::Result<Vec<Build>> {
    let rows = sqlx::query(
        "SELECT build FROM builds WHERE job = (SELECT number FROM jobs WHERE id = ? AND phase = 1)
         ORDER BY started_at, rowid",
    )
    .bind(id.as_str())
    .fetch_all(readers)
    .await?;
    rows.iter().map(|row| Columns::of(row).json()).collect()
}
