//! What was submitted and seen from here, in a SQLite file of the user's own: readable with no broker
//! in reach. It is a copy; a verb never fails because it could not be written.

mod entry;
#[cfg(test)]
mod tests;

use std::{
    fs::{DirBuilder, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use codering_core::{Code, Error, time::Millis};
use codering_proto::v1::Job;
use sqlx::{
    SqlSafeStr, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub use entry::Entry;

/// Named here: sqlx's macro would find it by itself, and for that have the compiler build SQLite once more.
const JOBS: &str = include_str!("../../migrations/history/0001_jobs.sql");

/// More jobs than this are forgotten, oldest first.
const MAX_JOBS: i64 = 10_000;
/// How long another coderingctl may keep the file.
const BUSY: Duration = Duration::from_secs(5);

/// The file, open.
#[derive(Clone)]
pub struct History {
    pool: SqlitePool,
}

/// Where it is: under `XDG_DATA_HOME`, else `~/.local/share`.
pub fn default_path() -> Result<PathBuf, Error> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("codering/history.db"))
        .ok_or_else(|| {
            Error::new(
                Code::ConfigInvalid,
                "neither XDG_DATA_HOME nor HOME is set, so no history can be kept",
            )
        })
}

fn migrations() -> Migrator {
    let jobs = Migration::new(1, "jobs".into(), MigrationType::Simple, JOBS.into_sql_str(), false);
    Migrator::with_migrations(vec![jobs])
}

impl History {
    /// Opens the file, made where it is not there. Commands may hold secrets: its owner alone may read it.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let wrong = |why: &dyn std::fmt::Display| {
            Error::new(Code::ConfigInvalid, format!("the history cannot be used: {why}"))
                .at(path.display().to_string())
                .hint("nothing but the history is in this file: it may be moved away")
        };
        let directory = path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| wrong(&error))?;
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        opened.map_err(|error| wrong(&error))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // A copy may lose its last entry with the machine's power, never its form.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(BUSY)
            .connect_with(options)
            .await
            .map_err(|error| wrong(&error))?;
        migrations().run(&pool).await.map_err(|error| wrong(&error))?;
        Ok(Self { pool })
    }

    /// Keeps what a job looks like now. A later look replaces an earlier one.
    pub async fn saw(&self, broker: &str, job: &Job, submitted: bool, now: Millis) -> Result<(), Error> {
        let entry = Entry::of(broker, job, if submitted { now } else { 0 }, now);
        let kept = async {
            let mut writing = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            entry.upsert(&mut writing).await?;
            sqlx::query(
                "DELETE FROM jobs WHERE (broker, job_id) IN \
                 (SELECT broker, job_id FROM jobs ORDER BY created_at DESC, job_id DESC LIMIT -1 OFFSET ?)",
            )
            .bind(MAX_JOBS)
            .execute(&mut *writing)
            .await?;
            writing.commit().await
        };
        kept.await.map_err(|error| unusable(&error))
    }

    /// The newest first; only of `project` where it is named.
    pub async fn newest(&self, project: Option<&str>, limit: u32) -> Result<Vec<Entry>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM jobs WHERE ?1 IS NULL OR project = ?1 ORDER BY created_at DESC, job_id DESC LIMIT ?2",
        )
        .bind(project)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| unusable(&error))?;
        rows.iter().map(Entry::read).collect::<Result<_, _>>().map_err(|error| unusable(&error))
    }

    /// Those whose id begins so, newest first, at most ten.
    pub async fn beginning(&self, prefix: &str) -> Result<Vec<Entry>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM jobs WHERE substr(job_id, 1, length(?1)) = ?1 ORDER BY created_at DESC LIMIT 10",
        )
        .bind(prefix)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| unusable(&error))?;
        rows.iter().map(Entry::read).collect::<Result<_, _>>().map_err(|error| unusable(&error))
    }

    /// Forgets jobs that were made before this time; answers how many.
    pub async fn forget(&self, before: Millis) -> Result<u64, Error> {
        let done =
            sqlx::query("DELETE FROM jobs WHERE created_at < ?").bind(before).execute(&self.pool).await;
        done.map(|done| done.rows_affected()).map_err(|error| unusable(&error))
    }

    /// Writes what is left to write, and closes.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

fn unusable(error: &sqlx::Error) -> Error {
    Error::new(Code::ConfigInvalid, format!("the history cannot be used: {error}"))
}
