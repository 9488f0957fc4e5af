//! Every metric of workerd: its name, its meaning, its unit.

use codering_core::Outcome;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Attempts held now. Gauge.
pub const ATTEMPTS_RUNNING: &str = "codering_worker_attempts_running";
/// Attempts ended, by `outcome`. Counter.
pub const ATTEMPTS: &str = "codering_worker_attempts";
/// Results that wait to be recorded. Gauge.
pub const RESULTS_SPOOLED: &str = "codering_worker_results_spooled";
/// 1 while the stream to the broker is up. Gauge.
pub const BROKER_CONNECTED: &str = "codering_worker_broker_connected";
/// 1 while Docker answers. Gauge.
pub const DOCKER_REACHABLE: &str = "codering_worker_docker_reachable";
/// Fetches from git hosts since the start. Gauge.
pub const GIT_FETCHES: &str = "codering_worker_git_fetches";
/// Images built since the start. Gauge.
pub const IMAGE_BUILDS: &str = "codering_worker_image_builds";
/// Of mirrors and images, in bytes. Gauge.
pub const CACHE_BYTES: &str = "codering_worker_cache_bytes";
/// Of each phase of an attempt, by `phase`, in seconds. Histogram.
pub const PHASE_SECONDS: &str = "codering_worker_phase_seconds";

type Labels = [(&'static str, &'static str); 1];

/// See the constant of the same name for each.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Metrics {
    pub running: Gauge,
    pub spooled: Gauge,
    pub connected: Gauge,
    pub docker: Gauge,
    pub fetches: Gauge,
    pub builds: Gauge,
    pub cache_bytes: Gauge,
    attempts: Family<Labels, Counter>,
    phases: Family<Labels, Histogram>,
}

impl Metrics {
    /// Registers all of them.
    pub fn new(registry: &mut Registry) -> Self {
        let seconds: fn() -> Histogram =
            || Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0]);
        let phases = Family::new_with_constructor(seconds);
        let m = Self {
            running: Gauge::default(),
            spooled: Gauge::default(),
            connected: Gauge::default(),
            docker: Gauge::default(),
            fetches: Gauge::default(),
            builds: Gauge::default(),
            cache_bytes: Gauge::default(),
            attempts: Family::default(),
            phases,
        };
        registry.register(ATTEMPTS_RUNNING, "Attempts held now", m.running.clone());
        registry.register(ATTEMPTS, "Attempts ended, by outcome", m.attempts.clone());
        registry.register(RESULTS_SPOOLED, "Results that wait to be recorded", m.spooled.clone());
        registry.register(BROKER_CONNECTED, "1 while the stream to the broker is up", m.connected.clone());
        registry.register(DOCKER_REACHABLE, "1 while Docker answers", m.docker.clone());
        registry.register(GIT_FETCHES, "Fetches from git hosts", m.fetches.clone());
        registry.register(IMAGE_BUILDS, "Images built", m.builds.clone());
        registry.register(CACHE_BYTES, "Bytes of mirrors and images", m.cache_bytes.clone());
        registry.register(PHASE_SECONDS, "Seconds of each phase of an attempt", m.phases.clone());
        m
    }

    /// An attempt ended.
    pub fn ended(&self, outcome: Outcome, phases: &codering_core::result::Phases) {
        self.attempts.get_or_create(&[("outcome", outcome.as_str())]).inc();
        let all = [
            ("checkout", phases.checkout),
            ("build", phases.build),
            ("start", phases.start),
            ("run", phases.run),
        ];
        for (phase, ms) in all {
            self.phases.get_or_create(&[("phase", phase)]).observe(ms as f64 / 1e3);
        }
    }
}
