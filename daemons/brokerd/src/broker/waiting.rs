//! Jobs whose labels no free worker has. Their tasks stay in the ledger: on the queue they would be taken and handed
//! back for ever, in the way of those that can run.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use codering_core::{JobId, ProjectName};

use super::{Broker, live::LiveJob, scheduler::Match};
use crate::ledger::Job;

/// A job's labels.
type Wanted = BTreeMap<String, String>;

/// The jobs that were passed over when their project's tasks were last published.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<HashMap<JobId, (ProjectName, Wanted)>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, (ProjectName, Wanted)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The labels that its waiting tasks want; a reduce step runs anywhere.
fn wanted(job: &Job) -> Option<&Wanted> {
    (!job.spec.labels.is_empty() && job.counts.queued > 0).then_some(&job.spec.labels)
}

impl Broker {
    /// The jobs of a project to pass over now. They are looked at again when a slot is freed or a worker comes.
    pub(super) fn pass_over(&self, project: &ProjectName) -> HashSet<JobId> {
        let labelled = |job: &std::sync::Arc<LiveJob>| {
            job.with(|job| {
                let of_it = job.spec.project == *project;
                of_it.then(|| wanted(job).map(|labels| (job.id.clone(), labels.clone()))).flatten()
            })
        };
        let labelled: Vec<_> = self.jobs.all().iter().filter_map(labelled).collect();
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, (of, _)| of != project);
        let scheduler = self.scheduler();
        for (id, labels) in labelled {
            if !matches!(scheduler.matching(&labels), Match::Free(_)) {
                waiting.insert(id, (project.clone(), labels));
            }
        }
        waiting.iter().filter(|(_, (of, _))| of == project).map(|(id, _)| id.clone()).collect()
    }

    /// How many tasks of a job may be published in one go: no more than can be taken, where labels choose.
    pub(super) fn publishable(&self, labels: &Wanted) -> usize {
        match self.scheduler().matching(labels) {
            _ if labels.is_empty() => usize::MAX,
            Match::Free(slots) => slots as usize,
            Match::Busy | Match::Nobody => 0,
        }
    }

    /// Publishes those that wait for labels which a free worker has by now.
    pub(super) fn wake_waiting(&self) {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return;
        }
        let scheduler = self.scheduler();
        waiting.retain(|_, (project, labels)| {
            let wait = !matches!(scheduler.matching(labels), Match::Free(_));
            if !wait {
                self.outbox.ring(project);
            }
            wait
        });
    }

    /// The row for a person: a job that waits for its labels says so.
    pub(super) fn told(&self, live: &LiveJob) -> Job {
        let mut job = live.job();
        if job.message.is_empty()
            && !job.paused
            && !job.cancelled
            && let Some(labels) = wanted(&job)
        {
            let shown: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let shown = shown.join(", ");
            match self.scheduler().matching(labels) {
                Match::Nobody => {
                    job.message = format!("waits for a worker with the labels {shown}: none is connected");
                }
                Match::Busy if job.counts.running == 0 => {
                    job.message = format!("waits for a free slot on a worker with the labels {shown}");
                }
                _ => {}
            }
        }
        job
    }
}
