//! A transaction of the writer, with the counters that it moves.

use std::collections::HashMap;

use sqlx::{Row, SqliteConnection};

use super::codec::{CANCELLED, LEASED, PUBLISHED, SUCCEEDED, UNPUBLISHED};

/// The writer's connection and what its open transaction still has to add to counters.
pub(super) struct Batch {
    pub(super) connection: SqliteConnection,
    tallies: HashMap<(i64, bool), Tally>,
    result_bytes: HashMap<String, i64>,
    next_task: Option<i64>,
}

/// Changes of one row of `tallies`, in the order of its columns.
#[derive(Default)]
struct Tally([i64; 7]);

impl Batch {
    pub(super) fn new(connection: SqliteConnection) -> Self {
        Self { connection, tallies: HashMap::new(), result_bytes: HashMap::new(), next_task: None }
    }

    pub(super) async fn begin(&mut self) -> sqlx::Result<()> {
        self.forget();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.connection).await.map(drop)
    }

    pub(super) async fn commit(&mut self) -> sqlx::Result<()> {
        sqlx::query("COMMIT").execute(&mut self.connection).await.map(drop)
    }

    pub(super) async fn roll_back(&mut self) -> sqlx::Result<()> {
        self.forget();
        sqlx::query("ROLLBACK").execute(&mut self.connection).await.map(drop)
    }

    fn forget(&mut self) {
        self.tallies.clear();
        self.result_bytes.clear();
        self.next_task = None;
    }

    /// The first of `count` unused task numbers.
    pub(super) async fn task_numbers(&mut self, count: usize) -> sqlx::Result<i64> {
        let first = match self.next_task {
            Some(next) => next,
            None => sqlx::query("SELECT coalesce(max(number), 0) + 1 FROM tasks")
                .fetch_one(&mut self.connection)
                .await?
                .try_get(0)?,
        };
        self.next_task = Some(first + i64::try_from(count).unwrap_or(i64::MAX));
        Ok(first)
    }

    /// Counts `by` tasks more in `state`.
    pub(super) fn count(&mut self, job: i64, reduce: bool, state: i64, by: i64) {
        let column = match state {
            UNPUBLISHED => 0,
            PUBLISHED => 1,
            LEASED => 2,
            SUCCEEDED => 3,
            CANCELLED => 5,
            _ => 4,
        };
        self.tallies.entry((job, reduce)).or_default().0[column] += by;
    }

    /// Counts `by` attempts more after the first.
    pub(super) fn count_retried(&mut self, job: i64, reduce: bool, by: i64) {
        self.tallies.entry((job, reduce)).or_default().0[6] += by;
    }

    /// Counts `by` bytes of results more.
    pub(super) fn weigh(&mut self, project: &str, by: i64) {
        *self.result_bytes.entry(project.to_owned()).or_default() += by;
    }

    /// Writes the counters, as the last thing before COMMIT. Rows of a job that goes are gone already.
    pub(super) async fn flush(&mut self) -> sqlx::Result<()> {
        for ((job, reduce), Tally(by)) in self.tallies.drain() {
            if by == [0; 7] {
                continue;
            }
            let mut update = sqlx::query(
                "UPDATE tallies SET unpublished = unpublished + ?, published = published + ?,
                    leased = leased + ?, succeeded = succeeded + ?, failed = failed + ?,
                    cancelled = cancelled + ?, retried = retried + ? WHERE job = ? AND reduce = ?",
            );
            for more in by {
                update = update.bind(more);
            }
            update.bind(job).bind(reduce).execute(&mut self.connection).await?;
        }
        for (project, by) in self.result_bytes.drain() {
            sqlx::query(
                "INSERT INTO holdings (project, result_bytes) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET result_bytes = result_bytes + ?2",
            )
            .bind(project)
            .bind(by)
            .execute(&mut self.connection)
            .await?;
        }
        Ok(())
    }
}
