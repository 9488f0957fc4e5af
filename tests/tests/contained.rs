//! Tasks that attack: each is refused or contained, its outcome says so, and the worker runs on. The attacks themselves are in
//! `tests/attacks/attack.py`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use codering_tests::{Backend, Dev, repository, run, wait_for};
use serde_json::Value;

/// All attacks of a job together, on a machine that others use too.
const JOB: Duration = Duration::from_secs(900);
/// What each daemon may at most have taken of memory, whatever a task writes.
const DAEMON_MEMORY_BOUND_KB: u64 = 128 << 10;
/// What the flood would write: more than it gets rid of within its time.
const FLOOD_BYTES: u64 = 10_000_000_000;
/// What a task keeps of its output here.
const OUTPUT_BYTES: usize = 64 << 10;
/// All that a task can write to: /tmp, /work, /dev/shm and three volumes of its image, in MB.
const WRITABLE_MB: u64 = 64 + 256 + 16 + 3 * 64;

/// Its user is root by another name, its volumes are named so that Docker would make room on the host's disk for them, and
/// its links point out of it.
const DOCKERFILE: &str = "FROM codering/base\n\
    RUN echo 'toor:x:0:0::/:/bin/sh' >> /etc/passwd && mkdir -m 777 /data /two /three\n\
    VOLUME [\"/data/\", \"//two\", \"/x/../three\"]\n\
    COPY . /app/\n\
    USER toor\n\
    WORKDIR /app\n";

struct Attack {
    id: &'static str,
    command: String,
    limits: &'static str,
    outcome: &'static str,
}

fn attack(id: &'static str, arguments: &str, limits: &'static str, outcome: &'static str) -> Attack {
    Attack { id, command: format!("python3 attack.py {arguments}"), limits, outcome }
}

/// A job with one task per attack, and after each one a task that does nothing bad.
fn job(dev: &Dev, name: &str, dockerfile: &str, attacks: &[Attack]) -> PathBuf {
    let directory = dev.directory().join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("Dockerfile"), dockerfile).unwrap();
    fs::copy(repository().join("tests/attacks/attack.py"), directory.join("attack.py")).unwrap();
    let mut text = format!(
        "project = 'demo'\nname = '{name}'\npush = '.'\n\
         [limits]\ntimeout = '5m'\nmemory = '96M'\npids = 32\nattempts = 1\noutput = {OUTPUT_BYTES}\n"
    );
    for attack in attacks {
        text += &format!(
            "[[task]]\nid = '{0}'\ncommand = {1:?}\nlimits = {{ {2} }}\n\
             [[task]]\nid = 'after-{0}'\ncommand = 'echo well'\n",
            attack.id, attack.command, attack.limits
        );
    }
    fs::write(directory.join("job.toml"), text).unwrap();
    directory
}

