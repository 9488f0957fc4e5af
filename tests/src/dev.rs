//! A `coderingctl dev` of the test's own.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Ran, Vhost, binary,
    process::{children, command_line, naming},
    run,
    services::{containers_of, require_base_image},
    wait_for,
};

/// Which queue stands behind the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// SQLite in the broker's directory.
    Embedded,
    /// The machine's RabbitMQ, in a virtual host of the test's own.
    RabbitMq,
}

/// What `endpoints.json` says.
#[derive(Debug, Deserialize)]
pub struct Endpoints {
    /// The REST API.
    pub rest: String,
    /// The gRPC services.
    pub grpc: String,
    /// The administrator's token.
    pub token: String,
    /// The CA's certificate, a path.
    pub ca: String,
}

/// A running `coderingctl dev`. Stopped when it is dropped; [`Dev::stop`] also checks that nothing is left.
pub struct Dev {
    child: Child,
    directory: TempDir,
    endpoints: Endpoints,
    vhost: Option<Vhost>,
    /// The names of its workers, by which their containers are found.
    workers: Vec<String>,
}

/// Docker starts slowly while other tests build and run too.
const START: Duration = Duration::from_secs(60);
/// What a drain may take: the daemons' own deadline and the removal of containers.
const STOP: Duration = Duration::from_secs(60);

