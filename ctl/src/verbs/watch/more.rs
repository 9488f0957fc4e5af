//! What the end of a job tells beyond its counts: how its answer begins, or what its first failures say.

use std::{collections::BTreeSet, time::Duration};

use codering_core::{Code, Outcome, TaskResult};
use codering_proto::v1::{AnswerRequest, BuildLogsRequest, Job, JobState, ResultsRequest};
use tokio::time::timeout;

use crate::{
    client::{Jobs, said},
    verbs::{
        job::story::last_lines,
        results::{FAILURES, is_binary, said_in_short},
        words::harmless,
    },
};

/// It is never worth an error, nor a long wait.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of an answer that are looked at.
const LOOKED_AT: usize = 2000;
/// Failed tasks that are shown.
const SHOWN: usize = 3;

/// What there is of it.
#[derive(Debug, Default)]
pub struct More {
    /// The beginning of the answer, if it is text.
    pub preview: Option<String>,
    /// A line for each of the first failed tasks; a build that failed them all is told once, with the end of its log.
    pub failures: Vec<String>,
    /// Whether one of them failed for its image.
    pub build_failed: bool,
}

impl More {
    /// Asks the broker.
    pub async fn of(jobs: &mut Jobs, job: &Job) -> Self {
        let mut more = Self::default();
        if job.answer_bytes > 0 {
            more.preview = timeout(PATIENCE, beginning(jobs, job)).await.ok().flatten();
        }
        if job.state() == JobState::Failed {
            let failed = timeout(PATIENCE, failed(jobs, job)).await.unwrap_or_default();
            if failed.iter().any(|result| result.outcome == Outcome::BuildFailed) {
                more.build_failed = true;
                let log = timeout(PATIENCE, failed_log(jobs, job)).await.ok().flatten();
                // One of the tasks shows how it ends, where the log itself is not there yet.
                let shown = || failed.iter().map(|result| &result.stderr).find(|shown| !shown.is_empty());
                let log = log.map(String::into_bytes).or_else(|| shown().cloned()).unwrap_or_default();
                more.failures = build_block(&failed, &log);
            }
            let others = failed.iter().filter(|result| result.outcome != Outcome::BuildFailed);
            more.failures.extend(others.map(line));
        }
        more
    }
}

/// `task 7 failed with exit code 1: No such file`.
fn line(result: &TaskResult) -> String {
    let how = match (result.outcome, result.exit_code, result.signal) {
        (Outcome::Failed, _, Some(signal)) => format!("failed by signal {signal}"),
        (Outcome::Failed, Some(code), None) => format!("failed with exit code {code}"),
        (outcome, _, _) => format!("ended as {outcome}"),
    };
    match said_in_short(result) {
        said if said.is_empty() => format!("task {} {how}", result.task),
        said => format!("task {} {how}: {said}", result.task),
    }
}

/// Each build that failed, once: what failed where, and how its log ends.
fn build_block(failed: &[TaskResult], log: &[u8]) -> Vec<String> {
    let mut told = BTreeSet::new();
    let mut lines = Vec::new();
    for result in failed.iter().filter(|result| result.outcome == Outcome::BuildFailed) {
        if told.insert(&result.message) {
            lines.push(format!("error[{}]: {}", Code::ImageBuildFailed.as_str(), harmless(&result.message)));
        }
    }
    lines.extend(last_lines(log).into_iter().map(|line| format!("  | {line}")));
    lines
}

/// The log of the newest build that failed.
async fn failed_log(jobs: &mut Jobs, job: &Job) -> Option<String> {
    let request = BuildLogsRequest { job_id: job.job_id.clone() };
    let builds = said(jobs.build_logs(request).await).ok()?.builds;
    builds.into_iter().rev().find(|build| !build.succeeded).map(|build| build.log)
}

async fn failed(jobs: &mut Jobs, job: &Job) -> Vec<TaskResult> {
    let outcomes = FAILURES.map(|outcome| outcome as i32).to_vec();
    let request = ResultsRequest { job_id: job.job_id.clone(), outcomes };
    let Ok(mut results) = said(jobs.results(request).await) else { return Vec::new() };
    let mut found = Vec::new();
    while let Ok(Some(wire)) = results.message().await {
        found.extend(TaskResult::try_from(wire));
        if found.len() == SHOWN {
            break;
        }
    }
    found
}

async fn beginning(jobs: &mut Jobs, job: &Job) -> Option<String> {
    let mut chunks = said(jobs.answer(AnswerRequest { job_id: job.job_id.clone() }).await).ok()?;
    let mut start = Vec::new();
    while start.len() < LOOKED_AT {
        let Some(chunk) = chunks.message().await.ok()? else { break };
        start.extend_from_slice(&chunk.data);
    }
    start.truncate(LOOKED_AT);
    text(&start).map(str::to_owned)
}

/// Text that may be cut within its last character, without what would harm a terminal.
fn text(start: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    (!is_binary(text.as_bytes())).then_some(text)
}

#[cfg(test)]
mod tests {
    use codering_core::{JobId, ProjectName, TaskId};

    use super::*;

    #[test]
    fn text_cut_within_a_character_is_text_and_a_picture_is_not() {
        assert_eq!(text("größe".as_bytes().get(..3).unwrap_or_default()), Some("gr"));
        assert_eq!(text("größe".as_bytes()), Some("größe"));
        assert_eq!(text(b"\x89PNG\r\n"), None);
        assert_eq!(text(b"a\0b"), None);
    }

    #[test]
    fn a_build_that_failed_all_tasks_is_told_once_with_the_end_of_its_log() {
        let task = |id: &str| {
            TaskResult::without_attempt(
                ProjectName::new("demo").expect("valid"),
                JobId::at(1_763_722_560_000, 1),
                TaskId::new(id).expect("valid"),
                1,
                Outcome::BuildFailed,
                0,
                "demo.git at 3f2a9c1, Dockerfile step 3 of 5: RUN make: it returned 2",
            )
        };
        let log: String = (1..=30).map(|n| format!("line {n}\n")).collect();
        let block = build_block(&[task("1"), task("2"), task("3")], log.as_bytes());
        assert_eq!(
            block[0],
            "error[image.build_failed]: demo.git at 3f2a9c1, Dockerfile step 3 of 5: RUN make: it returned 2"
        );
        assert_eq!((block[1].as_str(), block[6].as_str(), block.len()), ("  | line 25", "  | line 30", 7));
    }

    #[test]
    fn a_failed_task_is_told_with_how_it_ended_and_what_it_said() {
        let mut result = TaskResult::without_attempt(
            ProjectName::new("demo").expect("valid"),
            JobId::at(1_763_722_560_000, 1),
            TaskId::new("7").expect("valid"),
            1,
            Outcome::Failed,
            0,
            "",
        );
        (result.exit_code, result.stderr) = (Some(2), b"no such file\n".to_vec());
        assert_eq!(line(&result), "task 7 failed with exit code 2: no such file");
        (result.signal, result.stderr) = (Some(9), Vec::new());
        assert_eq!(line(&result), "task 7 failed by signal 9");
        (result.outcome, result.message) = (Outcome::OutOfMemory, "it used 128 MB".into());
        assert_eq!(line(&result), "task 7 ended as out_of_memory: it used 128 MB");
    }
}
