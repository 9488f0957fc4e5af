//! What a job and its tasks ask for, and what an attempt is told to do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Code, Error, Limits, LimitsPatch, ProjectName, TaskId, limits::REDUCE_OUTPUT_BYTES};

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Command {
    /// Run by `/bin/sh -c`.
    Shell(String),
    /// Program and arguments.
    Argv(Vec<String>),
}

/// Replaced by the task's argument in its job's command.
pub const PLACEHOLDER: &str = "{}";

impl Command {
    /// Program and arguments.
    pub fn argv(&self) -> Vec<String> {
        match self {
            Self::Shell(line) => vec!["/bin/sh".into(), "-c".into(), line.clone()],
            Self::Argv(args) => args.clone(),
        }
    }

    /// With every `{}` replaced. In a shell line the argument is quoted, so that it stays one word.
    pub fn with_arg(&self, arg: &str) -> Self {
        match self {
            Self::Shell(line) => Self::Shell(line.replace(PLACEHOLDER, &shell_quoted(arg))),
            Self::Argv(args) => Self::Argv(args.iter().map(|part| part.replace(PLACEHOLDER, arg)).collect()),
        }
    }

    /// Checks it as [`Self::with_arg`] makes it, without making it: a thousand times a long argument is a lot.
    pub fn validate_with_arg(&self, arg: &str) -> Result<(), Error> {
        self.validate()?;
        let wrong = |what: &str| Err(Error::new(Code::JobInvalid, what.to_owned()).at("arg"));
        if arg.contains('\0') {
            return wrong("an argument holds no NUL");
        }
        let (parts, filled): (&[String], usize) = match self {
            Self::Shell(line) => (std::slice::from_ref(line), shell_quoted(arg).len()),
            Self::Argv(args) => (args, arg.len()),
        };
        let places: usize = parts.iter().map(|part| part.matches(PLACEHOLDER).count()).sum();
        let rest = parts.iter().map(String::len).sum::<usize>() - places * PLACEHOLDER.len();
        // What `sh -c` adds, as in `validate`.
        let shell = self.argv_overhead();
        if places.saturating_mul(filled).saturating_add(rest + shell) > MAX_COMMAND_BYTES {
            return Err(Error::new(Code::JobInvalid, "the command with its argument has at most 64 KiB")
                .at("arg")
                .hint("put long input into `stdin` or into the repository"));
        }
        // The command of an argument list may be nothing but its argument.
        match self {
            Self::Argv(args) if args[0] == PLACEHOLDER && arg.is_empty() => wrong("a command is not empty"),
            _ => Ok(()),
        }
    }

    fn argv_overhead(&self) -> usize {
        match self {
            Self::Shell(_) => "/bin/sh".len() + "-c".len(),
            Self::Argv(_) => 0,
        }
    }

    /// One line for a person.
    pub fn shown(&self) -> String {
        match self {
            Self::Shell(line) => line.clone(),
            Self::Argv(args) => args.iter().map(|a| shell_quoted(a)).collect::<Vec<_>>().join(" "),
        }
    }

    /// Refuses an empty command, and NUL, which no argument can hold.
    pub fn validate(&self) -> Result<(), Error> {
        let bad = match self {
            Self::Shell(line) => line.trim().is_empty() || line.contains('\0'),
            Self::Argv(args) => {
                args.first().is_none_or(String::is_empty) || args.iter().any(|a| a.contains('\0'))
            }
        };
        let long = self.argv().iter().map(String::len).sum::<usize>() > MAX_COMMAND_BYTES;
        match (bad, long) {
            (true, _) => {
                Err(Error::new(Code::JobInvalid, "a command is not empty and holds no NUL").at("command"))
            }
            (_, true) => Err(Error::new(Code::JobInvalid, "a command has at most 64 KiB")
                .at("command")
                .hint("put long input into `stdin` or into the repository")),
            _ => Ok(()),
        }
    }
}

/// Linux takes 128 KiB for one argument; half of it leaves room for `{}`.
pub const MAX_COMMAND_BYTES: usize = 64 << 10;
fn shell_quoted(arg: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&b);
    if !arg.is_empty() && arg.bytes().all(plain) {
        return arg.to_owned();
    }
    format!("'{}'", arg.replace('\'', r"'\''"))
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// The repository's address.
    pub git_url: String,
    /// A branch, tag or commit.
    pub git_ref: String,
    /// The Dockerfile's path in the repository.
    pub dockerfile: String,
}

