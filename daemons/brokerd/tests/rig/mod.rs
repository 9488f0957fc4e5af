//! A broker on a real ledger and a real embedded queue in a directory of its own, and workers that speak
//! to it as a stream would.

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use codering_brokerd::{
    broker::{Broker, NewJob, Session, Settings, Speaker},
    ledger,
    metrics::Metrics,
    queue,
};
use codering_core::{
    Command, JobSpec, LeaseToken, LimitsPatch, Outcome, ProjectName, QueueName, Source, TaskId, TaskResult,
    TaskSpec, WorkerName, job::JobState, quota::Quota, spec::Reduce,
};
use codering_proto::v1::{self, from_worker, to_worker};

pub const BOUND: Duration = Duration::from_secs(20);

pub struct Rig {
    pub broker: Broker,
    pub ledger: Arc<dyn ledger::Ledger>,
    pub queues: queue::SharedQueues,
    dir: Arc<tempfile::TempDir>,
    settings: Settings,
    /// A ledger that outlives a restart in memory, instead of SQLite's file.
    kept: Option<ledger::SharedLedger>,
}

impl Rig {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let mut settings = Settings::new(dir.path().join("live"));
        settings.reconcile_every = Duration::from_millis(200);
        change(&mut settings);
        Self::open(dir, settings, None).await
    }

    /// The same on another ledger.
    #[allow(dead_code, reason = "not every test binary needs it")]
    pub async fn on(ledger: ledger::SharedLedger) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let mut settings = Settings::new(dir.path().join("live"));
        settings.reconcile_every = Duration::from_millis(200);
        Self::open(dir, settings, Some(ledger)).await
    }

    async fn open(
        dir: Arc<tempfile::TempDir>,
        settings: Settings,
        kept: Option<ledger::SharedLedger>,
    ) -> Self {
        let ledger = match &kept {
            Some(ledger) => ledger.clone(),
            None => ledger::open(&dir.path().join("ledger.db")).await.expect("opens"),
        };
        let config = queue::QueueConfig { data_dir: Some(dir.path().to_owned()), ..Default::default() };
        let queues = queue::open(&config).await.expect("opens");
        let metrics = Arc::new(Metrics::new(&mut Default::default()));
        let broker =
            Broker::start(settings.clone(), ledger.clone(), queues.clone(), metrics).await.expect("starts");
        let rig = Self { broker, ledger, queues, dir, settings, kept };
        if rig.broker.project(&pi()).await.is_err() {
            rig.broker.create_project(pi(), Quota::default()).await.expect("made");
        }
        rig
    }

    /// As a restart of the process does: the loops end where they are, and memory is gone.
    pub async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    /// The same on other settings.
    pub async fn restart_with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self.broker.stop().await;
        self.queues.close().await;
        self.ledger.close().await;
        let (dir, settings, kept) = (self.dir.clone(), self.settings.clone(), self.kept.clone());
        drop(self);
        Self::open(dir, settings, kept).await
    }

    pub async fn worker(&self, name: &str, slots: u32) -> Worker {
        self.worker_holding(name, slots, Vec::new(), &[]).await
    }

    pub async fn worker_holding(
        &self,
        name: &str,
        slots: u32,
        held: Vec<String>,
        labels: &[(&str, &str)],
    ) -> Worker {
        let name = WorkerName::new(name).expect("valid");
        let known = self.ledger.workers().await.expect("read");
        if !known.iter().any(|w| w.name == name) {
            let row = ledger::Worker {
                name: name.clone(),
                certificate_serial: "01".into(),
                previous_serial: String::new(),
                certificate_expires_at: i64::MAX,
                paused: false,
                revoked: false,
                enrolled_at: 0,
                last_seen_at: 0,
            };
            self.ledger.put_worker(row).await.expect("put");
        }
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let hello = v1::Hello { slots, labels, version: "test".into(), held_tokens: held };
        let session = self.broker.attach(name, "01", hello).await.expect("attached");
        let mut worker =
            Worker { speaker: session.speaker(), session, fenced: Vec::new(), assigned: VecDeque::new() };
        match worker.next().await {
            to_worker::Message::Welcome(welcome) => worker.fenced = welcome.fenced_tokens,
            other => panic!("a welcome comes first, not {other:?}"),
        }
        worker
    }

    pub async fn submit(&self, spec: JobSpec, tasks: impl IntoIterator<Item = TaskSpec>) -> ledger::Job {
        let new = NewJob { spec, idempotency_key: None, submitted_by: "test".into() };
        let mut submission = self.broker.submit(new).await.expect("begun");
        submission.add(tasks.into_iter().collect()).await.expect("added");
        submission.finish().await.expect("committed").0
    }

    pub async fn job(&self, job: &ledger::Job) -> ledger::Job {
        self.broker.find_job(job.id.as_str(), None).await.expect("found")
    }

    pub async fn reaches(&self, job: &ledger::Job, state: JobState) -> ledger::Job {
        until(&format!("job {} is {}", job.id, state.as_str()), async || {
            let job = self.job(job).await;
            (job.state == state).then_some(job)
        })
        .await
    }

    pub async fn take_done(&self) -> codering_core::message::DoneMessage {
        let done = QueueName::done(&pi());
        let body = until("a message on pi.done", async || self.broker.get(&done).await.expect("got")).await;
        serde_json::from_slice(&body).expect("a done message")
    }
}

