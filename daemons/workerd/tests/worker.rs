//! The whole process against a broker of the test's own: attach, run, report, and what happens when something breaks.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use codering_core::{Limits, Outcome};
use codering_proto::v1;
use support::{
    BUSYBOX, Repository,
    broker::{Broker, assignment, ours},
    docker_with_busybox, run, scratch,
};

/// A repository whose image is the test image itself.
fn repository() -> Repository {
    Repository::new(&[("Dockerfile", &format!("FROM {BUSYBOX}\nCOPY Dockerfile /app/\n"))])
}

fn limited(mut assignment: v1::Assignment, change: impl FnOnce(&mut Limits)) -> v1::Assignment {
    let mut limits = Limits { memory_bytes: 64 << 20, ..Limits::default() };
    change(&mut limits);
    assignment.limits = Some((&limits).into());
    assignment
}

fn containers_of(worker: &str) -> String {
    run(std::process::Command::new("docker")
        .args(["ps", "-aq", "--no-trunc", "--filter"])
        .arg(format!("label=codering.worker={worker}")))
}

async fn no_containers_of(worker: &str) {
    support::until("the container's removal", async || containers_of(worker).is_empty().then_some(())).await;
}

#[tokio::test]
async fn an_assignment_is_checked_out_built_run_streamed_and_reported() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 30_000).await, repository());
    let worker = broker.worker("w-flow", "labels = { zone = \"a\" }");
    let mut task = assignment(&repository.url(), "cat; echo to-stderr >&2; exit 3");
    task.stdin = b"the input\n".to_vec().into();
    let token = broker.assign(task).await;
    let result = broker.result(&token).await;
    assert_eq!((result.outcome, result.exit_code), (Outcome::Failed, Some(3)), "{result:?}");
    assert_eq!(
        (result.stdout.as_slice(), result.stderr.as_slice()),
        (&b"the input\n"[..], &b"to-stderr\n"[..])
    );
    assert_eq!(result.commit, repository.git(&["rev-parse", "HEAD"]));
    assert_eq!((result.worker.as_str(), result.phases.queued), (worker.name.as_str(), 5));
    assert!(result.phases.start > 0 && result.image.starts_with("codering/ctx:"), "{result:?}");
    {
        let said = broker.said.lock().unwrap();
        assert_eq!(said.hellos[0].slots, 4);
        assert_eq!(said.hellos[0].labels["zone"], "a");
        assert_eq!(said.pinned, std::slice::from_ref(&result.commit));
        let phases: Vec<_> = said.progress.iter().map(|p| p.phase.as_str()).collect();
        assert_eq!(phases, ["checkout", "build", "start", "run"]);
    }
    assert_eq!(broker.log(&token, v1::LogStream::Stdout), "the input\n");
    no_containers_of(&worker.name).await;
    drop(worker);
}

#[tokio::test]
async fn each_end_has_its_own_outcome() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 30_000).await, repository());
    let _worker = broker.worker("w-ends", "");
    let url = repository.url();
    let greedy = "/bin/busybox awk 'BEGIN{s=\"aaaaaaaa\"; while(1) s=s s}'";
    let broken = Repository::new(&[("Dockerfile", "FROM codering-test/nosuch:1\n")]);
    let cases = [
        (assignment(&url, "true"), Outcome::Succeeded, ""),
        (assignment(&url, "kill -9 $$"), Outcome::Failed, "signal 9"),
        (assignment(&url, "nosuchcommand"), Outcome::Failed, "not found"),
        (
            limited(assignment(&url, "echo begun; sleep 60"), |l| l.timeout_ms = 1500),
            Outcome::TimedOut,
            "1.5s",
        ),
        (limited(assignment(&url, greedy), |l| l.memory_bytes = 16 << 20), Outcome::OutOfMemory, "16 MB"),
        (assignment(&broken.url(), "true"), Outcome::BuildFailed, "step 1 of 1: FROM"),
        (
            v1::Assignment { git_ref: "nosuch".into(), ..assignment(&url, "true") },
            Outcome::BuildFailed,
            "nosuch",
        ),
        (
            v1::Assignment { git_url: "ssh://git@127.0.0.1/x".into(), ..assignment(&url, "true") },
            Outcome::BuildFailed,
            "ssh://",
        ),
    ];
    let mut expected = Vec::new();
    for (task, outcome, message) in cases {
        expected.push((broker.assign(task).await, outcome, message));
    }
    for (token, outcome, message) in expected {
        let result = broker.result(&token).await;
        assert!(
            result.outcome == outcome && result.message.contains(message),
            "{outcome}, `{message}`: {result:?}"
        );
        if outcome == Outcome::TimedOut {
            assert_eq!(result.stdout, b"begun\n");
        }
    }
    let said = broker.said.lock().unwrap();
    assert!(
        said.builds
            .iter()
            .any(|b| b.build.as_ref().is_some_and(|b| !b.succeeded && b.log.contains("Step 1/1")))
    );
}

