//! Everything that coderingctl writes. Data goes to stdout in the format asked for; notes and errors
//! to stderr. Colour only on a terminal, and not where `NO_COLOR` is set.

pub mod calm;
pub mod exit;
mod long;
mod style;
mod table;

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use clap::ValueEnum;
use codering_core::{Code, Error};
use serde::Serialize;

pub use long::LongList;
pub use style::Style;

/// How data is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: aligned columns, relative times.
    Table,
    /// One JSON value.
    Json,
    /// One JSON value a line, as they come.
    Jsonl,
}

/// The two streams, and what may be written to them.
pub struct Out {
    format: Format,
    quiet: bool,
    style_out: Style,
    style_err: Style,
    reader_gone: AtomicBool,
}

impl Out {
    /// For one call.
    pub fn new(format: Format, quiet: bool) -> Self {
        Self {
            format,
            quiet,
            style_out: Style::of(&io::stdout()),
            style_err: Style::of(&io::stderr()),
            reader_gone: AtomicBool::new(false),
        }
    }

    /// The format asked for.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether stdout is for a program rather than a person.
    pub fn is_json(&self) -> bool {
        self.format != Format::Table
    }

    /// Whether only data and errors are wanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether a moving progress bar may be drawn on stderr.
    pub fn may_draw(&self) -> bool {
        !self.quiet && !self.is_json() && io::stderr().is_terminal()
    }

    /// Colours for stderr.
    pub fn style(&self) -> Style {
        self.style_err
    }

    /// Whether whoever read stdout has closed it, as `head` does.
    pub fn reader_is_gone(&self) -> bool {
        self.reader_gone.load(Ordering::Relaxed)
    }

    /// One thing: its lines for a person, or its JSON.
    pub fn one<T: Serialize>(&self, value: &T, lines: impl FnOnce() -> Vec<String>) -> Result<(), Error> {
        match self.format {
            Format::Table => lines().iter().try_for_each(|line| self.line(line)),
            Format::Json => self.line(&pretty(value)?),
            Format::Jsonl => self.line(&compact(value)?),
        }
    }

    /// A list as a table with this header, one array, or one line each.
    pub fn list<T: Serialize>(
        &self,
        items: &[T],
        header: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Error> {
        match self.format {
            Format::Table if items.is_empty() => Ok(()),
            Format::Table => {
                let rows: Vec<_> = items.iter().map(row).collect();
                table::lines(header, &rows, self.style_out).iter().try_for_each(|line| self.line(line))
            }
            Format::Json => self.line(&pretty(&items)?),
            Format::Jsonl => items.iter().try_for_each(|item| self.line(&compact(item)?)),
        }
    }

    /// A list whose items take several lines each.
    pub fn blocks<T: Serialize>(&self, items: &[T], lines: impl Fn(&T) -> Vec<String>) -> Result<(), Error> {
        match self.format {
            Format::Table => items.iter().flat_map(lines).try_for_each(|line| self.line(&line)),
            Format::Json => self.line(&pretty(&items)?),
            Format::Jsonl => items.iter().try_for_each(|item| self.line(&compact(item)?)),
        }
    }

    /// A piece of a stream of bytes: as it is, to either stream, or as a line of JSON on stdout.
    pub fn chunk<T: Serialize>(
        &self,
        shown: impl FnOnce() -> T,
        data: &[u8],
        to_stderr: bool,
    ) -> Result<(), Error> {
        match (self.format, to_stderr) {
            (Format::Table, true) => self.done(io::stderr().lock().write_all(data)),
            (Format::Table, false) => self.bytes(data),
            _ => self.line(&compact(&shown())?),
        }
    }

    /// A line on stdout, whatever the format.
    pub fn line(&self, line: &str) -> Result<(), Error> {
        let line = match self.format {
            Format::Table => calm::line(line, self.style_out.is_coloured()),
            Format::Json | Format::Jsonl => line.into(),
        };
        let mut stdout = io::stdout().lock();
        self.done(stdout.write_all(line.as_bytes()).and_then(|()| stdout.write_all(b"\n")))
    }

    /// A value as a line of JSON on stdout, whatever the format.
    pub fn json_line<T: Serialize>(&self, value: &T) -> Result<(), Error> {
        self.line(&compact(value)?)
    }

    /// Bytes on stdout, as they are.
    pub fn bytes(&self, data: &[u8]) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        self.done(stdout.write_all(data).and_then(|()| stdout.flush()))
    }

    /// A line for a person, on stderr; not with `--quiet`.
    pub fn note(&self, line: impl Display) {
        if !self.quiet {
            // Nobody is left to be told.
            let line = line.to_string();
            let _ = writeln!(io::stderr().lock(), "{}", calm::line(&line, self.style_err.is_coloured()));
        }
    }

    /// A question without a line's end.
    pub fn ask(&self, question: &str) {
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush());
    }

    /// An error as every verb shows it; `--quiet` does not hide it.
    pub fn error(&self, error: &Error) {
        let _ = writeln!(io::stderr().lock(), "{}", rendered(error, self.style_err));
    }

    fn done(&self, written: io::Result<()>) -> Result<(), Error> {
        written.map_err(|error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                self.reader_gone.store(true, Ordering::Relaxed);
            }
            Error::new(Code::Internal, format!("the output cannot be written: {error}"))
        })
    }
}

/// `error[code]: place: message`, and the hint under it.
fn rendered(error: &Error, style: Style) -> String {
    let place =
        if error.place.is_empty() { String::new() } else { format!("{}: ", calm::text(&error.place)) };
    let head = style.bad(&format!("error[{}]", error.code.as_str()));
    let mut text = format!("{head}: {place}{}", calm::text(&error.message));
    for line in error.hint.lines() {
        text.push_str("\n  ");
        text.push_str(&calm::text(line));
    }
    text
}

fn compact<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value)
        .map(calm::json)
        .map_err(|error| Error::new(Code::Internal, error.to_string()))
}

fn pretty<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string_pretty(value)
        .map(calm::json)
        .map_err(|error| Error::new(Code::Internal, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_carries_of_foreign_texts_steers_no_terminal() {
        let evil = "x\x1b[2J\u{202e}\u{9b}m";
        let error = Error::new(Code::NotFound, evil).at(evil).hint(evil);
        let shown = rendered(&error, Style::plain());
        assert!(!shown.contains(['\x1b', '\u{202e}', '\u{9b}']), "{shown:?}");
    }

    #[test]
    fn an_error_says_code_place_and_what_to_do() {
        let error =
            Error::new(Code::BrokerUnreachable, "connection refused (context `lab`)").at("broker.lan:7443");
        let error = error.hint("your history is here all the same: coderingctl history");
        assert_eq!(
            rendered(&error, Style::plain()),
            "error[broker.unreachable]: broker.lan:7443: connection refused (context `lab`)\n  \
             your history is here all the same: coderingctl history"
        );
    }
}
