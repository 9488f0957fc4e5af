//! Reading tasks. What a read costs follows from what it returns and from how many jobs have work,
//! never from how many tasks there are: see the partial indexes of the migration.

use std::collections::HashSet;

use codering_core::{JobId, ProjectName, TaskKey, task::LONGEST_PAUSE_MS, time::Millis};
use futures::TryStreamExt;
use sqlx::{Sqlite, SqliteConnection, SqlitePool, query::Query, sqlite::SqliteArguments};

use super::codec::{
    Columns, LEASED, PUBLISHED, STATES, SUCCEEDED, UNPUBLISHED, json, outcome_code, select_tasks, task,
};
use crate::{
    bulk::Bulk,
    ledger::{PAGE_BYTES, Stands, Task, TaskFilter, Usage},
};

pub(super) async fn get(readers: &SqlitePool, key: &TaskKey) -> sqlx::Result<Option<Task>> {
    let row = sqlx::query(select_tasks!(
        "FROM jobs j CROSS JOIN tasks t ON t.job = j.number AND t.id = ?2 WHERE j.id = ?1 AND j.phase = 1"
    ))
    .bind(key.job.as_str())
    .bind(key.task.as_str())
    .fetch_optional(readers)
    .await?;
    row.as_ref().map(task).transpose()
}

static OF_KEYS: Bulk = Bulk::new(
    select_tasks!("FROM"),
    2,
    "CROSS JOIN jobs j ON j.id = v.column1 AND j.phase = 1
     CROSS JOIN tasks t ON t.job = j.number AND t.id = v.column2",
);

pub(super) async fn of_keys(readers: &SqlitePool, keys: &[TaskKey]) -> sqlx::Result<Vec<Task>> {
    let mut query = OF_KEYS.query(keys.len());
    for key in keys {
        query = query.bind(key.job.as_str()).bind(key.task.as_str());
    }
    let rows = query.fetch_all(readers).await?;
    rows.iter().map(task).collect()
}

/// The codes that a filter lets through.
fn codes(filter: &TaskFilter) -> Vec<i64> {
    let stands = |code: &i64| match filter.stands {
        None => true,
        Some(Stands::Queued) => [UNPUBLISHED, PUBLISHED].contains(code),
        Some(Stands::Running) => *code == LEASED,
        Some(Stands::Done) => *code >= SUCCEEDED,
    };
    let ended = |code: &i64| {
        filter.outcomes.is_empty() || filter.outcomes.iter().any(|outcome| outcome_code(*outcome) == *code)
    };
    STATES.filter(|code| stands(code) && ended(code)).collect()
}

/// Each state has its own ordered run in the index; the page is the merge of their heads.
pub(super) async fn page(
    readers: &SqlitePool,
    job: &JobId,
    filter: &TaskFilter,
    after_seq: Option<u64>,
    limit: u32,
) -> sqlx::Result<Vec<Task>> {
    let query = sqlx::query(select_tasks!(
        "FROM jobs j CROSS JOIN json_each(?2) s CROSS JOIN tasks t ON t.number IN (
            SELECT number FROM tasks WHERE job = j.number AND state = s.value AND seq > ?3 AND reduce = 0
            ORDER BY seq LIMIT ?4)
         WHERE j.id = ?1 AND j.phase = 1 ORDER BY t.seq LIMIT ?4"
    ));
    let query = query.bind(job.as_str()).bind(json(&codes(filter))?).bind(after(after_seq)).bind(limit);
    let mut tasks = Vec::new();
    bounded(&mut *readers.acquire().await?, query, &mut tasks).await?;
    Ok(tasks)
}

/// What `seq` must be greater than.
pub(super) fn after(seq: Option<u64>) -> i64 {
    seq.map_or(-1, |seq| i64::try_from(seq).unwrap_or(i64::MAX))
}

/// Reads tasks until they end or their specs reach [`PAGE_BYTES`]; `true` when it was the bytes.
async fn bounded(
    reading: &mut SqliteConnection,
    query: Query<'_, Sqlite, SqliteArguments>,
    tasks: &mut Vec<Task>,
) -> sqlx::Result<bool> {
    let mut bytes: usize = tasks.iter().map(weight).sum();
    let mut rows = query.fetch(reading);
    while bytes < PAGE_BYTES {
        let Some(row) = rows.try_next().await? else { return Ok(false) };
        let task = task(&row)?;
        bytes += weight(&task);
        tasks.push(task);
    }
    Ok(true)
}

fn weight(task: &Task) -> usize {
    let env: usize = task.spec.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    let command =
        task.spec.command.as_ref().map_or(0, |command| command.argv().iter().map(String::len).sum());
    size_of::<Task>() + task.spec.stdin.len() + env + command
}