#[tokio::test]
async fn a_cancelled_attempt_is_killed_and_says_so() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 30_000).await, repository());
    let worker = broker.worker("w-cancel", "");
    let token = broker.assign(assignment(&repository.url(), "echo on; sleep 600")).await;
    broker.running(&token).await;
    let cancel = v1::CancelAttempt { token: token.clone() };
    broker.tell(v1::to_worker::Message::Cancel(cancel)).await;
    assert_eq!(broker.result(&token).await.outcome, Outcome::Cancelled);
    no_containers_of(&worker.name).await;
}

#[tokio::test]
async fn a_fenced_attempt_is_killed_and_reports_nothing() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 3_000).await, repository());
    let worker = broker.worker("w-fenced", "");
    let token = broker.assign(assignment(&repository.url(), "sleep 600")).await;
    broker.running(&token).await;
    broker.said.lock().unwrap().fenced.push(token.clone());
    no_containers_of(&worker.name).await;
    broker
        .until("a heartbeat without it", |said| {
            said.beats.last().filter(|b| !b.tokens.contains(&token)).map(|_| ())
        })
        .await;
    assert!(broker.said.lock().unwrap().results.is_empty());
}

/// Invariant 3: a worker that cannot renew stops its own container before the lease ends.
#[tokio::test]
async fn invariant_3_a_worker_that_cannot_renew_stops_its_container_before_its_lease_ends() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 4_000).await, repository());
    let worker = broker.worker("w-lease", "");
    let task = v1::Assignment { lease_ms: 4_000, ..assignment(&repository.url(), "sleep 600") };
    let token = broker.assign(task).await;
    broker.running(&token).await;
    // Kept alive by heartbeats well beyond one lease.
    let kept = Instant::now();
    broker
        .until("five beats", |said| {
            (said.beats.len() >= 5 && kept.elapsed() > Duration::from_secs(5)).then_some(())
        })
        .await;
    assert!(!containers_of(&worker.name).is_empty(), "it was stopped although its lease was renewed");
    broker.said.lock().unwrap().mute = true;
    let muted = Instant::now();
    support::until("the container's end", async || {
        let running = run(std::process::Command::new("docker").args([
            "ps",
            "-q",
            "--filter",
            &format!("label=codering.worker={}", worker.name),
        ]));
        running.is_empty().then_some(())
    })
    .await;
    assert!(
        muted.elapsed() < Duration::from_millis(4_400),
        "it ran {:?} after the last answer",
        muted.elapsed()
    );
    broker.said.lock().unwrap().mute = false;
    let result = broker.result(&token).await;
    assert!(ours(&result) && result.message.contains("lease"), "{result:?}");
}

/// How many results lie in a spool.
fn spooled(spool: &std::path::Path) -> usize {
    let slots = std::fs::read_dir(spool).into_iter().flatten().flatten();
    slots.filter(|slot| std::fs::read(slot.path()).is_ok_and(|held| held.starts_with(b"cspool1"))).count()
}

#[tokio::test]
async fn a_broker_that_goes_away_is_found_again_and_told_what_is_held() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (mut broker, repository) = (Broker::start(&dir, 30_000).await, repository());
    let _worker = broker.worker("w-away", "");
    let long = broker.assign(assignment(&repository.url(), "echo one; sleep 5; echo two")).await;
    let short = broker.assign(assignment(&repository.url(), "sleep 1; echo short")).await;
    broker.running(&long).await;
    broker.running(&short).await;
    broker.die();
    // The real one begins anew with what was streamed to it.
    broker.said.lock().unwrap().logs.clear();
    let spool = dir.join("w-away/spool");
    support::until("a result while it is away", async || (spooled(&spool) == 1).then_some(())).await;
    broker = broker.back().await;
    assert_eq!(broker.result(&short).await.stdout, b"short\n");
    assert_eq!(broker.result(&long).await.stdout, b"one\ntwo\n");
    assert_eq!(broker.log(&long, v1::LogStream::Stdout), "one\ntwo\n");
    let said = broker.said.lock().unwrap();
    let held = &said.hellos.last().unwrap().held_tokens;
    assert!(held.contains(&long) && held.contains(&short), "{held:?}");
}

