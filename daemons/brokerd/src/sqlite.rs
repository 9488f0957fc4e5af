//! SQLite's result codes, for its two users: the ledger and the embedded queue.

use sqlx::migrate::MigrateError;

pub(crate) const FULL: i32 = 13;
pub(crate) const CORRUPT: i32 = 11;
pub(crate) const NOT_A_DATABASE: i32 = 26;
/// `SQLITE_IOERR_SHMSIZE`.
const SHARED_MEMORY: i32 = 4874;

/// The extended code, also of what failed in a migration.
fn extended_code(error: &sqlx::Error) -> Option<i32> {
    if let sqlx::Error::Migrate(migration) = error {
        return match &**migration {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => extended_code(error),
            _ => None,
        };
    }
    error.as_database_error()?.code()?.parse().ok()
}

/// The primary code, where the error is SQLite's.
pub(crate) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    extended_code(error).map(|code| code & 0xff)
}

/// Whether there was no room on the disk. Memory that readers share is a file as well, and grows before anything is
/// written.
pub(crate) fn is_full(error: &sqlx::Error) -> bool {
    matches!(extended_code(error), Some(SHARED_MEMORY)) || primary_code(error) == Some(FULL)
}

/// Whether the file is not what was written.
pub(crate) fn is_damage(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(CORRUPT | NOT_A_DATABASE))
}
