//! What every ledger must do, whatever it stands on. A backend's tests call [`suite`] on a new ledger.

mod jobs;
mod records;
mod results;
mod swaps;
mod tasks;

use codering_core::{
    Command, JobSpec, LeaseToken, Source, TaskSpec,
    job::JobState,
    task::{Event, Lease, Policy, Progress, State},
};

use super::*;

/// Panics where `ledger`, which must be empty, does not do what the trait promises.
pub(super) async fn suite(ledger: SharedLedger) {
    swaps::suite(&*ledger).await;
    swaps::races(ledger.clone()).await;
    jobs::suite(&*ledger).await;
    jobs::finishes(&*ledger).await;
    jobs::keys(&*ledger).await;
    jobs::lists(&*ledger).await;
    jobs::builds(&*ledger).await;
    tasks::suite(&*ledger).await;
    tasks::outbox(&*ledger).await;
    tasks::paging(&*ledger).await;
    results::suite(&*ledger).await;
    results::paging(&*ledger).await;
    results::retention(&*ledger).await;
    records::suite(&*ledger).await;
    ledger.check().await.unwrap();
    let figures = ledger.figures();
    assert!(figures.commits > 0 && figures.operations >= figures.commits, "{figures:?}");
}

pub(super) const NOW: Millis = 1_790_000_000_000;
const POLICY: Policy = Policy { max_attempts: 3, max_infrastructure_failures: 10 };

pub(super) fn project(name: &str) -> ProjectName {
    name.parse().unwrap()
}

/// The `n`th job; later ones have greater ids.
pub(super) fn job(project_name: &str, n: u32) -> Job {
    let spec = JobSpec {
        project: project(project_name),
        name: format!("job {n}"),
        source: Source {
            git_url: "https://host/pi.git".into(),
            git_ref: "HEAD".into(),
            dockerfile: "Dockerfile".into(),
        },
        command: Some(Command::Shell("echo {}".into())),
        env: [("A".to_owned(), "b".to_owned())].into(),
        limits: Default::default(),
        reduce: None,
        priority: -1,
        labels: Default::default(),
    };
    Job::new(JobId::at(NOW + i64::from(n) * 1000, 0), spec, "ada", NOW + i64::from(n))
}

/// A task of `job` whose id is its `seq`, with nothing of its own.
pub(super) fn task(job: &Job, seq: u64) -> Task {
    let id: TaskId = seq.to_string().parse().unwrap();
    Task {
        key: TaskKey { job: job.id.clone(), task: id.clone() },
        project: job.spec.project.clone(),
        seq,
        reduce: false,
        spec: TaskSpec::new(id),
        commit: String::new(),
        progress: Progress::new(NOW),
    }
}

/// A committed job with so many tasks.
pub(super) async fn committed(ledger: &dyn Ledger, project_name: &str, n: u32, tasks: u64) -> Job {
    let job = job(project_name, n);
    assert_eq!(ledger.begin_job(job.clone(), None).await.unwrap(), Begun::New);
    let tasks: Vec<Task> = (0..tasks).map(|seq| task(&job, seq)).collect();
    for some in tasks.chunks(1000) {
        assert_eq!(ledger.add_tasks(&job.id, some.to_vec()).await.unwrap(), None);
    }
    ledger.commit_job(&job.id).await.unwrap();
    job
}

pub(super) fn key(job: &Job, seq: u64) -> TaskKey {
    task(job, seq).key
}

pub(super) fn token(n: u8) -> LeaseToken {
    LeaseToken::from_bytes([n; 16])
}

pub(super) fn leased_by(n: u8) -> Event {
    let worker = "w1".parse().unwrap();
    Event::Lease(Lease { token: token(n), worker, leased_at: NOW, deadline: NOW + 30_000 })
}

/// The change that `event` makes of the task as it is stored.
pub(super) async fn change(ledger: &dyn Ledger, key: &TaskKey, event: Event, record: Record) -> TaskChange {
    next(&ledger.task(key).await.unwrap().expect("the task is there"), event, record)
}

/// The change that `event` makes of `task`.
pub(super) fn next(task: &Task, event: Event, record: Record) -> TaskChange {
    let (progress, _) = task.progress.step(event, POLICY, NOW).expect("the event fits");
    let expected_version = task.progress.version;
    TaskChange { key: task.key.clone(), expected_version, progress, commit: None, record }
}

pub(super) async fn step(ledger: &dyn Ledger, key: &TaskKey, event: Event, record: Record) {
    let change = change(ledger, key, event, record).await;
    assert_eq!(ledger.swap_task(change).await.unwrap(), Swapped::Yes);
}

pub(super) fn result(job: &Job, seq: u64, outcome: Outcome) -> TaskResult {
    let key = key(job, seq);
    let mut result =
        TaskResult::without_attempt(job.spec.project.clone(), key.job, key.task, 1, outcome, NOW, "");
    result.stdout = format!("{seq}\n").into_bytes();
    result
}

/// Leases a task and completes it with `outcome`, which must be its last.
pub(super) async fn complete(ledger: &dyn Ledger, job: &Job, seq: u64, outcome: Outcome) {
    let key = key(job, seq);
    step(ledger, &key, leased_by(1), Record::Nothing).await;
    let mut change = change(
        ledger,
        &key,
        Event::Complete { token: token(1), outcome: Outcome::Succeeded },
        Record::Result(Box::new(result(job, seq, outcome)), None),
    )
    .await;
    change.progress.state = State::Done(outcome);
    assert_eq!(ledger.swap_task(change).await.unwrap(), Swapped::Yes);
}

pub(super) fn seqs(tasks: &[Task]) -> Vec<u64> {
    tasks.iter().map(|task| task.seq).collect()
}
