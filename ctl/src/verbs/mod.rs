//! One file or directory a verb.

pub mod complete;
pub mod completions;
pub mod dev;
pub mod doctor;
pub mod history;
pub mod job;
pub mod ledger;
mod limits;
pub mod login;
mod lost;
pub mod man;
pub mod project;
pub mod queue;
pub mod reduce;
pub mod results;
pub mod submit;
pub mod task;
pub mod token;
pub mod watch;
pub mod words;
pub mod worker;

#[cfg(test)]
mod example_tests;

use codering_core::Command;

/// What follows `--`: one word is a shell line, several are a program and its arguments.
fn command_of(mut words: Vec<String>) -> Command {
    if words.len() == 1 { Command::Shell(words.remove(0)) } else { Command::Argv(words) }
}
