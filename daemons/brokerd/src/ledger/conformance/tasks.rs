//! Tasks by where they stand.

use std::collections::HashSet;

use codering_core::task::LONGEST_PAUSE_MS;

use super::*;

pub(super) async fn suite(ledger: &dyn Ledger) {
    let job = committed(ledger, "counts", 500, 8).await;
    for (seq, outcome) in [Outcome::Succeeded, Outcome::TimedOut, Outcome::Cancelled].into_iter().enumerate()
    {
        complete(ledger, &job, seq as u64, outcome).await;
    }
    step(ledger, &key(&job, 3), leased_by(3), Record::Nothing).await;
    step(ledger, &key(&job, 4), Event::Publish, Record::Nothing).await;
    // A second attempt of one.
    step(ledger, &key(&job, 5), leased_by(5), Record::Nothing).await;
    step(ledger, &key(&job, 5), Event::Expire { token: token(5) }, Record::Nothing).await;
    step(ledger, &key(&job, 5), leased_by(6), Record::Nothing).await;

    let asked = [key(&job, 7), key(&job, 0), key(&job, 99), key(&job, 7)];
    let mut found = seqs(&ledger.tasks_of(&asked).await.unwrap());
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, [0, 7]);

    let counts =
        TaskCounts { total: 8, queued: 3, running: 2, succeeded: 1, failed: 1, cancelled: 1, retried: 1 };
    assert_eq!(ledger.counts(&job.id).await.unwrap(), counts);
    let leased = ledger.leased().await.unwrap();
    let ours: Vec<u64> = leased.iter().filter(|task| task.key.job == job.id).map(|task| task.seq).collect();
    assert_eq!(ours, [3, 5]);
    let usage = Usage { queued_tasks: 3, running_tasks: 2, result_bytes: 6, unfinished_jobs: 1 };
    assert_eq!(ledger.usage(&job.spec.project).await.unwrap(), usage);

    let page = async |stands, outcomes: &[Outcome]| {
        let filter = TaskFilter { stands, outcomes: outcomes.to_vec() };
        seqs(&ledger.tasks(&job.id, filter, None, 100).await.unwrap())
    };
    assert_eq!(page(None, &[]).await, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(page(Some(Stands::Queued), &[]).await, [4, 6, 7]);
    assert_eq!(page(Some(Stands::Running), &[]).await, [3, 5]);
    assert_eq!(page(Some(Stands::Done), &[]).await, [0, 1, 2]);
    assert_eq!(page(None, &[Outcome::TimedOut, Outcome::Cancelled]).await, [1, 2]);
    assert_eq!(page(Some(Stands::Done), &[Outcome::Succeeded]).await, [0]);
    assert_eq!(page(Some(Stands::Queued), &[Outcome::Succeeded]).await, [0; 0]);
    let filter = TaskFilter { stands: Some(Stands::Queued), outcomes: Vec::new() };
    assert_eq!(seqs(&ledger.tasks(&job.id, filter, Some(4), 1).await.unwrap()), [6]);

    reduce_steps(ledger, &job, counts).await;
}

/// They are leased and published like tasks, and neither counted nor listed.
async fn reduce_steps(ledger: &dyn Ledger, job: &Job, counts: TaskCounts) {
    assert_eq!(ledger.newest_reduce(&job.id).await.unwrap(), None);
    let reduce = |run: u32| {
        let id = TaskId::reduce(run);
        let key = TaskKey { job: job.id.clone(), task: id.clone() };
        let seq = u64::MAX - u64::from(run);
        Task { key, seq, reduce: true, spec: TaskSpec::new(id), ..task(job, 0) }
    };
    for run in 1..=10 {
        assert!(ledger.insert_task(reduce(run)).await.unwrap());
        assert_eq!(ledger.newest_reduce(&job.id).await.unwrap(), Some(reduce(run)));
    }
    let unpublished = ledger.unpublished(&job.spec.project, NOW, 100, &HashSet::new()).await.unwrap();
    assert_eq!(unpublished.iter().filter(|task| task.reduce).count(), 10);
    step(ledger, &reduce(9).key, Event::Publish, Record::Nothing).await;
    assert_eq!(ledger.published_count(&job.spec.project).await.unwrap(), 2);
    step(ledger, &reduce(10).key, leased_by(9), Record::Nothing).await;
    assert_eq!(ledger.leased().await.unwrap().iter().filter(|task| task.reduce).count(), 1);
    let complete = Event::Complete { token: token(9), outcome: Outcome::Succeeded };
    let result = TaskResult { task: TaskId::reduce(10), ..result(job, 0, Outcome::Succeeded) };
    step(ledger, &reduce(10).key, complete, Record::Result(Box::new(result.clone()), None)).await;
    assert_eq!(ledger.result(&reduce(10).key).await.unwrap(), Some(result));
    assert_eq!(ledger.counts(&job.id).await.unwrap(), counts);
    let everything = ledger.tasks(&job.id, TaskFilter::default(), None, 100).await.unwrap();
    assert_eq!(everything.len(), 8);
    let results = ledger.results(&job.id, &[], None, 100).await.unwrap();
    assert_eq!(results.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [0, 1, 2]);
}

