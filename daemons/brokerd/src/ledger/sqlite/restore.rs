//! Putting a backup in a ledger's place, while nothing has it open. The file that was there is kept aside. A crash at any
//! step leaves either what was there, or a mark ([`open::RESTORING`]) that has brokerd refuse to start until the restore
//! is done again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

use codering_core::{Code, Error, units::show_size};
use sha2::{Digest, Sha256};
use sqlx::{
    ConnectOptions, Connection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{
    audit,
    error::told,
    open::{self, RESTORING, lock, with},
};
use crate::{broker::now, ledger::Restored};

/// A backup on its way into the directory, not looked at yet.
const COPYING: &str = ".copying";
/// Read at once.
const PIECE: usize = 1 << 20;
/// What is left free beside the copy.
const SPARE: u64 = 16 << 20;

pub(super) async fn restore(path: &Path, backup: &Path) -> Result<Restored, Error> {
    let lock = lock(path)?;
    let restored = locked(path, backup).await;
    if restored.is_err() {
        let _ = fs::remove_file(with(path, COPYING));
    } else {
        open::mark_closed(&lock);
        own(&with(path, ".lock"), path)?;
    }
    restored
}

async fn locked(path: &Path, backup: &Path) -> Result<Restored, Error> {
    open::look_at(backup)?;
    if fs::metadata(with(backup, "-wal")).is_ok_and(|log| log.len() > 0) {
        return Err(refused(
            backup,
            "there is a -wal file beside it: it is a copy of a running ledger, and not whole",
        )
        .hint("take backups with: coderingctl ledger backup FILE"));
    }
    let copy = with(path, COPYING);
    let checksum = copy_checked(backup, &copy, path)?;
    let report = prepare(backup, &copy).await?;
    own(&copy, path)?;
    File::open(&copy).and_then(|file| file.sync_all()).map_err(|error| io_error(&copy, &error))?;

    // From here on a crash leaves the mark.
    let restoring = with(path, RESTORING);
    rename(&copy, &restoring)?;
    sync_directory(path)?;
    let aside = set_aside(path)?;
    rename(&restoring, path)?;
    sync_directory(path)?;
    Ok(Restored { report, aside, checksum })
}

fn refused(place: &Path, what: impl Into<String>) -> Error {
    Error::new(Code::InvalidInput, what).at(place.display().to_string())
}

fn io_error(place: &Path, error: &io::Error) -> Error {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let code = if full { Code::LedgerFull } else { Code::LedgerUnavailable };
    Error::new(code, error.to_string()).at(place.display().to_string())
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|error| io_error(from, &error))
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(|error| io_error(directory, &error))
}

/// Copies it and compares it with the checksum beside it, if there is one.
fn copy_checked(backup: &Path, copy: &Path, ledger: &Path) -> Result<bool, Error> {
    let of_backup = |error: io::Error| io_error(backup, &error);
    let of_copy = |error: io::Error| io_error(copy, &error);
    let mut from = File::open(backup).map_err(of_backup)?;
    let needs = from.metadata().map_err(of_backup)?.len() + SPARE;
    let directory = ledger.parent().unwrap_or(Path::new("."));
    if let Some(free) = codering_kit::disk::free(directory).filter(|free| free.bytes < needs) {
        let (needs, free) = (show_size(needs), show_size(free.bytes));
        return Err(Error::new(Code::LedgerFull, format!("restoring needs {needs}, and {free} are free"))
            .at(directory.display().to_string())
            .hint("nothing was changed; free space on that disk"));
    }
    let _ = fs::remove_file(copy);
    let mut new = OpenOptions::new();
    let mut to = new.write(true).create_new(true).mode(0o600).open(copy).map_err(of_copy)?;
    let mut sum = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).map_err(of_backup)?;
        if read == 0 {
            break;
        }
        sum.update(&piece[..read]);
        to.write_all(&piece[..read]).map_err(of_copy)?;
    }
    let found: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    match fs::read_to_string(with(backup, ".sha256")) {
        Ok(text) if text.split_whitespace().next() == Some(&found) => Ok(true),
        Ok(_) => Err(refused(backup, "it is not what its .sha256 file is the checksum of")
            .hint("nothing was changed; take another backup, or remove the .sha256 file if you know why")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error(&with(backup, ".sha256"), &error)),
    }
}

/// Finds the copy whole, and puts its tasks in front of the queues: what those hold is of another time.
async fn prepare(backup: &Path, copy: &Path) -> Result<crate::ledger::Report, Error> {
    let sql = |error: sqlx::Error| refused(backup, told(&error)).hint("nothing was changed");
    let options = SqliteConnectOptions::new()
        .filename(copy)
        .journal_mode(SqliteJournalMode::Delete)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .disable_statement_logging();
    let mut connection = options.connect().await.map_err(sql)?;
    open::migrate(backup, &mut connection).await?;
    let mut report = audit::audit(&mut connection).await.map_err(sql)?;
    report.bytes = fs::metadata(copy).map_or(0, |about| about.len());
    if let Some(problem) = report.problems.first() {
        let more = report.problems.len() - 1;
        return Err(refused(backup, format!("it is damaged: {problem}, and {more} more problems"))
            .hint("nothing was changed; try an older backup"));
    }
    for statement in [
        "UPDATE tasks SET state = 0, version = version + 1 WHERE state = 1",
        "UPDATE tallies SET unpublished = unpublished + published, published = 0 WHERE published > 0",
    ] {
        sqlx::query(statement).execute(&mut connection).await.map_err(sql)?;
    }
    connection.close().await.map_err(sql)?;
    Ok(report)
}

/// Renames what is there, its logs with it.
fn set_aside(path: &Path) -> Result<Option<PathBuf>, Error> {
    let aside = with(path, &format!(".aside-{}", now()));
    let mut kept = None;
    // The log first: without it the file would be opened as if it were whole.
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (with(path, suffix), with(&aside, suffix));
        match fs::rename(&from, &to) {
            Ok(()) => kept = Some(aside.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(&from, &error)),
        }
    }
    sync_directory(path)?;
    Ok(kept)
}

/// Root restores what brokerd's user owns.
fn own(file: &Path, path: &Path) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let fail = |error: io::Error| io_error(file, &error);
    let (of_directory, of_file) = (fs::metadata(directory).map_err(fail)?, fs::metadata(file).map_err(fail)?);
    if (of_directory.uid(), of_directory.gid()) == (of_file.uid(), of_file.gid()) {
        return Ok(());
    }
    chown(file, Some(of_directory.uid()), Some(of_directory.gid())).map_err(fail)
}
