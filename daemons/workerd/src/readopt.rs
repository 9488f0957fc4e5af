//! After a restart: containers of the former process are taken up again, or removed.

use std::{sync::Arc, time::Duration};

use codering_core::Outcome;
use codering_kit::{
    clock::now,
    fault::{self, Point},
};
use tokio::time::Instant;

use crate::{
    attempt::{self, Ended, Fault, Trace},
    held::Held,
    leases::{self, Former},
    run::{self, Feed, Order},
    sandbox::{Exit, Left, Sandbox, Unavailable, Whose},
    worker::{Real, Worker},
};

/// A container that nobody knows is removed when it is older: another may be in the making right now.
const ORPHAN_AGE_MS: i64 = 120_000;
/// What a kill at the limit may take.
const OVERTIME_MS: u64 = 2000;
/// A lease of which nothing is known has this long to be renewed.
const GRACE: Duration = Duration::from_secs(10);

/// Looks at all that was left, once, before the stream is up.
///
/// # Errors
/// When Docker does not answer.
pub(crate) async fn run(worker: &Arc<Worker>, real: &Real) -> Result<(), Unavailable> {
    let known = leases::read(&worker.leases_file());
    for left in real.sandbox.left().await? {
        let lease = left.whose.as_ref().and_then(|whose| known.get(&whose.token)).copied();
        match judge(&left, lease, |whose| worker.spool.contains(&whose.token)) {
            Verdict::Adopt => adopt(worker, real.sandbox.clone(), left, lease),
            Verdict::Remove(why) => {
                tracing::info!(container = left.id, why, "a container of the former process is removed");
                real.sandbox.remove(&left.id).await?;
                fault::reached(Point::LeftRemoved);
            }
        }
    }
    Ok(())
}

/// Removes containers of this worker that no attempt knows.
///
/// # Errors
/// When Docker does not answer.
pub(crate) async fn sweep(worker: &Worker, sandbox: &dyn Sandbox) -> Result<(), Unavailable> {
    let oldest = now() - ORPHAN_AGE_MS;
    remove_orphans(worker, sandbox, |left| left.created_at < oldest).await
}

/// Removes those that were never started, before this process ends. A former one that was killed may have asked for them,
/// and Docker made them after this one had looked. What runs is left to the next process.
///
/// # Errors
/// When Docker does not answer.
pub(crate) async fn last_sweep(worker: &Worker, sandbox: &dyn Sandbox) -> Result<(), Unavailable> {
    remove_orphans(worker, sandbox, |left| left.began_at.is_none()).await
}

