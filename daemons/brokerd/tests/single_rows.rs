//! The broker on a ledger that changes one row at a time, with workers and restarts in between.
#![allow(clippy::unwrap_used, clippy::large_futures)]

mod plain;
#[allow(dead_code)]
mod rig;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use codering_core::{JobSpec, Outcome, QueueName, job::JobState, message::DoneMessage};
use rig::*;

const TASKS: usize = 60;
const WORKERS: usize = 3;

/// Answers all that it is given: the first attempt of each fifth task is our failure, each report is sent twice.
async fn work(mut worker: Worker, doubled: Arc<AtomicU32>) {
    loop {
        let assignment = worker.assignment_while_beating().await;
        let number: usize = assignment.task_id.parse().unwrap_or(1);
        let outcome = match number.is_multiple_of(5) && assignment.attempt == 1 {
            true => Outcome::InfrastructureError,
            false => Outcome::Succeeded,
        };
        let answers = [
            worker.report(&assignment, outcome, &assignment.task_id).await,
            worker.report(&assignment, outcome, &assignment.task_id).await,
        ];
        if answers[1] {
            doubled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_9_the_batch_flow_runs_whole_on_a_store_that_can_change_one_row_at_a_time() {
    let doubled = Arc::new(AtomicU32::new(0));
    let mut rig = Rig::on(Arc::new(plain::PlainLedger::default())).await;
    let spec = JobSpec { reduce: Some(reduce("sum")), ..spec() };
    let job = rig.submit(spec, tasks(TASKS)).await;
    for part in 1..=3 {
        let mut workers = tokio::task::JoinSet::new();
        for n in 0..WORKERS {
            workers.spawn(work(rig.worker(&format!("w{n}"), 2).await, doubled.clone()));
        }
        let enough = (TASKS * part / 3) as u64;
        until("a third more is done", async || {
            (rig.job(&job).await.counts.succeeded >= enough).then_some(())
        })
        .await;
        if part == 3 {
            rig.reaches(&job, JobState::Succeeded).await;
        }
        workers.shutdown().await;
        rig = rig.restart().await;
    }
    assert_eq!(doubled.load(Ordering::Relaxed), 0, "a second report was recorded");
    let page = rig.ledger.results(&job.id, &[], None, 1000).await.unwrap();
    assert_eq!(page.len(), TASKS, "one result a task");
    let done = QueueName::done(&pi());
    let expected = TASKS + 1; // the reduce step's too
    let mut seen = BTreeSet::new();
    until("each result is on the done queue", async || {
        while let Some(body) = rig.broker.get(&done).await.unwrap() {
            seen.insert(serde_json::from_slice::<DoneMessage>(&body).unwrap().task_id.to_string());
        }
        (seen.len() == expected).then_some(())
    })
    .await;
}
