//! A wall clock that a test sets: libfaketime around a daemon, steered by a file.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

/// A daemon's wall clock; its monotonic clock stays the machine's.
pub struct Faketime(PathBuf);

impl Faketime {
    /// Right for now; steered by a file of this name.
    pub fn new(file: &Path) -> Self {
        let clock = Self(file.to_owned());
        clock.set("+0");
        clock
    }

    /// From now on this many seconds off, such as `-3600`.
    pub fn set(&self, seconds: &str) {
        // By renaming: a reader sees the one or the other.
        let new = self.0.with_extension("new");
        fs::write(&new, format!("{seconds}\n")).unwrap();
        fs::rename(new, &self.0).unwrap();
    }

    /// What the daemon needs in its environment.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let libraries = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let library = libraries
            .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
            .find(|path| path.exists())
            .expect("libfaketime is not installed: scripts/setup test");
        vec![
            ("LD_PRELOAD".into(), library.into()),
            ("FAKETIME_TIMESTAMP_FILE".into(), self.0.clone().into()),
            ("FAKETIME_NO_CACHE".into(), "1".into()),
            ("DONT_FAKE_MONOTONIC".into(), "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
        ]
    }
}
