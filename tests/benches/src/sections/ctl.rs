//! How soon coderingctl answers.

use std::{
    io::Read,
    process::{Command, Stdio},
};

use codering_tests::{Backend, Fleet};
use serde_json::json;

use super::{
    Section,
    flow::{simulated, submit},
};
use crate::{
    Bench,
    measure::{side_by_side, time, took},
    table::Row,
};

/// See the module.
pub const SECTION: Section =
    Section { name: "ctl", about: "start of coderingctl to the first byte of job list", run };

const BOUND: f64 = 0.030;

fn run(bench: &Bench) -> Vec<Row> {
    let fleet = simulated(Backend::Embedded, 1, 4);
    for _ in 0..20 {
        let job = submit(&fleet, 1);
        fleet.ctl(&["watch", &job, "--quiet"]);
    }
    let rounds = bench.size(100, 20);
    let (listed, started) =
        side_by_side(rounds, || first_byte(&fleet, &["job", "list"]), || first_byte(&fleet, &["--version"]));
    fleet.stop();
    let row = Row::new("coderingctl, from its start to the first byte of `job list`, 20 jobs", time(listed))
        .beside(format!("{} for `--version`", time(started)))
        .asked("30 ms", listed <= BOUND)
        .from(json!({ "job_list_s": listed, "version_s": started, "rounds": rounds }));
    vec![row]
}

fn first_byte(fleet: &Fleet, args: &[&str]) -> f64 {
    let mut command: Command = fleet.command(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let (time, mut child) = took(|| {
        let mut child = command.spawn().expect("coderingctl starts");
        let mut first = [0];
        child.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("it says something");
        child
    });
    // The rest is read, or it would end on a closed pipe.
    std::io::copy(child.stdout.as_mut().expect("a pipe"), &mut std::io::sink()).expect("its output ends");
    assert!(child.wait().expect("a child").success());
    time.as_secs_f64()
}
