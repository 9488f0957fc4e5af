//! Results on their way: on this worker's own disk before they are reported, and until they are recorded or fenced.
//!
//! Each result lies in a file of its own, `N.slot`, which is written over by a later one: a file made and removed for each
//! task costs several times the disk's and the kernel's work. What says that a slot holds a whole result is its head,
//! which has the result's length and digest; a slot that is written over holds either the new one or none.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use codering_core::{Code, Error, LeaseToken};
use codering_kit::fault::{self, Point};
use codering_proto::v1;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// The ending of a slot's file.
const ENDING: &str = "slot";
/// How a slot with a result begins; the length of the result, little endian, and its SHA-256 follow.
const MAGIC: [u8; 8] = *b"cspool1\n";
const HEAD: usize = MAGIC.len() + 8 + 32;
/// A free slot gives back what is over this.
const KEPT_BYTES: u64 = 64 << 10;

/// The spool's directory.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    durable: bool,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<LeaseToken, Waiting>,
    /// Slots that hold nothing, and the number of the next new one.
    free: Vec<u64>,
    next: u64,
}

#[derive(Debug, Clone)]
enum Waiting {
    /// In this slot, with so many bytes on the wire.
    OnDisk(u64, usize),
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
        let mut state = State::default();
        for entry in fs::read_dir(dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let Some(number) = number_of(&path) else { continue };
            state.next = state.next.max(number + 1);
            let held = read(&path).ok();
            let held =
                held.and_then(|report| Some((LeaseToken::new(&report.token).ok()?, report.encoded_len())));
            // Free, or half written when a former process ended: its attempt was not over.
            let Some((token, bytes)) = held.filter(|(token, _)| !state.waiting.contains_key(token)) else {
                fs::remove_file(&path).map_err(fail)?;
                continue;
            };
            state.waiting.insert(token, Waiting::OnDisk(number, bytes));
        }
        Ok(Self { dir: dir.to_owned(), durable, state: Mutex::new(state), changed: watch::Sender::new(0) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn slot(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number}.{ENDING}"))
    }

    /// How many wait in memory, because the disk did not take them.
    pub fn in_memory(&self) -> usize {
        self.state().waiting.values().filter(|waiting| matches!(waiting, Waiting::InMemory(_))).count()
    }

    /// Tries the disk once more for those. It blocks on the disk.
    pub fn write_again(&self) {
        for token in self.tokens() {
            let waiting = self.state().waiting.get(&token).cloned();
            let Some(Waiting::InMemory(report)) = waiting else { continue };
            let number = match self.write(&report) {
                Ok(number) => number,
                Err(e) => return tracing::debug!("the disk takes no result yet: {e}"),
            };
            let reported = match self.state().waiting.get_mut(&token) {
                Some(waiting) => {
                    *waiting = Waiting::OnDisk(number, report.encoded_len());
                    false
                }
                None => true,
            };
            if reported {
                self.clear(number);
            }
            self.tell();
        }
    }

    /// Keeps a result. It blocks on the disk.
    pub fn put(&self, token: &LeaseToken, report: v1::AttemptReport) {
        let waiting = match self.write(&report) {
            Ok(number) => Waiting::OnDisk(number, report.encoded_len()),
            Err(e) => {
                tracing::error!(
                    token = &token.as_str()[..8],
                    "a result could not be spooled and waits in memory: {e}"
                );
                Waiting::InMemory(Box::new(report))
            }
        };
        let before = self.state().waiting.insert(token.clone(), waiting);
        if let Some(Waiting::OnDisk(number, _)) = before {
            self.clear(number);
        }
        self.tell();
    }

    /// Writes into a free slot, and says which.
    fn write(&self, report: &v1::AttemptReport) -> io::Result<u64> {
        let (number, is_new) = {
            let mut state = self.state();
            match state.free.pop() {
                Some(number) => (number, false),
                None => {
                    state.next += 1;
                    (state.next - 1, true)
                }
            }
        };
        let written = self.fill(number, is_new, report);
        if written.is_err() {
            // What was written of it takes room from what could be written.
            let _ = fs::remove_file(self.slot(number));
        }
        written.map(|()| number)
    }

    fn fill(&self, number: u64, is_new: bool, report: &v1::AttemptReport) -> io::Result<()> {
        let bytes = slot(&report.encode_to_vec());
        let file = OpenOptions::new().write(true).create(is_new).truncate(false).open(self.slot(number))?;
        fault::reached(Point::SlotTaken);
        file.write_all_at(&bytes, 0)?;
        fault::reached(Point::ResultWritten);
        if self.durable {
            file.sync_data()?;
            if is_new {
                File::open(&self.dir)?.sync_all()?;
            }
        }
        fault::reached(Point::ResultSpooled);
        Ok(())
    }

    /// Makes a slot free again. It is not synced: what comes back after a crash of the machine is reported again, and fenced.
    fn clear(&self, number: u64) {
        let path = self.slot(number);
        let cleared = OpenOptions::new().write(true).open(&path).and_then(|file| {
            if file.metadata()?.len() > KEPT_BYTES {
                return file.set_len(0);
            }
            file.write_all_at(&[0; MAGIC.len()], 0)
        });
        match cleared {
            Ok(()) => self.state().free.push(number),
            Err(e) => {
                let gone = fs::remove_file(&path).or_else(|e| match e.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(e),
                });
                if gone.is_err() {
                    tracing::warn!("a reported result stays in the spool: {e}");
                }
            }
        }
    }

