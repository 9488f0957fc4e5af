//! What a job and its tasks ask for, and what an attempt is told to do.

mod command;
mod env;
mod labels;
mod source;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::env::{env_bytes, too_much_env, validate_env};
pub use self::{
    command::{Command, MAX_COMMAND_BYTES, PLACEHOLDER},
    env::MAX_ENV_BYTES,
    labels::{MAX_LABELS, validate_labels},
    source::{Source, without_password},
};
use crate::{Code, Error, Limits, LimitsPatch, ProjectName, TaskId, limits::REDUCE_OUTPUT_BYTES};

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

/// A task's standard input travels in its queue message.
pub const MAX_STDIN_BYTES: usize = 1 << 20;

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
}
