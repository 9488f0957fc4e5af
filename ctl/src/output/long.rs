//! A list that may be too long to hold: written in batches as it comes.

use codering_core::Error;
use serde::Serialize;

use super::{Format, Out, pretty, table};

/// Rows that are aligned with each other.
const BATCH: usize = 1000;

/// A list under way. What was pushed is complete only after [`LongList::end`].
pub struct LongList<'a> {
    out: &'a Out,
    header: &'a [&'a str],
    rows: Vec<Vec<String>>,
    count: u64,
}

impl<'a> LongList<'a> {
    /// An empty one.
    pub fn new(out: &'a Out, header: &'a [&'a str]) -> Self {
        Self { out, header, rows: Vec::new(), count: 0 }
    }

    /// One more item; `row` is its line in a table.
    pub fn push<T: Serialize>(&mut self, item: &T, row: impl FnOnce() -> Vec<String>) -> Result<(), Error> {
        self.count += 1;
        match self.out.format() {
            Format::Table => {
                self.rows.push(row());
                if self.rows.len() >= BATCH { self.flush() } else { Ok(()) }
            }
            Format::Json => {
                let before = if self.count == 1 { "[\n" } else { ",\n" };
                self.out.bytes(format!("{before}{}", pretty(item)?).as_bytes())
            }
            Format::Jsonl => self.out.json_line(item),
        }
    }

    /// Writes what is left; answers how many there were.
    pub fn end(mut self) -> Result<u64, Error> {
        match (self.out.format(), self.count) {
            (Format::Table, _) => self.flush()?,
            (Format::Json, 0) => self.out.line("[]")?,
            (Format::Json, _) => self.out.line("\n]")?,
            (Format::Jsonl, _) => {}
        }
        Ok(self.count)
    }

    fn flush(&mut self) -> Result<(), Error> {
        let first = self.count <= BATCH as u64;
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        let lines = table::lines(self.header, &rows, self.out.style_out);
        lines.iter().skip(usize::from(!first)).try_for_each(|line| self.out.line(line))
    }
}