/// A job with tasks to publish, and the order of its first one.
struct Head {
    first: (Millis, Millis),
    job: i64,
    /// Tasks of up to this time have come due.
    until: Millis,
}

pub(super) async fn unpublished(
    readers: &SqlitePool,
    project: &ProjectName,
    now: Millis,
    limit: u32,
    over: &HashSet<JobId>,
) -> sqlx::Result<Vec<Task>> {
    let mut reading = readers.begin().await?;
    let heads = heads(&mut reading, project, now, over).await?;
    let limit = limit as usize;
    let mut tasks: Vec<Task> = Vec::new();
    for head in heads {
        // What the jobs so far have is older than all that the others have.
        if tasks.len() >= limit && due(&tasks[limit - 1]) < head.first {
            break;
        }
        let query = sqlx::query(select_tasks!(
            "FROM tasks t CROSS JOIN jobs j ON j.number = t.job
             WHERE t.job = ? AND t.state = 0 AND t.not_before <= ?
             ORDER BY t.not_before, t.ready_at, t.seq LIMIT ?"
        ));
        let query = query.bind(head.job).bind(head.until).bind(limit as i64);
        let full = bounded(&mut reading, query, &mut tasks).await?;
        tasks.sort_by(|a, b| (due(a), &a.key.job, a.seq).cmp(&(due(b), &b.key.job, b.seq)));
        tasks.truncate(limit);
        if full {
            break;
        }
    }
    Ok(tasks)
}

fn due(task: &Task) -> (Millis, Millis) {
    let not_before = match task.progress.state {
        codering_core::task::State::Ready { not_before, .. } => not_before,
        _ => 0,
    };
    (not_before, task.progress.ready_at)
}

async fn heads(
    reading: &mut SqliteConnection,
    project: &ProjectName,
    now: Millis,
    over: &HashSet<JobId>,
) -> sqlx::Result<Vec<Head>> {
    let rows = sqlx::query(
        "WITH live AS MATERIALIZED (
            SELECT DISTINCT l.job FROM tallies l CROSS JOIN jobs j ON j.number = l.job
            WHERE l.unpublished + l.published + l.leased > 0 AND l.unpublished > 0
                AND j.project = ?1 AND j.phase = 1 AND j.paused = 0)
         SELECT job,
            (SELECT not_before FROM tasks WHERE job = live.job AND state = 0
                ORDER BY not_before, ready_at, seq LIMIT 1) AS not_before,
            (SELECT ready_at FROM tasks WHERE job = live.job AND state = 0
                ORDER BY not_before, ready_at, seq LIMIT 1) AS ready_at,
            (SELECT id FROM jobs WHERE number = live.job) AS id
         FROM live ORDER BY 2, 3, 1",
    )
    .bind(project.as_str())
    .fetch_all(reading)
    .await?;
    let mut heads = Vec::with_capacity(rows.len());
    for row in &rows {
        let mut columns = Columns::of(row);
        let job = columns.next()?;
        let first: (Millis, Millis) = (columns.next()?, columns.next()?);
        let id: &str = columns.next()?;
        if over.iter().any(|over| over.as_str() == id) {
            continue;
        }
        // No pause is that long: the clock was set back since, and so for all that the job has.
        let strange = first.0 > now.saturating_add(LONGEST_PAUSE_MS);
        if strange || first.0 <= now {
            heads.push(Head { first, job, until: if strange { Millis::MAX } else { now } });
        }
    }
    Ok(heads)
}

pub(super) async fn projects_with_unpublished(
    readers: &SqlitePool,
) -> sqlx::Result<Vec<(ProjectName, Millis)>> {
    let rows = sqlx::query(
        "SELECT j.project, min((SELECT min(not_before) FROM tasks WHERE job = j.number AND state = 0))
         FROM tallies l CROSS JOIN jobs j ON j.number = l.job
         WHERE l.unpublished + l.published + l.leased > 0 AND l.unpublished > 0
            AND j.phase = 1 AND j.paused = 0
         GROUP BY j.project ORDER BY j.project",
    )
    .fetch_all(readers)
    .await?;
    rows.iter()
        .map(|row| {
            let mut columns = Columns::of(row);
            Ok((columns.text()?, columns.next()?))
        })
        .collect()
}

