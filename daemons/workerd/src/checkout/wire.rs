//! What workerd and its git process say to each other, as JSON: one request, one answer.

use std::path::PathBuf;

use codering_core::{Code, Error, Source, spec::without_password};
use serde::{Deserialize, Serialize};

use super::CheckoutError;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Request {
    /// Brings a mirror up to date, making it if need be.
    Fetch {
        mirror: PathBuf,
        url: String,
        /// A ref or commit beyond branches and tags.
        extra: Option<String>,
        ssh_key: Option<PathBuf>,
        credentials: Option<PathBuf>,
        max_bytes: u64,
    },
    /// Looks something up in a mirror.
    Look { mirror: PathBuf, reference: String, dockerfile: String },
    /// Writes a tree as a tar to standard output; the answer, if it failed, goes to standard error.
    Export { mirror: PathBuf, tree: String, dockerfile: String, max_bytes: u64 },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Answer {
    Fetched,
    Looked { look: Option<Look> },
    Failed { problem: Problem, message: String },
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Its id.
    pub commit: String,
    /// The id of its tree: the content of the build context.
    pub tree: String,
    /// Whether the tree holds the Dockerfile.
    pub has_dockerfile: bool,
}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Problem {
    /// The host does not answer, or not as it should.
    Unreachable,
    /// The host wants a password or key that it was not given.
    Denied,
    /// The host has no such repository.
    NoRepository,
    /// The host sends us to another one, which was not asked for.
    Redirected,
    /// The host has an address that no git host has.
    Nearby,
    /// What the host said ended the git process.
    Fatal,
    /// There is too much of it.
    TooLarge,
    /// It cannot be a build context.
    Unfit,
    /// Nobody reads any more what is written.
    Unread,
    /// The mirror on disk is not in order.
    Broken,
    /// The disk is full.
    NoRoom,
}

impl Problem {
    pub(super) fn of(self, source: &Source, message: &str) -> CheckoutError {
        let url = without_password(&source.git_url);
        let error = |code, what: &str| Error::new(code, format!("{url}: {what}: {message}"));
        match self {
            Self::Unreachable => {
                CheckoutError::Unreachable(error(Code::GitUnreachable, "the git host cannot be reached"))
            }
            Self::Unread => CheckoutError::Unreachable(error(Code::Internal, "the build context was not read")),
            Self::Unfit => {
                CheckoutError::Refused(error(Code::ImageBuildFailed, "it cannot be a build context"))
            }
            Self::Broken => CheckoutError::Unreachable(error(Code::Internal, "the mirror is broken")),
            Self::NoRoom => CheckoutError::Unreachable(
                error(Code::Internal, "the worker's disk is full").hint("free space on the disk of its data_dir"),
            ),
            Self::Denied => {
                CheckoutError::Refused(error(Code::GitUrlRefused, "the git host denies access").hint(
                    "the worker's admin sets keys and passwords in workerd.toml: [git] ssh_key_file, credentials_file",
                ))
            }
            Self::NoRepository => {
                CheckoutError::Refused(error(Code::GitUrlRefused, "there is no such repository"))
            }
            Self::Redirected => CheckoutError::Refused(
                error(Code::GitUrlRefused, "the git host redirects to another host")
                    .hint("if that is right, name the address that it redirects to"),
            ),
            Self::Fatal => CheckoutError::Refused(error(
                Code::GitUrlRefused,
                "what the git host answers cannot be read, and ended the process that read it",
            )),
            Self::Nearby => CheckoutError::Refused(error(
                Code::GitUrlRefused,
                "this is a link-local or metadata address, and no git host",
            )),
            Self::TooLarge => CheckoutError::Refused(
                error(Code::TooLarge, "the repository is too large")
                    .hint("the worker's bounds are [git] max_bytes and [build] max_context_bytes"),
            ),
        }
    }
}
