//! What every task passes, each measured alone: `cargo bench -p codering-bench`. One line each, the median of several
//! rounds. Nothing is asked of these figures: they say where to look when one of the table's is missed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use codering_brokerd::{
    broker::scheduler::Scheduler,
    ledger::{self, Begun, Job, Record, SharedLedger, Swapped, Task, TaskChange},
    queue::{self, Message, QueueConfig, SharedQueues},
};
use codering_core::{
    AttemptSpec, Command, JobId, JobSpec, LeaseToken, Limits, Outcome, ProjectName, QueueName, Source,
    TaskId, TaskKey, TaskSpec,
    message::TodoMessage,
    task::{Event, Lease, Policy, Progress},
};
use codering_proto::{convert::Assigned, v1};
use futures::{StreamExt, stream};
use prost::Message as _;
use tokio::runtime::Runtime;

const NOW: i64 = 1_790_000_000_000;
const POLICY: Policy = Policy { max_attempts: 3, max_infrastructure_failures: 10 };
const ROUNDS: usize = 7;
/// Long enough that a clock's own cost does not count.
const ROUND: Duration = Duration::from_millis(100);
/// Calls at once, where they share a commit.
const AT_ONCE: usize = 256;

fn main() {
    // `cargo test --benches` asks whether it runs.
    let rounds = if std::env::args().any(|arg| arg == "--bench") { ROUNDS } else { 1 };
    state_machine(rounds);
    todo_message(rounds);
    plan(rounds);
    assignment(rounds);
    let runtime = Runtime::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    runtime.block_on(embedded_queue(rounds, directory.path()));
    runtime.block_on(swaps(rounds, directory.path()));
}

fn said(what: &str, mut rounds: Vec<f64>) {
    rounds.sort_by(f64::total_cmp);
    let seconds = rounds[rounds.len() / 2];
    let each =
        if seconds < 1e-6 { format!("{:.0} ns", seconds * 1e9) } else { format!("{:.2} µs", seconds * 1e6) };
    println!("{what:64} {each:>10}");
}

/// How long one call takes.
fn time(what: &str, rounds: usize, mut call: impl FnMut()) {
    let round = || {
        let (mut calls, mut batch) = (0_u32, 1);
        let began = Instant::now();
        while began.elapsed() < ROUND {
            (0..batch).for_each(|_| call());
            calls += batch;
            batch = (batch * 2).min(1024);
        }
        began.elapsed().as_secs_f64() / f64::from(calls)
    };
    said(what, std::iter::repeat_with(round).take(rounds).collect());
}

fn project(name: &str) -> ProjectName {
    name.parse().unwrap()
}

fn lease() -> Lease {
    let token = LeaseToken::from_bytes([7; 16]);
    Lease { token, worker: "w1".parse().unwrap(), leased_at: NOW, deadline: NOW + 30_000 }
}

fn done() -> Event {
    Event::Complete { token: lease().token, outcome: Outcome::Succeeded }
}

fn state_machine(rounds: usize) {
    let task = Progress::new(NOW);
    time("state machine: publish, lease and complete", rounds, || {
        let (task, _) = black_box(&task).step(Event::Publish, POLICY, NOW).unwrap();
        let (task, _) = task.step(Event::Lease(lease()), POLICY, NOW).unwrap();
        black_box(task.step(done(), POLICY, NOW).unwrap());
    });
}

fn todo_message(rounds: usize) {
    let text = br#"{"project_id":"demo","task_id":"17","git_url":"https://host/pi.git","command":"python3 pi.py --seed 17",
        "job_id":null,"git_ref":"main","env":{"LEVEL":"3","MODE":"fast"},"timeout_seconds":120,"memory_bytes":268435456}"#;
    let demo = project("demo");
    time("todo message: read", rounds, || {
        black_box(TodoMessage::read(black_box(text), &demo).unwrap());
    });
}

fn plan(rounds: usize) {
    let projects: Vec<_> = (0..50).map(|n| project(&format!("p{n}"))).collect();
    let mut scheduler = Scheduler::default();
    scheduler.join("w1".parse().unwrap(), 1, 64, HashSet::new(), false, HashMap::new());
    time("scheduler: plan 64 slots for 50 projects, and take it back", rounds, || {
        projects.iter().for_each(|project| scheduler.ring(project));
        let takes = scheduler.plan();
        assert_eq!(takes.iter().map(|take| take.max).sum::<u32>(), 64);
        takes.iter().for_each(|take| scheduler.took(take, 0));
    });
    projects.iter().for_each(|project| scheduler.ring(project));
    scheduler.plan();
    time("scheduler: plan where no slot is free", rounds, || assert!(scheduler.plan().is_empty()));
    let (token, none) = (lease().token, BTreeMap::new());
    time("scheduler: place and release", rounds, || {
        let (worker, _) = scheduler.place(&projects[7], &none, &token).unwrap();
        scheduler.release(&projects[7], &worker, &token);
    });
}

fn source() -> Source {
    let (git_url, git_ref, dockerfile) = ("https://host/pi.git".into(), "main".into(), "Dockerfile".into());
    Source { git_url, git_ref, dockerfile }
}

