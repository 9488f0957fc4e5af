//! When the leases end, written down at each heartbeat: the worker's next process must not go on with a container whose
//! lease ended while nobody was there to stop it.

use std::{collections::HashMap, path::Path, sync::PoisonError, time::Duration};

use codering_core::LeaseToken;
use codering_kit::fault::{self, Point};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::worker::Worker;

/// What is on disk.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Written {
    boot: String,
    leases: HashMap<LeaseToken, Lease>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Lease {
    /// On the machine's own clock since it booted, in milliseconds.
    ends_at: u64,
    /// Its standard input was written to the end.
    fed: bool,
}

/// A lease of the former process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Former {
    /// How long it still runs; none when it ended.
    pub left: Option<Duration>,
    /// Its standard input was written to the end.
    pub fed: bool,
}

/// Writes down what runs in containers.
pub(crate) fn write(worker: &Worker) {
    let _writing = worker.writing_leases.lock().unwrap_or_else(PoisonError::into_inner);
    let (now, boot_now) = (Instant::now(), since_boot());
    let leases = worker
        .attempts
        .all()
        .iter()
        .filter(|held| !held.container().is_empty())
        .map(|held| {
            let left = held.deadline().saturating_duration_since(now);
            let ends_at = boot_now + left.as_millis() as u64;
            (held.token.clone(), Lease { ends_at, fed: held.is_fed() })
        })
        .collect();
    let file = worker.leases_file();
    let written = Written { boot: boot(), leases };
    let new = file.with_extension("new");
    let text = serde_json::to_vec(&written).unwrap_or_default();
    if let Err(e) = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file)) {
        tracing::warn!(file = %file.display(), "the leases were not written down: {e}");
    }
    fault::reached(Point::LeasesWritten);
}

/// What a former process wrote down.
pub(crate) fn read(file: &Path) -> HashMap<LeaseToken, Former> {
    let written: Written =
        std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    former(written, &boot(), since_boot())
}

fn former(written: Written, boot: &str, now: u64) -> HashMap<LeaseToken, Former> {
    // No container outlives a boot.
    let same = written.boot == boot;
    let all = written.leases.into_iter().filter(|_| same);
    all.map(|(token, lease)| {
        let left = lease.ends_at.checked_sub(now).filter(|ms| *ms > 0).map(Duration::from_millis);
        (token, Former { left, fed: lease.fed })
    })
    .collect()
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Milliseconds, to the hundredth of a second.
fn since_boot() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split(' ').next().and_then(|s| s.parse::<f64>().ok()).unwrap_or(0.0);
    (seconds * 1000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_ended_meanwhile_is_known_to_have_ended() {
        let (live, over) = (LeaseToken::from_bytes([1; 16]), LeaseToken::from_bytes([2; 16]));
        let written = || Written {
            boot: "b".into(),
            leases: [
                (live.clone(), Lease { ends_at: 5000, fed: true }),
                (over.clone(), Lease { ends_at: 3000, fed: true }),
            ]
            .into(),
        };
        let found = former(written(), "b", 4000);
        assert_eq!(found[&live], Former { left: Some(Duration::from_secs(1)), fed: true });
        assert_eq!(found[&over].left, None);
        assert!(former(written(), "another boot", 4000).is_empty());
    }
}
