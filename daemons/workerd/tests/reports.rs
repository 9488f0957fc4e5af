//! Many results on their way at once, to a broker that is slow with them.
#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, path::Path, time::Duration};

use codering_core::{LeaseToken, Outcome};
use codering_proto::v1;
use codering_workerd::spool::Spool;
use support::{
    broker::{Broker, assignment},
    scratch,
};

const SIMULATED: &str = "[docker]\nsocket = \"/nonexistent\"\n[simulate]\nenabled = true\n";

/// Results of a former process.
fn spool(dir: &Path, results: u8, bytes: usize) -> Vec<String> {
    let spool = Spool::open(dir, false).unwrap();
    let mut tokens = Vec::new();
    for n in 1..=results {
        let token = LeaseToken::from_bytes([n; 16]);
        let assigned = assignment("", "");
        let result = v1::TaskResult {
            project: assigned.project,
            job_id: assigned.job_id,
            task_id: assigned.task_id,
            attempt: 1,
            outcome: v1::Outcome::from(Outcome::Succeeded) as i32,
            exit_code: Some(0),
            stdout: vec![n; bytes].into(),
            worker: "w".into(),
            ..Default::default()
        };
        spool.put(&token, v1::AttemptReport { token: token.to_string(), result: Some(result) });
        tokens.push(token.to_string());
    }
    tokens
}

/// Invariant 3: leases are renewed while results are reported, however long that takes.
#[tokio::test]
async fn invariant_3_an_attempt_keeps_its_lease_while_a_slow_broker_reads_many_results() {
    let (_dir, dir) = scratch();
    let broker = Broker::start(&dir, 6_000).await;
    broker.said.lock().unwrap().slow = Duration::from_millis(100);
    let tokens = spool(&dir.join("w-slow/spool"), 150, 200 << 10);
    let _worker = broker.worker("w-slow", SIMULATED);
    let task =
        v1::Assignment { lease_ms: 6_000, ..assignment("https://nowhere.invalid/x", "sleep 8s; echo kept") };
    let result = broker.result(&broker.assign(task).await).await;
    assert_eq!(
        (result.outcome, result.stdout.as_slice()),
        (Outcome::Succeeded, &b"kept\n"[..]),
        "{result:?}"
    );
    for token in &tokens {
        broker.result(token).await;
    }
    assert_eq!(
        broker.said.lock().unwrap().hellos.len(),
        1,
        "the stream was given up although it was answered"
    );
}

#[tokio::test]
async fn large_results_that_wait_for_their_turn_are_not_read_meanwhile() {
    let (_dir, dir) = scratch();
    let broker = Broker::start(&dir, 30_000).await;
    broker.said.lock().unwrap().hold_calls = true;
    let spooled = dir.join("w-turns/spool");
    let tokens = spool(&spooled, 3, 300 << 10);
    let _worker = broker.worker("w-turns", SIMULATED);
    broker.until("two calls", |said| (said.calls == 2).then_some(())).await;
    // Whoever reads the third one now finds it broken and puts it aside.
    let (third, aside) = (spooled.join("2.slot"), spooled.join("aside"));
    fs::rename(&third, &aside).unwrap();
    fs::write(&third, b"broken").unwrap();
    let small = broker.assign(assignment("https://nowhere.invalid/x", "echo small")).await;
    broker.result(&small).await;
    assert_eq!(fs::read(&third).unwrap_or_default(), b"broken", "it was read before its turn");
    fs::rename(&aside, &third).unwrap();
    broker.said.lock().unwrap().hold_calls = false;
    for token in &tokens {
        assert_eq!(broker.result(token).await.stdout.len(), 300 << 10);
    }
}
