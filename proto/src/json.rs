//! How the wire types read as JSON: enums by their lower-case names, times as RFC 3339.

use codering_core::time::{from_rfc3339, rfc3339};
use serde::{Deserialize, Deserializer, Serializer, de::Error};

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
