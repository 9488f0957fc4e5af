//! The git process: reads one request, answers it, ends. The only place that calls libgit2.

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use git2::{ErrorClass, ErrorCode, ObjectType, Oid, Repository};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{
    export, fetch,
    process::ARGUMENT,
    wire::{Answer, Look, Problem, Request},
};

/// What this process may take of memory beyond the packs that it maps: a pack of a few bytes can stand for many.
const MEMORY_BYTES: u64 = 2 << 30;

/// A failure with its kind.
pub(super) type Failure = (Problem, String);

/// Runs the git process, if that is what this process was started for.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let asked = arguments.nth(1).is_some_and(|first| first == ARGUMENT);
    asked.then(run)
}

fn run() -> ExitCode {
    let bound = Rlimit { current: Some(MEMORY_BYTES), maximum: Some(MEMORY_BYTES) };
    if setrlimit(Resource::Data, bound).is_err() {
        return ExitCode::from(2);
    }
    let mut text = String::new();
    let request = match std::io::stdin().take(1 << 20).read_to_string(&mut text) {
        Ok(_) => serde_json::from_str(&text),
        Err(_) => return ExitCode::from(2),
    };
    let Ok(request) = request else { return ExitCode::from(2) };
    if let Request::Export { mirror, tree, dockerfile, max_bytes } = &request {
        let mut out = std::io::BufWriter::with_capacity(256 << 10, std::io::stdout().lock());
        let done = export::export(mirror, tree, dockerfile, *max_bytes, &mut out)
            .and_then(|()| out.flush().map_err(|e| (Problem::Unread, e.to_string())));
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err((problem, message)) => {
                say(std::io::stderr(), &Answer::Failed { problem, message });
                ExitCode::FAILURE
            }
        };
    }
    let answer = match request {
        Request::Look { mirror, reference, dockerfile } => Repository::open_bare(mirror)
            .and_then(|mirror| look(&mirror, &reference, &dockerfile))
            .map(|look| Answer::Looked { look })
            .map_err(|e| damaged(&e)),
        request => fetch::fetch(&request).map(|()| Answer::Fetched),
    };
    let answer = answer.unwrap_or_else(|(problem, message)| Answer::Failed { problem, message });
    say(std::io::stdout(), &answer);
    ExitCode::SUCCESS
}

fn say(mut to: impl Write, answer: &Answer) {
    if let Ok(text) = serde_json::to_vec(answer) {
        let _ = to.write_all(&text).and_then(|()| to.flush());
    }
}

/// The branch or tag that HEAD of the other side stood for.
pub(super) const HEAD: &str = "refs/codering/HEAD";

/// An error is a mirror that is not in order: what the repository itself does not have is `None`.
fn look(mirror: &Repository, reference: &str, dockerfile: &str) -> Result<Option<Look>, git2::Error> {
    let Some(commit) = commit(mirror, reference)? else {
        intact(mirror)?;
        return Ok(None);
    };
    let tree = commit.tree()?;
    let entry = there(tree.get_path(std::path::Path::new(dockerfile)))?;
    let is_file = |entry: git2::TreeEntry<'_>| {
        entry.kind() == Some(ObjectType::Blob) && entry.filemode() != i32::from(git2::FileMode::Link)
    };
    Ok(Some(Look {
        commit: commit.id().to_string(),
        tree: tree.id().to_string(),
        has_dockerfile: entry.is_some_and(is_file),
    }))
}

/// A pack that is damaged counts as if it were not there; but then what the mirror's refs stand for is missing too.
fn intact(mirror: &Repository) -> Result<(), git2::Error> {
    let objects = mirror.odb()?;
    for reference in mirror.references()? {
        if reference?.target().is_some_and(|id| !objects.exists(id)) {
            return Err(git2::Error::from_str("what a ref stands for is missing"));
        }
    }
    Ok(())
}

