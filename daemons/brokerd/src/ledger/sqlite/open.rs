//! Opening the file: what is damaged, too new or in use is refused with what to do about it.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use codering_core::{Code, Error};
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection, SqlitePool,
    migrate::MigrateError,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    audit,
    error::{is_damage, is_full, told},
};
use crate::{ledger::Report, migrations::LEDGER as MIGRATIONS};

/// Connections that read at the same time.
const READERS: u32 = 4;
/// Pages of 4 KiB before they are copied from the log into the file; the log stays near 16 MiB.
const CHECKPOINT_PAGES: &str = "4000";
/// A file up to this size is checked all through at every start, which takes a tenth of a second.
const CHECKED_BYTES: u64 = 16 << 20;

/// A snapshot while it is made.
pub(super) const SNAPSHOT: &str = ".snapshot";
/// A backup that is to be put in the ledger's place: while it is there, nothing else may be.
pub(super) const RESTORING: &str = ".restoring";
/// In the lock's file while the ledger is open, and after a crash: its log has to be there then.
const OPEN: &[u8] = b"open\n";
const CLOSED: &[u8] = b"closed\n";

/// An open file.
pub(super) struct Opened {
    pub(super) options: SqliteConnectOptions,
    pub(super) writer: SqliteConnection,
    pub(super) readers: SqlitePool,
    /// Held while it is open.
    pub(super) lock: File,
}

pub(super) async fn open(path: &Path) -> Result<Opened, Error> {
    let lock = lock(path)?;
    let restoring = with(path, RESTORING);
    if restoring.exists() {
        return Err(unusable(path, &"a restore was cut short").hint(format!(
            "do it again: coderingctl ledger restore {} --data-dir {}",
            restoring.display(),
            directory(path).display()
        )));
    }
    let _ = fs::remove_file(with(path, SNAPSHOT));
    if !exists(path)? {
        create(path).await?;
    } else if was_open(&lock) && !with(path, "-wal").exists() {
        return Err(damaged(
            path,
            "brokerd did not close it, and its log (-wal) is gone: what was recorded last may be missing",
        )
        .hint(format!(
            "put the log back, or restore a backup: coderingctl ledger restore FILE --data-dir {}; or, if another \
             program opened the file since and put the log into it, remove {}",
            directory(path).display(),
            with(path, ".lock").display()
        )));
    }
    look_at(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|error| unusable(path, &error))?;
    let options = writing(path);
    let mut writer = options.connect().await.map_err(|error| refused(path, &error))?;
    migrate(path, &mut writer).await?;
    check(path, &mut writer).await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(Duration::from_secs(10))
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(reading(path))
        .await
        .map_err(|error| refused(path, &error))?;
    mark_open(path, &lock);
    Ok(Opened { options, writer, readers, lock })
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads a file all through; what is damaged is a problem, and what cannot be looked at is an error.
pub(super) async fn inspect(path: &Path) -> Result<Report, Error> {
    let bytes = fs::metadata(path).map_err(|error| unusable_file(path, &error))?.len();
    let broken = |why: String| Report { problems: vec![why], bytes, ..Report::default() };
    if let Err(error) = look_at(path) {
        return Ok(broken(error.message));
    }
    let mut connection = match reading(path).connect().await {
        Ok(connection) => connection,
        Err(error) => return Ok(broken(told(&error))),
    };
    let mut report = match audit::audit(&mut connection).await {
        Ok(report) => report,
        Err(error) => broken(told(&error)),
    };
    // Nothing was written: how it closes says nothing of the file.
    let _ = connection.close().await;
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0).unsigned_abs();
    if report.schema > known {
        report.problems.push(format!(
            "a newer codering-brokerd wrote it: its schema has number {}, this one knows {known}",
            report.schema
        ));
    }
    Ok(Report { bytes, ..report })
}

fn was_open(lock: &File) -> bool {
    let mut text = [0; OPEN.len()];
    lock.read_exact_at(&mut text, 0).is_ok() && text == OPEN
}

/// The log is there from now on, and has to be there after a crash.
fn mark_open(path: &Path, lock: &File) {
    // A disk that takes no byte leaves the mark off: then a log that goes is not noticed.
    let marked = File::open(directory(path)).and_then(|dir| dir.sync_all()).and_then(|()| mark(lock, OPEN));
    if let Err(error) = marked {
        tracing::warn!(file = %path.display(), %error, "the ledger was not marked as open");
    }
}

/// It is closed in order, or about to be.
pub(super) fn mark_closed(lock: &File) {
    if let Err(error) = mark(lock, CLOSED) {
        tracing::warn!(%error, "the ledger was not marked as closed");
    }
}

/// Both marks fit where one was, so that a full disk does not matter.
fn mark(lock: &File, text: &[u8]) -> io::Result<()> {
    let mut line = [b'\n'; 16];
    line[..text.len()].copy_from_slice(text);
    lock.write_all_at(&line, 0)?;
    lock.sync_all()
}

pub(super) fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(Code::LedgerUnavailable, format!("the ledger cannot be opened: {why}"))
        .at(path.display().to_string())
}

/// What SQLite says of the file, with the code of a full disk where it is that: it may be waited for.
fn refused(path: &Path, error: &sqlx::Error) -> Error {
    if is_damage(error) {
        return damaged(path, &error.to_string());
    }
    let refusal = unusable(path, &told(error));
    if is_full(error) { Error { code: Code::LedgerFull, ..refusal } } else { refusal }
}

fn unusable_file(path: &Path, error: &io::Error) -> Error {
    let refusal = unusable(path, error);
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error { code: Code::LedgerFull, ..refusal }.hint("free space on its disk")
        }
        _ => refusal,
    }
}

