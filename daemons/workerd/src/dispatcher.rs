//! Assignments become attempts.

use std::{sync::Arc, time::Duration};

use codering_core::{LeaseToken, Outcome};
use codering_kit::{
    clock::now,
    fault::{self, Point},
};
use codering_proto::{convert::Assigned, v1};
use tokio::time::Instant;

use crate::{attempt, held::Held, worker::Worker};

/// Takes an assignment. Its lease counts from `since`, the newest moment that is certain to lie before the broker gave
/// it: when it arrived says nothing of how long it was on the way.
pub(crate) fn assign(worker: &Arc<Worker>, wire: v1::Assignment, since: Instant) {
    let (token, refused) = (wire.token.clone(), refusal(worker, &wire));
    let assigned = match Assigned::try_from(wire) {
        Ok(assigned) => assigned,
        Err(error) => {
            tracing::error!("an assignment that cannot be: {error}");
            if let (Ok(token), Some(mut report)) = (LeaseToken::new(&token), refused) {
                if let Some(result) = &mut report.result {
                    result.message = format!("the worker does not understand the assignment: {error}");
                }
                put(worker, token, report);
            }
            return;
        }
    };
    if worker.attempts.get(&assigned.token).is_some() || worker.spool.contains(&assigned.token) {
        return;
    }
    // They are on their way while the broker is told to send none; of those in memory there is never more than slots.
    if worker.spool.in_memory() >= worker.config.slots as usize
        && let Some(mut report) = refused
    {
        if let Some(result) = &mut report.result {
            result.message =
                "the worker's disk is full, and its memory holds all the results that it may".into();
        }
        put(worker, assigned.token, report);
        return;
    }
    let lease = Duration::from_millis(assigned.lease_ms);
    let held = Held::new(
        assigned.token.clone(),
        assigned.project.clone(),
        assigned.job.clone(),
        assigned.task.clone(),
        assigned.attempt,
        assigned.spec.limits.output_bytes,
        lease,
        since + lease,
    );
    worker.attempts.insert(held.clone());
    fault::reached(Point::Assigned);
    worker.metrics.running.set(i64::try_from(worker.attempts.len()).unwrap_or(i64::MAX));
    tracing::info!(job = %held.job, task = %held.task, attempt = held.attempt, "attempt begins");
    let shared = worker.clone();
    worker.tasks.spawn(async move {
        attempt::run(shared.clone(), assigned, held).await;
        shared.metrics.running.set(i64::try_from(shared.attempts.len()).unwrap_or(i64::MAX));
    });
}

/// What is reported of an assignment that is not run.
fn refusal(worker: &Worker, wire: &v1::Assignment) -> Option<v1::AttemptReport> {
    let result = v1::TaskResult {
        project: wire.project.clone(),
        job_id: wire.job_id.clone(),
        task_id: wire.task_id.clone(),
        attempt: wire.attempt,
        outcome: v1::Outcome::from(Outcome::InfrastructureError) as i32,
        started_at_ms: now(),
        finished_at_ms: now(),
        worker: worker.name.to_string(),
        ..Default::default()
    };
    Some(v1::AttemptReport { token: wire.token.clone(), result: Some(result) })
}

fn put(worker: &Arc<Worker>, token: LeaseToken, report: v1::AttemptReport) {
    let spool = worker.spool.clone();
    // fault: the spool names its own.
    worker.tasks.spawn_blocking(move || spool.put(&token, report));
}
