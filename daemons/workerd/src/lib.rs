//! codering's worker: takes assignments from a broker, runs each as an attempt, reports what came of it.
//!
//! - [`start`]: the process, from its configuration ([`config`]) and certificate ([`enroll`], `join`, `renew`) to its end.
//! - [`stream`]: the one connection to the broker. `dispatcher`: assignments become attempts.
//! - `attempt`: checkout, build, start, run; whose fault an end was. `run` stays with a started command.
//! - [`checkout`]: git, in a process of its own. [`image`]: Docker images by content. [`sandbox`]: where commands run.
//! - [`held`]: what is held, and its lease clocks. [`output`] and [`spool`]: what attempts produce, and until when it is kept.
//! - `reload`: what SIGHUP changes. `readopt`, `gc`: what a former process left, and what is not needed any more.
//!
//! It never speaks to a queue or a ledger, and never acts on a path that a user's code could have made: a build context
//! goes from git's objects to Docker as a stream, and a container has no mount of the host's.

mod attempt;
mod backoff;
pub mod broker;
pub mod checkout;
pub mod config;
mod dispatcher;
pub mod enroll;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gc;
pub mod held;
pub mod image;
mod join;
mod leases;
pub mod metrics;
pub mod output;
mod readopt;
mod reload;
mod renew;
mod room;
mod run;
pub mod sandbox;
mod simulate;
pub mod spool;
pub mod start;
pub mod stream;
pub mod worker;

use std::process::ExitCode;

/// The process, or the git process that it starts for itself.
pub fn main() -> ExitCode {
    if let Some(code) = checkout::child::run_if_asked() {
        return code;
    }
    match start::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => codering_kit::failed(&error),
    }
}
