//! The broker's rows as `codering.v1` messages.

use codering_core::{Command, Limits, job::JobState, spec::without_password, task::State};
use codering_proto::v1;

use crate::{
    auth::Enrolled,
    broker::{JobEvent, ProjectView, QueueView, Running, TaskView, WorkerView, now, shown_state},
    ledger::{Attempt, Build, Job, Report, Role, Task, Token},
    queue::DeadLetter,
};

/// A project.
pub fn project(view: ProjectView) -> v1::Project {
    v1::Project {
        name: view.project.name.into(),
        quota: Some(view.project.quota.into()),
        created_at_ms: view.project.created_at,
        queued_tasks: view.usage.queued_tasks,
        running_tasks: view.usage.running_tasks,
        result_bytes: view.usage.result_bytes,
        unfinished_jobs: view.usage.unfinished_jobs,
    }
}

/// What was found of a ledger.
pub fn ledger_report(report: Report) -> v1::LedgerReport {
    v1::LedgerReport {
        sound: report.problems.is_empty(),
        problems: report.problems,
        bytes: report.bytes,
        schema: report.schema,
        jobs: report.jobs,
        tasks: report.tasks,
        results: report.results,
        newest_at_ms: report.newest_at,
    }
}

/// A queue.
pub fn queue(view: QueueView) -> v1::Queue {
    v1::Queue {
        project: view.name.project().into(),
        name: view.name.into(),
        ready: view.depth.ready,
        unacked: view.depth.unacked,
    }
}

/// A dead letter.
pub fn dead(letter: DeadLetter) -> v1::DeadLetter {
    let (message, encoding) = codering_core::message::text_or_base64(&letter.body);
    v1::DeadLetter {
        id: letter.id,
        queue: letter.queue.into(),
        reason: letter.reason,
        at_ms: letter.at,
        message,
        encoding: encoding.unwrap_or_default().into(),
    }
}

/// A job. What its answer weighs is told by [`answered`] alone.
pub fn job(job: Job) -> v1::Job {
    let state = shown_state(&job);
    let reduce = job.reduce.as_ref();
    v1::Job {
        state: v1::JobState::from(state).into(),
        job_id: job.id.into(),
        project: job.spec.project.into(),
        name: job.spec.name,
        tasks: Some(job.counts.into()),
        created_at_ms: job.created_at,
        started_at_ms: job.started_at,
        finished_at_ms: job.finished_at,
        submitted_by: job.submitted_by,
        git_url: without_password(&job.spec.source.git_url),
        git_ref: job.spec.source.git_ref,
        commit: job.commit,
        command: job.spec.command.map(Into::into),
        limits: Some(job.spec.limits.into()),
        reduce_command: reduce.map(|r| r.command.shown()).unwrap_or_default(),
        answer_name: reduce.map(|r| r.output.clone()).unwrap_or_default(),
        answer_bytes: 0,
        message: job.message,
        open: job.open,
    }
}

/// Whether a job has an answer that may be read.
pub fn answered(job: &Job) -> bool {
    job.reduced_run > 0 && job.state == JobState::Succeeded
}

/// What a watcher is told.
pub fn event(event: JobEvent) -> v1::JobEvent {
    v1::JobEvent { job: Some(job(event.job)), at_ms: now(), tasks_per_second: event.rate, notes: event.notes }
}

/// A task as a list shows it.
pub fn task(job: &Job, task: Task) -> v1::Task {
    let progress = &task.progress;
    let (state, outcome, updated_at) = match &progress.state {
        State::Ready { .. } => (v1::TaskState::Queued, None, progress.ready_at),
        State::Leased(lease) => (v1::TaskState::Running, None, lease.leased_at),
        State::Done(outcome) => (v1::TaskState::Done, Some(*outcome), progress.ready_at),
    };
    // What the limits are does not matter here.
    let attempt = match job.reduce.as_ref().filter(|_| task.reduce) {
        Some(reduce) => job.spec.reduce_attempt(reduce, &Limits::default()),
        None => job.spec.attempt(&task.spec, &Limits::default()),
    };
    let own_source = task.spec.source.is_some();
    let commit = if task.commit.is_empty() && !own_source { job.commit.clone() } else { task.commit };
    v1::Task {
        job_id: task.key.job.into(),
        task_id: task.key.task.into(),
        project: task.project.into(),
        state: state.into(),
        outcome: outcome.map_or(v1::Outcome::Unspecified, Into::into).into(),
        attempt: progress.attempt,
        user_failures: progress.user_failures,
        infrastructure_failures: progress.infrastructure_failures,
        worker: progress.lease().map(|lease| lease.worker.to_string()).unwrap_or_default(),
        command: Some(Command::into(attempt.command)),
        git_url: without_password(&attempt.source.git_url),
        commit,
        updated_at_ms: updated_at,
        cancel_requested: progress.cancel_requested,
        attempts: Vec::new(),
        result: None,
    }
}

