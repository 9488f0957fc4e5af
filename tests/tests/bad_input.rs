//! What is wrong comes back as a clear error that names the place and the cure, and nothing is lost or recorded of it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use codering_tests::{Backend, Fleet, Ran, Setup, repository, rest, run, wait_for};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

fn brokers_alone() -> Fleet {
    Fleet::start(Setup::simulated(Backend::Embedded, 0, 1))
}

/// Bytes that would steer a terminal, or reorder what it shows.
fn steers(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn assert_harmless(ran: &Ran, of: &str) {
    let all = format!("{}{}", ran.text(), ran.stderr);
    assert!(!all.contains(steers), "{of}: {all:?}");
}

fn nothing_is_recorded(fleet: &Fleet) {
    assert_eq!(fleet.json(&["job", "list"]), json!([]));
    assert_eq!(fleet.waiting("demo.todo"), 0);
}

#[test]
fn a_job_file_that_is_wrong_is_shown_at_its_line_with_the_cure_and_nothing_is_recorded() {
    let fleet = brokers_alone();
    let head = "git = 'https://h/p.git'\ncommand = 'x {}'\n";
    let with = |more: &str| format!("{head}{more}");
    let deep = format!("{head}env = {}", "[".repeat(100_000));
    // What the file says, the code, the line, and what the error tells.
    let cases: &[(String, &str, &str, &str)] = &[
        (with("comand = 'y'\n"), "job.unknown_field", ":3:", "did you mean `command`?"),
        (with("[limits]\ntimout = 3\n"), "job.unknown_field", ":4:", "did you mean `timeout`?"),
        (with("[[task]]\nid = 'a'\n[[task]]\nidd = 'b'\n"), "job.unknown_field", ":6:", "did you mean `id`?"),
        (with("[limits]\ntimeout = [1]\n"), "job.invalid", ":4:", "duration"),
        (with("[limits]\nmemory = -5\n"), "job.invalid", ":4:", "size"),
        (with("[limits]\nmemory = '1k'\n"), "job.invalid", ":4:", "from 6M to 16T"),
        (with("priority = 'high'\n"), "job.invalid", ":3:", "expected i32"),
        (with("array = 7\n"), "job.invalid", ":3:", "a range such as \"1-100\""),
        (with("array = '1-1000001'\n"), "job.too_many_tasks", ":3:", "split it into several jobs"),
        (with("array = []\n"), "job.empty", "job.toml", "name tasks, or an array"),
        (with("task = []\n"), "job.empty", "job.toml", "name tasks, or an array"),
        (with("[[task]]\nid = 'a'\n[[task]]\nid = 'a'\n"), "job.duplicate_task", ":6:", "an `id` of its own"),
        (with("[[task]]\nid = '../x'\n"), "invalid.input", ":4:", "without spaces, slashes"),
        (with("ref = '../../x'\n"), "job.invalid", ":3:", "a branch, a tag or a commit"),
        (with("dockerfile = '../Dockerfile'\n"), "job.invalid", ":3:", "inside the repository"),
        (with("name = \"a\\u001b[2J\"\n"), "job.invalid", ":3:", "direction mark"),
        (with("[labels]\n'a b' = 'x'\n"), "job.invalid", ":4:", "a label's name"),
        (
            with("[reduce]\ncommand = 'r'\noutput = '../../.ssh/authorized_keys'\n"),
            "job.invalid",
            ":5:",
            "plain file name",
        ),
        (with("[reduce]\noutput = 'x'\n"), "job.invalid", ":3:", "needs a command"),
        ("command = 'x'\n".into(), "job.invalid", "git", "git = \"https://host/repository.git\""),
        ("git = 'https://h/p.git'\n".into(), "job.invalid", "command", "neither the task nor its job"),
        ("git = 'ext::sh -c id'\ncommand = 'x'\n".into(), "git.url_refused", ":1:", "https://"),
        (with("name = \n"), "job.invalid", ":3:", ""),
        (deep, "job.invalid", ":3:", "recurse"),
    ];
    let file = fleet.directory().join("job.toml");
    for (text, code, place, told) in cases {
        fs::write(&file, text).unwrap();
        let ran = fleet.try_ctl(&["submit", file.to_str().unwrap()], MINUTE);
        let shown = &text[..text.len().min(300)];
        assert_eq!(ran.code, Some(2), "{shown}\n{}", ran.stderr);
        let first = ran.stderr.lines().next().unwrap();
        assert!(first.starts_with(&format!("error[{code}]: ")), "{shown}\n{}", ran.stderr);
        assert!(first.contains("job.toml") && first.contains(place), "{shown}\n{}", ran.stderr);
        assert!(ran.stderr.contains(told), "no `{told}`: {shown}\n{}", ran.stderr);
        assert!(ran.stderr.ends_with("nothing was submitted\n"), "{}", ran.stderr);
        assert!(ran.stderr.len() < 4000, "{} bytes", ran.stderr.len());
        assert_harmless(&ran, shown);
    }
    nothing_is_recorded(&fleet);
    fleet.stop();
}

#[test]
fn a_million_and_one_tasks_are_refused_soon_however_they_come() {
    let mut setup = Setup::simulated(Backend::Embedded, 0, 1);
    setup.broker += "limits.max_tasks_per_job = 10\n";
    let fleet = Fleet::start(setup);
    let git = ["--git", "https://h/p.git"];
    let list = fleet.directory().join("tasks.jsonl");
    fs::write(&list, "7\n".repeat(1_000_001)).unwrap();
    let soon = |args: &[&str], places: &[&str]| {
        let began = Instant::now();
        let ran = fleet.try_ctl(&[&["submit"], &git[..], args, &["--", "x"]].concat(), MINUTE);
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert!(places.iter().all(|place| ran.stderr.contains(place)), "{places:?}: {}", ran.stderr);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    };
    soon(&["--array", "1-1000001"], &["at most 1000000 tasks"]);
    let list = list.to_str().unwrap();
    soon(&["--tasks", list], &["error[job.too_many_tasks]", "tasks.jsonl:1000001", "split it"]);
    // A broker may have a bound of its own.
    soon(&["--array", "1-11"], &["error[job.too_many_tasks]", "at most 10 tasks", "split it"]);
    let body = format!(
        r#"{{"project": "demo", "git": "https://h/p", "command": "x", "task": [{}{{}}]}}"#,
        "{},".repeat(1_000_000)
    );
    let began = Instant::now();
    let (status, answer) = rest::call(&fleet, "POST", "/api/v1/jobs", Some(body.as_bytes()));
    assert_eq!(status, 400, "{answer}");
    assert!(answer.contains("job.too_many_tasks") && answer.contains("split it"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    nothing_is_recorded(&fleet);
    fleet.stop();
}

/// The most memory that a process ever had, in bytes.
fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn raw(task: Value) -> Vec<u8> {
    let mut message = json!({"project_id": "demo", "git_url": "https://h/p.git", "command": "echo well"});
    message.as_object_mut().unwrap().extend(task.as_object().unwrap().clone());
    message.to_string().into_bytes()
}

/// Messages of which no task can be made, and what the reason says.
fn unusable() -> Vec<(Vec<u8>, &'static str)> {
    let deep = [
        br#"{"project_id": "demo", "x": "#.to_vec(),
        b"[".repeat(100_000),
        b"]".repeat(100_000),
        b"}".to_vec(),
    ];
    vec![
        (raw(json!({"task_id": 7})), "expected a string"),
        (raw(json!({"task_id": "t", "timeout_seconds": "soon"})), "expected f64 at line 1"),
        (raw(json!({"task_id": "t", "timeout_seconds": -1})), "timeout_seconds"),
        (raw(json!({"task_id": "t", "memory_bytes": -1})), "expected u64 at line 1"),
        (raw(json!({"task_id": "t", "command": {}})), "enum Command"),
        (raw(json!({"task_id": "t", "env": {"A=B": "x"}})), "env."),
        (raw(json!({"task_id": "t", "env": {"A": "x\u{0}y"}})), "env.A"),
        (raw(json!({"task_id": "a/b"})), "is not a task id"),
        (raw(json!({"task_id": ".."})), "is not a task id"),
        (raw(json!({"task_id": "a\u{0}b"})), "is not a task id"),
        (raw(json!({"task_id": "x".repeat(10_000)})), "is not a task id"),
        (raw(json!({"task_id": "\u{202e}abc"})), "is not a task id"),
        (raw(json!({"task_id": "\u{1b}[2J\u{9b}31m"})), "is not a task id"),
        (raw(json!({"task_id": "~reduce-1"})), "does not start with `~`"),
        (raw(json!({"task_id": "t", "project_id": "other"})), "on the queue of demo"),
        (raw(json!({"task_id": "t", "project_id": "../demo"})), "is not a project name"),
        (raw(json!({"task_id": "t", "job_id": "j-0000000000"})), "there is no task"),
        (raw(json!({"task_id": "t", "job_id": "j-0/../00000"})), "is not a job id"),
        (raw(json!({"task_id": "t", "git_url": "ext::sh -c id"})), "is not a git address"),
        (raw(json!({"task_id": "t", "dockerfile": "../../Dockerfile"})), "relative path"),
        (deep.concat(), "recursion limit"),
        (b"[]".to_vec(), "invalid"),
        (b"\"x\"".to_vec(), "invalid"),
    ]
}

/// What is put on the queue by a client of a few lines comes back among the dead letters, and what is behind it runs.
fn unusable_messages_are_dead(fleet: &Fleet, put: &[(Vec<u8>, &str)], patience: Duration) {
    // One look's answer: where it takes large letters for a moment, they need one to return.
    let letters = wait_for("the dead letters are there", patience, || {
        let letters = fleet.json(&["queue", "dead", "list", "demo", "--limit", "100"]);
        (letters.as_array().unwrap().len() == put.len()).then_some(letters)
    });
    let reasons: Vec<_> = letters
        .as_array()
        .unwrap()
        .iter()
        .map(|letter| letter["reason"].as_str().unwrap().to_owned())
        .collect();
    for (message, reason) in put {
        let message = String::from_utf8_lossy(&message[..message.len().min(200)]);
        assert!(
            reasons.iter().any(|said| said.contains(reason)),
            "no `{reason}` for {message}: {reasons:#?}"
        );
    }
    assert!(reasons.iter().all(|reason| reason.len() < 2000), "{reasons:#?}");
    // A table for a person steers no terminal.
    assert_harmless(&fleet.try_ctl(&["queue", "dead", "list", "demo"], MINUTE), "queue dead list");
    let done = wait_for("the tasks around them are done", patience, || {
        let done = fleet.json(&["queue", "list"]);
        let done = done.as_array().unwrap().iter().find(|queue| queue["name"] == "demo.done")?.clone();
        (done["ready"] == 2).then_some(done)
    });
    assert_eq!(done["ready"], 2);
    for result in fleet.take_all("demo.done") {
        assert_eq!(
            (&result["outcome"], &result["stdout"]),
            (&json!("succeeded"), &json!("well\n")),
            "{result}"
        );
    }
    assert_eq!(fleet.waiting("demo.todo"), 0, "nothing goes round");
}

#[test]
fn what_cannot_be_a_task_goes_to_the_dead_letters_with_its_reason_on_the_embedded_queue() {
    let fleet = Fleet::start(Setup::simulated(Backend::Embedded, 1, 2));
    let put = unusable();
    let envelope = |message: &[u8]| [br#"{"message": "#, message, b"}"].concat();
    let good = [raw(json!({"task_id": "before"})), raw(json!({"task_id": "behind"}))];
    let all = [&good[..1], &put.iter().map(|(message, _)| message.clone()).collect::<Vec<_>>(), &good[1..]]
        .concat();
    for message in &all {
        let (status, answer) = rest::call(&fleet, "POST", "/rabbit/demo.todo/", Some(&envelope(message)));
        assert_eq!(status, 201, "{answer}");
    }
    unusable_messages_are_dead(&fleet, &put, MINUTE);
    // Over this interface, what is no JSON or is too large is refused at once.
    for (body, status, code) in [
        (b"".to_vec(), 400, "invalid.json"),
        (b"{\"message\": nonsense}".to_vec(), 400, "invalid.json"),
        (envelope(&b"x".repeat(100)), 400, "invalid.json"),
        (envelope(format!("\"{}\"", "x".repeat(100 << 20)).as_bytes()), 413, "invalid.too_large"),
        (envelope(format!("\"{}\"", "x".repeat(8 << 20)).as_bytes()), 413, "invalid.too_large"),
    ] {
        let (answered, answer) = rest::call(&fleet, "POST", "/rabbit/demo.todo/", Some(&body));
        assert_eq!(answered, status, "{answer}");
        assert!(answer.contains(code), "{answer}");
    }
    let large = fleet.directory().join("large.json");
    fs::write(&large, format!("\"{}\"", "x".repeat(100 << 20))).unwrap();
    for (file, code) in [(large.as_path(), "invalid.too_large"), (Path::new("/bin/true"), "invalid.json")] {
        let mut command = fleet.command(&["queue", "put", "demo.todo", "--file", file.to_str().unwrap()]);
        let ran = run(&mut command, MINUTE);
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert!(ran.stderr.contains(code), "{}", ran.stderr);
    }
    assert!(peak(fleet.broker_id()) < 500 << 20, "{} MB", peak(fleet.broker_id()) >> 20);
    fleet.stop();
}

#[test]
fn what_cannot_be_a_task_goes_to_the_dead_letters_with_its_reason_on_rabbitmq_and_100_mb_take_bounded_memory()
{
    let fleet = Fleet::start(Setup::simulated(Backend::RabbitMq, 1, 2));
    let mut put = unusable();
    put.push((Vec::new(), "invalid.json"));
    put.push((b"not JSON".to_vec(), "invalid.json"));
    put.push((b"\xff\xfe\x00".to_vec(), "invalid.json"));
    for _ in 0..3 {
        put.push((vec![b'x'; 100 << 20], "this one 104857600"));
    }
    let files: Vec<PathBuf> = [raw(json!({"task_id": "before"}))]
        .into_iter()
        .chain(put.iter().map(|(message, _)| message.clone()))
        .chain([raw(json!({"task_id": "behind"}))])
        .enumerate()
        .map(|(number, message)| {
            let file = fleet.directory().join(format!("message-{number}"));
            fs::File::create(&file).unwrap().write_all(&message).unwrap();
            file
        })
        .collect();
    let mut client = Command::new("/usr/bin/python3");
    client.arg(repository().join("tests/clients/put_raw.py"));
    client.arg(fleet.rabbitmq().unwrap()).arg("demo.todo").args(&files);
    let ran = run(&mut client, 3 * MINUTE);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    unusable_messages_are_dead(&fleet, &put, 3 * MINUTE);
    eprintln!("brokerd's peak: {} MB", peak(fleet.broker_id()) >> 20);
    // One such message at a time: as it came in, as it grew, and as it goes out.
    assert!(peak(fleet.broker_id()) < 900 << 20, "{} MB", peak(fleet.broker_id()) >> 20);
    let (status, answer) = rest::call(&fleet, "GET", "/healthz", None);
    assert_eq!(status, 200, "{answer}");
    fleet.stop();
}

#[test]
fn raw_messages_wait_on_their_queue_while_their_project_is_at_its_quota_and_none_is_lost() {
    for backend in [Backend::Embedded, Backend::RabbitMq] {
        let fleet = Fleet::start(Setup::simulated(backend, 1, 8));
        fleet.ctl(&["project", "quota", "set", "demo", "--queued-tasks", "2"]);
        let lines: String = (0..12)
            .map(|n| {
                let task = json!({"task_id": format!("r{n}"), "command": "sleep 300ms; echo well"});
                format!("{}\n", String::from_utf8(raw(task)).unwrap())
            })
            .collect();
        let file = fleet.directory().join("messages.jsonl");
        fs::write(&file, lines).unwrap();
        fleet.ctl(&["queue", "put", "demo.todo", "--file", file.to_str().unwrap()]);
        let mut most = 0;
        wait_for("all are done", MINUTE, || {
            let project = fleet.json(&["project", "show", "demo"]);
            let held = |key: &str| project[key].as_u64().unwrap_or(0);
            most = most.max(held("queued_tasks") + held("running_tasks"));
            (fleet.waiting("demo.done") == 12).then_some(())
        });
        assert!((1..=2).contains(&most), "{most} tasks were held at once, and the quota is 2");
        let mut ids: Vec<_> = fleet
            .take_all("demo.done")
            .iter()
            .map(|done| done["task_id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 12, "{ids:?}");
        fleet.stop();
    }
}

#[test]
fn a_projects_own_tasks_run_though_raw_messages_before_them_wait_for_its_quota() {
    let mut fleet = Fleet::prepare(Setup::simulated(Backend::Embedded, 1, 2));
    fleet.start_broker();
    fleet.ctl(&["project", "create", "demo", "--queued-tasks", "3"]);
    for n in 0..5 {
        let message = String::from_utf8(raw(json!({"task_id": format!("r{n}")}))).unwrap();
        fleet.ctl(&["queue", "put", "demo.todo", &message]);
    }
    // Behind the raw messages, and all that the quota allows.
    let submit = ["submit", "--quiet", "--git", "https://h/p.git", "--array", "1-3", "--", "echo", "well"];
    let job = String::from_utf8(fleet.ctl(&submit)).unwrap();
    let job = job.trim();
    fleet.start_worker(0);
    fleet.succeeded(job, MINUTE);
    wait_for("the raw ones follow", MINUTE, || (fleet.waiting("demo.done") == 8).then_some(()));
    fleet.stop();
}

#[test]
fn a_job_whose_labels_no_worker_has_says_so_and_stays_out_of_the_others_way() {
    let mut setup = Setup::simulated(Backend::Embedded, 2, 2);
    setup.worker = "labels.zone = 'a'\n".into();
    let fleet = Fleet::start(setup);
    let submit = |label: &str, array: &str| {
        let git = ["submit", "--quiet", "--git", "https://h/p.git", "--label", label, "--array", array];
        let job = fleet.ctl(&[&git[..], &["--", "echo", "well"]].concat());
        String::from_utf8(job).unwrap().trim().to_owned()
    };
    let waits = submit("gpu=yes", "1-500");
    let shown = wait_for("it says why", MINUTE, || {
        let shown = fleet.json(&["job", "show", &waits]);
        shown.to_string().contains("gpu=yes: none is connected").then_some(shown)
    });
    assert!(shown.to_string().contains("waits for a worker with the labels"), "{shown}");
    let text = fleet.try_ctl(&["job", "show", &waits], MINUTE);
    assert!(text.text().contains("waits for a worker with the labels gpu=yes"), "{}", text.text());
    let runs = submit("zone=a", "1-50");
    fleet.succeeded(&runs, MINUTE);
    assert_eq!(fleet.waiting("demo.todo"), 0, "what cannot run is not on the queue");
    fleet.ctl(&["job", "cancel", &waits]);
    fleet.stop();
}
