//! Compare-and-set on tasks, a whole batch at a time.

use std::collections::{HashMap, HashSet};

use codering_core::{TaskKey, TaskResult, task::State};
use sqlx::Row;

use super::{
    batch::Batch,
    codec::{or_null, outcome_code, state_code},
    writer::Swap,
};
use crate::{
    bulk::{Bulk, MOST_ROWS},
    ledger::{Attempt, Record, Swapped, TaskChange},
};

static READ: Bulk = Bulk::new(
    "SELECT v.column1, t.number, j.number, j.project, t.reduce, t.state, t.attempt, t.version FROM",
    3,
    "CROSS JOIN jobs j ON j.id = v.column2 CROSS JOIN tasks t ON t.job = j.number AND t.id = v.column3
     WHERE j.phase = 1",
);

static UPDATE: Bulk = Bulk::new(
    "UPDATE tasks SET state = v.column2, not_before = v.column3, attempt = v.column4,
        user_failures = v.column5, infrastructure_failures = v.column6, cancel_requested = v.column7,
        ready_at = v.column8, version = v.column9, commit_id = coalesce(v.column10, commit_id),
        lease_token = v.column11, lease_worker = v.column12, leased_at = v.column13,
        lease_deadline = v.column14 FROM",
    14,
    "WHERE tasks.number = v.column1",
);

static ATTEMPTS: Bulk = Bulk::new(
    "INSERT OR REPLACE INTO attempts (task, attempt, worker, leased_at, finished_at, outcome, message)
     SELECT v.* FROM",
    7,
    "WHERE v.column1 IS NOT NULL",
);

static RESULTS: Bulk = Bulk::new(
    "INSERT INTO results (task, bytes, attempt, outcome, exit_code, signal, truncated, started_at,
        finished_at, queued_ms, checkout_ms, build_ms, start_ms, run_ms, worker, commit_id, image,
        message, stdout, stderr) SELECT v.* FROM",
    20,
    "WHERE v.column1 IS NOT NULL",
);

static UNPUBLISHED: Bulk = Bulk::new(
    "INSERT INTO unpublished_results (task) SELECT v.column1 FROM",
    1,
    "WHERE v.column1 IS NOT NULL",
);

/// Bytes that a change carries.
pub(super) fn bytes(change: &TaskChange) -> usize {
    match &change.record {
        Record::Result(result, _) => result.stdout.len() + result.stderr.len(),
        Record::Nothing | Record::Attempt(_) | Record::Forget => 0,
    }
}

/// Swaps what can be swapped, and notes in each what became of it.
pub(super) async fn swap(batch: &mut Batch, mut swaps: Vec<&mut Swap>) -> sqlx::Result<()> {
    while !swaps.is_empty() {
        let (round, rest) = one_of_each(swaps);
        swap_round(batch, round).await?;
        swaps = rest;
    }
    Ok(())
}

/// Splits off a round in which no task comes twice: each sees what the one before it left.
fn one_of_each(swaps: Vec<&mut Swap>) -> (Vec<&mut Swap>, Vec<&mut Swap>) {
    let mut seen: HashSet<TaskKey> = HashSet::with_capacity(swaps.len());
    let (mut round, mut rest) = (Vec::with_capacity(swaps.len()), Vec::new());
    for swap in swaps {
        let first = round.len() < MOST_ROWS && seen.insert(swap.change.key.clone());
        if first { round.push(swap) } else { rest.push(swap) }
    }
    (round, rest)
}

/// A task as it is stored.
struct Stored {
    number: i64,
    job: i64,
    project: String,
    reduce: bool,
    state: i64,
    attempt: i64,
    version: i64,
}

async fn swap_round(batch: &mut Batch, round: Vec<&mut Swap>) -> sqlx::Result<()> {
    let mut stored = read(batch, &round).await?;
    let mut matching = Vec::with_capacity(round.len());
    for (place, swap) in round.into_iter().enumerate() {
        let expected = swap.change.expected_version.cast_signed();
        let row = stored.remove(&place).filter(|row| row.version == expected);
        swap.swapped = if row.is_some() { Swapped::Yes } else { Swapped::No };
        matching.extend(row.map(|row| (row, &swap.change)));
    }
    if matching.is_empty() {
        return Ok(());
    }
    update(batch, &matching).await?;
    record(batch, &matching).await
}

async fn read(batch: &mut Batch, round: &[&mut Swap]) -> sqlx::Result<HashMap<usize, Stored>> {
    let mut query = READ.query(round.len());
    for (place, swap) in round.iter().enumerate() {
        let key = &swap.change.key;
        query = query.bind(place as i64).bind(key.job.as_str()).bind(key.task.as_str());
    }
    let rows = query.fetch_all(&mut batch.connection).await?;
    rows.iter()
        .map(|row| {
            let place = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
            let stored = Stored {
                number: row.try_get(1)?,
                job: row.try_get(2)?,
                project: row.try_get(3)?,
                reduce: row.try_get(4)?,
                state: row.try_get(5)?,
                attempt: row.try_get(6)?,
                version: row.try_get(7)?,
            };
            Ok((place, stored))
        })
        .collect()
}

