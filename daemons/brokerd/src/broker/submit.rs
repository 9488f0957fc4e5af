//! A submit: all of it is checked, all of it is recorded, and only then is it answered.

use std::collections::HashSet;

use codering_core::{Code, Error, JobSpec, LimitsPatch, TaskKey, TaskSpec, job::TaskCounts, task::Progress};
use codering_kit::fault::{self, Point};

use super::{Broker, live::LiveJob, new_job_id, now};
use crate::ledger::{Begun, Job, Task};

/// What a caller hands over first.
#[derive(Debug)]
pub struct NewJob {
    /// Checked by [`JobSpec::validate`] here once more.
    pub spec: JobSpec,
    /// The same key in the same project returns the first job.
    pub idempotency_key: Option<String>,
    /// The token's name.
    pub submitted_by: String,
}

/// Tasks recorded in one write.
const CHUNK: usize = 1000;

/// A submit under way. Dropped unfinished, nothing of it stays.
pub struct Submission {
    broker: Broker,
    job: Job,
    existing: Option<Job>,
    /// Recorded in the ledger, and to be removed if this is dropped.
    begun: bool,
    pending: Vec<Task>,
    total: u64,
}

impl Broker {
    /// Begins a submit.
    pub async fn submit(&self, new: NewJob) -> Result<Submission, Error> {
        new.spec.validate()?;
        self.check_limits(&new.spec.limits, "limits")?;
        self.projects.admit(&new.spec.project, 1)?;
        if new.idempotency_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > 200) {
            return Err(
                Error::new(Code::InvalidInput, "an idempotency key has 1 to 200 bytes").at("idempotency_key")
            );
        }
        let mut job = Job::new(new_job_id(), new.spec, new.submitted_by, now());
        job.commit = job.spec.source.pinned().unwrap_or_default().to_owned();
        let mut submission = Submission {
            broker: self.clone(),
            job,
            existing: None,
            begun: false,
            pending: Vec::new(),
            total: 0,
        };
        if new.idempotency_key.is_none() {
            self.check_room()?;
        }
        submission.begin(new.idempotency_key).await?;
        Ok(submission)
    }

    /// Refuses what is over the configured maxima.
    pub(super) fn check_limits(&self, limits: &LimitsPatch, place: &str) -> Result<(), Error> {
        let settings = self.settings();
        let most = &settings.max_limits;
        let over = |name: &str, asked: String, most: String| {
            Err(Error::new(
                Code::JobInvalid,
                format!("asks for {asked}, and this broker allows at most {most}"),
            )
            .at(format!("{place}.{name}")))
        };
        use codering_core::units::{show_duration, show_size};
        match limits {
            l if l.timeout_ms > Some(most.timeout_ms) => {
                over("timeout", show_duration(l.timeout_ms.unwrap_or(0)), show_duration(most.timeout_ms))
            }
            l if l.memory_bytes > Some(most.memory_bytes) => {
                over("memory", show_size(l.memory_bytes.unwrap_or(0)), show_size(most.memory_bytes))
            }
            l if l.cpus > Some(most.cpus) => {
                over("cpus", l.cpus.unwrap_or(0.0).to_string(), most.cpus.to_string())
            }
            l if l.max_pids > Some(most.max_pids) => {
                over("pids", l.max_pids.unwrap_or(0).to_string(), most.max_pids.to_string())
            }
            l if l.output_bytes > Some(most.output_bytes) => {
                over("output", show_size(l.output_bytes.unwrap_or(0)), show_size(most.output_bytes))
            }
            l if l.max_attempts > Some(most.max_attempts) => {
                over("attempts", l.max_attempts.unwrap_or(0).to_string(), most.max_attempts.to_string())
            }
            l if l.network == Some(true) && !most.network => {
                over("network", "a network".into(), "none".into())
            }
            _ => Ok(()),
        }
    }
}

impl Submission {
    async fn begin(&mut self, key: Option<String>) -> Result<(), Error> {
        let key = key.map(|key| format!("{}/{key}", self.job.spec.project));
        // Ids are random within a second: another one is taken once in a long while.
        for _ in 0..3 {
            match self.broker.ledger.begin_job(self.job.clone(), key.clone()).await? {
                Begun::New => {
                    fault::reached(Point::SubmitBegun);
                    self.begun = true;
                    // Not before: what was taken once is answered again, room or none.
                    return self.broker.check_room();
                }
                Begun::Existing(id) => {
                    self.existing = self.broker.ledger.job(&id).await?;
                    return Ok(());
                }
                Begun::Busy => self.job.id = new_job_id(),
            }
        }
        Err(Error::new(Code::BrokerBusy, "a job with this idempotency key is being submitted right now"))
    }

