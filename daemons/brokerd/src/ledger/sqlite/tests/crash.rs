//! Invariant 1, the ledger's part: what it acknowledged is there after kill -9.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use super::*;

const TASKS: u64 = 64;

/// Swaps without end, and says so on its standard output after each answer: `seq version`.
async fn swap_forever(directory: &Path) {
    let ledger = open_in(directory).await;
    let job = conformance::job("crash", 1);
    let mut running = tokio::task::JoinSet::new();
    for seq in 0..TASKS {
        let (ledger, key, job) = (ledger.clone(), key(&job, seq), job.clone());
        running.spawn(async move {
            loop {
                let stored = ledger.task(&key).await.unwrap().unwrap();
                let (event, record) = match stored.progress.state {
                    codering_core::task::State::Ready { .. } => (leased_by(1), Record::Nothing),
                    codering_core::task::State::Leased(_) => (
                        Event::Complete { token: token(1), outcome: Outcome::Succeeded },
                        Record::Result(Box::new(result(&job, seq, Outcome::Succeeded)), None),
                    ),
                    codering_core::task::State::Done(_) => (Event::Retry, Record::Forget),
                };
                let change = conformance::next(&stored, event, record);
                let version = change.progress.version;
                assert_eq!(ledger.swap_task(change).await.unwrap(), Swapped::Yes);
                let mut out = std::io::stdout().lock();
                writeln!(out, "acknowledged {seq} {version}").unwrap();
                out.flush().unwrap();
            }
        });
    }
    while running.join_next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_swap_is_there_after_kill_9() {
    if let Some(directory) = as_child() {
        return swap_forever(&directory).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    let job = committed(&*ledger, "crash", 1, TASKS).await;
    ledger.close().await;

    let mut versions: HashMap<u64, u64> = (0..TASKS).map(|seq| (seq, 1)).collect();
    for round in 1..=6 {
        let acknowledged = kill_one(directory.path(), rand::random_range(100..3_000), &mut versions);
        let ledger = open_in(directory.path()).await;
        check(&*ledger, &job, &mut versions).await;
        ledger.close().await;
        let _ = writeln!(std::io::stderr(), "round {round}: killed after {acknowledged} swaps");
    }
}

/// Kills a child after so many answers; counts those too that it gave before it died.
fn kill_one(directory: &Path, after: u32, versions: &mut HashMap<u64, u64>) -> u32 {
    let name = "crash::every_acknowledged_swap_is_there_after_kill_9";
    let mut child = child(name, directory).stdout(Stdio::piped()).spawn().unwrap();
    let mut acknowledged = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::result::Result::ok) {
        let mut words = line.split(' ').skip_while(|word| *word != "acknowledged").skip(1);
        // The line that the kill cut short was not acknowledged whole.
        let (Some(Ok(seq)), Some(Ok(version))) =
            (words.next().map(str::parse::<u64>), words.next().map(str::parse::<u64>))
        else {
            continue;
        };
        acknowledged += 1;
        let newest = versions.get_mut(&seq).unwrap();
        assert!(version > *newest, "task {seq} went from {newest} to {version}");
        *newest = version;
        if acknowledged == after {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert!(!status.success() && acknowledged >= after, "{status}, {acknowledged} of {after}");
    acknowledged
}

/// A task is where its last answer said, or one unanswered swap further; its result goes with it.
async fn check(ledger: &dyn Ledger, job: &Job, versions: &mut HashMap<u64, u64>) {
    let mut counts = TaskCounts::default();
    for (seq, acknowledged) in versions {
        let task = ledger.task(&key(job, *seq)).await.unwrap().unwrap();
        let version = task.progress.version;
        assert!((*acknowledged..=*acknowledged + 1).contains(&version), "{acknowledged} and {version}");
        *acknowledged = version;
        let done = matches!(task.progress.state, codering_core::task::State::Done(_));
        assert_eq!(ledger.result(&task.key).await.unwrap().is_some(), done);
        counts.add(&task.progress.state, 1);
        counts.retried += u64::from(task.progress.attempt.saturating_sub(1));
    }
    assert_eq!(ledger.counts(&job.id).await.unwrap(), counts);
    let usage = ledger.usage(&job.spec.project).await.unwrap();
    let results = ledger.results(&job.id, &[], None, 1000).await.unwrap();
    assert_eq!(usage.result_bytes, results.iter().map(|(_, result)| result.bytes()).sum::<u64>());
}
