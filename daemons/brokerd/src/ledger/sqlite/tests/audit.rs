//! What an audit finds, by breaking one thing at a time; and backups and restores of one file.

use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};

use super::*;

/// A closed ledger in which tasks are in each state.
async fn ledger_of_all_states(directory: &Path) -> Job {
    let ledger = open_in(directory).await;
    let job = committed(&*ledger, "audited", 1, 10).await;
    let project = Project { name: job.spec.project.clone(), quota: Default::default(), created_at: 1 };
    ledger.put_project(project).await.unwrap();
    for (seq, outcome) in [(0, Outcome::Succeeded), (1, Outcome::Failed), (2, Outcome::Cancelled)] {
        conformance::complete(&*ledger, &job, seq, outcome).await;
    }
    step(&*ledger, &key(&job, 3), leased_by(1), Record::Nothing).await;
    step(&*ledger, &key(&job, 4), Event::Publish, Record::Nothing).await;
    let report = ledger.audit().await.unwrap();
    assert_eq!(report.problems, [""; 0]);
    assert_eq!((report.jobs, report.tasks, report.results), (1, 10, 3));
    ledger.close().await;
    job
}

async fn execute(file: &Path, statement: &'static str) {
    let options = SqliteConnectOptions::new().filename(file).foreign_keys(false);
    let mut connection = options.connect().await.unwrap();
    let done = sqlx::query(statement).execute(&mut connection).await.unwrap();
    assert!(done.rows_affected() > 0, "{statement}");
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_names_each_thing_that_does_not_fit_together() {
    let directory = tempfile::tempdir().unwrap();
    ledger_of_all_states(directory.path()).await;
    let file = directory.path().join("ledger.db");
    let whole = std::fs::read(&file).unwrap();
    for (damage, found) in [
        ("DELETE FROM results WHERE outcome = 3", "is done and has no result"),
        ("UPDATE tasks SET state = 0 WHERE state = 3", "has a result and is not done"),
        ("UPDATE results SET outcome = 4 WHERE outcome = 3", "has the result of another outcome"),
        ("UPDATE results SET stdout = x'00' WHERE outcome = 3", "does not have the bytes"),
        ("UPDATE tasks SET lease_token = NULL WHERE state = 2", "is leased to nobody"),
        ("UPDATE tasks SET lease_token = 't' WHERE state = 1", "has a lease and is not leased"),
        (
            "INSERT INTO attempts SELECT number, 99, 'w', 1, 1, 3, NULL FROM tasks WHERE state = 3",
            "has an attempt beyond its last",
        ),
        ("UPDATE tallies SET failed = failed + 1", "the counters of job"),
        ("DELETE FROM tallies", "the counters of job"),
        ("UPDATE holdings SET result_bytes = result_bytes + 1", "the bytes counted for project"),
        ("DELETE FROM projects", "belongs to no project"),
        ("UPDATE jobs SET spec = '{'", "it is no JSON"),
        ("DELETE FROM tasks WHERE state = 3", "a row of results belongs to nothing"),
    ] {
        std::fs::write(&file, &whole).unwrap();
        execute(&file, damage).await;
        let report = crate::ledger::inspect(&file).await.unwrap();
        assert!(report.problems.iter().any(|p| p.contains(found)), "{damage}: {:?}", report.problems);
    }
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let report = crate::ledger::inspect(&file).await.unwrap();
    assert!(report.problems[0].contains("truncated"), "{:?}", report.problems);
}

/// What a caller of the broker's snapshot would write.
async fn backup(ledger: &dyn Ledger, to: &Path) {
    let mut snapshot = ledger.snapshot().await.unwrap();
    let mut file = std::fs::File::create(to).unwrap();
    assert_eq!(std::io::copy(&mut snapshot.file, &mut file).unwrap(), snapshot.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_one_moment_and_restored_it_is_that_moment_again_with_its_queue_to_be_filled() {
    let directory = tempfile::tempdir().unwrap();
    let job = ledger_of_all_states(directory.path()).await;
    let file = directory.path().join("ledger.db");
    let saved = directory.path().join("saved");
    let ledger = open_in(directory.path()).await;
    backup(&*ledger, &saved).await;
    let later = committed(&*ledger, "later", 2, 3).await;
    let running = crate::ledger::restore(&file, &saved).await.expect_err("it is open").to_string();
    assert!(running.contains("stop that one first"), "{running}");
    ledger.close().await;

    let restored = crate::ledger::restore(&file, &saved).await.unwrap();
    assert!(
        !restored.checksum && restored.aside.as_ref().is_some_and(|aside| aside.exists()),
        "{restored:?}"
    );
    let ledger = open_in(directory.path()).await;
    assert_eq!(ledger.job(&later.id).await.unwrap(), None, "it came after the backup");
    assert_eq!(ledger.job(&job.id).await.unwrap(), Some(job.clone()));
    assert_eq!(ledger.result(&key(&job, 0)).await.unwrap(), Some(result(&job, 0, Outcome::Succeeded)));
    assert_eq!(ledger.published_count(&job.spec.project).await.unwrap(), 0);
    assert_eq!(
        ledger.unpublished(&job.spec.project, 1 << 50, 100, &Default::default()).await.unwrap().len(),
        6
    );
    assert_eq!(ledger.audit().await.unwrap().problems, [""; 0]);
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_not_whole_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    ledger_of_all_states(directory.path()).await;
    let file = directory.path().join("ledger.db");
    let whole = std::fs::read(&file).unwrap();
    let saved = directory.path().join("saved");
    let mut page = whole.clone();
    page[4096..40_960].fill(0);
    for bad in [whole[..whole.len() / 2].to_vec(), page, b"no database".repeat(50)] {
        std::fs::write(&saved, bad).unwrap();
        crate::ledger::restore(&file, &saved).await.expect_err("damaged");
    }
    std::fs::write(&saved, &whole).unwrap();
    std::fs::write(directory.path().join("saved.sha256"), "00  saved\n").unwrap();
    let error = crate::ledger::restore(&file, &saved).await.expect_err("another checksum").to_string();
    assert!(error.contains("checksum") && error.contains("nothing was changed"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    let mut left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["ledger.db", "ledger.db.lock", "saved", "saved.sha256"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_cut_short_has_to_be_done_again_before_a_start() {
    let directory = tempfile::tempdir().unwrap();
    ledger_of_all_states(directory.path()).await;
    let file = directory.path().join("ledger.db");
    // As a crash leaves it: the old one aside, the new one not in its place yet.
    std::fs::rename(&file, directory.path().join("ledger.db.restoring")).unwrap();
    let error = match crate::ledger::open(&file).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("cut short") && error.contains("coderingctl ledger restore"), "{error}");
    crate::ledger::restore(&file, &directory.path().join("ledger.db.restoring")).await.unwrap();
    let ledger = open_in(directory.path()).await;
    assert_eq!(ledger.audit().await.unwrap().results, 3);
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_went_after_a_crash_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    committed(&*ledger, "lost", 1, 3).await;
    // A copy of the directory is what a crash leaves.
    let crashed = tempfile::tempdir().unwrap();
    for name in ["ledger.db", "ledger.db-wal", "ledger.db.lock"] {
        std::fs::copy(directory.path().join(name), crashed.path().join(name)).unwrap();
    }
    ledger.close().await;
    open_in(directory.path()).await.close().await;

    let log = crashed.path().join("ledger.db-wal");
    let kept = crashed.path().join("kept");
    std::fs::rename(&log, &kept).unwrap();
    let error = match crate::ledger::open(&crashed.path().join("ledger.db")).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("its log (-wal) is gone") && error.contains("ledger.db.lock"), "{error}");
    std::fs::rename(&kept, &log).unwrap();
    let ledger = open_in(crashed.path()).await;
    assert_eq!(ledger.audit().await.unwrap().tasks, 3);
    ledger.close().await;
}
