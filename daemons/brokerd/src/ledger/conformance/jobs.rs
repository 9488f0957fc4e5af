//! Jobs: visible all at once, found by key, page and prefix, let go in the end.

use std::collections::HashSet;

use codering_core::Reduce;

use super::*;

pub(super) async fn suite(ledger: &dyn Ledger) {
    let name = project("jobs");
    let job = job("jobs", 100);
    assert_eq!(ledger.begin_job(job.clone(), None).await.unwrap(), Begun::New);
    assert_eq!(ledger.begin_job(job.clone(), None).await.unwrap(), Begun::Busy, "the id is taken");
    let own = with_everything(&job, 1);
    assert_eq!(ledger.add_tasks(&job.id, vec![task(&job, 0), own.clone()]).await.unwrap(), None);

    // One that is there already, among new ones or twice in one call: nothing is added.
    for twice in [vec![task(&job, 2), task(&job, 1)], vec![task(&job, 2), task(&job, 3), task(&job, 2)]] {
        let there = twice.last().map(|task| task.key.task.clone());
        assert_eq!(ledger.add_tasks(&job.id, twice).await.unwrap(), there);
    }

    // Before the commit nobody sees any of it.
    let first = key(&job, 0);
    assert_eq!(ledger.job(&job.id).await.unwrap(), None);
    assert_eq!(ledger.task(&first).await.unwrap(), None);
    assert_eq!(ledger.jobs_by_prefix(job.id.as_str(), None, 9).await.unwrap(), []);
    assert_eq!(list(ledger, "jobs", None).await, []);
    assert_eq!(ledger.tasks(&job.id, TaskFilter::default(), None, 9).await.unwrap(), []);
    assert_eq!(ledger.unpublished(&name, NOW, 9, &HashSet::new()).await.unwrap(), []);
    assert_eq!(ledger.counts(&job.id).await.unwrap(), TaskCounts::default());
    assert_eq!(ledger.usage(&name).await.unwrap(), Usage::default());
    assert!(ledger.unfinished_jobs().await.unwrap().iter().all(|seen| *seen != job.id));
    assert!(ledger.projects_with_unpublished().await.unwrap().iter().all(|(seen, _)| *seen != name));
    let blind = TaskChange {
        key: first.clone(),
        expected_version: 1,
        progress: task(&job, 0).progress,
        commit: None,
        record: Record::Nothing,
    };
    assert_eq!(ledger.swap_task(blind).await.unwrap(), Swapped::No);
    assert!(ledger.insert_task(task(&job, 7)).await.is_err(), "the job is not committed");

    ledger.commit_job(&job.id).await.unwrap();
    assert_eq!(ledger.job(&job.id).await.unwrap(), Some(job.clone()));
    assert_eq!(ledger.task(&own.key).await.unwrap(), Some(own.clone()));
    assert_eq!(
        ledger.tasks(&job.id, TaskFilter::default(), None, 9).await.unwrap(),
        [task(&job, 0), own.clone()]
    );
    let usage = Usage { queued_tasks: 2, unfinished_jobs: 1, ..Usage::default() };
    assert_eq!(ledger.usage(&name).await.unwrap(), usage);
    assert!(ledger.add_tasks(&job.id, vec![task(&job, 8)]).await.is_err(), "the job is committed");

    assert!(ledger.insert_task(task(&job, 2)).await.unwrap());
    assert!(!ledger.insert_task(Task { seq: 9, ..task(&job, 2) }).await.unwrap(), "the id is taken");
    assert_eq!(ledger.task(&key(&job, 2)).await.unwrap(), Some(task(&job, 2)));
    assert_eq!(
        ledger.counts(&job.id).await.unwrap(),
        TaskCounts { total: 3, queued: 3, retried: 1, ..Default::default() }
    );

    updates(ledger, job.clone()).await;

    ledger.delete_job(&job.id).await.unwrap();
    assert_eq!(ledger.job(&job.id).await.unwrap(), None);
    assert_eq!(ledger.task(&first).await.unwrap(), None);
    assert_eq!(ledger.usage(&name).await.unwrap(), Usage::default());
    ledger.delete_job(&job.id).await.unwrap();
    assert!(ledger.commit_job(&job.id).await.is_err(), "there is no such job");
    // Its id and its tasks' ids are free again.
    assert_eq!(ledger.begin_job(job.clone(), None).await.unwrap(), Begun::New);
    assert_eq!(ledger.add_tasks(&job.id, vec![task(&job, 0)]).await.unwrap(), None);
    assert_eq!(ledger.delete_uncommitted().await.unwrap(), 1);
    assert_eq!(ledger.delete_uncommitted().await.unwrap(), 0);
    assert!(ledger.commit_job(&job.id).await.is_err(), "there is no such job");
}

