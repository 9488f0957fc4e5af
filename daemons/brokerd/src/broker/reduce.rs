//! The reduce step: one more task over the recorded results, and the answer that it gives.

use codering_core::{
    Code, Error, JobId, Outcome, TaskId, TaskKey, TaskSpec, job::reduce_is_due, spec::Reduce, task::Progress,
};
use codering_kit::fault::{self, Point};

use super::{
    Broker,
    jobs::still,
    live::{self, LiveJob},
    now,
};
use crate::ledger::{Job, Task};

impl Broker {
    /// Runs the reduce step over the recorded results, again where it ran before.
    pub async fn reduce_job(&self, id: &JobId, reduce: Option<Reduce>) -> Result<Job, Error> {
        if let Some(reduce) = &reduce {
            reduce.validate()?;
            self.check_limits(&reduce.limits, "reduce.limits")?;
        }
        let job = self.known_job(id).await?;
        if job.reduce.is_none() && reduce.is_none() {
            return Err(Error::new(Code::JobNoReduce, format!("job {id} has no reduce step"))
                .hint(format!("coderingctl reduce {id} -- COMMAND")));
        }
        if !live::is_over(&job) {
            return Err(still(id, "still runs"));
        }
        let awake = self.wake_job(id, true).await?;
        if let Some(reduce) = reduce {
            self.rewrite(&awake, |job| job.reduce = Some(reduce.clone())).await?;
            fault::reached(Point::ReduceChosen);
        }
        self.make_reduce(&awake, true).await?;
        Ok(awake.job())
    }

    /// Adds the next reduce step, where it is due or a user asked. The row counts it first: a crash in between leaves a
    /// step that is due.
    pub(super) async fn make_reduce(&self, live: &LiveJob, asked: bool) -> Result<(), Error> {
        let _writing = live.writing.lock().await;
        let mut row = live.job();
        // Who asks is one of those that keep it awake.
        let unfinished = row.counts.done() < row.counts.total || live.awake_verbs() > 1;
        if asked && (unfinished || live.is_being_reduced()) {
            return Err(still(&row.id, "still runs"));
        }
        if !asked && (live.is_awake() || !reduce_is_due(&row.counts, live.flags())) {
            return Ok(());
        }
        row.reduce_runs += 1;
        row.reduced_run = row.reduce_runs;
        let task = Task {
            key: TaskKey { job: row.id.clone(), task: TaskId::reduce(row.reduce_runs) },
            project: row.spec.project.clone(),
            // After every task, and unlike theirs.
            seq: u64::from(u32::MAX) * 4 + u64::from(row.reduce_runs),
            reduce: true,
            spec: TaskSpec::new(TaskId::reduce(row.reduce_runs)),
            commit: String::new(),
            progress: Progress::new(now()),
        };
        self.ledger.update_job(row.clone()).await?;
        fault::reached(Point::ReduceCounted);
        // In memory before it is visible, so that its end finds it there.
        live.update(|job| (job.reduce_runs, job.reduced_run) = (row.reduce_runs, row.reduced_run));
        live.set_reduced(Some(None));
        if let Err(error) = self.ledger.insert_task(task.clone()).await {
            live.set_reduced(None);
            return Err(error.into());
        }
        fault::reached(Point::ReduceMade);
        self.projects.queued(&task.project, 1);
        self.outbox.ring(&task.project);
        Ok(())
    }

    /// A reduce step that the row counts and no task stands for: a crash came between the two writes.
    pub(super) async fn remake_reduce(&self, job: &LiveJob) -> Result<(), Error> {
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

    /// The answer's name and bytes.
    pub async fn answer(&self, id: &JobId) -> Result<(String, Vec<u8>), Error> {
        let job = self.known_job(id).await?;
        let none = |why: &str| Error::new(Code::JobNoAnswer, format!("job {id} has no answer: {why}"));
        let Some(reduce) = &job.reduce else { return Err(none("it has no reduce step")) };
        if job.reduced_run == 0 {
            return Err(none("its reduce step has not run")
                .hint(format!("coderingctl job show {id}, or coderingctl reduce {id}")));
        }
        let key = TaskKey { job: id.clone(), task: TaskId::reduce(job.reduced_run) };
        match self.ledger.result(&key).await? {
            None => Err(none("its reduce step still runs").hint(format!("coderingctl watch {id}"))),
            Some(result) if result.outcome == Outcome::Succeeded => {
                Ok((reduce.output.clone(), result.stdout))
            }
            Some(result) => Err(none(&format!("its reduce step ended as {}", result.outcome))
                .hint(format!("coderingctl task logs {key} --stream stderr"))),
        }
    }
}
