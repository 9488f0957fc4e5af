use std::os::unix::fs::PermissionsExt;

use codering_core::Code;
use sqlx::ConnectOptions;

use super::*;

async fn refusal(directory: &Path) -> String {
    match crate::ledger::open(&directory.join("ledger.db")).await {
        Ok(_) => panic!("it opened"),
        Err(error) => {
            assert_eq!(error.code, Code::LedgerUnavailable);
            error.to_string()
        }
    }
}

/// A directory with a closed ledger of some hundred pages.
async fn closed() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    committed(&*ledger, "closed", 1, 5_000).await;
    ledger.close().await;
    directory
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_may_read_the_file_its_log_or_its_lock() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    ledger.check().await.unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", entry.path().display());
        seen += 1;
    }
    assert!(seen >= 3, "the file, its log and its lock");
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_brokerd_on_the_same_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open_in(directory.path()).await;
    let told = refusal(directory.path()).await;
    assert!(told.contains("another codering-brokerd") && told.contains("stop that one"), "{told}");
    ledger.close().await;
    open_in(directory.path()).await.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_is_refused_with_what_to_do() {
    let directory = closed().await;
    let file = directory.path().join("ledger.db");
    let bytes = std::fs::read(&file).unwrap();
    for left in [bytes.len() - 4096, bytes.len() / 2, 4096, 50, 0] {
        std::fs::write(&file, &bytes[..left]).unwrap();
        let told = refusal(directory.path()).await;
        assert!(told.contains("damaged") && told.contains("restore a backup"), "{left}: {told}");
        assert_eq!(std::fs::metadata(&file).unwrap().len(), left as u64, "it is left as it was");
    }
    std::fs::write(&file, &bytes).unwrap();
    open_in(directory.path()).await.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_foreign_bytes_is_refused_with_what_to_do() {
    let directory = closed().await;
    let file = directory.path().join("ledger.db");
    let bytes = std::fs::read(&file).unwrap();
    let mut no_header = bytes.clone();
    no_header[..16].fill(b'x');
    let mut no_tree = bytes.clone();
    no_tree[4096..40_960].fill(0xa5);
    for damaged in [no_header, no_tree] {
        std::fs::write(&file, damaged).unwrap();
        let told = refusal(directory.path()).await;
        assert!(told.contains("damaged") && told.contains("restore a backup"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_its_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ledger.db-wal"), [1; 100]).unwrap();
    assert!(refusal(directory.path()).await.contains("its log is still there"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_newer_brokerd_is_refused_with_the_reason() {
    let directory = closed().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(directory.path().join("ledger.db"));
    let mut connection = options.connect().await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9000, 'future', 1, x'00', 1)",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let told = refusal(directory.path()).await;
    assert!(told.contains("a newer codering-brokerd wrote it") && told.contains("9000"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_was_cut_short_is_done_again() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ledger.db.new"), [0; 5_000]).unwrap();
    std::fs::write(directory.path().join("ledger.db.new-wal"), [0; 500]).unwrap();
    let ledger = open_in(directory.path()).await;
    ledger.check().await.unwrap();
    ledger.close().await;
    assert!(!directory.path().join("ledger.db.new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let told = refusal(&directory.path().join("none")).await;
    assert!(told.contains("none/ledger.db") && told.contains("its directory must exist"), "{told}");
}
