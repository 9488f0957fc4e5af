//! coderingctl as a test uses it: against one broker, with a home directory of the test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Ran, binary, run};

/// The directory of one test, and the endpoints that its coderingctl talks to.
pub struct Ctl {
    directory: TempDir,
    endpoints: PathBuf,
}

impl Ctl {
    /// In a new directory, where `endpoints` will be.
    pub(crate) fn new(endpoints: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("codering-test-").tempdir().unwrap();
        let endpoints = directory.path().join(endpoints);
        Self { directory, endpoints }
    }

    /// A directory for the test's files, removed with everything else.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The file with addresses and the administrator's token.
    pub fn endpoints_file(&self) -> &Path {
        &self.endpoints
    }

    /// A coderingctl that talks to the broker and keeps its history here.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("coderingctl"));
        command
            .args(args)
            .current_dir(self.directory())
            .env("HOME", self.directory())
            .env("CODERING_ENDPOINTS", &self.endpoints);
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
            "coderingctl {args:?}\nstdout: {}\nstderr: {}\nthe daemons' logs end with\n{}",
            String::from_utf8_lossy(&ran.stdout),
            ran.stderr,
            self.log()
        );
        ran.stdout
    }

    /// The same as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        // Before the verb: what is behind a `--` is a task's.
        let args = [&["--output", "json"], args].concat();
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
        lines(self.ctl(&["results", job, "--output", "jsonl"]))
    }

    /// How many tasks of a job have succeeded by now.
    pub fn succeeded_tasks(&self, job: &str) -> u64 {
        let jobs = self.json(&["job", "list"]);
        let found = jobs.as_array().unwrap().iter().find(|listed| listed["job_id"] == job);
        found.unwrap_or_else(|| panic!("{job} is not in {jobs}"))["tasks"]["succeeded"].as_u64().unwrap_or(0)
    }

    /// How many messages wait in a queue.
    pub fn waiting(&self, queue: &str) -> u64 {
        let queues = self.json(&["queue", "list"]);
        let found = queues.as_array().unwrap().iter().find(|listed| listed["name"] == queue);
        found.unwrap_or_else(|| panic!("{queue} is not in {queues}"))["ready"].as_u64().unwrap_or(0)
    }

    /// Takes all that waits in a queue.
    pub fn take_all(&self, queue: &str) -> Vec<Value> {
        let mut left = self.waiting(queue);
        let mut taken = Vec::new();
        // In pieces, so that each has its bound however many there are.
        while left > 0 {
            let count = left.min(1000);
            taken.extend(lines(self.ctl(&["queue", "subscribe", queue, "--count", &count.to_string()])));
            left -= count;
        }
        taken
    }

    /// The last lines that the daemons wrote: the end of each `*.log` in the directory.
    pub fn log(&self) -> String {
        let mut logs: Vec<_> = fs::read_dir(self.directory())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "log"))
            .collect();
        logs.sort();
        logs.iter().map(|path| end_of(path)).collect::<Vec<_>>().join("\n")
    }
}

fn lines(out: Vec<u8>) -> Vec<Value> {
    let out = String::from_utf8(out).unwrap();
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn end_of(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let name = log.file_name().unwrap_or_default().display();
    format!("== {name}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"))
}
