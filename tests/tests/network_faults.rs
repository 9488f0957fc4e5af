//! The network between a worker and the broker: cut, lossy, late, slow, and dead without a word.

use std::{
    collections::BTreeSet,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use codering_tests::{
    Backend, Fleet, Manner, Namespace, Proxy, Setup, Way, fixture, run,
    verdict::{assert_done_carries, assert_goes_on, assert_one_result_each, submit_line, submit_numbers},
    wait_for,
};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(60);
/// A container that is told to go needs a while on a busy machine, and has a fifth of this.
const LEASE: Duration = Duration::from_secs(15);

fn docker(args: &[&str]) -> String {
    let ran = run(Command::new("docker").args(args), BOUND);
    assert_eq!(ran.code, Some(0), "docker {args:?}: {}", ran.stderr);
    ran.text().trim().to_owned()
}

/// A worker's containers that have started, and how many that has to be.
fn started(fleet: &Fleet, worker: usize, count: usize) -> Vec<String> {
    wait_for(&format!("worker {worker} runs {count}"), Duration::from_secs(120), || {
        let all = fleet.containers_of(worker);
        let running: Vec<_> = all
            .into_iter()
            .filter(|id| {
                let asked = ["inspect", "--format", "{{.State.Running}}", id];
                run(Command::new("docker").args(asked), BOUND).text().trim() == "true"
            })
            .collect();
        (running.len() == count).then_some(running)
    })
}

/// When Docker saw the end of a container, in seconds since 1970. The worker removes it right after, so the events are asked.
fn ended_at(container: &str, since: &str) -> f64 {
    let filter = format!("container={container}");
    let text = docker(&[
        "events",
        "--since",
        since,
        "--until",
        "0s",
        "--filter",
        &filter,
        "--filter",
        "event=die",
        "--format",
        "{{.TimeNano}}",
    ]);
    let nanos: f64 =
        text.lines().next().unwrap_or_else(|| panic!("{container} did not end")).parse().unwrap();
    nanos / 1e9
}

fn seconds_of(log: &str, what: &str) -> Vec<f64> {
    let lines: Vec<_> = log.lines().filter(|line| line.contains(what)).collect();
    let stamps = lines.iter().map(|line| line.split_whitespace().next().unwrap());
    stamps
        .map(|stamp| {
            let ran = run(Command::new("date").args(["-d", stamp, "+%s.%N"]), BOUND);
            ran.text().trim().parse().unwrap_or_else(|_| panic!("no time in {stamp}: {}", ran.stderr))
        })
        .collect()
}

fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_secs().to_string()
}

#[test]
fn invariant_3_a_worker_that_is_cut_off_stops_its_container_before_its_lease_ends_and_its_late_result_is_fenced()
 {
    let network = Namespace::create();
    let mut fleet = Fleet::prepare(Setup {
        host: network.host(),
        broker: "leases.duration = '15s'\nbroker.reconcile_every = '1s'\n".into(),
        worker_prefix: network.prefix(),
        ..Setup::new(Backend::Embedded, 2)
    });
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    fleet.start_worker(0);
    fleet.wait_for_workers();
    // Two tasks that run until they are told to end.
    let git = fixture::git_repository(
        &fleet.directory().join("git/waits"),
        &[("Dockerfile", "FROM codering/base\n")],
    );
    let line = "trap 'echo told; exit 0' USR1; while :; do sleep 0.1; done";
    let job = &submit_line(&fleet, &git, 2, line, &[]);
    let began = now();
    let cut_off = started(&fleet, 0, 2);
    fleet.setup().worker_prefix.clear();
    fleet.start_worker(1);
    fleet.wait_for_workers();

    network.cut();
    let cut = Instant::now();
    // One ends by itself, with a result that cannot be reported; the other one runs on.
    let (ends, runs_on) = (&cut_off[0], &cut_off[1]);
    docker(&["kill", "--signal", "USR1", ends]);
    let again = started(&fleet, 1, 2);
    assert!(cut.elapsed() < LEASE + Duration::from_secs(10), "elsewhere within a lease and ten seconds");
    let stopped = ended_at(runs_on, &began);
    let leases_ended = seconds_of(&fleet.broker_log(), "a lease ended");
    assert_eq!(leases_ended.len(), 2, "{}", fleet.broker_log());
    for ended in leases_ended {
        assert!(stopped < ended, "its container ran {:.1} s longer than its lease", stopped - ended);
    }
    for container in &again {
        docker(&["kill", "--signal", "USR1", container]);
    }
    assert_goes_on(&fleet, job, 2, BOUND);

    network.mend();
    wait_for("the late result is fenced", BOUND, || fleet.worker_log(0).contains("fenced").then_some(()));
    fleet.wait_for_workers();
    let results = fleet.results(job);
    assert_eq!(results.len(), 2, "one result a task");
    for result in &results {
        assert_eq!(
            (&result["attempt"], &result["worker"], &result["outcome"]),
            (&Value::from(2), &Value::from(fleet.worker_name(1)), &Value::from("succeeded")),
            "{result}"
        );
    }
    assert_done_carries(&fleet, job, &results);
    fleet.stop();
}

