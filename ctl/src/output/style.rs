//! Colour, where it is wanted.

use std::io::IsTerminal;

/// Every sequence that [`Style`] writes, the longer ones before those that they begin with.
pub const CODES: [&str; 5] = ["\x1b[1;31m", "\x1b[32m", "\x1b[36m", "\x1b[1m", "\x1b[0m"];

/// Colours or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// Colours if the stream is a terminal and nobody asked for none (<https://no-color.org>).
    pub fn of(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colour: stream.is_terminal() && !refused }
    }

    /// No colour.
    #[cfg(test)]
    pub fn plain() -> Self {
        Self { colour: false }
    }

    /// Colour, for tests.
    #[cfg(test)]
    pub fn coloured() -> Self {
        Self { colour: true }
    }

    /// An error or a failure.
    pub fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    /// A success.
    pub fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// Something under way.
    pub fn busy(self, text: &str) -> String {
        self.with("36", text)
    }

    /// A header.
    pub fn head(self, text: &str) -> String {
        self.with("1", text)
    }

    /// Whether there are any.
    pub fn is_coloured(self) -> bool {
        self.colour
    }

    /// A word for where a job or task stands, in its colour; any other text as it is.
    pub fn state(self, text: &str) -> String {
        match text.trim_end() {
            "succeeded" => self.good(text),
            "failed" | "timed_out" | "out_of_memory" | "build_failed" | "infrastructure_error" => {
                self.bad(text)
            }
            "running" | "reducing" => self.busy(text),
            _ => text.to_owned(),
        }
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
