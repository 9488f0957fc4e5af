//! What a clean clone costs: everything compiled, and every test run. Minutes, so only when it is asked for.

use std::{fs, process::Command};

use codering_tests::repository;
use serde_json::json;

use super::Section;
use crate::{
    Bench,
    measure::{time, took},
    table::Row,
};

/// See the module.
pub const SECTION: Section =
    Section { name: "compile", about: "cargo build and make test from nothing (half an hour)", run };

fn run(bench: &Bench) -> Vec<Row> {
    let target = repository().join("target").join("bench-compile");
    // What a former run left would make it warm.
    let _ = fs::remove_dir_all(&target);
    let timed = |what: &str, program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).current_dir(repository()).env("CARGO_TARGET_DIR", &target);
        command.env_remove("CODERING_TEST_BINARIES");
        // What it says goes to the terminal: it takes long.
        let (took, status) = took(|| command.status().unwrap_or_else(|error| panic!("{program}: {error}")));
        assert!(status.success(), "{program} {args:?}: {status}");
        let seconds = took.as_secs_f64();
        Row::new(what, time(seconds)).from(json!({ "seconds": seconds }))
    };
    let mut rows = vec![timed(
        "clean `cargo build --release` of everything",
        "cargo",
        &["build", "--release", "--locked", "--workspace", "--bins"],
    )];
    if !bench.quick {
        rows.push(timed("`make test`, compiling included", "make", &["test"]));
    }
    fs::remove_dir_all(&target).expect("a directory of ours");
    rows
}
