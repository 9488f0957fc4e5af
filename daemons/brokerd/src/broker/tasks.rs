//! Verbs on one task, and the adoption of raw messages.

use codering_core::{
    Code, Error, JobId, JobSpec, LimitsPatch, ProjectName, Source, TaskKey, TaskResult,
    message::TodoMessage,
    task::{Event, Progress, Refusal, State},
};
use codering_kit::fault::{self, Point};

use super::{
    Broker, Running,
    change::{Changed, Ended},
    live::LiveJob,
    new_job_id, now,
};
use crate::ledger::{Attempt, Begun, Job, Task, TaskFilter};

/// A task with its story.
#[derive(Debug, Clone)]
pub struct TaskView {
    /// The row.
    pub task: Task,
    /// Where it runs, if it does.
    pub running: Option<Running>,
    /// Attempts that ended.
    pub attempts: Vec<Attempt>,
    /// The recorded result.
    pub result: Option<TaskResult>,
}

/// An open job takes no more raw messages than this; the next one opens another.
const MAX_OPEN_TASKS: u64 = 100_000;

impl Broker {
    pub(super) async fn ledger_task(&self, key: &TaskKey) -> Result<Task, Error> {
        let task = self.ledger.task(key).await?;
        task.ok_or_else(|| {
            Error::new(Code::TaskNotFound, format!("job {} has no task {}", key.job, key.task))
                .hint(format!("coderingctl task list {}", key.job))
        })
    }

    /// One task with its story.
    pub async fn task(&self, key: &TaskKey) -> Result<TaskView, Error> {
        let task = self.ledger_task(key).await?;
        let running = self.leases.of_task(key).map(|(_, held)| Running {
            task: held.task,
            phase: held.phase,
            container_id: held.container_id,
            image: held.image,
        });
        Ok(TaskView {
            running,
            attempts: self.ledger.attempts(key).await?,
            result: self.ledger.result(key).await?,
            task,
        })
    }

    /// A page of a job's tasks in their order.
    pub async fn tasks(
        &self,
        job: &JobId,
        filter: TaskFilter,
        after_seq: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Task>, Error> {
        Ok(self.ledger.tasks(job, filter, after_seq, limit).await?)
    }

    /// Cancels a task: at once where it waits, by way of its worker where it runs.
    pub async fn cancel_task(&self, key: &TaskKey) -> Result<Task, Error> {
        let ended = Ended { message: "cancelled by a user".into(), ..Ended::default() };
        match self.change(key, None, Event::Cancel, ended).await? {
            Changed::Yes(task) | Changed::Refused(task, Refusal::Unchanged) => Ok(*task),
            Changed::Refused(..) => {
                Err(Error::new(Code::TaskFinished, format!("task {key} is done already")))
            }
            Changed::Missing => self.ledger_task(key).await,
        }
    }

    /// Runs a done task again.
    pub async fn retry_task(&self, key: &TaskKey) -> Result<Task, Error> {
        let task = self.ledger_task(key).await?;
        if task.reduce {
            return Err(Error::new(Code::InvalidInput, "a reduce step is not retried but run again")
                .hint(format!("coderingctl reduce {}", key.job)));
        }
        self.projects.admit(&task.project, 1)?;
        let awake = self.wake_job(&key.job).await?;
        let changed = self.change(key, None, Event::Retry, Ended::default()).await;
        self.settle_job(&awake.done()).await;
        match changed? {
            Changed::Yes(task) => Ok(*task),
            Changed::Refused(..) => {
                Err(Error::new(Code::TaskUnfinished, format!("task {key} is not done yet"))
                    .hint(format!("coderingctl task cancel {key}")))
            }
            Changed::Missing => self.ledger_task(key).await,
        }
    }

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
        let full = self.projects.admit(project, 1).err();
        if let (Some(full), false) = (&full, redelivered) {
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
                progress: Progress {
                    // Its message is in hand: published, and about to be leased.
                    state: State::Ready { published: true, not_before: 0 },
                    ..Progress::new(now())
                },
            };
            if let Some(full) = &full
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

    async fn open_job(
        &self,
        project: &ProjectName,
        message: &TodoMessage,
    ) -> Result<std::sync::Arc<LiveJob>, Error> {
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
