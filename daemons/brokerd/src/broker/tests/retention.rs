//! What retention lets go.

use std::{collections::BTreeSet, time::Duration};

use codering_core::{JobId, JobSpec, Outcome, job::JobState};

use super::rig::*;
use crate::ledger::{Begun, Job};

/// Jobs of a project that ended long ago, straight into the ledger.
async fn finished(rig: &Rig, project: &str, n: u32) -> Vec<JobId> {
    let mut ids = Vec::new();
    for n in 0..n {
        let spec = JobSpec { project: project.parse().unwrap(), ..spec() };
        let mut job = Job::new(JobId::at(1_763_722_560_000, n), spec, "test", 1);
        (job.state, job.finished_at) = (JobState::Succeeded, 1);
        assert_eq!(rig.ledger.begin_job(job.clone(), None).await.unwrap(), Begun::New);
        rig.ledger.commit_job(&job.id).await.unwrap();
        ids.push(job.id);
    }
    ids
}

#[tokio::test]
async fn all_that_retention_lets_go_goes_at_once_however_much_it_is() {
    let rig = Rig::new().await;
    finished(&rig, "pi", 250).await;
    rig.broker.expire_jobs().await.unwrap();
    assert_eq!(rig.ledger.jobs(Default::default(), None, 1000).await.unwrap().len(), 0);
}

#[tokio::test]
async fn what_comes_while_old_jobs_are_let_go_is_counted_once() {
    let rig = Rig::with(|s| s.keep_jobs = 0).await;
    let mut worker = rig.worker("w1", 1).await;
    let mut queued = 0;
    for round in 0..40 {
        let job = rig.submit(spec(), tasks(1)).await;
        let held = worker.assignment().await;
        worker.report(&held, Outcome::Succeeded, "old").await;
        rig.reaches(&job, JobState::Succeeded).await;
        until("it is forgotten", async || rig.broker.jobs.get(&job.id).is_none().then_some(())).await;
        until("its result is told", async || {
            rig.ledger.unpublished_results(1).await.unwrap().is_empty().then_some(())
        })
        .await;
        let labels = [("nobody".to_owned(), "has".to_owned())];
        let submits = async {
            for _ in 0..3 {
                rig.submit(JobSpec { labels: labels.clone().into(), ..spec() }, tasks(1)).await;
            }
        };
        let (expired, ()) = tokio::join!(rig.broker.expire_jobs(), submits);
        expired.unwrap();
        queued += 3;
        let shown = rig.broker.project(&pi()).await.unwrap().usage;
        assert_eq!((shown.queued_tasks, shown.result_bytes), (queued, 0), "round {round}");
    }
}

#[tokio::test]
async fn a_finished_job_that_a_verb_could_not_take_up_does_not_stay_in_memory() {
    let rig = Rig::new().await;
    let id = finished(&rig, "pi", 1).await.remove(0);
    // As far as a verb comes whose write fails.
    rig.broker.load_job(rig.ledger.job(&id).await.unwrap().unwrap()).await.unwrap();
    until("it is forgotten", async || rig.broker.jobs.get(&id).is_none().then_some(())).await;
}

#[tokio::test]
async fn what_is_left_of_a_job_that_could_not_be_removed_goes_later_and_is_counted() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let job = rig.submit(spec(), tasks(1)).await;
    let held = worker.assignment().await;
    worker.report(&held, Outcome::Succeeded, "old").await;
    rig.reaches(&job, JobState::Succeeded).await;
    rig.broker.abandoned.push(job.id.clone(), pi());
    until("it is removed", async || rig.ledger.job(&job.id).await.unwrap().is_none().then_some(())).await;
    until("it is counted", async || {
        (rig.broker.project(&pi()).await.unwrap().usage.result_bytes == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nothing_is_let_go_while_a_verb_takes_a_finished_job_up_again() {
    let rig = Rig::with(|s| s.keep_jobs = 0).await;
    let taking_up = rig.broker.letting_go.read().await;
    let ids = finished(&rig, "pi", 1).await;
    let mut letting_go = std::pin::pin!(rig.broker.expire_jobs());
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut letting_go).await.is_err());
    assert!(rig.ledger.job(&ids[0]).await.unwrap().is_some());
    drop(taking_up);
    letting_go.await.unwrap();
    assert!(rig.ledger.job(&ids[0]).await.unwrap().is_none());
}

#[tokio::test]
async fn a_token_that_sees_one_project_finds_its_job_behind_those_of_others() {
    let rig = Rig::new().await;
    let others: BTreeSet<_> = finished(&rig, "other", 1001).await.into_iter().collect();
    let job = rig.submit(spec(), tasks(1)).await;
    assert!(others.iter().all(|other| *other < job.id), "the others come first");
    let found = rig.broker.find_job("j-", Some(&[pi()])).await.unwrap();
    assert_eq!(found.id, job.id);
}
