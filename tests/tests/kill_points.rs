//! kill -9 between every pair of steps: at each fault point in turn a daemon dies, is started again, and all that it was
//! doing comes to its one right end.

mod scenarios;

use std::fs;

use codering_kit::fault::{self, Point};
use codering_tests::{Backend, Kept, Setup, binary};
use scenarios::{Scenario, Stage, scenario};

/// Workers that join in the scenarios, one in each: a name is taken once its worker was seen.
const NEWCOMERS: usize = 6;

/// Points whose step needs Docker and git; the others are passed by workers that pretend.
fn is_real(point: Point) -> bool {
    point.name().starts_with("workerd.")
        || matches!(point, Point::CommitPinned | Point::TaskCommitPinned | Point::BuildKept)
}

fn simulated(backend: Backend) -> Kept {
    let mut setup = Setup::simulated(backend, 2 + NEWCOMERS, 2);
    setup.broker.push_str("broker.open_job_idle = '1s'\nlimits.max_tasks_per_job = 2000\n");
    Kept::start(setup, 2)
}

fn assert_built_in(kept: &Kept) {
    // One after the other: each holds the fleet.
    let of_broker = kept.fleet().broker_log();
    let of_worker = kept.fleet().worker_log(0);
    let logs = [of_broker, of_worker];
    assert!(
        logs.iter().all(|log| log.contains(fault::SAYS)),
        "the daemons have no fault points: cargo build --workspace --bins --tests"
    );
}

/// One point after the other; `CODERING_TEST_POINTS` picks those whose name holds it.
fn die_at_each(kept: Kept, real: bool, points: impl Iterator<Item = Point>) {
    assert_built_in(&kept);
    let only = std::env::var("CODERING_TEST_POINTS").unwrap_or_default();
    let mut stage = Stage::new(kept, real);
    for point in points.filter(|point| point.name().contains(&only)) {
        let began = std::time::Instant::now();
        stage.play(point);
        eprintln!("{:6.1} s  {}", began.elapsed().as_secs_f32(), point.name());
    }
    stage.end();
}

fn brokers(backend: Backend) {
    let points = Point::ALL.iter().copied().filter(|point| !is_real(*point));
    die_at_each(simulated(backend), false, points.filter(|point| scenario(*point) != Scenario::Retention));
}

#[test]
fn invariant_1_brokerd_may_die_between_any_two_steps_on_the_embedded_queue() {
    brokers(Backend::Embedded);
}

#[test]
fn invariant_1_brokerd_may_die_between_any_two_steps_on_rabbitmq() {
    brokers(Backend::RabbitMq);
}

#[test]
fn invariant_2_workerd_may_die_between_any_two_steps() {
    let mut setup = Setup::new(Backend::Embedded, 2 + NEWCOMERS);
    setup.broker.push_str("broker.open_job_idle = '1s'\n");
    let kept = Kept::start(setup, 2);
    die_at_each(kept, true, Point::ALL.iter().copied().filter(|point| is_real(*point)));
}

#[test]
fn a_broker_that_dies_while_it_lets_a_job_go_has_let_it_go() {
    let mut setup = Setup::simulated(Backend::Embedded, 1, 2);
    setup.broker.push_str("retention.keep_jobs = 1\n");
    let kept = Kept::start(setup, 1);
    let mut stage = Stage::new(kept, false);
    stage.play(Point::JobLetGo);
    stage.end();
}

/// A step that changes something durable is one of these calls; the flow's sources are read for them.
const STEPS: &[&str] = &[
    // What is done to the queues.
    ".queues.put(",
    ".queues.create(",
    ".queues.delete(",
    ".queues.purge(",
    ".queues.requeue_dead(",
    ".put_making(",
    ".settle.ack(",
    ".settle.reject(",
    ".settle.requeue(",
    // What is done by way of one function for many.
    "self.store(",
    "self.rewrite(",
    // What the worker does to its disk, to Docker and to the broker.
    "write_private(",
    "write_public(",
    "spool.put(",
    "spool.remove(",
    "fs::rename(&new",
    "sandbox.remove(",
    "control.remove(",
    "control.kill(",
    ".start_container(",
    ".attach_container(",
    "self.create(spec)",
    "Message::Report(report))",
    "broker.report(report)",
    "broker.pin(",
    "mirrors.resolve(",
    ".join(&name, source",
];