impl Source {
    /// The default ref.
    pub const DEFAULT_REF: &'static str = "HEAD";
    /// The default Dockerfile.
    pub const DEFAULT_DOCKERFILE: &'static str = "Dockerfile";

    /// Checks the form of each part; whether the scheme is allowed is the worker's configuration.
    pub fn validate(&self) -> Result<(), Error> {
        let fail = |code, place: &str, what: &str| Err(Error::new(code, what.to_owned()).at(place));
        let clean = |text: &str| {
            !text.chars().any(|c| c.is_control() || c.is_whitespace() || crate::ids::reorders(c))
        };
        let scheme =
            ["https://", "http://", "ssh://", "file:///"].iter().any(|s| self.git_url.starts_with(s));
        let scp = !self.git_url.contains("://")
            && !self.git_url.starts_with('-')
            && self
                .git_url
                .split_once(':')
                .is_some_and(|(host, path)| host.contains('@') && !path.is_empty());
        if !(scheme || scp) || !clean(&self.git_url) || self.git_url.len() > 2000 {
            return fail(
                Code::GitUrlRefused,
                "git",
                &format!(
                    "`{}` is not a git address: https://…, ssh://…, user@host:path, or file:///… where the worker allows it",
                    crate::ids::shown(&without_password(&self.git_url))
                ),
            );
        }
        let reference_ok = !self.git_ref.is_empty()
            && self.git_ref.len() <= 250
            && clean(&self.git_ref)
            && !self.git_ref.starts_with('-')
            && !self.git_ref.contains("..")
            && !self.git_ref.contains(['~', '^', ':', '?', '*', '[', '\\']);
        if !reference_ok {
            return fail(
                Code::JobInvalid,
                "ref",
                "a ref is a branch, a tag or a commit of at most 250 characters",
            );
        }
        let path_ok = !self.dockerfile.is_empty()
            && self.dockerfile.len() <= 500
            && !self.dockerfile.starts_with('/')
            && !self.dockerfile.contains(|c: char| c == '\\' || c.is_control() || crate::ids::reorders(c))
            && self.dockerfile.split('/').all(|part| !part.is_empty() && part != "..");
        if !path_ok {
            return fail(
                Code::JobInvalid,
                "dockerfile",
                "a Dockerfile is a relative path inside the repository",
            );
        }
        Ok(())
    }

    /// Whether the ref names one commit already.
    pub fn pinned(&self) -> Option<&str> {
        let full = self.git_ref.len() == 40 && self.git_ref.bytes().all(|b| b.is_ascii_hexdigit());
        full.then_some(self.git_ref.as_str())
    }
}

/// A git address without the password that it may carry, for messages and logs.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // `user:password@host:path` is no address, but somebody may have written one.
        return match url.split_once('@') {
            Some((user, rest)) => format!("{}@{rest}", user.split(':').next().unwrap_or_default()),
            None => url.to_owned(),
        };
    };
    let authority_end = rest.find('/').unwrap_or(rest.len());
    match rest[..authority_end].rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{host}{}", &rest[authority_end..])
        }
        None => url.to_owned(),
    }
}

/// What becomes of a job's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reduce {
    /// Reads the results as JSONL on its standard input; its standard output is the answer.
    pub command: Command,
    /// The answer's name.
    pub output: String,
    /// Limits of its own.
    #[serde(default)]
    pub limits: LimitsPatch,
}

/// What a job asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The tenant.
    pub project: ProjectName,
    /// For people; not unique.
    pub name: String,
    /// The repository that all its tasks share.
    pub source: Source,
    /// The command of tasks that name none.
    pub command: Option<Command>,
    /// Environment of every task.
    pub env: BTreeMap<String, String>,
    /// Limits of every task.
    pub limits: LimitsPatch,
    /// The last step.
    pub reduce: Option<Reduce>,
    /// Higher first, where the queue backend knows priorities.
    pub priority: i32,
    /// Only workers that have all of these run it.
    pub labels: BTreeMap<String, String>,
}

