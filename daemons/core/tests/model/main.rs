//! The invariants of ARCHITECTURE.md on a model of the whole protocol: a ledger with compare-and-set, a queue that loses,
//! doubles and reorders, workers with clocks of their own, late and doubled reports, and a broker that dies between any
//! two of its steps. Random scripts, checked after each step; one that fails is shrunk to a short one, which is printed.
//! The state machine is the real one; what brokerd does around it is mirrored (`broker.rs`).
//!
//! `CODERING_TEST_SCRIPTS=100000 cargo test -p codering-core --test model` runs more of them, and
//! `CODERING_TEST_SEED=N` that one alone.
#![allow(clippy::unwrap_used)]

mod broker;
mod ledger;
mod script;
mod worker;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use script::{Random, random};
use world::{Step, World};

/// Some seconds' worth.
const SCRIPTS: u64 = 20_000;

/// Runs a script. The error is what a check said.
fn run(script: &[Step]) -> Result<(), String> {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new();
        script.iter().for_each(|step| world.apply(step));
        world.settles();
    }));
    ran.map_err(|said| match said.downcast_ref::<String>() {
        Some(text) => text.clone(),
        None => said.downcast_ref::<&str>().copied().unwrap_or_default().to_owned(),
    })
}

/// The shortest script found that fails still: pieces of every size are left out for as long as one can be.
fn shrunk(mut script: Vec<Step>) -> Vec<Step> {
    let mut piece = script.len() / 2;
    while piece > 0 {
        let (mut at, before) = (0, script.len());
        while at < script.len() {
            let mut shorter = script.clone();
            shorter.drain(at..(at + piece).min(script.len()));
            match run(&shorter) {
                Ok(()) => at += piece,
                Err(_) => script = shorter,
            }
        }
        if script.len() == before {
            piece /= 2;
        }
    }
    script
}

#[test]
fn invariant_1_2_3_4_and_9_hold_after_each_step_of_any_script_and_all_tasks_end_once_faults_do() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("CODERING_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CODERING_TEST_SCRIPTS").unwrap_or(SCRIPTS),
    };
    // Thousands of scripts fail while one is shrunk: none of them is worth a line.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let failed = seeds.clone().find_map(|seed| {
        let script = random(&mut Random::new(seed));
        run(&script).err().map(|_| (seed, shrunk(script)))
    });
    let failed = failed.map(|(seed, script)| (seed, run(&script), script));
    std::panic::set_hook(hook);
    if let Some((seed, said, script)) = failed {
        let lines: String = script.iter().map(|step| format!("\n    {step:?}")).collect();
        panic!("{}\nCODERING_TEST_SEED={seed}, shrunk to:{lines}", said.unwrap_err());
    }
}
