//! A wall clock that jumps an hour, forward and back, under the broker or under a worker.

use std::time::Duration;

use codering_tests::{
    Backend, Faketime, Fleet, Setup,
    verdict::{
        assert_done_carries, assert_goes_on, assert_one_result_each, submit_numbers, wait_for_successes,
    },
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

#[test]
fn invariant_3_a_jump_of_the_brokers_clock_ends_no_lease() {
    let (_directory, clock) = clock();
    let fleet = Fleet::start(Setup {
        broker: BROKER.into(),
        broker_environment: clock.environment(),
        ..Setup::simulated(Backend::Embedded, 1, 4)
    });
    runs_through_the_jumps(&fleet, &clock);
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
