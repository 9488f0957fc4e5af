//! What a project holds, and what it may hold.

use codering_core::{Code, Outcome, TaskId, TaskKey, job::JobState, quota::Quota};

use super::rig::*;
use crate::broker::NewJob;

fn new_job() -> NewJob {
    NewJob { spec: spec(), idempotency_key: None, submitted_by: "test".into() }
}

async fn result_bytes(rig: &Rig) -> (u64, u64) {
    let shown = rig.broker.project(&pi()).await.unwrap().usage.result_bytes;
    (shown, rig.ledger.usage(&pi()).await.unwrap().result_bytes)
}

#[tokio::test]
async fn a_result_that_is_retried_counts_once_against_the_quota() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let job = rig.submit(spec(), tasks(1)).await;
    let key = TaskKey { job: job.id.clone(), task: TaskId::new("1").unwrap() };
    for round in 1..4 {
        let held = worker.assignment().await;
        worker.report(&held, Outcome::Succeeded, &"x".repeat(round)).await;
        rig.reaches(&job, JobState::Succeeded).await;
        assert_eq!(result_bytes(&rig).await, (round as u64, round as u64));
        rig.broker.retry_task(&key).await.unwrap();
        assert_eq!(result_bytes(&rig).await, (0, 0), "its result is forgotten");
    }
}

#[tokio::test]
async fn of_many_submits_at_once_no_more_are_let_in_than_the_quota_has_room_for() {
    let rig = Rig::new().await;
    rig.broker.set_quota(&pi(), Quota { queued_tasks: 5, ..Quota::default() }).await.unwrap();
    let mut submissions = Vec::new();
    for _ in 0..8 {
        let mut submission = rig.broker.submit(new_job()).await.unwrap();
        submission.add(tasks(4)).await.unwrap();
        submissions.push(submission.finish());
    }
    let answers = futures::future::join_all(submissions).await;
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(refused.len(), 7);
    assert!(refused.iter().all(|error| error.code == Code::QuotaExceeded), "{refused:?}");
    assert_eq!(rig.broker.project(&pi()).await.unwrap().usage.queued_tasks, 4);
    // Those that were refused hold no room.
    rig.submit(spec(), tasks(1)).await;
    let full = rig.broker.submit(new_job()).await.err().unwrap();
    assert!(full.to_string().contains("coderingctl project quota set pi --queued-tasks N"), "{full}");
}

#[tokio::test]
async fn a_broker_takes_no_more_jobs_than_it_may_hold_in_memory_until_one_ends() {
    let rig = Rig::with(|s| s.max_unfinished_jobs = 2).await;
    let first = rig.submit(spec(), tasks(1)).await;
    let second = NewJob { idempotency_key: Some("second".into()), ..new_job() };
    let mut submission = rig.broker.submit(second).await.unwrap();
    submission.add(tasks(1)).await.unwrap();
    let second = submission.finish().await.unwrap().0;
    for key in [None, Some("third".to_owned())] {
        let refused = rig.broker.submit(NewJob { idempotency_key: key, ..new_job() }).await.err().unwrap();
        assert_eq!(refused.code, Code::QuotaExceeded);
        assert!(refused.to_string().contains("limits.max_unfinished_jobs"), "{refused}");
    }
    // What was taken is answered again.
    let again = NewJob { idempotency_key: Some("second".into()), ..new_job() };
    assert_eq!(rig.broker.submit(again).await.unwrap().existing().unwrap().id, second.id);
    rig.broker.cancel_job(&first.id).await.unwrap();
    rig.reaches(&first, JobState::Cancelled).await;
    until("it is forgotten", async || rig.broker.jobs.get(&first.id).is_none().then_some(())).await;
    rig.submit(spec(), tasks(1)).await;
}

#[tokio::test]
async fn a_retry_and_what_it_retries_do_not_count_twice() {
    let rig = Rig::new().await;
    rig.broker.set_quota(&pi(), Quota { queued_tasks: 4, ..Quota::default() }).await.unwrap();
    let job = rig.submit(spec(), tasks(3)).await;
    rig.broker.cancel_job(&job.id).await.unwrap();
    rig.reaches(&job, JobState::Cancelled).await;
    assert_eq!(rig.broker.retry_job(&job.id).await.unwrap().1, 3);
    rig.submit(spec(), tasks(1)).await;
    assert_eq!(rig.broker.submit(new_job()).await.err().unwrap().code, Code::QuotaExceeded);
    rig.broker.cancel_job(&job.id).await.unwrap();
    rig.reaches(&job, JobState::Cancelled).await;
    rig.submit(spec(), tasks(3)).await;
}
