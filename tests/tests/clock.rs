//! A wall clock that jumps an hour, forward and back, under the broker or under a worker.

use std::{fs, process::Command, time::Duration};

use codering_tests::{
    Backend, Faketime, Fleet, Setup, run,
    verdict::{
        assert_done_carries, assert_goes_on, assert_one_result_each, submit_numbers, submit_with,
        wait_for_successes,
    },
    wait_for,
};
use tempfile::TempDir;

const TASKS: usize = 120;
const LEASE: Duration = Duration::from_secs(6);
const BROKER: &str = "leases.duration = '6s'\nbroker.reconcile_every = '1s'\n";
const JUMPS: [&str; 4] = ["+3600", "-3600", "+3600", "+0"];

fn clock() -> (TempDir, Faketime) {
    let directory = tempfile::Builder::new().prefix("codering-clock-").tempdir().unwrap();
    let clock = Faketime::new(&directory.path().join("clock"));
    (directory, clock)
}

/// A job runs while the clock jumps: each task once, and none has to wait.
fn runs_through_the_jumps(fleet: &Fleet, clock: &Faketime) {
    let job = submit_numbers(fleet, TASKS, "1s");
    for (number, jump) in JUMPS.iter().enumerate() {
        wait_for_successes(fleet, &job, (number * TASKS / 6) as u64 + 1);
        clock.set(jump);
    }
    assert_goes_on(fleet, &job, TASKS, LEASE + Duration::from_secs(10));
    let results = assert_one_result_each(fleet, &job, TASKS);
    for result in &results {
        assert_eq!(result["attempt"], 1, "no lease was lost: {result}");
    }
    assert_done_carries(fleet, &job, &results);
    for lost in ["a lease ended", "silent for longer"] {
        assert!(!fleet.broker_log().contains(lost), "{lost}\n{}", fleet.broker_log());
    }
    assert!(!fleet.worker_log(0).contains("no stream to the broker"), "{}", fleet.worker_log(0));
}

fn now_ms() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
}

/// When the ledger says that the first of the tasks that wait is looked at again.
fn next_looks(fleet: &Fleet) -> Option<u128> {
    let script = "import sqlite3, sys\n\
        ledger = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True)\n\
        print(ledger.execute('SELECT min(not_before) FROM tasks WHERE state = 0').fetchone()[0])\n";
    let ledger = fleet.broker_dir().join("ledger.db");
    let ran = run(Command::new("python3").args(["-c", script]).arg(ledger), Duration::from_secs(60));
    ran.text().trim().parse().ok()
}

#[test]
fn invariant_3_a_jump_of_the_brokers_clock_ends_no_lease_and_lets_no_task_wait() {
    let (_directory, clock) = clock();
    let mut fleet = Fleet::start(Setup {
        broker: BROKER.into(),
        broker_environment: clock.environment(),
        ..Setup::simulated(Backend::Embedded, 1, 4)
    });
    runs_through_the_jumps(&fleet, &clock);

    // What nobody can run is looked at again after a pause, which is written down as a time of the wall clock.
    clock.set("+3600");
    let job = submit_with(&fleet, 3, "10ms", &["--label", "place=here"]);
    wait_for("the next look at its tasks is written down an hour ahead", Duration::from_secs(60), || {
        (next_looks(&fleet).is_some_and(|first| first > now_ms() + 3_000_000)).then_some(())
    });
    clock.set("+0");
    let file = fleet.directory().join("workerd-0.toml");
    fleet.stop_worker(0);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\n[labels]\nplace = 'here'\n")).unwrap();
    fleet.start_worker(0);
    fleet.wait_for_workers();
    assert_goes_on(&fleet, &job, 3, LEASE + Duration::from_secs(10));
    fleet.stop();
}

#[test]
fn invariant_3_a_jump_of_a_workers_clock_ends_no_lease() {
    let (_directory, clock) = clock();
    let fleet = Fleet::start(Setup {
        broker: BROKER.into(),
        worker_environment: clock.environment(),
        ..Setup::simulated(Backend::Embedded, 1, 4)
    });
    runs_through_the_jumps(&fleet, &clock);
    fleet.stop();
}