/// What is to be published, and what was.
pub(super) async fn outbox(ledger: &dyn Ledger) {
    let name = project("outbox");
    let older = committed(ledger, "outbox", 600, 3).await;
    let mut newer = job("outbox", 601);
    assert_eq!(ledger.begin_job(newer.clone(), None).await.unwrap(), Begun::New);
    let tasks = (0..3).map(|seq| {
        let mut task = task(&newer, seq);
        // The first of them is older than the older job's.
        task.progress.ready_at = NOW - 1 + seq as i64;
        task
    });
    assert_eq!(ledger.add_tasks(&newer.id, tasks.collect()).await.unwrap(), None);
    ledger.commit_job(&newer.id).await.unwrap();

    let shown = async |now, limit| -> Vec<String> {
        let tasks = ledger.unpublished(&name, now, limit, &HashSet::new()).await.unwrap();
        let which = |task: &Task| if task.key.job == older.id { "older" } else { "newer" };
        tasks.iter().map(|task| format!("{}/{}", which(task), task.seq)).collect()
    };
    let all = ["newer/0", "older/0", "older/1", "older/2", "newer/1", "newer/2"];
    assert_eq!(shown(NOW, 100).await, all);
    for limit in 1..6 {
        assert_eq!(shown(NOW, limit).await, all[..limit as usize]);
    }

    // A task whose time has not come is left out, and says when it will.
    let mut later = change(ledger, &key(&older, 0), Event::Publish, Record::Nothing).await;
    later.progress.state = State::Ready { published: false, not_before: NOW + 500 };
    assert_eq!(ledger.swap_task(later).await.unwrap(), Swapped::Yes);
    assert_eq!(shown(NOW + 499, 2).await, ["newer/0", "older/1"]);
    assert_eq!(shown(NOW + 500, 100).await.len(), 6);
    let earliest = async || {
        let projects = ledger.projects_with_unpublished().await.unwrap();
        projects.into_iter().find(|(seen, _)| *seen == name).map(|(_, at)| at)
    };
    assert_eq!(earliest().await, Some(0));

    // Nothing of a paused job.
    newer.paused = true;
    ledger.update_job(newer.clone()).await.unwrap();
    assert_eq!(shown(NOW, 100).await, ["older/1", "older/2"]);
    for seq in 1..3 {
        step(ledger, &key(&older, seq), Event::Publish, Record::Nothing).await;
    }
    assert_eq!(shown(NOW, 100).await, [""; 0]);
    assert_eq!(earliest().await, Some(NOW + 500));
    // Its time was written under a clock that has been set back by an hour since.
    assert_eq!(shown(NOW + 500 - LONGEST_PAUSE_MS, 100).await, [""; 0]);
    assert_eq!(shown(NOW - 3_600_000, 100).await, ["older/0"]);
    step(ledger, &key(&older, 0), Event::Publish, Record::Nothing).await;
    assert_eq!(earliest().await, None);
    newer.paused = false;
    ledger.update_job(newer.clone()).await.unwrap();
    step(ledger, &key(&newer, 2), Event::Publish, Record::Nothing).await;

    // The published ones in the order of their keys, in pages, over the jobs' bounds.
    assert_eq!(ledger.published_count(&name).await.unwrap(), 4);
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = ledger.published(&name, after.clone(), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 2);
        after = Some(last.key.clone());
        seen.extend(page.into_iter().map(|task| task.key));
    }
    assert_eq!(seen, [key(&older, 0), key(&older, 1), key(&older, 2), key(&newer, 2)]);
    let longest = async |limit| ledger.longest_published(&name, limit).await.unwrap();
    let keys: Vec<_> = longest(3).await.into_iter().map(|task| task.key).collect();
    assert_eq!(keys, seen[..3], "by job, and in the order of its tasks");
    assert_eq!(longest(100).await.len(), 4);
    step(ledger, &key(&older, 1), Event::Unpublish, Record::Nothing).await;
    step(ledger, &key(&older, 2), leased_by(1), Record::Nothing).await;
    assert_eq!(ledger.published_count(&name).await.unwrap(), 2);
    assert_eq!(ledger.published(&name, None, 100).await.unwrap().len(), 2);
    assert_eq!(shown(NOW, 1).await, ["newer/0"]);
}

/// Pages join up, also where their weight ends them.
pub(super) async fn paging(ledger: &dyn Ledger) {
    let job = job("paging", 700);
    assert_eq!(ledger.begin_job(job.clone(), None).await.unwrap(), Begun::New);
    // Not in the order in which they were added, and heavy.
    for seq in (0..24).rev() {
        let mut task = task(&job, seq);
        task.spec.stdin = vec![7; 1 << 20];
        assert_eq!(ledger.add_tasks(&job.id, vec![task]).await.unwrap(), None);
    }
    ledger.commit_job(&job.id).await.unwrap();
    for limit in [5, 1000] {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let page = ledger.tasks(&job.id, TaskFilter::default(), after, limit).await.unwrap();
            let Some(last) = page.last() else { break };
            let bytes: usize = page.iter().map(|task| task.spec.stdin.len()).sum();
            assert!(page.len() <= limit as usize && bytes <= PAGE_BYTES + (1 << 20), "{bytes}");
            after = Some(last.seq);
            seen.extend(seqs(&page));
        }
        assert_eq!(seen, (0..24).collect::<Vec<_>>());
    }
    let unpublished = ledger.unpublished(&job.spec.project, NOW, 1000, &HashSet::new()).await.unwrap();
    assert!((1..=9).contains(&unpublished.len()), "{}", unpublished.len());
    let over = HashSet::from([job.id.clone()]);
    assert_eq!(ledger.unpublished(&job.spec.project, NOW, 1000, &over).await.unwrap(), [], "passed over");
    ledger.delete_job(&job.id).await.unwrap();
}
