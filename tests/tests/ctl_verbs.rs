//! coderingctl's verbs beside submit and watch, over the real daemons, as a person or a script types them.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use codering_tests::{Backend, Dev, Fleet, Ran, Setup, fixture, wait_for};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

/// A coderingctl that reads `input`.
fn ctl_with_input(dev: &Dev, args: &[&str], input: &str) -> String {
    let mut child = dev
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "coderingctl {args:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

fn refused(dev: &Dev, args: &[&str], code: i32, error: &str) -> Ran {
    let ran = dev.try_ctl(args, MINUTE);
    assert_eq!(ran.code, Some(code), "coderingctl {args:?}: {}", ran.stderr);
    assert!(ran.stderr.contains(error), "coderingctl {args:?}: no `{error}` in {}", ran.stderr);
    assert_eq!(ran.stdout, b"", "an error leaves stdout empty");
    ran
}

/// Submits a directory's job into a project made for it.
fn submit(dev: &Dev, directory: &Path, project: &str) -> String {
    dev.ctl(&["project", "create", project]);
    dev.submit(directory)
}

fn lines(text: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(text).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn messages_go_through_a_queue_in_order_and_what_is_wrong_is_said_by_line() {
    let dev = Dev::start(Backend::Embedded, 0);
    dev.ctl(&["project", "create", "mail"]);
    assert_eq!(dev.json(&["queue", "create", "mail.in"])["created"], true);
    assert_eq!(dev.json(&["queue", "create", "mail.in"])["created"], false);

    refused(&dev, &["queue", "get", "mail.in"], 3, "mail.in is empty");
    refused(&dev, &["queue", "get", "mail.nowhere"], 3, "error[queue.not_found]");
    refused(&dev, &["queue", "put", "mail.in", "hello"], 2, "error[invalid.json]");

    dev.ctl(&["queue", "put", "mail.in", "{\"n\": 0}"]);
    let many: String = (1..=1500).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    ctl_with_input(&dev, &["queue", "put", "mail.in"], &many);
    let file = dev.directory().join("more.jsonl");
    fs::write(&file, "{\"n\": 1501}\n\n{\"n\": 1502}\nnot json\n").unwrap();
    let ran =
        refused(&dev, &["queue", "put", "mail.in", "--file", file.to_str().unwrap()], 2, "more.jsonl:4");
    assert!(ran.stderr.contains("--skip 3"), "{}", ran.stderr);

    assert_eq!(lines(&dev.ctl(&["queue", "get", "mail.in"])), [json!({"n": 0})]);
    let taken = lines(&dev.ctl(&["queue", "subscribe", "mail.in", "--count", "1000"]));
    assert_eq!(taken, (1..=1000).map(|n| json!({ "n": n })).collect::<Vec<_>>());
    // A subscriber that wanted 1000 took no more.
    let listed = dev.json(&["queue", "list", "--project", "mail"]);
    let ready = |name: &str| {
        let found = listed.as_array().unwrap().iter().find(|queue| queue["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not in {listed}"))["ready"].clone()
    };
    assert_eq!(ready("mail.in"), 502);
    assert_eq!(ready("mail.todo"), 0);

    refused(&dev, &["queue", "purge", "mail.in"], 2, "--yes");
    assert_eq!(dev.json(&["queue", "purge", "mail.in", "--yes"])["purged"], 502);
    refused(&dev, &["queue", "delete", "mail.todo", "--yes"], 1, "error[queue.reserved]");
    dev.ctl(&["queue", "delete", "mail.in", "--yes"]);
    refused(&dev, &["queue", "get", "mail.in"], 3, "error[queue.not_found]");
    dev.stop();
}

#[test]
fn a_message_that_is_no_task_is_a_dead_letter_with_its_reason_until_it_is_requeued() {
    let dev = Dev::start(Backend::Embedded, 1);
    dev.ctl(&["project", "create", "dead"]);
    dev.ctl(&["queue", "put", "dead.todo", "{\"task_id\": \"1\"}"]);
    let letters = wait_for("the message is a dead letter", MINUTE, || {
        let letters = dev.json(&["queue", "dead", "list", "dead"]);
        (!letters.as_array().unwrap().is_empty()).then_some(letters)
    });
    assert!(!letters[0]["reason"].as_str().unwrap().is_empty(), "{letters}");
    let id = letters[0]["id"].as_str().unwrap();
    assert_eq!(dev.json(&["queue", "dead", "requeue", "dead", id])["requeued"], 1);
    wait_for("it is dead again", MINUTE, || {
        let letters = dev.json(&["queue", "dead", "list", "dead"]);
        (letters.as_array().unwrap().len() == 1).then_some(())
    });
    dev.stop();
}

#[test]
fn queues_are_rebuilt_from_the_ledger_and_a_task_that_waits_there_twice_runs_once() {
    for backend in [Backend::Embedded, Backend::RabbitMq] {
        let mut fleet = Fleet::prepare(Setup::simulated(backend, 1, 2));
        fleet.start_broker();
        fleet.ctl(&["project", "create", "demo"]);
        let git = ["submit", "--quiet", "--git", "https://h/p.git", "--array", "1-5", "--", "echo", "well"];
        let job = String::from_utf8(fleet.ctl(&git)).unwrap();
        let job = job.trim();
        let becomes = |fleet: &Fleet, queue: &str, count: u64| {
            let what = format!("{count} wait in {queue}");
            wait_for(&what, MINUTE, || (fleet.waiting(queue) == count).then_some(()));
        };
        let rebuilt = |fleet: &Fleet| {
            let answer = fleet.json(&["queue", "rebuild", "demo"]);
            (answer["tasks"].as_u64().unwrap(), answer["results"].as_u64().unwrap())
        };
        becomes(&fleet, "demo.todo", 5);
        assert_eq!(rebuilt(&fleet), (5, 0));
        becomes(&fleet, "demo.todo", 10);
        fleet.start_worker(0);
        fleet.succeeded(job, MINUTE);
        becomes(&fleet, "demo.done", 5);
        becomes(&fleet, "demo.todo", 0);
        assert!(fleet.results(job).iter().all(|result| result["attempt"] == 1), "a task ran twice");

        fleet.ctl(&["queue", "purge", "demo.done", "--yes"]);
        assert_eq!(rebuilt(&fleet), (0, 5));
        becomes(&fleet, "demo.done", 5);
        fleet.stop();
    }
}

#[test]
fn a_token_does_what_its_role_and_project_allow_until_it_is_revoked() {
    let dev = Dev::start(Backend::Embedded, 0);
    for project in ["ours", "theirs"] {
        dev.ctl(&["project", "create", project]);
    }
    let secret = dev.ctl(&["token", "create", "--role", "viewer", "--project", "ours", "--name", "eyes"]);
    assert!(secret.starts_with(b"cdr_") && secret.iter().filter(|byte| **byte == b'\n').count() == 1);
    let file = dev.directory().join("eyes.token");
    fs::write(&file, &secret).unwrap();
    let address = dev.endpoints().grpc.trim_start_matches("https://").to_owned();

    // As somebody who has no endpoints file.
    let logged_in = |args: &[&str], code: i32| {
        let mut command = dev.command(args);
        command.env_remove("CODERING_ENDPOINTS").env("XDG_CONFIG_HOME", dev.directory().join("config"));
        let ran = codering_tests::run(&mut command, MINUTE);
        assert_eq!(ran.code, Some(code), "coderingctl {args:?}: {}", ran.stderr);
        ran
    };
    let nobody = logged_in(&["job", "list"], 2);
    assert!(nobody.stderr.contains("coderingctl login"), "{}", nobody.stderr);
    let login = ["login", "lab", "--broker", &address, "--ca", &dev.endpoints().ca, "--token-file"];
    let login: Vec<&str> = login.into_iter().chain([file.to_str().unwrap()]).collect();
    let said = logged_in(&login, 0).text();
    assert!(said.contains("`eyes`, viewer of ours"), "{said}");
    assert!(logged_in(&["login", "list"], 0).text().contains("*  lab"));

    logged_in(&["project", "show", "ours"], 0);
    logged_in(&["project", "show", "theirs"], 4);
    assert!(logged_in(&["project", "create", "mine"], 4).stderr.contains("error[auth.denied]"));
    assert!(logged_in(&["queue", "put", "ours.todo", "{}"], 4).stderr.contains("error[auth.denied]"));

    dev.ctl(&["token", "revoke", "eyes", "--yes"]);
    assert!(logged_in(&["project", "list"], 4).stderr.contains("error[auth.invalid]"));
    logged_in(&["login", "remove", "lab"], 0);
    logged_in(&["project", "list"], 2);
    let listed = dev.json(&["token", "list"]);
    assert!(!listed.to_string().contains(String::from_utf8_lossy(&secret).trim()), "a list shows no secret");
    dev.stop();
}

#[test]
fn a_project_keeps_its_quotas_and_is_deleted_only_when_asked_twice() {
    let dev = Dev::start(Backend::Embedded, 0);
    dev.ctl(&["project", "create", "small", "--queued-tasks", "10"]);
    dev.ctl(&["project", "quota", "set", "small", "--running-slots", "2", "--result-bytes", "1M"]);
    let quota = dev.json(&["project", "quota", "show", "small"])["quota"].clone();
    assert_eq!(quota, json!({"queued_tasks": 10, "running_slots": 2, "result_bytes": 1 << 20}));
    refused(&dev, &["project", "quota", "set", "small"], 2, "--queued-tasks");
    refused(&dev, &["project", "create", "small"], 1, "error[project.exists]");
    refused(&dev, &["project", "create", "Not A Slug"], 2, "project name");

    // Long enough to be unfinished however fast the machine; the forced delete ends it.
    let directory = fixture::squares(dev.directory(), 3, 50.0);
    let file = directory.join("job.toml");
    let text = fs::read_to_string(&file).unwrap().replace("project = 'demo'", "project = 'squares'");
    fs::write(&file, text).unwrap();
    let job = submit(&dev, &directory, "squares");
    refused(&dev, &["project", "delete", "squares"], 1, "error[project.busy]");
    refused(&dev, &["project", "delete", "squares", "--force"], 2, "--yes");
    dev.ctl(&["project", "delete", "squares", "--force", "--yes"]);
    refused(&dev, &["job", "show", &job], 3, "error[job.not_found]");
    refused(&dev, &["project", "show", "squares"], 3, "error[project.not_found]");
    dev.stop();
}

/// A job whose tasks do as their argument says.
fn mixed(into: &Path) -> PathBuf {
    let directory = into.join("mixed");
    fs::create_dir_all(&directory).unwrap();
    // Unlike any built before, so that it is built for this job and has a log.
    let dockerfile = format!("FROM codering/base\nLABEL test={}\n", into.display());
    fs::write(directory.join("Dockerfile"), dockerfile).unwrap();
    fs::write(
        directory.join("job.toml"),
        "project = 'mixed'\nname = 'mixed'\npush = '.'\narray = ['true', 'echo out; echo err >&2; exit 3']\n\
         command = 'sh -c {}'\n[limits]\nattempts = 1\nmemory = '64M'\ntimeout = '1m'\n",
    )
    .unwrap();
    directory
}

#[test]
fn a_failed_job_tells_its_story_and_only_what_failed_runs_again() {
    let dev = Dev::start(Backend::Embedded, 1);
    let job = submit(&dev, &mixed(dev.directory()), "mixed");
    let watched = dev.try_ctl(&["watch", &job], 4 * MINUTE);
    assert_eq!(watched.code, Some(1), "{}", watched.stderr);

    let prefix = &job[..job.len() - 1];
    let story = String::from_utf8(dev.ctl(&["job", "show", prefix])).unwrap();
    for expected in ["failed: 1 of 2 tasks failed", "exit code 3", "| err", "coderingctl job retry"] {
        assert!(story.contains(expected), "no `{expected}` in\n{story}");
    }
    let failed = dev.json(&["task", "list", &job, "--failed"]);
    assert_eq!(failed.as_array().unwrap().len(), 1);
    let task = format!("{job}/{}", failed[0]["task_id"].as_str().unwrap());
    let shown = dev.json(&["task", "show", &task]);
    assert_eq!((&shown["result"]["exit_code"], &shown["result"]["stdout"]), (&json!(3), &json!("out\n")));
    let logs = dev.try_ctl(&["task", "logs", &task], MINUTE);
    assert_eq!((logs.text().as_str(), logs.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(dev.ctl(&["task", "logs", &task, "--stream", "stderr", "--offset", "1"]), b"rr\n");
    assert!(!dev.ctl(&["job", "logs", &job, "--build"]).is_empty());

    assert_eq!(dev.json(&["job", "retry", &job])["retried"], 1);
    let watched = dev.try_ctl(&["watch", &job], 4 * MINUTE);
    assert_eq!(watched.code, Some(1), "it fails again: {}", watched.stderr);
    assert_eq!(dev.json(&["task", "show", &task])["attempt"], 2);
    refused(&dev, &["job", "cancel", &job], 1, "error[job.finished]");
    refused(&dev, &["task", "show", &format!("{job}/nowhere")], 3, "error[task.not_found]");
    refused(&dev, &["task", "show", &job], 2, "JOB/TASK");
    dev.stop();
}

/// Passes bytes on to `to`, and cuts each connection after a while, as a bad network does.
struct Cutter {
    address: String,
    cuts: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cutter {
    fn before(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (cuts, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (to, list) = (to.to_owned(), open.clone());
        thread::spawn(move || {
            for from in listener.incoming().flatten() {
                let Ok(there) = TcpStream::connect(&to) else { continue };
                list.lock().unwrap().extend([from.try_clone().unwrap(), there.try_clone().unwrap()]);
                for (mut read, mut write) in [
                    (from.try_clone().unwrap(), there.try_clone().unwrap()),
                    (there.try_clone().unwrap(), from.try_clone().unwrap()),
                ] {
                    thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(n @ 1..) = read.read(&mut buffer) {
                            if write.write_all(&buffer[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = write.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, cuts, open }
    }

    fn cut(&self) {
        let open: Vec<_> = self.open.lock().unwrap().drain(..).collect();
        if !open.is_empty() {
            self.cuts.fetch_add(1, Ordering::Relaxed);
        }
        for stream in open {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_followed_log_is_whole_though_its_connection_is_cut_again_and_again() {
    let dev = Dev::start(Backend::Embedded, 1);
    let directory = dev.directory().join("talker");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("Dockerfile"), "FROM codering/base\n").unwrap();
    fs::write(
        directory.join("job.toml"),
        "project = 'talker'\nname = 'talker'\npush = '.'\narray = ['1']\n\
         command = 'for n in $(seq 1 400); do echo line $n; sleep 0.02; done'\n",
    )
    .unwrap();
    let job = submit(&dev, &directory, "talker");
    let task = format!("{job}/1");

    let cutter = Cutter::before(dev.endpoints().grpc.trim_start_matches("https://"));
    let mut endpoints: Value =
        serde_json::from_slice(&fs::read(dev.directory().join("dev/endpoints.json")).unwrap()).unwrap();
    endpoints["grpc"] = format!("https://{}", cutter.address).into();
    let file = dev.directory().join("dev/through-the-cutter.json");
    fs::write(&file, endpoints.to_string()).unwrap();

    let out = fs::File::create(dev.directory().join("followed")).unwrap();
    let mut follower = dev
        .command(&["task", "logs", &task, "--follow", "--stream", "stdout"])
        .env("CODERING_ENDPOINTS", &file)
        .stdout(out)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let read = || fs::read_to_string(dev.directory().join("followed")).unwrap();
    for n in [20, 90, 160, 230, 300] {
        wait_for("more of the log has come", 2 * MINUTE, || (read().lines().count() > n).then_some(()));
        cutter.cut();
    }
    let status = wait_for("the follower ends with the task", MINUTE, || follower.try_wait().unwrap());
    assert!(status.success(), "{status}");
    assert_eq!(cutter.cuts.load(Ordering::Relaxed), 5, "every cut hit a connection");
    let expected: String = (1..=400).map(|n| format!("line {n}\n")).collect();
    assert_eq!(read(), expected);
    dev.stop();
}

#[test]
fn a_drained_worker_runs_nothing_more_until_it_is_resumed_and_doctor_sees_it() {
    let dev = Dev::start(Backend::Embedded, 1);
    let findings = dev.json(&["doctor"]);
    let verdict = |findings: &Value, check: &str| {
        let found = findings.as_array().unwrap().iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("no {check} in {findings}"))["verdict"].clone()
    };
    for check in ["endpoint", "ca", "tls", "token", "clock", "workers", "queue", "docker"] {
        assert_eq!(verdict(&findings, check), "good", "{check}: {findings}");
    }
    let worker = dev.json(&["worker", "list"])[0]["name"].as_str().unwrap().to_owned();

    let job = submit(&dev, &fixture::squares(dev.directory(), 4, 2.0), "squares");
    let running = wait_for("a container runs", 2 * MINUTE, || {
        let shown = dev.json(&["worker", "show", &worker]);
        let container = shown["running"][0]["container_id"].as_str()?.to_owned();
        (!container.is_empty()).then_some(shown)
    });
    assert_eq!(running["running"][0]["job_id"], job.as_str());
    dev.ctl_within(&["worker", "drain", &worker, "--wait", "--timeout", "1m"], 2 * MINUTE);
    let drained = dev.json(&["worker", "show", &worker]);
    assert_eq!((&drained["paused"], drained["running"].as_array().unwrap().len()), (&json!(true), 0));
    let ran = dev.try_ctl(&["doctor", "--output", "json"], MINUTE);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_eq!(verdict(&serde_json::from_slice(&ran.stdout).unwrap(), "workers"), "wrong");

    dev.ctl(&["worker", "resume", &worker]);
    dev.succeeded(&job, 4 * MINUTE);
    dev.stop();
}
