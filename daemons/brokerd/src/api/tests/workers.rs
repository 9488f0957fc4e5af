//! A worker's side over real TLS: join token, certificate, stream, report, revocation.

use codering_core::{Code, Outcome};
use codering_kit::tls;
use codering_proto::{
    status::from_status,
    v1::{self, from_worker, jobs_client::JobsClient, to_worker, workers_client::WorkersClient},
};
use futures::{TryStreamExt, stream};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::rig::{BOUND, Rig, job, until};
use crate::ledger::Role;

pub(super) struct Worker {
    pub client: WorkersClient<Channel>,
    pub hears: Streaming<v1::ToWorker>,
    /// What it said to hold, and does not.
    pub fenced: Vec<String>,
    say: mpsc::Sender<v1::FromWorker>,
}

pub(super) async fn enrolled(rig: &Rig, address: std::net::SocketAddr, name: &str) -> WorkersClient<Channel> {
    let join_token = rig.token(Role::Worker, &[]).await;
    let (csr_pem, key) = tls::csr(&name.parse().expect("valid")).expect("made");
    let mut anyone = WorkersClient::new(rig.channel(address, None));
    let request = v1::EnrollRequest { join_token, worker: name.into(), csr_pem };
    let enrolled = anyone.enroll(request.clone()).await.expect("enrolled").into_inner();
    let again = anyone.enroll(request).await.expect_err("a join token is used once");
    assert_eq!(from_status(&again).code, Code::AuthInvalid);
    WorkersClient::new(rig.channel(address, Some((&enrolled.certificate_pem, &key))))
        .max_encoding_message_size(128 << 20)
}

async fn attached(client: WorkersClient<Channel>) -> Worker {
    attached_with(client, Vec::new()).await
}

/// Says that it holds these leases.
pub(super) async fn attached_with(mut client: WorkersClient<Channel>, held_tokens: Vec<String>) -> Worker {
    let (say, said) = mpsc::channel(16);
    let hello = v1::Hello { slots: 2, version: "test".into(), held_tokens, ..Default::default() };
    say.send(v1::FromWorker { message: Some(from_worker::Message::Hello(hello)) }).await.expect("room");
    let mut hears = client.attach(ReceiverStream::new(said)).await.expect("attached").into_inner();
    let first = hears.message().await.expect("open").expect("a message").message;
    let Some(to_worker::Message::Welcome(welcome)) = first else { panic!("no welcome: {first:?}") };
    Worker { client, hears, fenced: welcome.fenced_tokens, say }
}

impl Worker {
    pub async fn tell(&self, message: from_worker::Message) {
        self.say.send(v1::FromWorker { message: Some(message) }).await.expect("room");
    }

    pub async fn assignment(&mut self) -> v1::Assignment {
        let wait = async {
            loop {
                let message = self.hears.message().await.expect("open").expect("a message").message;
                if let Some(to_worker::Message::Assignment(assignment)) = message {
                    return assignment;
                }
            }
        };
        tokio::time::timeout(BOUND, wait).await.expect("an assignment")
    }

    pub async fn report(&mut self, assignment: &v1::Assignment, stdout: Vec<u8>) -> bool {
        let result = v1::TaskResult {
            project: assignment.project.clone(),
            job_id: assignment.job_id.clone(),
            task_id: assignment.task_id.clone(),
            attempt: assignment.attempt,
            outcome: v1::Outcome::from(Outcome::Succeeded).into(),
            exit_code: Some(0),
            stdout: stdout.into(),
            started_at_ms: 1000,
            finished_at_ms: 2000,
            ..Default::default()
        };
        let report = v1::AttemptReport { token: assignment.token.clone(), result: Some(result) };
        self.client.report(report).await.expect("answered").into_inner().recorded
    }
}

