//! What SQLite alone needs for the rows that a submit leaves in the ledger: a ledger's rows copied into an empty file of
//! the same schema, as durable as brokerd writes it and in transactions of the size of brokerd's, by SQLite's own
//! `INSERT … SELECT`. So there is no row to encode and no value to bind: all of it is SQLite's own.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::measure::Usage;

/// Tasks of one transaction, as in brokerd's `broker/submit.rs`.
const CHUNK: i64 = 1000;

/// Time and processor time.
pub struct Cost {
    pub took: Duration,
    pub cpu: Duration,
}

/// Copies the tasks of the ledger in the directory `of`, which nobody has open.
pub fn cost_of_tasks(of: &Path) -> Cost {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut file = empty_copy(of).await;
        let last: i64 = sqlx::query_scalar("SELECT max(number) FROM old.tasks")
            .fetch_one(&mut file)
            .await
            .expect("a ledger with tasks");
        let before = Usage::of(std::process::id());
        let began = Instant::now();
        for first in (1..=last).step_by(CHUNK as usize) {
            for text in [
                "BEGIN IMMEDIATE".to_owned(),
                rows("tasks", "number", first),
                rows("task_specs", "task", first),
                "COMMIT".to_owned(),
            ] {
                run(&mut file, text).await;
            }
        }
        let cost = Cost { took: began.elapsed(), cpu: Usage::of(std::process::id()).cpu - before.cpu };
        file.close().await.expect("the copy closes");
        cost
    })
}

fn rows(table: &str, number: &str, first: i64) -> String {
    let end = first + CHUNK;
    format!("INSERT INTO {table} SELECT * FROM old.{table} WHERE {number} >= {first} AND {number} < {end}")
}

/// With the ledger attached as `old`.
async fn empty_copy(of: &Path) -> SqliteConnection {
    // As in brokerd's `ledger/sqlite/open.rs`.
    let mut file = SqliteConnectOptions::new()
        .filename(of.join("copy.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .pragma("cache_size", "-16384")
        .pragma("wal_autocheckpoint", "4000")
        .disable_statement_logging()
        .connect()
        .await
        .expect("a new file");
    run(&mut file, format!("ATTACH '{}' AS old", of.join("ledger.db").display())).await;
    let schema: Vec<String> = sqlx::query_scalar(
        "SELECT sql FROM old.sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE '\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite%'",
    )
    .fetch_all(&mut file)
    .await
    .expect("a ledger");
    for text in schema {
        run(&mut file, text).await;
    }
    run(&mut file, "INSERT INTO jobs SELECT * FROM old.jobs".into()).await;
    // As they were when they came; since then they may have been published.
    run(&mut file, "UPDATE old.tasks SET state = 0, version = 0".into()).await;
    file
}

async fn run(file: &mut SqliteConnection, text: String) {
    // Literals of this file, and what brokerd's schema says.
    sqlx::query(AssertSqlSafe(text.clone()))
        .execute(file)
        .await
        .unwrap_or_else(|error| panic!("{text}: {error}"));
}