fn damaged(path: &Path, why: &str) -> Error {
    unusable(path, &format!("the file is damaged: {why}")).hint(
        format!(
            "what is wrong: coderingctl ledger check {file}; restore a backup of it: coderingctl ledger restore BACKUP \
             --data-dir {}; or move it away together with its -wal file, and brokerd starts with an empty ledger: \
             jobs, projects, tokens and workers are then gone",
            directory(path).display(),
            file = path.display()
        ),
    )
}

/// The lock is on a file of its own: closing any handle of the ledger's would drop SQLite's locks on it.
pub(super) fn lock(path: &Path) -> Result<File, Error> {
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(with(path, ".lock"))
        .map_err(|error| match unusable_file(path, &error) {
            full if full.code == Code::LedgerFull => full,
            other => other.hint("its directory must exist and be brokerd's own"),
        })?;
    lock.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => {
            unusable(path, &"another codering-brokerd uses it").hint("stop that one first")
        }
        fs::TryLockError::Error(error) => unusable(path, &error),
    })?;
    Ok(lock)
}

fn exists(path: &Path) -> Result<bool, Error> {
    let there = |path: &Path| path.try_exists().map_err(|error| unusable(path, &error));
    let file = there(path)?;
    let log = with(path, "-wal");
    // A log without its file would be taken for the log of the new one.
    if !file && there(&log)? {
        return Err(damaged(path, "it is gone, and its log is still there"));
    }
    Ok(file)
}

/// Makes a new ledger beside its place and moves it there complete, so that an empty or partial file
/// is never taken for a new one.
async fn create(path: &Path) -> Result<(), Error> {
    let fail = |error: io::Error| unusable_file(path, &error);
    let making = with(path, ".new");
    for suffix in ["", "-wal", "-shm"] {
        match fs::remove_file(with(&making, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&making).map_err(fail)?;
    let mut connection = writing(&making).connect().await.map_err(|error| refused(path, &error))?;
    migrate(path, &mut connection).await?;
    connection.close().await.map_err(|error| refused(path, &error))?;
    file.sync_all().map_err(fail)?;
    fs::rename(&making, path).map_err(fail)?;
    File::open(directory(path)).and_then(|directory| directory.sync_all()).map_err(fail)
}

/// Looks at the header: <https://www.sqlite.org/fileformat.html#the_database_header>.
pub(super) fn look_at(path: &Path) -> Result<(), Error> {
    let fail = |error: io::Error| unusable_file(path, &error);
    let mut header = [0; 100];
    let mut file = File::open(path).map_err(fail)?;
    let bytes = file.metadata().map_err(fail)?.len();
    match file.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(damaged(path, &format!("it has {bytes} bytes")));
        }
        read => read.map_err(fail)?,
    }
    if &header[..16] != b"SQLite format 3\0" {
        return Err(damaged(path, "it does not start as an SQLite file does"));
    }
    let page_bytes = match u64::from(u16::from_be_bytes([header[16], header[17]])) {
        1 => 65_536,
        other => other,
    };
    let pages = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    // A log may still hold what the file lacks: a crash can fall between the copies of two pages.
    let log = fs::metadata(with(path, "-wal")).map_or(0, |log| log.len());
    if log == 0 && bytes < page_bytes * pages {
        return Err(damaged(
            path,
            &format!("it has {bytes} bytes where its header says {}; it was truncated", page_bytes * pages),
        ));
    }
    Ok(())
}

fn writing(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
        .pragma("cache_size", "-16384")
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .pragma("journal_size_limit", "67108864")
        .pragma("temp_store", "MEMORY")
        .thread_name(|_| "ledger-writer".into())
        .disable_statement_logging()
}

pub(super) fn reading(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(Duration::from_secs(5))
        .pragma("cache_size", "-8192")
        .pragma("temp_store", "MEMORY")
        // A row can weigh more than a megabyte.
        .row_buffer_size(16)
        .thread_name(|number| format!("ledger-read-{number}"))
        .disable_statement_logging()
}

pub(super) async fn migrate(path: &Path, connection: &mut SqliteConnection) -> Result<(), Error> {
    let Err(error) = MIGRATIONS.run_direct(None, connection, false).await else { return Ok(()) };
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    Err(match error {
        MigrateError::VersionMissing(version) if version > known => unusable(
            path,
            &format!(
                "a newer codering-brokerd wrote it: its schema has number {version}, this one knows {known}"
            ),
        )
        .hint("install that version again, or restore a backup from before it"),
        MigrateError::VersionMismatch(version) => {
            unusable(path, &format!("its schema {version} is not the one of this codering-brokerd"))
                .hint("install the version that wrote it")
        }
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => refused(path, &error),
        other => unusable(path, &other),
    })
}

/// A small file is read all through; of a large one, what every start needs.
async fn check(path: &Path, connection: &mut SqliteConnection) -> Result<(), Error> {
    let bytes = fs::metadata(path).map_err(|error| unusable(path, &error))?.len();
    let question =
        if bytes <= CHECKED_BYTES { "PRAGMA quick_check(1)" } else { "SELECT 'ok' FROM jobs LIMIT 1" };
    let answer: Option<String> = match sqlx::query(question).fetch_optional(connection).await {
        Ok(row) => row.map(|row| row.try_get(0)).transpose().map_err(|error| unusable(path, &error))?,
        Err(error) if is_full(&error) => return Err(refused(path, &error)),
        Err(error) => return Err(damaged(path, &told(&error))),
    };
    match answer.as_deref() {
        None | Some("ok") => Ok(()),
        Some(fault) => Err(damaged(path, fault)),
    }
}
