//! Finished jobs that are too old, or too many, are let go, with their results.

use std::time::Duration;

use codering_core::Error;
use codering_kit::fault::{self, Point};

use super::{Broker, now};

/// How often it is looked whether there are any.
const EVERY: Duration = Duration::from_secs(60);
/// Jobs asked for at once.
const PAGE: u32 = 100;

impl Broker {
    /// At start and on a timer: however many there are, apart from the repair, which is not to wait for it.
    pub(super) async fn retention_loop(self) {
        loop {
            if let Err(error) = self.expire_jobs().await {
                tracing::warn!(%error, "old jobs are let go later");
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Deletes finished jobs that retention lets go, until there are none or the broker stops.
    pub(super) async fn expire_jobs(&self) -> Result<(), Error> {
        loop {
            let settings = self.settings();
            let before = now() - i64::try_from(settings.keep_for.as_millis()).unwrap_or(i64::MAX);
            let expired = self.ledger.expired_jobs(before, settings.keep_jobs, PAGE).await?;
            let last = expired.len() < PAGE as usize;
            let mut gone = 0;
            for id in expired {
                if self.stop.is_cancelled() {
                    return Ok(());
                }
                let Some(job) = self.ledger.job(&id).await? else { continue };
                // Of one that a verb has taken up again, the end is waited for.
                if !self.remove_job(&id, &job.spec.project, false).await? {
                    continue;
                }
                fault::reached(Point::JobLetGo);
                gone += 1;
                tracing::info!(job = %id, "a finished job was let go by retention");
            }
            if last || gone == 0 {
                return Ok(());
            }
        }
    }
}
