//! The SQL of the embedded queue; each statement a function, none decides anything.

use codering_core::QueueName;
use sqlx::{
    Connection, Row as _, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{
    books::{Account, Books},
    settle::Row,
};
pub(super) use crate::sqlite::is_damage;
use crate::{
    bulk::{Bulk, MOST_ROWS},
    migrations,
    queue::{DeadLetter, Message, QueueError, SHOWN_BYTES, shown_part},
    sqlite::is_full,
};

type Result<T> = std::result::Result<T, sqlx::Error>;

static INSERT: Bulk = Bulk::new(
    "INSERT INTO message (id, queue, priority, body) SELECT v.* FROM",
    4,
    "WHERE v.column1 IS NOT NULL",
);

static TAKE: &str = "UPDATE message SET taken = 1, deliveries = deliveries + 1 WHERE id IN \
     (SELECT id FROM message WHERE queue = ? AND taken = 0 ORDER BY priority DESC, id LIMIT ?) \
     RETURNING id, priority, deliveries, body";

/// The same where messages may be large. It takes longer by a tenth of a millisecond.
static TAKE_BOUNDED: &str = "UPDATE message SET taken = 1, deliveries = deliveries + 1 WHERE id IN \
     (SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY priority DESC, id ROWS UNBOUNDED PRECEDING) - bytes \
     AS before FROM (SELECT id, priority, length(body) AS bytes FROM message WHERE queue = ? AND taken = 0 \
     ORDER BY priority DESC, id LIMIT ?)) WHERE before < ?) RETURNING id, priority, deliveries, body";

/// The writing connection.
pub(super) struct Store(SqliteConnection, SqliteConnectOptions);

/// A message as it was taken.
pub(super) struct TakenRow {
    pub(super) row: Row,
    pub(super) priority: i32,
    pub(super) deliveries: i64,
    pub(super) body: Vec<u8>,
}

/// A dead letter about to move.
pub(super) struct DeadRow {
    pub(super) id: i64,
    pub(super) from: String,
    pub(super) bytes: u64,
}

/// What failed, as the callers are told.
pub(super) fn told(error: &sqlx::Error) -> QueueError {
    let told = format!("queue.db cannot be written: {error}");
    if is_full(error) { QueueError::DiskFull(told) } else { QueueError::Unavailable(told) }
}

fn ids_json(ids: impl IntoIterator<Item = i64>) -> String {
    let mut text = String::from("[");
    for id in ids {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&id.to_string());
    }
    text.push(']');
    text
}

