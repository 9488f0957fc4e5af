//! The broker's verbs and loops on a real ledger and a real embedded queue.
#![allow(clippy::unwrap_used, clippy::large_futures)]

mod rig;

use std::time::Duration;

use bytes::Bytes;
use codering_brokerd::{
    broker::{NewJob, Stream},
    ledger::{Stands, TaskFilter},
};
use codering_core::{Code, LimitsPatch, Outcome, QueueName, TaskId, TaskKey, job::JobState, quota::Quota};
use codering_kit::disk::Reserve;
use codering_proto::v1::{self, from_worker};
use futures::StreamExt;
use rig::*;

#[tokio::test]
async fn a_job_goes_from_submit_to_its_results_on_the_done_queue() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 2).await;
    let job = rig.submit(spec(), tasks(5)).await;
    for _ in 0..5 {
        let assignment = worker.assignment().await;
        assert!(worker.report(&assignment, Outcome::Succeeded, &format!("out {}", assignment.task_id)).await);
    }
    let job = rig.reaches(&job, JobState::Succeeded).await;
    assert_eq!((job.counts.succeeded, job.counts.total), (5, 5));
    let mut seen = Vec::new();
    for _ in 0..5 {
        let done = rig.take_done().await;
        assert_eq!(done.stdout, format!("out {}", done.task_id));
        seen.push(done.task_id.to_string());
    }
    seen.sort();
    assert_eq!(seen, ["1", "2", "3", "4", "5"]);
    let page = rig.broker.results_page(&job.id, &[], None, 10).await.unwrap();
    assert_eq!(page.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn no_more_is_assigned_than_a_worker_has_slots() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 2).await;
    rig.submit(spec(), tasks(5)).await;
    let first = worker.assignment().await;
    worker.assignment().await;
    assert!(worker.gets_nothing().await);
    assert_eq!(
        rig.queues.depth(&QueueName::todo(&pi())).await.unwrap().unacked,
        0,
        "no message is held back"
    );
    worker.report(&first, Outcome::Succeeded, "").await;
    worker.assignment().await;
}

#[tokio::test]
async fn the_reduce_step_reads_the_results_and_gives_the_answer() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 4).await;
    let job = rig.submit(codering_core::JobSpec { reduce: Some(reduce("sum")), ..spec() }, tasks(3)).await;
    for _ in 0..3 {
        let assignment = worker.assignment().await;
        worker.report(&assignment, Outcome::Succeeded, &assignment.task_id).await;
    }
    let last = worker.assignment().await;
    assert_eq!((last.task_id.as_str(), last.stdin_from_results), ("~reduce-1", true));
    assert_eq!(rig.job(&job).await.state, JobState::Reducing);
    let input = rig.broker.reduce_input(worker.session.name(), &token(&last)).unwrap();
    let lines: Vec<Bytes> = input.map(Result::unwrap).collect().await;
    let text = String::from_utf8(lines.concat()).unwrap();
    let outs: Vec<_> = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["stdout"].clone())
        .collect();
    assert_eq!(outs, ["1", "2", "3"]);
    worker.report(&last, Outcome::Succeeded, "6").await;
    rig.reaches(&job, JobState::Succeeded).await;
    assert_eq!(rig.broker.answer(&job.id).await.unwrap(), ("sum.txt".into(), b"6".to_vec()));

    rig.broker.reduce_job(&job.id, Some(reduce("other"))).await.unwrap();
    let again = worker.assignment().await;
    assert_eq!(again.task_id, "~reduce-2");
    worker.report(&again, Outcome::Succeeded, "seven").await;
    rig.reaches(&job, JobState::Succeeded).await;
    assert_eq!(rig.broker.answer(&job.id).await.unwrap().1, b"seven");

    rig.broker.reduce_job(&job.id, Some(reduce("false"))).await.unwrap();
    let bad = worker.assignment().await;
    worker.report(&bad, Outcome::Failed, "").await;
    let failed = rig.reaches(&job, JobState::Failed).await;
    let told = until("the job's message", async || {
        let message = rig.job(&failed).await.message;
        (!message.is_empty()).then_some(message)
    });
    assert_eq!(told.await, "the reduce step ended as failed");
}