/// A task with its story.
pub fn task_story(job: &Job, view: TaskView) -> v1::Task {
    let mut shown = task(job, view.task);
    shown.attempts = view.attempts.into_iter().map(attempt).collect();
    if let Some(running) = view.running {
        shown.attempts.push(running_attempt(&running));
    }
    if let Some(result) = view.result {
        shown.updated_at_ms = result.finished_at;
        shown.worker.clone_from(&result.worker);
        shown.result = Some(result.into());
    }
    shown
}

fn attempt(attempt: Attempt) -> v1::Attempt {
    v1::Attempt {
        attempt: attempt.attempt,
        worker: attempt.worker.into(),
        leased_at_ms: attempt.leased_at,
        finished_at_ms: attempt.finished_at,
        outcome: v1::Outcome::from(attempt.outcome).into(),
        message: attempt.message,
    }
}

fn running_attempt(running: &Running) -> v1::Attempt {
    let lease = running.task.progress.lease();
    v1::Attempt {
        attempt: running.task.progress.attempt,
        worker: lease.map(|l| l.worker.to_string()).unwrap_or_default(),
        leased_at_ms: lease.map_or(0, |l| l.leased_at),
        finished_at_ms: 0,
        outcome: v1::Outcome::Unspecified.into(),
        message: running.phase.clone(),
    }
}

/// An image build.
pub fn build(build: Build) -> v1::Build {
    v1::Build {
        worker: build.worker,
        image: build.image,
        commit: build.commit,
        succeeded: build.succeeded,
        started_at_ms: build.started_at,
        took_ms: build.took_ms,
        steps: build.steps,
        cached_steps: build.cached_steps,
        log: build.log,
        log_truncated: build.log_truncated,
    }
}

/// A worker's new certificate.
pub fn enrolled(enrolled: Enrolled) -> v1::EnrollResponse {
    v1::EnrollResponse {
        certificate_pem: enrolled.certificate_pem,
        ca_pem: enrolled.ca_pem,
        expires_at_ms: enrolled.expires_at,
    }
}

/// A worker with what runs there.
pub fn worker(view: WorkerView) -> v1::Worker {
    let running: Vec<_> = view.running.iter().map(running_on).collect();
    v1::Worker {
        name: view.worker.name.into(),
        connected: view.connected,
        paused: view.worker.paused || view.draining,
        slots: view.slots,
        busy_slots: u32::try_from(running.len()).unwrap_or(u32::MAX),
        labels: view.labels,
        version: view.version,
        connected_at_ms: view.connected_at,
        last_seen_at_ms: view.last_seen_at,
        certificate_expires_at_ms: view.worker.certificate_expires_at,
        revoked: view.worker.revoked,
        running,
    }
}

fn running_on(running: &Running) -> v1::Running {
    let task = &running.task;
    v1::Running {
        project: task.project.to_string(),
        job_id: task.key.job.to_string(),
        task_id: task.key.task.to_string(),
        attempt: task.progress.attempt,
        phase: running.phase.clone(),
        container_id: running.container_id.clone(),
        leased_at_ms: task.progress.lease().map_or(0, |lease| lease.leased_at),
        image: running.image.clone(),
    }
}

/// A token, without its secret.
pub fn token(token: &Token) -> v1::Token {
    v1::Token {
        token_id: token.id.clone(),
        name: token.name.clone(),
        role: role(token.role).into(),
        projects: token.projects.iter().map(ToString::to_string).collect(),
        created_at_ms: token.created_at,
        expires_at_ms: token.expires_at,
        revoked_at_ms: token.revoked_at,
        last_used_at_ms: token.last_used_at,
    }
}

fn role(role: Role) -> v1::Role {
    match role {
        Role::Admin => v1::Role::Admin,
        Role::Submitter => v1::Role::Submitter,
        Role::Viewer => v1::Role::Viewer,
        Role::Worker => v1::Role::Worker,
    }
}
