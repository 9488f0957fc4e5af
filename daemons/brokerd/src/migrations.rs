//! The tables' definitions. They are named one by one: sqlx's macro would find them by itself, and for that have SQLite
//! compiled once more, for the compiler's own use.

use std::sync::LazyLock;

use sqlx::{
    SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

/// A file of `migrations/`: its number, its name and what is in it.
type File = (i64, &'static str, &'static str);

const LEDGER_FILES: [File; 3] = [
    (1, "ledger", include_str!("../migrations/ledger/0001_ledger.sql")),
    (2, "finished", include_str!("../migrations/ledger/0002_finished.sql")),
    (3, "renewal", include_str!("../migrations/ledger/0003_renewal.sql")),
];
const QUEUE_FILES: [File; 1] = [(1, "queues", include_str!("../migrations/queue/0001_queues.sql"))];

/// The ledger's.
pub(crate) static LEDGER: LazyLock<Migrator> = LazyLock::new(|| migrator(&LEDGER_FILES));
/// The embedded queue's.
pub(crate) static QUEUE: LazyLock<Migrator> = LazyLock::new(|| migrator(&QUEUE_FILES));

fn migrator(files: &[File]) -> Migrator {
    let migration = |&(number, name, text): &File| {
        Migration::new(number, name.into(), MigrationType::Simple, text.into_sql_str(), false)
    };
    Migrator::with_migrations(files.iter().map(migration).collect())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_migration_that_there_is_is_run() {
        for (directory, files) in [("ledger", &LEDGER_FILES[..]), ("queue", &QUEUE_FILES)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(directory);
            let entries = fs::read_dir(path).expect("a directory of migrations").flatten();
            let mut there: Vec<_> =
                entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
            there.sort();
            let named: Vec<_> =
                files.iter().map(|(number, name, _)| format!("{number:04}_{name}.sql")).collect();
            assert_eq!(named, there);
        }
    }
}
