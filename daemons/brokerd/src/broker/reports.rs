//! What a worker asks and tells of one attempt: its result, the commit to check out, a reduce step's input.

use bytes::Bytes;
use codering_core::{
    Code, Error, LeaseToken, Outcome, TaskResult, WorkerName, message::DoneMessage, task::Event,
};
use codering_kit::fault::{self, Point};
use codering_proto::v1;
use futures::{Stream, stream};

use super::{
    Broker,
    change::{Changed, Ended},
    leases::Held,
    now,
};
use crate::ledger::{self, TaskChange};

impl Broker {
    /// Records an attempt's result if its token is the live one. `false`: fenced.
    pub async fn report(&self, worker: &WorkerName, report: v1::AttemptReport) -> Result<bool, Error> {
        let token = codering_proto::convert::id::<LeaseToken>(&report.token, "token")?;
        let Some(held) = self.leases.get(&token, worker) else {
            self.metrics.fenced.inc();
            tracing::info!(worker = %worker, "a result was fenced: its lease had ended");
            return Ok(false);
        };
        let mut result = read_result(&held, report.result);
        // Whose it is follows from the token, not from what the worker says.
        result.project = held.task.project.clone();
        result.job = held.task.key.job.clone();
        result.task = held.task.key.task.clone();
        result.attempt = held.task.progress.attempt;
        result.worker = worker.to_string();
        self.check_size(&held, &mut result);
        let outcome = result.outcome;
        let key = held.task.key.clone();
        let ended = Ended { result: Some(result), ..Ended::default() };
        fault::reached(Point::ReportReceived);
        let changed = self
            .change(&key, Some(held.task.clone()), Event::Complete { token: token.clone(), outcome }, ended)
            .await?;
        let recorded = matches!(changed, Changed::Yes(_));
        if recorded {
            tracing::info!(
                job = %key.job, task = %key.task, attempt = held.task.progress.attempt, worker = %worker,
                outcome = outcome.as_str(), "recorded"
            );
            self.metrics.results(outcome).inc();
        } else {
            self.metrics.fenced.inc();
        }
        if self.leases.remove(&token).is_some() {
            self.let_go(&token, &held);
        }
        self.fleet.forget_cancelled(worker, &token);
        Ok(recorded)
    }

    /// A worker keeps the bound itself; one that does not is cut here.
    fn check_size(&self, held: &super::leases::Held, result: &mut TaskResult) {
        let most = match held.task.reduce {
            true => codering_core::limits::REDUCE_OUTPUT_BYTES,
            false => codering_core::limits::MAX_OUTPUT_BYTES,
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        for (stream, truncated) in [
            (&mut result.stdout, &mut result.stdout_truncated),
            (&mut result.stderr, &mut result.stderr_truncated),
        ] {
            if stream.len() > most {
                stream.truncate(most);
                *truncated = true;
            }
        }
        result.message.truncate(result.message.floor_char_boundary(4000));
    }

    /// Pins a commit: for its whole job, or for a raw message's task alone. Answers with the one in force.
    pub async fn pin_commit(
        &self,
        worker: &WorkerName,
        token: &LeaseToken,
        commit: &str,
    ) -> Result<String, Error> {
        let fenced = || Error::new(Code::LeaseFenced, "the lease has ended");
        let held = self.leases.get(token, worker).ok_or_else(fenced)?;
        if commit.len() != 40 || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::new(Code::InvalidInput, "a commit is 40 hexadecimal digits").at("commit"));
        }
        if held.task.spec.source.is_some() {
            return self.pin_task(&held.task, commit).await;
        }
        let job = self.jobs.get(&held.task.key.job).ok_or_else(fenced)?;
        let _writing = job.writing.lock().await;
        let pinned = job.with(|j| j.commit.clone());
        if !pinned.is_empty() {
            return Ok(pinned);
        }
        let mut row = job.job();
        row.commit = commit.to_owned();
        self.ledger.update_job(row).await?;
        fault::reached(Point::CommitPinned);
        job.update(|j| j.commit = commit.to_owned());
        Ok(commit.to_owned())
    }

    async fn pin_task(&self, leased: &ledger::Task, commit: &str) -> Result<String, Error> {
        for _ in 0..5 {
            let Some(task) = self.ledger.task(&leased.key).await? else { break };
            if !task.commit.is_empty() {
                return Ok(task.commit);
            }
            let mut progress = task.progress.clone();
            progress.version += 1;
            let change = TaskChange {
                key: task.key.clone(),
                expected_version: task.progress.version,
                progress,
                commit: Some(commit.to_owned()),
                record: Default::default(),
            };
            if self.store(change).await? {
                fault::reached(Point::TaskCommitPinned);
                return Ok(commit.to_owned());
            }
        }
        Err(Error::new(Code::LeaseFenced, "the task changed while its commit was pinned"))
    }

    /// The standard input of a reduce attempt: the results as JSONL, read from the ledger page by page.
    pub fn reduce_input(
        &self,
        worker: &WorkerName,
        token: &LeaseToken,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let held = self.leases.get(token, worker).filter(|held| held.task.reduce);
        let job = held.ok_or_else(|| Error::new(Code::LeaseFenced, "the lease has ended"))?.task.key.job;
        Ok(stream::unfold((self.clone(), job, None, false), async |(broker, job, after, over)| {
            if over {
                return None;
            }
            let page = match broker.results_page(&job, &[], after, 200).await {
                Ok(page) => page,
                Err(error) => return Some((Err(error), (broker, job, after, true))),
            };
            let last = page.last().map(|(seq, _)| *seq)?;
            let mut lines = Vec::new();
            for (_, result) in &page {
                if let Err(error) = serde_json::to_writer(&mut lines, &DoneMessage::from(result)) {
                    return Some((Err(super::internal(error)), (broker, job, after, true)));
                }
                lines.push(b'\n');
            }
            Some((Ok(Bytes::from(lines)), (broker, job, Some(last), false)))
        }))
    }
}

/// The worker's result. One that cannot be read ends the attempt as our failure: a worker that is not answered would
/// keep its lease and repeat it for ever.
fn read_result(held: &Held, wire: Option<v1::TaskResult>) -> TaskResult {
    let read =
        wire.ok_or_else(|| Error::new(Code::InvalidInput, "it is empty")).and_then(TaskResult::try_from);
    read.unwrap_or_else(|error| {
        let key = &held.task.key;
        tracing::warn!(job = %key.job, task = %key.task, %error, "a worker's report cannot be read");
        TaskResult::without_attempt(
            held.task.project.clone(),
            key.job.clone(),
            key.task.clone(),
            held.task.progress.attempt,
            Outcome::InfrastructureError,
            now(),
            format!("the worker's report cannot be read: {error}"),
        )
    })
}
