//! `coderingctl watch` on a job that runs: what it and brokerd hold in memory, and how often it is told. Part of the
//! section `backlog`, whose jobs it needs.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use codering_tests::Fleet;
use serde_json::json;

use super::flow::each_worker;
use crate::{
    measure::{Usage, grouped, megabytes},
    table::Row,
};

/// For how long, unless the job ends before.
const WATCHED: Duration = Duration::from_secs(10);
/// The figures of a process that has begun to work are those that must not grow.
const BEGUN: Duration = Duration::from_secs(1);
/// Not the tasks of a job, but what an allocator may keep.
const NOISE: u64 = 4_000_000;
const UPDATES: f64 = 10.0;

/// What was seen.
pub struct Watched {
    tasks: u64,
    ctl: u64,
    ctl_growth: u64,
    broker_growth: u64,
    updates: f64,
}

/// Watches a job of so many tasks, whose workers are paused until then or run already. Before that they run for `before`:
/// brokerd keeps pages of a ledger that is written, watched or not.
pub fn measure(fleet: &Fleet, job: &str, tasks: u64, before: Duration) -> Watched {
    each_worker(fleet, 1, "resume");
    sleep(before);
    let mut command = fleet.command(&["watch", job, "--output", "jsonl"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("coderingctl starts");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let heard =
        thread::spawn(move || lines.map(|line| line.map(|_| Instant::now())).collect::<Result<Vec<_>, _>>());
    let (ctl, broker) = (child.id(), fleet.broker_id());
    let began = Instant::now();
    let mut seen = Vec::new();
    while began.elapsed() < WATCHED && child.try_wait().expect("a child").is_none() {
        if began.elapsed() >= BEGUN {
            seen.push((Usage::of(ctl).resident, Usage::of(broker).anonymous));
        }
        sleep(Duration::from_millis(100));
    }
    child.kill().expect("a child");
    child.wait().expect("a child");
    let heard = heard.join().expect("a thread that reads").expect("lines");
    let (first, last) = (seen.first().expect("it ran for a while"), seen.last().expect("the same"));
    let [begin, .., end] = heard[..] else { panic!("watch told less than two events") };
    Watched {
        tasks,
        ctl: last.0,
        ctl_growth: last.0.saturating_sub(first.0),
        broker_growth: last.1.saturating_sub(first.1),
        updates: (heard.len() - 1) as f64 / end.duration_since(begin).as_secs_f64(),
    }
}

/// A small job beside a large one.
pub fn row(backend: &str, small: &Watched, large: &Watched) -> Row {
    let constant =
        large.ctl <= small.ctl + NOISE && large.ctl_growth <= NOISE && large.broker_growth <= NOISE;
    Row::new(
        format!("`coderingctl watch` on a running job of {} tasks, {backend}", grouped(large.tasks as f64)),
        format!(
            "coderingctl {}, {} more after 10 s; brokerd {} more; {:.1} updates a second",
            megabytes(large.ctl),
            megabytes(large.ctl_growth),
            megabytes(large.broker_growth),
            large.updates
        ),
    )
    .beside(format!("coderingctl {} on a job of {}", megabytes(small.ctl), grouped(small.tasks as f64)))
    .asked("constant memory, 10 updates a second", constant && large.updates <= UPDATES + 0.05)
    .from(json!({ "backend": backend, "tasks": large.tasks, "ctl_resident": large.ctl, "ctl_growth": large.ctl_growth,
        "brokerd_growth": large.broker_growth, "updates_per_second": large.updates,
        "small_job": small.tasks, "ctl_resident_small_job": small.ctl }))
}
