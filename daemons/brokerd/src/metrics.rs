//! Every metric of brokerd: its name, its meaning, its unit.

use codering_core::Outcome;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Tasks recorded by submits. Counter.
pub const TASKS_SUBMITTED: &str = "codering_tasks_submitted";
/// Leases given to workers. Counter.
pub const LEASES: &str = "codering_leases";
/// Leases that ended because they were not renewed. Counter.
pub const LEASE_EXPIRIES: &str = "codering_lease_expiries";
/// Results recorded, by `outcome`. Counter.
pub const RESULTS: &str = "codering_results";
/// Results refused because their lease had ended. Counter.
pub const RESULTS_FENCED: &str = "codering_results_fenced";
/// Messages that could not be used. Counter.
pub const DEAD_LETTERS: &str = "codering_dead_letters";
/// From ready to leased, in seconds. Histogram.
pub const TASK_QUEUED_SECONDS: &str = "codering_task_queued_seconds";
/// Workers with a stream. Gauge.
pub const WORKERS_CONNECTED: &str = "codering_workers_connected";
/// Unfinished tasks, by `project` and `state` (`queued`, `running`). Gauge.
pub const TASKS: &str = "codering_tasks";
/// 1 while the queue backend answers. Gauge.
pub const QUEUE_CONNECTED: &str = "codering_queue_connected";
/// 1 while the ledger can be written. Gauge.
pub const LEDGER_WRITABLE: &str = "codering_ledger_writable";
/// Calls refused, by `reason` (`missing`, `wrong_token`, `throttled`, `denied`, `worker`). Counter.
pub const AUTH_REFUSED: &str = "codering_auth_refused";

type Labels<const N: usize> = [(&'static str, String); N];

/// Recorded by the broker's shell, never inside a state transition. See the constant of the same name for each.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Metrics {
    pub submitted: Counter,
    pub leases: Counter,
    pub lease_expiries: Counter,
    pub fenced: Counter,
    pub dead_letters: Counter,
    pub workers: Gauge,
    pub queue_connected: Gauge,
    pub ledger_writable: Gauge,
    pub queued_seconds: Histogram,
    results: Family<Labels<1>, Counter>,
    tasks: Family<Labels<2>, Gauge>,
    auth_refused: Family<Labels<1>, Counter>,
}

impl Metrics {
    /// Registers all of them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            submitted: Counter::default(),
            leases: Counter::default(),
            lease_expiries: Counter::default(),
            fenced: Counter::default(),
            dead_letters: Counter::default(),
            workers: Gauge::default(),
            queue_connected: Gauge::default(),
            ledger_writable: Gauge::default(),
            queued_seconds: Histogram::new([0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0]),
            results: Family::default(),
            tasks: Family::default(),
            auth_refused: Family::default(),
        };
        let m = &metrics;
        registry.register(TASKS_SUBMITTED, "Tasks recorded by submits", m.submitted.clone());
        registry.register(LEASES, "Leases given to workers", m.leases.clone());
        registry.register(
            LEASE_EXPIRIES,
            "Leases that ended because they were not renewed",
            m.lease_expiries.clone(),
        );
        registry.register(RESULTS, "Results recorded, by outcome", m.results.clone());
        registry.register(RESULTS_FENCED, "Results refused because their lease had ended", m.fenced.clone());
        registry.register(DEAD_LETTERS, "Messages that could not be used", m.dead_letters.clone());
        registry.register(TASK_QUEUED_SECONDS, "From ready to leased, in seconds", m.queued_seconds.clone());
        registry.register(WORKERS_CONNECTED, "Workers with a stream", m.workers.clone());
        registry.register(TASKS, "Unfinished tasks, by project and state", m.tasks.clone());
        registry.register(QUEUE_CONNECTED, "Whether the queue backend answers", m.queue_connected.clone());
        registry.register(LEDGER_WRITABLE, "Whether the ledger can be written", m.ledger_writable.clone());
        registry.register(AUTH_REFUSED, "Calls refused, by reason", m.auth_refused.clone());
        metrics
    }

    /// Recorded results of this outcome.
    pub fn results(&self, outcome: Outcome) -> Counter {
        self.results.get_or_create_owned(&[("outcome", outcome.as_str().to_owned())])
    }

    /// What projects hold now: `(project, queued, running)`. A project that is not named any more is forgotten.
    pub fn set_tasks(&self, projects: impl IntoIterator<Item = (String, u64, u64)>) {
        self.tasks.clear();
        for (project, queued, running) in projects {
            for (state, count) in [("queued", queued), ("running", running)] {
                let labels = [("project", project.clone()), ("state", state.to_owned())];
                self.tasks.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// Calls refused for this reason.
    pub fn auth_refused(&self, reason: &'static str) -> Counter {
        self.auth_refused.get_or_create_owned(&[("reason", reason.to_owned())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_served_under_its_name() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.submitted.inc();
        metrics.results(Outcome::Succeeded).inc();
        metrics.auth_refused("denied").inc();
        metrics.set_tasks([("gone".to_owned(), 1, 1)]);
        metrics.set_tasks([("demo".to_owned(), 3, 2)]);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        for line in [
            "codering_tasks_submitted_total 1",
            "codering_results_total{outcome=\"succeeded\"} 1",
            "codering_tasks{project=\"demo\",state=\"queued\"} 3",
            "codering_tasks{project=\"demo\",state=\"running\"} 2",
            "codering_auth_refused_total{reason=\"denied\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("gone"), "{text}");
    }
}
