//! SIGKILL at random times while jobs run, and an account of what became of their tasks.

use std::{
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    Backend, Kept, Setup,
    kept::{PATIENCE, WORK},
};

/// What is done to a fleet.
pub struct Storm {
    /// Whose daemons die.
    pub setup: Setup,
    /// In all.
    pub tasks: u64,
    /// Of one job; the next is submitted when it is done.
    pub tasks_per_job: u64,
    /// The git address and the command of every task.
    pub git: Option<String>,
    /// What each task does.
    pub command: String,
    /// Tasks that end between two kills, so that a slow machine gets on too; empty: nobody is killed.
    pub every: Range<u64>,
    /// Repeats the same storm.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Toll {
    /// Tasks submitted.
    pub tasks: u64,
    /// Kills of brokerd.
    pub brokers: u64,
    /// Kills of workerds.
    pub workers: u64,
    /// Tasks without a recorded result, or whose result never came to the done queue.
    pub lost: u64,
    /// Tasks with two recorded results, or with messages that are not the recorded one.
    pub doubled: u64,
    /// While the jobs ran, in seconds.
    pub seconds: f64,
    /// The longest time in which no task ended, although some waited.
    pub longest_wait: Duration,
}

impl fmt::Display for Toll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tasks {}  kills of brokerd {}  of workerd {}  lost {}  doubled {}  in {:.0} s, {:.0} tasks/s, longest wait {:.1} s",
            self.tasks,
            self.brokers,
            self.workers,
            self.lost,
            self.doubled,
            self.seconds,
            self.tasks as f64 / self.seconds.max(0.001),
            self.longest_wait.as_secs_f64()
        )
    }
}

/// The seed that `CODERING_TEST_SEED` names, or another one each time.
pub fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    std::env::var("CODERING_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(now)
}

/// Xorshift: repeatable, and no dependency.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, range: Range<u64>) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        range.start + self.0 % (range.end - range.start)
    }
}

impl Storm {
    /// Simulated workers.
    pub fn simulated(backend: Backend, tasks: u64, every: Range<u64>) -> Self {
        let setup = Setup::simulated(backend, 2, 64).quiet();
        Self { setup, tasks, tasks_per_job: tasks, git: None, command: "echo {}".into(), every, seed: seed() }
    }

    /// Lets it rage.
    pub fn rage(self) -> Toll {
        eprintln!("CODERING_TEST_SEED={}", self.seed);
        let (mut dice, mut toll) = (Dice(self.seed | 1), Toll::default());
        let workers = self.setup.workers;
        let kept = Kept::start(self.setup, workers);
        let git = self.git.unwrap_or_else(|| "file:///nowhere".into());
        let mut number = 0;
        while toll.tasks < self.tasks {
            number += 1;
            let count = self.tasks_per_job.min(self.tasks - toll.tasks);
            let (array, key) = (format!("1-{count}"), format!("storm-{number}"));
            let args = [
                "submit",
                "--project",
                "demo",
                "--git",
                &git,
                "--array",
                &array,
                "--key",
                &key,
                "--memory",
                "64M",
            ];
            let began = Instant::now();
            let job = kept.json(&[&args[..], &["--attempts", "3", "--", &self.command]].concat());
            let job = job["job_id"].as_str().unwrap().to_owned();
            kill_until_done(&kept, &job, workers, &self.every, &mut dice, &mut toll);
            toll.seconds += began.elapsed().as_secs_f64();
            toll.tasks += count;
            account(&kept, &job, count, &mut toll);
        }
        kept.stop();
        toll
    }
}

fn kill_until_done(
    kept: &Kept,
    job: &str,
    workers: usize,
    every: &Range<u64>,
    dice: &mut Dice,
    toll: &mut Toll,
) {
    let mut due = if every.is_empty() { u64::MAX } else { dice.roll(every.clone()) };
    let (mut done, mut moved) = (0, Instant::now());
    loop {
        if done >= due {
            // Somewhere between two looks, and now and then while the one before is still coming up.
            loop {
                thread::sleep(Duration::from_millis(dice.roll(0..700)));
                kill_one(kept, workers, dice, toll);
                if dice.roll(0..4) > 0 {
                    break;
                }
            }
            due = done + dice.roll(every.clone());
        }
        let ran = kept.once(&["--output", "json", "job", "show", job]);
        if let Ok(shown) = serde_json::from_slice::<Value>(&ran.stdout) {
            let ended =
                ["succeeded", "failed", "cancelled"].map(|state| shown["tasks"][state].as_u64().unwrap_or(0));
            let ended = ended.iter().sum();
            if ended != done {
                (done, moved) = (ended, Instant::now());
            }
            if !shown["finished_at"].is_null() {
                return;
            }
        }
        toll.longest_wait = toll.longest_wait.max(moved.elapsed());
        assert!(
            moved.elapsed() < PATIENCE + WORK,
            "nothing has ended for {:?} and {done} are done\n{}",
            moved.elapsed(),
            kept.log()
        );
        thread::sleep(Duration::from_millis(100));
    }
}

fn kill_one(kept: &Kept, workers: usize, dice: &mut Dice, toll: &mut Toll) {
    let fleet = kept.fleet();
    let id = match dice.roll(0..2) {
        0 => {
            toll.brokers += 1;
            fleet.broker_id()
        }
        _ => {
            toll.workers += 1;
            fleet.worker_id(dice.roll(0..workers as u64) as usize)
        }
    };
    // It may be dead already, and about to be started again.
    let _ = kill_process(Pid::from_raw(id as i32).unwrap(), Signal::KILL);
}

/// Counts what is lost and doubled of a job that is over.
fn account(kept: &Kept, job: &str, tasks: u64, toll: &mut Toll) {
    let mut recorded: HashMap<String, (u64, bool)> = HashMap::new();
    let mut doubled = 0;
    let ran = kept.insist(&["results", job, "--output", "jsonl"], &[]);
    for line in ran.text().lines() {
        let result: Value = serde_json::from_str(line).unwrap();
        let id = result["task_id"].as_str().unwrap().to_owned();
        doubled += u64::from(recorded.insert(id, (digest(&result), false)).is_some());
    }
    let mut missing = recorded.len();
    let end = Instant::now() + PATIENCE + WORK + Duration::from_millis(tasks * 5);
    while missing > 0 && Instant::now() < end {
        let came = kept.fleet().take_all("demo.done");
        if came.is_empty() {
            thread::sleep(Duration::from_millis(100));
        }
        for message in came.iter().filter(|message| message["job_id"] == *job) {
            match recorded.get_mut(message["task_id"].as_str().unwrap()) {
                Some((expected, seen)) => {
                    doubled += u64::from(*expected != digest(message));
                    missing -= usize::from(!std::mem::replace(seen, true));
                }
                // A message of a result that is not recorded.
                None => doubled += 1,
            }
        }
    }
    toll.doubled += doubled;
    toll.lost += tasks - recorded.len() as u64 + missing as u64;
}

fn digest(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}
