//! Room on a disk, and the reserve that a daemon leaves free on it: what it has promised already must still fit when
//! it takes nothing new.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use codering_core::units::show_size;

/// A disk is asked at most once in this time.
const FRESH: Duration = Duration::from_secs(1);
/// A disk that can hold fewer files than this is as good as full.
const FEW_FILES: u64 = 100;

/// What is to stay free on the disk of a directory. Clones share what was last seen.
#[derive(Debug, Clone)]
pub struct Reserve(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    bytes: u64,
    seen: Mutex<Option<(Instant, Option<Free>)>>,
}

/// What is free for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// Bytes.
    pub bytes: u64,
    /// Files; `None` where the file system has no bound of its own.
    pub files: Option<u64>,
}

/// Asks the file system of `dir` now; `None` where it does not say.
pub fn free(dir: &Path) -> Option<Free> {
    let found = rustix::fs::statvfs(dir).ok()?;
    let files = (found.f_files > 0).then_some(found.f_favail);
    Some(Free { bytes: found.f_bavail.saturating_mul(found.f_frsize), files })
}

/// There is less room than the reserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    dir: PathBuf,
    free: Free,
    reserve: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, free, reserve } = self;
        match free.files.filter(|files| *files < FEW_FILES) {
            Some(files) => write!(f, "the disk of {} has room for {files} files", dir.display()),
            None => write!(
                f,
                "the disk of {} has {} free, and {} are kept in reserve",
                dir.display(),
                show_size(free.bytes),
                show_size(*reserve)
            ),
        }
    }
}

impl Reserve {
    /// `bytes` on the disk of `dir`; 0 for none.
    pub fn new(dir: impl Into<PathBuf>, bytes: u64) -> Self {
        Self(Arc::new(Inner { dir: dir.into(), bytes, seen: Mutex::default() }))
    }

    fn free(&self) -> Option<Free> {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((at, free)) if at.elapsed() < FRESH => free,
            _ => {
                let free = free(&self.0.dir);
                *seen = Some((Instant::now(), free));
                free
            }
        }
    }

    /// The reserve is touched: take nothing new.
    pub fn touched(&self) -> Option<Shortage> {
        self.below(self.0.bytes)
    }

    /// Half of the reserve is gone: begin nothing of what was taken either.
    pub fn half_gone(&self) -> Option<Shortage> {
        self.below(self.0.bytes / 2)
    }

    fn below(&self, bytes: u64) -> Option<Shortage> {
        if self.0.bytes == 0 {
            return None;
        }
        let free = self.free()?;
        short(free, bytes).then(|| Shortage { dir: self.0.dir.clone(), free, reserve: self.0.bytes })
    }
}

fn short(free: Free, bytes: u64) -> bool {
    free.bytes < bytes || free.files.is_some_and(|files| files < FEW_FILES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_short_of_bytes_or_of_files() {
        assert!(short(Free { bytes: 99, files: None }, 100));
        assert!(!short(Free { bytes: 100, files: None }, 100));
        assert!(short(Free { bytes: 100, files: Some(FEW_FILES - 1) }, 100));
    }

    #[test]
    fn a_shortage_names_the_place_and_both_sizes() {
        let here = std::env::temp_dir();
        let short = Reserve::new(&here, u64::MAX).touched().expect("no disk has that much");
        assert!(short.to_string().contains(here.to_str().expect("plain")), "{short}");
        assert!(short.to_string().contains("in reserve"), "{short}");
        assert!(Reserve::new(&here, 0).touched().is_none(), "no reserve, no shortage");
        assert!(
            Reserve::new("/nowhere", 1).touched().is_none(),
            "what cannot be asked is found out by writing"
        );
    }
}
