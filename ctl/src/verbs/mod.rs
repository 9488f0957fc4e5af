//! One file or directory a verb.

mod limits;
pub mod reduce;
pub mod results;
pub mod watch;

use codering_core::Command;

/// What follows `--`: one word is a shell line, several are a program and its arguments.
fn command_of(mut words: Vec<String>) -> Command {
    if words.len() == 1 { Command::Shell(words.remove(0)) } else { Command::Argv(words) }
}
