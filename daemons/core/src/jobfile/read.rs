//! Reading values of a job file with errors that a person understands.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use super::{MAX_TASKS, TaskFile};
use crate::{Code, Command, Error, error::nearest};

/// What serde said, as codering's own error: an unknown key with the one that was probably meant.
/// Works for any format whose deserializer passes serde's own messages on.
pub fn explained(said: &str) -> Error {
    let Some(rest) = said.strip_prefix("unknown field `") else {
        let said = without_position(said);
        return match said.contains(TOO_MANY) {
            true => too_many(said),
            false => Error::new(Code::JobInvalid, said),
        };
    };
    let (key, rest) = rest.split_once('`').unwrap_or((rest, ""));
    // "expected one of `a`, `b`": every second piece is a name.
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let error = Error::new(Code::JobUnknownField, format!("unknown key `{}`", crate::ids::shown(key)));
    match nearest(key, known.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("the keys here are {}", known.join(", "))),
    }
}

/// How a list says that it ended at its bound.
const TOO_MANY: &str = "a job has at most 1000000 tasks";

/// One task more than a job may have.
pub fn too_many(said: &str) -> Error {
    Error::new(Code::JobTooManyTasks, said).hint("split it into several jobs")
}

/// A list of tasks, read no further than a job may have: a body of some megabytes would be gigabytes of them.
pub fn tasks<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<TaskFile>>, D::Error> {
    struct Visit;
    impl<'de> Visitor<'de> for Visit {
        type Value = Option<Vec<TaskFile>>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of tasks")
        }
        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut tasks = Vec::new();
            while let Some(task) = list.next_element()? {
                if tasks.len() == MAX_TASKS {
                    return Err(de::Error::custom(TOO_MANY));
                }
                tasks.push(task);
            }
            Ok(Some(tasks))
        }
    }
    from.deserialize_any(Visit)
}

/// Without serde_json's " at line 1 column 2", which is told as a place.
fn without_position(said: &str) -> &str {
    match said.rfind(" at line ") {
        Some(at) if said[at..].contains(" column ") => &said[..at],
        _ => said,
    }
}

/// A string, or a list of strings.
pub fn command<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Command>, D::Error> {
    Ok(Option::<Written>::deserialize(from)?.map(|written| written.0))
}

/// A string, or a number as it is written.
pub fn scalar<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Scalar>::deserialize(from)?.map(|scalar| scalar.0))
}

/// A table of strings; a number or truth value stands for its text.
pub fn env<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let table = BTreeMap::<String, Scalar>::deserialize(from)?;
    Ok(table.into_iter().map(|(name, value)| (name, value.0)).collect())
}

/// What an untagged enum would accept, with an error that says what was expected.
struct Written(Command);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Written;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a command line, or a list of a program and its arguments")
            }
            fn visit_str<E: de::Error>(self, line: &str) -> Result<Written, E> {
                Ok(Written(Command::Shell(line.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Written, A::Error> {
                let mut args = Vec::new();
                while let Some(Scalar(arg)) = list.next_element()? {
                    args.push(arg);
                }
                Ok(Written(Command::Argv(args)))
            }
        }
        from.deserialize_any(Visit)
    }
}

/// A single value as text.
pub struct Scalar(pub String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a number")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
            fn visit_bool<E: de::Error>(self, truth: bool) -> Result<Scalar, E> {
                Ok(Scalar(truth.to_string()))
            }
        }
        from.deserialize_any(Visit)
    }
}
