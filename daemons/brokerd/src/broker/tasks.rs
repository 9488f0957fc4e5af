//! Verbs on one task.

use codering_core::{
    Code, Error, JobId, TaskKey, TaskResult,
    task::{Event, Refusal},
};

use super::{
    Broker, Running,
    change::{Changed, Ended},
};
use crate::ledger::{Attempt, Task, TaskFilter};

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
        let running = self.leases.of_task(key).map(|(_, held)| Running::from(held));
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
        let _room = self.projects.admit(&task.project, 1)?;
        let awake = self.wake_job(&key.job, false).await?;
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
}
