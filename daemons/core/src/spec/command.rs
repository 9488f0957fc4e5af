//! A command line, its argument, and how long both may be.

use serde::{Deserialize, Serialize};

use crate::{Code, Error};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_stays_one_word_in_a_shell_line() {
        let line = Command::Shell("echo {}".into()).with_arg("a; rm -rf 'x'");
        assert_eq!(line, Command::Shell(r"echo 'a; rm -rf '\''x'\'''".into()));
        assert_eq!(Command::Shell("n {}".into()).with_arg("17"), Command::Shell("n 17".into()));
    }
}
