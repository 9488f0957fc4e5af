//! What the daemons live through without a restart: new settings, new certificates, a revocation.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use codering_tests::{Backend, Fleet, Setup, binary, wait_for};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn worker(fleet: &Fleet, number: usize) -> Value {
    fleet.json(&["worker", "show", &fleet.worker_name(number)])
}

fn drop_in(fleet: &Fleet, daemon: &str, text: &str) {
    let file = fleet.directory().join(format!("{daemon}.d/50-test.toml"));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

#[test]
fn reloads_in_the_middle_of_a_job_lose_nothing_and_end_no_stream() {
    let mut fleet = Fleet::prepare(Setup::simulated(Backend::Embedded, 2, 2));
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    (0..2).for_each(|number| fleet.start_worker(number));
    fleet.wait_for_workers();
    let since = |fleet: &Fleet| {
        [0, 1].map(|number| worker(fleet, number)["connected_at"].as_str().expect("a time").to_owned())
    };
    let connected = since(&fleet);
    let submit =
        ["submit", "--project", "demo", "--git", "file:///nowhere", "--array", "1-1500", "--", "true"];
    let job = fleet.json(&submit)["job_id"].as_str().unwrap().to_owned();
    for round in 0..6 {
        let broker = ["retention.keep_jobs = 50", "retention.keep_jobs = 'few'"][round % 2];
        drop_in(&fleet, "brokerd", broker);
        drop_in(&fleet, "workerd-0", &format!("cache.max_bytes = '{}G'\nslots = 3", round + 1));
        drop_in(&fleet, "workerd-1", "git.schems = ['https']");
        fleet.reload_broker();
        fleet.reload_worker(0);
        fleet.reload_worker(1);
    }
    wait_for("the job is done", PATIENCE, || {
        (fleet.json(&["job", "show", &job])["tasks"]["succeeded"] == 1500).then_some(())
    });
    assert_eq!(since(&fleet), connected, "a stream was made anew");
    let log = fleet.broker_log();
    assert!(log.matches("50-test.toml:1: `retention.keep_jobs`: ").count() >= 3, "{log}");
    let log = fleet.worker_log(0);
    assert!(log.contains("read again: cache.max_bytes; only a restart changes slots"), "{log}");
    let log = fleet.worker_log(1);
    assert!(log.contains("did you mean `schemes`?") && !log.contains("read again"), "{log}");
    fleet.stop();
}

#[test]
fn certificates_are_renewed_while_tasks_run_and_a_revoked_worker_renews_nothing() {
    let mut setup = Setup::simulated(Backend::Embedded, 2, 2);
    setup.broker.push_str("workers.certificate_life = '10s'\n");
    let mut fleet = Fleet::prepare(setup);
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo"]);
    (0..2).for_each(|number| fleet.start_worker(number));
    fleet.wait_for_workers();
    let certificate =
        |fleet: &Fleet, number| fs::read(fleet.worker_dir(number).join("tls/worker.pem")).unwrap();
    let connected = worker(&fleet, 0)["connected_at"].as_str().expect("a time").to_owned();
    let mut seen = vec![certificate(&fleet, 0)];
    // Twice: the first is known to nobody any more, and its time is over.
    while seen.len() < 3 {
        let newest = wait_for("the next certificate", PATIENCE, || {
            let now = certificate(&fleet, 0);
            (!seen.contains(&now)).then_some(now)
        });
        seen.push(newest);
    }
    assert_eq!(worker(&fleet, 0)["connected_at"], connected.as_str(), "the stream was made anew");

    let refused = fleet.worker_name(1);
    fleet.ctl(&["worker", "revoke", &refused, "--yes"]);
    let last = certificate(&fleet, 1);
    wait_for("the revoked worker is gone", PATIENCE, || {
        (worker(&fleet, 1)["connected"] == false).then_some(())
    });
    wait_for("its renewal is refused", PATIENCE, || {
        let log = fleet.worker_log(1);
        log.lines().any(|line| line.contains("was not renewed") && line.contains("was revoked")).then_some(())
    });
    assert_eq!(certificate(&fleet, 1), last);
    assert_eq!(worker(&fleet, 1)["connected"], false);

    // Whoever is away for a moment comes back with the newest.
    fleet.stop_worker(0);
    fleet.stop_broker();
    fleet.start_broker();
    fleet.start_worker(0);
    wait_for("it is back", PATIENCE, || (worker(&fleet, 0)["connected"] == true).then_some(()));
    let submit = ["submit", "--project", "demo", "--git", "file:///nowhere", "--array", "1-20", "--", "true"];
    let job = fleet.json(&submit)["job_id"].as_str().unwrap().to_owned();
    wait_for("the job is done", PATIENCE, || {
        (fleet.json(&["job", "show", &job])["tasks"]["succeeded"] == 20).then_some(())
    });
    fleet.stop();
}

#[test]
fn a_machine_is_enrolled_by_one_command_which_trusts_no_other_broker() {
    let mut fleet = Fleet::prepare(Setup::simulated(Backend::Embedded, 0, 2));
    fleet.start_broker();
    let home = fleet.directory().join("new");
    fs::create_dir_all(&home).unwrap();
    let file = home.join("workerd.toml");
    let settings = "listen.metrics = '127.0.0.1:0'\nsimulate.enabled = true\non_stop = 'kill'\n";
    fs::write(&file, format!("data_dir = '{}'\n{settings}", home.join("data").display())).unwrap();
    let token = || String::from_utf8(fleet.ctl(&["worker", "token"])).unwrap().trim().to_owned();
    let enroll = |token: &str, more: &[&str]| {
        let mut command = Command::new(binary("codering-workerd"));
        command.arg("--config").arg(&file).arg("enroll").args(["--name", "newcomer", "--token-file", "-"]);
        command
            .args(["--broker", &fleet.grpc().to_string()])
            .args(more)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let good = token();
    let (secret, _) = good.split_once('.').expect("the CA's fingerprint");
    let (done, said) = enroll(&format!("{secret}.{}", "0".repeat(64)), &[]);
    assert!(!done && !home.join("data/tls/worker.pem").exists(), "another CA was trusted: {said}");
    let (done, said) = enroll(&good, &[]);
    assert!(done && said.contains("enrolled  newcomer at https://"), "{said}");
    let (done, said) = enroll(&token(), &[]);
    assert!(!done && said.contains("--replace"), "{said}");
    assert!(!enroll(&good, &["--replace"]).0, "a join token works once");

    let log = fs::File::create(home.join("log")).unwrap();
    let mut workerd =
        Command::new(binary("codering-workerd")).arg("--config").arg(&file).stderr(log).spawn().unwrap();
    let connected = || fleet.json(&["worker", "list"])[0]["connected"] == true;
    let done =
        std::panic::catch_unwind(|| wait_for("it is connected", PATIENCE, || connected().then_some(())));
    workerd.kill().unwrap();
    workerd.wait().unwrap();
    assert!(done.is_ok(), "{}", fs::read_to_string(home.join("log")).unwrap());
    fleet.stop();
}