async fn update(batch: &mut Batch, matching: &[(Stored, &TaskChange)]) -> sqlx::Result<()> {
    let mut query = UPDATE.query(matching.len());
    for (row, change) in matching {
        let progress = &change.progress;
        let not_before = match progress.state {
            State::Ready { not_before, .. } => not_before,
            State::Leased(_) | State::Done(_) => 0,
        };
        let lease = progress.lease();
        let state = state_code(&progress.state);
        query = query
            .bind(row.number)
            .bind(state)
            .bind(not_before)
            .bind(progress.attempt)
            .bind(progress.user_failures)
            .bind(progress.infrastructure_failures)
            .bind(progress.cancel_requested)
            .bind(progress.ready_at)
            .bind(progress.version.cast_signed())
            .bind(change.commit.as_deref())
            .bind(lease.map(|lease| lease.token.as_str()))
            .bind(lease.map(|lease| lease.worker.as_str()))
            .bind(lease.map(|lease| lease.leased_at))
            .bind(lease.map(|lease| lease.deadline));
        batch.count(row.job, row.reduce, row.state, -1);
        batch.count(row.job, row.reduce, state, 1);
        let after_the_first = |attempt: i64| (attempt - 1).max(0);
        let retried = after_the_first(progress.attempt.into()) - after_the_first(row.attempt);
        batch.count_retried(row.job, row.reduce, retried);
    }
    query.execute(&mut batch.connection).await.map(drop)
}

async fn record(batch: &mut Batch, matching: &[(Stored, &TaskChange)]) -> sqlx::Result<()> {
    let mut attempts = Vec::new();
    let mut results = Vec::new();
    for (row, change) in matching {
        match &change.record {
            Record::Nothing => {}
            Record::Attempt(attempt) => attempts.push((row.number, attempt)),
            Record::Result(result, attempt) => {
                batch.weigh(&row.project, result.bytes().cast_signed());
                results.push((row.number, &**result));
                attempts.extend(attempt.iter().map(|attempt| (row.number, attempt)));
            }
            Record::Forget => forget(batch, row).await?,
        }
    }
    if !attempts.is_empty() {
        add_attempts(batch, &attempts).await?;
    }
    if !results.is_empty() {
        add_results(batch, &results).await?;
    }
    Ok(())
}

async fn add_attempts(batch: &mut Batch, attempts: &[(i64, &Attempt)]) -> sqlx::Result<()> {
    let mut query = ATTEMPTS.query(attempts.len());
    for (task, attempt) in attempts {
        query = query
            .bind(task)
            .bind(attempt.attempt)
            .bind(attempt.worker.as_str())
            .bind(attempt.leased_at)
            .bind(attempt.finished_at)
            .bind(outcome_code(attempt.outcome))
            .bind(or_null(&attempt.message));
    }
    query.execute(&mut batch.connection).await.map(drop)
}

/// Fails hard where a result is recorded already: there must never be a second one.
async fn add_results(batch: &mut Batch, results: &[(i64, &TaskResult)]) -> sqlx::Result<()> {
    let mut query = RESULTS.query(results.len());
    let mut unpublished = UNPUBLISHED.query(results.len());
    let blob = |bytes: &[u8]| (!bytes.is_empty()).then(|| bytes.to_vec());
    for (task, result) in results {
        let phases = &result.phases;
        query = query
            .bind(task)
            .bind(result.bytes().cast_signed())
            .bind(result.attempt)
            .bind(outcome_code(result.outcome))
            .bind(result.exit_code)
            .bind(result.signal)
            .bind(i64::from(result.stdout_truncated) | i64::from(result.stderr_truncated) << 1)
            .bind(result.started_at)
            .bind(result.finished_at)
            .bind(phases.queued.cast_signed())
            .bind(phases.checkout.cast_signed())
            .bind(phases.build.cast_signed())
            .bind(phases.start.cast_signed())
            .bind(phases.run.cast_signed())
            .bind(or_null(&result.worker))
            .bind(or_null(&result.commit))
            .bind(or_null(&result.image))
            .bind(or_null(&result.message))
            .bind(blob(&result.stdout))
            .bind(blob(&result.stderr));
        unpublished = unpublished.bind(task);
    }
    query.execute(&mut batch.connection).await?;
    unpublished.execute(&mut batch.connection).await.map(drop)
}

async fn forget(batch: &mut Batch, row: &Stored) -> sqlx::Result<()> {
    let gone = sqlx::query("DELETE FROM results WHERE task = ? RETURNING bytes")
        .bind(row.number)
        .fetch_optional(&mut batch.connection)
        .await?;
    if let Some(gone) = gone {
        batch.weigh(&row.project, -gone.try_get::<i64, _>(0)?);
    }
    Ok(())
}
