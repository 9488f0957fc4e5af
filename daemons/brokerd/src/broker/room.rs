//! A disk with little room, or none: what was promised comes before what is new. Below the reserve nothing is taken
//! in; below half of it, or while the ledger records nothing, nothing is begun; what runs ends and is recorded for as
//! long as anything can be. Each of them goes on by itself.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use codering_core::{Code, Error, JobId, ProjectName};

use super::Broker;

/// Between two looks for room.
const AGAIN: Duration = Duration::from_secs(1);
/// Jobs that are remembered until they can be removed; the next start removes more.
const MAX_ABANDONED: usize = 10_000;

/// What is left of failed submits and of jobs that were let go, and could not be removed yet.
#[derive(Debug, Default)]
pub(super) struct Abandoned(Mutex<HashMap<JobId, ProjectName>>);

impl Abandoned {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, ProjectName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, id: JobId, project: ProjectName) {
        let mut jobs = self.lock();
        if jobs.len() < MAX_ABANDONED {
            jobs.insert(id, project);
        }
    }

    fn take(&self) -> HashMap<JobId, ProjectName> {
        std::mem::take(&mut *self.lock())
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

    /// Removes a job, committed or not: first out of sight and out of memory, so that no verb finds it, then the rest, in steps
    /// that hold nobody up. `Ok(false)`: it was asked for only where no verb has it in memory, and one has.
    pub(super) async fn remove_job(
        &self,
        id: &JobId,
        project: &ProjectName,
        in_memory: bool,
    ) -> Result<bool, Error> {
        let mut more = {
            let _letting_go = self.letting_go.write().await;
            if !in_memory && self.jobs.get(id).is_some() {
                return Ok(false);
            }
            self.jobs.remove(id);
            self.remove_some(id, project).await?
        };
        while more {
            more = match self.remove_some(id, project).await {
                Ok(more) => more,
                Err(error) => {
                    // Nothing else sees it any more.
                    self.abandoned.push(id.clone(), project.clone());
                    return Err(error);
                }
            };
        }
        Ok(true)
    }

    async fn remove_some(&self, id: &JobId, project: &ProjectName) -> Result<bool, Error> {
        // fault: its callers name the whole; after a part of it the next start removes the rest.
        let step = self.ledger.delete_some(id).await?;
        self.projects.forgot(project, step.result_bytes);
        Ok(step.more)
    }

    /// Removes what nobody is to see any more; later, where that cannot be written now.
    pub(super) async fn remove_or_remember(&self, id: JobId, project: ProjectName) {
        if let Err(error) = self.remove_job(&id, &project, true).await {
            tracing::debug!(job = %id, %error, "what is left of a job is removed later");
            self.abandoned.push(id, project);
        }
    }

    /// Removes what could not be removed before.
    pub(super) async fn remove_abandoned(&self) {
        for (id, project) in self.abandoned.take() {
            self.remove_or_remember(id, project).await;
        }
    }
}