pub(super) async fn published(
    readers: &SqlitePool,
    project: &ProjectName,
    after: Option<&TaskKey>,
    limit: u32,
) -> sqlx::Result<Vec<Task>> {
    let mut reading = readers.begin().await?;
    let rows = sqlx::query(
        "SELECT DISTINCT j.number, j.id FROM tallies l CROSS JOIN jobs j ON j.number = l.job
         WHERE l.unpublished + l.published + l.leased > 0 AND l.published > 0
            AND j.project = ?1 AND j.phase = 1 AND j.id >= ?2 ORDER BY j.id",
    )
    .bind(project.as_str())
    .bind(after.map_or("", |key| key.job.as_str()))
    .fetch_all(&mut *reading)
    .await?;
    let mut tasks = Vec::new();
    for row in &rows {
        let mut columns = Columns::of(row);
        let (number, id): (i64, &str) = (columns.next()?, columns.next()?);
        let after = after.filter(|key| key.job.as_str() == id).map_or("", |key| key.task.as_str());
        let query = sqlx::query(select_tasks!(
            "FROM tasks t CROSS JOIN jobs j ON j.number = t.job
             WHERE t.job = ? AND t.state = 1 AND t.id > ? ORDER BY t.id LIMIT ?"
        ));
        let room = i64::from(limit) - tasks.len() as i64;
        let query = query.bind(number).bind(after).bind(room);
        if bounded(&mut reading, query, &mut tasks).await? || tasks.len() >= limit as usize {
            break;
        }
    }
    Ok(tasks)
}

pub(super) async fn leased(readers: &SqlitePool) -> sqlx::Result<Vec<Task>> {
    let query = sqlx::query(select_tasks!(
        "FROM tallies l CROSS JOIN jobs j ON j.number = l.job
         CROSS JOIN tasks t ON t.job = j.number AND t.state = 2 AND t.reduce = l.reduce
         WHERE l.unpublished + l.published + l.leased > 0 AND l.leased > 0 AND j.phase = 1
         ORDER BY j.id, t.seq"
    ));
    let rows = query.fetch_all(readers).await?;
    rows.iter().map(task).collect()
}

pub(super) async fn longest_published(
    readers: &SqlitePool,
    project: &ProjectName,
    limit: u32,
) -> sqlx::Result<Vec<Task>> {
    let mut reading = readers.begin().await?;
    let jobs: Vec<i64> = sqlx::query_scalar(
        "SELECT DISTINCT j.number FROM tallies l CROSS JOIN jobs j ON j.number = l.job
         WHERE l.unpublished + l.published + l.leased > 0 AND l.published > 0
            AND j.project = ? AND j.phase = 1 ORDER BY j.number",
    )
    .bind(project.as_str())
    .fetch_all(&mut *reading)
    .await?;
    let mut tasks = Vec::new();
    for job in jobs {
        let query = sqlx::query(select_tasks!(
            "FROM tasks t CROSS JOIN jobs j ON j.number = t.job
             WHERE t.job = ? AND t.state = 1 ORDER BY t.seq LIMIT ?"
        ));
        let query = query.bind(job).bind(i64::from(limit) - tasks.len() as i64);
        if bounded(&mut reading, query, &mut tasks).await? || tasks.len() >= limit as usize {
            break;
        }
    }
    Ok(tasks)
}

pub(super) async fn newest_reduce(readers: &SqlitePool, job: &JobId) -> sqlx::Result<Option<Task>> {
    // Ids that the broker makes start with `~`, and no other character may sort after it.
    let query = sqlx::query(select_tasks!(
        "FROM jobs j CROSS JOIN tasks t ON t.job = j.number AND t.id >= '~' AND t.reduce = 1
         WHERE j.id = ? AND j.phase = 1 ORDER BY t.number DESC LIMIT 1"
    ));
    let row = query.bind(job.as_str()).fetch_optional(readers).await?;
    row.as_ref().map(task).transpose()
}

/// Queued, of those published, and running tasks of a project.
pub(super) async fn live(readers: &SqlitePool, project: &ProjectName) -> sqlx::Result<(u64, u64, u64)> {
    let row = sqlx::query(
        "SELECT coalesce(sum(l.unpublished + l.published), 0), coalesce(sum(l.published), 0),
            coalesce(sum(l.leased), 0) FROM tallies l CROSS JOIN jobs j ON j.number = l.job
         WHERE l.unpublished + l.published + l.leased > 0 AND j.project = ? AND j.phase = 1",
    )
    .bind(project.as_str())
    .fetch_one(readers)
    .await?;
    let mut columns = Columns::of(&row);
    Ok((columns.unsigned()?, columns.unsigned()?, columns.unsigned()?))
}

pub(super) async fn usage(readers: &SqlitePool, project: &ProjectName) -> sqlx::Result<Usage> {
    let (queued_tasks, _, running_tasks) = live(readers, project).await?;
    let row = sqlx::query("SELECT result_bytes FROM holdings WHERE project = ?")
        .bind(project.as_str())
        .fetch_optional(readers)
        .await?;
    Ok(Usage {
        queued_tasks,
        running_tasks,
        result_bytes: row.map_or(Ok(0), |row| Columns::of(&row).unsigned())?,
        unfinished_jobs: super::jobs::unfinished_count(readers, project).await?,
    })
}
