//! Real tasks that do nothing, beside `docker run` of the same image.

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use codering_tests::{Backend, Fleet, Setup, fixture, verdict::submit_line, wait_for};
use serde_json::json;

use super::Section;
use crate::{
    Bench,
    measure::{Usage, median, median_of, side_by_side, time},
    table::Row,
};

/// See the module.
pub const SECTION: Section = Section { name: "real", about: "tasks in containers beside docker run", run };

const IMAGE: &str = "codering/base";
const BOUND: Duration = Duration::from_secs(300);

fn run(bench: &Bench) -> Vec<Row> {
    let rounds = bench.size(5, 1);
    [1, 4].map(|slots| beside_docker(slots, u64::from(slots) * bench.size(12, 8), rounds)).into()
}

fn beside_docker(slots: u32, tasks: u64, rounds: usize) -> Row {
    let fleet = fleet(1, slots);
    let git = repository(&fleet, "noop");
    // What is built once is measured elsewhere.
    finished(&fleet, &submit(&fleet, &git, u64::from(slots)));
    let mut phases = Vec::new();
    let mut cpu = Vec::new();
    let worker = fleet.worker_name(0);
    let (ours, docker) = side_by_side(
        rounds,
        || {
            // All of it waits before it is timed.
            fleet.ctl(&["worker", "pause", &worker]);
            let job = submit(&fleet, &git, tasks);
            let before = Usage::of(fleet.worker_id(0)).cpu;
            let began = Instant::now();
            fleet.ctl(&["worker", "resume", &worker]);
            finished(&fleet, &job);
            let each = began.elapsed().as_secs_f64() / tasks as f64;
            cpu.push((Usage::of(fleet.worker_id(0)).cpu - before).as_secs_f64() / tasks as f64);
            phases.extend(fleet.results(&job).into_iter().map(|result| result["phases_ms"].clone()));
            // The peer's time is its own.
            wait_for("the containers are gone", BOUND, || fleet.containers().is_empty().then_some(()));
            each
        },
        || docker_run(slots, tasks),
    );
    fleet.stop();
    let phase = |name: &str| median_of(&phases, |phases| phases[name].as_f64().expect("a number"));
    let (start, runs, cpu) = (phase("start"), phase("run"), median(&cpu));
    Row::new(
        format!("a real task `true` of one job, lease to recorded result, {slots} at once"),
        format!("{} each (start {start:.0} ms, run {runs:.0} ms)", time(ours)),
    )
    .beside(format!("{} each, docker run --rm", time(docker)))
    .asked("no slower", ours <= docker)
    .from(
        json!({ "slots": slots, "tasks": tasks, "rounds": rounds, "task_s": ours, "docker_run_s": docker,
        "checkout_ms": phase("checkout"), "build_ms": phase("build"), "start_ms": start, "run_ms": runs,
        "workerd_cpu_s_per_task": cpu }),
    )
}

/// Seconds for each, so many at once.
fn docker_run(at_once: u32, runs: u64) -> f64 {
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                for _ in 0..runs / u64::from(at_once) {
                    succeeded(Command::new("docker").args([
                        "run",
                        "--rm",
                        "--network",
                        "none",
                        IMAGE,
                        "true",
                    ]));
                }
            });
        }
    });
    began.elapsed().as_secs_f64() / runs as f64
}

/// Runs a program to its end without a look at the clock in between, as `codering_tests::run` takes.
pub fn succeeded(command: &mut Command) {
    let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let ended = ended.unwrap_or_else(|error| panic!("{command:?} did not start: {error}"));
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// Real workers on leases of the length that is the default.
pub fn fleet(workers: usize, slots: u32) -> Fleet {
    let mut setup = Setup::new(Backend::Embedded, workers);
    (setup.broker, setup.slots) = (String::new(), slots);
    Fleet::start(setup)
}

/// A repository with nothing but a Dockerfile; its address.
pub fn repository(fleet: &Fleet, name: &str) -> String {
    let dockerfile = format!("FROM {IMAGE}\n");
    fixture::git_repository(&fleet.directory().join(name), &[("Dockerfile", &dockerfile)])
}

/// Submits a job of tasks `true`.
pub fn submit(fleet: &Fleet, git: &str, tasks: u64) -> String {
    submit_line(fleet, git, tasks as usize, "true", &[])
}

/// Waits until all tasks of a job have succeeded.
pub fn finished(fleet: &Fleet, job: &str) {
    let mut watch = fleet.command(&["watch", job, "--quiet"]);
    succeeded(&mut watch);
}

/// Removes an image with the layers that nothing else names.
pub fn remove_image(image: &str) {
    succeeded(Command::new("docker").args(["rmi", "--force", image]));
}
