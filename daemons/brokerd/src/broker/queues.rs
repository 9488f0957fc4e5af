//! Queues as users see them: put, take, look.

use bytes::Bytes;
use codering_core::{Code, Error, ProjectName, QueueName, quota::Quota};
use codering_kit::fault::{self, Point};

use super::Broker;
use crate::queue::{DeadLetter, Depth, Message, QueueError};

/// A queue with how full it is.
#[derive(Debug, Clone)]
pub struct QueueView {
    /// Its name.
    pub name: QueueName,
    /// How full; zero where the backend is away.
    pub depth: Depth,
}

impl Broker {
    /// The recorded queues; `only` limits them to projects.
    pub async fn queues(&self, only: Option<&[ProjectName]>) -> Result<Vec<QueueView>, Error> {
        let names = self.ledger.queues().await?;
        let seen = |name: &QueueName| only.is_none_or(|only| only.contains(&name.project()));
        let mut views = Vec::new();
        for name in names.into_iter().filter(seen) {
            let depth = self.queues.depth(&name).await.unwrap_or_default();
            views.push(QueueView { name, depth });
        }
        Ok(views)
    }

    /// Makes a queue. `P.todo` of a project that is not there makes the project: a client of a few lines
    /// needs no other call. `false`: it was there.
    pub async fn create_queue(&self, name: &QueueName) -> Result<bool, Error> {
        let project = name.project();
        if self.projects.get(&project).is_none() {
            let own = name.is_reserved() || !name.as_str().contains('.');
            if !own {
                return Err(Error::new(Code::ProjectNotFound, format!("there is no project {project}"))
                    .hint(format!("coderingctl project create {project}")));
            }
            match self.create_project(project, Quota::default()).await {
                Ok(_) if name.is_reserved() => return Ok(true),
                Ok(_) => {}
                // Another call made it at the same moment.
                Err(error) if error.code == Code::ProjectExists => {}
                Err(error) => return Err(error),
            }
        }
        let recorded = self.ledger.put_queue(name).await?;
        fault::reached(Point::QueueRecorded);
        let made = self.queues.create(name).await?;
        fault::reached(Point::QueueMade);
        Ok(recorded || made)
    }

    /// Puts one message; returns once the queue has confirmed it.
    pub async fn put(&self, queue: &QueueName, body: Bytes, priority: i32) -> Result<(), Error> {
        self.queues.put(queue, Message { body, priority }).await.map_err(|e| with_cure(e, queue))?;
        fault::reached(Point::MessagePut);
        if *queue == QueueName::todo(&queue.project()) {
            self.scheduler().ring(&queue.project());
            self.dispatch.notify_one();
        }
        Ok(())
    }

    /// Takes one message, where there is one. It counts as taken before it is answered.
    pub async fn get(&self, queue: &QueueName) -> Result<Option<Bytes>, Error> {
        let Some(delivery) = self.queues.take(queue, 1).await.map_err(|e| with_cure(e, queue))?.pop() else {
            return Ok(None);
        };
        let body = delivery.body.clone();
        delivery.settle.ack().await?;
        fault::reached(Point::MessageGiven);
        Ok(Some(body))
    }

    /// Removes what waits in a queue. What waits on `P.todo` stays in the ledger and is published again.
    pub async fn purge(&self, queue: &QueueName) -> Result<u64, Error> {
        let purged = self.queues.purge(queue).await.map_err(|e| with_cure(e, queue))?;
        fault::reached(Point::QueuePurged);
        Ok(purged)
    }

    /// Removes a queue.
    pub async fn delete_queue(&self, queue: &QueueName) -> Result<(), Error> {
        if queue.is_reserved() {
            return Err(Error::new(
                Code::QueueReserved,
                format!("{queue} belongs to project {}", queue.project()),
            )
            .hint(format!("coderingctl project delete {}", queue.project())));
        }
        self.queues.depth(queue).await.map_err(|e| with_cure(e, queue))?;
        self.queues.delete(queue).await?;
        fault::reached(Point::QueueRemoved);
        self.ledger.delete_queue(queue).await?;
        fault::reached(Point::QueueForgotten);
        Ok(())
    }

    /// A project's dead letters, and how many there are in all.
    pub async fn dead(&self, project: &ProjectName, limit: usize) -> Result<(Vec<DeadLetter>, u64), Error> {
        let queue = QueueName::dead(project);
        let total = self.queues.depth(&queue).await.map_err(|e| with_cure(e, &queue))?.ready;
        Ok((self.queues.dead(&queue, limit).await?, total))
    }

    /// Puts dead letters back on the queues that they were on.
    pub async fn requeue_dead(&self, project: &ProjectName, ids: Option<Vec<String>>) -> Result<u64, Error> {
        let requeued = self.queues.requeue_dead(&QueueName::dead(project), ids).await?;
        fault::reached(Point::DeadRequeued);
        self.scheduler().ring(project);
        self.dispatch.notify_one();
        Ok(requeued)
    }
}

pub(super) fn with_cure(error: QueueError, queue: &QueueName) -> Error {
    let missing = matches!(error, QueueError::NotFound(_));
    let error = Error::from(error);
    if missing { error.hint(format!("coderingctl queue create {queue}")) } else { error }
}
