//! codering's broker. It keeps the promise that an acknowledged submit is never lost: the ledger is the
//! truth, a queue is how work waits, a lease is how it is held.
//!
//! - [`api`]: gRPC and REST over the verbs, and the table of who may call what.
//! - [`auth`]: who is calling, and what they may do.
//! - [`broker`]: the verbs, the dispatcher, the reconciler; the only place that changes a task.
//! - [`config`]: what it is told; [`pki`]: its CA and certificates.
//! - [`ledger`]: jobs, tasks, attempts and results on disk, behind a trait.
//! - [`metrics`]: every metric's name.
//! - [`queue`]: RabbitMQ or the embedded queue, behind a trait.
//! - [`start`]: from the command line to a drained process; open it first.
//!
//! It never touches Docker or git, and it never trusts what a queue says over what the ledger says.

pub mod api;
pub mod auth;
pub mod broker;
mod bulk;
pub mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod ledger;
pub mod metrics;
mod migrations;
pub mod pki;
pub mod queue;
mod sqlite;
pub mod start;

// What the integration tests share with the unit tests names this crate as they do.
#[cfg(test)]
extern crate self as codering_brokerd;
