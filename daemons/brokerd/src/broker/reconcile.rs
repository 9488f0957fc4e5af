//! Repair: whatever a crash, a wiped queue or a missed bell left between two steps is found here, at
//! start and on a timer, from the ledger alone.

use std::time::Duration;

use codering_core::{Error, ProjectName};
use codering_kit::fault::{self, Point};

use super::{Broker, leases::Held, live, lost::LossWatch, now, projects::ProjectView};

/// Retention is looked after this often.
const RETENTION_EVERY: Duration = Duration::from_secs(60);

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
        for job in self.ledger.unfinished_jobs().await? {
            self.load_job(job).await?;
        }
        // The workers may still run them: each gets a full lease to come back and say so.
        for task in self.ledger.leased().await? {
            let Some(lease) = task.progress.lease() else { continue };
            let token = lease.token.clone();
            self.scheduler().count_running(&task.project);
            self.leases.insert(token, Held::new(task, self.settings().lease));
        }
        tracing::info!(jobs = self.jobs.all().len(), leases = self.leases.len(), "loaded from the ledger");
        self.listen();
        Ok(())
    }

    /// On a timer, and at once when started.
    pub(super) async fn reconcile_loop(self) {
        let mut watch = LossWatch::default();
        let mut retention: Option<tokio::time::Instant> = None;
        loop {
            self.remove_abandoned().await;
            if let Err(error) = self.reconcile(&mut watch).await {
                tracing::warn!(%error, "repair goes on later");
            }
            if retention.is_none_or(|at| at.elapsed() >= RETENTION_EVERY) {
                retention = Some(tokio::time::Instant::now());
                if let Err(error) = self.expire_jobs().await {
                    tracing::warn!(%error, "old jobs are let go later");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.settings().reconcile_every) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn reconcile(&self, watch: &mut LossWatch) -> Result<(), Error> {
        for job in self.ledger.unfinished_jobs().await? {
            if self.jobs.get(&job.id).is_some() {
                continue;
            }
            // A commit whose answer was lost; or one that ended, and was forgotten, since its row was read.
            if let Some(job) = self.ledger.job(&job.id).await?.filter(|job| job.finished_at == 0) {
                self.load_job(job).await?;
            }
        }
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

    /// A reduce step that the row counts and no task stands for: a crash came between the two writes.
    async fn remake_reduce(&self, job: &live::LiveJob) -> Result<(), Error> {
        let _writing = job.writing.lock().await;
        let row = job.job();
        if row.reduced_run == 0 || job.flags().reduced.is_some() {
            return Ok(());
        }
        let mut again = row.clone();
        again.reduced_run = 0;
        self.ledger.update_job(again).await?;
        fault::reached(Point::ReduceUncounted);
        job.update(|j| j.reduced_run = 0);
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

    /// What a project holds, derived anew.
    pub(super) async fn recount_project(&self, name: &ProjectName) -> Result<(), Error> {
        let usage = self.ledger.usage(name).await?;
        if let Some(mut view) = self.projects.get(name) {
            view.usage = usage;
            self.projects.put(view);
        }
        Ok(())
    }
}