fn unsigned(row: &SqliteRow, column: usize) -> Result<u64> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Store {
    pub(super) async fn open(options: &SqliteConnectOptions) -> Result<Self> {
        let mut connection = SqliteConnection::connect_with(options).await?;
        migrations::QUEUE.run(&mut connection).await?;
        Ok(Self(connection, options.clone()))
    }

    /// Goes on with a connection of its own.
    pub(super) async fn reopen(&mut self) -> Result<()> {
        self.0 = SqliteConnection::connect_with(&self.1).await?;
        Ok(())
    }

    /// What is wrong with the file, if something is.
    pub(super) async fn fault(&mut self) -> Result<Option<String>> {
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut self.0).await?;
        Ok(Some(found).filter(|found| found != "ok"))
    }

    pub(super) async fn close(self) -> Result<()> {
        self.0.close().await
    }

    pub(super) async fn begin(&mut self) -> Result<()> {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.0).await.map(drop)
    }

    pub(super) async fn commit(&mut self) -> Result<()> {
        sqlx::query("COMMIT").execute(&mut self.0).await.map(drop)
    }

    pub(super) async fn roll_back(&mut self) {
        // An error means that SQLite rolled back by itself.
        let _ = sqlx::query("ROLLBACK").execute(&mut self.0).await;
    }

    /// Gives back what an earlier process had taken.
    pub(super) async fn release_all(&mut self) -> Result<()> {
        sqlx::query("UPDATE message SET taken = 0 WHERE taken = 1 AND queue IN (SELECT id FROM queue)")
            .execute(&mut self.0)
            .await
            .map(drop)
    }

    /// The counters as last committed.
    pub(super) async fn books(&mut self) -> Result<Books> {
        let rows = sqlx::query(
            "SELECT id, name, messages, bytes, \
             (SELECT count(*) FROM message WHERE message.queue = queue.id AND taken = 1) \
             FROM queue WHERE name IS NOT NULL",
        )
        .fetch_all(&mut self.0)
        .await?;
        let mut books = Books::default();
        for row in rows {
            let Ok(name) = QueueName::new(row.try_get::<String, _>(1)?) else { continue };
            let (messages, bytes) = (unsigned(&row, 2)?, unsigned(&row, 3)?);
            // The bytes of all: no one is larger.
            let account = Account { name, messages, bytes, taken: unsigned(&row, 4)?, largest: bytes };
            books.open(row.try_get(0)?, account);
        }
        Ok(books)
    }

    pub(super) async fn save(&mut self, changed: &[(i64, Account)]) -> Result<()> {
        for (id, account) in changed {
            sqlx::query("UPDATE queue SET messages = ?2, bytes = ?3 WHERE id = ?1")
                .bind(id)
                .bind(signed(account.messages))
                .bind(signed(account.bytes))
                .execute(&mut self.0)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn last_id(&mut self) -> Result<i64> {
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM message").fetch_one(&mut self.0).await
    }

    pub(super) async fn create(&mut self, name: &QueueName) -> Result<i64> {
        let row = sqlx::query("INSERT INTO queue (name) VALUES (?)").bind(name.as_str());
        Ok(row.execute(&mut self.0).await?.last_insert_rowid())
    }

    /// Takes a queue's name away; its messages go by [`sweep`](Self::sweep).
    pub(super) async fn unname(&mut self, queue: i64) -> Result<()> {
        sqlx::query("UPDATE queue SET name = NULL WHERE id = ?")
            .bind(queue)
            .execute(&mut self.0)
            .await
            .map(drop)
    }

    /// Removes up to `most` messages of a deleted queue; `false`: there is no deleted queue left.
    pub(super) async fn sweep(&mut self, most: i64) -> Result<bool> {
        let deleted: Option<i64> = sqlx::query_scalar("SELECT id FROM queue WHERE name IS NULL LIMIT 1")
            .fetch_optional(&mut self.0)
            .await?;
        let Some(queue) = deleted else { return Ok(false) };
        let gone =
            sqlx::query("DELETE FROM message WHERE id IN (SELECT id FROM message WHERE queue = ? LIMIT ?)")
                .bind(queue)
                .bind(most)
                .execute(&mut self.0)
                .await?
                .rows_affected();
        if gone == 0 {
            sqlx::query("DELETE FROM queue WHERE id = ?").bind(queue).execute(&mut self.0).await?;
        }
        Ok(true)
    }

    pub(super) async fn insert(&mut self, rows: &[(i64, i64, Message)]) -> Result<()> {
        for rows in rows.chunks(MOST_ROWS) {
            let mut query = INSERT.query(rows.len());
            for (id, queue, message) in rows {
                query = query.bind(id).bind(queue).bind(message.priority).bind(&message.body[..]);
            }
            query.execute(&mut self.0).await?;
        }
        Ok(())
    }

    /// Removes a queue's head, as `(messages, bytes)`; `last` bounds the ids.
    pub(super) async fn drop_head(&mut self, queue: i64, most: i64, last: i64) -> Result<(u64, u64)> {
        let rows = sqlx::query(
            "DELETE FROM message WHERE id IN (SELECT id FROM message WHERE queue = ? AND taken = 0 \
             AND id <= ? ORDER BY priority DESC, id LIMIT ?) RETURNING length(body)",
        )
        .bind(queue)
        .bind(last)
        .bind(most)
        .fetch_all(&mut self.0)
        .await?;
        let mut bytes = 0;
        for row in &rows {
            bytes += unsigned(row, 0)?;
        }
        Ok((rows.len() as u64, bytes))
    }

    /// Marks a queue's head as taken and returns it in order: up to `most`, and where `bytes` are given no further one once
    /// those before it have so many.
    pub(super) async fn take(&mut self, queue: i64, most: i64, bytes: Option<u64>) -> Result<Vec<TakenRow>> {
        let query = match bytes {
            None => sqlx::query(TAKE),
            Some(_) => sqlx::query(TAKE_BOUNDED),
        };
        let mut query = query.bind(queue).bind(most);
        if let Some(bytes) = bytes {
            query = query.bind(signed(bytes));
        }
        let rows = query.fetch_all(&mut self.0).await?;
        let mut taken = Vec::with_capacity(rows.len());
        for row in rows {
            let body: Vec<u8> = row.try_get(3)?;
            taken.push(TakenRow {
                row: Row { id: row.try_get(0)?, queue, bytes: body.len() as u64 },
                priority: row.try_get(1)?,
                deliveries: row.try_get(2)?,
                body,
            });
        }
        taken.sort_by_key(|taken| (std::cmp::Reverse(taken.priority), taken.row.id));
        Ok(taken)
    }

    pub(super) async fn remove(&mut self, ids: impl IntoIterator<Item = i64>) -> Result<()> {
        sqlx::query("DELETE FROM message WHERE id IN (SELECT value FROM json_each(?))")
            .bind(ids_json(ids))
            .execute(&mut self.0)
            .await
            .map(drop)
    }

    pub(super) async fn release(&mut self, ids: impl IntoIterator<Item = i64>) -> Result<()> {
        sqlx::query("UPDATE message SET taken = 0 WHERE id IN (SELECT value FROM json_each(?))")
            .bind(ids_json(ids))
            .execute(&mut self.0)
            .await
            .map(drop)
    }

    /// Moves a taken message to the dead-letter queue; one that died before keeps where it came from.
    pub(super) async fn bury(
        &mut self,
        id: i64,
        dead: i64,
        from: &QueueName,
        why: &str,
        at: i64,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE message SET queue = ?2, taken = 0, deliveries = 0, \
             dead_from = coalesce(dead_from, ?3), dead_why = ?4, dead_at = ?5 WHERE id = ?1",
        )
        .bind(id)
        .bind(dead)
        .bind(from.as_str())
        .bind(why)
        .bind(at)
        .execute(&mut self.0)
        .await
        .map(drop)
    }

    /// Dead letters after `last`, the given ones or all.
    pub(super) async fn dead(
        &mut self,
        queue: i64,
        ids: Option<&[i64]>,
        last: i64,
        most: i64,
    ) -> Result<Vec<DeadRow>> {
        let rows = match ids {
            Some(ids) => {
                sqlx::query(
                    "SELECT id, dead_from, length(body) FROM message WHERE queue = ? AND taken = 0 \
                     AND dead_from IS NOT NULL AND id > ? AND id IN (SELECT value FROM json_each(?)) \
                     ORDER BY id LIMIT ?",
                )
                .bind(queue)
                .bind(last)
                .bind(ids_json(ids.iter().copied()))
                .bind(most)
                .fetch_all(&mut self.0)
                .await?
            }
            None => {
                sqlx::query(
                    "SELECT id, dead_from, length(body) FROM message WHERE queue = ? AND taken = 0 \
                     AND dead_from IS NOT NULL AND id > ? ORDER BY id LIMIT ?",
                )
                .bind(queue)
                .bind(last)
                .bind(most)
                .fetch_all(&mut self.0)
                .await?
            }
        };
        rows.iter()
            .map(|row| Ok(DeadRow { id: row.try_get(0)?, from: row.try_get(1)?, bytes: unsigned(row, 2)? }))
            .collect()
    }

    /// Moves dead letters to a living queue.
    pub(super) async fn revive(&mut self, ids: impl IntoIterator<Item = i64>, queue: i64) -> Result<()> {
        sqlx::query(
            "UPDATE message SET queue = ?2, deliveries = 0, dead_from = NULL, dead_why = NULL, \
             dead_at = NULL WHERE id IN (SELECT value FROM json_each(?1))",
        )
        .bind(ids_json(ids))
        .bind(queue)
        .execute(&mut self.0)
        .await
        .map(drop)
    }
}