/// The ledger's methods that change nothing; whatever else it has is a step.
const READS: &[&str] = &[
    "task",
    "tasks_of",
    "job",
    "jobs_by_prefix",
    "jobs",
    "unfinished_jobs",
    "expired_jobs",
    "counts",
    "newest_reduce",
    "tasks",
    "unpublished",
    "projects_with_unpublished",
    "published",
    "longest_published",
    "published_count",
    "leased",
    "result",
    "result_bytes",
    "results",
    "unpublished_results",
    "attempts",
    "builds",
    "projects",
    "usage",
    "queues",
    "tokens",
    "token",
    "workers",
    "check",
    "audit",
    "snapshot",
    "close",
];

/// From a step to its point, in lines.
const NEAR: usize = 14;

#[test]
fn every_step_of_the_flow_has_its_fault_point() {
    let root = codering_tests::repository().join("daemons");
    let ledger = fs::read_to_string(root.join("brokerd/src/ledger/mod.rs")).unwrap();
    let trait_of_it = ledger.split("pub trait Ledger").nth(1).unwrap().split("\n}\n").next().unwrap();
    let methods =
        trait_of_it.lines().filter_map(|line| line.trim().strip_prefix("async fn ")?.split('(').next());
    let mut steps: Vec<String> = STEPS.iter().map(|step| step.to_string()).collect();
    steps.extend(methods.filter(|name| !READS.contains(name)).map(|name| format!("ledger.{name}(")));
    assert!(steps.iter().any(|step| step == "ledger.swap_task("), "the ledger's methods are not found");
    let mut files = Vec::new();
    for part in ["brokerd/src/broker", "brokerd/src/auth", "workerd/src"] {
        sources(&root.join(part), &mut files);
    }
    let (mut missing, mut named, mut found) = (Vec::new(), std::collections::BTreeSet::new(), 0);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        named.extend(
            code.split("Point::")
                .skip(1)
                .map(|rest| rest.chars().take_while(char::is_ascii_alphanumeric).collect::<String>()),
        );
        let lines: Vec<_> = code.lines().collect();
        let is_step = |line: &str| steps.iter().any(|step| line.contains(step.as_str()));
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| is_step(line)) {
            found += 1;
            // Said to need none, in the line above; or its own point stands near, before the next step.
            let excused = lines[number.saturating_sub(1)].contains("// fault: ");
            let after = lines[number + 1..].iter().take(NEAR);
            let near = after.take_while(|next| !is_step(next)).any(|next| next.contains("fault::reached("));
            if !excused && !near {
                missing.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found > 60, "only {found} steps are found: were the calls renamed?");
    assert!(
        missing.is_empty(),
        "steps without a fault point (daemons/kit/src/fault.rs):\n{}",
        missing.join("\n")
    );
    let unused: Vec<_> = Point::ALL.iter().filter(|point| !named.contains(&format!("{point:?}"))).collect();
    assert!(unused.is_empty(), "points that stand nowhere: {unused:?}");
}

fn sources(at: &std::path::Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(at).unwrap().flatten() {
        let path = entry.path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, into);
        } else if name.ends_with(".rs") && !["tests.rs", "fuzz.rs"].contains(&name.as_str()) {
            into.push(path);
        }
    }
}

#[test]
fn the_tests_binaries_are_those_with_fault_points() {
    let daemon = fs::read(binary("codering-brokerd")).unwrap();
    let said = daemon.windows(fault::VARIABLE.len()).any(|bytes| bytes == fault::VARIABLE.as_bytes());
    assert!(said, "codering-brokerd has no fault points: cargo build --workspace --bins --tests");
}