/// What one task asks for beyond its job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Its id in the job.
    pub id: TaskId,
    /// Stands for `{}` in the job's command; the task's id when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arg: Option<String>,
    /// Instead of the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// Over the job's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Its standard input.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "crate::message::base64_bytes")]
    pub stdin: Vec<u8>,
    /// Over the job's.
    #[serde(default)]
    pub limits: LimitsPatch,
    /// Instead of the job's; raw messages each bring their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Unknown fields of a raw message, kept.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl TaskSpec {
    /// A task with nothing of its own.
    pub fn new(id: TaskId) -> Self {
        Self {
            id,
            arg: None,
            command: None,
            env: BTreeMap::new(),
            stdin: Vec::new(),
            limits: LimitsPatch::default(),
            source: None,
            extra: serde_json::Map::new(),
        }
    }

    /// Checks it against its job.
    pub fn validate(&self, job: &JobSpec) -> Result<(), Error> {
        if self.id.is_reserved() {
            return Err(Error::new(Code::JobInvalid, "a task id does not start with `~`").at("id"));
        }
        let Some(command) = self.command.as_ref().or(job.command.as_ref()) else {
            return Err(
                Error::new(Code::JobInvalid, "neither the task nor its job has a command").at("command")
            );
        };
        // As it will be queued: a message that its own queue refuses would never run and never end.
        command.validate_with_arg(self.arg.as_deref().unwrap_or(self.id.as_str()))?;
        if let Some(source) = &self.source {
            source.validate()?;
        }
        if env_bytes(&self.env) + env_bytes(&job.env) > MAX_ENV_BYTES {
            return Err(too_much_env());
        }
        self.validate_own()
    }

    /// Checks a task that belongs to no job yet: a raw message's.
    pub fn validate_alone(&self) -> Result<(), Error> {
        self.source.as_ref().map_or(Ok(()), Source::validate)?;
        if env_bytes(&self.env) > MAX_ENV_BYTES {
            return Err(too_much_env());
        }
        // Its `{}` is the task's id.
        self.command.as_ref().map_or(Ok(()), |command| command.validate_with_arg(self.id.as_str()))?;
        self.validate_own()
    }

    fn validate_own(&self) -> Result<(), Error> {
        if self.stdin.len() > MAX_STDIN_BYTES {
            return Err(Error::new(Code::TooLarge, "a task's stdin has at most 1 MiB").at("stdin"));
        }
        validate_env(&self.env)?;
        self.limits.validate()
    }
}

/// All variables of an attempt. They travel in its queue message, where a byte may take six.
pub const MAX_ENV_BYTES: usize = 256 << 10;

fn env_bytes(env: &BTreeMap<String, String>) -> usize {
    env.iter().map(|(name, value)| name.len() + value.len()).sum()
}

fn too_much_env() -> Error {
    Error::new(Code::JobInvalid, "the variables of a task and its job have at most 256 KiB together")
        .at("env")
        .hint("put long input into `stdin` or into the repository")
}

/// A task's standard input travels in its queue message.
pub const MAX_STDIN_BYTES: usize = 1 << 20;

pub(crate) fn validate_env(env: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in env {
        let name_ok = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !name_ok || value.contains('\0') || name.len() + value.len() > MAX_COMMAND_BYTES {
            return Err(Error::new(
                Code::JobInvalid,
                "a variable's name has letters, digits and `_`, its value no NUL and at most 64 KiB",
            )
            .at(format!("env.{}", crate::ids::shown(name))));
        }
    }
    Ok(())
}

/// More labels than these choose no worker that there is.
pub const MAX_LABELS: usize = 100;

/// Refuses labels that no worker can have, or that would do a terminal harm.
pub fn validate_labels<'a>(
    labels: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<(), Error> {
    if labels.len() > MAX_LABELS {
        return Err(
            Error::new(Code::JobInvalid, format!("there are at most {MAX_LABELS} labels")).at("labels")
        );
    }
    for (name, value) in labels {
        let name_ok = (1..=100).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if !name_ok || !(value.is_empty() || crate::ids::is_plain_text(value, 200)) {
            return Err(Error::new(
                Code::JobInvalid,
                "a label's name has 1 to 100 of a-z, A-Z, 0-9, `-`, `_`, `.` and `/`, its value at most 200 printable characters",
            )
            .at(format!("labels.{}", crate::ids::shown(name))));
        }
    }
    Ok(())
}

