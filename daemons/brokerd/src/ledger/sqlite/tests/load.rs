use std::{
    collections::HashSet,
    io::Write,
    time::{Duration, Instant},
};

use super::*;

/// Generous, for a busy machine and an unoptimised build; the figures themselves are printed.
const PATIENCE: Duration = Duration::from_secs(60);

fn print(what: &str, count: u64, since: Instant) {
    let took = since.elapsed();
    let line = format!("{what}: {count} in {took:?}, {:.0} a second", count as f64 / took.as_secs_f64());
    let _ = writeln!(std::io::stderr(), "{line}");
    assert!(took < PATIENCE, "{line}");
}

async fn swap_all(ledger: &SharedLedger, changes: Vec<TaskChange>, at_once: usize) {
    let places = Arc::new(tokio::sync::Semaphore::new(at_once));
    let mut running = tokio::task::JoinSet::new();
    for change in changes {
        let place = places.clone().acquire_owned().await.unwrap();
        let ledger = ledger.clone();
        running.spawn(async move {
            assert_eq!(ledger.swap_task(change).await, Ok(Swapped::Yes));
            drop(place);
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_swaps_at_once_share_their_fsyncs() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    let job = committed(&*ledger, "fsyncs", 1, 2_000).await;
    let mut changes = Vec::new();
    for seq in 0..2_000 {
        changes.push(change(&*ledger, &key(&job, seq), leased_by(1), Record::Nothing).await);
    }
    let before = ledger.figures();
    let since = Instant::now();
    swap_all(&ledger, changes, 2_000).await;
    print("swaps, 2000 at once", 2_000, since);
    let after = ledger.figures();
    let (operations, commits) = (after.operations - before.operations, after.commits - before.commits);
    assert_eq!(operations, 2_000);
    assert!(commits < operations / 10, "{commits} commits for {operations} operations");
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_tasks_are_added_published_leased_and_done_in_good_time() {
    const TASKS: u64 = 100_000;
    const DONE: u64 = 10_000;
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    let since = Instant::now();
    let job = committed(&*ledger, "load", 1, TASKS).await;
    print("tasks added", TASKS, since);

    let name = &job.spec.project;
    let since = Instant::now();
    for _ in 0..DONE / 1000 {
        let page = ledger.unpublished(name, conformance::NOW, 1000, &HashSet::new()).await.unwrap();
        assert_eq!(page.len(), 1000);
        let changes = page.iter().map(|task| conformance::next(task, Event::Publish, Record::Nothing));
        swap_all(&ledger, changes.collect(), 256).await;
    }
    print("tasks read and published, 256 at once", DONE, since);

    let mut tasks = ledger.published(name, None, DONE as u32).await.unwrap();
    let leases: Vec<_> =
        tasks.iter().map(|task| conformance::next(task, leased_by(1), Record::Nothing)).collect();
    for (task, lease) in tasks.iter_mut().zip(&leases) {
        task.progress = lease.progress.clone();
    }
    let since = Instant::now();
    swap_all(&ledger, leases, 256).await;
    print("leases, 256 at once", DONE, since);

    let complete = Event::Complete { token: token(1), outcome: Outcome::Succeeded };
    let results = tasks.iter().map(|task| {
        let record = Record::Result(Box::new(result(&job, task.seq, Outcome::Succeeded)), None);
        conformance::next(task, complete.clone(), record)
    });
    let since = Instant::now();
    swap_all(&ledger, results.collect(), 256).await;
    print("results, 256 at once", DONE, since);

    let since = Instant::now();
    let counts = ledger.counts(&job.id).await.unwrap();
    assert_eq!((counts.queued, counts.succeeded), (TASKS - DONE, DONE));
    print("counts", 1, since);
    let since = Instant::now();
    ledger.delete_job(&job.id).await.unwrap();
    print("tasks deleted", TASKS, since);
    ledger.close().await;
}