#[tokio::test]
async fn a_job_tells_what_holds_it_up_until_it_gets_on() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let job = rig.submit(spec(), tasks(1)).await;
    let first = worker.assignment().await;
    let mut failed = report(&first, Outcome::InfrastructureError, "");
    failed.result.as_mut().unwrap().message = "the git host cannot be reached".into();
    assert!(rig.broker.report(worker.session.name(), failed).await.unwrap(), "recorded");
    assert_eq!(rig.job(&job).await.message, "the git host cannot be reached");
    let second = worker.assignment().await;
    worker.report(&second, Outcome::Succeeded, "").await;
    assert_eq!(rig.reaches(&job, JobState::Succeeded).await.message, "");
}

#[tokio::test]
async fn a_lost_workers_task_runs_elsewhere_and_its_late_result_is_fenced() {
    let rig = Rig::with(|s| s.lease = Duration::from_secs(1)).await;
    let mut lost = rig.worker("lost", 1).await;
    let job = rig.submit(spec(), tasks(1)).await;
    let first = lost.assignment().await;
    // It says nothing: its stream is ended, then its lease.
    assert!(bounded("the end of the stream", lost.session.next()).await.is_none());
    let mut other = rig.worker("other", 1).await;
    let second = other.assignment_while_beating().await;
    assert_eq!((second.attempt, second.task_id.as_str()), (2, "1"));
    let late = report(&first, Outcome::Succeeded, "late");
    assert!(!rig.broker.report(lost.session.name(), late).await.unwrap(), "fenced");
    assert!(other.report(&second, Outcome::Succeeded, "good").await);
    let job = rig.reaches(&job, JobState::Succeeded).await;
    assert_eq!(rig.take_done().await.stdout, "good");
    let key = TaskKey { job: job.id, task: TaskId::new("1").unwrap() };
    let story = rig.broker.task(&key).await.unwrap();
    assert_eq!(story.task.progress.infrastructure_failures, 1);
    assert_eq!(story.attempts[0].outcome, Outcome::InfrastructureError);
    assert!(story.attempts[0].message.contains("lost"), "{:?}", story.attempts[0]);
}

#[tokio::test]
async fn a_renewed_lease_outlives_its_first_deadline() {
    let rig = Rig::with(|s| s.lease = Duration::from_secs(1)).await;
    let mut worker = rig.worker("w1", 1).await;
    rig.submit(spec(), tasks(1)).await;
    let held = worker.assignment().await;
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        assert_eq!(worker.beat(&[&held]).await.fenced_tokens, Vec::<String>::new());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(worker.report(&held, Outcome::Succeeded, "").await);
}

#[tokio::test]
async fn a_restart_of_the_broker_loses_nothing_and_a_worker_that_comes_back_keeps_its_task() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let job = rig.submit(spec(), tasks(3)).await;
    let held = worker.assignment().await;
    drop(worker);
    let started = until("the job's start is recorded", async || {
        let recorded = rig.ledger.job(&job.id).await.unwrap().unwrap().started_at;
        (recorded != 0).then_some(recorded)
    })
    .await;
    let rig = rig.restart().await;
    let mut worker = rig.worker_holding("w1", 1, vec![held.token.clone(), "00".repeat(16)], &[]).await;
    assert_eq!(worker.fenced, ["00".repeat(16)], "a token that nobody knows is fenced");
    assert!(worker.report(&held, Outcome::Succeeded, "").await, "the lease outlived the broker");
    for _ in 0..2 {
        let assignment = worker.assignment().await;
        assert_eq!(assignment.attempt, 1);
        worker.report(&assignment, Outcome::Succeeded, "").await;
    }
    let ended = rig.reaches(&job, JobState::Succeeded).await;
    assert_eq!((ended.counts.retried, ended.started_at), (0, started));
}

#[tokio::test]
async fn an_assignment_that_never_reached_its_worker_is_given_again_at_once() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    rig.submit(spec(), tasks(1)).await;
    let first = worker.assignment().await;
    let mut again = rig.worker("w1", 1).await;
    let second = again.assignment().await;
    assert_eq!((first.attempt, second.attempt), (1, 2));
}

