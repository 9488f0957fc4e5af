//! Processes: run one with a bound, wait for a condition with a bound, look at what runs.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Asks every 50 ms until there is an answer. Panics after `bound`, saying what was waited for.
pub fn wait_for<T>(what: &str, bound: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + bound;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {} s in vain: {what}", bound.as_secs());
        thread::sleep(Duration::from_millis(50));
    }
}

/// What a program that ended had to say.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: String,
}

impl Ran {
    /// The standard output, which is text.
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("the output is UTF-8")
    }
}

/// Runs a program to its end. Panics where it takes longer than `bound`, with what it wrote until then.
pub fn run(command: &mut Command, bound: Duration) -> Ran {
    // Files rather than pipes: nobody has to read while it runs.
    let mut out = tempfile::tempfile().expect("a temporary file");
    let mut err = tempfile::tempfile().expect("a temporary file");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a descriptor"))
        .stderr(err.try_clone().expect("a descriptor"))
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} did not start: {error}"));
    let end = Instant::now() + bound;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of this process") {
            break Some(status);
        }
        if Instant::now() > end {
            child.kill().expect("a child of this process");
            child.wait().expect("a child of this process");
            break None;
        }
        thread::sleep(Duration::from_millis(10));
    };
    let read = |file: &mut fs::File| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).expect("a regular file");
        file.read_to_end(&mut bytes).expect("a regular file");
        bytes
    };
    let (stdout, stderr) = (read(&mut out), String::from_utf8_lossy(&read(&mut err)).into_owned());
    let Some(status) = status else {
        panic!(
            "{command:?} took longer than {} s\n{}\n{stderr}",
            bound.as_secs(),
            String::from_utf8_lossy(&stdout)
        );
    };
    Ran { code: status.code(), stdout, stderr }
}

/// Runs a program that must succeed.
pub(crate) fn succeeded(command: &mut Command, bound: Duration) -> Ran {
    let ran = run(command, bound);
    assert_eq!(ran.code, Some(0), "{command:?}: {}{}", String::from_utf8_lossy(&ran.stdout), ran.stderr);
    ran
}

/// The ids of the processes that `parent` started and that run still.
pub fn children(parent: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|ids| ids.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// A process's program and arguments with spaces between; empty when it is gone or a zombie.
pub fn command_line(process: u32) -> String {
    let bytes = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// The running processes whose command line names `directory`, this one left out.
pub(crate) fn naming(directory: &Path) -> Vec<String> {
    let name = directory.to_str().expect("temporary directories have plain names");
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|id| *id != std::process::id())
        .map(|id: u32| (id, command_line(id)))
        .filter(|(_, line)| line.contains(name))
        .map(|(id, line)| format!("{id} {line}"))
        .collect()
}

/// No process runs in this directory of a test's, and nothing is mounted there.
pub(crate) fn assert_nothing_names(directory: &Path) {
    let processes = naming(directory);
    assert!(processes.is_empty(), "processes left: {processes:#?}");
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let name = directory.to_str().expect("temporary directories have plain names");
    let left: Vec<_> = mounts.lines().filter(|line| line.contains(name)).collect();
    assert!(left.is_empty(), "mounts left: {left:#?}");
}
