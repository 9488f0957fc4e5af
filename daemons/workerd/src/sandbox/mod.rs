//! Where a command runs: the trait, and what goes in and comes out. [`docker`] is a container for each attempt.

pub mod docker;
pub(crate) mod host;
mod mounts;
pub(crate) mod refusal;
mod seccomp;
mod settings;
mod user;

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use codering_core::{JobId, LeaseToken, Limits, ProjectName, TaskId, result::Phases, time::Millis};
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;

use crate::{held::LeaseEnd, output::Stream};

/// An image, and what its makers said of how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Its content's id, `sha256:…`.
    pub id: String,
    /// Its name for people, `codering/ctx:…`.
    pub name: String,
    /// The user that it names; may be empty.
    pub user: String,
    /// The working directory that it names; may be empty.
    pub workdir: String,
    /// Where it wants volumes.
    pub volumes: Vec<String>,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The attempt's fencing token.
    pub token: LeaseToken,
    /// The tenant.
    pub project: ProjectName,
    /// The job.
    pub job: JobId,
    /// The task.
    pub task: TaskId,
    /// Which try.
    pub attempt: u32,
    /// In what.
    pub image: Image,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The environment beyond the image's own.
    pub env: BTreeMap<String, String>,
    /// The limits.
    pub limits: Limits,
    /// Whether something will be written to its standard input.
    pub stdin: bool,
    /// Until when it may be started: making a container may take Docker longer than the lease lasts.
    pub lease: LeaseEnd,
    /// What a later process of this worker needs to finish the attempt.
    pub record: Record,
}

/// What travels with a container, so that the worker's next process can finish what this one began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Record {
    pub started_at: Millis,
    pub phases: Phases,
    pub commit: String,
    pub image: String,
    pub timeout_ms: u64,
    pub output_bytes: u64,
    pub memory_bytes: u64,
    pub lease_ms: u64,
    /// It reads a standard input that this process writes.
    pub stdin: bool,
}

/// A piece of output.
pub type Piece = (Stream, Bytes);

/// A started command.
pub struct Running {
    /// The container.
    pub id: String,
    /// What it writes, until it has ended. An error means that the rest is to be had from [`Control::recorded`].
    pub output: BoxStream<'static, Result<Piece, Unavailable>>,
    /// Its standard input; shut it down to end it.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// Waits for it and ends it.
    pub control: Arc<dyn Control>,
}

/// A container that a former process of this worker started.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Left {
    pub id: String,
    /// `None` when its labels cannot be read: an orphan.
    pub whose: Option<Whose>,
    pub created_at: Millis,
    /// When the command began, by Docker's account; `None` when it never did.
    pub began_at: Option<Millis>,
}

/// Whose container it is.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Whose {
    pub token: LeaseToken,
    pub project: ProjectName,
    pub job: JobId,
    pub task: TaskId,
    pub attempt: u32,
    pub record: Record,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As a shell would tell it: 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// The memory cgroup's evidence.
    pub out_of_memory: bool,
    /// When it began, by Docker's account; 0 when unknown.
    pub started_at: Millis,
    /// When it ended; 0 when unknown.
    pub finished_at: Millis,
}

impl Exit {
    /// Whether a stop of Docker or of the machine ends a command so; a command can also end itself so.
    pub fn looks_stopped(&self) -> bool {
        matches!(self.code, 137 | 143 | 255) && !self.out_of_memory
    }
}

/// Docker does not do its part. The infrastructure's fault.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Why a command was not started.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StartError {
    /// What was asked for cannot be started: the user's fault. The code is a shell's: 126 or 127.
    #[error("{message}")]
    Refused {
        /// 126: cannot be run; 127: is not there.
        code: i32,
        /// One sentence.
        message: String,
    },
    /// The image is not there any more.
    #[error("the image is gone")]
    ImageGone,
    /// See [`Unavailable`].
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Starts commands apart from the host and from each other.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// Starts one. Nothing of it is left when this fails.
    async fn start(&self, spec: &Spec) -> Result<Running, StartError>;

    /// What former processes of this worker left.
    async fn left(&self) -> Result<Vec<Left>, Unavailable>;

    /// Takes one up: its output comes from its beginning.
    async fn adopt(&self, left: &Left) -> Result<Running, Unavailable>;

    /// Kills and removes one, whatever its state; one that is not there is no error.
    async fn remove(&self, id: &str) -> Result<(), Unavailable>;
}

/// One started command.
#[async_trait]
pub trait Control: Send + Sync {
    /// Resolves when it has ended.
    async fn wait(&self) -> Result<Exit, Unavailable>;

    /// Kills it; one that has ended is no error.
    async fn kill(&self) -> Result<(), Unavailable>;

    /// Whether somebody holds it still.
    async fn paused(&self) -> bool;

    /// All that it wrote, read again, and whether the log still holds its beginning.
    async fn recorded(&self) -> Result<(BoxStream<'static, Result<Piece, Unavailable>>, u64), Unavailable>;

    /// Removes what is left of it.
    async fn remove(&self) -> Result<(), Unavailable>;
}
