//! Messages that a queue lost: its tasks count as published and nobody would ever take them.
//!
//! Two signs. Fewer messages than tasks, twice in a row, once the queue runs empty or by more than what can be on its way. And,
//! while a queue is never empty, one that waits although the queue has handed out all that was in it when the task was
//! first seen waiting: its message was ahead of those, so it is not there. Publishing again what was not lost does no
//! harm, since the second message finds its task no longer ready.

use std::{collections::HashMap, mem};

use codering_core::{Error, ProjectName, QueueName, TaskKey, task::Event};
use futures::future::join_all;

use super::{Broker, change::Ended, now};
use crate::ledger::Task;

/// Messages that a count may miss without being lost: a publisher's window.
const ON_THE_WAY: u64 = 256;
/// Tasks of a project that are watched at a time, those that wait longest first.
const WATCHED: u32 = 256;

/// What was seen at earlier looks.
#[derive(Debug, Default)]
pub(super) struct LossWatch {
    /// Projects whose queue was short of messages at the last look, and how many there should have been.
    short: HashMap<ProjectName, u64>,
    waiting: HashMap<ProjectName, HashMap<TaskKey, Waiting>>,
}

/// A task that waits for its message to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiting {
    version: u64,
    /// Once the queue has handed out so many in all, this one is overdue.
    due: u64,
    overdue: bool,
}

impl LossWatch {
    /// Looks at the tasks that wait longest; those that were overdue at the last look already are lost. `taken` is how
    /// many messages the queue has handed out so far, `held` how many it may hold or have just handed out.
    fn look(&mut self, project: &ProjectName, tasks: Vec<Task>, taken: u64, held: u64) -> Vec<Task> {
        let seen = self.waiting.entry(project.clone()).or_default();
        let before = mem::take(seen);
        let mut lost = Vec::new();
        for task in tasks {
            let version = task.progress.version;
            let known = before.get(&task.key).filter(|waiting| waiting.version == version);
            match known.copied() {
                Some(waiting) if waiting.overdue => lost.push(task),
                Some(waiting) => {
                    let overdue = taken > waiting.due;
                    seen.insert(task.key, Waiting { overdue, ..waiting });
                }
                None => {
                    seen.insert(task.key, Waiting { version, due: taken + held, overdue: false });
                }
            }
        }
        lost
    }
}

impl Broker {
    /// Finds the project's lost messages and has them published again.
    pub(super) async fn find_lost_messages(
        &self,
        project: &ProjectName,
        watch: &mut LossWatch,
    ) -> Result<(), Error> {
        let expected = self.ledger.published_count(project).await?;
        if expected == 0 {
            watch.short.remove(project);
            watch.waiting.remove(project);
            return Ok(());
        }
        let depth = self.queues.depth(&QueueName::todo(project)).await?;
        let found = depth.ready + depth.unacked;
        let (reserved, taken) = {
            let scheduler = self.scheduler();
            (u64::from(scheduler.reserved()), scheduler.taken(project))
        };
        let tasks = self.ledger.longest_published(project, WATCHED).await?;
        let lost = watch.look(project, tasks, taken, found + reserved);
        if !lost.is_empty() {
            tracing::warn!(project = %project, tasks = lost.len(), "messages were lost: they are published again");
            self.unpublish(lost).await?;
            self.outbox.ring_at(project, now());
        }
        // What is between the queue and its lease right now is in neither count.
        if found >= expected || (found > 0 && expected - found <= reserved + ON_THE_WAY) {
            watch.short.remove(project);
            return Ok(());
        }
        // Counting is not atomic with what flows.
        if watch.short.insert(project.clone(), expected).is_none() {
            return Ok(());
        }
        watch.short.remove(project);
        tracing::warn!(
            project = %project, expected, found,
            "the queue has fewer messages than the ledger has tasks for it: they are published again"
        );
        self.unpublish_tasks(project).await
    }

    pub(super) async fn unpublish(&self, tasks: Vec<Task>) -> Result<(), Error> {
        let changes = tasks.into_iter().map(async |task| {
            let key = task.key.clone();
            self.change(&key, Some(task), Event::Unpublish, Ended::default()).await.map(drop)
        });
        join_all(changes).await.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use codering_core::{JobId, TaskId, TaskSpec, task::Progress};

    use super::*;

    fn task(id: &str, version: u64) -> Task {
        let id = TaskId::new(id).expect("valid");
        Task {
            key: TaskKey { job: JobId::at(1_763_722_560_000, 1), task: id.clone() },
            project: "p".parse().expect("valid"),
            seq: 0,
            reduce: false,
            spec: TaskSpec::new(id),
            commit: String::new(),
            progress: Progress { version, ..Progress::new(0) },
        }
    }

    #[test]
    fn a_message_that_those_behind_it_have_passed_is_lost_and_one_in_its_place_is_not() {
        let (mut watch, project) = (LossWatch::default(), "p".parse().expect("valid"));
        let mut look = |taken, held, tasks: &[Task]| {
            watch
                .look(&project, tasks.to_vec(), taken, held)
                .iter()
                .map(|t| t.key.task.to_string())
                .collect::<Vec<_>>()
        };
        let (lost, last) = (task("lost", 1), task("last", 1));
        let none: [String; 0] = [];
        assert_eq!(look(100, 50, std::slice::from_ref(&lost)), none);
        // The 50 that were there are handed out, and not one more: it may have been the last of them.
        assert_eq!(look(150, 50, &[lost.clone(), last.clone()]), none);
        assert_eq!(
            look(151, 50, &[lost.clone(), last.clone()]),
            none,
            "once is not enough: it may be in somebody's hand"
        );
        assert_eq!(look(152, 50, &[lost.clone(), last.clone()]), ["lost"]);
        // Published again it has another version, and its place is the last.
        assert_eq!(look(153, 50, &[task("lost", 3), last]), none);
    }
}
