//! Every metric of brokerd, its name and meaning in one place.

use codering_core::Outcome;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

type ByOutcome = Family<Vec<(&'static str, &'static str)>, Counter>;

/// Recorded by the broker's shell, never inside a state transition.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Metrics {
    pub submitted: Counter,
    pub leases: Counter,
    pub lease_expiries: Counter,
    pub fenced: Counter,
    pub dead_letters: Counter,
    pub workers: Gauge,
    pub queued_seconds: Histogram,
    results: ByOutcome,
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
            queued_seconds: Histogram::new([0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0]),
            results: ByOutcome::default(),
        };
        let prefixed = registry.sub_registry_with_prefix("codering");
        let m = &metrics;
        prefixed.register("tasks_submitted", "Tasks recorded by submits", m.submitted.clone());
        prefixed.register("leases", "Leases given to workers", m.leases.clone());
        prefixed.register(
            "lease_expiries",
            "Leases that ended because they were not renewed",
            m.lease_expiries.clone(),
        );
        prefixed.register(
            "results_fenced",
            "Results refused because their lease had ended",
            m.fenced.clone(),
        );
        prefixed.register("dead_letters", "Messages that could not be used", m.dead_letters.clone());
        prefixed.register("workers_connected", "Workers with a stream", m.workers.clone());
        prefixed.register(
            "task_queued_seconds",
            "From ready to leased, in seconds",
            m.queued_seconds.clone(),
        );
        prefixed.register("results", "Reported results by outcome", m.results.clone());
        metrics
    }

    /// Reported results of this outcome.
    pub fn results(&self, outcome: Outcome) -> Counter {
        self.results.get_or_create_owned(&vec![("outcome", outcome.as_str())])
    }
}
