//! A submit: all of it is checked, all of it is recorded, and only then is it answered.

use std::sync::atomic::Ordering;

use codering_core::{
    Code, Command, Error, JobSpec, LimitsPatch, TaskId, TaskKey, TaskSpec, job::TaskCounts, task::Progress,
};
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

/// Tasks recorded in one write, at most.
const CHUNK: usize = 1000;
/// What they weigh when they are recorded although they are fewer: each may have a mebibyte of standard input.
const CHUNK_BYTES: usize = 4 << 20;

/// What of a task may be large.
fn weight(spec: &TaskSpec) -> usize {
    let command = match &spec.command {
        Some(Command::Shell(line)) => line.len(),
        Some(Command::Argv(words)) => words.iter().map(String::len).sum(),
        None => 0,
    };
    let env = spec.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    spec.stdin.len() + spec.arg.as_ref().map_or(0, String::len) + command + env
}

fn duplicate(id: &TaskId) -> Error {
    Error::new(Code::JobDuplicateTask, format!("two tasks have the id {id}")).at("tasks")
}

/// The place of a job that is on its way into memory.
struct Place(Broker);

impl Place {
    fn take(broker: &Broker) -> Result<Self, Error> {
        broker.check_jobs()?;
        broker.submitting.fetch_add(1, Ordering::Relaxed);
        Ok(Self(broker.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.submitting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A submit under way. Dropped unfinished, nothing of it stays.
pub struct Submission {
    broker: Broker,
    job: Job,
    existing: Option<Job>,
    /// Recorded in the ledger, and to be removed if this is dropped.
    begun: bool,
    /// Since then, and until it is in memory itself.
    place: Option<Place>,
    pending: Vec<Task>,
    /// What they weigh.
    pending_bytes: usize,
    total: u64,
}

impl Broker {
    /// Begins a submit.
    pub async fn submit(&self, new: NewJob) -> Result<Submission, Error> {
        new.spec.validate()?;
        self.check_limits(&new.spec.limits, "limits")?;
        // How many they are is known at the end, and looked at there.
        drop(self.projects.admit(&new.spec.project, 1)?);
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
            place: None,
            pending: Vec::new(),
            pending_bytes: 0,
            total: 0,
        };
        if new.idempotency_key.is_none() {
            self.check_room()?;
            self.check_jobs()?;
        }
        submission.begin(new.idempotency_key).await?;
        Ok(submission)
    }

    /// Refuses a job that there is no room for in memory.
    pub(super) fn check_jobs(&self) -> Result<(), Error> {
        let most = self.settings().max_unfinished_jobs;
        if self.jobs.len() + self.submitting.load(Ordering::Relaxed) < most {
            return Ok(());
        }
        Err(Error::new(Code::QuotaExceeded, format!("this broker holds {most} unfinished jobs, and no more"))
            .hint("wait until some have ended; give one job many tasks; or raise limits.max_unfinished_jobs in brokerd.toml"))
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
                    self.broker.check_room()?;
                    self.place = Some(Place::take(&self.broker)?);
                    return Ok(());
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
            self.pending_bytes += weight(&spec);
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
            if self.pending.len() == CHUNK || self.pending_bytes >= CHUNK_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.broker.check_room()?;
        let tasks = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let twice = self.broker.ledger.add_tasks(&self.job.id, tasks).await?;
        fault::reached(Point::TasksAdded);
        twice.map_or(Ok(()), |id| Err(duplicate(&id)))
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
        // What they share outlives what is taken out of this.
        let (broker, project) = (self.broker.clone(), self.job.spec.project.clone());
        let _room = broker.projects.admit(&project, self.total)?;
        self.broker.check_room()?;
        self.job.counts = TaskCounts { total: self.total, queued: self.total, ..TaskCounts::default() };
        // In memory before it is visible, so that no change of its tasks goes uncounted.
        let job = self.broker.jobs.insert(self.job.id.clone(), LiveJob::new(self.job.clone(), None));
        self.place = None;
        let tasks = std::mem::take(&mut self.pending);
        let finished = match self.broker.ledger.finish_job(self.job.clone(), tasks).await {
            Ok(None) => Ok(()),
            Ok(Some(twice)) => Err(duplicate(&twice)),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = finished {
            self.broker.jobs.remove(&self.job.id);
            return Err(error);
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
            let (broker, id, project) =
                (self.broker.clone(), self.job.id.clone(), self.job.spec.project.clone());
            self.broker.tracker.spawn(async move {
                broker.remove_or_remember(id, project).await;
                fault::reached(Point::SubmitDropped);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{super::tests::rig::*, *};

    #[tokio::test]
    async fn a_submit_of_large_tasks_holds_some_megabytes_of_them_at_once_and_keeps_all() {
        let rig = Rig::new().await;
        let new = NewJob { spec: spec(), idempotency_key: None, submitted_by: "test".into() };
        let mut submission = rig.broker.submit(new).await.unwrap();
        for task in tasks(20) {
            submission.add(vec![TaskSpec { stdin: vec![b'x'; 1 << 20], ..task }]).await.unwrap();
            let held: usize = submission.pending.iter().map(|task| task.spec.stdin.len()).sum();
            assert!(held < 2 * CHUNK_BYTES, "{held} bytes are held");
        }
        let (job, _) = submission.finish().await.unwrap();
        assert_eq!(rig.ledger.counts(&job.id).await.unwrap().total, 20);
    }
}