    /// The first job of this idempotency key: what is added now counts for nothing.
    pub fn existing(&self) -> Option<&Job> {
        self.existing.as_ref()
    }

    /// Adds tasks in their order. The first bad one ends the whole submit.
    pub async fn add(&mut self, tasks: Vec<TaskSpec>) -> Result<(), Error> {
        if self.existing.is_some() {
            return Ok(());
        }
        for spec in tasks {
            let place = format!("tasks[{}]", self.total);
            let at = |mut error: Error| {
                error.place =
                    if error.place.is_empty() { place.clone() } else { format!("{place}.{}", error.place) };
                error
            };
            spec.validate(&self.job.spec).map_err(at)?;
            self.broker.check_limits(&spec.limits, &format!("{place}.limits"))?;
            let most = self.broker.settings().max_tasks_per_job;
            if self.total == most {
                return Err(Error::new(Code::JobTooManyTasks, format!("a job has at most {most} tasks"))
                    .hint("split it into several jobs"));
            }
            self.pending.push(Task {
                key: TaskKey { job: self.job.id.clone(), task: spec.id.clone() },
                project: self.job.spec.project.clone(),
                seq: self.total,
                reduce: false,
                spec,
                commit: String::new(),
                progress: Progress::new(self.job.created_at),
            });
            self.total += 1;
            if self.pending.len() == CHUNK {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.broker.check_room()?;
        let tasks = std::mem::take(&mut self.pending);
        let mut seen = HashSet::new();
        let twice = tasks.iter().find(|task| !seen.insert(&task.key.task)).map(|task| task.key.task.clone());
        let twice = match twice {
            Some(id) => Some(id),
            None => {
                let twice = self.broker.ledger.add_tasks(&self.job.id, tasks).await?;
                fault::reached(Point::TasksAdded);
                twice
            }
        };
        match twice {
            Some(id) => {
                Err(Error::new(Code::JobDuplicateTask, format!("two tasks have the id {id}")).at("tasks"))
            }
            None => Ok(()),
        }
    }

    /// Commits. Only after this may the caller be told that the job was taken.
    pub async fn finish(mut self) -> Result<(Job, bool), Error> {
        if let Some(job) = self.existing.take() {
            let live = self.broker.jobs.get(&job.id).map(|live| live.job());
            return Ok((live.unwrap_or(job), true));
        }
        if self.total == 0 {
            return Err(Error::new(Code::JobEmpty, "a job has at least one task")
                .hint("name tasks, or an array, or a command"));
        }
        self.broker.projects.admit(&self.job.spec.project, self.total)?;
        self.flush().await?;
        self.job.counts = TaskCounts { total: self.total, queued: self.total, ..TaskCounts::default() };
        self.broker.ledger.update_job(self.job.clone()).await?;
        fault::reached(Point::SubmitCounted);
        // In memory before it is visible, so that no change of its tasks goes uncounted.
        let job = self.broker.jobs.insert(self.job.id.clone(), LiveJob::new(self.job.clone(), None));
        if let Err(error) = self.broker.ledger.commit_job(&self.job.id).await {
            self.broker.jobs.remove(&self.job.id);
            return Err(error.into());
        }
        fault::reached(Point::SubmitCommitted);
        if self.broker.projects.get(&self.job.spec.project).is_none() {
            // It was removed in this moment: dropped here, the job goes too.
            self.broker.jobs.remove(&self.job.id);
            return Err(self.broker.projects.admit(&self.job.spec.project, 0).err().unwrap_or_else(|| {
                Error::new(Code::BrokerBusy, "the project was removed and made again in this moment")
            }));
        }
        self.begun = false;
        self.broker.projects.queued(&self.job.spec.project, self.total);
        self.broker.metrics.submitted.inc_by(self.total);
        self.broker.outbox.ring(&self.job.spec.project);
        tracing::info!(job = %self.job.id, project = %self.job.spec.project, tasks = self.total, by = self.job.submitted_by, "submitted");
        Ok((job.job(), false))
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if self.begun {
            let (broker, id) = (self.broker.clone(), self.job.id.clone());
            self.broker.tracker.spawn(async move {
                if let Err(error) = broker.ledger.delete_job(&id).await {
                    tracing::debug!(job = %id, %error, "a failed submit is removed later");
                    broker.abandoned.push(id);
                }
                fault::reached(Point::SubmitDropped);
            });
        }
    }
}
