//! One thing that doctor looked at, and what it found.

use serde::Serialize;

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// There was nothing to look at here.
    Skipped,
    /// It works, and it is worth a look.
    Warning,
    /// It does not work.
    Wrong,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `endpoint`, `tls`, `token`, …
    pub check: &'static str,
    /// How good it is.
    pub verdict: Verdict,
    /// One sentence: what was found.
    pub finding: String,
    /// The command that mends it; empty where nothing needs to be.
    pub mend: String,
}

impl Finding {
    /// As it should be.
    pub fn good(check: &'static str, finding: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, finding: finding.into(), mend: String::new() }
    }

    /// There was nothing to look at here.
    pub fn skipped(check: &'static str, finding: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, ..Self::good(check, finding) }
    }

    /// It works, and it is worth a look.
    pub fn warning(check: &'static str, finding: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, mend: mend.into(), ..Self::good(check, finding) }
    }

    /// It does not work.
    pub fn wrong(check: &'static str, finding: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Wrong, ..Self::warning(check, finding, mend) }
    }

    /// Its lines on a page.
    pub fn lines(&self) -> Vec<String> {
        let mark = match self.verdict {
            Verdict::Good => "ok",
            Verdict::Skipped => "-",
            Verdict::Warning => "look",
            Verdict::Wrong => "WRONG",
        };
        let mut lines = vec![format!("{mark:<6} {:<9} {}", self.check, self.finding)];
        for (at, line) in self.mend.lines().enumerate() {
            lines.push(format!("{:<16} {:<8} {line}", "", if at == 0 { "mend it:" } else { "" }));
        }
        lines
    }
}
