//! Statements over many rows at once. Each statement costs a trip to the connection's thread and
//! back, which is more than SQLite needs for one row; 256 rows for one trip make it vanish.

use std::sync::{Arc, OnceLock};

use sqlx::{AssertSqlSafe, Sqlite, query::Query, sqlite::SqliteArguments};

/// Texts are kept for these numbers of rows; what lies between is padded. A parameter that is not
/// bound is NULL, and a row of NULLs joins with nothing.
const SIZES: [usize; 5] = [1, 4, 16, 64, 256];

/// The most rows of one statement.
pub(crate) const MOST_ROWS: usize = SIZES[SIZES.len() - 1];

/// A statement with a table `v` of parameters in its middle; its columns are `column1` and so on.
pub(crate) struct Bulk {
    head: &'static str,
    columns: usize,
    tail: &'static str,
    texts: OnceLock<Vec<Arc<str>>>,
}

impl Bulk {
    pub(crate) const fn new(head: &'static str, columns: usize, tail: &'static str) -> Self {
        Self { head, columns, tail, texts: OnceLock::new() }
    }

    /// The statement for so many rows, at most [`MOST_ROWS`]. Bind all columns of all rows.
    pub(crate) fn query(&'static self, rows: usize) -> Query<'static, Sqlite, SqliteArguments> {
        let texts = self.texts.get_or_init(|| SIZES.iter().map(|size| self.text(*size)).collect());
        let place = SIZES.iter().position(|size| *size >= rows).unwrap_or(SIZES.len() - 1);
        // The text is made of literals of this crate and question marks.
        sqlx::query(AssertSqlSafe(texts[place].clone()))
    }

    fn text(&self, rows: usize) -> Arc<str> {
        let row = format!("({})", vec!["?"; self.columns].join(","));
        format!("{} (VALUES {}) AS v {}", self.head, vec![row; rows].join(","), self.tail).into()
    }
}