#[tokio::test]
async fn a_result_outlives_the_worker_and_is_reported_by_the_next() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 30_000).await, repository());
    let mut worker = broker.worker("w-spool", "");
    broker.said.lock().unwrap().mute = true;
    let token = broker.assign(assignment(&repository.url(), "echo kept")).await;
    let spool = dir.join("w-spool/spool");
    support::until("a spooled result", async || (spooled(&spool) == 1).then_some(())).await;
    worker.crash();
    broker.said.lock().unwrap().mute = false;
    worker.start();
    assert_eq!(broker.result(&token).await.stdout, b"kept\n");
    support::until("an empty spool", async || (spooled(&spool) == 0).then_some(())).await;
}

#[tokio::test]
async fn a_large_result_goes_by_a_call_of_its_own() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 30_000).await, repository());
    let _worker = broker.worker("w-large", "");
    let task =
        limited(assignment(&repository.url(), "yes | head -c 12000000"), |l| l.output_bytes = 10 << 20);
    let result = broker.result(&broker.assign(task).await).await;
    assert_eq!((result.stdout.len(), result.stdout_truncated), (10 << 20, true));
}

#[tokio::test]
async fn after_a_crash_running_containers_are_taken_up_with_all_of_their_output() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 30_000).await, repository());
    let mut worker = broker.worker("w-crash", "");
    let script = "for i in $(seq 50); do echo line $i; sleep 0.1; done; exit 5";
    let running = broker.assign(assignment(&repository.url(), script)).await;
    let ended = broker.assign(assignment(&repository.url(), "sleep 1; echo ended alone")).await;
    let overdue =
        broker.assign(limited(assignment(&repository.url(), "sleep 600"), |l| l.timeout_ms = 2_500)).await;
    let mut containers = Vec::new();
    for token in [&running, &ended, &overdue] {
        containers.push(broker.running(token).await);
    }
    worker.crash();
    let crashed = Instant::now();
    // One ends by itself meanwhile, and one runs past its limit.
    support::until("the end of one, and of another's time", async || {
        let alone = run(std::process::Command::new("docker").args([
            "inspect",
            "-f",
            "{{.State.Running}}",
            &containers[1],
        ]));
        (alone == "false" && crashed.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .await;
    worker.start();
    let result = broker.result(&running).await;
    let lines: String = (1..=50).map(|i| format!("line {i}\n")).collect();
    assert_eq!((result.exit_code, String::from_utf8(result.stdout).unwrap()), (Some(5), lines.clone()));
    assert!(result.phases.run >= 5_000 && result.commit.len() == 40, "{:?}", result.phases);
    assert_eq!(broker.result(&ended).await.stdout, b"ended alone\n");
    assert_eq!(broker.result(&overdue).await.outcome, Outcome::TimedOut);
    let held = broker.said.lock().unwrap().hellos.last().unwrap().held_tokens.len();
    assert_eq!(held, 3);
    no_containers_of(&worker.name).await;
}

#[tokio::test]
async fn a_container_whose_lease_ended_or_whose_attempt_is_fenced_is_not_taken_up() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 4_000).await, repository());
    let mut worker = broker.worker("w-over", "");
    let task = v1::Assignment { lease_ms: 4_000, ..assignment(&repository.url(), "sleep 600") };
    let token = broker.assign(task).await;
    broker.running(&token).await;
    let beats = broker.said.lock().unwrap().beats.len();
    broker.until("a beat with it", |said| (said.beats.len() > beats + 1).then_some(())).await;
    worker.crash();
    let crashed = Instant::now();
    support::until("the lease's end", async || {
        (crashed.elapsed() > Duration::from_millis(4_100)).then_some(())
    })
    .await;
    assert!(!containers_of(&worker.name).is_empty());
    worker.start();
    no_containers_of(&worker.name).await;
    broker
        .until("a second hello", |said| said.hellos.get(1).map(|h| assert_eq!(h.held_tokens, [""; 0])))
        .await;

    let token = broker.assign(assignment(&repository.url(), "sleep 600")).await;
    broker.running(&token).await;
    worker.crash();
    broker.said.lock().unwrap().fenced.push(token);
    worker.start();
    no_containers_of(&worker.name).await;
}

