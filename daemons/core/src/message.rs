//! The JSON on `<project>.todo` and `<project>.done`.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Code, Command, Error, JobId, LimitsPatch, Outcome, ProjectName, Source, TaskId, TaskKey, TaskResult,
    TaskSpec,
    result::Phases,
    spec::AttemptSpec,
    time::{from_rfc3339, rfc3339},
};

/// No message is larger; a larger one is refused where it enters.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// A task on `<project>.todo`. The first four fields are enough; an unknown one is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TodoMessage {
    /// The tenant; must be the queue's.
    pub project_id: ProjectName,
    /// The task.
    pub task_id: TaskId,
    /// The repository.
    pub git_url: String,
    /// A string is run by `/bin/sh -c`.
    pub command: Command,
    /// Absent: adopted into the project's open job.
    #[serde(default)]
    pub job_id: Option<JobId>,
    /// A branch, tag or commit.
    #[serde(default = "default_ref")]
    pub git_ref: String,
    /// Its path in the repository.
    #[serde(default = "default_dockerfile")]
    pub dockerfile: String,
    /// The environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The standard input, as text.
    #[serde(default)]
    pub stdin: String,
    /// `base64` when `stdin` is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_encoding: Option<String>,
    /// Wall clock in seconds.
    #[serde(default)]
    pub timeout_seconds: Option<f64>,
    /// Memory in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Cores.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// Processes.
    #[serde(default)]
    pub max_pids: Option<u32>,
    /// Network.
    #[serde(default)]
    pub network: Option<bool>,
    /// Failures of the user's own.
    #[serde(default)]
    pub max_attempts: Option<u32>,
    /// Higher first, where the backend can.
    #[serde(default)]
    pub priority: i32,
    /// What else there was.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn default_ref() -> String {
    Source::DEFAULT_REF.into()
}

fn default_dockerfile() -> String {
    Source::DEFAULT_DOCKERFILE.into()
}

impl TodoMessage {
    /// Its task, where the message says of which job it is.
    pub fn key(&self) -> Option<TaskKey> {
        Some(TaskKey { job: self.job_id.clone()?, task: self.task_id.clone() })
    }

