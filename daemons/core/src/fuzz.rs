//! Fuzz targets: what must hold for any bytes. `fuzz/` runs them with libFuzzer; `make test` replays the kept corpus.
#![allow(missing_docs, clippy::unwrap_used)]

use crate::{
    Code, Error, JobId, JobSpec, LeaseToken, Limits, ProjectName, QueueName, Source, TaskId, TaskSpec,
    WorkerName,
    ids::shown,
    jobfile::{JobFile, TaskFile, array_range},
    message::{DoneMessage, MAX_MESSAGE_BYTES, TodoMessage},
    spec::without_password,
    time::{from_rfc3339, rfc3339},
    units::{duration_ms, show_duration, show_size, size_bytes},
};

fn project() -> ProjectName {
    ProjectName::new("pi").unwrap()
}

/// An error is a line or two for a person, whatever it was made of.
fn bounded(error: &Error) {
    assert!(error.to_string().len() < 8 << 10, "an error of {} bytes", error.to_string().len());
    assert!(!error.place.contains('\n') && error.code != Code::Internal, "{error:?}");
}

/// What was accepted is queued as a message that is accepted again, and asks for the same attempt.
pub fn queues(job: &JobSpec, task: &TaskSpec, reserved: bool) {
    let attempt = job.attempt(task, &Limits::default());
    let id = JobId::at(1_763_722_560_000, 7);
    let message = TodoMessage::of(&job.project, &id, task, &attempt, job.priority);
    let body = serde_json::to_vec(&message).unwrap();
    assert!(body.len() <= MAX_MESSAGE_BYTES);
    let read = TodoMessage::read(&body, &job.project);
    let read = read.unwrap_or_else(|e| {
        panic!("an accepted task is no message: {e}: {}", String::from_utf8_lossy(&body))
    });
    assert_eq!(without_fractions(read.clone()), without_fractions(message));
    if !reserved {
        let spec = read.task_spec().unwrap();
        assert_eq!(
            (&spec.command, &spec.env, &spec.stdin),
            (&Some(attempt.command), &attempt.env, &task.stdin)
        );
        assert_eq!(spec.source, Some(attempt.source));
    }
}

/// serde_json reads a number with a fraction to within its last digit.
fn without_fractions(mut message: TodoMessage) -> TodoMessage {
    (message.cpus, message.timeout_seconds) = (None, None);
    message.extra.clear();
    message
}

pub fn todo_message(data: &[u8]) {
    let message = match TodoMessage::read(data, &project()) {
        Ok(message) => message,
        Err(error) => return bounded(&error),
    };
    let again = TodoMessage::read(&serde_json::to_vec(&message).unwrap(), &project()).unwrap();
    assert_eq!(without_fractions(again), without_fractions(message.clone()));
    let task = match message.task_spec() {
        Ok(task) => task,
        // Of a task that the ledger has, the ledger counts and not the message.
        Err(error) if message.job_id.is_some() => return bounded(&error),
        Err(error) => panic!("a raw message was taken that asks for no task: {error}"),
    };
    if message.job_id.is_some() && task.validate_alone().is_err() {
        return;
    }
    let job = JobSpec {
        project: project(),
        name: "raw messages".into(),
        source: task.source.clone().unwrap(),
        command: None,
        env: Default::default(),
        limits: Default::default(),
        reduce: None,
        priority: message.priority,
        labels: Default::default(),
    };
    queues(&job, &task, message.task_id.is_reserved());
}

pub fn done_message(data: &[u8]) {
    let Ok(message) = serde_json::from_slice::<DoneMessage>(data) else { return };
    let Some(result) = message.result() else { return };
    assert_eq!(DoneMessage::from(&result).result(), Some(result));
}

/// The checks of a job file, however it was read.
pub fn job(file: JobFile) {
    let (job, tasks) = match file.job(Some(&project())) {
        Ok(whole) => whole,
        Err(error) => return bounded(&error),
    };
    job.validate().unwrap();
    assert!(!tasks.is_empty());
    // A short array may stand for a million.
    for task in tasks.iter().take(20).chain(tasks.last()) {
        task.validate(&job).unwrap();
        queues(&job, task, false);
    }
}

