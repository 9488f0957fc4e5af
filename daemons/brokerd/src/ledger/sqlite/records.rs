//! Projects, queues, tokens and workers: few rows, written seldom.

use codering_core::{ProjectName, QueueName, time::Millis};
use sqlx::{SqlitePool, sqlite::SqliteRow};

use super::{
    batch::Batch,
    codec::{Columns, hash, json, role, role_text},
};
use crate::ledger::{Project, Token, Worker};

pub(super) async fn put_project(batch: &mut Batch, project: &Project) -> sqlx::Result<()> {
    sqlx::query("INSERT OR REPLACE INTO projects (name, quota, created_at) VALUES (?, ?, ?)")
        .bind(project.name.as_str())
        .bind(json(&project.quota)?)
        .bind(project.created_at)
        .execute(&mut batch.connection)
        .await
        .map(drop)
}

pub(super) async fn projects(readers: &SqlitePool) -> sqlx::Result<Vec<Project>> {
    let rows =
        sqlx::query("SELECT name, quota, created_at FROM projects ORDER BY name").fetch_all(readers).await?;
    rows.iter()
        .map(|row| {
            let mut columns = Columns::of(row);
            Ok(Project { name: columns.text()?, quota: columns.json()?, created_at: columns.next()? })
        })
        .collect()
}

pub(super) async fn delete_project(batch: &mut Batch, name: &ProjectName) -> sqlx::Result<()> {
    let statements = [
        "DELETE FROM projects WHERE name = ?1",
        // A bare name belongs to the project `default`.
        "DELETE FROM queues WHERE substr(name, 1, length(?1) + 1) = ?1 || '.'
            OR (?1 = 'default' AND instr(name, '.') = 0)",
        // A job that is still being deleted keeps the row, and takes its bytes off.
        "DELETE FROM holdings WHERE project = ?1 AND result_bytes = 0",
    ];
    for statement in statements {
        sqlx::query(statement).bind(name.as_str()).execute(&mut batch.connection).await?;
    }
    Ok(())
}

pub(super) async fn put_queue(batch: &mut Batch, name: &QueueName) -> sqlx::Result<bool> {
    let done = sqlx::query("INSERT INTO queues (name) VALUES (?) ON CONFLICT DO NOTHING")
        .bind(name.as_str())
        .execute(&mut batch.connection)
        .await?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn queues(readers: &SqlitePool) -> sqlx::Result<Vec<QueueName>> {
    let rows = sqlx::query("SELECT name FROM queues ORDER BY name").fetch_all(readers).await?;
    rows.iter().map(|row| Columns::of(row).text()).collect()
}

pub(super) async fn delete_queue(batch: &mut Batch, name: &QueueName) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM queues WHERE name = ?")
        .bind(name.as_str())
        .execute(&mut batch.connection)
        .await
        .map(drop)
}

pub(super) async fn put_token(batch: &mut Batch, token: &Token) -> sqlx::Result<()> {
    let projects = (!token.projects.is_empty()).then(|| json(&token.projects)).transpose()?;
    sqlx::query(
        "INSERT OR REPLACE INTO tokens (id, name, role, projects, hash, created_at, expires_at, revoked_at,
            last_used_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&token.id)
    .bind(&token.name)
    .bind(role_text(token.role))
    .bind(projects)
    .bind(&token.hash[..])
    .bind(token.created_at)
    .bind(token.expires_at)
    .bind(token.revoked_at)
    .bind(token.last_used_at)
    .execute(&mut batch.connection)
    .await
    .map(drop)
}

fn token_of(row: &SqliteRow) -> sqlx::Result<Token> {
    let mut columns = Columns::of(row);
    Ok(Token {
        id: columns.next()?,
        name: columns.next()?,
        role: role(columns.next()?)?,
        projects: columns.json_or_none()?.unwrap_or_default(),
        hash: hash(columns.next()?)?,
        created_at: columns.next()?,
        expires_at: columns.next()?,
        revoked_at: columns.next()?,
        last_used_at: columns.next()?,
    })
}

pub(super) async fn tokens(readers: &SqlitePool) -> sqlx::Result<Vec<Token>> {
    let rows = sqlx::query(
        "SELECT id, name, role, projects, hash, created_at, expires_at, revoked_at, last_used_at
         FROM tokens ORDER BY created_at DESC, id",
    )
    .fetch_all(readers)
    .await?;
    rows.iter().map(token_of).collect()
}

pub(super) async fn token(readers: &SqlitePool, id: &str) -> sqlx::Result<Option<Token>> {
    let row = sqlx::query(
        "SELECT id, name, role, projects, hash, created_at, expires_at, revoked_at, last_used_at
         FROM tokens WHERE id = ?",
    )
    .bind(id)
    .fetch_optional(readers)
    .await?;
    row.as_ref().map(token_of).transpose()
}

pub(super) async fn delete_tokens(batch: &mut Batch, ids: &[String]) -> sqlx::Result<()> {
    for id in ids {
        sqlx::query("DELETE FROM tokens WHERE id = ?").bind(id).execute(&mut batch.connection).await?;
    }
    Ok(())
}

pub(super) async fn spend_token(batch: &mut Batch, id: &str, now: Millis) -> sqlx::Result<bool> {
    let done = sqlx::query("UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at = 0")
        .bind(now)
        .bind(id)
        .execute(&mut batch.connection)
        .await?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn put_worker(batch: &mut Batch, worker: &Worker) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT OR REPLACE INTO workers (name, certificate_serial, certificate_expires_at, paused, revoked,
            enrolled_at, last_seen_at, previous_serial) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(worker.name.as_str())
    .bind(&worker.certificate_serial)
    .bind(worker.certificate_expires_at)
    .bind(worker.paused)
    .bind(worker.revoked)
    .bind(worker.enrolled_at)
    .bind(worker.last_seen_at)
    .bind(&worker.previous_serial)
    .execute(&mut batch.connection)
    .await
    .map(drop)
}

pub(super) async fn workers(readers: &SqlitePool) -> sqlx::Result<Vec<Worker>> {
    let rows = sqlx::query(
        "SELECT name, certificate_serial, certificate_expires_at, paused, revoked, enrolled_at, last_seen_at,
            previous_serial FROM workers ORDER BY name",
    )
    .fetch_all(readers)
    .await?;
    rows.iter()
        .map(|row| {
            let mut columns = Columns::of(row);
            Ok(Worker {
                name: columns.text()?,
                certificate_serial: columns.next()?,
                certificate_expires_at: columns.next()?,
                paused: columns.next()?,
                revoked: columns.next()?,
                enrolled_at: columns.next()?,
                last_seen_at: columns.next()?,
                previous_serial: columns.next()?,
            })
        })
        .collect()
}

/// A write like any other.
pub(super) async fn beat(batch: &mut Batch) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO pulse (number, beats) VALUES (1, 1) ON CONFLICT DO UPDATE SET beats = beats + 1")
        .execute(&mut batch.connection)
        .await
        .map(drop)
}
