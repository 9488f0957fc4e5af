//! The words of codering as types. No I/O, no clock, no tokio: what is here is decided, not done.
//!
//! - [`ids`]: names and ids, validated once.
//! - [`spec`]: what a job and a task ask for; [`limits`]: what an attempt may use; [`jobfile`]: a
//!   job as a person writes it (TOML or JSON); [`units`]: `"10m"` and `"512M"`.
//! - [`outcome`] and [`result`]: what an attempt produced, the user's fault and ours kept apart.
//! - [`task`]: the state machine of one task; [`job`]: what its tasks make of a job.
//! - [`message`]: the JSON on `<project>.todo` and `<project>.done`.
//! - [`enforce`]: what a worker's Docker has to be able to hold a task to.
//! - [`joining`]: what is typed to give a machine another worker's certificate.
//! - [`error`]: the one table of error codes.

pub mod enforce;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod ids;
pub mod job;
pub mod jobfile;
pub mod joining;
pub mod limits;
pub mod message;
pub mod outcome;
pub mod quota;
pub mod result;
pub mod spec;
pub mod task;
pub mod time;
pub mod units;

pub use error::{Code, Error};
pub use ids::{JobId, LeaseToken, ProjectName, QueueName, TaskId, TaskKey, WorkerName};
pub use limits::{Limits, LimitsPatch};
pub use outcome::{Blame, Outcome};
pub use result::TaskResult;
pub use spec::{AttemptSpec, Command, JobSpec, Reduce, Source, TaskSpec};
