//! What a worker may say and show.

use std::{collections::HashSet, time::Duration};

use codering_core::{Code, WorkerName};
use codering_proto::v1::{self, from_worker, to_worker};

use super::rig::*;
use crate::ledger::BUILD_LOG_BYTES;

#[tokio::test]
async fn a_certificate_that_was_replaced_while_its_stream_began_gets_none() {
    let rig = Rig::new().await;
    drop(rig.worker("w1", 1).await);
    let name = WorkerName::new("w1").unwrap();
    let mut row = rig.ledger.workers().await.unwrap().remove(0);
    (row.certificate_serial, row.previous_serial) = ("03".into(), "02".into());
    rig.ledger.put_worker(row).await.unwrap();
    let hello = || v1::Hello { slots: 1, ..Default::default() };
    for replaced in ["01", ""] {
        let refused = rig.broker.attach(name.clone(), replaced, hello()).await.err().unwrap();
        assert_eq!(refused.code, Code::AuthInvalid);
    }
    for known in ["02", "03"] {
        assert!(rig.broker.attach(name.clone(), known, hello()).await.is_ok(), "{known}");
    }
}

#[tokio::test]
async fn a_build_log_beyond_its_bound_is_cut_to_its_end_whatever_the_worker_sent() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let job = rig.submit(spec(), tasks(1)).await;
    let held = worker.assignment().await;
    let told = |log: String| {
        let build = v1::Build { image: "i".into(), log, ..Default::default() };
        from_worker::Message::Build(v1::BuildDone { token: held.token.clone(), build: Some(build) })
    };
    let end = format!("{}\nthe end", "é".repeat(BUILD_LOG_BYTES));
    for (log, cut) in [(end, true), ("short".to_owned(), false)] {
        worker.say(told(log.clone())).await;
        let kept = rig.broker.builds(&job.id).await.unwrap().remove(0);
        assert!(kept.log.len() <= BUILD_LOG_BYTES && log.ends_with(&kept.log) && !kept.log.is_empty());
        assert_eq!((kept.log_truncated, kept.log == log), (cut, !cut));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_recorded_while_the_broker_stops_gets_to_its_worker() {
    for pause in 0..20 {
        let rig = Rig::new().await;
        let Worker { mut session, .. } = rig.worker("w1", 64).await;
        let job = rig.submit(spec(), tasks(64)).await;
        // As the call that it is read by: it ends with the stream.
        let reading = tokio::spawn(async move {
            let mut got = HashSet::new();
            while let Some(message) = session.next().await {
                if let Some(to_worker::Message::Assignment(assignment)) = message.message {
                    got.insert(assignment.token);
                }
            }
            got
        });
        tokio::time::sleep(Duration::from_millis(pause)).await;
        rig.broker.stop().await;
        let got = reading.await.unwrap();
        for task in rig.ledger.tasks(&job.id, Default::default(), None, 100).await.unwrap() {
            match task.progress.lease() {
                Some(lease) => assert!(got.contains(lease.token.as_str()), "after {pause} ms: {task:?}"),
                None => assert_eq!(task.progress.attempt, 0, "after {pause} ms: {task:?}"),
            }
        }
    }
}
