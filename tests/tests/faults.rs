//! Processes that die in the middle of a job, and a Ctrl-C in the middle of one.

use std::time::Duration;

use codering_tests::{Backend, Dev, fixture, wait_for};
use rustix::process::{Pid, Signal, kill_process};

const TASKS: u32 = 40;
const JOB: Duration = Duration::from_secs(240);

/// Kills a daemon of this name without warning, once the job is a quarter done; returns when dev has started another and the
/// broker answers.
fn kill_amid(dev: &Dev, job: &str, daemon: &str) {
    wait_for("a quarter of the tasks succeeded", JOB, || {
        (dev.succeeded_tasks(job) >= u64::from(TASKS / 4)).then_some(())
    });
    let before = dev.daemons(daemon);
    let victim = *before.first().unwrap_or_else(|| panic!("no {daemon} runs"));
    kill_process(Pid::from_raw(victim.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    wait_for("dev has started another one", Duration::from_secs(30), || {
        let now = dev.daemons(daemon);
        (now.len() == before.len() && !now.contains(&victim)).then_some(())
    });
    wait_for("the broker answers", Duration::from_secs(30), || {
        (dev.try_ctl(&["job", "list"], Duration::from_secs(30)).code == Some(0)).then_some(())
    });
}

fn assert_complete(dev: &Dev, job: &str) {
    dev.succeeded(job, JOB);
    let answer: serde_json::Value = serde_json::from_slice(&dev.answer(job)).unwrap();
    assert_eq!(answer, fixture::squares_expected(TASKS));
    assert_eq!(dev.results(job).len(), TASKS as usize, "one result a task");
}

fn everything_ends_although(backend: Backend, daemon: &str) {
    let dev = Dev::start(backend, 2);
    let job = dev.submit(&fixture::squares(dev.directory(), TASKS, 0.2));
    kill_amid(&dev, &job, daemon);
    assert_complete(&dev, &job);
    dev.stop();
}

#[test]
fn invariant_1_everything_ends_although_a_worker_is_killed_amid_a_job() {
    everything_ends_although(Backend::Embedded, "codering-workerd");
}

#[test]
fn invariant_1_nothing_is_lost_although_the_broker_is_killed_amid_a_job_on_the_embedded_queue() {
    everything_ends_although(Backend::Embedded, "codering-brokerd");
}

#[test]
fn invariant_1_nothing_is_lost_although_the_broker_is_killed_amid_a_job_on_rabbitmq() {
    everything_ends_although(Backend::RabbitMq, "codering-brokerd");
}

#[test]
fn ctrl_c_amid_a_job_leaves_no_process_no_container_and_no_mount() {
    let dev = Dev::start(Backend::Embedded, 1);
    dev.submit(&fixture::squares(dev.directory(), TASKS, 30.0));
    wait_for("a container runs", JOB, || (!dev.containers().is_empty()).then_some(()));
    dev.stop();
}