#[tokio::test]
async fn a_worker_joins_runs_a_job_to_its_answer_and_is_turned_away_once_revoked() {
    let rig = Rig::new().await;
    let address = rig.serve().await;
    let id = rig.post("/api/v1/jobs", job(2)).await.json()["job_id"].as_str().expect("an id").to_owned();
    let mut worker = attached(enrolled(&rig, address, "w1").await).await;
    let shown = rig.get("/api/v1/workers/w1").await.json();
    assert_eq!((&shown["connected"], &shown["slots"]), (&json!(true), &json!(2)));

    let first = worker.assignment().await;
    let pin = v1::PinCommitRequest { token: first.token.clone(), commit: "3f".repeat(20) };
    assert_eq!(worker.client.pin_commit(pin).await.expect("pinned").into_inner().commit, "3f".repeat(20));
    // Live output, then the result: a log is read on from where it was left.
    let log = v1::LogData {
        token: first.token.clone(),
        stream: v1::LogStream::Stdout.into(),
        offset: 0,
        data: "one ".into(),
    };
    worker.say.send(v1::FromWorker { message: Some(from_worker::Message::Log(log)) }).await.expect("room");
    let path = format!("/api/v1/jobs/{id}/tasks/{}/logs", first.task_id);
    until("the live output is there", async || (rig.get(&path).await.text == "one ").then_some(())).await;
    let mut jobs = JobsClient::new(rig.with_token(rig.channel(address, None), &rig.admin));
    let request = v1::LogsRequest {
        job_id: id.clone(),
        task_id: first.task_id.clone(),
        stream: v1::LogStream::Stdout.into(),
        offset: 2,
        follow: true,
    };
    let follow = jobs.logs(request).await.expect("begun").into_inner();
    assert!(worker.report(&first, b"one two".to_vec()).await, "recorded");
    let pieces: Vec<_> =
        tokio::time::timeout(BOUND, follow.try_collect()).await.expect("it ends").expect("whole");
    let text: Vec<u8> = pieces.iter().flat_map(|p: &v1::LogChunk| p.data.to_vec()).collect();
    assert_eq!(String::from_utf8_lossy(&text), "e two");
    assert_eq!(rig.get(&format!("{path}?offset=4")).await.text, "two");
    assert!(!worker.report(&first, Vec::new()).await, "a second report is fenced");

    let second = worker.assignment().await;
    let large = vec![b'x'; 5 << 20];
    assert!(worker.report(&second, large).await, "more than a stream's message, by the call for it");
    let reduce = worker.assignment().await;
    assert!(reduce.stdin_from_results);
    let input = worker.client.input(v1::InputRequest { token: reduce.token.clone() }).await.expect("begun");
    let input: Vec<_> = input.into_inner().try_collect().await.expect("whole");
    let input: Vec<u8> = input.iter().flat_map(|chunk: &v1::InputChunk| chunk.data.to_vec()).collect();
    assert_eq!(input.iter().filter(|byte| **byte == b'\n').count(), 2, "a line a result");
    assert!(worker.report(&reduce, b"{\"sum\":3}".to_vec()).await, "recorded");
    let answer = until("the answer is there", async || {
        let answer = rig.get(&format!("/api/v1/jobs/{id}/answer")).await;
        answer.status.is_success().then_some(answer)
    })
    .await;
    assert_eq!((answer.text.as_str(), answer.header("content-type")), ("{\"sum\":3}", "application/json"));
    assert_eq!(answer.header("content-disposition"), "attachment; filename=\"sum.json\"");
    assert_eq!(rig.get(&format!("/api/v1/jobs/{id}")).await.json()["answer_bytes"], 9);

    rig.post("/api/v1/workers/w1/revoke", json!({})).await;
    let end = async { while let Ok(Some(_)) = worker.hears.message().await {} };
    tokio::time::timeout(BOUND, end).await.expect("its stream ends");
    let hello = stream::iter([v1::FromWorker::default()]);
    let refused = worker.client.attach(hello).await.expect_err("revoked");
    assert_eq!(from_status(&refused).code, Code::WorkerRevoked);
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_that_ends_on_the_workers_side_leaves_it_disconnected() {
    let rig = Rig::new().await;
    let address = rig.serve().await;
    let worker = attached(enrolled(&rig, address, "w1").await).await;
    drop(worker.say);
    let connected = async || rig.get("/api/v1/workers/w1").await.json()["connected"] == json!(true);
    until("the worker is disconnected", async || (!connected().await).then_some(())).await;
    drop(worker.hears);
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_begins_with_a_hello_and_needs_the_newest_certificate() {
    let rig = Rig::new().await;
    let address = rig.serve().await;
    let mut old = enrolled(&rig, address, "w1").await;
    let beat = from_worker::Message::Heartbeat(v1::Heartbeat::default());
    let refused =
        old.attach(stream::iter([v1::FromWorker { message: Some(beat) }])).await.expect_err("no hello");
    assert_eq!(from_status(&refused).code, Code::InvalidInput);
    let _new = enrolled(&rig, address, "w1").await;
    let refused = old.attach(stream::iter([v1::FromWorker::default()])).await.expect_err("replaced");
    assert_eq!(from_status(&refused).code, Code::AuthInvalid);
    let mut nobody = WorkersClient::new(rig.channel(address, None));
    let refused = nobody.report(v1::AttemptReport::default()).await.expect_err("no certificate");
    assert_eq!(from_status(&refused).code, Code::AuthMissing);
    rig.stop().await;
}