fn assignment(rounds: usize) {
    let assigned = || Assigned {
        token: lease().token,
        project: project("demo"),
        job: JobId::at(NOW, 0),
        task: "17".parse().unwrap(),
        attempt: 1,
        lease_ms: 30_000,
        commit: Some("0123456789abcdef0123456789abcdef01234567".into()),
        queued_ms: 12,
        spec: AttemptSpec {
            source: source(),
            command: Command::Shell("python3 pi.py --seed 17".into()),
            env: [("LEVEL".into(), "3".into()), ("MODE".into(), "fast".into())].into(),
            stdin: Vec::new(),
            stdin_from_results: false,
            limits: Limits::default(),
        },
    };
    time("gRPC: an assignment to bytes", rounds, || {
        black_box(v1::Assignment::from(black_box(assigned())).encode_to_vec());
    });
    let bytes = v1::Assignment::from(assigned()).encode_to_vec();
    time("gRPC: an assignment from bytes", rounds, || {
        let wire = v1::Assignment::decode(black_box(&bytes[..])).unwrap();
        black_box(Assigned::try_from(wire).unwrap());
    });
}

async fn embedded_queue(rounds: usize, directory: &Path) {
    const MESSAGES: usize = 10_000;
    let config = QueueConfig { data_dir: Some(directory.into()), ..QueueConfig::default() };
    let queues: SharedQueues = queue::open(&config).await.unwrap();
    let name: QueueName = "demo.bench".parse().unwrap();
    queues.create(&name).await.unwrap();
    let body = format!(r#"{{"text":"{}"}}"#, "x".repeat(500));
    let (mut puts, mut takes) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let began = Instant::now();
        let all = (0..MESSAGES).map(|_| queues.put(&name, Message::new(body.clone())));
        let failed =
            stream::iter(all).buffer_unordered(AT_ONCE).filter(|put| std::future::ready(put.is_err()));
        assert_eq!(failed.count().await, 0);
        puts.push(began.elapsed().as_secs_f64() / MESSAGES as f64);
        let began = Instant::now();
        let mut taken = 0;
        while taken < MESSAGES {
            let some = queues.take(&name, 64).await.unwrap();
            taken += some.len();
            let acks = some.into_iter().map(|delivery| delivery.settle.ack());
            futures::future::try_join_all(acks).await.unwrap();
        }
        takes.push(began.elapsed().as_secs_f64() / MESSAGES as f64);
    }
    queues.close().await;
    said("embedded queue: put, 256 at once", puts);
    said("embedded queue: take and ack, 64 at once", takes);
}

async fn swaps(rounds: usize, directory: &Path) {
    const TASKS: u64 = 5_000;
    let ledger = ledger::open(&directory.join("ledger.db")).await.unwrap();
    let (mut leases, mut results) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let tasks = submitted(&ledger, round, TASKS).await;
        let published = swap_all(&ledger, tasks, |_| Event::Publish).await.0;
        let (leased, seconds) = swap_all(&ledger, published, |_| Event::Lease(lease())).await;
        leases.push(seconds / TASKS as f64);
        let (_, seconds) = swap_all(&ledger, leased, |_| done()).await;
        results.push(seconds / TASKS as f64);
    }
    ledger.close().await;
    said("ledger: a swap that leases, 256 at once", leases);
    said("ledger: a swap that records a result, 256 at once", results);
}

async fn submitted(ledger: &SharedLedger, round: usize, count: u64) -> Vec<Task> {
    let spec = JobSpec {
        project: project("demo"),
        name: "bench".into(),
        source: source(),
        command: Some(Command::Shell("true".into())),
        env: BTreeMap::new(),
        limits: Default::default(),
        reduce: None,
        priority: 0,
        labels: Default::default(),
    };
    let job = Job::new(JobId::at(NOW, round as u32), spec, "bench", NOW);
    assert_eq!(ledger.begin_job(job.clone(), None).await.unwrap(), Begun::New);
    let task = |seq: u64| {
        let id: TaskId = seq.to_string().parse().unwrap();
        let key = TaskKey { job: job.id.clone(), task: id.clone() };
        let (project, progress) = (job.spec.project.clone(), Progress::new(NOW));
        Task { key, project, seq, reduce: false, spec: TaskSpec::new(id), commit: String::new(), progress }
    };
    let tasks: Vec<_> = (0..count).map(task).collect();
    for some in tasks.chunks(1000) {
        assert_eq!(ledger.add_tasks(&job.id, some.to_vec()).await.unwrap(), None);
    }
    ledger.commit_job(&job.id).await.unwrap();
    tasks
}

/// The tasks as they are then, and how long that took.
async fn swap_all(
    ledger: &SharedLedger,
    tasks: Vec<Task>,
    event: impl Fn(&Task) -> Event,
) -> (Vec<Task>, f64) {
    let mut changes = Vec::new();
    let mut changed = Vec::new();
    for task in tasks {
        let (progress, _) = task.progress.step(event(&task), POLICY, NOW).unwrap();
        let record = if matches!(progress.state, codering_core::task::State::Done(_)) {
            let (key, project) = (task.key.clone(), task.project.clone());
            let mut result = codering_core::TaskResult::without_attempt(
                project,
                key.job,
                key.task,
                1,
                Outcome::Succeeded,
                NOW,
                "",
            );
            result.stdout = b"done\n".to_vec();
            Record::Result(Box::new(result), None)
        } else {
            Record::Nothing
        };
        changes.push(TaskChange {
            key: task.key.clone(),
            expected_version: task.progress.version,
            progress: progress.clone(),
            commit: None,
            record,
        });
        changed.push(Task { progress, ..task });
    }
    let began = Instant::now();
    let swapping = changes.into_iter().map(|change| ledger.swap_task(change));
    let all = stream::iter(swapping).buffer_unordered(AT_ONCE);
    all.for_each(|swapped| {
        assert_eq!(swapped, Ok(Swapped::Yes));
        std::future::ready(())
    })
    .await;
    (changed, began.elapsed().as_secs_f64())
}
