//! How the wire types read as JSON: enums by their lower-case names, times as RFC 3339, a command as a string or
//! an array, a result as the message on `<project>.done`.

use codering_core::time::{from_rfc3339, rfc3339};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::v1;

/// A command: a string is run by `/bin/sh -c`, an array is program and arguments, null is none.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct Command(Option<codering_core::Command>);

impl From<v1::Command> for Command {
    fn from(wire: v1::Command) -> Self {
        Self(crate::convert::command(Some(wire)))
    }
}

impl From<Command> for v1::Command {
    fn from(json: Command) -> Self {
        json.0.map(Into::into).unwrap_or_default()
    }
}

/// A task's result, in the one form that results have everywhere.
pub mod result {
    use codering_core::{TaskResult, message::DoneMessage};

    use super::*;

    /// Writes it.
    pub fn serialize<S: Serializer>(value: &Option<v1::TaskResult>, to: S) -> Result<S::Ok, S::Error> {
        let result =
            value.clone().map(TaskResult::try_from).transpose().map_err(serde::ser::Error::custom)?;
        result.as_ref().map(DoneMessage::from).serialize(to)
    }

    /// Reads it.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<v1::TaskResult>, D::Error> {
        let Some(message) = Option::<DoneMessage>::deserialize(from)? else { return Ok(None) };
        let result = message.result().ok_or_else(|| D::Error::custom("a stream or a time is malformed"))?;
        Ok(Some(result.into()))
    }
}

macro_rules! enum_as_name {
    ($module:ident, $type:ident, $prefix:literal) => {
        /// The enum by its lower-case name; the unspecified value is null.
        pub mod $module {
            use super::*;
            use crate::v1::$type;

            /// Writes the name.
            pub fn serialize<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
                match $type::try_from(*value) {
                    Ok($type::Unspecified) | Err(_) => to.serialize_none(),
                    Ok(known) => to.serialize_str(&known.as_str_name()[$prefix.len()..].to_lowercase()),
                }
            }

            /// Reads the name.
            pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
                let Some(name) = Option::<String>::deserialize(from)? else { return Ok(0) };
                $type::from_str_name(&format!("{}{}", $prefix, name.to_uppercase()))
                    .map(|known| known as i32)
                    .ok_or_else(|| D::Error::custom(format!("unknown value `{name}`")))
            }
        }
    };
}

enum_as_name!(job_state, JobState, "JOB_STATE_");
enum_as_name!(task_state, TaskState, "TASK_STATE_");
enum_as_name!(outcome, Outcome, "OUTCOME_");
enum_as_name!(role, Role, "ROLE_");
enum_as_name!(log_stream, LogStream, "LOG_STREAM_");

/// Unix milliseconds as RFC 3339 in UTC; 0 is null.
pub mod time {
    use super::*;

    /// Writes the time.
    pub fn serialize<S: Serializer>(millis: &i64, to: S) -> Result<S::Ok, S::Error> {
        match millis {
            0 => to.serialize_none(),
            _ => to.serialize_str(&rfc3339(*millis)),
        }
    }

    /// Reads the time.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else { return Ok(0) };
        from_rfc3339(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not RFC 3339")))
    }
}

#[cfg(test)]
mod tests {
    use codering_core::{JobId, Outcome, ProjectName, TaskId, TaskResult};

    use super::*;

    #[test]
    fn a_command_is_a_string_or_an_array_and_reads_back() {
        let shell: v1::Command = codering_core::Command::Shell("echo {}".into()).into();
        let argv: v1::Command = codering_core::Command::Argv(vec!["echo".into(), "a b".into()]).into();
        for (command, json) in [(shell, r#""echo {}""#), (argv, r#"["echo","a b"]"#)] {
            assert_eq!(serde_json::to_string(&command).expect("serialises"), json);
            assert_eq!(serde_json::from_str::<v1::Command>(json).expect("reads"), command);
        }
    }

    #[test]
    fn a_tasks_result_has_the_form_of_the_done_queue_and_reads_back() {
        let result = TaskResult {
            stdout: vec![0xff, 0],
            ..TaskResult::without_attempt(
                ProjectName::new("pi").expect("valid"),
                JobId::at(1_763_722_560_000, 7),
                TaskId::new("17").expect("valid"),
                1,
                Outcome::Failed,
                1000,
                "",
            )
        };
        let task = v1::Task { task_id: "17".into(), result: Some(result.into()), ..Default::default() };
        let json = serde_json::to_value(&task).expect("serialises");
        assert_eq!(json["result"]["outcome"], "failed");
        assert_eq!(json["result"]["encoding"], "base64");
        assert_eq!(serde_json::from_value::<v1::Task>(json).expect("reads"), task);
    }
}