/// The dead letters of a queue, none where there is no such queue.
pub(super) async fn dead_letters(
    readers: &SqlitePool,
    queue: &QueueName,
    limit: usize,
) -> Result<Vec<DeadLetter>> {
    let rows = sqlx::query(
        "SELECT id, dead_from, dead_why, dead_at, substr(body, 1, ?3) FROM message \
         WHERE queue = (SELECT id FROM queue WHERE name = ?1) AND taken = 0 \
         ORDER BY priority DESC, id LIMIT ?2",
    )
    .bind(queue.as_str())
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .bind(i64::try_from(SHOWN_BYTES + 1).unwrap_or(i64::MAX))
    .fetch_all(readers)
    .await?;
    rows.into_iter()
        .map(|row| {
            let from: Option<String> = row.try_get(1)?;
            Ok(DeadLetter {
                id: row.try_get::<i64, _>(0)?.to_string(),
                queue: from.and_then(|name| QueueName::new(name).ok()).unwrap_or_else(|| queue.clone()),
                reason: row.try_get::<Option<String>, _>(2)?.unwrap_or_else(|| "put here".to_owned()),
                at: row.try_get::<Option<i64>, _>(3)?.unwrap_or(0),
                body: shown_part(row.try_get::<&[u8], _>(4)?),
            })
        })
        .collect()
}
