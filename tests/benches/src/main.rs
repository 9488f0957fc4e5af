//! Measures the release binaries beside their peers in one run, and prints one table: what was measured, codering's figure,
//! its peer's, what is asked at least, and whether that was met. `CODERING_TEST_BINARIES` names the binaries.

mod client;
mod githost;
mod measure;
mod sections;
mod sqlite;
mod table;

use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use clap::Parser;

use crate::table::Table;

/// Measures codering on this machine.
#[derive(Parser)]
pub struct Bench {
    /// Small numbers, a few minutes in all: for daily use.
    #[arg(long)]
    pub quick: bool,
    /// Only these sections.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Also writes all figures here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also puts the table between the marks `<!-- bench -->` and `<!-- /bench -->` of this file.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Names the sections and does nothing.
    #[arg(long)]
    list: bool,
}

impl Bench {
    /// One of two sizes.
    pub fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

fn main() -> ExitCode {
    let bench = Bench::parse();
    let mut table = Table::default();
    let mut broken = Vec::new();
    let on_request = sections::ON_REQUEST.iter().map(|section| (section, false));
    for (section, usual) in sections::ALL.iter().map(|section| (section, true)).chain(on_request) {
        let named = bench.only.iter().any(|name| name == section.name);
        if bench.list {
            println!("{:10} {}", section.name, section.about);
        } else if named || (usual && bench.only.is_empty()) {
            eprintln!("bench: {}: {}", section.name, section.about);
            let began = Instant::now();
            // What was measured before is worth having when a later section cannot be.
            match panic::catch_unwind(AssertUnwindSafe(|| (section.run)(&bench))) {
                Ok(rows) => table.add(section.name, rows),
                Err(_) => broken.push(section.name),
            }
            eprintln!("bench: {} took {:.0} s", section.name, began.elapsed().as_secs_f64());
        }
    }
    if bench.list {
        return ExitCode::SUCCESS;
    }
    print!("{table}");
    if let Some(file) = &bench.json {
        let figures = serde_json::to_string_pretty(&table.json(bench.quick)).expect("numbers and texts");
        fs::write(file, figures + "\n").unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    if let Some(file) = bench.write.as_ref().filter(|_| broken.is_empty()) {
        let document = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let document = table::with_figures(&document, &table.dated())
            .unwrap_or_else(|| panic!("{} has no marks for the figures", file.display()));
        fs::write(file, document).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    if broken.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("bench: could not be measured, see above: {}", broken.join(", "));
    ExitCode::FAILURE
}
