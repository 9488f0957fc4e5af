//! Random scripts against the real broker, ledger and embedded queue: what users, workers, a restart and a queue that
//! doubles and loses messages do, in any order, and the invariants after each step.
//!
//! `CODERING_TEST_SCRIPTS=1000` runs more of them, `CODERING_TEST_SEED=N` that one alone.
#![allow(clippy::unwrap_used, clippy::large_futures)]

#[allow(dead_code)]
mod rig;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use codering_core::{
    Blame, Outcome, QueueName, TaskId, TaskKey, message::DoneMessage, task::MAX_INFRASTRUCTURE_FAILURES,
    task::State,
};
use codering_proto::v1;
use futures::{StreamExt, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rig::*;

/// Half a minute's worth on two cores.
const SCRIPTS: u64 = 200;
const AT_ONCE: usize = 16;
const TASKS: usize = 3;
const STEPS: usize = 25;
const MAX_ATTEMPTS: u32 = 3;

/// What the test itself knows to be true of a task.
#[derive(Debug, Default)]
struct Known {
    attempts: BTreeSet<u32>,
    /// Reports of this run that were answered as recorded.
    recorded: Vec<(u32, Outcome, String)>,
    /// Results of all runs, by attempt: what the done queue may tell.
    told: BTreeMap<u32, String>,
}

struct Script {
    /// `None` only while it is started again.
    rig: Option<Rig>,
    random: StdRng,
    seed: u64,
    job: codering_brokerd::ledger::Job,
    worker: Option<Worker>,
    held: Vec<v1::Assignment>,
    ended: Vec<v1::Assignment>,
    known: BTreeMap<String, Known>,
    tokens: BTreeSet<String>,
    done: Vec<DoneMessage>,
    story: Vec<String>,
}

impl Script {
    async fn new(seed: u64) -> Self {
        let rig = Rig::with(|settings| settings.reconcile_every = Duration::from_millis(100)).await;
        let limits = codering_core::LimitsPatch { max_attempts: Some(MAX_ATTEMPTS), ..Default::default() };
        let job = rig.submit(codering_core::JobSpec { limits, ..spec() }, tasks(TASKS)).await;
        let worker = Some(rig.worker("w1", 2).await);
        let known = (1..=TASKS).map(|n| (n.to_string(), Known::default())).collect();
        let random = StdRng::seed_from_u64(seed);
        let (held, ended, story) = (Vec::new(), Vec::new(), Vec::new());
        let (tokens, done) = (BTreeSet::new(), Vec::new());
        Self { rig: Some(rig), random, seed, job, worker, held, ended, known, tokens, done, story }
    }

    fn rig(&self) -> &Rig {
        self.rig.as_ref().unwrap()
    }

    fn key(&self, task: &str) -> TaskKey {
        TaskKey { job: self.job.id.clone(), task: TaskId::new(task).unwrap() }
    }

    /// `CODERING_TEST_SEED` and what was done so far, for a failure.
    fn told(&self) -> String {
        format!("CODERING_TEST_SEED={}:\n    {}", self.seed, self.story.join("\n    "))
    }

    async fn step(&mut self) {
        let task = self.random.random_range(1..=TASKS).to_string();
        let todo = QueueName::todo(&pi());
        let kind = self.random.random_range(0..100);
        self.story.push(format!("{kind} on {task}, {} held", self.held.len()));
        match kind {
            0..30 => self.take(Duration::from_millis(60)).await,
            30..55 => {
                let outcomes = [Outcome::Succeeded, Outcome::Failed, Outcome::TimedOut, Outcome::Failed];
                let outcome = outcomes[self.random.random_range(0..outcomes.len())];
                self.report_held(outcome).await;
            }
            55..58 => self.report_held(Outcome::InfrastructureError).await,
            58..68 => self.report_again().await,
            68..74 => drop(self.rig().broker.cancel_task(&self.key(&task)).await),
            74..84 => {
                if self.rig().broker.retry_task(&self.key(&task)).await.is_ok() {
                    self.known.get_mut(&task).unwrap().recorded.clear();
                }
            }
            84..88 => self.attach().await,
            88..91 => self.restart().await,
            91..95 => {
                // The same message twice.
                if let Ok(Some(body)) = self.rig().broker.get(&todo).await {
                    self.rig()
                        .queues
                        .put(&todo, codering_brokerd::queue::Message::new(body.clone()))
                        .await
                        .unwrap();
                    self.rig().queues.put(&todo, codering_brokerd::queue::Message::new(body)).await.unwrap();
                }
            }
            95..97 => drop(self.rig().broker.purge(&todo).await),
            97..98 => drop(self.rig().broker.pause_job(&self.job.id).await),
            _ => drop(self.rig().broker.resume_job(&self.job.id).await),
        }
        self.check().await;
    }

    async fn take(&mut self, patience: Duration) {
        let Some(worker) = &mut self.worker else { return };
        let Ok(assignment) = tokio::time::timeout(patience, worker.assignment()).await else { return };
        self.got(assignment);
    }

    fn got(&mut self, assignment: v1::Assignment) {
        let told = self.told();
        let known = self.known.get_mut(&assignment.task_id).unwrap();
        assert!(known.attempts.insert(assignment.attempt), "invariant 3: an attempt was given twice. {told}");
        assert!(self.tokens.insert(assignment.token.clone()), "invariant 2: a token was used twice. {told}");
        self.held.push(assignment);
    }

    /// Whether the ledger has this token's lease.
    async fn is_live(&self, assignment: &v1::Assignment) -> bool {
        let row = self.rig().ledger.task(&self.key(&assignment.task_id)).await.unwrap().unwrap();
        row.progress.lease().is_some_and(|lease| lease.token.as_str() == assignment.token)
    }

    async fn report_held(&mut self, outcome: Outcome) {
        if self.held.is_empty() {
            return;
        }
        let assignment = self.held.swap_remove(self.random.random_range(0..self.held.len()));
        self.report(&assignment, outcome).await;
        self.ended.push(assignment);
    }

    /// A report that was answered before, or whose lease went to another worker: with another content.
    async fn report_again(&mut self) {
        if self.ended.is_empty() {
            return;
        }
        let assignment = self.ended[self.random.random_range(0..self.ended.len())].clone();
        self.report(&assignment, Outcome::Succeeded).await;
    }

    async fn report(&mut self, assignment: &v1::Assignment, outcome: Outcome) {
        let live = self.is_live(assignment).await;
        let text = format!("{} {}", assignment.token, self.random.random::<u32>());
        let name = codering_core::WorkerName::new("w1").unwrap();
        let report = report(assignment, outcome, &text);
        let recorded = self.rig().broker.report(&name, report).await.unwrap();
        assert!(!recorded || live, "invariant 2: a late or second result was recorded. {}", self.told());
        assert!(
            recorded || !live,
            "invariant 1: the result of a live lease was not recorded. {}",
            self.told()
        );
        if recorded {
            let known = self.known.get_mut(&assignment.task_id).unwrap();
            known.recorded.push((assignment.attempt, outcome, text.clone()));
            known.told.insert(assignment.attempt, text);
        }
    }

    /// The worker comes back with some of what it holds; of the rest it never heard.
    async fn attach(&mut self) {
        let keeps: Vec<_> = self.held.drain(..).collect();
        for assignment in keeps {
            let keep = self.random.random_range(0..4) > 0;
            if keep { self.held.push(assignment) } else { self.ended.push(assignment) }
        }
        self.worker = None;
        let tokens = self.held.iter().map(|held| held.token.clone()).collect();
        self.worker = Some(self.rig().worker_holding("w1", 2, tokens, &[]).await);
    }

    async fn restart(&mut self) {
        self.worker = None;
        let rig = self.rig.take().unwrap();
        self.rig = Some(rig.restart().await);
        self.attach().await;
    }

    async fn check(&mut self) {
        self.drain().await;
        for (task, known) in &self.known {
            let row = self.rig().ledger.task(&self.key(task)).await.unwrap();
            let row = row.unwrap_or_else(|| panic!("invariant 1: task {task} is gone. {}", self.told()));
            let users =
                known.recorded.iter().filter(|(_, outcome, _)| outcome.blame() == Blame::User).count();
            let progress = &row.progress;
            assert_eq!(
                progress.user_failures as usize,
                users,
                "invariant 4: the user's failures of {task}. {}",
                self.told()
            );
            assert!(
                users as u32 <= MAX_ATTEMPTS
                    && progress.infrastructure_failures <= MAX_INFRASTRUCTURE_FAILURES
            );
            assert!(
                known.attempts.last().is_none_or(|last| *last <= progress.attempt),
                "invariant 3: an attempt of {task} is not counted. {}",
                self.told()
            );
            let result = self.rig().ledger.result(&self.key(task)).await.unwrap();
            // Between the two reads a lease may come to its end, never a result.
            if let State::Done(outcome) = progress.state {
                let result = result.unwrap_or_else(|| {
                    panic!("invariant 2: {task} is done without a result. {}", self.told())
                });
                assert_eq!(result.outcome, outcome, "invariant 2: of {task}. {}", self.told());
                let said = String::from_utf8(result.stdout).unwrap();
                let by_report =
                    known.recorded.iter().any(|(n, _, text)| (*n, text) == (result.attempt, &said));
                assert!(
                    said.is_empty() || by_report,
                    "invariant 2: a result of {task} that nobody reported. {}",
                    self.told()
                );
            }
        }
    }

    async fn drain(&mut self) {
        while let Some(body) = self.rig().broker.get(&QueueName::done(&pi())).await.unwrap() {
            let done: DoneMessage = serde_json::from_slice(&body).unwrap();
            let known = &self.known[done.task_id.as_str()];
            let same = known.told.get(&done.attempt).is_some_and(|said| *said == done.stdout);
            assert!(
                same || done.stdout.is_empty(),
                "invariant 2: p.done tells what was not recorded. {}",
                self.told()
            );
            self.done.push(done);
        }
    }

    /// Without a fault, all of it ends.
    async fn settle(&mut self) {
        let _ = self.rig().broker.resume_job(&self.job.id).await;
        let told = self.told();
        bounded(&format!("the end of {told}"), async {
            loop {
                while !self.held.is_empty() {
                    self.report_held(Outcome::Succeeded).await;
                }
                if let Some(worker) = &mut self.worker {
                    worker.beat(&[]).await;
                }
                self.take(Duration::from_millis(50)).await;
                self.check().await;
                let job = self.rig().job(&self.job).await;
                if self.held.is_empty() && job.finished_at != 0 {
                    break;
                }
            }
        })
        .await;
        let job = self.rig().job(&self.job).await;
        let derived = self.rig().ledger.counts(&job.id).await.unwrap();
        let counted = codering_core::job::TaskCounts { retried: derived.retried, ..job.counts };
        assert_eq!(counted, derived, "invariant 9: what is counted is what the ledger has. {}", self.told());
        assert_eq!(derived.done(), TASKS as u64);
        for task in self.known.keys().cloned().collect::<Vec<_>>() {
            let result = self.rig().ledger.result(&self.key(&task)).await.unwrap().unwrap();
            let told = self.told();
            let script = &mut *self;
            until(&format!("the result of {task} on the done queue. {told}"), async || {
                script.drain().await;
                let of_it =
                    |done: &&DoneMessage| done.task_id.as_str() == task && done.attempt == result.attempt;
                script.done.iter().find(of_it).map(drop)
            })
            .await;
        }
    }
}

async fn run(seed: u64) {
    let mut script = Script::new(seed).await;
    for _ in 0..STEPS {
        script.step().await;
    }
    script.settle().await;
    script.worker = None;
    script.rig().broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_1_2_3_4_and_9_hold_for_the_real_broker_whatever_comes_in_whatever_order() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds: Vec<u64> = match number("CODERING_TEST_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("CODERING_TEST_SCRIPTS").unwrap_or(SCRIPTS)).collect(),
    };
    stream::iter(seeds.into_iter().map(run)).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}
