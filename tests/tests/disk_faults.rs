//! Full disks: under the ledger, under the embedded queue, under a worker's spool. What is new is refused with a clear
//! error, what was taken ends or waits, nothing recorded is lost, and all of it goes on by itself.

use std::{fs, time::Duration};

use codering_tests::{Backend, Fleet, Setup, SmallDisk, fleet::get, wait_for};

const BOUND: Duration = Duration::from_secs(90);

/// Submits so many simulated tasks; their job's id, or what was said against it.
fn try_submit(fleet: &Fleet, tasks: u32, command: &str) -> Result<String, String> {
    let git = format!("file://{}/git/none.git", fleet.directory().display());
    let array = format!("1-{tasks}");
    let mut words = vec!["submit", "--project", "demo", "--git", &git, "--array", &array];
    words.extend(["--output", "json", "--", command]);
    let ran = fleet.try_ctl(&words, BOUND);
    match ran.code {
        Some(0) => {
            let job: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
            Ok(job["job_id"].as_str().unwrap().to_owned())
        }
        Some(1) => Err(ran.stderr),
        code => panic!("exit code {code:?}: {}\n{}", ran.stderr, fleet.log()),
    }
}

fn submit(fleet: &Fleet, tasks: u32, command: &str) -> String {
    try_submit(fleet, tasks, command).unwrap_or_else(|why| panic!("{why}\n{}", fleet.log()))
}

fn readyz(fleet: &Fleet) -> String {
    get(fleet.rest(), "/readyz").unwrap_or_default()
}

/// Every task succeeded, and has one result.
fn complete(fleet: &Fleet, job: &str, tasks: usize) {
    fleet.succeeded(job, BOUND);
    let mut ids: Vec<_> = fleet.results(job).iter().map(|result| result["task_id"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), tasks, "one result a task");
    assert_eq!(fleet.results(job).len(), tasks);
}

#[test]
fn invariant_1_a_disk_that_is_full_to_the_last_byte_loses_nothing_and_everything_goes_on_by_itself() {
    let mut setup = Setup::simulated(Backend::Embedded, 1, 4);
    // Without a reserve the disk itself has the word.
    setup.broker.push_str("min_free_disk = 0\n");
    let mut fleet = Fleet::prepare(setup);
    let disk = SmallDisk::mount(fleet.broker_dir(), 48);
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    fleet.start_worker(0);
    fleet.wait_for_workers();

    let mut taken = vec![submit(&fleet, 40, "sleep 0.5; echo {}")];
    wait_for("some tasks succeeded", BOUND, || (fleet.succeeded_tasks(&taken[0]) >= 4).then_some(()));
    disk.fill(0);
    let why = wait_for("a submit is refused", BOUND, || match try_submit(&fleet, 3, "echo {}") {
        // What the ledger's log still had room for was promised as well.
        Ok(job) => {
            taken.push(job);
            disk.fill(0);
            None
        }
        Err(why) => Some(why),
    });
    assert!(why.contains("ledger.full") && why.contains("free space"), "{why}");
    wait_for("/readyz tells it", BOUND, || readyz(&fleet).contains("free space").then_some(()));
    assert!(readyz(&fleet).starts_with("HTTP/1.1 200"), "it serves, and what needs the disk waits");
    assert!(fleet.broker_ended().is_none(), "it goes on\n{}", fleet.broker_log());

    // A crash on a full disk is no end either.
    fleet.kill_broker();
    disk.fill(0);
    fleet.spawn_broker();
    wait_for("it waits for room, or serves", BOUND, || {
        assert!(fleet.broker_ended().is_none(), "it ended\n{}", fleet.broker_log());
        let waits = fleet.broker_log().contains("waiting for room");
        (waits || readyz(&fleet).starts_with("HTTP/1.1 200")).then_some(())
    });
    disk.empty();
    fleet.wait_for_broker();
    for (place, job) in taken.iter().enumerate() {
        complete(&fleet, job, if place == 0 { 40 } else { 3 });
    }
    let results = 40 + 3 * (taken.len() as u64 - 1);
    wait_for("every result is on the done queue", BOUND, || {
        (fleet.waiting("demo.done") >= results).then_some(())
    });
    let next = submit(&fleet, 3, "echo {}");
    complete(&fleet, &next, 3);
    wait_for("/readyz is content", BOUND, || (!readyz(&fleet).contains("free space")).then_some(()));

    fleet.stop_worker(0);
    fleet.stop_broker();
    drop(disk);
    fleet.stop();
}

#[test]
fn a_broker_that_is_started_on_a_full_disk_says_so_and_starts_by_itself_when_there_is_room() {
    let mut fleet = Fleet::prepare(Setup::simulated(Backend::Embedded, 0, 1));
    let disk = SmallDisk::mount(fleet.broker_dir(), 16);
    fleet.start_broker();
    fleet.stop_broker();
    disk.fill(0);
    fleet.spawn_broker();
    wait_for("it waits", BOUND, || {
        assert!(fleet.broker_ended().is_none(), "it ended\n{}", fleet.broker_log());
        fleet.broker_log().contains("waiting for room on the disk").then_some(())
    });
    disk.empty();
    fleet.wait_for_broker();
    fleet.stop_broker();
    drop(disk);
    fleet.stop();
}