/// Waits for a condition, with a bound.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    bounded(what, search).await
}

pub async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, work).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// One that does what the test says.
pub struct Worker {
    pub session: Session,
    pub speaker: Speaker,
    pub fenced: Vec<String>,
    /// What was assigned while something else was waited for.
    assigned: VecDeque<v1::Assignment>,
}

impl Worker {
    pub async fn next(&mut self) -> to_worker::Message {
        bounded("a message for the worker", self.session.next())
            .await
            .expect("open")
            .message
            .expect("not empty")
    }

    /// The first message that `pick` wants; assignments that come before it are kept.
    async fn wait<T>(&mut self, pick: impl Fn(&to_worker::Message) -> Option<T>) -> T {
        loop {
            let message = self.next().await;
            if let Some(picked) = pick(&message) {
                return picked;
            }
            if let to_worker::Message::Assignment(assignment) = message {
                self.assigned.push_back(assignment);
            }
        }
    }

    pub async fn assignment(&mut self) -> v1::Assignment {
        if let Some(assignment) = self.assigned.pop_front() {
            return assignment;
        }
        self.wait(|message| match message {
            to_worker::Message::Assignment(assignment) => Some(assignment.clone()),
            _ => None,
        })
        .await
    }

    /// The next assignment, however long it takes: meanwhile it beats, without which its stream ends with a lease.
    pub async fn assignment_while_beating(&mut self) -> v1::Assignment {
        let beating = async {
            loop {
                if let Some(assignment) = self.assigned.pop_front() {
                    return assignment;
                }
                self.beat(&[]).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        bounded("an assignment", beating).await
    }

    /// Whether nothing is assigned for a while.
    pub async fn gets_nothing(&mut self) -> bool {
        let quiet = tokio::time::timeout(Duration::from_millis(300), self.assignment()).await;
        quiet.is_err()
    }

    pub async fn say(&self, message: from_worker::Message) {
        self.speaker.handle(v1::FromWorker { message: Some(message) }).await.expect("heard");
    }

    /// Reports, and says whether it was recorded.
    pub async fn report(&mut self, assignment: &v1::Assignment, outcome: Outcome, stdout: &str) -> bool {
        self.say(from_worker::Message::Report(report(assignment, outcome, stdout))).await;
        self.wait(|message| match message {
            to_worker::Message::Received(received) if received.token == assignment.token => {
                Some(received.recorded)
            }
            _ => None,
        })
        .await
    }

    pub async fn beat(&mut self, tokens: &[&v1::Assignment]) -> v1::HeartbeatReply {
        let tokens = tokens.iter().map(|a| a.token.clone()).collect();
        self.say(from_worker::Message::Heartbeat(v1::Heartbeat { seq: 1, tokens, draining: false })).await;
        self.wait(|message| match message {
            to_worker::Message::Heartbeat(reply) => Some(reply.clone()),
            _ => None,
        })
        .await
    }
}

pub fn report(assignment: &v1::Assignment, outcome: Outcome, stdout: &str) -> v1::AttemptReport {
    let result = TaskResult {
        stdout: stdout.into(),
        exit_code: Some(i32::from(outcome != Outcome::Succeeded)),
        ..TaskResult::without_attempt(
            ProjectName::new(&assignment.project).expect("valid"),
            codering_core::JobId::new(&assignment.job_id).expect("valid"),
            TaskId::new(&assignment.task_id).expect("valid"),
            assignment.attempt,
            outcome,
            1000,
            "",
        )
    };
    v1::AttemptReport { token: assignment.token.clone(), result: Some(result.into()) }
}

pub fn pi() -> ProjectName {
    ProjectName::new("pi").expect("valid")
}

pub fn spec() -> JobSpec {
    JobSpec {
        project: pi(),
        name: "pi".into(),
        source: Source {
            git_url: "https://host/pi.git".into(),
            git_ref: "HEAD".into(),
            dockerfile: "Dockerfile".into(),
        },
        command: Some(Command::Shell("pi {}".into())),
        env: Default::default(),
        limits: LimitsPatch::default(),
        reduce: None,
        priority: 0,
        labels: Default::default(),
    }
}

pub fn reduce(command: &str) -> Reduce {
    Reduce {
        command: Command::Shell(command.into()),
        output: "sum.txt".into(),
        limits: LimitsPatch::default(),
    }
}

pub fn tasks(n: usize) -> Vec<TaskSpec> {
    (1..=n).map(|i| TaskSpec::new(TaskId::new(i.to_string()).expect("valid"))).collect()
}

pub fn token(assignment: &v1::Assignment) -> LeaseToken {
    LeaseToken::new(&assignment.token).expect("valid")
}