/// What was looked for and is not there, or cannot be there, is no error.
fn there<T>(found: Result<T, git2::Error>) -> Result<Option<T>, git2::Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(e) if matches!(e.code(), ErrorCode::NotFound | ErrorCode::InvalidSpec | ErrorCode::Ambiguous) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn commit<'m>(mirror: &'m Repository, reference: &str) -> Result<Option<git2::Commit<'m>>, git2::Error> {
    let hex = reference.bytes().all(|b| b.is_ascii_hexdigit());
    if hex && reference.len() == 40 {
        return there(mirror.find_commit(Oid::from_str(reference)?));
    }
    let names = match reference {
        "HEAD" => vec![HEAD.to_owned()],
        full if full.starts_with("refs/") => vec![full.to_owned()],
        short => vec![format!("refs/heads/{short}"), format!("refs/tags/{short}")],
    };
    for name in &names {
        let Some(found) = there(mirror.find_reference(name))? else { continue };
        match found.peel_to_commit() {
            Ok(commit) => return Ok(Some(commit)),
            // A tag of something that is no commit.
            Err(e) if matches!(e.code(), ErrorCode::Peel | ErrorCode::InvalidSpec) => {}
            // A ref whose object is missing too: the mirror lost it.
            Err(e) => return Err(e),
        }
    }
    if hex && reference.len() >= 7 { there(mirror.find_commit_by_prefix(reference)) } else { Ok(None) }
}

/// What an error in a mirror's own objects means.
pub(super) fn damaged(error: &git2::Error) -> Failure {
    let problem = if error.class() == ErrorClass::NoMemory { Problem::TooLarge } else { Problem::Broken };
    (problem, error.message().to_owned())
}

/// Whether the host said that the request is wrong, and not that it is in trouble or in demand.
fn is_refusal(message: &str) -> bool {
    let status = message.rsplit("status code: ").next().and_then(|status| status.trim().parse::<u16>().ok());
    status.is_some_and(|status| (400..500).contains(&status) && ![408, 425, 429].contains(&status))
}

/// Sorts an error of libgit2.
pub(super) fn sorted(error: &git2::Error) -> Failure {
    let message = error.message().trim().to_owned();
    let lower = message.to_lowercase();
    let http = |status: &str| message.contains(&format!("status code: {status}"));
    let problem = match (error.code(), error.class()) {
        // Whatever libgit2 was at: it is neither the user's fault nor the mirror's.
        _ if lower.contains("no space left") || lower.contains("quota exceeded") => Problem::NoRoom,
        (_, ErrorClass::NoMemory) => Problem::TooLarge,
        (ErrorCode::Auth, _) => Problem::Denied,
        (ErrorCode::Certificate, ErrorClass::Ssh) => Problem::Unreachable,
        (_, ErrorClass::Http) if http("404") || http("410") => Problem::NoRepository,
        (_, ErrorClass::Http) if http("401") || http("403") || message.contains("authentication replays") => {
            Problem::Denied
        }
        (_, ErrorClass::Net | ErrorClass::Http) if lower.contains("redirect") => Problem::Redirected,
        // Something answers there, and it is no git host.
        (_, ErrorClass::Http) if lower.contains("content-type") || is_refusal(&message) => {
            Problem::NoRepository
        }
        (_, ErrorClass::Net | ErrorClass::Http | ErrorClass::Ssl | ErrorClass::Ssh) => {
            if lower.contains("not found") { Problem::NoRepository } else { Problem::Unreachable }
        }
        // What the system says of sockets has the same class as what it says of files.
        (_, ErrorClass::Os)
            if ["connect", "resolve address", "timed out", "network"].iter().any(|s| lower.contains(s)) =>
        {
            Problem::Unreachable
        }
        (ErrorCode::NotFound, _) => Problem::NoRepository,
        // Of the other side: a mirror of ours that is none is made.
        _ if lower.contains("could not find repository") => Problem::NoRepository,
        (_, ErrorClass::Os) if lower.contains("no such file or directory") => Problem::NoRepository,
        _ => Problem::Broken,
    };
    (problem, message)
}
