//! Repositories: a bare mirror for each address, shared by all attempts.
//!
//! All of libgit2 runs in a process of its own ([`child`]), started from this very executable with an environment made
//! for it: it can be killed when a host hangs, a hostile pack can harm nothing but it, and no configuration of the
//! user that workerd runs as (aliases of addresses, helpers, hooks) plays a part. Files are never checked out: the
//! build context is written as a tar straight from git's objects ([`export`]).

mod adds;
pub mod child;
pub(crate) mod export;
mod fetch;
pub(crate) mod ignore;
mod nearby;
mod process;
mod wire;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use codering_core::{Code, Error, Source, spec::without_password};
use codering_kit::{
    fault::{self, Point},
    live::Live,
};
use sha2::{Digest, Sha256};

pub use self::wire::Look;
use self::wire::{Answer, Problem, Request};
use crate::config::{Git, Proxy};

/// So many addresses and commits are remembered; a commit never changes.
const REMEMBERED: usize = 4096;

/// Why a repository is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckoutError {
    /// The address, ref, commit or Dockerfile is wrong: the user's fault.
    #[error("{0}")]
    Refused(Error),
    /// The host does not answer, or this machine fails: the infrastructure's.
    #[error("{0}")]
    Unreachable(Error),
}

fn refused(code: Code, message: impl Into<String>) -> CheckoutError {
    CheckoutError::Refused(Error::new(code, message))
}

/// All mirrors of this worker.
#[derive(Debug, Clone)]
pub struct Mirrors(Arc<Inner>);

/// What changes at a reload, together.
#[derive(Debug)]
struct How {
    git: Git,
    proxy: Proxy,
}

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    dir: PathBuf,
    home: PathBuf,
    how: Live<How>,
    open: Mutex<HashMap<String, Arc<Mirror>>>,
    known: Mutex<HashMap<(String, String, String), Look>>,
    fetches: AtomicU64,
}

/// One address. Fetches of it run one at a time, and each serves all who asked before it began.
#[derive(Debug)]
struct Mirror {
    path: PathBuf,
    begun: AtomicU64,
    last: tokio::sync::Mutex<Option<(u64, Result<(), CheckoutError>)>>,
}

impl Mirrors {
    /// Mirrors under `dir`; `program` is this executable, `home` a directory of its own for the processes it starts.
    ///
    /// # Errors
    /// [`Code::Internal`] when the directories cannot be made.
    pub fn new(program: PathBuf, dir: PathBuf, home: PathBuf, git: Git, proxy: Proxy) -> Result<Self, Error> {
        process::prepare_home(&home, &git)?;
        std::fs::create_dir_all(&dir)
            .map_err(|e| Error::new(Code::Internal, e.to_string()).at(dir.display().to_string()))?;
        Ok(Self(Arc::new(Inner {
            program,
            dir,
            home,
            how: Live::new(How { git, proxy }),
            open: Mutex::default(),
            known: Mutex::default(),
            fetches: AtomicU64::new(0),
        })))
    }

    /// From now on with these.
    ///
    /// # Errors
    /// As for [`Mirrors::new`]; then they stay what they were.
    pub fn reconfigure(&self, git: Git, proxy: Proxy) -> Result<(), Error> {
        process::prepare_home(&self.0.home, &git)?;
        self.0.how.set(How { git, proxy });
        Ok(())
    }

    /// How many fetches went out.
    pub fn fetches(&self) -> u64 {
        self.0.fetches.load(Ordering::Relaxed)
    }

    /// What the source's ref stands for now.
    ///
    /// # Errors
    /// See [`CheckoutError`].
    pub async fn resolve(&self, source: &Source) -> Result<Look, CheckoutError> {
        self.check_scheme(&source.git_url)?;
        if let Some(commit) = source.pinned() {
            return self.at(source, commit).await;
        }
        let mirror = self.mirror(&source.git_url);
        self.fetch(&mirror, source, None).await?;
        match self.look(&mirror, source, &source.git_ref).await? {
            Some(look) => Ok(look),
            // A ref beyond branches and tags is fetched by its name.
            None if source.git_ref.starts_with("refs/") => {
                self.fetch(&mirror, source, Some(&source.git_ref)).await?;
                self.look(&mirror, source, &source.git_ref).await?.ok_or_else(|| no_such_ref(source))
            }
            None => Err(no_such_ref(source)),
        }
    }