/// What a worker is told to run: job and task made one, every limit set.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptSpec {
    /// The repository.
    pub source: Source,
    /// The command.
    pub command: Command,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The standard input, unless `stdin_from_results`.
    pub stdin: Vec<u8>,
    /// A reduce step reads the job's results.
    pub stdin_from_results: bool,
    /// The limits.
    pub limits: Limits,
}

impl JobSpec {
    /// Checks all of it but its tasks.
    pub fn validate(&self) -> Result<(), Error> {
        if !crate::ids::is_plain_text(&self.name, 100) {
            let rule =
                "a job's name has 1 to 100 characters, none of them a control character or a direction mark";
            return Err(Error::new(Code::JobInvalid, rule)
                .at("name")
                .hint("name it otherwise: name = \"…\""));
        }
        validate_labels(self.labels.iter())?;
        self.source.validate()?;
        if let Some(command) = &self.command {
            command.validate()?;
        }
        if let Some(reduce) = &self.reduce {
            reduce.validate()?;
        }
        validate_env(&self.env)?;
        if env_bytes(&self.env) > MAX_ENV_BYTES {
            return Err(too_much_env());
        }
        if self.labels.len() > 100 {
            return Err(Error::new(Code::JobInvalid, "a job asks for at most 100 labels").at("labels"));
        }
        self.limits.validate()
    }

    /// The attempt that `task` of this job asks for.
    pub fn attempt(&self, task: &TaskSpec, defaults: &Limits) -> AttemptSpec {
        let arg = task.arg.as_deref().unwrap_or(task.id.as_str());
        let command = match (&task.command, &self.command) {
            (Some(own), _) => own.with_arg(arg),
            (None, Some(shared)) => shared.with_arg(arg),
            // Refused when it was submitted; running nothing is the safe reading of an old row.
            (None, None) => Command::Argv(vec!["true".into()]),
        };
        let mut env = self.env.clone();
        env.extend(task.env.clone());
        AttemptSpec {
            source: task.source.clone().unwrap_or_else(|| self.source.clone()),
            command,
            env,
            stdin: task.stdin.clone(),
            stdin_from_results: false,
            limits: task.limits.over(&self.limits.over(defaults)),
        }
    }

    /// The attempt that its reduce step asks for.
    pub fn reduce_attempt(&self, reduce: &Reduce, defaults: &Limits) -> AttemptSpec {
        let mut base = self.limits.over(defaults);
        base.output_bytes = REDUCE_OUTPUT_BYTES;
        AttemptSpec {
            source: self.source.clone(),
            command: reduce.command.clone(),
            env: self.env.clone(),
            stdin: Vec::new(),
            stdin_from_results: true,
            limits: reduce.limits.over(&base),
        }
    }
}

