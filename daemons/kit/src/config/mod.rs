//! One configuration out of a file, its drop-ins and the environment.
//!
//! `/etc/codering/DAEMON.toml` (absent means defaults), then `/etc/codering/DAEMON.d/*.toml` in the order of
//! their names, then `CODERING_<KEY>` variables, each over the one before. What may be written is read off
//! the type itself (see [`keys`]), so an unknown key or variable is found without a list to keep.

mod document;
mod environment;
mod schema;
mod secret;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use codering_core::{Code, Error};
use serde::de::DeserializeOwned;

pub use environment::OTHERS;
pub use schema::{Key, Kind, keys};
pub use secret::{Secret, credential, secret_file, secret_path};

/// No configuration file is larger.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Loads `daemon`'s configuration and checks it.
///
/// `T` is what files say (every field with a default, `#[serde(default)]`, no `flatten`); `check` makes of it
/// what was validated. An error of `check` whose place is a dotted key (`grpc.listen`) gets the place where
/// that key was written instead.
///
/// # Errors
/// [`Code::ConfigInvalid`] with file and line, or the variable's name.
pub fn load<T: DeserializeOwned, C>(
    daemon: &str,
    file: Option<&Path>,
    check: impl FnOnce(T) -> Result<C, Error>,
) -> Result<C, Error> {
    load_written(daemon, file, check).map(|(checked, _)| checked)
}

/// [`load`], and what was written beside what was made of it.
///
/// # Errors
/// Those of [`load`].
pub fn load_written<T: DeserializeOwned, C>(
    daemon: &str,
    file: Option<&Path>,
    check: impl FnOnce(T) -> Result<C, Error>,
) -> Result<(C, Written), Error> {
    let named = file.is_some();
    let file = file.map_or_else(|| PathBuf::from(format!("/etc/codering/{daemon}.toml")), Path::to_path_buf);
    load_from(&file, named, std::env::vars_os(), check)
}

/// [`load`] with the environment handed over; `named` means that the file must be there.
fn load_from<T: DeserializeOwned, C>(
    file: &Path,
    named: bool,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    check: impl FnOnce(T) -> Result<C, Error>,
) -> Result<(C, Written), Error> {
    let known = keys::<T>();
    let mut merged = toml::Table::new();
    let mut places = BTreeMap::new();
    for path in std::iter::once(file.to_path_buf()).chain(drop_ins(file)?) {
        let Some(text) = read(&path, named && path == file)? else { continue };
        document::read::<T>(&path, &text, &known, &mut merged, &mut places)?;
    }
    environment::read::<T>(environment, &known, &mut merged, &mut places)?;
    let value = T::deserialize(toml::Value::Table(merged.clone())).map_err(|e| invalid(e.to_string()))?;
    let written = Written { values: merged, places, keys: known.into_iter().map(|key| key.path).collect() };
    match check(value) {
        Ok(checked) => Ok((checked, written)),
        Err(error) => Err(written.placed(error)),
    }
}

/// What the files and the environment say, key by key.
#[derive(Debug, Clone, Default)]
pub struct Written {
    values: toml::Table,
    places: BTreeMap<String, String>,
    keys: Vec<String>,
}

impl Written {
    /// The keys whose value is another than in `before`, as they are written: `30s` is another than `30`.
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        self.keys.iter().filter(|key| self.value(key) != before.value(key)).cloned().collect()
    }

    /// These keys are in force now as `newer` has them; the others stay what they were.
    pub fn take_from(&mut self, newer: Self, keys: &[String]) {
        let mut values = newer.values.clone();
        for key in self.keys.iter().filter(|key| !keys.contains(key)) {
            put(&mut values, key, self.value(key).cloned());
        }
        *self = Self { values, ..newer };
    }

    /// The error with the file and line of the key that is its place; always [`Code::ConfigInvalid`].
    pub fn placed(&self, mut error: Error) -> Error {
        if let Some(place) = self.places.get(&error.place) {
            error.place.clone_from(place);
        }
        error.code = Code::ConfigInvalid;
        error
    }

    fn value(&self, key: &str) -> Option<&toml::Value> {
        let (above, last) = key.rsplit_once('.').map_or((None, key), |(above, last)| (Some(above), last));
        let mut table = &self.values;
        for part in above.into_iter().flat_map(|above| above.split('.')) {
            table = table.get(part)?.as_table()?;
        }
        table.get(last)
    }
}

fn put(table: &mut toml::Table, key: &str, value: Option<toml::Value>) {
    match (key.split_once('.'), value) {
        (Some((first, rest)), value) => {
            let inner = table.entry(first).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let Some(inner) = inner.as_table_mut() {
                put(inner, rest, value);
            }
        }
        (None, Some(value)) => drop(table.insert(key.to_owned(), value)),
        (None, None) => drop(table.remove(key)),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::ConfigInvalid, message)
}

/// `X.d/*.toml` beside `X.toml`, sorted by name.
fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, Error> {
    let directory = file.with_extension("d");
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => {
            return Err(invalid(format!("cannot list the drop-ins: {e}")).at(directory.display().to_string()));
        }
    };
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    Ok(files)
}

fn read(path: &Path, must_exist: bool) -> Result<Option<String>, Error> {
    let place = path.display().to_string();
    match std::fs::metadata(path) {
        Ok(about) if about.len() > MAX_FILE_BYTES => {
            return Err(invalid("a configuration file has at most 1 MiB").at(place));
        }
        Err(e) if e.kind() == ErrorKind::NotFound && !must_exist => return Ok(None),
        _ => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(|e| {
        let error = invalid(format!("cannot be read: {e}")).at(place);
        match e.kind() {
            ErrorKind::NotFound => error.hint("leave --config away to run with defaults"),
            ErrorKind::PermissionDenied => error.hint("the daemon's user needs to read it"),
            _ => error,
        }
    })
}

#[cfg(test)]
mod tests;