async fn remove_orphans(
    worker: &Worker,
    sandbox: &dyn Sandbox,
    which: impl Fn(&Left) -> bool,
) -> Result<(), Unavailable> {
    for left in sandbox.left().await? {
        let held = left.whose.as_ref().is_some_and(|whose| worker.attempts.get(&whose.token).is_some());
        if !held && which(&left) {
            tracing::warn!(container = left.id, "an orphan is removed");
            sandbox.remove(&left.id).await?;
            fault::reached(Point::LeftRemoved);
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Adopt,
    Remove(&'static str),
}

fn judge(left: &Left, lease: Option<Former>, spooled: impl Fn(&Whose) -> bool) -> Verdict {
    let Some(whose) = &left.whose else { return Verdict::Remove("its labels cannot be read") };
    if spooled(whose) {
        return Verdict::Remove("its result is in the spool");
    }
    if left.began_at.is_none() {
        return Verdict::Remove("it was never started");
    }
    if lease.is_some_and(|lease| lease.left.is_none()) {
        return Verdict::Remove("its lease ended while no worker was there");
    }
    if whose.record.stdin && !lease.is_some_and(|lease| lease.fed) {
        return Verdict::Remove("its standard input was not written to the end");
    }
    Verdict::Adopt
}

fn adopt(worker: &Arc<Worker>, sandbox: Arc<dyn Sandbox>, left: Left, lease: Option<Former>) {
    let Some(whose) = left.whose.clone() else { return };
    let remaining = lease.and_then(|lease| lease.left).unwrap_or(GRACE);
    let held = Held::new(
        whose.token.clone(),
        whose.project.clone(),
        whose.job.clone(),
        whose.task.clone(),
        whose.attempt,
        whose.record.output_bytes,
        Duration::from_millis(whose.record.lease_ms),
        Instant::now() + remaining,
    );
    held.enter("run");
    held.runs_in(&left.id, &whose.record.image);
    held.fed();
    worker.attempts.insert(held.clone());
    tracing::info!(job = %held.job, task = %held.task, container = left.id, "a running container is taken up again");
    let worker = worker.clone();
    let tasks = worker.tasks.clone();
    tasks.spawn(async move {
        let _slot = worker.slots.try_acquire();
        let mut trace = Trace {
            started_at: whose.record.started_at,
            ready_at: None,
            phases: whose.record.phases,
            commit: whose.record.commit.clone(),
            image: whose.record.image.clone(),
        };
        let began_at = left.began_at.unwrap_or_else(now);
        let ended = follow(&worker, sandbox.as_ref(), &left, &whose, &held, began_at).await;
        trace.phases.run = u64::try_from(now() - began_at).unwrap_or(0);
        attempt::finish(&worker, &held, &trace, ended).await;
    });
}

/// From where the former process left off.
async fn follow(
    worker: &Arc<Worker>,
    sandbox: &dyn Sandbox,
    left: &Left,
    whose: &Whose,
    held: &Arc<Held>,
    began_at: i64,
) -> Result<Ended, Fault> {
    let timeout = Duration::from_millis(whose.record.timeout_ms);
    let ran = Duration::from_millis(u64::try_from(now() - began_at).unwrap_or(0));
    let resumed_at = now();
    let running = sandbox.adopt(left).await?;
    // One that ended by itself while nobody was there is found ended at once; only then its time is looked at.
    let patience = timeout.saturating_sub(ran).max(Duration::from_secs(2));
    let until = Instant::now() + patience;
    let order = Order { worker, feed: Feed::Nothing, until, record: &whose.record, adopted: true };
    let (ended, exit) = run::supervise(running, held, order).await?;
    if exit.is_some_and(|exit| ended_with_its_host(exit, resumed_at)) {
        return Err(Fault::Ours("the machine or Docker was restarted while the command ran".into()));
    }
    let took = exit.map(|exit| exit.finished_at - exit.started_at).and_then(|ms| u64::try_from(ms).ok());
    if took.is_some_and(|ms| ms > whose.record.timeout_ms + OVERTIME_MS) {
        return Ok(Ended::of(Outcome::TimedOut, "it ran past its limit while the worker was restarted"));
    }
    Ok(ended)
}

/// A command that ended as a stop of Docker ends it, before this process looked: whether that was its own doing cannot
/// be told, so it gets another try that does not count against it.
fn ended_with_its_host(exit: Exit, resumed_at: i64) -> bool {
    exit.looks_stopped() && exit.finished_at < resumed_at
}

#[cfg(test)]
mod tests {
    use codering_core::{JobId, LeaseToken};

    use super::*;
    use crate::sandbox::Record;

    fn left(stdin: bool) -> Left {
        let whose = Whose {
            token: LeaseToken::from_bytes([1; 16]),
            project: "p".parse().expect("valid"),
            job: JobId::at(1_763_722_560_000, 1),
            task: "t".parse().expect("valid"),
            attempt: 1,
            record: Record { stdin, ..Record::default() },
        };
        Left { id: "c".into(), whose: Some(whose), created_at: 1, began_at: Some(2) }
    }

    fn lease(seconds: Option<u64>, fed: bool) -> Option<Former> {
        Some(Former { left: seconds.map(Duration::from_secs), fed })
    }

    #[test]
    fn only_what_can_still_be_finished_is_taken_up() {
        let judged = |left: &Left, lease, spooled: bool| judge(left, lease, |_| spooled) == Verdict::Adopt;
        assert!(judged(&left(false), lease(Some(5), false), false));
        assert!(judged(&left(false), None, false));
        assert!(judged(&left(true), lease(Some(5), true), false));
        assert!(!judged(&left(true), lease(Some(5), false), false), "half of its input");
        assert!(!judged(&left(true), None, false), "who knows how much of its input");
        assert!(!judged(&left(false), lease(None, true), false), "the lease is over");
        assert!(!judged(&left(false), lease(Some(5), true), true), "the result is there");
        assert!(!judged(&Left { began_at: None, ..left(false) }, None, false), "never started");
        assert!(!judged(&Left { whose: None, ..left(false) }, None, false), "nobody's");
    }

    #[test]
    fn a_command_that_went_down_with_its_host_is_not_the_users_failure() {
        let exit =
            |code, out_of_memory, finished_at| Exit { code, out_of_memory, started_at: 1, finished_at };
        assert!(ended_with_its_host(exit(137, false, 10), 20));
        assert!(ended_with_its_host(exit(255, false, 10), 20));
        assert!(!ended_with_its_host(exit(137, true, 10), 20));
        assert!(!ended_with_its_host(exit(137, false, 30), 20));
        assert!(!ended_with_its_host(exit(1, false, 10), 20));
    }
}
