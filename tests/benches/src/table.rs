//! What was measured, and how it is shown.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use serde_json::{Value, json};

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// codering's figure, with its unit.
    pub ours: String,
    /// What it is measured against in the same run, with its unit; empty where there is nothing beside it.
    pub peer: String,
    /// What is asked, in words; empty where nothing is.
    pub asked: String,
    /// Whether it was met.
    pub met: Option<bool>,
    /// The figures that it was made from, for plots and comparisons.
    pub figures: Value,
}

impl Row {
    /// A figure of which nothing is asked.
    pub fn new(what: impl Into<String>, ours: impl Into<String>) -> Self {
        let (what, ours) = (what.into(), ours.into());
        Self { what, ours, peer: String::new(), asked: String::new(), met: None, figures: Value::Null }
    }

    /// What it was measured against.
    pub fn beside(mut self, peer: impl Into<String>) -> Self {
        self.peer = peer.into();
        self
    }

    /// What is asked of it, and whether it was met.
    pub fn asked(mut self, asked: impl Into<String>, met: bool) -> Self {
        (self.asked, self.met) = (asked.into(), Some(met));
        self
    }

    /// What it was made from.
    pub fn from(mut self, figures: Value) -> Self {
        self.figures = figures;
        self
    }
}

/// All rows, by section.
#[derive(Debug, Default)]
pub struct Table(Vec<(&'static str, Vec<Row>)>);

impl Table {
    /// Adds a section's rows.
    pub fn add(&mut self, section: &'static str, rows: Vec<Row>) {
        self.0.push((section, rows));
    }

    /// All of it, with the machine that it was measured on.
    pub fn json(&self, quick: bool) -> Value {
        let sections: serde_json::Map<_, _> =
            self.0.iter().map(|(name, rows)| ((*name).to_owned(), json!(rows))).collect();
        let (date, machine) = (today(), crate::measure::machine());
        json!({ "date": date, "machine": machine, "quick": quick, "sections": sections })
    }

    /// The table with the day and the machine above it, as a document shows it.
    pub fn dated(&self) -> String {
        let machine = crate::measure::machine();
        let text = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
        format!(
            "{}: {} × {}, {:.0} GB of memory, {}, Linux {}.\n\n{self}",
            today(),
            machine["processors"],
            text("model"),
            machine["memory_bytes"].as_f64().unwrap_or(0.0) / 1e9,
            text("file_system"),
            text("kernel"),
        )
    }
}

/// `2026-11-21`, in UTC.
fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
    let written = codering_core::time::rfc3339(i64::try_from(now).unwrap_or(i64::MAX));
    written.split('T').next().unwrap_or_default().to_owned()
}

const BEGIN: &str = "<!-- bench -->\n";
const END: &str = "<!-- /bench -->";

/// The document with what stands between its two marks replaced; `None` where they are not there.
pub fn with_figures(document: &str, figures: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{figures}{END}{after}"))
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | codering | beside it | asked | met |\n|---|---|---|---|---|")?;
        for row in self.0.iter().flat_map(|(_, rows)| rows) {
            let met = match row.met {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            writeln!(f, "| {} | {} | {} | {} | {met} |", row.what, row.ours, row.peer, row.asked)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_replace_those_between_the_marks_and_nothing_else() {
        let document = "a\n<!-- bench -->\nold\nolder\n<!-- /bench -->\nb\n";
        let new = "a\n<!-- bench -->\nnew\n<!-- /bench -->\nb\n";
        assert_eq!(with_figures(document, "new\n").as_deref(), Some(new));
        assert_eq!(with_figures(new, "new\n").as_deref(), Some(new));
        assert_eq!(with_figures("no marks", "new\n"), None);
    }
}
