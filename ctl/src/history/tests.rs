use std::os::unix::fs::PermissionsExt;

use codering_proto::v1::{JobState, TaskCounts};

use super::*;

fn job(id: &str, state: JobState, created_at_ms: Millis) -> Job {
    Job {
        job_id: id.into(),
        project: "demo".into(),
        name: "words".into(),
        state: state as i32,
        tasks: Some(TaskCounts { total: 3, succeeded: 1, ..Default::default() }),
        git_url: "https://me:secret@h/p".into(),
        created_at_ms,
        ..Default::default()
    }
}

async fn open(dir: &tempfile::TempDir) -> History {
    History::open(&dir.path().join("deep/history.db")).await.expect("opened")
}

#[tokio::test]
async fn what_was_submitted_and_seen_is_read_back_by_another_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let writing = open(&dir).await;
    writing.saw("b:1", &job("j-1", JobState::Queued, 10), true, 11).await.expect("kept");
    writing.saw("b:1", &job("j-1", JobState::Succeeded, 10), false, 20).await.expect("kept");
    writing.saw("b:1", &job("j-2", JobState::Running, 15), false, 21).await.expect("kept");
    let reading = open(&dir).await;
    let all = reading.newest(None, 10).await.expect("read");
    assert_eq!(all.iter().map(|entry| entry.job_id.as_str()).collect::<Vec<_>>(), ["j-2", "j-1"]);
    assert_eq!((all[1].state.as_str(), all[1].submitted_at, all[1].seen_at), ("succeeded", 11, 20));
    assert_eq!(all[0].submitted_at, 0);
    assert!(reading.newest(Some("other"), 10).await.expect("read").is_empty());
    assert_eq!(reading.beginning("j-2").await.expect("read").len(), 1);
    assert_eq!(reading.beginning("j-%").await.expect("read").len(), 0);
    assert_eq!(reading.forget(12).await.expect("forgotten"), 1);
    assert_eq!(writing.newest(None, 10).await.expect("read").len(), 1);
}

#[tokio::test]
async fn nobody_else_can_read_it_and_no_password_is_in_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let history = open(&dir).await;
    history.saw("b:1", &job("j-1", JobState::Queued, 10), true, 11).await.expect("kept");
    history.close().await;
    let path = dir.path().join("deep/history.db");
    let bytes = std::fs::read(&path).expect("read");
    assert!(bytes.windows(4).any(|window| window == b"demo"));
    assert!(!bytes.windows(6).any(|window| window == b"secret"));
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&dir.path().join("deep"))), (0o600, 0o700));
}

#[tokio::test]
async fn a_damaged_file_is_an_error_that_says_which() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("history.db");
    std::fs::write(&path, "no database at all, but long enough to be looked at as one").expect("written");
    let error = History::open(&path).await.map(drop).expect_err("damaged");
    assert!(error.place.ends_with("history.db") && error.hint.contains("moved away"), "{error}");
}
