//! A reduce step and what else may come at a job that has one.

use codering_core::{Code, JobSpec, Outcome, TaskId, TaskKey, job::JobState};

use super::rig::*;
use crate::ledger::Job;

async fn job_with_reduce(rig: &Rig, worker: &mut Worker, n: usize) -> Job {
    let job = rig.submit(JobSpec { reduce: Some(reduce("sum")), ..spec() }, tasks(n)).await;
    for _ in 0..n {
        let assignment = worker.assignment().await;
        assert!(worker.report(&assignment, Outcome::Succeeded, "first").await);
    }
    job
}

#[tokio::test]
async fn a_retry_waits_for_the_reduce_step_that_reads_the_results_and_the_next_step_reads_the_new_ones() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 4).await;
    let job = job_with_reduce(&rig, &mut worker, 2).await;
    let step = worker.assignment().await;
    assert_eq!(step.task_id, "~reduce-1");
    let one = TaskKey { job: job.id.clone(), task: TaskId::new("1").unwrap() };
    for refused in
        [rig.broker.retry_task(&one).await.map(drop), rig.broker.retry_job(&job.id).await.map(drop)]
    {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code, Code::JobUnfinished);
        assert!(refused.to_string().contains("coderingctl watch"), "{refused}");
    }
    assert_eq!(rig.ledger.result(&one).await.unwrap().unwrap().stdout, b"first", "nothing is forgotten");
    assert!(worker.report(&step, Outcome::Succeeded, "old").await);
    rig.reaches(&job, JobState::Succeeded).await;

    rig.broker.retry_task(&one).await.unwrap();
    let again = worker.assignment().await;
    assert_eq!(again.task_id, "1");
    worker.report(&again, Outcome::Succeeded, "second").await;
    let step = worker.assignment().await;
    assert_eq!(step.task_id, "~reduce-2");
    worker.report(&step, Outcome::Succeeded, "new").await;
    rig.reaches(&job, JobState::Succeeded).await;
    assert_eq!(rig.broker.answer(&job.id).await.unwrap().1, b"new");
}

#[tokio::test]
async fn a_retry_that_has_nothing_to_retry_leaves_the_answer_where_it_is() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 4).await;
    let job = job_with_reduce(&rig, &mut worker, 1).await;
    let step = worker.assignment().await;
    worker.report(&step, Outcome::Succeeded, "answer").await;
    rig.reaches(&job, JobState::Succeeded).await;
    assert_eq!(rig.broker.retry_job(&job.id).await.unwrap().1, 0);
    assert_eq!(rig.broker.answer(&job.id).await.unwrap().1, b"answer");
    assert!(worker.gets_nothing().await, "nothing runs again");
}

#[tokio::test]
async fn of_two_calls_that_reduce_a_job_at_once_one_makes_the_step_and_the_other_is_told_so() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 4).await;
    let job = job_with_reduce(&rig, &mut worker, 1).await;
    let first = worker.assignment().await;
    worker.report(&first, Outcome::Succeeded, "1").await;
    rig.reaches(&job, JobState::Succeeded).await;

    let calls = ["one", "other"].map(|command| rig.broker.reduce_job(&job.id, Some(reduce(command))));
    let answers = futures::future::join_all(calls).await;
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (1, 1));
    let refused = refused.into_iter().next().unwrap().unwrap_err();
    assert!([Code::BrokerBusy, Code::JobUnfinished].contains(&refused.code), "{refused}");

    let step = worker.assignment().await;
    assert_eq!(step.task_id, "~reduce-2");
    assert!(worker.gets_nothing().await, "there is one step");
    worker.report(&step, Outcome::Succeeded, "2").await;
    rig.reaches(&job, JobState::Succeeded).await;
    assert_eq!(rig.broker.answer(&job.id).await.unwrap().1, b"2");
}

#[tokio::test]
async fn a_retry_that_comes_while_a_job_is_reduced_leaves_no_step_over_tasks_that_run() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 4).await;
    let job = job_with_reduce(&rig, &mut worker, 1).await;
    let first = worker.assignment().await;
    worker.report(&first, Outcome::Succeeded, "1").await;
    let one = TaskKey { job: job.id.clone(), task: TaskId::new("1").unwrap() };
    for round in 2..8 {
        rig.reaches(&job, JobState::Succeeded).await;
        let (reduced, retried) =
            tokio::join!(rig.broker.reduce_job(&job.id, None), rig.broker.retry_task(&one));
        assert!(reduced.is_ok() != retried.is_ok(), "one of both: {reduced:?}, {retried:?}");
        if retried.is_ok() {
            let again = worker.assignment().await;
            assert_eq!(again.task_id, "1");
            worker.report(&again, Outcome::Succeeded, &round.to_string()).await;
        }
        let step = worker.assignment().await;
        assert_eq!(step.task_id, format!("~reduce-{round}"));
        worker.report(&step, Outcome::Succeeded, "").await;
    }
}

#[tokio::test]
async fn an_open_job_is_not_reduced_since_more_may_come() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let raw = r#"{"project_id":"pi","task_id":"17","git_url":"https://host/pi.git","command":"pi"}"#;
    rig.broker.put(&codering_core::QueueName::todo(&pi()), raw.into(), 0).await.unwrap();
    let assignment = worker.assignment().await;
    worker.report(&assignment, Outcome::Succeeded, "").await;
    let job = assignment.job_id.parse().unwrap();
    let refused = rig.broker.reduce_job(&job, Some(reduce("sum"))).await.unwrap_err();
    assert_eq!(refused.code, Code::JobUnfinished);
}
