//! One file for each group of rows.

mod backlog;
mod build;
mod compile;
mod ctl;
mod dispatch;
mod fair;
mod flow;
mod idle;
mod logs;
mod publish;
mod real;
mod rest;
mod shared;
mod sizes;
mod submit;
mod watch;

use codering_tests::Backend;

use crate::{Bench, table::Row};

/// The queues that stand behind a broker, as the table calls them.
const BACKENDS: [(&str, Backend); 2] =
    [("RabbitMQ", Backend::RabbitMq), ("embedded queue", Backend::Embedded)];

/// Rows that are measured together.
pub struct Section {
    /// For `--only`.
    pub name: &'static str,
    /// What it measures, in a few words.
    pub about: &'static str,
    /// Measures. It panics where it cannot.
    pub run: fn(&Bench) -> Vec<Row>,
}

/// In the order of the table.
pub const ALL: &[Section] = &[
    publish::SECTION,
    rest::SECTION,
    submit::SECTION,
    flow::SECTION,
    dispatch::SECTION,
    backlog::SECTION,
    fair::SECTION,
    idle::SECTION,
    real::SECTION,
    build::SECTION,
    shared::SECTION,
    logs::SECTION,
    ctl::SECTION,
    sizes::SECTION,
];

/// Those that take too long to be part of every run: only where they are named.
pub const ON_REQUEST: &[Section] = &[compile::SECTION];
