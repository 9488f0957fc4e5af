//! What SQLite says, in words that tell what to do.

pub(super) use crate::sqlite::{is_damage, is_full};
use crate::{
    ledger::LedgerError,
    sqlite::{CORRUPT, FULL, NOT_A_DATABASE, primary_code},
};

const BUSY: i32 = 5;
const INPUT_OUTPUT: i32 = 10;
const READ_ONLY: i32 = 8;

/// One sentence on what went wrong, and what to do.
pub(super) fn told(error: &sqlx::Error) -> String {
    let advice = match primary_code(error) {
        _ if is_full(error) => "the disk is full; free space, and it goes on by itself",
        Some(BUSY) => "another process holds the file; end it",
        Some(CORRUPT | NOT_A_DATABASE) => {
            "the file is damaged; stop codering-brokerd and restore a backup of it"
        }
        Some(INPUT_OUTPUT) => "the disk fails; look into the kernel's log",
        Some(READ_ONLY) => "the file or its file system is read-only; make it writable",
        _ if matches!(error, sqlx::Error::PoolTimedOut) => "all readers are busy; try again shortly",
        _ => return error.to_string(),
    };
    match error {
        sqlx::Error::Database(database) => format!("{}: {advice}", database.message()),
        other => format!("{other}: {advice}"),
    }
}

/// Whether the disk itself gave an error, after which a connection is not trusted any more.
pub(super) fn is_of_disk(error: &sqlx::Error) -> bool {
    primary_code(error) == Some(INPUT_OUTPUT)
}

/// An error before COMMIT, or of a read: nothing was recorded.
pub(super) fn failed(error: sqlx::Error) -> LedgerError {
    if is_full(&error) { LedgerError::Full(told(&error)) } else { LedgerError::Failed(told(&error)) }
}

/// An error of COMMIT itself. A full disk or a lock is met before the frame that commits is complete,
/// so that nothing was recorded; an fsync that failed leaves it open, and so does what comes after it.
pub(super) fn of_commit(error: &sqlx::Error) -> LedgerError {
    match primary_code(error) {
        Some(FULL) => LedgerError::Full(told(error)),
        Some(BUSY) => LedgerError::Failed(told(error)),
        _ => LedgerError::Unknown(told(error)),
    }
}
