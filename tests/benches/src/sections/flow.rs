//! Tasks that do nothing, from lease to recorded result, on simulated workers.

use std::time::{Duration, Instant};

use codering_tests::{Backend, Fleet, Setup};
use serde_json::{Value, json};

use super::{BACKENDS, Section};
use crate::{
    Bench,
    measure::{Usage, grouped, median_of},
    table::Row,
};

/// See the module.
pub const SECTION: Section =
    Section { name: "flow", about: "no-op tasks end to end, by number of workers", run };

const ROUNDS: usize = 3;
const SLOTS: u32 = 64;
/// A million tasks take their time.
const SUBMIT: Duration = Duration::from_secs(300);

fn run(bench: &Bench) -> Vec<Row> {
    let tasks = bench.size(50_000, 10_000);
    let mut rows = Vec::new();
    for ((name, backend), asked) in BACKENDS.into_iter().zip([3_000.0, 5_000.0]) {
        for workers in [1, 2, 4, 8] {
            let rounds = throughput(backend, workers, tasks, bench.size(ROUNDS, 1));
            let rate = median_of(&rounds, |round| round.rate);
            let cpu = median_of(&rounds, |round| round.cpu_per_task);
            let row = Row::new(
                format!("no-op tasks a second, lease to recorded result, {name}, {workers} workers"),
                format!("{} a second, {:.0} µs of brokerd's CPU each", grouped(rate), cpu * 1e6),
            )
            .from(json!({ "backend": name, "workers": workers, "tasks": tasks, "per_second": rate, "cpu_s_per_task": cpu }));
            rows.push(match workers {
                1 | 8 => row.asked(format!("{} a second", grouped(asked)), rate >= asked),
                _ => row,
            });
        }
    }
    rows
}

struct Round {
    rate: f64,
    cpu_per_task: f64,
}

/// The job is submitted while all workers are paused, so that what is timed begins when they go on.
fn throughput(backend: Backend, workers: usize, tasks: u64, rounds: usize) -> Vec<Round> {
    let fleet = simulated(backend, workers, SLOTS);
    let measured = (0..rounds)
        .map(|_| {
            each_worker(&fleet, workers, "pause");
            let job = submit(&fleet, tasks);
            let before = Usage::of(fleet.broker_id());
            let began = Instant::now();
            each_worker(&fleet, workers, "resume");
            fleet.ctl(&["watch", &job, "--quiet"]);
            let seconds = began.elapsed().as_secs_f64();
            let cpu = Usage::of(fleet.broker_id()).cpu - before.cpu;
            let shown = fleet.json(&["job", "show", &job]);
            assert_eq!(shown["tasks"]["succeeded"], tasks, "{shown}");
            Round { rate: tasks as f64 / seconds, cpu_per_task: cpu.as_secs_f64() / tasks as f64 }
        })
        .collect();
    fleet.stop();
    measured
}

/// Pauses or resumes them all.
pub fn each_worker(fleet: &Fleet, workers: usize, verb: &str) {
    for number in 0..workers {
        fleet.ctl(&["worker", verb, &fleet.worker_name(number)]);
    }
}

/// Simulated workers on leases of the length that is the default.
pub fn simulated(backend: Backend, workers: usize, slots: u32) -> Fleet {
    Fleet::start(setup(backend, workers, slots))
}

/// How such a fleet is set up.
pub fn setup(backend: Backend, workers: usize, slots: u32) -> Setup {
    Setup { broker: String::new(), ..Setup::simulated(backend, workers, slots) }.quiet()
}

/// Submits a job of tasks that simulated workers end at once.
pub fn submit(fleet: &Fleet, tasks: u64) -> String {
    submit_as(fleet, tasks, "true")
}

/// The same with what each task does.
pub fn submit_as(fleet: &Fleet, tasks: u64, command: &str) -> String {
    let array = format!("1-{tasks}");
    let args = ["--output", "json", "submit", "--project", "demo", "--git", "https://localhost/none.git"];
    let answer = fleet.ctl_within(&[&args[..], &["--array", &array, "--", command]].concat(), SUBMIT);
    let job: Value = serde_json::from_slice(&answer).expect("JSON");
    job["job_id"].as_str().expect("an id").to_owned()
}
