//! Rows to types and back.

use codering_core::{
    JobId, Outcome, ProjectName, TaskId, TaskKey, TaskResult, TaskSpec,
    job::JobState,
    result::Phases,
    task::{Lease, Progress, State},
};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{Decode, Row, Sqlite, Type, sqlite::SqliteRow};

use crate::ledger::{Job, Role, Task};

pub(super) const UNPUBLISHED: i64 = 0;
pub(super) const PUBLISHED: i64 = 1;
pub(super) const LEASED: i64 = 2;
pub(super) const SUCCEEDED: i64 = 3;
pub(super) const CANCELLED: i64 = 8;
/// Every code of a state.
pub(super) const STATES: std::ops::RangeInclusive<i64> = 0..=9;

/// The code of an outcome, in its own column and as a done task's state.
pub(super) fn outcome_code(outcome: Outcome) -> i64 {
    match outcome {
        Outcome::Succeeded => SUCCEEDED,
        Outcome::Failed => 4,
        Outcome::TimedOut => 5,
        Outcome::OutOfMemory => 6,
        Outcome::BuildFailed => 7,
        Outcome::Cancelled => CANCELLED,
        Outcome::InfrastructureError => 9,
    }
}

pub(super) fn outcome(code: i64) -> sqlx::Result<Outcome> {
    let known = Outcome::ALL.into_iter().find(|outcome| outcome_code(*outcome) == code);
    known.ok_or_else(|| undecodable(format!("{code} is no outcome")))
}

/// The code of a task's state.
pub(super) fn state_code(state: &State) -> i64 {
    match state {
        State::Ready { published: false, .. } => UNPUBLISHED,
        State::Ready { published: true, .. } => PUBLISHED,
        State::Leased(_) => LEASED,
        State::Done(outcome) => outcome_code(*outcome),
    }
}

fn undecodable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

/// Reads a row's columns one after the other.
pub(super) struct Columns<'r> {
    row: &'r SqliteRow,
    at: usize,
}

impl<'r> Columns<'r> {
    pub(super) fn of(row: &'r SqliteRow) -> Self {
        Self { row, at: 0 }
    }

    pub(super) fn next<T: Decode<'r, Sqlite> + Type<Sqlite>>(&mut self) -> sqlx::Result<T> {
        self.at += 1;
        self.row.try_get(self.at - 1)
    }

    /// A text that was validated when it came in.
    pub(super) fn text<T: std::str::FromStr<Err = codering_core::Error>>(&mut self) -> sqlx::Result<T> {
        self.next::<&str>()?.parse().map_err(undecodable)
    }

    /// NULL for what is empty.
    pub(super) fn or_empty(&mut self) -> sqlx::Result<String> {
        Ok(self.next::<Option<String>>()?.unwrap_or_default())
    }

    pub(super) fn bytes_or_empty(&mut self) -> sqlx::Result<Vec<u8>> {
        Ok(self.next::<Option<Vec<u8>>>()?.unwrap_or_default())
    }

    /// A number whose upper half is not used but in `u64::MAX` and its like.
    pub(super) fn unsigned(&mut self) -> sqlx::Result<u64> {
        Ok(self.next::<i64>()?.cast_unsigned())
    }

    pub(super) fn json<T: DeserializeOwned>(&mut self) -> sqlx::Result<T> {
        serde_json::from_str(self.next::<&str>()?).map_err(undecodable)
    }

    pub(super) fn json_or_none<T: DeserializeOwned>(&mut self) -> sqlx::Result<Option<T>> {
        let text = self.next::<Option<&str>>()?;
        text.map(serde_json::from_str).transpose().map_err(undecodable)
    }
}

