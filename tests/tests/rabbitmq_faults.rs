//! RabbitMQ away, stopped, killed, blocked and wiped, on a node of the test's own. The daemons have their default
//! settings: a lease of 30 s, a look at the queues every 10 s.

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use codering_tests::{
    Backend, Fleet, Node, Setup, run,
    verdict::{
        assert_done_carries, assert_goes_on, assert_one_result_each, submit_numbers, wait_for_successes,
    },
};

const TASKS: usize = 150;
/// A lease and ten seconds.
const LONGEST: Duration = Duration::from_secs(40);
/// For what is done by rabbitmqctl, which takes seconds to start.
const SLOW: &str = "1500ms";
const REFUSED: Duration = Duration::from_secs(35);

fn setup(node: &Node, prefix: &str) -> Setup {
    Setup {
        rabbitmq: Some(node.url()),
        broker: format!("queue.prefix = '{prefix}-'"),
        ..Setup::simulated(Backend::RabbitMq, 2, 4)
    }
}

fn assert_all_of_it(fleet: &Fleet, job: &str) {
    assert_goes_on(fleet, job, TASKS, LONGEST);
    let results = assert_one_result_each(fleet, job, TASKS);
    assert_done_carries(fleet, job, &results);
}

/// A job whose tasks each take this long goes on to its end although this happens in its middle.
fn everything_ends_although(prefix: &str, each: &str, happens: impl FnOnce(&Node, &mut Fleet)) {
    let node = Node::shared();
    let node = node.turn();
    let mut fleet = Fleet::prepare(setup(&node, prefix));
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    fleet.start_worker(0);
    fleet.wait_for_workers();
    let job = submit_numbers(&fleet, TASKS, each);
    wait_for_successes(&fleet, &job, TASKS as u64 / 8);
    happens(&node, &mut fleet);
    assert!(fleet.succeeded_tasks(&job) < TASKS as u64, "it happened in the middle");
    // The rest goes faster.
    fleet.start_worker(1);
    assert_all_of_it(&fleet, &job);
    fleet.stop();
}

#[test]
fn invariant_1_a_submit_is_acknowledged_while_rabbitmq_is_away_and_runs_when_it_is_there() {
    let node = Node::shared();
    let node = node.turn();
    node.stop();
    let mut fleet = Fleet::prepare(setup(&node, "away"));
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    fleet.start_worker(0);
    fleet.start_worker(1);
    fleet.wait_for_workers();
    let job = submit_numbers(&fleet, TASKS, "50ms");
    let began = Instant::now();
    let put = fleet.try_ctl(&["queue", "put", "demo.done", "{}"], REFUSED + Duration::from_secs(30));
    assert_ne!(put.code, Some(0), "nothing could have confirmed it");
    assert!(put.stderr.contains("queue"), "{}", put.stderr);
    assert!(began.elapsed() < REFUSED, "an error within a bound, not after {:?}", began.elapsed());
    node.start();
    assert_all_of_it(&fleet, &job);
    fleet.stop();
}

#[test]
fn invariant_1_nothing_is_lost_although_rabbitmq_is_stopped_and_started_amid_a_job() {
    everything_ends_although("stop", "400ms", |node, _| {
        node.stop();
        node.start();
    });
}

#[test]
fn invariant_1_nothing_is_lost_although_rabbitmq_is_killed_amid_a_job() {
    everything_ends_although("kill", "400ms", |node, _| {
        node.kill();
        node.start();
    });
}

#[test]
fn invariant_1_nothing_is_lost_although_an_administrator_closes_all_connections() {
    everything_ends_although("close", SLOW, |node, _| {
        node.ctl(&["close_all_connections", "because a test wants it"]);
    });
}

#[test]
fn invariant_1_a_submit_is_acknowledged_while_rabbitmq_blocks_publishers_and_goes_on_by_itself() {
    let node = Node::shared();
    let node = node.turn();
    let fleet = Fleet::start(setup(&node, "alarm"));
    let before = submit_numbers(&fleet, TASKS, SLOW);
    wait_for_successes(&fleet, &before, TASKS as u64 / 8);
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    let blocked = Instant::now();
    let meanwhile = submit_numbers(&fleet, TASKS, "50ms");
    let began = Instant::now();
    let put = fleet.try_ctl(&["queue", "put", "demo.done", "{}"], REFUSED + Duration::from_secs(30));
    assert_ne!(put.code, Some(0), "nothing could have confirmed it");
    assert!(put.stderr.contains("block"), "it says why: {}", put.stderr);
    assert!(began.elapsed() < REFUSED, "an error within a bound, not after {:?}", began.elapsed());
    sleep(Duration::from_secs(20).saturating_sub(blocked.elapsed()));
    node.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    assert_all_of_it(&fleet, &before);
    assert_goes_on(&fleet, &meanwhile, TASKS, LONGEST);
    assert_one_result_each(&fleet, &meanwhile, TASKS);
    fleet.stop();
}

#[test]
fn invariant_1_rabbitmq_is_filled_again_from_the_ledger_after_a_reset() {
    everything_ends_although("reset", SLOW, |node, fleet| {
        let taken = fleet.take_all("demo.done");
        assert!(!taken.is_empty(), "results were there before");
        for step in ["stop_app", "reset", "start_app"] {
            node.ctl(&[step]);
        }
    });
}

/// Clients of RabbitMQ make the queues that they read when they connect: that one is there proves nothing.
fn make_as_a_client(node: &Node, queue: &str) {
    let script = "import pika, sys\n\
        channel = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()\n\
        channel.queue_declare(sys.argv[2], durable=True, arguments={'x-queue-type': 'quorum'})\n";
    let ran = run(
        Command::new("/usr/bin/python3").args(["-c", script, &node.url(), queue]),
        Duration::from_secs(120),
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn invariant_1_rabbitmq_is_filled_again_although_it_lost_its_disk_and_a_client_was_there_first() {
    everything_ends_although("wipe", "400ms", |node, fleet| {
        node.kill();
        fleet.kill_broker();
        node.remove_data();
        node.start();
        make_as_a_client(node, "wipe-demo.done");
        make_as_a_client(node, "wipe-demo.todo");
        fleet.start_broker();
    });
}
