//! Results on their way: on this worker's own disk before they are reported, and until they are recorded or fenced.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use codering_core::{Code, Error, LeaseToken};
use codering_kit::fault::{self, Point};
use codering_proto::v1;
use prost::Message;
use tokio::sync::watch;

/// The ending of a spooled result's file.
const ENDING: &str = "result";

/// The spool's directory.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    durable: bool,
    waiting: Mutex<BTreeMap<LeaseToken, Waiting>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Clone)]
enum Waiting {
    OnDisk,
    /// The disk did not take it, so it waits here: better than nothing.
    InMemory(Box<v1::AttemptReport>),
}

impl Spool {
    /// Opens it with all that a former process left. Without `durable` nothing is synced, for simulated tasks.
    ///
    /// # Errors
    /// [`Code::Internal`] when the directory cannot be made or read.
    pub fn open(dir: &Path, durable: bool) -> Result<Self, Error> {
        let fail = |e: io::Error| {
            Error::new(Code::Internal, format!("the spool: {e}")).at(dir.display().to_string())
        };
        fs::create_dir_all(dir).map_err(fail)?;
        let mut waiting = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            match token_of(&path) {
                Some(token) => {
                    waiting.insert(token, Waiting::OnDisk);
                }
                // Half written when a former process ended: its attempt was not over.
                None if path.extension().is_some_and(|e| e == "new") => {
                    fs::remove_file(&path).map_err(fail)?
                }
                None => {}
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            durable,
            waiting: Mutex::new(waiting),
            changed: watch::Sender::new(0),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<LeaseToken, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, token: &LeaseToken) -> PathBuf {
        self.dir.join(format!("{token}.{ENDING}"))
    }

    fn half(&self, token: &LeaseToken) -> PathBuf {
        self.dir.join(format!("{token}.new"))
    }

    /// How many wait in memory, because the disk did not take them.
    pub fn in_memory(&self) -> usize {
        self.waiting().values().filter(|waiting| matches!(waiting, Waiting::InMemory(_))).count()
    }

    /// Tries the disk once more for those. It blocks on the disk.
    pub fn write_again(&self) {
        for token in self.tokens() {
            let waiting = self.waiting().get(&token).cloned();
            let Some(Waiting::InMemory(report)) = waiting else { continue };
            if let Err(e) = self.write(&token, &report) {
                let _ = fs::remove_file(self.half(&token));
                return tracing::debug!("the disk takes no result yet: {e}");
            }
            match self.waiting().get_mut(&token) {
                Some(waiting) => *waiting = Waiting::OnDisk,
                // It was reported from memory meanwhile.
                None => drop(fs::remove_file(self.file(&token))),
            }
            self.changed.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// Keeps a result. It blocks on the disk.
    pub fn put(&self, token: &LeaseToken, report: v1::AttemptReport) {
        let waiting = match self.write(token, &report) {
            Ok(()) => Waiting::OnDisk,
            Err(e) => {
                // What was written of it takes room from what could be written.
                let _ = fs::remove_file(self.half(token));
                tracing::error!(
                    token = &token.as_str()[..8],
                    "a result could not be spooled and waits in memory: {e}"
                );
                Waiting::InMemory(Box::new(report))
            }
        };
        self.waiting().insert(token.clone(), waiting);
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn write(&self, token: &LeaseToken, report: &v1::AttemptReport) -> io::Result<()> {
        let new = self.half(token);
        let mut file = File::create(&new)?;
        file.write_all(&report.encode_to_vec())?;
        if self.durable {
            file.sync_all()?;
        }
        fault::reached(Point::ResultWritten);
        fs::rename(&new, self.file(token))?;
        fault::reached(Point::ResultSpooled);
        if self.durable {
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }

    /// Reads one; `None` when it is not there, or not whole any more.
    pub fn get(&self, token: &LeaseToken) -> Option<v1::AttemptReport> {
        let waiting = self.waiting().get(token).cloned()?;
        if let Waiting::InMemory(report) = waiting {
            return Some(*report);
        }
        let file = self.file(token);
        let read = fs::read(&file).map_err(|e| e.to_string());
        match read.and_then(|bytes| v1::AttemptReport::decode(bytes.as_slice()).map_err(|e| e.to_string())) {
            Ok(report) => Some(report),
            Err(e) => {
                tracing::error!(file = %file.display(), "a spooled result cannot be read and is put aside: {e}");
                let _ = fs::rename(&file, file.with_extension("bad"));
                self.waiting().remove(token);
                None
            }
        }
    }

    /// It was recorded or fenced.
    pub fn remove(&self, token: &LeaseToken) {
        if self.waiting().remove(token).is_none() {
            return;
        }
        match fs::remove_file(self.file(token)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("a reported result stays in the spool: {e}");
            }
            _ => {}
        }
        fault::reached(Point::SpoolRemoved);
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// The tokens of all that wait.
    pub fn tokens(&self) -> Vec<LeaseToken> {
        self.waiting().keys().cloned().collect()
    }

    /// Whether one waits.
    pub fn contains(&self, token: &LeaseToken) -> bool {
        self.waiting().contains_key(token)
    }

    /// Tells of comings and goings.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Resolves when nothing waits.
    pub async fn empty(&self) {
        let mut changed = self.changed();
        while !self.waiting().is_empty() {
            // The sender lives in self.
            let _ = changed.changed().await;
        }
    }
}

fn token_of(path: &Path) -> Option<LeaseToken> {
    let ending = path.extension()?;
    (ending == ENDING).then(|| LeaseToken::new(path.file_stem()?.to_str()?).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(n: u8) -> LeaseToken {
        LeaseToken::from_bytes([n; 16])
    }

    fn report(n: u8) -> v1::AttemptReport {
        let result = v1::TaskResult { stdout: vec![n; 100].into(), ..Default::default() };
        v1::AttemptReport { token: token(n).to_string(), result: Some(result) }
    }

    #[test]
    fn a_result_is_there_again_after_a_restart_until_it_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(dir.path(), true).expect("open");
        spool.put(&token(1), report(1));
        spool.put(&token(2), report(2));
        fs::write(dir.path().join(format!("{}.new", token(3))), b"half").expect("write");
        let spool = Spool::open(dir.path(), true).expect("open again");
        assert_eq!(spool.tokens(), [token(1), token(2)]);
        assert_eq!(spool.get(&token(2)), Some(report(2)));
        spool.remove(&token(2));
        let spool = Spool::open(dir.path(), true).expect("open again");
        assert_eq!(spool.tokens(), [token(1)]);
    }

    #[test]
    fn a_broken_file_is_put_aside_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(format!("{}.result", token(1))), b"\xff\xff\xff").expect("write");
        let spool = Spool::open(dir.path(), true).expect("open");
        assert_eq!(spool.get(&token(1)), None);
        assert!(spool.tokens().is_empty());
        assert!(dir.path().join(format!("{}.bad", token(1))).exists());
    }

    #[test]
    fn what_the_disk_does_not_take_waits_in_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(dir.path(), true).expect("open");
        fs::remove_dir(dir.path()).expect("remove");
        spool.put(&token(1), report(1));
        assert_eq!(spool.get(&token(1)), Some(report(1)));
        assert_eq!(spool.in_memory(), 1);
        spool.write_again();
        assert_eq!(spool.in_memory(), 1, "there is no directory still");
        fs::create_dir(dir.path()).expect("make");
        spool.write_again();
        assert_eq!(spool.in_memory(), 0);
        assert_eq!(Spool::open(dir.path(), true).expect("open").get(&token(1)), Some(report(1)));
    }
}
