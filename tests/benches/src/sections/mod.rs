//! One file for each group of rows.

mod ctl;
mod flow;
mod idle;
mod publish;
mod rest;

use crate::{Bench, table::Row};

/// Rows that are measured together.
pub struct Section {
    /// For `--only`.
    pub name: &'static str,
    /// What it measures, in a few words.
    pub about: &'static str,
    /// It takes part in `--quick`.
    pub quick: bool,
    /// Measures. It panics where it cannot.
    pub run: fn(&Bench) -> Vec<Row>,
}

/// In the order of the table.
pub const ALL: &[Section] = &[publish::SECTION, rest::SECTION, flow::SECTION, idle::SECTION, ctl::SECTION];
