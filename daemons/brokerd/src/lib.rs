//! codering's broker. It keeps the promise that an acknowledged submit is never lost: the ledger is the
//! truth, a queue is how work waits, a lease is how it is held.
//!
//! - [`auth`]: who is calling, and what they may do.
//! - [`broker`]: the verbs, the dispatcher, the reconciler; the only place that changes a task.
//! - [`ledger`]: jobs, tasks, attempts and results on disk, behind a trait.
//! - [`metrics`]: every metric's name.
//! - [`queue`]: RabbitMQ or the embedded queue, behind a trait.
//!
//! It never touches Docker or git, and it never trusts what a queue says over what the ledger says.

pub mod auth;
pub mod broker;
pub mod ledger;
pub mod metrics;
pub mod queue;