#[tokio::test]
async fn a_stop_leaves_what_runs_to_the_next_start_or_nothing_at_all() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 30_000).await, repository());
    let mut worker = broker.worker("w-detach", "on_stop = \"detach\"\n[shutdown]\ndeadline = \"4s\"\n");
    let long = broker.assign(assignment(&repository.url(), "sleep 6; echo long")).await;
    broker.running(&long).await;
    worker.stop().await;
    assert!(!containers_of(&worker.name).is_empty());
    assert!(
        broker.said.lock().unwrap().beats.iter().any(|b| b.draining),
        "the broker was not told of the drain"
    );
    worker.start();
    assert_eq!(broker.result(&long).await.stdout, b"long\n");

    let mut worker = broker.worker("w-kill", "on_stop = \"kill\"\n");
    broker.until("the second worker", |said| said.hellos.get(2).map(|_| ())).await;
    let killed = broker.assign(assignment(&repository.url(), "sleep 600")).await;
    broker.running(&killed).await;
    worker.stop().await;
    assert_eq!(containers_of(&worker.name), "");
    assert!(ours(&broker.result(&killed).await));
}

#[tokio::test]
async fn a_reduce_step_reads_all_results_or_fails_as_the_infrastructures() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let (broker, repository) = (Broker::start(&dir, 30_000).await, repository());
    let _worker = broker.worker("w-reduce", "");
    let reduce = || v1::Assignment { stdin_from_results: true, ..assignment(&repository.url(), "wc -l") };
    broker.said.lock().unwrap().input = (vec![b"{}\n".repeat(50_000); 20], false);
    let whole = broker.result(&broker.assign(reduce()).await).await;
    assert_eq!(String::from_utf8_lossy(&whole.stdout).trim(), "1000000", "{whole:?}");
    broker.said.lock().unwrap().input.1 = true;
    let half = broker.result(&broker.assign(reduce()).await).await;
    assert!(ours(&half), "half of the results were taken for all: {half:?}");
}

#[tokio::test]
async fn a_commit_that_another_worker_pinned_is_the_one_that_runs() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let repository =
        Repository::new(&[("Dockerfile", &format!("FROM {BUSYBOX}\nCOPY v /app/v\n")), ("v", "old\n")]);
    let old = repository.git(&["rev-parse", "HEAD"]);
    repository.commit(&[("v", "new\n")]);
    let broker = Broker::start(&dir, 30_000).await;
    broker.said.lock().unwrap().pin_to = Some(old.clone());
    let _worker = broker.worker("w-pin", "");
    let result = broker.result(&broker.assign(assignment(&repository.url(), "cat /app/v")).await).await;
    assert_eq!((result.stdout.as_slice(), result.commit), (&b"old\n"[..], old));
}

#[tokio::test]
async fn a_simulated_worker_needs_neither_docker_nor_git() {
    let (_dir, dir) = scratch();
    let broker = Broker::start(&dir, 30_000).await;
    let _worker =
        broker.worker("w-simulated", "[docker]\nsocket = \"/nonexistent\"\n[simulate]\nenabled = true\n");
    let url = "https://nowhere.invalid/x";
    let mut tokens = Vec::new();
    for script in ["anything", "echo hello; exit 4", "sleep 600"] {
        tokens.push(broker.assign(limited(assignment(url, script), |l| l.timeout_ms = 500)).await);
    }
    assert_eq!(broker.result(&tokens[0]).await.outcome, Outcome::Succeeded);
    let failed = broker.result(&tokens[1]).await;
    assert_eq!((failed.exit_code, failed.stdout.as_slice()), (Some(4), &b"hello\n"[..]));
    assert_eq!(broker.result(&tokens[2]).await.outcome, Outcome::TimedOut);
}
