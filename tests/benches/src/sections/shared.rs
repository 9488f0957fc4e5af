//! Many tasks of one commit on several workers: each fetches it once and builds it once.

use std::time::Instant;

use codering_tests::{Fleet, fixture, fleet::get};
use serde_json::json;

use super::{
    Section,
    real::{self, finished, remove_image, submit},
};
use crate::{Bench, measure::time, table::Row};

/// See the module.
pub const SECTION: Section =
    Section { name: "shared", about: "fetches and builds of a commit that tasks share", run };

fn run(bench: &Bench) -> Vec<Row> {
    let (workers, tasks) = bench.size((4, 1000), (2, 40));
    let fleet = real::fleet(workers, 1);
    // No image of a former run will do.
    let dockerfile = format!("FROM codering/base\nLABEL of={}\n", fleet.directory().display());
    let git = fixture::git_repository(&fleet.directory().join("shared"), &[("Dockerfile", &dockerfile)]);
    let began = Instant::now();
    let job = submit(&fleet, &git, tasks);
    finished(&fleet, &job);
    let took = began.elapsed().as_secs_f64();
    let counts: Vec<_> = (0..workers).map(|number| counts(&fleet, number)).collect();
    let image = fleet.results(&job)[0]["image"].as_str().expect("a name").to_owned();
    fleet.stop();
    remove_image(&image);
    let most = |of: fn(&Counts) -> u64| counts.iter().map(of).max().expect("workers");
    let (fetches, builds) = (most(|counts| counts.fetches), most(|counts| counts.builds));
    // One Docker serves them all here, so that the first build may serve them all too.
    let all = counts.iter().map(|counts| counts.builds).sum::<u64>() > 0
        && counts.iter().all(|counts| counts.ended > 0);
    let row = Row::new(
        format!("{tasks} tasks of one commit on {workers} workers: fetches and builds of a worker"),
        format!("at most {fetches} and {builds}; {} a task", time(took / tasks as f64)),
    )
    .asked("one and one", fetches <= 1 && builds <= 1 && all)
    .from(json!({ "tasks": tasks, "workers": workers, "took_s": took,
        "per_worker": counts.iter().map(|c| json!([c.fetches, c.builds, c.ended])).collect::<Vec<_>>() }));
    vec![row]
}

struct Counts {
    fetches: u64,
    builds: u64,
    ended: u64,
}

fn counts(fleet: &Fleet, number: usize) -> Counts {
    let log = fleet.worker_log(number);
    let at = log.split("metrics=").nth(1).expect("workerd says where its metrics are");
    let at: String = at.chars().filter(|c| *c != '"').take_while(|c| !c.is_whitespace()).collect();
    let at = at.parse().unwrap_or_else(|error| panic!("{at}: {error}"));
    let metrics = get(at, "/metrics").expect("workerd serves them");
    let sum = |name: &str| {
        let values = metrics.lines().filter(|line| line.starts_with(name));
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    };
    Counts {
        fetches: sum("codering_worker_git_fetches "),
        builds: sum("codering_worker_image_builds "),
        ended: sum("codering_worker_attempts_total"),
    }
}
