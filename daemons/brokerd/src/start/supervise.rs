//! Looks after the running broker: what `/readyz`, `systemctl status`, the watchdog and the gauges say.

use std::{sync::Arc, time::Duration};

use codering_kit::{
    health::{Pulse, Readiness},
    notify,
    shutdown::Shutdown,
};

use crate::{broker::Broker, metrics::Metrics};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(5);
/// A ledger that has not answered for this long, with yes or no, hangs; so does a runtime that runs no task.
const HANGS_AFTER: Duration = Duration::from_secs(60);

pub(super) struct Supervisor {
    broker: Broker,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    pulse: Pulse,
}

impl Supervisor {
    pub(super) fn new(broker: Broker, readiness: Readiness, metrics: Arc<Metrics>) -> Self {
        Self { broker, readiness, metrics, pulse: Pulse::default() }
    }

    /// What the watchdog asks.
    pub(super) fn alive(&self) -> impl Fn() -> bool + use<> {
        let pulse = self.pulse.clone();
        move || pulse.alive(HANGS_AFTER)
    }

    pub(super) async fn run(self, shutdown: Shutdown) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.look().await,
                () = shutdown.begun() => return,
            }
        }
    }

    async fn look(&self) {
        let queue = self.broker.queue_connected();
        self.metrics.queue_connected.set(i64::from(queue.is_ok()));
        self.readiness.degraded("queue", queue.err());
        let ledger = self.broker.check_ledger().await;
        self.metrics.ledger_writable.set(i64::from(ledger.is_ok()));
        self.readiness.degraded("ledger", ledger.err().map(|error| error.to_string()));
        self.readiness.degraded("disk", self.broker.shortage());
        let projects = self.broker.projects(None).await.unwrap_or_default();
        let (queued, running) =
            projects.iter().fold((0, 0), |(q, r), p| (q + p.usage.queued_tasks, r + p.usage.running_tasks));
        self.metrics.set_tasks(
            projects.into_iter().map(|view| {
                (view.project.name.to_string(), view.usage.queued_tasks, view.usage.running_tasks)
            }),
        );
        notify::status(&status(self.metrics.workers.get(), queued, running, &self.readiness.summary()));
        self.pulse.beat();
    }
}

/// `3 workers, 120 tasks queued, 8 running; queue: reconnecting`
fn status(workers: i64, queued: u64, running: u64, trouble: &str) -> String {
    let counts = format!("{workers} workers, {queued} tasks queued, {running} running");
    if trouble.is_empty() { counts } else { format!("{counts}; {trouble}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_the_load_and_what_does_not_work() {
        assert_eq!(status(3, 120, 8, ""), "3 workers, 120 tasks queued, 8 running");
        assert_eq!(status(0, 1, 0, "queue: away"), "0 workers, 1 tasks queued, 0 running; queue: away");
    }
}
