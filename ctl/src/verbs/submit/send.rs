//! A job and its tasks down the wire. Nothing is recorded of a stream that is cut short, and the same
//! idempotency key makes another try safe.

use std::time::Duration;

use codering_core::{Code, Error, JobSpec, TaskSpec};
use codering_proto::{
    status::from_status,
    v1::{self, SubmitRequest, SubmitResponse},
};
use futures::stream;
use tokio::time::{Instant, sleep};

use crate::{
    client::Jobs,
    context::Context,
    verbs::lost::{FIRST_PAUSE, LONGEST_PAUSE, is_lost},
};

/// Tasks in one request, unless they are large.
const CHUNK_TASKS: usize = 1000;
/// The bytes after which a request is full; gRPC's own bound on the other side is 4 MiB.
const CHUNK_BYTES: usize = 1 << 20;
/// How long a broker that does not answer is tried.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends it until the broker answers. An error whose second part is true may have been recorded all the same.
pub async fn send(
    ctx: &Context,
    jobs: &mut Jobs,
    job: JobSpec,
    tasks: Vec<TaskSpec>,
    key: &str,
) -> Result<SubmitResponse, (Error, bool)> {
    let requests = requests(job, tasks, key);
    let (began, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        let status = match jobs.submit(stream::iter(requests.clone())).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        let error = from_status(&status);
        let unknown = is_lost(&status)
            || matches!(error.code, Code::LedgerUnknown | Code::LedgerUnavailable | Code::QueueUnavailable);
        if !unknown || began.elapsed() + pause > PATIENCE {
            return Err((error, unknown));
        }
        if pause == FIRST_PAUSE {
            ctx.out.note("the broker did not take it; trying again");
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The job first, then its tasks in chunks, and with the last of them how many there are.
fn requests(job: JobSpec, tasks: Vec<TaskSpec>, key: &str) -> Vec<SubmitRequest> {
    let total = tasks.len() as u64;
    let mut requests =
        vec![SubmitRequest { job: Some(job.into()), idempotency_key: key.to_owned(), ..Default::default() }];
    let mut bytes = 0;
    for task in tasks {
        let weight = weight(&task);
        let task = v1::TaskSpec::from(task);
        match requests.last_mut() {
            Some(last) if last.tasks.len() < CHUNK_TASKS && bytes + weight <= CHUNK_BYTES => {
                last.tasks.push(task);
                bytes += weight;
            }
            _ => {
                requests.push(SubmitRequest { tasks: vec![task], ..Default::default() });
                bytes = weight;
            }
        }
    }
    if let Some(last) = requests.last_mut() {
        last.end_of_tasks = Some(total);
    }
    requests
}

/// About what it takes on the wire.
fn weight(task: &TaskSpec) -> usize {
    let command = task.command.as_ref().map_or(0, |command| command.argv().iter().map(String::len).sum());
    let env: usize = task.env.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    100 + task.id.as_str().len() + task.arg.as_deref().map_or(0, str::len) + task.stdin.len() + command + env
}

#[cfg(test)]
mod tests {
    use codering_core::{ProjectName, TaskId, jobfile::JobFile};

    use super::*;

    fn job() -> JobSpec {
        let mut file = JobFile::from_json(br#"{"git": "https://h/p", "command": "x"}"#).expect("reads");
        file.project = Some(ProjectName::new("p").expect("valid"));
        file.job(None).expect("valid").0
    }

    fn task(number: usize, stdin: usize) -> TaskSpec {
        let mut task = TaskSpec::new(TaskId::new(number.to_string()).expect("valid"));
        task.stdin = vec![b'x'; stdin];
        task
    }

    #[test]
    fn tasks_go_in_chunks_of_a_thousand_and_the_last_says_how_many() {
        let tasks = (0..2500).map(|number| task(number, 0)).collect();
        let sent = requests(job(), tasks, "key");
        assert_eq!(sent.iter().map(|request| request.tasks.len()).collect::<Vec<_>>(), [1000, 1000, 500]);
        assert_eq!(sent[0].idempotency_key, "key");
        assert!(sent[0].job.is_some() && sent[1].job.is_none());
        assert_eq!(
            [sent[0].end_of_tasks, sent[1].end_of_tasks, sent[2].end_of_tasks],
            [None, None, Some(2500)]
        );
    }

    #[test]
    fn large_tasks_go_in_smaller_chunks() {
        let sent = requests(job(), (0..5).map(|number| task(number, 700 << 10)).collect(), "key");
        assert_eq!(sent.iter().map(|request| request.tasks.len()).collect::<Vec<_>>(), [1, 1, 1, 1, 1]);
        assert_eq!(sent[4].end_of_tasks, Some(5));
    }
}
