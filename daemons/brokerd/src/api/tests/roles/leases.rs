//! A worker that names another's lease.

use codering_core::{Code, Outcome};
use codering_proto::{
    status::from_status,
    v1::{self, from_worker::Message, to_worker},
};
use serde_json::json;

use super::super::{
    rig::{BOUND, Rig, job, until},
    workers::{Worker, attached_with, enrolled},
};

/// Waits for an answer of this kind.
async fn heard<T>(worker: &mut Worker, wanted: impl Fn(to_worker::Message) -> Option<T>) -> T {
    let wait = async {
        loop {
            let message = worker.hears.message().await.expect("open").expect("a message").message;
            if let Some(found) = message.and_then(&wanted) {
                return found;
            }
        }
    };
    tokio::time::timeout(BOUND, wait).await.expect("heard")
}

fn result(assignment: &v1::Assignment, stdout: &'static [u8]) -> v1::AttemptReport {
    let result = v1::TaskResult {
        project: assignment.project.clone(),
        job_id: assignment.job_id.clone(),
        task_id: assignment.task_id.clone(),
        attempt: assignment.attempt,
        outcome: v1::Outcome::from(Outcome::Succeeded).into(),
        exit_code: Some(0),
        stdout: stdout.into(),
        ..Default::default()
    };
    v1::AttemptReport { token: assignment.token.clone(), result: Some(result) }
}

#[tokio::test]
async fn invariant_10_a_worker_does_nothing_with_the_lease_of_another() {
    let rig = Rig::new().await;
    let address = rig.serve().await;
    let mut owner = attached_with(enrolled(&rig, address, "w1").await, vec![]).await;
    let id = rig.post("/api/v1/jobs", job(1)).await.json()["job_id"].as_str().expect("an id").to_owned();
    let lease = owner.assignment().await;
    let token = lease.token.clone();

    // The thief says from the start that it holds the lease.
    let client = enrolled(&rig, address, "w2").await;
    let mut thief = attached_with(client, vec![token.clone()]).await;
    assert_eq!(thief.fenced, std::slice::from_ref(&token));
    let beat = v1::Heartbeat { seq: 7, tokens: vec![token.clone()], draining: false };
    thief.tell(Message::Heartbeat(beat)).await;
    let reply = heard(&mut thief, |m| match m {
        to_worker::Message::Heartbeat(reply) => Some(reply),
        _ => None,
    });
    assert_eq!(reply.await.fenced_tokens, std::slice::from_ref(&token));

    let progress = v1::Progress { token: token.clone(), phase: "stolen".into(), ..Default::default() };
    thief.tell(Message::Progress(progress)).await;
    let log = v1::LogData {
        token: token.clone(),
        stream: v1::LogStream::Stdout.into(),
        offset: 0,
        data: "forged".into(),
    };
    thief.tell(Message::Log(log)).await;
    let build = v1::Build { worker: "w1".into(), image: "forged".into(), ..Default::default() };
    thief.tell(Message::Build(v1::BuildDone { token: token.clone(), build: Some(build) })).await;
    thief.tell(Message::Report(result(&lease, b"forged"))).await;
    let received = heard(&mut thief, |m| match m {
        to_worker::Message::Received(received) => Some(received),
        _ => None,
    });
    assert!(!received.await.recorded, "on the stream");
    assert!(!thief.client.report(result(&lease, b"forged")).await.expect("answered").into_inner().recorded);
    let pin = v1::PinCommitRequest { token: token.clone(), commit: "3f".repeat(20) };
    assert_eq!(
        from_status(&thief.client.pin_commit(pin).await.expect_err("refused")).code,
        Code::LeaseFenced
    );

    let path = format!("/api/v1/jobs/{id}");
    let task = rig.get(&format!("{path}/tasks/1")).await.json();
    assert_eq!((&task["state"], &task["worker"]), (&json!("running"), &json!("w1")), "{task}");
    assert_eq!(rig.get(&path).await.json()["commit"], "", "nothing was pinned");
    assert_eq!(rig.get(&format!("{path}/tasks/1/logs")).await.text, "");
    assert_eq!(rig.get(&format!("{path}/builds")).await.json()["builds"], json!([]));
    let shown = rig.get("/api/v1/workers/w1").await.json();
    assert_ne!(shown["running"][0]["phase"], "stolen", "{shown}");

    assert!(owner.report(&lease, b"own".to_vec()).await, "the owner's own is recorded");
    until("the result is there", async || {
        (rig.get(&format!("{path}/tasks/1/logs")).await.text == "own").then_some(())
    })
    .await;

    // The reduce step goes to either; its input to the one that has it.
    let (mut holder, mut stranger, reduce) = tokio::select! {
        reduce = owner.assignment() => (owner, thief, reduce),
        reduce = thief.assignment() => (thief, owner, reduce),
    };
    let input = |token: &str| v1::InputRequest { token: token.to_owned() };
    let refused = stranger.client.input(input(&reduce.token)).await.expect_err("refused");
    assert_eq!(from_status(&refused).code, Code::LeaseFenced);
    holder.client.input(input(&reduce.token)).await.expect("its own");
    rig.stop().await;
}