pub(super) fn json(value: &impl Serialize) -> sqlx::Result<String> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// NULL for what is empty.
pub(super) fn or_null(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// NULL for a task with nothing of its own.
pub(super) fn spec_or_null(spec: &TaskSpec) -> sqlx::Result<Option<String>> {
    let TaskSpec { id: _, arg, command, env, stdin, limits, source, extra } = spec;
    let own = arg.is_some()
        || command.is_some()
        || !env.is_empty()
        || !stdin.is_empty()
        || *limits != Default::default()
        || source.is_some()
        || !extra.is_empty();
    own.then(|| json(spec)).transpose()
}

/// `SELECT`s what [`task`] reads, from `tasks t` and `jobs j`; only tasks of visible jobs.
macro_rules! select_tasks {
    ($($rest:literal),* $(,)?) => {
        concat!(
            "SELECT j.id, j.project, t.id, t.seq, t.reduce, t.commit_id, t.state, t.not_before, t.attempt,
                t.user_failures, t.infrastructure_failures, t.cancel_requested, t.ready_at, t.version,
                t.lease_token, t.lease_worker, t.leased_at, t.lease_deadline,
                (SELECT spec FROM task_specs WHERE task = t.number) AS spec, t.number, j.number ",
            $($rest),*
        )
    };
}
pub(super) use select_tasks;

pub(super) fn task(row: &SqliteRow) -> sqlx::Result<Task> {
    let mut columns = Columns::of(row);
    let job: JobId = columns.text()?;
    let project: ProjectName = columns.text()?;
    let id: TaskId = columns.text()?;
    let seq = columns.unsigned()?;
    let reduce = columns.next()?;
    let commit = columns.or_empty()?;
    let (code, not_before) = (columns.next::<i64>()?, columns.next()?);
    let (attempt, user_failures, infrastructure_failures) =
        (columns.next()?, columns.next()?, columns.next()?);
    let (cancel_requested, ready_at, version) = (columns.next()?, columns.next()?, columns.unsigned()?);
    let state = match code {
        UNPUBLISHED | PUBLISHED => State::Ready { published: code == PUBLISHED, not_before },
        LEASED => State::Leased(Lease {
            token: columns.text()?,
            worker: columns.text()?,
            leased_at: columns.next()?,
            deadline: columns.next()?,
        }),
        done => State::Done(outcome(done)?),
    };
    columns.at = 18;
    let spec = columns.json_or_none()?.unwrap_or_else(|| TaskSpec::new(id.clone()));
    let progress = Progress {
        state,
        attempt,
        user_failures,
        infrastructure_failures,
        cancel_requested,
        ready_at,
        version,
    };
    Ok(Task { key: TaskKey { job, task: id }, project, seq, reduce, spec, commit, progress })
}

/// `SELECT`s what [`job`] reads.
macro_rules! select_jobs {
    ($($rest:literal),* $(,)?) => {
        concat!(
            "SELECT id, spec, state, counts, paused, cancelled, open, commit_id, reduce, reduce_runs,
                reduced_run, submitted_by, created_at, started_at, finished_at, message FROM jobs ",
            $($rest),*
        )
    };
}
pub(super) use select_jobs;

pub(super) fn job(row: &SqliteRow) -> sqlx::Result<Job> {
    let mut columns = Columns::of(row);
    Ok(Job {
        id: columns.text()?,
        spec: columns.json()?,
        state: {
            let state: &str = columns.next()?;
            JobState::parse(state).ok_or_else(|| undecodable(format!("`{state}` is no state")))?
        },
        counts: columns.json()?,
        paused: columns.next()?,
        cancelled: columns.next()?,
        open: columns.next()?,
        commit: columns.or_empty()?,
        reduce: columns.json_or_none()?,
        reduce_runs: columns.next()?,
        reduced_run: columns.next()?,
        submitted_by: columns.next()?,
        created_at: columns.next()?,
        started_at: columns.next()?,
        finished_at: columns.next()?,
        message: columns.or_empty()?,
    })
}

/// `SELECT`s what [`result`] reads, from `results r`, `tasks t` and `jobs j`.
macro_rules! select_results {
    ($($rest:literal),* $(,)?) => {
        concat!(
            "SELECT t.seq, j.project, j.id, t.id, r.attempt, r.outcome, r.exit_code, r.signal, r.stdout,
                r.stderr, r.truncated, r.started_at, r.finished_at, r.queued_ms, r.checkout_ms, r.build_ms,
                r.start_ms, r.run_ms, r.worker, r.commit_id, r.image, r.message ",
            $($rest),*
        )
    };
}
pub(super) use select_results;

/// A result, and its task's `seq`.
pub(super) fn result(row: &SqliteRow) -> sqlx::Result<(u64, TaskResult)> {
    let mut columns = Columns::of(row);
    let seq = columns.unsigned()?;
    let (project, job, task) = (columns.text()?, columns.text()?, columns.text()?);
    let (attempt, outcome) = (columns.next()?, outcome(columns.next()?)?);
    let (exit_code, signal) = (columns.next()?, columns.next()?);
    let (stdout, stderr) = (columns.bytes_or_empty()?, columns.bytes_or_empty()?);
    let truncated: i64 = columns.next()?;
    let (started_at, finished_at) = (columns.next()?, columns.next()?);
    let phases = Phases {
        queued: columns.unsigned()?,
        checkout: columns.unsigned()?,
        build: columns.unsigned()?,
        start: columns.unsigned()?,
        run: columns.unsigned()?,
    };
    let result = TaskResult {
        project,
        job,
        task,
        attempt,
        outcome,
        exit_code,
        signal,
        stdout,
        stderr,
        stdout_truncated: truncated & 1 != 0,
        stderr_truncated: truncated & 2 != 0,
        started_at,
        finished_at,
        phases,
        worker: columns.or_empty()?,
        commit: columns.or_empty()?,
        image: columns.or_empty()?,
        message: columns.or_empty()?,
    };
    Ok((seq, result))
}

/// The text of a role.
pub(super) fn role_text(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::Submitter => "submitter",
        Role::Viewer => "viewer",
        Role::Worker => "worker",
    }
}

pub(super) fn role(text: &str) -> sqlx::Result<Role> {
    let roles = [Role::Admin, Role::Submitter, Role::Viewer, Role::Worker];
    let known = roles.into_iter().find(|role| role_text(*role) == text);
    known.ok_or_else(|| undecodable(format!("`{text}` is no role")))
}

/// A token's hash.
pub(super) fn hash(bytes: &[u8]) -> sqlx::Result<[u8; 32]> {
    bytes.try_into().map_err(|_| undecodable("a token's hash has 32 bytes"))
}