    /// Reads and checks a message of `project`'s todo queue. Whatever bytes come, it answers with an error, never a panic.
    pub fn read(bytes: &[u8], project: &ProjectName) -> Result<Self, Error> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(Error::new(
                Code::TooLarge,
                format!("a message has at most {MAX_MESSAGE_BYTES} bytes, this one {}", bytes.len()),
            ));
        }
        let message: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::new(Code::InvalidJson, format!("not a task message: {error}")))?;
        if message.project_id != *project {
            return Err(Error::new(
                Code::InvalidInput,
                format!("a message for project {} on the queue of {project}", message.project_id),
            )
            .at("project_id"));
        }
        if message.task_id.is_reserved() && message.job_id.is_none() {
            return Err(Error::new(Code::JobInvalid, "a task id does not start with `~`").at("task_id"));
        }
        // Of a task that the ledger has, the ledger counts and not the message.
        if message.job_id.is_none() {
            message.task_spec()?.validate_alone()?;
        }
        Ok(message)
    }

    /// The same task in few bytes: what names it, its repository and its limits.
    #[must_use]
    pub fn without_bulk(self) -> Self {
        Self {
            command: Command::Argv(vec!["true".into()]),
            env: BTreeMap::new(),
            stdin: String::new(),
            stdin_encoding: None,
            extra: Map::new(),
            ..self
        }
    }

    /// The task that a raw message asks for.
    pub fn task_spec(&self) -> Result<TaskSpec, Error> {
        let stdin = match self.stdin_encoding.as_deref() {
            None => self.stdin.clone().into_bytes(),
            Some("base64") => STANDARD
                .decode(&self.stdin)
                .map_err(|_| Error::new(Code::InvalidInput, "not base64").at("stdin"))?,
            Some(_) => {
                return Err(
                    Error::new(Code::InvalidInput, "the only encoding is `base64`").at("stdin_encoding")
                );
            }
        };
        let timeout_ms = match self.timeout_seconds {
            None => None,
            Some(s) if s > 0.0 && s <= 604_800.0 => Some((s * 1000.0) as u64),
            Some(_) => {
                return Err(Error::new(Code::JobInvalid, "must be more than 0 and at most 604800")
                    .at("timeout_seconds"));
            }
        };
        Ok(TaskSpec {
            id: self.task_id.clone(),
            arg: None,
            command: Some(self.command.clone()),
            env: self.env.clone(),
            stdin,
            limits: LimitsPatch {
                timeout_ms,
                memory_bytes: self.memory_bytes,
                cpus: self.cpus,
                max_pids: self.max_pids,
                network: self.network,
                max_attempts: self.max_attempts,
                output_bytes: None,
            },
            source: Some(Source {
                git_url: self.git_url.clone(),
                git_ref: self.git_ref.clone(),
                dockerfile: self.dockerfile.clone(),
            }),
            extra: self.extra.clone(),
        })
    }

    /// The message by which the broker itself queues a task.
    pub fn of(
        project: &ProjectName,
        job: &JobId,
        task: &TaskSpec,
        attempt: &AttemptSpec,
        priority: i32,
    ) -> Self {
        let (stdin, encoding) = text_or_base64(&attempt.stdin);
        Self {
            project_id: project.clone(),
            task_id: task.id.clone(),
            git_url: attempt.source.git_url.clone(),
            command: attempt.command.clone(),
            job_id: Some(job.clone()),
            git_ref: attempt.source.git_ref.clone(),
            dockerfile: attempt.source.dockerfile.clone(),
            env: attempt.env.clone(),
            stdin,
            stdin_encoding: encoding.map(str::to_owned),
            timeout_seconds: Some(attempt.limits.timeout_ms as f64 / 1000.0),
            memory_bytes: Some(attempt.limits.memory_bytes),
            cpus: Some(attempt.limits.cpus),
            max_pids: Some(attempt.limits.max_pids),
            network: Some(attempt.limits.network),
            max_attempts: Some(attempt.limits.max_attempts),
            priority,
            extra: task.extra.clone(),
        }
    }
}

/// A recorded result on `<project>.done`, in REST and in JSONL. A stream that is not UTF-8 is base64,
/// and then `encoding` says so for both streams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DoneMessage {
    pub project_id: ProjectName,
    pub job_id: JobId,
    pub task_id: TaskId,
    pub attempt: u32,
    pub outcome: Outcome,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// `base64` when a stream is not text; then both are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    pub stdout_truncated: bool,
    pub stderr_truncated: bool,
    pub started_at: String,
    pub finished_at: String,
    pub phases_ms: Phases,
    pub worker: String,
    pub commit: String,
    pub image: String,
    #[serde(default)]
    pub message: String,
}

impl From<&TaskResult> for DoneMessage {
    fn from(result: &TaskResult) -> Self {
        let text = (std::str::from_utf8(&result.stdout), std::str::from_utf8(&result.stderr));
        let (stdout, stderr, encoding) = match text {
            (Ok(out), Ok(err)) => (out.to_owned(), err.to_owned(), None),
            _ => {
                (STANDARD.encode(&result.stdout), STANDARD.encode(&result.stderr), Some("base64".to_owned()))
            }
        };
        Self {
            project_id: result.project.clone(),
            job_id: result.job.clone(),
            task_id: result.task.clone(),
            attempt: result.attempt,
            outcome: result.outcome,
            exit_code: result.exit_code,
            signal: result.signal,
            stdout,
            stderr,
            encoding,
            stdout_truncated: result.stdout_truncated,
            stderr_truncated: result.stderr_truncated,
            started_at: rfc3339(result.started_at),
            finished_at: rfc3339(result.finished_at),
            phases_ms: result.phases,
            worker: result.worker.clone(),
            commit: result.commit.clone(),
            image: result.image.clone(),
            message: result.message.clone(),
        }
    }
}