    /// Reads one; `None` when it is not there, or not whole any more.
    pub fn get(&self, token: &LeaseToken) -> Option<v1::AttemptReport> {
        let number = match self.state().waiting.get(token)? {
            Waiting::InMemory(report) => return Some((**report).clone()),
            Waiting::OnDisk(number, _) => *number,
        };
        let path = self.slot(number);
        match read(&path) {
            Ok(report) if report.token == token.as_str() => Some(report),
            read => {
                // It may have been reported, and its slot written over, since the look at where it is.
                if !matches!(self.state().waiting.get(token), Some(Waiting::OnDisk(now, _)) if *now == number)
                {
                    return None;
                }
                let why = read.map_or_else(|e| e.to_string(), |_| "it is another's".to_owned());
                tracing::error!(file = %path.display(), "a spooled result cannot be read and is put aside: {why}");
                let _ = fs::rename(&path, path.with_file_name(format!("{token}.bad")));
                self.state().waiting.remove(token);
                None
            }
        }
    }

    /// It was recorded or fenced.
    pub fn remove(&self, token: &LeaseToken) {
        let removed = self.state().waiting.remove(token);
        match removed {
            None => return,
            Some(Waiting::OnDisk(number, _)) => self.clear(number),
            Some(Waiting::InMemory(_)) => {}
        }
        fault::reached(Point::SpoolRemoved);
        self.tell();
    }

    /// The tokens of all that wait.
    pub fn tokens(&self) -> Vec<LeaseToken> {
        self.state().waiting.keys().cloned().collect()
    }

    /// The same, each with its bytes on the wire: what a reader may want to know before it reads one.
    pub fn waiting(&self) -> Vec<(LeaseToken, usize)> {
        let bytes = |waiting: &Waiting| match waiting {
            Waiting::OnDisk(_, bytes) => *bytes,
            Waiting::InMemory(report) => report.encoded_len(),
        };
        self.state().waiting.iter().map(|(token, waiting)| (token.clone(), bytes(waiting))).collect()
    }

    /// Whether one waits.
    pub fn contains(&self, token: &LeaseToken) -> bool {
        self.state().waiting.contains_key(token)
    }