impl Dev {
    /// Starts one and waits until it has written its endpoints.
    pub fn start(backend: Backend, workers: u32) -> Self {
        require_base_image();
        let vhost = (backend == Backend::RabbitMq).then(Vhost::create);
        let directory = tempfile::Builder::new().prefix("codering-test-").tempdir().unwrap();
        let log = fs::File::create(directory.path().join("dev.log")).unwrap();
        let mut command = Command::new(binary("coderingctl"));
        command
            .args(["dev", "--verbose", "--workers", &workers.to_string(), "--data-dir"])
            .arg(directory.path().join("dev"))
            .env("HOME", directory.path())
            .env_remove("CODERING_ENDPOINTS")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(vhost) = &vhost {
            command.args(["--rabbitmq", &vhost.url()]);
        }
        let mut child = command.spawn().unwrap();
        let written = directory.path().join("dev/endpoints.json");
        let endpoints = wait_for("coderingctl dev has written endpoints.json", START, || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("coderingctl dev ended at once, {status}\n{}", log_of(directory.path()));
            }
            serde_json::from_slice(&fs::read(&written).ok()?).ok()
        });
        let mut dev = Self { child, directory, endpoints, vhost, workers: Vec::new() };
        let listed = dev.json(&["worker", "list"]);
        let name = |worker: &Value| worker["name"].as_str().unwrap().to_owned();
        dev.workers = listed.as_array().unwrap().iter().map(name).collect();
        assert_eq!(dev.workers.len(), workers as usize, "{listed}");
        dev
    }

    /// Where it listens.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The address of the RabbitMQ behind it.
    pub fn rabbitmq(&self) -> String {
        self.vhost.as_ref().expect("started on RabbitMQ").url()
    }

    /// A directory for the test's files, removed with everything else.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A coderingctl that talks to it and keeps its history here.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("coderingctl"));
        command
            .args(args)
            .current_dir(self.directory())
            .env("HOME", self.directory())
            .env("CODERING_ENDPOINTS", self.directory().join("dev/endpoints.json"));
        command
    }

    /// Runs coderingctl to its end.
    pub fn try_ctl(&self, args: &[&str], bound: Duration) -> Ran {
        run(&mut self.command(args), bound)
    }

    /// The standard output of a coderingctl that must succeed within a minute.
    pub fn ctl(&self, args: &[&str]) -> Vec<u8> {
        self.ctl_within(args, Duration::from_secs(60))
    }

    /// The same with a bound of its own.
    pub fn ctl_within(&self, args: &[&str], bound: Duration) -> Vec<u8> {
        let ran = self.try_ctl(args, bound);
        assert_eq!(
            ran.code,
            Some(0),
            "coderingctl {args:?}\nstdout: {}\nstderr: {}\nthe daemons' log ends with\n{}",
            String::from_utf8_lossy(&ran.stdout),
            ran.stderr,
            self.log()
        );
        ran.stdout
    }

    /// The same as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.extend(["--output", "json"]);
        let out = self.ctl(&args);
        serde_json::from_slice(&out).unwrap_or_else(|error| {
            panic!("coderingctl {args:?}: {error} in {}", String::from_utf8_lossy(&out))
        })
    }

    /// Pushes a directory with its job file; the id of the job.
    pub fn submit(&self, directory: &Path) -> String {
        let path = directory.to_str().unwrap();
        let job = self.json(&["submit", "--push", path]);
        job["job_id"].as_str().unwrap_or_else(|| panic!("no job_id in {job}")).to_owned()
    }

    /// Waits until a job has succeeded.
    pub fn succeeded(&self, job: &str, bound: Duration) {
        self.ctl_within(&["watch", job], bound);
    }

    /// A job's answer.
    pub fn answer(&self, job: &str) -> Vec<u8> {
        self.ctl(&["results", job, "--answer"])
    }

    /// A job's recorded results, in the order of its tasks.
    pub fn results(&self, job: &str) -> Vec<Value> {
        let out = String::from_utf8(self.ctl(&["results", job, "--output", "jsonl"])).unwrap();
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How many tasks of a job have succeeded by now.
    pub fn succeeded_tasks(&self, job: &str) -> u64 {
        let jobs = self.json(&["job", "list"]);
        let found = jobs.as_array().unwrap().iter().find(|listed| listed["job_id"] == job);
        found.unwrap_or_else(|| panic!("{job} is not in {jobs}"))["tasks"]["succeeded"].as_u64().unwrap_or(0)
    }

    /// The running daemons of this name.
    pub fn daemons(&self, name: &str) -> Vec<u32> {
        let of =
            |id: &u32| command_line(*id).split(' ').next().is_some_and(|program| program.ends_with(name));
        children(self.child.id()).into_iter().filter(of).collect()
    }

    /// The last lines that it and its daemons wrote.
    pub fn log(&self) -> String {
        log_of(self.directory())
    }

    /// Ctrl-C, and then nothing may be left: no process, no container, no mount.
    pub fn stop(mut self) {
        self.interrupt();
        let status = self.child.wait().unwrap();
        assert!(
            matches!(status.code(), Some(0 | 130)),
            "coderingctl dev ended with {status}\n{}",
            self.log()
        );
        let processes = naming(self.directory());
        assert!(processes.is_empty(), "processes left: {processes:#?}");
        let containers = self.containers();
        assert!(containers.is_empty(), "containers left: {containers:?}");
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let name = self.directory().to_str().unwrap();
        let left: Vec<_> = mounts.lines().filter(|line| line.contains(name)).collect();
        assert!(left.is_empty(), "mounts left: {left:#?}");
    }

    /// The containers that its workers started and that are there still.
    pub fn containers(&self) -> Vec<String> {
        self.workers.iter().flat_map(|name| containers_of(&format!("codering.worker={name}"))).collect()
    }

    fn interrupt(&mut self) {
        let id = Pid::from_child(&self.child);
        kill_process(id, Signal::INT).unwrap();
        let child = &mut self.child;
        wait_for("coderingctl dev ended after Ctrl-C", STOP, || child.try_wait().unwrap());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        // A test failed: stop all the same, without a second panic, so that the next test has the machine.
        eprintln!("the daemons' log ends with\n{}", self.log());
        let daemons = children(self.child.id());
        let id = Pid::from_child(&self.child);
        let _ = kill_process(id, Signal::INT);
        for _ in 0..STOP.as_millis() / 50 {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for id in daemons.into_iter().filter_map(|id| Pid::from_raw(id.try_into().ok()?)) {
            let _ = kill_process(id, Signal::KILL);
        }
    }
}

fn log_of(directory: &Path) -> String {
    let text = fs::read(directory.join("dev.log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