pub fn job_file(data: &[u8]) {
    match JobFile::from_json(data) {
        Ok(file) => job(file),
        Err(error) => bounded(&error),
    }
    if let Ok(Err(error)) = std::str::from_utf8(data).map(TaskFile::from_json) {
        bounded(&error);
    }
}

pub fn ids(data: &[u8]) {
    fn same<T: std::str::FromStr<Err = Error> + std::fmt::Display + PartialEq + std::fmt::Debug>(
        text: &str,
    ) -> Option<T> {
        match text.parse::<T>() {
            Ok(id) => {
                assert_eq!(id.to_string(), text);
                assert!(text.is_ascii() && text.len() <= 200 && !text.contains(['/', '\\', '\0', ' ', '\n']));
                Some(id)
            }
            Err(error) => {
                bounded(&error);
                None
            }
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(project) = same::<ProjectName>(text) {
        for queue in [QueueName::todo(&project), QueueName::done(&project), QueueName::dead(&project)] {
            assert_eq!(QueueName::new(queue.as_str()), Ok(queue.clone()));
            assert!(queue.is_reserved() && queue.project() == project);
        }
    }
    if let Some(queue) = same::<QueueName>(text) {
        assert!(ProjectName::new(queue.project().as_str()).is_ok() && !queue.local().is_empty());
    }
    same::<JobId>(text);
    same::<LeaseToken>(text);
    same::<WorkerName>(text);
    if same::<TaskId>(text).is_some() {
        assert!(text != "." && text != "..");
    }
    let shown = shown(text);
    assert!(shown.len() < 1000 && !shown.chars().any(char::is_control), "{shown:?}");
    let turns =
        |c: char| matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    assert!(!shown.contains(turns), "{shown:?}");
}

pub fn units(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    const MOST: u64 = 1 << 53;
    if let Some(ms) = duration_ms(text) {
        assert!(ms <= MOST);
        assert_eq!(duration_ms(&format!("{ms}ms")), Some(ms));
        assert!(show_duration(ms).len() < 40);
    }
    if let Some(bytes) = size_bytes(text) {
        assert!(bytes <= MOST);
        assert_eq!(size_bytes(&bytes.to_string()), Some(bytes));
        assert!(show_size(bytes).len() < 40);
    }
    if let Some(at) = from_rfc3339(text) {
        assert_eq!(from_rfc3339(&rfc3339(at)), Some(at));
    }
    match array_range(text) {
        Ok(args) => {
            assert!((1..=crate::jobfile::MAX_TASKS).contains(&args.len()));
            assert!(args.iter().all(|arg| arg.len() <= 20));
        }
        Err(rule) => assert!(rule.len() < 1000),
    }
}

/// An address, a ref and a path, each on a line of its own.
pub fn git_address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut next = |or: &str| lines.next().map_or_else(|| or.to_owned(), str::to_owned);
    let source = Source { git_url: next(""), git_ref: next("HEAD"), dockerfile: next("Dockerfile") };
    let told = without_password(&source.git_url);
    assert_eq!(without_password(&told), told);
    match source.validate() {
        Err(error) => bounded(&error),
        Ok(()) => {
            assert!(!source.git_url.starts_with('-') && !source.git_ref.starts_with('-'));
            assert!(
                !source.dockerfile.starts_with('/') && source.dockerfile.split('/').all(|part| part != "..")
            );
            assert!(source.pinned().is_none_or(|commit| commit.len() == 40));
            let authority = source.git_url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap());
            if let Some((user, _)) = authority.and_then(|authority| authority.rsplit_once('@'))
                && let Some((name, _)) = user.split_once(':')
            {
                let host = authority.unwrap().rsplit_once('@').unwrap().1;
                let told_authority = told.split_once("://").unwrap().1.split('/').next().unwrap();
                assert_eq!(told_authority, format!("{name}@{host}"));
            }
        }
    }
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;
#[cfg(test)]
replay::replayed!(todo_message, done_message, job_file, ids, units, git_address);
