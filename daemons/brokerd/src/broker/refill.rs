//! A queue backend that is new, or lost its data, gets from the ledger all that should be on its queues: the messages of
//! the tasks that wait, and every recorded result. Which results were taken from `<project>.done` before, nobody knows:
//! those who read it get them once more, as they may at any time, rather than some of them never.

use codering_core::{Error, Outcome, ProjectName, TaskKey};

use super::Broker;
use crate::{
    ledger::{JobFilter, Stands, TaskFilter},
    queue::QueueError,
};

const PAGE: u32 = 1000;

impl Broker {
    /// Does nothing where the backend remembers this broker, or is away.
    pub(super) async fn refill(&self) -> Result<(), Error> {
        match self.queues.is_blank().await {
            Ok(true) => {}
            Ok(false) | Err(QueueError::Unavailable(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let (mut tasks, mut results) = (0, 0);
        for project in self.projects.names() {
            let of_project = self.rebuild(&project).await?;
            tasks += of_project.0;
            results += of_project.1;
        }
        // Last: a crash before this line does all of it again.
        self.queues.remember().await?;
        if tasks + results > 0 {
            tracing::warn!(tasks, results, "the queue backend is blank: it is filled again from the ledger");
        }
        Ok(())
    }

    /// Has all published anew that the ledger says is on the project's queues; says how many tasks and results that is.
    pub async fn rebuild(&self, project: &ProjectName) -> Result<(u64, u64), Error> {
        // What was put before, and is not marked yet, may have been put on a backend that lost it.
        drop(self.outbox.marking.write().await);
        let tasks = self.ledger.published_count(project).await?;
        self.unpublish_tasks(project).await?;
        let results = self.unpublish_results(project).await?;
        self.outbox.ring_results();
        Ok((tasks, results))
    }

    async fn unpublish_results(&self, project: &ProjectName) -> Result<u64, Error> {
        let (mut after, mut count) = (None, 0);
        let of_project = || JobFilter { projects: Some(vec![project.clone()]), ..JobFilter::default() };
        loop {
            let jobs = self.ledger.jobs(of_project(), after, PAGE).await?;
            let Some(last) = jobs.last() else { return Ok(count) };
            after = Some(last.id.clone());
            for job in jobs {
                let mut seq = None;
                loop {
                    let done = TaskFilter { stands: Some(Stands::Done), outcomes: Outcome::ALL.to_vec() };
                    let tasks = self.ledger.tasks(&job.id, done, seq, PAGE).await?;
                    let Some(last) = tasks.last() else { break };
                    seq = Some(last.seq);
                    count += tasks.len() as u64;
                    // fault: the backend is blank until all of this was done: the next start does it again.
                    self.ledger.unpublish_results(tasks.into_iter().map(|task| task.key).collect()).await?;
                }
                if let Some(reduce) = self.ledger.newest_reduce(&job.id).await? {
                    let key: TaskKey = reduce.key;
                    // fault: the same.
                    self.ledger.unpublish_results(vec![key]).await?;
                }
            }
        }
    }
}
