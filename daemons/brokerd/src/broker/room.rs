//! A disk with little room, or none: what was promised comes before what is new. Below the reserve nothing is taken
//! in; below half of it, or while the ledger records nothing, nothing is begun; what runs ends and is recorded for as
//! long as anything can be. Each of them goes on by itself.

use std::{
    sync::{Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use codering_core::{Code, Error, JobId};

use super::Broker;

/// Between two looks for room.
const AGAIN: Duration = Duration::from_secs(1);
/// Submits that are remembered until they can be removed; the next start removes more.
const MAX_ABANDONED: usize = 10_000;

/// Submits that ended in an error, and whose rows could not be removed for the same reason.
#[derive(Debug, Default)]
pub(super) struct Abandoned(Mutex<Vec<JobId>>);

impl Abandoned {
    pub(super) fn push(&self, id: JobId) {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.len() < MAX_ABANDONED {
            ids.push(id);
        }
    }

    fn take(&self) -> Vec<JobId> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Broker {
    /// Refuses what is new while the reserve is touched.
    pub(super) fn check_room(&self) -> Result<(), Error> {
        match self.settings().reserve.touched() {
            None => Ok(()),
            Some(short) => Err(Error::new(Code::LedgerFull, format!("nothing new is taken: {short}"))
                .hint("free space on the broker's disk, and it goes on by itself; or lower min_free_disk")),
        }
    }

    /// What the disk lacks, for `/readyz`.
    pub fn shortage(&self) -> Option<String> {
        let short = self.settings().reserve.touched()?;
        let what = if self.settings().reserve.half_gone().is_some() {
            "no task is begun"
        } else {
            "submits are refused"
        };
        Some(format!("{short}; {what}"))
    }

    /// A lease was not recorded because the ledger cannot be written: the next one would not be either, and its message
    /// would go round until its queue counts it as undeliverable.
    pub(super) fn lease_failed(&self, error: &Error) {
        if matches!(error.code, Code::LedgerFull | Code::LedgerUnavailable | Code::LedgerUnknown) {
            self.ledger_failed.store(true, Relaxed);
        }
    }

    /// Why no task may be begun now.
    async fn holds_back(&self) -> Option<String> {
        if let Some(short) = self.settings().reserve.half_gone() {
            return Some(short.to_string());
        }
        if !self.ledger_failed.load(Relaxed) {
            return None;
        }
        match self.ledger.check().await {
            Ok(()) => {
                self.ledger_failed.store(false, Relaxed);
                None
            }
            Err(error) => Some(error.to_string()),
        }
    }

    /// Waits until a task may be begun, or the broker stops.
    pub(super) async fn wait_for_room(&self) {
        let Some(why) = self.holds_back().await else { return };
        tracing::error!(why, "no task is begun until its result can be recorded");
        loop {
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = self.stop.cancelled() => return,
            }
            if self.holds_back().await.is_none() {
                tracing::info!("tasks are begun again");
                self.scheduler().ring_all();
                return;
            }
        }
    }

    /// Removes what failed submits left, once that can be written.
    pub(super) async fn remove_abandoned(&self) {
        for id in self.abandoned.take() {
            // fault: the next start removes it.
            if let Err(error) = self.ledger.delete_job(&id).await {
                tracing::debug!(job = %id, %error, "a failed submit is removed later");
                self.abandoned.push(id);
            }
        }
    }
}
