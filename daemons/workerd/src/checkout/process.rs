//! Starting the git process, with an environment of its own and nothing of ours.

use std::{os::unix::process::ExitStatusExt, path::Path, process::Stdio};

use codering_core::{Code, Error};
use codering_kit::tls::write_private;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use super::wire::{Answer, Problem, Request};
use crate::config::{Git, Proxy};

/// The hidden argument that makes this executable the git process.
pub(super) const ARGUMENT: &str = "git-process";
/// By which a process ends through a fault of its own: SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV.
const FAULTS: [i32; 5] = [4, 6, 7, 8, 11];
/// No answer is longer.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

fn internal(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Code::Internal, format!("{what}: {why}"))
}

/// For all of git's processes. A local repository may belong to anybody. For one, libgit2 packs in this very process
/// what any other host packs by itself: each object is compared with the one beside it, and not with ten, which takes
/// half of the time and makes the pack hardly larger.
const CONFIG: &str = "[safe]\n\tdirectory = *\n[pack]\n\twindowMemory = 1\n";

/// A home directory that holds which ssh hosts are known, and git's configuration.
pub(super) fn prepare_home(home: &Path, git: &Git) -> Result<(), Error> {
    let fail = |e: std::io::Error| internal("git's home directory", e).at(home.display().to_string());
    std::fs::create_dir_all(home.join(".ssh")).map_err(fail)?;
    std::fs::write(home.join(".gitconfig"), CONFIG).map_err(fail)?;
    let known = match &git.known_hosts {
        Some(file) => {
            std::fs::read(file).map_err(|e| internal("cannot be read", e).at(file.display().to_string()))?
        }
        None => std::fs::read("/etc/ssh/ssh_known_hosts").unwrap_or_default(),
    };
    // fault: whole, as a fetch may be reading it; and written anew at each start.
    write_private(&home.join(".ssh/known_hosts"), &known).map_err(fail)
}

pub(super) fn command(program: &Path, home: &Path, git: &Git, proxy: &Proxy) -> Command {
    let mut command = Command::new(program);
    command
        .arg(ARGUMENT)
        .env_clear()
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .envs(proxy.variables())
        .current_dir(home)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(ca) = &git.ca {
        command.env("SSL_CERT_FILE", ca);
    }
    command
}

/// Starts it and hands it the request.
pub(super) fn start(mut command: Command, request: &Request) -> Result<Child, Error> {
    let request = serde_json::to_vec(request).map_err(|e| internal("request", e))?;
    let mut child = command.spawn().map_err(|e| internal("git's process does not start", e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Small enough for the pipe, so this never waits for long.
        tokio::spawn(async move {
            let _ = stdin.write_all(&request).await;
        });
    }
    Ok(child)
}

/// One request, one answer.
pub(super) async fn ask(command: Command, request: &Request) -> Result<Answer, Error> {
    let mut child = start(command, request)?;
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let read = stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await;
        read.map_err(|e| internal("git's process", e))?;
    }
    let status = child.wait().await.map_err(|e| internal("git's process", e))?;
    serde_json::from_slice(&answer).or_else(|_| match status.signal() {
        // libgit2 itself fell over what the host said, and will again: that is why it has a process of its own.
        Some(signal) if FAULTS.contains(&signal) => {
            Ok(Answer::Failed { problem: Problem::Fatal, message: status.to_string() })
        }
        _ => Err(internal("git's process ended without an answer", status)),
    })
}

/// How an export ended: `None` when all is well.
pub(super) async fn end(mut child: Child) -> Result<Option<(Problem, String)>, Error> {
    let mut answer = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let read = stderr.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await;
        read.map_err(|e| internal("git's process", e))?;
    }
    let status = child.wait().await.map_err(|e| internal("git's process", e))?;
    if status.success() {
        return Ok(None);
    }
    match serde_json::from_slice(&answer) {
        Ok(Answer::Failed { problem, message }) => Ok(Some((problem, message))),
        _ => Err(internal("git's process ended without an answer", status)),
    }
}

/// What a directory of ours takes on disk.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    let Ok(about) = std::fs::symlink_metadata(path) else { return 0 };
    if !about.is_dir() {
        return about.len();
    }
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries.filter_map(|entry| Some(disk_bytes(&entry.ok()?.path()))).sum()
}