impl DoneMessage {
    /// The result back; `None` when a stream or a time is malformed.
    pub fn result(&self) -> Option<TaskResult> {
        let bytes = |text: &str| match self.encoding.as_deref() {
            Some("base64") => STANDARD.decode(text).ok(),
            _ => Some(text.as_bytes().to_vec()),
        };
        Some(TaskResult {
            project: self.project_id.clone(),
            job: self.job_id.clone(),
            task: self.task_id.clone(),
            attempt: self.attempt,
            outcome: self.outcome,
            exit_code: self.exit_code,
            signal: self.signal,
            stdout: bytes(&self.stdout)?,
            stderr: bytes(&self.stderr)?,
            stdout_truncated: self.stdout_truncated,
            stderr_truncated: self.stderr_truncated,
            started_at: from_rfc3339(&self.started_at)?,
            finished_at: from_rfc3339(&self.finished_at)?,
            phases: self.phases_ms,
            worker: self.worker.clone(),
            commit: self.commit.clone(),
            image: self.image.clone(),
            message: self.message.clone(),
        })
    }
}

/// Text as it is, other bytes as base64 with the name of the encoding.
pub fn text_or_base64(bytes: &[u8]) -> (String, Option<&'static str>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (STANDARD.encode(bytes), Some("base64")),
    }
}

/// For `#[serde(with)]`: bytes as base64.
pub mod base64_bytes {
    use super::{Engine, STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes base64.
    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    /// Reads base64.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> ProjectName {
        ProjectName::new("pi").expect("valid")
    }

    #[test]
    fn four_fields_are_enough_and_unknown_ones_are_kept() {
        let bytes = br#"{"project_id":"pi","task_id":"17","git_url":"https://h/pi.git","command":"true","colour":"red"}"#;
        let message = TodoMessage::read(bytes, &project()).expect("valid");
        assert_eq!((message.git_ref.as_str(), message.dockerfile.as_str()), ("HEAD", "Dockerfile"));
        assert_eq!(message.task_spec().expect("valid").extra["colour"], "red");
    }

    #[test]
    fn a_command_may_be_an_argv_array() {
        let bytes =
            br#"{"project_id":"pi","task_id":"17","git_url":"https://h/pi.git","command":["echo","a b"]}"#;
        let message = TodoMessage::read(bytes, &project()).expect("valid");
        assert_eq!(message.command, Command::Argv(vec!["echo".into(), "a b".into()]));
    }

    #[test]
    fn what_is_wrong_with_a_message_is_said_and_nothing_panics() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        for (bytes, says) in [
            ("no json", "not a task message"),
            (deep.as_str(), "not a task message"),
            (r#"{"project_id":"other","task_id":"1","git_url":"https://h/p","command":"x"}"#, "other"),
            (r#"{"project_id":"pi","task_id":"../1","git_url":"https://h/p","command":"x"}"#, "task id"),
            (r#"{"project_id":"pi","task_id":"1","git_url":"ext::sh","command":"x"}"#, "git address"),
            (
                r#"{"project_id":"pi","task_id":"1","git_url":"https://h/p","command":"x","timeout_seconds":-1}"#,
                "at most",
            ),
        ] {
            let error = TodoMessage::read(bytes.as_bytes(), &project()).expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn output_that_is_not_text_travels_losslessly() {
        let id = JobId::at(1_763_722_560_000, 7);
        let mut result = TaskResult::without_attempt(
            project(),
            id,
            TaskId::new("1").expect("valid"),
            1,
            Outcome::Failed,
            1000,
            "",
        );
        result.stdout = vec![0xff, 0, b'a'];
        result.stderr = b"plain".to_vec();
        let message = DoneMessage::from(&result);
        assert_eq!(message.encoding.as_deref(), Some("base64"));
        let json = serde_json::to_string(&message).expect("serialises");
        let back: DoneMessage = serde_json::from_str(&json).expect("reads");
        assert_eq!(back.result(), Some(result));
    }
}