#[test]
fn below_its_reserve_the_broker_refuses_what_is_new_and_ends_what_it_took() {
    let mut setup = Setup::simulated(Backend::Embedded, 1, 2);
    setup.broker.push_str("min_free_disk = '32M'\n");
    let mut fleet = Fleet::prepare(setup);
    let disk = SmallDisk::mount(fleet.broker_dir(), 96);
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    fleet.ctl(&["queue", "create", "demo.notes"]);
    let job = submit(&fleet, 8, "echo {}");
    wait_for("its tasks are queued", BOUND, || (fleet.waiting("demo.todo") == 8).then_some(()));

    // Below the reserve, above half of it.
    disk.fill(24 << 20);
    wait_for("/readyz tells it", BOUND, || readyz(&fleet).contains("\"disk\"").then_some(()));
    let why = try_submit(&fleet, 3, "echo {}").expect_err("it is refused");
    assert!(
        why.contains("ledger.full") && why.contains("in reserve") && why.contains("min_free_disk"),
        "{why}"
    );
    let put = fleet.try_ctl(&["queue", "put", "demo.notes", "{}"], BOUND);
    assert!(put.code == Some(1) && put.stderr.contains("queue.disk_full"), "{}", put.stderr);
    // What was taken ends all the same, and its results wait in the ledger.
    fleet.start_worker(0);
    complete(&fleet, &job, 8);
    assert_eq!(fleet.waiting("demo.done"), 0);

    disk.empty();
    wait_for("the results are on the done queue", BOUND, || (fleet.waiting("demo.done") == 8).then_some(()));
    let next = submit(&fleet, 3, "echo {}");
    complete(&fleet, &next, 3);
    fleet.stop_worker(0);
    fleet.stop_broker();
    drop(disk);
    fleet.stop();
}

/// A worker on a disk of its own, and a broker with leases that outlast a restart of it.
fn worker_on(mebibytes: u32, reserve: &str) -> (Fleet, SmallDisk) {
    let mut setup = Setup::simulated(Backend::Embedded, 1, 2);
    setup.broker = "leases.duration = '20s'\nbroker.reconcile_every = '1s'\n".into();
    setup.worker = format!("min_free_disk = '{reserve}'\n");
    let mut fleet = Fleet::prepare(setup);
    let disk = SmallDisk::mount(fleet.worker_dir(0), mebibytes);
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    fleet.start_worker(0);
    fleet.wait_for_workers();
    (fleet, disk)
}

fn running(fleet: &Fleet, job: &str) -> u64 {
    let jobs = fleet.json(&["job", "list"]);
    let found = jobs.as_array().unwrap().iter().find(|listed| listed["job_id"] == job).unwrap();
    found["tasks"]["running"].as_u64().unwrap_or(0)
}

#[test]
fn invariant_6_results_that_the_spool_cannot_hold_wait_in_memory_and_nothing_new_is_taken_meanwhile() {
    let (mut fleet, disk) = worker_on(8, "0");
    let job = submit(&fleet, 6, "sleep 2; echo {}");
    wait_for("both slots run", BOUND, || (running(&fleet, &job) == 2).then_some(()));
    fleet.kill_broker();
    disk.fill(0);
    wait_for("both results wait in memory", BOUND, || {
        (fleet.worker_log(0).matches("waits in memory").count() >= 2).then_some(())
    });
    wait_for("it takes nothing", BOUND, || {
        fleet.worker_log(0).contains("nothing new is taken").then_some(())
    });
    // With room, they go to the disk although nobody asks for them.
    disk.empty();
    wait_for("they are on the disk", BOUND, || {
        let slots = fs::read_dir(disk.path().join("spool")).unwrap().flatten();
        let whole = slots.filter(|slot| fs::read(slot.path()).is_ok_and(|held| held.starts_with(b"cspool1")));
        (whole.count() == 2).then_some(())
    });
    fleet.start_broker();
    complete(&fleet, &job, 6);
    let attempts = fleet.worker_log(0).matches("attempt begins").count();
    assert_eq!(attempts, 6, "nothing ran twice");
    fleet.stop_worker(0);
    fleet.stop_broker();
    drop(disk);
    fleet.stop();
}

#[test]
fn a_worker_with_a_full_disk_reports_from_memory() {
    let (mut fleet, disk) = worker_on(8, "0");
    let job = submit(&fleet, 2, "sleep 2; echo {}");
    wait_for("both slots run", BOUND, || (running(&fleet, &job) == 2).then_some(()));
    disk.fill(0);
    complete(&fleet, &job, 2);
    assert!(fleet.worker_log(0).contains("waits in memory"), "{}", fleet.worker_log(0));
    fleet.stop_worker(0);
    fleet.stop_broker();
    drop(disk);
    fleet.stop();
}

#[test]
fn a_worker_below_its_reserve_takes_nothing_new_until_there_is_room() {
    let (mut fleet, disk) = worker_on(32, "16M");
    disk.fill(8 << 20);
    wait_for("the broker knows that it takes nothing", BOUND, || {
        fleet.json(&["worker", "list"])[0]["paused"].as_bool()?.then_some(())
    });
    let job = submit(&fleet, 4, "echo {}");
    wait_for("the tasks are queued", BOUND, || (fleet.waiting("demo.todo") == 4).then_some(()));
    assert!(!fleet.worker_log(0).contains("attempt begins"));
    disk.empty();
    complete(&fleet, &job, 4);
    fleet.stop_worker(0);
    fleet.stop_broker();
    drop(disk);
    fleet.stop();
}