#[test]
fn a_network_that_loses_a_third_of_all_packets_makes_it_slower_and_loses_nothing() {
    let network = Namespace::create();
    let fleet = Fleet::start(Setup {
        host: network.host(),
        broker: String::new(),
        worker_prefix: network.prefix(),
        ..Setup::simulated(Backend::Embedded, 1, 8)
    });
    network.lose("0.3");
    let job = submit_numbers(&fleet, 100, "200ms");
    assert_goes_on(&fleet, &job, 100, Duration::from_secs(40));
    let results = assert_one_result_each(&fleet, &job, 100);
    assert_done_carries(&fleet, &job, &results);
    fleet.stop();
}

/// A simulated worker behind each proxy, and a broker with this much more of a configuration.
fn behind(proxies: &[Proxy], slots: u32, broker: &str) -> Fleet {
    let setup = Setup { broker: broker.into(), ..Setup::simulated(Backend::Embedded, proxies.len(), slots) };
    let mut fleet = Fleet::prepare(setup);
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    for (number, proxy) in proxies.iter().enumerate() {
        proxy.lead_to(fleet.grpc());
        fleet.setup().worker = format!("broker = 'https://{}'", proxy.at());
        fleet.start_worker(number);
    }
    fleet.wait_for_workers();
    fleet
}

#[test]
fn a_network_that_is_half_a_second_late_or_a_trickle_makes_it_slower_and_loses_nothing() {
    let late = Proxy::start(Manner { delay: Duration::from_millis(500), rate: 0 });
    let slow = Proxy::start(Manner { delay: Duration::ZERO, rate: 4096 });
    let fleet = behind(&[late, slow], 4, "leases.duration = '6s'\n");
    let job = submit_numbers(&fleet, 80, "200ms");
    assert_goes_on(&fleet, &job, 80, Duration::from_secs(16));
    let results = assert_one_result_each(&fleet, &job, 80);
    let ran_on: BTreeSet<_> = results.iter().map(|result| result["worker"].to_string()).collect();
    assert_eq!(ran_on.len(), 2, "each had a share");
    for result in &results {
        assert_eq!(result["attempt"], 1, "no lease was lost: {result}");
    }
    assert_done_carries(&fleet, &job, &results);
    fleet.stop();
}

#[test]
fn a_connection_that_dies_without_a_word_is_noticed_in_time_to_renew_the_lease_over_another() {
    let ways = [&[Way::Up][..], &[Way::Down], &[Way::Up, Way::Down]];
    let proxies = ways.map(|_| Proxy::start(Manner::default()));
    // A lease of 30 s, as by default.
    let fleet = behind(&proxies, 1, "");
    let job = submit_numbers(&fleet, 3, "45s");
    wait_for("all three run", BOUND, || {
        let tasks = fleet.json(&["job", "show", &job]);
        (tasks["tasks"]["running"] == 3).then_some(())
    });
    // A while later than the last word, so that nothing is under way.
    sleep(Duration::from_secs(1));
    let before: Vec<_> = proxies.iter().map(Proxy::connections).collect();
    for (proxy, ways) in proxies.iter().zip(ways) {
        proxy.forget(ways);
    }
    assert_goes_on(&fleet, &job, 3, Duration::from_secs(90));
    for result in assert_one_result_each(&fleet, &job, 3) {
        assert_eq!(result["attempt"], 1, "the lease was kept: {result}");
    }
    for (proxy, before) in proxies.iter().zip(before) {
        assert!(proxy.connections() > before, "over another connection");
    }
    fleet.stop();
}
