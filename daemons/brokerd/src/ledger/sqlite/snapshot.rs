//! A snapshot of an open ledger: one moment of it, in a file of its own that has no name any more when it is handed out.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use codering_core::units::show_size;
use sqlx::{ConnectOptions, Connection};

use super::{error, open};
use crate::ledger::{LedgerError, Result, Snapshot};

/// What a snapshot leaves free beside itself.
const SPARE: u64 = 16 << 20;

pub(super) async fn take(path: &Path) -> Result<Snapshot> {
    let made = open::with(path, open::SNAPSHOT);
    let taken = write(path, &made).await;
    // It has to go in any case: what is open stays readable.
    let gone = fs::remove_file(&made);
    let file = taken?;
    gone.map_err(|error| failed(&made, &error))?;
    let bytes = file.metadata().map_err(|error| failed(&made, &error))?.len();
    Ok(Snapshot { file, bytes })
}

fn failed(path: &Path, error: &io::Error) -> LedgerError {
    LedgerError::Failed(format!("{}: {error}", path.display()))
}

async fn write(path: &Path, made: &Path) -> Result<File> {
    let length = |path: &Path| fs::metadata(path).map_or(0, |about| about.len());
    let needs = length(path) + length(&open::with(path, "-wal")) + SPARE;
    let directory = path.parent().unwrap_or(Path::new("."));
    if let Some(free) = codering_kit::disk::free(directory).filter(|free| free.bytes < needs) {
        return Err(LedgerError::Full(format!(
            "a snapshot is made beside it first and needs {}, and {} are free on that disk",
            show_size(needs),
            show_size(free.bytes)
        )));
    }
    // What a crash left.
    match fs::remove_file(made) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(made, &error)),
        _ => {}
    }
    let mut new = OpenOptions::new();
    let file = new.read(true).write(true).create_new(true).mode(0o600).open(made);
    let file = file.map_err(|error| failed(made, &error))?;
    let mut connection = open::reading(path).connect().await.map_err(error::failed)?;
    let copied = sqlx::query("VACUUM INTO ?").bind(made.to_string_lossy()).execute(&mut connection).await;
    let closed = connection.close().await;
    copied.map_err(error::failed)?;
    closed.map_err(error::failed)?;
    Ok(file)
}
