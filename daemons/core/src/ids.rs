//! Names and ids. Each is validated where it enters and is then known to be safe to show, to log and
//! to use as a queue name; none is ever used as a path.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Code, Error, time::Millis};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Validates; the error says the rule.
            pub fn new(text: impl AsRef<str>) -> Result<Self, Error> {
                let text = text.as_ref();
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    return Ok(Self(text.into()));
                }
                Err(Error::new(
                    Code::InvalidInput,
                    format!(concat!("`{}` is not a ", $what, ": ", $rule), shown(text)),
                ))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }
    };
}

/// A foreign text cut and made harmless for a message.
pub fn shown(text: &str) -> String {
    let cut: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    // Direction marks are printable to `escape_debug` in some positions.
    let cut = cut.replace(reorders, "?");
    if text.chars().count() > 60 { format!("{cut}…") } else { cut }
}

/// Whether this character reorders or hides what stands beside it: the marks, embeddings, overrides and isolates of
/// right-to-left text, and the separators that end a line. In a name they are never meant well.
pub fn reorders(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A text for people of 1 to `longest` characters, none of which moves a terminal's cursor or reorders its line.
pub fn is_plain_text(text: &str, longest: usize) -> bool {
    !text.is_empty()
        && text.chars().count() <= longest
        && !text.chars().any(|c| c.is_control() || reorders(c))
}

fn is_slug(text: &str, longest: usize, more: &[u8]) -> bool {
    let bytes = text.as_bytes();
    (1..=longest).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(b))
}

text_id!(
    /// A tenant's name.
    ProjectName, "project name", |text| is_slug(text, 40, b"-_"),
    "1 to 40 of a-z, 0-9, `-` and `_`, starting with a letter or digit"
);
text_id!(
    /// A job: `j-`, six characters of time and four at random, in Crockford's base 32. Sorts by time.
    JobId, "job id", |text| {
        text.len() == 12 && text.starts_with("j-") && text[2..].bytes().all(|b| CROCKFORD.contains(&b))
    },
    "`j-` and ten of 0-9 and a-z without i, l, o and u"
);
text_id!(
    /// Names a task within its job. `~` starts the ids that the broker makes itself.
    TaskId, "task id", |text| {
        (1..=200).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'\\' | b'"' | b'\'' | b'`' | b'<' | b'>'))
            && text != "." && text != ".."
    },
    "1 to 200 printable ASCII characters without spaces, slashes, quotes, `<` and `>`"
);
text_id!(
    /// A worker's name, the subject of its certificate.
    WorkerName, "worker name", |text| is_slug(text, 60, b"-_."),
    "1 to 60 of a-z, 0-9, `-`, `_` and `.`, starting with a letter or digit"
);
text_id!(
    /// A queue: `<project>.<name>`, or a bare name, which belongs to the project `default`.
    QueueName, "queue name", |text| {
        let (project, name) = text.split_once('.').unwrap_or(("default", text));
        is_slug(project, 40, b"-_") && is_slug(name, 80, b"-_.")
    },
    "`<project>.<name>`, each of a-z, 0-9, `-` and `_`"
);
text_id!(
    /// The fencing token of one attempt: 32 hexadecimal digits, random.
    LeaseToken, "lease token", |text| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()),
    "32 hexadecimal digits"
);

const CROCKFORD: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 2024-01-01, so that six characters of seconds last until 2058.
const JOB_EPOCH_SECONDS: i64 = 1_704_067_200;

impl JobId {
    /// A new id for `now`; `random` makes it differ from others of the same second.
    pub fn at(now: Millis, random: u32) -> Self {
        let seconds = (now / 1000 - JOB_EPOCH_SECONDS).clamp(0, (1 << 30) - 1);
        let value = u64::try_from(seconds).unwrap_or(0) << 20 | u64::from(random & 0xf_ffff);
        let text: String =
            (0..10).rev().map(|place| char::from(CROCKFORD[(value >> (5 * place) & 31) as usize])).collect();
        Self(format!("j-{text}").into())
    }
}

impl LeaseToken {
    /// The token of 16 random bytes.
    pub fn from_bytes(random: [u8; 16]) -> Self {
        Self(random.iter().map(|b| format!("{b:02x}")).collect::<String>().into())
    }
}

impl TaskId {
    /// The `run`th reduce step of a job.
    pub fn reduce(run: u32) -> Self {
        Self(format!("~reduce-{run}").into())
    }

    /// Whether the broker made it, which users may not.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('~')
    }
}

impl QueueName {
    /// The project's tasks to do.
    pub fn todo(project: &ProjectName) -> Self {
        Self(format!("{project}.todo").into())
    }

    /// The project's results.
    pub fn done(project: &ProjectName) -> Self {
        Self(format!("{project}.done").into())
    }

    /// The project's dead letters.
    pub fn dead(project: &ProjectName) -> Self {
        Self(format!("{project}.dead").into())
    }

    /// The project that it belongs to.
    pub fn project(&self) -> ProjectName {
        let name = self.0.split_once('.').map_or("default", |(project, _)| project);
        ProjectName(name.into())
    }

    /// What follows the project's name.
    pub fn local(&self) -> &str {
        self.0.split_once('.').map_or(&self.0, |(_, name)| name)
    }

    /// Whether codering's own flow runs over it.
    pub fn is_reserved(&self) -> bool {
        self.0.contains('.') && matches!(self.local(), "todo" | "done" | "dead")
    }
}

/// A task everywhere: its job and its id in it, shown as `JOB/TASK`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskKey {
    /// The job.
    pub job: JobId,
    /// The task in it.
    pub task: TaskId,
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids_sort_by_time_and_read_back() {
        let early = JobId::at(1_763_722_560_000, u32::MAX);
        let late = JobId::at(1_763_722_561_000, 0);
        assert!(early < late, "{early} {late}");
        assert_eq!(JobId::new(early.as_str()), Ok(early));
    }

    #[test]
    fn names_that_could_harm_are_refused_with_the_rule() {
        for bad in ["", "..", "a/b", "A", "a\0", &"x".repeat(10_000), "\u{202e}abc", "-a"] {
            let error = ProjectName::new(bad).expect_err(bad).message;
            assert!(error.contains("1 to 40") && error.len() < 500, "{error}");
            assert!(!error.contains('\u{202e}'), "{error:?}");
        }
    }

    #[test]
    fn a_queue_belongs_to_the_project_before_its_dot() {
        let queue = QueueName::new("pi.todo").expect("valid");
        assert_eq!((queue.project().as_str(), queue.local()), ("pi", "todo"));
        assert!(queue.is_reserved());
        let bare = QueueName::new("hello").expect("valid");
        assert_eq!((bare.project().as_str(), bare.is_reserved()), ("default", false));
    }
}
