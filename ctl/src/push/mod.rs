//! The files of a directory become one commit of a job's git repository.
//!
//! The commit's tree is the directory and nothing else: files that git would ignore are left out, a
//! symlink stays a symlink, nothing outside the directory is read. A tree that is there already makes
//! no new commit. What is in the repository is never rewritten: the commit goes on top of a branch,
//! by default one of the job's own.

mod address;
mod remote;
mod snapshot;
#[cfg(test)]
mod tests;

use std::path::Path;

use codering_core::{Code, Error};
use git2::{Oid, Repository, RepositoryInitOptions, Signature};

pub use address::{Address, branch_of};

/// Others may push to the same branch meanwhile; the commit is then made again on top of theirs.
const TRIES: u32 = 4;

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The commit, whose tree is the directory.
    pub commit: String,
    /// Files that are new or differ from the commit before; 0 when that was the same already.
    pub changed: usize,
    /// Files of the commit before that the directory no longer has.
    pub removed: usize,
}

/// Pushes the files of `dir`. Blocks: it reads the directory and may speak to a git host.
pub fn push(dir: &Path, address: &Address, branch: &str, message: &str) -> Result<Pushed, Error> {
    if !dir.is_dir() {
        return Err(Error::new(Code::InvalidInput, "is not a directory that can be pushed")
            .at(dir.display().to_string()));
    }
    match address.local() {
        Some(path) => {
            let repository = local(path, address, branch)?;
            retried(|| commit(&repository, dir, branch, message))
        }
        None => {
            let cache = address::cache_dir()?;
            retried(|| remote::push(dir, address, branch, message, &cache))
        }
    }
}

/// What one try came to.
enum Tried {
    Done(Pushed),
    /// The branch moved meanwhile.
    Moved,
}

fn retried(mut attempt: impl FnMut() -> Result<Tried, Error>) -> Result<Pushed, Error> {
    for _ in 0..TRIES {
        if let Tried::Done(pushed) = attempt()? {
            return Ok(pushed);
        }
    }
    Err(Error::new(Code::GitPushFailed, "the branch keeps moving while it is pushed to")
        .hint("push to another with --ref BRANCH"))
}

/// A repository of this machine; made where it may be and is not there.
fn local(path: &Path, address: &Address, branch: &str) -> Result<Repository, Error> {
    if path.exists() {
        let repository = Repository::open(path).map_err(|error| failed(address, &error))?;
        let checked_out =
            !repository.is_bare() && repository.head().is_ok_and(|head| head.shorthand() == Ok(branch));
        if checked_out {
            return Err(Error::new(Code::GitPushFailed, format!("its branch {branch} is checked out there"))
                .at(address.shown())
                .hint("push to another with --ref BRANCH, or to a bare repository"));
        }
        return Ok(repository);
    }
    if !address.may_be_made() {
        return Err(Error::new(Code::GitPushFailed, "there is no such repository")
            .at(address.shown())
            .hint(format!("make it: git init --bare {}", path.display())));
    }
    let mut options = RepositoryInitOptions::new();
    options.bare(true).mkpath(true).external_template(false).initial_head(branch);
    Repository::init_opts(path, &options).map_err(|error| failed(address, &error))
}

/// Commits the directory on top of a branch of `repository`.
fn commit(repository: &Repository, dir: &Path, branch: &str, message: &str) -> Result<Tried, Error> {
    let name = format!("refs/heads/{branch}");
    let tip = match repository.find_reference(&name) {
        Ok(reference) => reference.peel_to_commit().ok().map(|commit| commit.id()),
        Err(error) if error.code() == git2::ErrorCode::NotFound => None,
        Err(error) => return Err(git(&error)),
    };
    let (made, pushed) = on_top(repository, dir, tip, message)?;
    if Some(made) == tip {
        return Ok(Tried::Done(pushed));
    }
    let moved = match tip {
        Some(tip) => repository.reference_matching(&name, made, true, tip, message),
        None => repository.reference(&name, made, false, message),
    };
    match moved {
        Ok(_) => Ok(Tried::Done(pushed)),
        Err(error)
            if matches!(
                error.code(),
                git2::ErrorCode::Modified | git2::ErrorCode::Exists | git2::ErrorCode::Locked
            ) =>
        {
            Ok(Tried::Moved)
        }
        Err(error) => Err(git(&error)),
    }
}

/// The commit of the directory with `parent` before it; `parent` itself where nothing differs.
fn on_top(
    repository: &Repository,
    dir: &Path,
    parent: Option<Oid>,
    message: &str,
) -> Result<(Oid, Pushed), Error> {
    let taken = snapshot::take(repository, dir)?;
    let parent = parent.map(|id| repository.find_commit(id)).transpose().map_err(|error| git(&error))?;
    let tree = repository.find_tree(taken).map_err(|error| git(&error))?;
    let before = parent.as_ref().map(git2::Commit::tree).transpose().map_err(|error| git(&error))?;
    let (changed, removed) = snapshot::differences(repository, before.as_ref(), &tree)?;
    if let Some(parent) = &parent
        && parent.tree_id() == tree.id()
    {
        let pushed = Pushed { commit: parent.id().to_string(), changed: 0, removed: 0 };
        return Ok((parent.id(), pushed));
    }
    let who = repository
        .signature()
        .or_else(|_| Signature::now("coderingctl", "coderingctl@localhost"))
        .map_err(|error| git(&error))?;
    let parents: Vec<_> = parent.iter().collect();
    let made = repository.commit(None, &who, &who, message, &tree, &parents).map_err(|error| git(&error))?;
    Ok((made, Pushed { commit: made.to_string(), changed, removed }))
}

fn git(error: &git2::Error) -> Error {
    Error::new(Code::GitPushFailed, error.message().to_owned())
}

fn failed(address: &Address, error: &git2::Error) -> Error {
    git(error).at(address.shown())
}
