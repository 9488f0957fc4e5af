mod audit;
mod crash;
mod full_disk;
mod load;
mod opening;

use super::*;
use crate::ledger::conformance::{self, change, committed, key, leased_by, result, step, token};
use codering_core::task::Event;

async fn open_in(directory: &Path) -> SharedLedger {
    crate::ledger::open(&directory.join("ledger.db")).await.expect("the ledger opens")
}

/// Runs the test `name` once more in a process of its own, as the child that `directory` is for.
fn child(name: &str, directory: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let name = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
    command.args(["--exact", &name, "--nocapture", "--test-threads=1"]).env(CHILD, directory);
    command
}

const CHILD: &str = "CODERING_TEST_LEDGER_CHILD";

/// The directory, in such a process.
fn as_child() -> Option<std::path::PathBuf> {
    std::env::var_os(CHILD).map(Into::into)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sqlite_ledger_does_all_that_a_ledger_must() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    conformance::suite(ledger.clone()).await;
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_recorded_is_there_after_closing_and_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    let job = committed(&*ledger, "again", 1, 3).await;
    conformance::complete(&*ledger, &job, 1, Outcome::Succeeded).await;
    let begun = conformance::job("again", 2);
    assert_eq!(ledger.begin_job(begun.clone(), None).await.unwrap(), Begun::New);
    ledger.close().await;
    assert!(matches!(ledger.check().await, Err(LedgerError::Failed(_))), "it is closed");
    assert!(!directory.path().join("ledger.db-wal").exists(), "the log went into the file");

    let ledger = open_in(directory.path()).await;
    assert_eq!(ledger.job(&job.id).await.unwrap(), Some(job.clone()));
    let counts = TaskCounts { total: 3, queued: 2, succeeded: 1, ..Default::default() };
    assert_eq!(ledger.counts(&job.id).await.unwrap(), counts);
    assert_eq!(ledger.result(&key(&job, 1)).await.unwrap(), Some(result(&job, 1, Outcome::Succeeded)));
    assert_eq!(ledger.delete_uncommitted().await.unwrap(), 1);
    ledger.close().await;
}

/// Invariant 2: a second result fails by itself; what shares its transaction does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_result_for_a_task_is_refused_and_takes_no_other_write_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    let job = committed(&*ledger, "second", 1, 100).await;
    conformance::complete(&*ledger, &job, 0, Outcome::Succeeded).await;
    // No state machine makes such a change; the version fits nevertheless.
    let mut wrong = change(&*ledger, &key(&job, 0), Event::Retry, Record::Nothing).await;
    wrong.record = Record::Result(Box::new(result(&job, 0, Outcome::Failed)), None);
    let mut changes = Vec::new();
    for seq in 1..100 {
        changes.push(change(&*ledger, &key(&job, seq), leased_by(1), Record::Nothing).await);
    }
    // The first may have a transaction of its own; those after it wait for that, and share the next.
    changes.insert(50, wrong);
    let swapped = futures::future::join_all(changes.into_iter().map(|change| ledger.swap_task(change))).await;
    assert!(matches!(swapped[50], Err(LedgerError::Failed(_))), "{:?}", swapped[50]);
    assert_eq!(swapped.iter().filter(|swapped| **swapped == Ok(Swapped::Yes)).count(), 99);
    assert_eq!(ledger.result(&key(&job, 0)).await.unwrap(), Some(result(&job, 0, Outcome::Succeeded)));
    let counts = TaskCounts { total: 100, running: 99, succeeded: 1, ..Default::default() };
    assert_eq!(ledger.counts(&job.id).await.unwrap(), counts);
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_which_some_is_removed_is_seen_no_more_and_the_next_start_removes_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    let job = committed(&*ledger, "cut", 1, 501).await;
    assert!(ledger.delete_some(&job.id).await.unwrap().more);
    assert_eq!(ledger.job(&job.id).await.unwrap(), None);
    assert_eq!(ledger.unfinished_jobs().await.unwrap(), []);
    ledger.close().await;
    let ledger = open_in(directory.path()).await;
    assert_eq!(ledger.delete_uncommitted().await.unwrap(), 1);
    assert!(!ledger.delete_some(&job.id).await.unwrap().more, "nothing is left");
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_larger_than_one_step_is_deleted_whole() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    let job = committed(&*ledger, "large", 1, 1_201).await;
    let commits = ledger.figures().commits;
    ledger.delete_job(&job.id).await.unwrap();
    assert_eq!(ledger.figures().commits - commits, 3, "in steps of 500 tasks");
    ledger.close().await;
    let file = directory.path().join("ledger.db");
    let mut connection = open::open(&file).await.unwrap().writer;
    for table in ["jobs", "tasks", "tallies"] {
        let count =
            sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
                .fetch_one(&mut connection)
                .await
                .unwrap();
        assert_eq!(count, 0, "{table}");
    }
}