impl Reduce {
    /// Checks it.
    pub fn validate(&self) -> Result<(), Error> {
        let place = |mut error: Error| {
            error.place = format!("reduce.{}", error.place);
            error
        };
        self.command.validate().map_err(place)?;
        let name_ok = (1..=100).contains(&self.output.len())
            && self.output.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !self.output.starts_with('.');
        if !name_ok {
            return Err(
                Error::new(Code::JobInvalid, "the answer's name is a plain file name").at("reduce.output")
            );
        }
        self.limits.validate().map_err(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_stays_one_word_in_a_shell_line() {
        let line = Command::Shell("echo {}".into()).with_arg("a; rm -rf 'x'");
        assert_eq!(line, Command::Shell(r"echo 'a; rm -rf '\''x'\'''".into()));
        assert_eq!(Command::Shell("n {}".into()).with_arg("17"), Command::Shell("n 17".into()));
    }

    fn job(command: &str) -> JobSpec {
        JobSpec {
            project: ProjectName::new("p").expect("valid"),
            name: "n".into(),
            source: Source {
                git_url: "https://h/p".into(),
                git_ref: "HEAD".into(),
                dockerfile: "Dockerfile".into(),
            },
            command: Some(Command::Shell(command.into())),
            env: BTreeMap::new(),
            limits: LimitsPatch::default(),
            reduce: None,
            priority: 0,
            labels: BTreeMap::new(),
        }
    }

    fn task(arg: &str) -> TaskSpec {
        TaskSpec { arg: Some(arg.into()), ..TaskSpec::new(TaskId::new("t").expect("valid")) }
    }

    #[test]
    fn an_argument_that_would_make_the_command_longer_than_linux_takes_is_refused_at_submit() {
        assert_eq!(task(&"x".repeat(60_000)).validate(&job("echo {}")), Ok(()));
        let error = task(&"x".repeat(140_000)).validate(&job("echo {}")).expect_err("too long");
        assert_eq!((error.code, error.place.as_str()), (Code::JobInvalid, "arg"), "{error}");
        // Made, this would be 32 GiB.
        let error = task(&"x".repeat(1 << 20)).validate(&job(&"{}".repeat(32 << 10))).expect_err("too long");
        assert!(error.message.contains("at most 64 KiB"), "{error}");
        let error = task("a\0b").validate(&job("echo {}")).expect_err("NUL");
        assert_eq!(error.place, "arg");
    }

    #[test]
    fn names_and_labels_that_would_move_a_terminals_cursor_or_reorder_its_line_are_refused() {
        for bad in [
            "",
            "a\u{1b}[2J",
            "a\nb",
            "\u{202e}txt.exe",
            "a\u{200f}b",
            "\u{9b}31m",
            "a\u{2066}b",
            &"x".repeat(10_000),
        ] {
            let mut job = job("true");
            job.name = bad.into();
            assert_eq!(job.validate().expect_err(bad).place, "name");
            job.name = "größe / 大小".into();
            assert_eq!(job.validate(), Ok(()));
            job.labels = BTreeMap::from([(bad.to_owned(), "x".to_owned())]);
            let error = job.validate().expect_err(bad);
            assert!(error.place.starts_with("labels.") && error.place.len() < 500, "{error}");
            assert!(
                !error.to_string().contains(|c: char| c.is_control() || crate::ids::reorders(c)),
                "{error:?}"
            );
            if !bad.is_empty() {
                job.labels = BTreeMap::from([("gpu".to_owned(), bad.to_owned())]);
                assert_eq!(job.validate().expect_err(bad).place, "labels.gpu");
            }
        }
    }

    #[test]
    fn an_argument_that_makes_the_command_unusable_is_refused_with_the_task() {
        let job = JobSpec {
            project: ProjectName::new("pi").expect("valid"),
            name: "pi".into(),
            source: Source {
                git_url: "https://h/p".into(),
                git_ref: "HEAD".into(),
                dockerfile: "Dockerfile".into(),
            },
            command: Some(Command::Shell("pi {} {}".into())),
            env: BTreeMap::new(),
            limits: LimitsPatch::default(),
            reduce: None,
            priority: 0,
            labels: BTreeMap::new(),
        };
        let with = |arg: &str| {
            let task = TaskSpec { arg: Some(arg.into()), ..TaskSpec::new(TaskId::new("1").expect("valid")) };
            task.validate(&job).map_err(|error| error.place)
        };
        assert_eq!(with("a\0b"), Err("arg".into()));
        assert_eq!(with(&"x".repeat(40_000)), Err("arg".into()), "it stands there twice");
        assert_eq!(with(&"x".repeat(20_000)), Ok(()));
        let mut task = TaskSpec::new(TaskId::new("1").expect("valid"));
        task.env = (0..5).map(|n| (format!("V{n}"), "x".repeat(60_000))).collect();
        assert_eq!(task.validate(&job).map_err(|error| error.place), Err("env".into()));
    }

    #[test]
    fn git_addresses_of_other_schemes_are_refused() {
        let source = |url: &str| Source {
            git_url: url.into(),
            git_ref: "HEAD".into(),
            dockerfile: "Dockerfile".into(),
        };
        for good in ["https://h/p.git", "ssh://git@h/p", "git@h:p.git", "file:///srv/p.git"] {
            assert_eq!(source(good).validate(), Ok(()), "{good}");
        }
        for bad in
            ["ext::sh -c id", "git://h/p", "-oProxyCommand=x@h:p", "/srv/p", "https://h/a b", "file://h/p"]
        {
            assert!(source(bad).validate().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_never_shown() {
        assert_eq!(without_password("https://me:secret@h/p"), "https://me@h/p");
        assert_eq!(without_password("https://h/p@x"), "https://h/p@x");
        assert_eq!(without_password("me:secret@h:p"), "me@h:p");
    }
}
