//! One job of the history.

use codering_core::{
    spec::without_password,
    time::{Millis, rfc3339},
};
use codering_proto::{convert, v1::Job};
use serde::{Serialize, Serializer};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

/// A job as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Entry {
    pub broker: String,
    pub job_id: String,
    pub project: String,
    pub name: String,
    pub state: String,
    pub total: i64,
    pub succeeded: i64,
    pub failed: i64,
    pub cancelled: i64,
    pub git_url: String,
    pub commit: String,
    pub command: String,
    pub message: String,
    pub answer_name: String,
    pub answer_bytes: i64,
    #[serde(serialize_with = "time")]
    pub created_at: Millis,
    #[serde(serialize_with = "time")]
    pub started_at: Millis,
    #[serde(serialize_with = "time")]
    pub finished_at: Millis,
    /// 0 where it was seen from here, and submitted elsewhere.
    #[serde(serialize_with = "time")]
    pub submitted_at: Millis,
    #[serde(serialize_with = "time")]
    pub seen_at: Millis,
}

fn time<S: Serializer>(at: &Millis, to: S) -> Result<S::Ok, S::Error> {
    match at {
        0 => to.serialize_none(),
        at => to.serialize_str(&rfc3339(*at)),
    }
}

fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Entry {
    /// What a broker said of a job.
    pub fn of(broker: &str, job: &Job, submitted_at: Millis, seen_at: Millis) -> Self {
        let tasks = job.tasks.unwrap_or_default();
        let state = job.state().as_str_name().trim_start_matches("JOB_STATE_").to_lowercase();
        Self {
            broker: broker.to_owned(),
            job_id: job.job_id.clone(),
            project: job.project.clone(),
            name: job.name.clone(),
            state,
            total: count(tasks.total),
            succeeded: count(tasks.succeeded),
            failed: count(tasks.failed),
            cancelled: count(tasks.cancelled),
            git_url: without_password(&job.git_url),
            commit: job.commit.clone(),
            command: convert::command(job.command.clone()).map(|line| line.shown()).unwrap_or_default(),
            message: job.message.clone(),
            answer_name: job.answer_name.clone(),
            answer_bytes: count(job.answer_bytes),
            created_at: job.created_at_ms,
            started_at: job.started_at_ms,
            finished_at: job.finished_at_ms,
            submitted_at,
            seen_at,
        }
    }

    /// A row of the table.
    pub(super) fn read(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            broker: row.try_get("broker")?,
            job_id: row.try_get("job_id")?,
            project: row.try_get("project")?,
            name: row.try_get("name")?,
            state: row.try_get("state")?,
            total: row.try_get("total")?,
            succeeded: row.try_get("succeeded")?,
            failed: row.try_get("failed")?,
            cancelled: row.try_get("cancelled")?,
            git_url: row.try_get("git_url")?,
            commit: row.try_get("commit_id")?,
            command: row.try_get("command")?,
            message: row.try_get("message")?,
            answer_name: row.try_get("answer_name")?,
            answer_bytes: row.try_get("answer_bytes")?,
            created_at: row.try_get("created_at")?,
            started_at: row.try_get("started_at")?,
            finished_at: row.try_get("finished_at")?,
            submitted_at: row.try_get("submitted_at")?,
            seen_at: row.try_get("seen_at")?,
        })
    }

    /// Writes it over what was seen before; that it was submitted here is kept.
    pub(super) async fn upsert(&self, to: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO jobs (broker, job_id, project, name, state, total, succeeded, failed, cancelled, \
             git_url, commit_id, command, message, answer_name, answer_bytes, created_at, started_at, \
             finished_at, submitted_at, seen_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (broker, job_id) DO UPDATE SET state = excluded.state, total = excluded.total, \
             succeeded = excluded.succeeded, failed = excluded.failed, cancelled = excluded.cancelled, \
             commit_id = excluded.commit_id, message = excluded.message, answer_name = excluded.answer_name, \
             answer_bytes = excluded.answer_bytes, started_at = excluded.started_at, \
             finished_at = excluded.finished_at, submitted_at = max(submitted_at, excluded.submitted_at), \
             seen_at = excluded.seen_at",
        )
        .bind(&self.broker)
        .bind(&self.job_id)
        .bind(&self.project)
        .bind(&self.name)
        .bind(&self.state)
        .bind(self.total)
        .bind(self.succeeded)
        .bind(self.failed)
        .bind(self.cancelled)
        .bind(&self.git_url)
        .bind(&self.commit)
        .bind(&self.command)
        .bind(&self.message)
        .bind(&self.answer_name)
        .bind(self.answer_bytes)
        .bind(self.created_at)
        .bind(self.started_at)
        .bind(self.finished_at)
        .bind(self.submitted_at)
        .bind(self.seen_at)
        .execute(to)
        .await
        .map(drop)
    }
}
