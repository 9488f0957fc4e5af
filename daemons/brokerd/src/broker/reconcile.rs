//! Repair: whatever a crash, a wiped queue or a missed bell left between two steps is found here, at
//! start and on a timer, from the ledger alone.

use codering_core::{Error, ProjectName};
use codering_kit::fault::{self, Point};

use super::{Broker, leases::Held, lost::LossWatch, now, projects::ProjectView};

impl Broker {
    /// At start: memory is made from the ledger.
    pub(super) async fn load(&self) -> Result<(), Error> {
        let dropped = self.ledger.delete_uncommitted().await?;
        fault::reached(Point::UncommittedRemoved);
        if dropped > 0 {
            tracing::info!(jobs = dropped, "submits that were never answered were removed");
        }
        for project in self.ledger.projects().await? {
            let name = project.name.clone();
            self.scheduler().set_quota(&name, project.quota.running_slots);
            let usage = self.ledger.usage(&name).await?;
            self.projects.put(ProjectView { project, usage });
            self.record_queues(&name).await?;
        }
        self.load_unfinished().await?;
        // The workers may still run them: each gets a full lease to come back and say so.
        for task in self.ledger.leased().await? {
            let Some(lease) = task.progress.lease() else { continue };
            let token = lease.token.clone();
            self.scheduler().count_running(&task.project);
            self.leases.insert(token, Held::new(task, self.settings().lease));
        }
        tracing::info!(jobs = self.jobs.len(), leases = self.leases.len(), "loaded from the ledger");
        self.listen();
        Ok(())
    }

    /// What has not ended and is not in memory.
    async fn load_unfinished(&self) -> Result<(), Error> {
        for id in self.ledger.unfinished_jobs().await? {
            if self.jobs.get(&id).is_some() {
                continue;
            }
            let _kept = self.letting_go.read().await;
            // It may have ended, and been forgotten, since it was listed.
            if let Some(job) = self.ledger.job(&id).await?.filter(|job| job.finished_at == 0) {
                self.load_job(job).await?;
            }
        }
        Ok(())
    }

    /// On a timer, and at once when started.
    pub(super) async fn reconcile_loop(self) {
        let mut watch = LossWatch::default();
        loop {
            self.remove_abandoned().await;
            if let Err(error) = self.reconcile(&mut watch).await {
                tracing::warn!(%error, "repair goes on later");
            }
            tokio::select! {
                () = tokio::time::sleep(self.settings().reconcile_every) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn reconcile(&self, watch: &mut LossWatch) -> Result<(), Error> {
        // A commit's answer may have been lost.
        self.load_unfinished().await?;
        for (project, due) in self.ledger.projects_with_unpublished().await? {
            self.outbox.ring_at(&project, due);
        }
        self.outbox.ring_results();
        for job in self.jobs.all() {
            let (id, cancelled, unfinished) =
                job.with(|j| (j.id.clone(), j.cancelled, j.counts.done() < j.counts.total));
            self.close_idle_job(&job).await?;
            if cancelled && unfinished {
                self.cancel_rest(&id).await;
            }
            self.remake_reduce(&job).await?;
            self.settle_job(&job).await;
        }
        if self.queues.connected().is_ok() {
            self.refill().await?;
            self.ensure_recorded_queues().await?;
            for project in self.projects.names() {
                self.find_lost_messages(&project, watch).await?;
            }
        }
        self.scheduler().ring_all();
        self.dispatch.notify_one();
        Ok(())
    }

    /// Queues that the ledger knows and the backend lost.
    async fn ensure_recorded_queues(&self) -> Result<(), Error> {
        for queue in self.ledger.queues().await? {
            if let Err(crate::queue::QueueError::NotFound(_)) = self.queues.depth(&queue).await {
                tracing::warn!(queue = %queue, "the backend lost a queue: it is made again");
                self.queues.create(&queue).await?;
                fault::reached(Point::QueueRemade);
            }
        }
        Ok(())
    }

    /// All that waits on a project's todo queue, as far as the ledger knows, is to be published anew.
    pub(super) async fn unpublish_tasks(&self, project: &ProjectName) -> Result<(), Error> {
        let mut after = None;
        loop {
            let page = self.ledger.published(project, after, 1000).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            self.unpublish(page).await?;
        }
        self.outbox.ring_at(project, now());
        Ok(())
    }
}
