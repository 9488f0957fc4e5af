//! One job of very many tasks, from the call to its answer.

use std::{process::Stdio, time::Duration};

use codering_tests::{Backend, Fleet, rest};
use serde_json::{Value, json};

use super::{BACKENDS, Section, flow::simulated};
use crate::{
    Bench,
    measure::{Usage, grouped, median_of, time, took},
    sqlite,
    table::Row,
};

/// See the module.
pub const SECTION: Section = Section { name: "submit", about: "submit of one large job, to its answer", run };

const ROUNDS: usize = 3;
/// For 100,000 tasks: seconds until the answer, and brokerd's processor time beyond SQLite's own.
const ASKED: (f64, f64) = (10.0, 2.0);

type Submit = fn(&Fleet, u64) -> Duration;

fn run(bench: &Bench) -> Vec<Row> {
    let tasks = bench.size(100_000, 20_000);
    let rounds = bench.size(ROUNDS, 1);
    let scale = tasks as f64 / 100_000.0;
    let mut rows = Vec::new();
    for (name, backend) in BACKENDS {
        for (way, submit) in [("coderingctl", by_ctl as Submit), ("REST, each task written out", by_rest)] {
            let measured: Vec<_> = (0..rounds).map(|_| once(backend, tasks, submit)).collect();
            let figure = |of: fn(&Round) -> f64| median_of(&measured, of);
            let (answered, cpu) = (figure(|r| r.answered), figure(|r| r.cpu));
            let (own, own_cpu) = (figure(|r| r.sqlite), figure(|r| r.sqlite_cpu));
            let beyond = figure(|r| r.cpu - r.sqlite_cpu);
            rows.push(
                Row::new(
                    format!("submit of a job of {} tasks, {way}, {name}", grouped(tasks as f64)),
                    format!("{}, {} of brokerd's CPU: {} beyond SQLite's own", time(answered), time(cpu), time(beyond)),
                )
                .beside(format!("{}, {} of CPU for SQLite to insert the same rows by itself", time(own), time(own_cpu)))
                .asked(
                    "per 100,000: 10 s, 2 s of CPU beyond SQLite's own",
                    answered <= ASKED.0 * scale && beyond <= ASKED.1 * scale,
                )
                .from(json!({ "backend": name, "way": way, "tasks": tasks, "rounds": rounds, "answered_s": answered,
                    "cpu_s": cpu, "cpu_beyond_sqlite_s": beyond, "sqlite_s": own, "sqlite_cpu_s": own_cpu })),
            );
        }
    }
    rows
}

struct Round {
    answered: f64,
    cpu: f64,
    sqlite: f64,
    sqlite_cpu: f64,
}

/// On a broker of its own, or what it still publishes of one job would meet the next one.
fn once(backend: Backend, tasks: u64, submit: Submit) -> Round {
    let mut fleet = simulated(backend, 0, 1);
    let before = Usage::of(fleet.broker_id());
    let answered = submit(&fleet, tasks);
    let cpu = Usage::of(fleet.broker_id()).cpu - before.cpu;
    fleet.stop_broker();
    let sqlite = sqlite::cost_of_tasks(&fleet.broker_dir());
    let seconds = |time: Duration| time.as_secs_f64();
    let round = Round {
        answered: seconds(answered),
        cpu: seconds(cpu),
        sqlite: seconds(sqlite.took),
        sqlite_cpu: seconds(sqlite.cpu),
    };
    fleet.stop();
    round
}

fn by_ctl(fleet: &Fleet, tasks: u64) -> Duration {
    let array = format!("1-{tasks}");
    let args = [
        "submit",
        "--project",
        "demo",
        "--git",
        "https://localhost/none.git",
        "--array",
        &array,
        "--",
        "true",
    ];
    let mut command = fleet.command(&args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (answered, status) = took(|| command.status());
    assert!(status.expect("coderingctl starts").success());
    answered
}

fn by_rest(fleet: &Fleet, tasks: u64) -> Duration {
    let task = |number: u64| json!({ "id": number.to_string(), "arg": format!("--seed {number}") });
    let list: Vec<Value> = (1..=tasks).map(task).collect();
    let job =
        json!({ "project": "demo", "git": "https://localhost/none.git", "command": "true {}", "task": list });
    let body = job.to_string();
    let (answered, (status, answer)) =
        took(|| rest::call(fleet, "POST", "/api/v1/jobs", Some(body.as_bytes())));
    assert_eq!(status, 201, "{answer}");
    answered
}