/// The last tasks, the row and the commit in one call.
pub(super) async fn finishes(ledger: &dyn Ledger) {
    let mut job = job("finishes", 150);
    assert_eq!(ledger.begin_job(job.clone(), None).await.unwrap(), Begun::New);
    assert_eq!(ledger.add_tasks(&job.id, vec![task(&job, 0)]).await.unwrap(), None);
    for twice in [vec![task(&job, 1), task(&job, 0)], vec![task(&job, 1), task(&job, 2), task(&job, 1)]] {
        let there = twice.last().map(|task| task.key.task.clone());
        assert_eq!(ledger.finish_job(job.clone(), twice).await.unwrap(), there);
        assert_eq!(ledger.job(&job.id).await.unwrap(), None, "it is not committed");
    }
    job.counts = TaskCounts { total: 2, queued: 2, ..TaskCounts::default() };
    assert_eq!(ledger.finish_job(job.clone(), vec![task(&job, 1)]).await.unwrap(), None);
    assert_eq!(ledger.job(&job.id).await.unwrap(), Some(job.clone()));
    let seen = ledger.tasks(&job.id, TaskFilter::default(), None, 9).await.unwrap();
    assert_eq!(seen, [task(&job, 0), task(&job, 1)]);
    assert_eq!(ledger.counts(&job.id).await.unwrap(), job.counts);
    ledger.delete_job(&job.id).await.unwrap();
    assert!(ledger.finish_job(job, Vec::new()).await.is_err(), "there is no such job");
}

fn with_everything(job: &Job, seq: u64) -> Task {
    let mut task = task(job, seq);
    task.spec.arg = Some("a b".into());
    task.spec.command = Some(Command::Argv(vec!["x".into(), "ü\n".into()]));
    task.spec.env = [("K".to_owned(), "v".to_owned())].into();
    task.spec.stdin = vec![0, 255, 10];
    task.spec.limits.cpus = Some(0.5);
    task.spec.source = Some(Source { git_ref: "v2".into(), ..job.spec.source.clone() });
    task.spec.extra.insert("odd".into(), serde_json::json!({"kept": [1, null]}));
    task.commit = "beef".into();
    task.progress.attempt = 2;
    task.progress.ready_at = NOW + 1;
    task
}

async fn updates(ledger: &dyn Ledger, mut job: Job) {
    job.state = JobState::Paused;
    job.counts = TaskCounts { total: 3, retried: 1, ..Default::default() };
    (job.paused, job.cancelled, job.open) = (true, true, true);
    job.commit = "abc".into();
    job.reduce = Some(Reduce {
        command: Command::Shell("sum".into()),
        output: "sum.txt".into(),
        limits: Default::default(),
    });
    (job.reduce_runs, job.reduced_run) = (4, 3);
    (job.started_at, job.finished_at) = (NOW + 1, NOW + 2);
    job.message = "a sentence".into();
    ledger.update_job(job.clone()).await.unwrap();
    assert_eq!(ledger.job(&job.id).await.unwrap(), Some(job));
}

/// An idempotency key belongs to its first job, in its project, until that goes.
pub(super) async fn keys(ledger: &dyn Ledger) {
    let begin = async |project_name: &str, n: u32| {
        ledger.begin_job(job(project_name, n), Some("k1".into())).await.unwrap()
    };
    let first = job("keys", 200);
    assert_eq!(begin("keys", 200).await, Begun::New);
    assert_eq!(begin("keys", 201).await, Begun::Busy, "its holder is not committed");
    assert_eq!(begin("other-keys", 202).await, Begun::New, "another project");
    ledger.commit_job(&first.id).await.unwrap();
    assert_eq!(begin("keys", 203).await, Begun::Existing(first.id.clone()));
    assert_eq!(ledger.begin_job(job("keys", 204), None).await.unwrap(), Begun::New);
    assert_eq!(ledger.begin_job(job("keys", 205), Some("k2".into())).await.unwrap(), Begun::New);
    ledger.delete_job(&first.id).await.unwrap();
    assert_eq!(begin("keys", 206).await, Begun::New, "the key is free again");
    assert_eq!(ledger.delete_uncommitted().await.unwrap(), 4);
    assert_eq!(begin("keys", 207).await, Begun::New, "the key is free again");
    assert_eq!(ledger.delete_uncommitted().await.unwrap(), 1);
}

async fn list(ledger: &dyn Ledger, project_name: &str, state: Option<JobState>) -> Vec<Job> {
    let filter = JobFilter { projects: Some(vec![project(project_name)]), state };
    ledger.jobs(filter, None, 100).await.unwrap()
}

fn ids(jobs: &[Job]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id.clone()).collect()
}