    /// What the source holds at one commit. Asks the host only when the mirror does not have it.
    ///
    /// # Errors
    /// See [`CheckoutError`].
    pub async fn at(&self, source: &Source, commit: &str) -> Result<Look, CheckoutError> {
        self.check_scheme(&source.git_url)?;
        let mirror = self.mirror(&source.git_url);
        let key = (source.git_url.clone(), commit.to_owned(), source.dockerfile.clone());
        if let Some(look) = self.known().get(&key)
            && mirror.path.exists()
        {
            used(&mirror.path);
            return Ok(look.clone());
        }
        let mut look = self.look(&mirror, source, commit).await?;
        if look.is_none() {
            self.fetch(&mirror, source, None).await?;
            look = self.look(&mirror, source, commit).await?;
        }
        if look.is_none() {
            self.fetch(&mirror, source, Some(commit)).await?;
            look = self.look(&mirror, source, commit).await?;
        }
        let look = look.ok_or_else(|| no_such_ref(source))?;
        let mut known = self.known();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(key, look.clone());
        Ok(look)
    }

    /// Starts writing the tree of a commit as a tar; read it from the process's output.
    ///
    /// # Errors
    /// [`CheckoutError::Unreachable`] when no process can be started.
    pub fn export(&self, source: &Source, tree: &str, max_bytes: u64) -> Result<Export, CheckoutError> {
        let mirror = self.mirror(&source.git_url);
        let request = Request::Export {
            mirror: mirror.path.clone(),
            tree: tree.to_owned(),
            dockerfile: source.dockerfile.clone(),
            max_bytes,
        };
        let mut command = self.command();
        command.stdout(Stdio::piped());
        let child = process::start(command, &request).map_err(CheckoutError::Unreachable)?;
        Ok(Export { child, _mirror: mirror })
    }

    /// Each mirror's directory, its size in bytes and when it was last used.
    pub fn sizes(&self) -> Vec<(PathBuf, u64, SystemTime)> {
        let Ok(entries) = std::fs::read_dir(&self.0.dir) else { return Vec::new() };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.map(|path| (path.clone(), process::disk_bytes(&path), last_used(&path))).collect()
    }

