//! Whether a ledger is whole: what SQLite says of the file, and what must hold between its rows.

use sqlx::{Connection, Row, SqliteConnection};

use crate::ledger::Report;

/// Lines of one question; a damage that is everywhere need not be told row by row.
const EACH: i64 = 20;

/// What must find nothing: `(the sentence, the query for who it is about)`.
const QUESTIONS: &[(&str, &str)] = &[
    (
        "{} is done and has no result",
        "SELECT j.id || '/' || t.id FROM tasks t JOIN jobs j ON j.number = t.job
         LEFT JOIN results r ON r.task = t.number WHERE t.state >= 3 AND r.task IS NULL",
    ),
    (
        "{} has a result and is not done",
        "SELECT j.id || '/' || t.id FROM results r JOIN tasks t ON t.number = r.task
         JOIN jobs j ON j.number = t.job WHERE t.state < 3",
    ),
    (
        "{} has the result of another outcome",
        "SELECT j.id || '/' || t.id FROM results r JOIN tasks t ON t.number = r.task
         JOIN jobs j ON j.number = t.job WHERE t.state >= 3 AND r.outcome <> t.state",
    ),
    (
        "the result of {} does not have the bytes that are recorded of it",
        "SELECT j.id || '/' || t.id FROM results r JOIN tasks t ON t.number = r.task JOIN jobs j ON j.number = t.job
         WHERE r.bytes <> coalesce(octet_length(r.stdout), 0) + coalesce(octet_length(r.stderr), 0)",
    ),
    (
        "{} is leased to nobody",
        "SELECT j.id || '/' || t.id FROM tasks t JOIN jobs j ON j.number = t.job
         WHERE t.state = 2 AND (t.lease_token IS NULL OR t.lease_worker IS NULL)",
    ),
    (
        "{} has a lease and is not leased",
        "SELECT j.id || '/' || t.id FROM tasks t JOIN jobs j ON j.number = t.job
         WHERE t.state <> 2 AND t.lease_token IS NOT NULL",
    ),
    (
        "{} has an attempt beyond its last",
        "SELECT DISTINCT j.id || '/' || t.id FROM attempts a JOIN tasks t ON t.number = a.task
         JOIN jobs j ON j.number = t.job WHERE a.attempt > t.attempt",
    ),
    (
        "the counters of job {} are not those of its tasks",
        "SELECT DISTINCT j.id FROM jobs j JOIN (SELECT 0 AS reduce UNION ALL SELECT 1) k
         LEFT JOIN tallies y ON y.job = j.number AND y.reduce = k.reduce
         LEFT JOIN (SELECT job, reduce, sum(state = 0) AS unpublished, sum(state = 1) AS published,
                sum(state = 2) AS leased, sum(state = 3) AS succeeded, sum(state > 3 AND state <> 8) AS failed,
                sum(state = 8) AS cancelled FROM tasks GROUP BY job, reduce) t
            ON t.job = j.number AND t.reduce = k.reduce
         WHERE j.phase = 1 AND (coalesce(y.unpublished, 0) <> coalesce(t.unpublished, 0)
            OR coalesce(y.published, 0) <> coalesce(t.published, 0)
            OR coalesce(y.leased, 0) <> coalesce(t.leased, 0)
            OR coalesce(y.succeeded, 0) <> coalesce(t.succeeded, 0)
            OR coalesce(y.failed, 0) <> coalesce(t.failed, 0)
            OR coalesce(y.cancelled, 0) <> coalesce(t.cancelled, 0))",
    ),
    (
        "the bytes counted for project {} are not those of its results",
        "SELECT p.name FROM (SELECT project AS name FROM holdings UNION SELECT project FROM jobs) p
         LEFT JOIN holdings h ON h.project = p.name
         LEFT JOIN (SELECT j.project, sum(r.bytes) AS bytes FROM results r JOIN tasks t ON t.number = r.task
                JOIN jobs j ON j.number = t.job GROUP BY j.project) r ON r.project = p.name
         WHERE coalesce(h.result_bytes, 0) <> coalesce(r.bytes, 0)",
    ),
    (
        "job {} belongs to no project",
        "SELECT id FROM jobs WHERE phase = 1 AND project NOT IN (SELECT name FROM projects)",
    ),
    (
        "{} cannot be read: it is no JSON",
        "SELECT 'job ' || id FROM jobs WHERE NOT json_valid(spec)
         UNION ALL SELECT 'project ' || name FROM projects WHERE NOT json_valid(quota)
         UNION ALL SELECT 'task number ' || task FROM task_specs WHERE NOT json_valid(spec)",
    ),
    ("a row of {} belongs to nothing", "SELECT DISTINCT \"table\" FROM pragma_foreign_key_check"),
];

/// Reads all of it at one moment. What cannot be read is a problem like any other.
pub(super) async fn audit(connection: &mut SqliteConnection) -> sqlx::Result<Report> {
    let mut moment = connection.begin().await?;
    let mut report = Report::default();
    match sqlx::query_scalar::<_, String>("PRAGMA integrity_check(20)").fetch_all(&mut *moment).await {
        Ok(lines) => report.problems.extend(lines.into_iter().filter(|line| line != "ok")),
        Err(error) => report.problems.push(format!("it cannot be read: {error}")),
    }
    for (sentence, question) in QUESTIONS {
        let question = format!("{question} LIMIT {EACH}");
        match sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(question)).fetch_all(&mut *moment).await {
            Ok(found) => report.problems.extend(found.iter().map(|who| sentence.replace("{}", who))),
            Err(error) => report.problems.push(format!("it cannot be read: {error}")),
        }
    }
    // Of a damaged file no figure is worth an error.
    let _ = figures(&mut moment, &mut report).await;
    moment.rollback().await?;
    Ok(report)
}

async fn figures(connection: &mut SqliteConnection, report: &mut Report) -> sqlx::Result<()> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM jobs WHERE phase = 1), (SELECT count(*) FROM tasks),
            (SELECT count(*) FROM results), (SELECT coalesce(max(version), 0) FROM _sqlx_migrations),
            max(coalesce((SELECT max(created_at) FROM jobs), 0), coalesce((SELECT max(finished_at) FROM jobs), 0),
                coalesce((SELECT max(finished_at) FROM results), 0), coalesce((SELECT max(leased_at) FROM tasks), 0),
                coalesce((SELECT max(ready_at) FROM tasks), 0), coalesce((SELECT max(created_at) FROM tokens), 0),
                coalesce((SELECT max(last_seen_at) FROM workers), 0),
                coalesce((SELECT max(created_at) FROM projects), 0))",
    )
    .fetch_one(connection)
    .await?;
    let count = |column| row.try_get::<i64, _>(column).map(|n| u64::try_from(n).unwrap_or(0));
    (report.jobs, report.tasks, report.results) = (count(0)?, count(1)?, count(2)?);
    (report.schema, report.newest_at) = (count(3)?, row.try_get(4)?);
    Ok(())
}
