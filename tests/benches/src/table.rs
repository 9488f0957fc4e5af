//! What was measured, and how it is shown.

use std::fmt;

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
        json!({ "machine": crate::measure::machine(), "quick": quick, "sections": sections })
    }
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