pub(super) async fn lists(ledger: &dyn Ledger) {
    let mut jobs = Vec::new();
    for n in 300..306 {
        jobs.push(committed(ledger, if n < 305 { "lists" } else { "lists-2" }, n, 0).await);
    }
    for (n, job) in jobs.iter_mut().enumerate().take(4) {
        job.state = [JobState::Succeeded, JobState::Failed, JobState::Cancelled, JobState::Succeeded][n];
        job.finished_at = NOW + 10 + n as i64;
        ledger.update_job(job.clone()).await.unwrap();
    }
    let newest_first: Vec<JobId> = ids(&jobs[..5]).into_iter().rev().collect();
    assert_eq!(ids(&list(ledger, "lists", None).await), newest_first);
    assert_eq!(list(ledger, "lists", Some(JobState::Succeeded)).await, [jobs[3].clone(), jobs[0].clone()]);
    let both = JobFilter { projects: Some(vec![project("lists"), project("lists-2")]), state: None };
    let page = ledger.jobs(both.clone(), None, 2).await.unwrap();
    assert_eq!(ids(&page), [jobs[5].id.clone(), jobs[4].id.clone()]);
    let next = ledger.jobs(both, Some(page[1].id.clone()), 2).await.unwrap();
    assert_eq!(ids(&next), [jobs[3].id.clone(), jobs[2].id.clone()]);
    let none = JobFilter { projects: Some(Vec::new()), state: None };
    assert_eq!(ledger.jobs(none, None, 9).await.unwrap(), []);
    assert!(ledger.jobs(JobFilter::default(), None, 100).await.unwrap().len() >= 6);

    let prefix = &jobs[0].id.as_str()[..11];
    let found = ledger.jobs_by_prefix(prefix, None, 100).await.unwrap();
    assert!(found.contains(&jobs[0]) && found.iter().all(|job| job.id.as_str().starts_with(prefix)));
    assert_eq!(ledger.jobs_by_prefix(jobs[1].id.as_str(), None, 2).await.unwrap(), [jobs[1].clone()]);
    assert_eq!(ledger.jobs_by_prefix("j-", None, 3).await.unwrap().len(), 3);
    // The bound is one of those that may be seen.
    let seen = ledger.jobs_by_prefix("j-", Some(&[project("lists-2")]), 1).await.unwrap();
    assert_eq!(seen, [jobs[5].clone()]);
    assert_eq!(ledger.jobs_by_prefix("j-", Some(&[]), 9).await.unwrap(), []);
    for nothing in ["x", "%", "j-~", "J-"] {
        assert_eq!(ledger.jobs_by_prefix(nothing, None, 9).await.unwrap(), [], "{nothing}");
    }

    let unfinished = ledger.unfinished_jobs().await.unwrap();
    let of_ours: Vec<_> = unfinished.iter().filter(|id| ids(&jobs).contains(id)).collect();
    assert_eq!(of_ours, [&jobs[4].id, &jobs[5].id]);
    let mut made = Vec::new();
    for id in &unfinished {
        made.push(ledger.job(id).await.unwrap().unwrap().created_at);
    }
    assert!(made.is_sorted(), "{made:?}");

    // All its tasks are done, and it has not ended: an open job that takes more.
    let mut open = jobs[4].clone();
    (open.state, open.open) = (JobState::Succeeded, true);
    ledger.update_job(open.clone()).await.unwrap();
    assert!(ledger.unfinished_jobs().await.unwrap().contains(&open.id));

    // Finished before a time, or beyond the newest so many; never what is not finished.
    let expired = async |before, keep, limit| ledger.expired_jobs(before, keep, limit).await.unwrap();
    assert_eq!(expired(NOW, 100, 9).await, []);
    assert_eq!(expired(NOW + 12, 100, 9).await, ids(&jobs[..2]));
    assert_eq!(expired(NOW, 1, 9).await, ids(&jobs[..3]));
    assert_eq!(expired(NOW + 99, 0, 9).await, ids(&jobs[..4]));
    assert_eq!(expired(NOW + 99, 0, 2).await, ids(&jobs[..2]));
}

pub(super) async fn builds(ledger: &dyn Ledger) {
    let job = committed(ledger, "builds", 400, 0).await;
    let build = |worker: &str, started_at| Build {
        worker: worker.into(),
        image: "pi:1".into(),
        commit: "abc".into(),
        succeeded: false,
        started_at,
        took_ms: 5,
        steps: 3,
        cached_steps: 2,
        log: "Step 1\n".into(),
        log_truncated: true,
    };
    for build in [build("w2", 2), build("w1", 1), build("w2", 3)] {
        ledger.put_build(&job.id, build).await.unwrap();
    }
    assert_eq!(ledger.builds(&job.id).await.unwrap(), [build("w1", 1), build("w2", 3)]);
    ledger.delete_job(&job.id).await.unwrap();
    assert_eq!(ledger.builds(&job.id).await.unwrap(), []);
    ledger.put_build(&job.id, build("w1", 4)).await.unwrap();
    assert_eq!(ledger.builds(&job.id).await.unwrap(), []);
}
