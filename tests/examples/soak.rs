//! `make soak`: simulated tasks under random kills, on both backends; one line for each, and exit code 1 if any task was lost
//! or doubled. `soak [TASKS]`; `CODERING_TEST_BINARIES` names the binaries, `CODERING_SOAK_KILLS=0` lets all of them live.

use std::process::ExitCode;

use codering_tests::{Backend, storm::Storm};

/// Tasks of one job: its results and messages are compared in memory.
const TASKS_PER_JOB: u64 = 50_000;

fn main() -> ExitCode {
    let tasks = std::env::args().nth(1).map_or(1_000_000, |text| text.parse().expect("a number of tasks"));
    let spared = std::env::var("CODERING_SOAK_KILLS").is_ok_and(|text| text == "0");
    let every = if spared { 0..0 } else { 500..4000 };
    let mut good = true;
    for (name, backend) in [("embedded", Backend::Embedded), ("rabbitmq", Backend::RabbitMq)] {
        let toll =
            Storm { tasks_per_job: TASKS_PER_JOB, ..Storm::simulated(backend, tasks, every.clone()) }.rage();
        println!("{name:9} {toll}");
        good &= toll.lost == 0 && toll.doubled == 0;
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