#[tokio::test]
async fn a_raw_message_of_four_fields_is_adopted_and_answered() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let todo = QueueName::todo(&pi());
    let raw = r#"{"project_id":"pi","task_id":"17","git_url":"https://host/pi.git","command":"pi"}"#;
    for round in ["first", "second"] {
        rig.broker.put(&todo, raw.into(), 0).await.unwrap();
        let assignment = worker.assignment().await;
        assert_eq!(assignment.task_id, "17");
        let pinned =
            rig.broker.pin_commit(worker.session.name(), &token(&assignment), &"a".repeat(40)).await.unwrap();
        assert_eq!(pinned, "a".repeat(40));
        worker.report(&assignment, Outcome::Succeeded, round).await;
        assert_eq!(
            rig.take_done().await.stdout,
            round,
            "the same id, sent again after its answer, runs again"
        );
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_used_goes_to_the_dead_letters_with_its_reason() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let todo = QueueName::todo(&pi());
    rig.broker.put(&todo, r#"{"project_id":"pi","task_id":17}"#.into(), 0).await.unwrap();
    rig.broker
        .put(&todo, r#"{"project_id":"pi","task_id":"1","git_url":"https://h/p","command":"x"}"#.into(), 0)
        .await
        .unwrap();
    worker.assignment().await;
    let (letters, total) = until("a dead letter", async || {
        Some(rig.broker.dead(&pi(), 10).await.unwrap()).filter(|(_, n)| *n > 0)
    })
    .await;
    assert_eq!(total, 1);
    assert!(letters[0].reason.contains("invalid.json"), "{:?}", letters[0]);
    assert_eq!(letters[0].queue, todo);
}

#[tokio::test]
async fn messages_that_the_queue_lost_are_published_again_from_the_ledger() {
    let rig = Rig::new().await;
    let job = rig.submit(spec(), tasks(3)).await;
    let todo = QueueName::todo(&pi());
    until("three messages", async || (rig.queues.depth(&todo).await.unwrap().ready == 3).then_some(())).await;
    until("marked as published", async || {
        (rig.ledger.published_count(&pi()).await.unwrap() == 3).then_some(())
    })
    .await;
    rig.queues.delete(&todo).await.unwrap();
    let mut worker = rig.worker("w1", 1).await;
    for _ in 0..3 {
        let assignment = worker.assignment().await;
        worker.report(&assignment, Outcome::Succeeded, "").await;
    }
    rig.reaches(&job, JobState::Succeeded).await;
}

#[tokio::test]
async fn a_cancelled_job_stops_what_runs_and_leases_nothing_more() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let job = rig.submit(spec(), tasks(4)).await;
    let held = worker.assignment().await;
    rig.broker.cancel_job(&job.id).await.unwrap();
    until("the worker is told", async || {
        worker.beat(&[&held]).await.cancelled_tokens.contains(&held.token).then_some(())
    })
    .await;
    worker.report(&held, Outcome::Cancelled, "").await;
    let job = rig.reaches(&job, JobState::Cancelled).await;
    assert_eq!(job.counts.cancelled, 4);
    assert!(worker.gets_nothing().await);
    let retried = rig.broker.retry_job(&job.id).await.unwrap().1;
    assert_eq!(retried, 4);
    worker.assignment().await;
}

#[tokio::test]
async fn a_paused_job_waits_and_goes_on_when_resumed() {
    let rig = Rig::new().await;
    let job = rig.submit(spec(), tasks(2)).await;
    rig.broker.pause_job(&job.id).await.unwrap();
    let mut worker = rig.worker("w1", 2).await;
    assert!(worker.gets_nothing().await);
    assert_eq!(rig.job(&job).await.state, JobState::Paused);
    rig.broker.resume_job(&job.id).await.unwrap();
    worker.assignment().await;
}

#[tokio::test]
async fn only_failed_tasks_are_retried_and_a_success_is_kept() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let once = LimitsPatch { max_attempts: Some(1), ..Default::default() };
    let job = rig.submit(codering_core::JobSpec { limits: once, ..spec() }, tasks(2)).await;
    for outcome in [Outcome::Succeeded, Outcome::Failed] {
        let assignment = worker.assignment().await;
        worker.report(&assignment, outcome, "first").await;
    }
    let failed = rig.reaches(&job, JobState::Failed).await;
    assert_eq!(failed.message, "1 of 2 tasks failed");
    let (_, retried) = rig.broker.retry_job(&job.id).await.unwrap();
    assert_eq!(retried, 1);
    let again = worker.assignment().await;
    assert_eq!((again.task_id.as_str(), again.attempt), ("2", 2));
    worker.report(&again, Outcome::Succeeded, "second").await;
    rig.reaches(&job, JobState::Succeeded).await;
    let filter = TaskFilter { stands: Some(Stands::Done), outcomes: vec![Outcome::Succeeded] };
    assert_eq!(rig.broker.tasks(&job.id, filter, None, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_bad_submit_records_nothing_and_says_where() {
    let rig = Rig::new().await;
    let twice = vec![tasks(1).remove(0), tasks(1).remove(0)];
    let new = || NewJob { spec: spec(), idempotency_key: None, submitted_by: "test".into() };
    let mut submission = rig.broker.submit(new()).await.unwrap();
    submission.add(twice).await.unwrap();
    assert_eq!(submission.finish().await.unwrap_err().code, Code::JobDuplicateTask);
    let empty = rig.broker.submit(new()).await.unwrap();
    assert_eq!(empty.finish().await.unwrap_err().code, Code::JobEmpty);
    let mut bad = tasks(3);
    bad[2].limits.memory_bytes = Some(1);
    let mut submission = rig.broker.submit(new()).await.unwrap();
    let error = submission.add(bad).await.unwrap_err();
    assert_eq!(error.place, "tasks[2].limits.memory");
    drop(submission);
    assert!(rig.broker.jobs(Default::default(), None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_same_idempotency_key_returns_the_first_job() {
    let rig = Rig::new().await;
    let submit = async || {
        let new = NewJob { spec: spec(), idempotency_key: Some("k".into()), submitted_by: "test".into() };
        let mut submission = rig.broker.submit(new).await.unwrap();
        submission.add(tasks(2)).await.unwrap();
        submission.finish().await.unwrap()
    };
    let (first, existed) = submit().await;
    assert!(!existed);
    let (second, existed) = submit().await;
    assert!(existed);
    assert_eq!(first.id, second.id);
}

#[tokio::test]
async fn below_the_reserve_a_submit_is_refused_one_that_was_taken_is_answered_again_and_nothing_is_begun() {
    let rig = Rig::new().await;
    let new = |key: Option<&str>| NewJob {
        spec: spec(),
        idempotency_key: key.map(str::to_owned),
        submitted_by: "test".into(),
    };
    let mut submission = rig.broker.submit(new(Some("k"))).await.unwrap();
    submission.add(tasks(2)).await.unwrap();
    let (first, _) = submission.finish().await.unwrap();

    let rig = rig.restart_with(|settings| settings.reserve = Reserve::new("/", u64::MAX)).await;
    for key in [None, Some("other")] {
        let refused = rig.broker.submit(new(key)).await.err().unwrap();
        assert_eq!(refused.code, Code::LedgerFull);
        assert!(refused.to_string().contains("min_free_disk"), "{refused}");
    }
    let again = rig.broker.submit(new(Some("k"))).await.unwrap();
    assert_eq!(again.existing().map(|job| &job.id), Some(&first.id));
    let mut worker = rig.worker("w1", 4).await;
    assert!(worker.gets_nothing().await);
    drop((again, worker));

    let rig = rig.restart_with(|settings| settings.reserve = Reserve::new("/", 0)).await;
    let mut worker = rig.worker("w1", 4).await;
    worker.assignment().await;
}

#[tokio::test]
async fn quotas_on_queued_tasks_and_running_slots_hold() {
    let rig = Rig::new().await;
    rig.broker.set_quota(&pi(), Quota { queued_tasks: 3, running_slots: 1, result_bytes: 0 }).await.unwrap();
    let mut worker = rig.worker("w1", 4).await;
    rig.submit(spec(), tasks(3)).await;
    worker.assignment().await;
    assert!(worker.gets_nothing().await);
    let new = NewJob { spec: spec(), idempotency_key: None, submitted_by: "test".into() };
    assert_eq!(rig.broker.submit(new).await.err().unwrap().code, Code::QuotaExceeded);
}

#[tokio::test]
async fn a_job_with_labels_runs_only_where_they_are() {
    let rig = Rig::new().await;
    let labels = [("gpu".to_owned(), "yes".to_owned())].into();
    rig.submit(codering_core::JobSpec { labels, ..spec() }, tasks(1)).await;
    let mut plain = rig.worker("plain", 1).await;
    assert!(plain.gets_nothing().await);
    let mut fit = rig.worker_holding("fit", 1, vec![], &[("gpu", "yes")]).await;
    fit.assignment().await;
}

#[tokio::test]
async fn output_is_read_by_offset_while_the_task_runs_and_from_the_result_afterwards() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let job = rig.submit(spec(), tasks(1)).await;
    let held = worker.assignment().await;
    let key = TaskKey { job: job.id.clone(), task: TaskId::new("1").unwrap() };
    let log = |offset, text: &'static str| {
        let data = text.as_bytes().into();
        from_worker::Message::Log(v1::LogData {
            token: held.token.clone(),
            stream: v1::LogStream::Stdout as i32,
            offset,
            data,
        })
    };
    worker.say(log(0, "hello ")).await;
    worker.say(log(3, "lo world")).await;
    worker.say(log(100, "beyond a gap")).await;
    let piece = rig.broker.read_log(&key, Stream::Stdout, 6, 100).await.unwrap();
    assert_eq!((piece.data.as_slice(), piece.done), (&b"world"[..], false));
    worker.report(&held, Outcome::Succeeded, "hello world!").await;
    let piece = rig.broker.read_log(&key, Stream::Stdout, 11, 100).await.unwrap();
    assert_eq!((piece.data.as_slice(), piece.done), (&b"!"[..], true));
}

#[tokio::test]
async fn one_commit_is_pinned_for_a_whole_job_whoever_asks_first() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 2).await;
    let job = rig.submit(spec(), tasks(3)).await;
    let (one, two) = (worker.assignment().await, worker.assignment().await);
    assert_eq!(one.commit, "");
    let name = worker.session.name().clone();
    let first = rig.broker.pin_commit(&name, &token(&one), &"a".repeat(40)).await.unwrap();
    let second = rig.broker.pin_commit(&name, &token(&two), &"b".repeat(40)).await.unwrap();
    assert_eq!((first.as_str(), second.as_str()), (&*"a".repeat(40), &*"a".repeat(40)));
    worker.report(&one, Outcome::Succeeded, "").await;
    assert_eq!(worker.assignment().await.commit, "a".repeat(40));
    assert_eq!(rig.job(&job).await.commit, "a".repeat(40));
}

#[tokio::test]
async fn a_watcher_hears_of_progress_and_last_of_the_end() {
    let rig = Rig::new().await;
    let mut worker = rig.worker("w1", 1).await;
    let job = rig.submit(spec(), tasks(2)).await;
    let events = rig.broker.watch(job.id.clone());
    let work = async {
        for _ in 0..2 {
            let assignment = worker.assignment().await;
            worker.report(&assignment, Outcome::Succeeded, "").await;
        }
    };
    let (events, ()) =
        bounded("the last event", futures::future::join(events.collect::<Vec<_>>(), work)).await;
    let states: Vec<_> = events.into_iter().map(|e| e.unwrap().job.state).collect();
    assert_eq!(states.last(), Some(&JobState::Succeeded));
    assert_eq!(states.iter().filter(|s| s.is_final()).count(), 1);
}

#[tokio::test]
async fn a_raw_message_may_not_ask_for_what_a_submit_may_not() {
    let rig = Rig::with(|s| s.max_limits.network = false).await;
    let mut worker = rig.worker("w1", 1).await;
    let body = r#"{"project_id": "pi", "task_id": "1", "git_url": "https://host/pi.git", "command": "pi", "network": true}"#;
    rig.broker.put(&QueueName::todo(&pi()), Bytes::from_static(body.as_bytes()), 0).await.unwrap();
    let dead = until("a dead letter", async || {
        let (letters, _) = rig.broker.dead(&pi(), 10).await.unwrap();
        letters.into_iter().next()
    })
    .await;
    assert!(format!("{dead:?}").contains("network"), "{dead:?}");
    assert!(worker.gets_nothing().await);
}

#[tokio::test]
async fn a_job_that_is_retried_while_the_reconciler_looks_at_it_does_not_end_without_its_tasks() {
    let rig = Rig::with(|s| s.reconcile_every = Duration::from_millis(1)).await;
    let mut worker = rig.worker("w1", 1).await;
    let job = rig.submit(spec(), vec![with_one_attempt()]).await;
    for _ in 0..15 {
        let held = worker.assignment().await;
        worker.report(&held, Outcome::Failed, "").await;
        rig.reaches(&job, JobState::Failed).await;
        assert_eq!(rig.broker.retry_job(&job.id).await.unwrap().1, 1);
    }
    let held = worker.assignment().await;
    assert!(worker.report(&held, Outcome::Succeeded, "").await);
    let job = rig.reaches(&job, JobState::Succeeded).await;
    assert_eq!((job.counts.total, job.counts.succeeded), (1, 1));
}

fn with_one_attempt() -> codering_core::TaskSpec {
    let limits = LimitsPatch { max_attempts: Some(1), ..LimitsPatch::default() };
    codering_core::TaskSpec { limits, ..tasks(1).remove(0) }
}
