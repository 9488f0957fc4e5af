//! Looks for secrets where none may be: in all that was written, and in what a process shows of itself.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::process::children;

/// Something that must not be seen.
#[derive(Debug, Clone)]
pub struct Secret {
    /// What it is, for the message.
    pub name: String,
    /// As it would be seen; several secrets for several spellings of one.
    pub text: String,
    /// The files that hold it rightly, by the ends of their paths. Only their owner may read them.
    pub kept_in: Vec<String>,
}

impl Secret {
    /// One that is kept in these files.
    pub fn new(name: &str, text: impl Into<String>, kept_in: &[&str]) -> Self {
        let text = text.into();
        assert!(text.len() >= 12, "too short to be looked for: {name}");
        Self { name: name.into(), text, kept_in: kept_in.iter().map(ToString::to_string).collect() }
    }
}

/// Panics where a text shows a secret; `place` says which text it is.
pub fn assert_unseen(place: &str, text: &[u8], secrets: &[Secret]) {
    let text = String::from_utf8_lossy(text);
    for secret in secrets {
        if let Some(at) = text.find(&secret.text) {
            let line = text[..at].rsplit('\n').next().unwrap_or_default();
            panic!("{} is seen in {place}, after `{line}`", secret.name);
        }
    }
}

/// Panics where a file below `directory` holds a secret that is not kept there, or one that is and that others may read.
/// For the end of any test: the daemons' logs, ledgers, caches and coderingctl's history are all there.
pub fn assert_no_file_shows(directory: &Path, secrets: &[Secret]) {
    let mut wrong = Vec::new();
    for path in files(directory) {
        // It may be gone by now, or be no file that can be read.
        let Ok(bytes) = fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        for secret in secrets.iter().filter(|secret| text.contains(&secret.text)) {
            let shown = path.display().to_string();
            if !secret.kept_in.iter().any(|end| shown.ends_with(end.as_str())) {
                wrong.push(format!("{} is in {shown}", secret.name));
            } else if !is_private(&path, directory) {
                wrong.push(format!("{} is in {shown}, which others may read", secret.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether the file, or a directory on the way to it, is for its owner alone.
fn is_private(file: &Path, below: &Path) -> bool {
    let private = |path: &Path| fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o077 == 0);
    // The test's own directory is private whatever the daemons do.
    file.ancestors().take_while(|path| *path != below).any(private)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// Collects the command lines and environments of processes and of all that they start, until it is asked.
pub struct Watch {
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<Vec<u8>>>>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Watches these processes.
    pub fn over(processes: Vec<u32>) -> Self {
        let (over, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let thread = std::thread::spawn({
            let (over, seen) = (over.clone(), seen.clone());
            move || {
                while !over.load(Ordering::Relaxed) {
                    let mut next = processes.clone();
                    while let Some(id) = next.pop() {
                        next.extend(children(id));
                        for what in ["cmdline", "environ"] {
                            // It may have ended meanwhile.
                            let shown = fs::read(format!("/proc/{id}/{what}")).unwrap_or_default();
                            seen.lock().unwrap().insert(shown);
                        }
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Self { over, seen, thread }
    }

    /// Ends it. Panics where one of them showed a secret.
    pub fn assert_unseen(self, secrets: &[Secret]) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        let seen = self.seen.lock().unwrap();
        assert!(seen.iter().any(|shown| !shown.is_empty()), "nothing was watched");
        seen.iter()
            .for_each(|shown| assert_unseen("a process's command line or environment", shown, secrets));
    }
}