/// Runs them all; their results by task. Each has its outcome, and each task after one is well.
fn run_all(dev: &Dev, directory: &Path, attacks: &[Attack]) -> BTreeMap<String, Value> {
    let job = dev.submit(directory);
    let watched = dev.try_ctl(&["watch", &job], JOB);
    assert!(matches!(watched.code, Some(0 | 1)), "{watched:?}");
    let results: BTreeMap<_, _> =
        dev.results(&job).into_iter().map(|r| (r["task_id"].as_str().unwrap().to_owned(), r)).collect();
    let mut wrong = Vec::new();
    for attack in attacks {
        let result = &results[attack.id];
        if result["outcome"] != attack.outcome {
            wrong.push(format!("{} ought to be {}: {result}", attack.id, attack.outcome));
        }
        for line in stdout(result).lines().filter(|line| line.contains("ESCAPED")) {
            wrong.push(format!("{}: {line}", attack.id));
        }
        let after = &results[&format!("after-{}", attack.id)];
        if (after["outcome"].as_str(), stdout(after)) != (Some("succeeded"), "well\n") {
            wrong.push(format!("after {}: {after}", attack.id));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    results
}

fn stdout(result: &Value) -> &str {
    result["stdout"].as_str().unwrap()
}

/// The lines `refused WHAT CODE`: what, and the error's name.
fn refused(result: &Value) -> Vec<(&str, &str)> {
    let lines = stdout(result).lines().filter_map(|line| line.strip_prefix("refused "));
    lines.filter_map(|line| line.rsplit_once(' ')).collect()
}

/// Processes on this machine whose command line holds `marker`.
fn processes(marker: &str) -> Vec<String> {
    let ids = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
    let lines = ids.filter_map(|path| fs::read(path).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|l| l.contains(marker))
        .collect()
}

/// The most memory that a process has had, in kB.
fn peak_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The limits as the kernel has them, seen from inside: pids, memory.
fn limits_hold(dev: &Dev) {
    let command = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max 2>/dev/null || \
        cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory/memory.limit_in_bytes";
    let limits = Attack { id: "limits", command: command.into(), limits: "", outcome: "succeeded" };
    let directory = job(dev, "limits", DOCKERFILE, std::slice::from_ref(&limits));
    let results = run_all(dev, &directory, &[limits]);
    assert_eq!(
        stdout(&results["limits"]),
        format!("32\n{}\n", 96 << 20),
        "what is not bounded is not attacked"
    );
}

#[test]
fn invariant_6_what_takes_all_it_can_get_is_bounded_and_the_next_task_runs_well() {
    let dev = Dev::start(Backend::Embedded, 1);
    limits_hold(&dev);
    let marker = format!("31536{:05}", std::process::id());
    let attacks = [
        Attack {
            id: "flood",
            command: format!("exec head -c {FLOOD_BYTES} /dev/zero"),
            limits: "timeout = '60s'",
            outcome: "timed_out",
        },
        attack("fork", "fork", "timeout = '5s'", "timed_out"),
        attack("memory", "memory", "", "out_of_memory"),
        attack("files-in-memory", "tmpfs", "memory = '32M'", "out_of_memory"),
        attack("child-and-on", "child_out_of_memory 0", "", "succeeded"),
        attack("child-and-out", "child_out_of_memory 3", "", "out_of_memory"),
        attack("disk", "disk", "memory = '1G'", "succeeded"),
        attack("inodes", "inodes", "memory = '1G'", "succeeded"),
        attack("deaf", "deaf", "timeout = '2s'", "timed_out"),
        Attack { id: "late", command: "sleep 600".into(), limits: "timeout = '2s'", outcome: "timed_out" },
        attack("daemon", &format!("daemon {marker}"), "", "succeeded"),
        attack("files", "files", "", "succeeded"),
        attack("line", "line", "", "succeeded"),
        attack("signals", "signals", "", "succeeded"),
        attack("trace", "trace", "timeout = '3s'", "timed_out"),
    ];
    let directory = job(&dev, "greedy", DOCKERFILE, &attacks);
    let results = run_all(&dev, &directory, &attacks);

    for id in ["flood", "line"] {
        assert_eq!(results[id]["stdout_truncated"], true, "{id}");
        assert_eq!(stdout(&results[id]).len(), OUTPUT_BYTES, "{id}");
    }
    for daemon in ["codering-workerd", "codering-brokerd"] {
        let peak = peak_memory(dev.daemons(daemon)[0]);
        eprintln!("{daemon} took {peak} kB at most");
        assert!(peak < DAEMON_MEMORY_BOUND_KB, "{daemon} took {peak} kB");
    }
    let total = |id: &str| {
        let line = stdout(&results[id]).lines().find_map(|line| line.strip_prefix("total "));
        line.unwrap_or_else(|| panic!("{}", results[id])).parse::<u64>().unwrap()
    };
    assert!((WRITABLE_MB - 16..=WRITABLE_MB).contains(&total("disk")), "{}", stdout(&results["disk"]));
    assert!((1000..=WRITABLE_MB * 256).contains(&total("inodes")), "{}", stdout(&results["inodes"]));
    for (what, code) in refused(&results["inodes"]) {
        assert!(what.contains("ENOSPC"), "{what} {code}");
    }
    assert!(stdout(&results["files"]).starts_with("refused EMFILE "), "{}", stdout(&results["files"]));
    assert!(stdout(&results["child-and-on"]).contains("child ended by 9"), "{}", results["child-and-on"]);
    assert_eq!(results["child-and-out"]["exit_code"], 3);
    assert_eq!(stdout(&results["signals"]), "pid 1 is alive\n");
    assert_eq!(stdout(&results["daemon"]), "left a daemon\n");
    wait_for("the daemon went with its container", Duration::from_secs(30), || {
        processes(&format!("sleep {marker}")).is_empty().then_some(())
    });
    dev.stop();
}

#[test]
fn invariant_10_what_was_not_asked_for_is_refused_and_the_host_is_not_seen() {
    let dev = Dev::start(Backend::Embedded, 1);
    let secret = dev.directory().join("secret");
    fs::write(&secret, "of the host").unwrap();
    let secret = secret.to_str().unwrap();
    let port = dev.endpoints().rest.rsplit(':').next().unwrap().to_owned();
    let attacks = [
        attack("host", &format!("host {secret}"), "", "succeeded"),
        attack("hide", "hide marker", "", "succeeded"),
        attack("peek", "peek marker", "", "succeeded"),
        attack("network", &format!("network {port}"), "", "succeeded"),
        attack("kernel", "kernel", "", "succeeded"),
        attack("calls", "calls", "", "succeeded"),
        attack("bytes", "raw_bytes", "", "succeeded"),
    ];
    let directory = job(&dev, "curious", DOCKERFILE, &attacks);
    std::os::unix::fs::symlink(secret, directory.join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../../../../..", directory.join("up")).unwrap();
    let results = run_all(&dev, &directory, &attacks);
    for id in ["host", "peek", "network", "kernel", "calls"] {
        eprintln!("{id}: {}", stdout(&results[id]));
    }

    let host = stdout(&results["host"]);
    assert!(host.starts_with("uid 65534\n") && !host.contains("of the host"), "{host}");
    for (id, at_least) in [("host", 50), ("peek", 4), ("network", 13), ("kernel", 18), ("calls", 38)] {
        let count = refused(&results[id]).len();
        assert!(count >= at_least, "{id} tried {count} only: {}", stdout(&results[id]));
    }
    let network = stdout(&results["network"]);
    assert!(network.contains("interfaces ['lo']"), "{network}");
    for address in ["169.254.169.254:80", "172.17.0.1:PORT"] {
        assert!(network.contains(&format!("refused {address} ENETUNREACH")), "{network}");
    }
    let calls = stdout(&results["calls"]);
    for name in ["vsock", "io_uring_setup", "unshare user", "mount", "bpf", "keyctl", "setuid 0"] {
        let all = refused(&results["calls"]).into_iter().chain(refused(&results["network"]));
        let code = all.filter(|(what, _)| *what == name).map(|(_, code)| code).next();
        assert_eq!(code, Some("EPERM"), "{name}: {calls}");
    }
    for line in [
        "'CapPrm': '0000000000000000'",
        "'CapBnd': '0000000000000000'",
        "'NoNewPrivs': '1'",
        "'Seccomp': '2'",
    ] {
        assert!(calls.contains(line), "{line}: {calls}");
    }
    bytes_are_carried(&dev, &results["bytes"]);
    dev.stop();
}

/// The same bytes from coderingctl and from `demo.done` over REST.
fn bytes_are_carried(dev: &Dev, result: &Value) {
    const STDOUT: &str = "//4AdGV4dBtdMDtvd25lZAcbWzJKCg==";
    assert_eq!((&result["encoding"], &result["stdout"]), (&"base64".into(), &STDOUT.into()), "{result}");
    assert_eq!(result["stderr"], "gA==", "{result}");
    let endpoints = dev.endpoints();
    let client = "import requests, sys, json\n\
        address, token = sys.argv[1:]\n\
        for _ in range(100):\n\
        \x20   answer = requests.get(f'{address}/rabbit/demo.done/', headers={'Authorization': f'Bearer {token}'})\n\
        \x20   if answer.status_code != 200: sys.exit(f'not there: {answer.status_code}')\n\
        \x20   message = answer.json()['message']\n\
        \x20   if message['task_id'] == 'bytes': break\n\
        print(json.dumps(message))\n";
    let mut python = Command::new("python3");
    python.args(["-c", client, &endpoints.rest, &endpoints.token]);
    let ran = run(&mut python, Duration::from_secs(60));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let done: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((&done["encoding"], &done["stdout"]), (&"base64".into(), &STDOUT.into()), "{done}");
}

#[test]
fn invariant_7_an_image_that_reaches_for_the_host_is_the_users_failure_and_runs_nothing() {
    let dev = Dev::start(Backend::Embedded, 1);
    for (name, lines, why) in [
        ("descriptor", "WORKDIR /proc/self/fd/8\n", "working directory"),
        ("volume-in-proc", "VOLUME /proc/sys\n", "volume"),
        ("relative-volume", "VOLUME data\n", "volume"),
    ] {
        let attacks = [Attack { id: "t", command: "echo ESCAPED".into(), limits: "", outcome: "failed" }];
        let directory = job(&dev, name, &format!("FROM codering/base\n{lines}"), &attacks);
        let text = fs::read_to_string(directory.join("job.toml")).unwrap();
        let until = text.find("[[task]]\nid = 'after").unwrap();
        fs::write(directory.join("job.toml"), &text[..until]).unwrap();
        let job = dev.submit(&directory);
        let watched = dev.try_ctl(&["watch", &job], JOB);
        assert_eq!(watched.code, Some(1), "{watched:?}");
        let result = &dev.results(&job)[0];
        assert_eq!(
            (result["outcome"].as_str(), result["exit_code"].as_i64()),
            (Some("failed"), Some(126)),
            "{result}"
        );
        assert!(result["message"].as_str().unwrap().contains(why), "{result}");
    }
    dev.stop();
}
