//! The first task of a job with a commit that the worker never saw, beside `git clone` and `docker build`.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use codering_tests::{Fleet, fixture, run as run_program};
use serde_json::json;

use super::{
    Section,
    real::{self, finished, remove_image, submit, succeeded},
};
use crate::{
    Bench, githost,
    measure::{median, time, took},
    table::Row,
};

/// See the module.
pub const SECTION: Section =
    Section { name: "build", about: "checkout and build beside git clone and docker build", run };

/// 2,000 files of 10 kB on average.
const DIRECTORIES: u64 = 40;
const FILES: u64 = 50;
const FILE_BYTES: u64 = 10_000;
/// What a second commit changes.
const CHANGED: u64 = 100;
const DOCKERFILE: &str = "FROM codering/base\nCOPY . /app/\nRUN find /app -type f | wc -l > /app/count\n";
const ALLOWED: f64 = 1.1;
const BOUND: Duration = Duration::from_secs(60);

/// What both sides took for one commit, in seconds.
#[derive(Default)]
struct Sides {
    phases: Vec<f64>,
    checkout: Vec<f64>,
    whole: Vec<f64>,
    clone: Vec<f64>,
    docker: Vec<f64>,
    peer: Vec<f64>,
}

fn run(bench: &Bench) -> Vec<Row> {
    let rounds = bench.size(3, 1);
    let fleet = real::fleet(1, 1);
    let host = githost::serve(fleet.directory());
    // Sleeping parts of both are awake, and the base image is in memory.
    finished(&fleet, &submit(&fleet, &real::repository(&fleet, "warm"), 1));
    let [mut new, mut known, mut local] = [(); 3].map(|()| Sides::default());
    for round in 0..rounds as u64 {
        // Each side has content of its own, so that neither finds the other's layers in Docker's cache.
        let repositories = ["ours", "peers"].map(|side| fleet.directory().join(format!("{side}-{round}")));
        let seeds = [1_000_000, 2_000_000].map(|seed| seed * (round + 1));
        for (at, seed) in repositories.iter().zip(seeds) {
            make(at, seed);
        }
        let hosted = ["ours", "peers"].map(|side| format!("{host}/{side}-{round}/.git"));
        measured(&fleet, &hosted, &mut new);
        for (at, seed) in repositories.iter().zip(seeds) {
            change(at, CHANGED / DIRECTORIES, seed + 300_000);
        }
        measured(&fleet, &hosted, &mut known);
        for (at, seed) in repositories.iter().zip(seeds) {
            change(at, FILES, seed + 600_000);
            git(at, &["repack", "-adq"]);
        }
        // To the worker an address is a repository: this one it never saw.
        let files = repositories.each_ref().map(|at| format!("file://{}", at.display()));
        measured(&fleet, &files, &mut local);
        repositories.iter().for_each(|at| fs::remove_dir_all(at).expect("a directory of ours"));
    }
    fleet.stop();
    vec![
        row("of a repository that the worker never saw", &new),
        row("of a new commit in a repository that it knows", &known),
        row("of a repository on the same disk (file://) that it never saw", &local),
    ]
}

fn row(what: &str, sides: &Sides) -> Row {
    let (ours, peer, whole) = (median(&sides.phases), median(&sides.peer), median(&sides.whole));
    let checkout = median(&sides.checkout);
    let (clone, docker) = (median(&sides.clone), median(&sides.docker));
    Row::new(
        format!("first task {what}, 2,000 files, 20 MB: checkout and build"),
        format!("{} (checkout {}), {} submit to result", time(ours), time(checkout), time(whole)),
    )
    .beside(format!("{}: git clone {} + docker build {}", time(peer), time(clone), time(docker)))
    .asked(format!("{ALLOWED} times"), ours <= ALLOWED * peer)
    .from(json!({ "rounds": sides.peer.len(), "checkout_and_build_s": ours, "checkout_s": checkout, "whole_s": whole,
        "clone_s": clone, "docker_build_s": docker, "peer_s": peer }))
}

fn measured(fleet: &Fleet, [ours, peers]: &[String; 2], sides: &mut Sides) {
    let began = Instant::now();
    let job = submit(fleet, ours, 1);
    finished(fleet, &job);
    sides.whole.push(began.elapsed().as_secs_f64());
    let result = fleet.results(&job).remove(0);
    let phase = |name: &str| result["phases_ms"][name].as_f64().expect("a number") / 1e3;
    sides.checkout.push(phase("checkout"));
    sides.phases.push(phase("checkout") + phase("build"));
    remove_image(result["image"].as_str().expect("a name"));

    let (at, tag) = (fleet.directory().join("clone"), format!("codering-bench-{}", std::process::id()));
    let (cloned, ()) = took(|| succeeded(Command::new("git").args(["clone", "--quiet", peers]).arg(&at)));
    let (built, ()) = took(|| succeeded(Command::new("docker").args(["build", "--tag", &tag]).arg(&at)));
    sides.clone.push(cloned.as_secs_f64());
    sides.docker.push(built.as_secs_f64());
    sides.peer.push((cloned + built).as_secs_f64());
    fs::remove_dir_all(&at).expect("a clone of ours");
    remove_image(&tag);
}

/// A repository with one commit, packed as a host's are.
fn make(at: &Path, seed: u64) {
    for directory in 0..DIRECTORIES {
        fs::create_dir_all(at.join(directory.to_string())).expect("a directory of ours");
    }
    fill(at, FILES, seed);
    fixture::git_repository(at, &[("Dockerfile", DOCKERFILE)]);
    git(at, &["repack", "-adq"]);
}

/// A commit more, that gives so many files of each directory another content.
fn change(at: &Path, files: u64, seed: u64) {
    fill(at, files, seed);
    git(at, &["add", "--all"]);
    let author = ["-c", "user.name=Bench", "-c", "user.email=bench@localhost"];
    git(at, &[&author[..], &["commit", "--quiet", "--message=Change"]].concat());
}

fn git(at: &Path, args: &[&str]) {
    let ran = run_program(Command::new("git").args(args).current_dir(at), BOUND);
    assert_eq!(ran.code, Some(0), "git {args:?}: {}", ran.stderr);
}

/// Files that compress about as source text does, and that no other seed gives.
fn fill(at: &Path, files: u64, seed: u64) {
    for directory in 0..DIRECTORIES {
        for file in 0..files {
            let mut state = seed + directory * 1_000 + file;
            let bytes = FILE_BYTES / 2 + state * 7_919 % FILE_BYTES;
            let mut text = String::new();
            while (text.len() as u64) < bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text += ["let ", "value", " = ", "self.", "find", "(", ");\n", "    ", "if ", "return "]
                    [(state >> 33) as usize % 10];
                if state >> 60 == 0 {
                    text += &format!("{:x}", state >> 40);
                }
            }
            fs::write(at.join(directory.to_string()).join(format!("file-{file}.txt")), text)
                .expect("a file of ours");
        }
    }
}
