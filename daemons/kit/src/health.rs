//! Probes and metrics over HTTP: `/healthz` (the process answers), `/readyz` (it does its work), `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::{sync::watch, time::Instant};

/// Whether the process does its work: every latch of the start dropped, and no stop begun. Conditions that come
/// and go are told beside it, and do not make it unready: what needs them waits by itself.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    latches: watch::Sender<Vec<&'static str>>,
    conditions: Mutex<BTreeMap<&'static str, String>>,
    stopping: std::sync::atomic::AtomicBool,
}

/// Holds readiness back until it is dropped.
#[derive(Debug)]
#[must_use = "readiness waits until this is dropped"]
pub struct Latch {
    readiness: Readiness,
    name: &'static str,
}

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(Inner {
            latches: watch::Sender::new(Vec::new()),
            conditions: Mutex::new(BTreeMap::new()),
            stopping: std::sync::atomic::AtomicBool::new(false),
        }))
    }
}

impl Readiness {
    /// Ready, until a latch is taken.
    pub fn new() -> Self {
        Self::default()
    }

    /// A latch, named after what is waited for: `ledger`.
    pub fn latch(&self, name: &'static str) -> Latch {
        self.0.latches.send_modify(|names| names.push(name));
        Latch { readiness: self.clone(), name }
    }

    /// Resolves when every latch has dropped.
    pub async fn ready(&self) {
        // The sender lives in self, so this cannot fail before it resolves.
        let _ = self.0.latches.subscribe().wait_for(Vec::is_empty).await;
    }

    /// Tells of something that does not work at the moment (`queue`, "reconnecting to …"), or with `None`
    /// that it works again.
    pub fn degraded(&self, name: &'static str, why: Option<String>) {
        let mut conditions = self.conditions();
        match why {
            Some(why) => conditions.insert(name, why),
            None => conditions.remove(name),
        };
    }

    /// From now on not ready: the drain began.
    pub fn stopping(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    /// One line for `systemctl status`: what is waited for, or what does not work; empty when all is well.
    pub fn summary(&self) -> String {
        let latches = self.0.latches.borrow().join(", ");
        if !latches.is_empty() {
            return format!("starting: waiting for {latches}");
        }
        let conditions: Vec<_> =
            self.conditions().iter().map(|(name, why)| format!("{name}: {why}")).collect();
        conditions.join("; ")
    }

    fn conditions(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.readiness.0.latches.send_modify(|names| {
            if let Some(place) = names.iter().position(|name| *name == self.name) {
                names.swap_remove(place);
            }
        });
    }
}

/// The last time that a loop came round, for the watchdog.
#[derive(Debug, Clone)]
pub struct Pulse {
    start: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { start: Instant::now(), last_ms: Arc::default() }
    }
}

impl Pulse {
    /// The loop came round now.
    pub fn beat(&self) {
        self.last_ms.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether it came round within this time.
    pub fn alive(&self, within: Duration) -> bool {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last) <= within
    }
}

/// The routes. `/readyz` answers 200 or 503, with `{"ready", "waiting_for", "degraded"}` either way.
pub fn router(readiness: Readiness, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(metrics).with_state(registry))
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    let mut waiting = readiness.0.latches.borrow().clone();
    if readiness.0.stopping.load(Ordering::Relaxed) {
        waiting.push("the end: it is stopping");
    }
    let status = if waiting.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({
        "ready": waiting.is_empty(), "waiting_for": waiting, "degraded": *readiness.conditions(),
    });
    (status, Json(body)).into_response()
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => {
            let content = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content)], text).into_response()
        }
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt;

    use super::*;

    async fn get_path(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let answer = router.clone().oneshot(request).await.expect("infallible");
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn it_is_ready_when_the_last_latch_has_dropped_and_not_before() {
        let readiness = Readiness::new();
        let router = router(readiness.clone(), Arc::default());
        let (ledger, queue) = (readiness.latch("ledger"), readiness.latch("queue"));
        drop(queue);
        let (status, body) = get_path(&router, "/readyz").await;
        assert_eq!(status, 503);
        assert!(body.contains(r#""waiting_for":["ledger"]"#), "{body}");
        assert_eq!(readiness.summary(), "starting: waiting for ledger");
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        drop(ledger);
        waiting.await.expect("ready");
        assert_eq!(get_path(&router, "/readyz").await.0, 200);
        readiness.stopping();
        assert_eq!(get_path(&router, "/readyz").await.0, 503);
        assert_eq!(get_path(&router, "/healthz").await.0, 200);
    }

    #[tokio::test]
    async fn what_does_not_work_is_told_and_then_no_more() {
        let readiness = Readiness::new();
        let router = router(readiness.clone(), Arc::default());
        readiness.degraded("queue", Some("reconnecting".into()));
        let (status, body) = get_path(&router, "/readyz").await;
        assert_eq!(status, 200);
        assert!(body.contains(r#""degraded":{"queue":"reconnecting"}"#), "{body}");
        assert_eq!(readiness.summary(), "queue: reconnecting");
        readiness.degraded("queue", None);
        assert_eq!(readiness.summary(), "");
    }

    #[tokio::test]
    async fn metrics_are_those_of_the_registry_passed_in() {
        let mut registry = Registry::with_prefix("codering");
        let counter = Counter::<u64>::default();
        registry.register("tasks_submitted", "Tasks", counter.clone());
        counter.inc();
        let router = router(Readiness::new(), Arc::new(registry));
        let (status, body) = get_path(&router, "/metrics").await;
        assert_eq!(status, 200);
        assert!(body.contains("codering_tasks_submitted_total 1\n"), "{body}");
    }

    #[test]
    fn a_loop_that_stopped_coming_round_is_not_alive() {
        let within = Duration::from_secs(5);
        let pulse = Pulse { start: Instant::now() - Duration::from_secs(60), last_ms: Arc::default() };
        assert!(!pulse.alive(within));
        pulse.beat();
        assert!(pulse.alive(within));
    }
}
