//! Raw messages become tasks of their project's open job.

use std::sync::Arc;

use codering_core::{
    Code, Error, JobSpec, LimitsPatch, ProjectName, Source, TaskKey,
    message::TodoMessage,
    task::{Progress, State},
};
use codering_kit::fault::{self, Point};

use super::{Broker, live::LiveJob, new_job_id, now};
use crate::ledger::{Begun, Job, Task};

/// An open job takes no more raw messages than this; the next one opens another.
const MAX_OPEN_TASKS: u64 = 100_000;

impl Broker {
    /// The task of a raw message, recorded in the project's open job. `None`: it was recorded before, and this is
    /// the same message again.
    pub(super) async fn adopt(
        &self,
        project: &ProjectName,
        message: &TodoMessage,
        redelivered: bool,
    ) -> Result<Option<Task>, Error> {
        let _adopting = self.adopting.lock().await;
        let spec = message.task_spec()?;
        let room = self.projects.admit(project, 1);
        let full = room.as_ref().err();
        if let (Some(full), false) = (full, redelivered) {
            return Err(full.clone());
        }
        for _ in 0..2 {
            let job = self.open_job(project, message).await?;
            let (id, seq) = job.with(|j| (j.id.clone(), j.counts.total));
            let task = Task {
                key: TaskKey { job: id, task: spec.id.clone() },
                project: project.clone(),
                seq,
                reduce: false,
                spec: spec.clone(),
                commit: String::new(),
                progress: Progress::adopted(now()),
            };
            if let Some(full) = full
                && self.ledger.task(&task.key).await?.is_none()
            {
                // It was not recorded when it came before either.
                return Err(full.clone());
            }
            if self.ledger.insert_task(task.clone()).await? {
                fault::reached(Point::RawTaskAdopted);
                self.projects.queued(project, 1);
                job.added(&task.progress.state);
                return Ok(Some(task));
            }
            let known = self.ledger_task(&task.key).await?;
            if redelivered || !matches!(known.progress.state, State::Done(_)) {
                // The same message again, or one like it whose answer is still to come.
                return Ok(matches!(known.progress.state, State::Ready { .. }).then_some(known));
            }
            // The id was used before and answered: this is a new wish, for a job of its own.
            self.close_open_job(&job).await?;
        }
        Err(Error::new(Code::Internal, "an open job closed while a message was adopted"))
    }

    async fn open_job(&self, project: &ProjectName, message: &TodoMessage) -> Result<Arc<LiveJob>, Error> {
        let adopts = |j: &Job| {
            j.open
                && j.finished_at == 0
                && !j.cancelled
                && j.spec.project == *project
                && j.counts.total < MAX_OPEN_TASKS
        };
        if let Some(job) = self.jobs.all().into_iter().find(|job| job.with(adopts)) {
            return Ok(job);
        }
        let source = Source {
            git_url: message.git_url.clone(),
            git_ref: message.git_ref.clone(),
            dockerfile: message.dockerfile.clone(),
        };
        let spec = JobSpec {
            project: project.clone(),
            name: "raw messages".into(),
            source,
            command: None,
            env: Default::default(),
            limits: LimitsPatch::default(),
            reduce: None,
            priority: 0,
            labels: Default::default(),
        };
        let job = Job { open: true, ..Job::new(new_job_id(), spec, "queue", now()) };
        match self.ledger.begin_job(job.clone(), None).await? {
            Begun::New => fault::reached(Point::OpenJobBegun),
            _ => {
                return Err(Error::new(Code::BrokerBusy, "two jobs were made in the same moment; try again"));
            }
        }
        self.ledger.commit_job(&job.id).await?;
        fault::reached(Point::OpenJobMade);
        Ok(self.jobs.insert(job.id.clone(), LiveJob::new(job, None)))
    }

    /// Closes an open job to which nothing came for a while: not while a message is on its way into it.
    pub(super) async fn close_idle_job(&self, job: &LiveJob) -> Result<(), Error> {
        let idle = || {
            job.idle() > self.settings().open_job_idle
                && job.with(|j| j.open && j.counts.done() >= j.counts.total)
        };
        if !idle() {
            return Ok(());
        }
        let _adopting = self.adopting.lock().await;
        if idle() { self.close_open_job(job).await } else { Ok(()) }
    }

    /// An open job takes no more messages; once its tasks are done it is finished. Call it with `adopting` held.
    async fn close_open_job(&self, job: &LiveJob) -> Result<(), Error> {
        self.rewrite(job, |j| j.open = false).await?;
        fault::reached(Point::OpenJobClosed);
        self.settle_job(job).await;
        Ok(())
    }
}
