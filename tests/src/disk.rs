//! A disk that a test can fill: a tmpfs of its own size.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::run;

/// What fills it, beside what is there.
const BALLAST: &str = "ballast";

/// Mounted until it is dropped, also where the test fails.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of `mebibytes` at a directory, which is made.
    pub fn mount(at: PathBuf, mebibytes: u32) -> Self {
        fs::create_dir_all(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=700"), "tmpfs"]).arg(&at);
        let ran = run(&mut mount, Duration::from_secs(10));
        assert_eq!(ran.code, Some(0), "a mount of the test's own needs root: {}", ran.stderr);
        Self(at)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.0).unwrap();
        found.f_bavail * found.f_frsize
    }

    /// Fills it until so many bytes are free; to the last one for 0, and again where something was freed meanwhile.
    pub fn fill(&self, leave: u64) {
        let mut ballast = OpenOptions::new().create(true).append(true).open(self.0.join(BALLAST)).unwrap();
        let piece = vec![0xa5; 64 << 10];
        loop {
            let over = self.free().saturating_sub(leave).min(piece.len() as u64);
            if over < 4096 {
                return;
            }
            match ballast.write(&piece[..usize::try_from(over).unwrap()]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{}: {error}", self.0.display()),
            }
        }
    }

    /// Makes room again.
    pub fn empty(&self) {
        fs::remove_file(self.0.join(BALLAST)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: where a test failed, daemons still have files on it.
        let ran = run(Command::new("umount").arg("--lazy").arg(&self.0), Duration::from_secs(10));
        if ran.code != Some(0) {
            eprintln!("{} stays mounted: {}", self.0.display(), ran.stderr);
        }
    }
}