    /// Tells of comings and goings.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Resolves when nothing waits.
    pub async fn empty(&self) {
        let mut changed = self.changed();
        while !self.state().waiting.is_empty() {
            // The sender lives in self.
            let _ = changed.changed().await;
        }
    }
}

fn number_of(path: &Path) -> Option<u64> {
    let ending = path.extension()?;
    (ending == ENDING).then(|| path.file_stem()?.to_str()?.parse().ok())?
}

/// What a slot with this result holds.
pub(crate) fn slot(body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u64).to_le_bytes();
    [&MAGIC[..], &length, &Sha256::digest(body), body].concat()
}

/// The result in a slot, if it is whole.
fn read(path: &Path) -> io::Result<v1::AttemptReport> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let file = File::open(path)?;
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, 0)?;
    let (magic, rest) = head.split_at(MAGIC.len());
    let (length, digest) = rest.split_at(8);
    if magic != MAGIC {
        return Err(bad("it holds no result"));
    }
    let length = u64::from_le_bytes(length.try_into().map_err(|_| bad("it has no length"))?);
    if length > file.metadata()?.len().saturating_sub(HEAD as u64) {
        return Err(bad("it is cut short"));
    }
    let mut body = vec![0; usize::try_from(length).map_err(|_| bad("it is too long"))?];
    file.read_exact_at(&mut body, HEAD as u64)?;
    if *Sha256::digest(&body) != *digest {
        return Err(bad("its digest is another one"));
    }
    v1::AttemptReport::decode(body.as_slice()).map_err(|e| bad(&e.to_string()))
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
        spool.put(&token(3), report(3));
        let half = OpenOptions::new().write(true).open(dir.path().join("2.slot")).expect("the third");
        half.write_all_at(b"half", HEAD as u64 + 20).expect("write");
        let spool = Spool::open(dir.path(), true).expect("open again");
        assert_eq!(spool.tokens(), [token(1), token(2)]);
        assert!(!dir.path().join("2.slot").exists());
        assert_eq!(spool.get(&token(2)), Some(report(2)));
        spool.remove(&token(2));
        let spool = Spool::open(dir.path(), true).expect("open again");
        assert_eq!(spool.tokens(), [token(1)]);
    }

    #[test]
    fn a_broken_file_is_put_aside_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(dir.path(), true).expect("open");
        spool.put(&token(1), report(1));
        fs::write(dir.path().join("0.slot"), b"\xff\xff\xff").expect("write");
        assert_eq!(spool.get(&token(1)), None);
        assert!(spool.tokens().is_empty());
        assert!(dir.path().join(format!("{}.bad", token(1))).exists());
        spool.put(&token(2), report(2));
        assert_eq!(spool.get(&token(2)), Some(report(2)));
    }

    #[test]
    fn slots_are_written_over_and_a_shorter_result_is_not_followed_by_the_rest_of_a_longer_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(dir.path(), true).expect("open");
        for (n, bytes) in [(1, 1000), (2, 10), (3, 500_000), (4, 100)] {
            let mut report = report(n);
            report.result.get_or_insert_default().stdout = vec![n; bytes].into();
            spool.put(&token(n), report.clone());
            assert_eq!(Spool::open(dir.path(), true).expect("open").get(&token(n)), Some(report.clone()));
            assert_eq!(spool.get(&token(n)), Some(report));
            spool.remove(&token(n));
            assert_eq!(spool.get(&token(n)), None);
            let length = fs::metadata(dir.path().join("0.slot")).expect("the one slot").len();
            assert!(length <= KEPT_BYTES, "{length} bytes are kept of a free slot");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }

    #[test]
    fn a_result_that_is_put_twice_takes_one_slot() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(dir.path(), true).expect("open");
        spool.put(&token(1), report(1));
        spool.put(&token(1), report(1));
        spool.put(&token(2), report(2));
        spool.remove(&token(1));
        assert_eq!(Spool::open(dir.path(), true).expect("open").tokens(), [token(2)]);
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
