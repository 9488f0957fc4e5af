//! One code, one meaning, over ctl, gRPC and REST.

use std::fmt;

macro_rules! codes {
    ($($name:ident, $text:literal, $http:literal, $grpc:ident, $meaning:literal;)*) => {
        /// Every error that codering answers with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $(#[doc = $meaning] $name,)* }

        impl Code {
            /// All codes, for the table in the docs and its test.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The stable text, e.g. `job.unknown_field`.
            pub fn as_str(self) -> &'static str { match self { $(Code::$name => $text,)* } }

            /// The HTTP status.
            pub fn http(self) -> u16 { match self { $(Code::$name => $http,)* } }

            /// The gRPC status.
            pub fn grpc(self) -> Grpc { match self { $(Code::$name => Grpc::$grpc,)* } }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str { match self { $(Code::$name => $meaning,)* } }

            /// The code of a stable text.
            pub fn parse(text: &str) -> Option<Code> {
                match text { $($text => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    InvalidInput, "invalid.input", 400, InvalidArgument,
        "A field has a value that it cannot have.";
    InvalidJson, "invalid.json", 400, InvalidArgument,
        "The text is not JSON, or not of the expected shape.";
    TooLarge, "invalid.too_large", 413, InvalidArgument,
        "A message, body or list is over its bound.";
    UnsupportedMediaType, "invalid.media_type", 415, InvalidArgument,
        "The body's content type is not application/json.";
    MethodNotAllowed, "invalid.method", 405, InvalidArgument,
        "The route does not take this method.";
    BodyTooSlow, "invalid.too_slow", 408, DeadlineExceeded,
        "The body of the call did not come in time.";
    JobUnknownField, "job.unknown_field", 400, InvalidArgument,
        "A job names a key that does not exist.";
    JobInvalid, "job.invalid", 400, InvalidArgument,
        "A job or one of its tasks has a value that it cannot have.";
    JobEmpty, "job.empty", 400, InvalidArgument,
        "A job has no task.";
    JobDuplicateTask, "job.duplicate_task", 400, InvalidArgument,
        "Two tasks of a job have the same id.";
    JobTooManyTasks, "job.too_many_tasks", 400, InvalidArgument,
        "A job has more tasks than one job may have.";
    JobUnfinished, "job.unfinished", 409, FailedPrecondition,
        "The job still runs, and what was asked needs it finished.";
    JobFinished, "job.finished", 409, FailedPrecondition,
        "The job is finished, and what was asked needs it unfinished.";
    JobNotFound, "job.not_found", 404, NotFound,
        "There is no such job, or this token may not see it.";
    JobAmbiguous, "job.ambiguous", 409, FailedPrecondition,
        "The prefix of an id stands for several jobs.";
    JobNoReduce, "job.no_reduce", 409, FailedPrecondition,
        "The job has no reduce step, and none was given.";
    JobNoAnswer, "job.no_answer", 404, NotFound,
        "The job's reduce step has not succeeded.";
    TaskNotFound, "task.not_found", 404, NotFound,
        "The job has no such task.";
    TaskFinished, "task.finished", 409, FailedPrecondition,
        "The task is done already.";
    TaskUnfinished, "task.unfinished", 409, FailedPrecondition,
        "The task is not done yet.";
    GitUrlRefused, "git.url_refused", 400, InvalidArgument,
        "The git address has a scheme or form that is not allowed.";
    GitUnreachable, "git.unreachable", 502, Unavailable,
        "The git host did not answer.";
    GitRefNotFound, "git.ref_not_found", 422, FailedPrecondition,
        "The repository has no such branch, tag or commit.";
    GitPushFailed, "git.push_failed", 502, Unavailable,
        "The git repository did not take the push.";
    ImageBuildFailed, "image.build_failed", 422, FailedPrecondition,
        "The image could not be built from the Dockerfile.";
    ProjectNotFound, "project.not_found", 404, NotFound,
        "There is no such project, or this token may not see it.";
    ProjectExists, "project.exists", 409, AlreadyExists,
        "There is a project of this name.";
    ProjectBusy, "project.busy", 409, FailedPrecondition,
        "The project has unfinished jobs.";
    QueueNotFound, "queue.not_found", 404, NotFound,
        "There is no such queue.";
    QueueReserved, "queue.reserved", 409, FailedPrecondition,
        "The queue belongs to codering's own flow and cannot be removed alone.";
    QueueFull, "queue.full", 429, ResourceExhausted,
        "The queue has reached its bound.";
    QueueUnavailable, "queue.unavailable", 503, Unavailable,
        "The queue backend cannot be reached; nothing was put.";
    QueueDiskFull, "queue.disk_full", 507, ResourceExhausted,
        "The disk under the embedded queue is full, or down to its reserve; nothing was put.";
    LedgerUnavailable, "ledger.unavailable", 503, Unavailable,
        "The ledger cannot be written; nothing was recorded.";
    LedgerUnknown, "ledger.unknown", 503, Unavailable,
        "The ledger did not say whether it recorded the change; ask again.";
    LedgerFull, "ledger.full", 507, ResourceExhausted,
        "The disk under the ledger is full, or down to its reserve; nothing was recorded.";
    QuotaExceeded, "quota.exceeded", 429, ResourceExhausted,
        "The project has reached one of its quotas.";
    LeaseFenced, "lease.fenced", 409, FailedPrecondition,
        "The lease token is not the live one.";
    AuthMissing, "auth.missing", 401, Unauthenticated,
        "The call carries no token.";
    AuthInvalid, "auth.invalid", 401, Unauthenticated,
        "The token is wrong, revoked or expired.";
    AuthDenied, "auth.denied", 403, PermissionDenied,
        "The token's role or projects do not allow the call.";
    AuthTooMany, "auth.too_many", 429, ResourceExhausted,
        "Too many wrong tokens came from this address.";
    WorkerNotFound, "worker.not_found", 404, NotFound,
        "There is no such worker.";
    WorkerRevoked, "worker.revoked", 403, PermissionDenied,
        "The worker's certificate was revoked.";
    WorkerUnconfined, "worker.unconfined", 503, FailedPrecondition,
        "The worker's Docker cannot hold tasks within their limits, so the worker runs none.";
    TokenNotFound, "token.not_found", 404, NotFound,
        "There is no such token.";
    NotFound, "not_found", 404, NotFound,
        "There is no such route or method.";
    BrokerUnreachable, "broker.unreachable", 503, Unavailable,
        "The broker cannot be reached.";
    BrokerBusy, "broker.busy", 429, ResourceExhausted,
        "The broker is at a bound of its own; try again shortly.";
    BrokerStopping, "broker.stopping", 503, Unavailable,
        "The broker is shutting down; try again shortly.";
    TimedOut, "timed_out", 504, DeadlineExceeded,
        "The wait came to its end.";
    ConfigInvalid, "config.invalid", 500, InvalidArgument,
        "A configuration file or variable is wrong.";
    Internal, "internal", 500, Internal,
        "Something that should not happen did; the log has more.";
}

/// The gRPC status codes in use, by their names there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Grpc {
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Internal,
    Unavailable,
    Unauthenticated,
}

/// What was wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Which error.
    pub code: Code,
    /// One sentence: what was wrong.
    pub message: String,
    /// Where: a field path such as `tasks[3].limits.memory`, or a file position. May be empty.
    pub place: String,
    /// What to do about it. May be empty.
    pub hint: String,
}

impl Error {
    /// An error without place or hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), place: String::new(), hint: String::new() }
    }

    /// Says where.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = place.into();
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// No key, variable or name that is known is as long.
const MAX_KNOWN: usize = 200;

/// The known name nearest to a mistyped one, if one is near enough to be meant.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance takes time and memory by both lengths, and what was typed may have megabytes.
    let length = typed.chars().take(MAX_KNOWN).count();
    known
        .into_iter()
        .filter(|name| length < MAX_KNOWN && length.abs_diff(name.len()) <= 1 + name.len() / 4)
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_text_is_unique_and_parses_back() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(*code));
        }
    }

    #[test]
    fn a_mistyped_key_finds_its_neighbour_and_nonsense_finds_none() {
        assert_eq!(nearest("comand", ["command", "env"]), Some("command"));
        assert_eq!(nearest("zzzz", ["command", "env"]), None);
    }

    #[test]
    fn a_key_of_megabytes_is_not_compared_letter_by_letter() {
        let began = std::time::Instant::now();
        assert_eq!(nearest(&"a".repeat(8 << 20), ["command", "env"]), None);
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    /// `docs/errors.md`, from the table above.
    fn documented() -> String {
        let mut text = String::from(
            "# Error codes\n\n\
             One code, one meaning: the `code` of an error that `coderingctl` prints as `error[code]`, the last part of the\n\
             `type` of a REST problem document (RFC 9457), and the `reason` of the `ErrorInfo` in a gRPC status.\n\n\
             | code | HTTP | gRPC | meaning |\n|---|---|---|---|\n",
        );
        for code in Code::ALL {
            text += &format!(
                "| `{}` | {} | {:?} | {} |\n",
                code.as_str(),
                code.http(),
                code.grpc(),
                code.meaning()
            );
        }
        text
    }

    #[test]
    fn the_table_in_the_docs_is_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md");
        if std::env::var_os("CODERING_WRITE_DOCS").is_some() {
            std::fs::write(path, documented()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == documented(),
            "docs/errors.md is not current; write it with: CODERING_WRITE_DOCS=1 cargo test -p codering-core docs"
        );
    }
}