    /// Removes a mirror, unless it is in use at this moment.
    pub fn evict(&self, path: &Path) -> bool {
        let mut open = self.open();
        let key = open.iter().find(|(_, mirror)| mirror.path == path).map(|(key, _)| key.clone());
        if let Some(key) = key {
            let Some(mirror) = open.get(&key) else { return false };
            if Arc::strong_count(mirror) > 1 {
                return false;
            }
            open.remove(&key);
        }
        // Renamed first, so that nobody finds half a mirror.
        let gone = path.with_extension("gone");
        std::fs::rename(path, &gone).and_then(|()| std::fs::remove_dir_all(&gone)).is_ok()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Arc<Mirror>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<(String, String, String), Look>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mirror(&self, url: &str) -> Arc<Mirror> {
        let name: String =
            Sha256::digest(url.as_bytes()).iter().take(16).map(|b| format!("{b:02x}")).collect();
        let path = self.0.dir.join(format!("{name}.git"));
        let new = || Arc::new(Mirror { path, begun: AtomicU64::new(0), last: tokio::sync::Mutex::default() });
        let mut open = self.open();
        if open.len() >= REMEMBERED {
            open.retain(|_, mirror| Arc::strong_count(mirror) > 1);
        }
        open.entry(name).or_insert_with(new).clone()
    }

    fn check_scheme(&self, url: &str) -> Result<(), CheckoutError> {
        let scheme = url.split_once("://").map_or("ssh", |(scheme, _)| scheme);
        if self.0.how.get().git.schemes.iter().any(|allowed| allowed == scheme) {
            return Ok(());
        }
        let error = Error::new(
            Code::GitUrlRefused,
            format!("this worker takes no {scheme}:// address ({})", without_password(url)),
        );
        Err(CheckoutError::Refused(error.hint("an admin may allow it in workerd.toml: [git] schemes")))
    }

    /// One fetch, shared with all who wait for one that has not begun yet.
    async fn fetch(
        &self,
        mirror: &Arc<Mirror>,
        source: &Source,
        extra: Option<&str>,
    ) -> Result<(), CheckoutError> {
        let asked_after = mirror.begun.load(Ordering::SeqCst);
        let mut last = mirror.last.lock().await;
        if extra.is_none()
            && let Some((number, result)) = last.as_ref()
            && *number > asked_after
        {
            return result.clone();
        }
        let number = mirror.begun.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.fetches.fetch_add(1, Ordering::Relaxed);
        let result = self.fetch_now(mirror, source, extra).await;
        used(&mirror.path);
        if extra.is_none() {
            *last = Some((number, result.clone()));
        }
        result
    }

    async fn fetch_now(
        &self,
        mirror: &Mirror,
        source: &Source,
        extra: Option<&str>,
    ) -> Result<(), CheckoutError> {
        let how = self.0.how.get();
        let request = Request::Fetch {
            mirror: mirror.path.clone(),
            url: source.git_url.clone(),
            extra: extra.map(str::to_owned),
            ssh_key: how.git.ssh_key.clone(),
            credentials: how.git.credentials.clone(),
            max_bytes: how.git.max_bytes,
        };
        let mut again = true;
        loop {
            match self.ask(&request).await? {
                Answer::Fetched => {
                    fault::reached(Point::MirrorFetched);
                    return Ok(());
                }
                // A mirror that a crash left half written is made anew, once.
                Answer::Failed { problem: Problem::Broken, message } if again => {
                    tracing::warn!(url = without_password(&source.git_url), "mirror made anew: {message}");
                    again = false;
                    let _ = clear(&mirror.path).await;
                }
                Answer::Failed { problem, message } => return Err(problem.of(source, &message)),
                Answer::Looked { .. } => return Err(unexpected()),
            }
        }
    }

    /// A mirror that is found damaged is made anew, once.
    async fn look(
        &self,
        mirror: &Arc<Mirror>,
        source: &Source,
        reference: &str,
    ) -> Result<Option<Look>, CheckoutError> {
        let request = Request::Look {
            mirror: mirror.path.clone(),
            reference: reference.to_owned(),
            dockerfile: source.dockerfile.clone(),
        };
        let mut again = true;
        loop {
            if !mirror.path.exists() {
                return Ok(None);
            }
            match self.ask(&request).await? {
                Answer::Looked { look } => return Ok(look),
                Answer::Failed { problem: Problem::Broken, message } if again => {
                    again = false;
                    self.discard(mirror, source, &message).await;
                    self.fetch(mirror, source, None).await?;
                }
                Answer::Failed { problem, message } => return Err(problem.of(source, &message)),
                Answer::Fetched => return Err(unexpected()),
            }
        }
    }

    /// Removes a mirror that is damaged, with what was remembered of it.
    async fn discard(&self, mirror: &Mirror, source: &Source, why: &str) {
        tracing::warn!(url = without_password(&source.git_url), "the mirror is damaged and made anew: {why}");
        let _alone = mirror.last.lock().await;
        self.known().retain(|(url, _, _), _| *url != source.git_url);
        if let Err(e) = clear(&mirror.path).await {
            tracing::warn!(mirror = %mirror.path.display(), "it cannot be removed: {e}");
        }
    }

    /// How an export ended. The damage that it met is mended for the next try.
    ///
    /// # Errors
    /// [`CheckoutError::Refused`] for a tree that is too large or no build context, [`CheckoutError::Unreachable`] for the
    /// rest.
    pub async fn exported(&self, export: Export, source: &Source) -> Result<(), CheckoutError> {
        match process::end(export.child).await.map_err(CheckoutError::Unreachable)? {
            None => Ok(()),
            Some((problem, message)) => {
                if problem == Problem::Broken {
                    self.discard(&self.mirror(&source.git_url), source, &message).await;
                }
                Err(problem.of(source, &message))
            }
        }
    }

    async fn ask(&self, request: &Request) -> Result<Answer, CheckoutError> {
        let mut command = self.command();
        command.stdout(Stdio::piped());
        let asked = process::ask(command, request);
        let bound = self.0.how.get().git.timeout;
        match tokio::time::timeout(bound, asked).await {
            Ok(answer) => answer.map_err(CheckoutError::Unreachable),
            Err(_) => Err(CheckoutError::Unreachable(Error::new(
                Code::GitUnreachable,
                format!("git was not done within {} s", bound.as_secs()),
            ))),
        }
    }

    fn command(&self) -> tokio::process::Command {
        let how = self.0.how.get();
        process::command(&self.0.program, &self.0.home, &how.git, &how.proxy)
    }
}

/// A tar being written.
pub struct Export {
    child: tokio::process::Child,
    /// Held, so that it is not evicted under the process that reads it.
    _mirror: Arc<Mirror>,
}

impl Export {
    /// The tar.
    pub fn output(&mut self) -> Option<tokio::process::ChildStdout> {
        self.child.stdout.take()
    }
}

/// Removes a mirror, or whatever stands in its place.
async fn clear(path: &Path) -> std::io::Result<()> {
    match tokio::fs::remove_dir_all(path).await {
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => tokio::fs::remove_file(path).await,
        done => done,
    }
}

fn no_such_ref(source: &Source) -> CheckoutError {
    refused(
        Code::GitRefNotFound,
        format!(
            "{} has no branch, tag or commit `{}`",
            without_password(&source.git_url),
            codering_core::ids::shown(&source.git_ref)
        ),
    )
}

fn unexpected() -> CheckoutError {
    CheckoutError::Unreachable(Error::new(Code::Internal, "git's process gave an answer to something else"))
}

/// The file whose time of change is when a mirror was last used.
const USED: &str = "codering-used";

fn used(mirror: &Path) {
    let _ = std::fs::write(mirror.join(USED), b"");
}

fn last_used(mirror: &Path) -> SystemTime {
    let at = |path: &Path| std::fs::metadata(path).and_then(|about| about.modified());
    at(&mirror.join(USED)).or_else(|_| at(mirror)).unwrap_or(SystemTime::UNIX_EPOCH)
}
