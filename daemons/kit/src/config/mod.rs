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
pub use secret::{Secret, credential, secret_file};

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
) -> Result<C, Error> {
    let known = keys::<T>();
    let mut merged = toml::Table::new();
    let mut places = BTreeMap::new();
    for path in std::iter::once(file.to_path_buf()).chain(drop_ins(file)?) {
        let Some(text) = read(&path, named && path == file)? else { continue };
        document::read::<T>(&path, &text, &known, &mut merged, &mut places)?;
    }
    environment::read::<T>(environment, &known, &mut merged, &mut places)?;
    let value = T::deserialize(toml::Value::Table(merged)).map_err(|e| invalid(e.to_string()))?;
    check(value).map_err(|mut error| {
        if let Some(place) = places.get(&error.place) {
            error.place.clone_from(place);
        }
        error.code = Code::ConfigInvalid;
        error
    })
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
