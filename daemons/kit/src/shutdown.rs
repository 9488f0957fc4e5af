//! One drain for the whole process: it begins once, and it has a deadline.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Tells every part of the process that it is to drain, and until when.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    drain: Mutex<Duration>,
    deadline: OnceLock<Instant>,
    begun: CancellationToken,
    forced: CancellationToken,
}

impl Shutdown {
    /// Not begun; once begun, `drain` is the time to end in.
    pub fn new(drain: Duration) -> Self {
        Self(Arc::new(Inner {
            drain: Mutex::new(drain),
            deadline: OnceLock::new(),
            begun: CancellationToken::new(),
            forced: CancellationToken::new(),
        }))
    }

    /// Another time to end in, unless it has begun.
    pub fn set_drain(&self, drain: Duration) {
        *self.0.drain.lock().unwrap_or_else(PoisonError::into_inner) = drain;
    }

    fn drain(&self) -> Duration {
        *self.0.drain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins it; again is no harm.
    pub fn begin(&self) {
        self.0.deadline.get_or_init(|| Instant::now() + self.drain());
        self.0.begun.cancel();
    }

    /// Begins it with no time left.
    pub fn force(&self) {
        self.begin();
        self.0.forced.cancel();
    }

    /// Whether it has begun.
    pub fn is_begun(&self) -> bool {
        self.0.begun.is_cancelled()
    }

    /// Resolves when it begins.
    pub async fn begun(&self) {
        self.0.begun.cancelled().await;
    }

    /// When whatever still runs is dropped; `None` before it has begun.
    fn deadline(&self) -> Option<Instant> {
        self.0.deadline.get().copied()
    }

    /// Resolves at the deadline, or at once when forced; not before it has begun.
    pub async fn ended(&self) {
        self.begun().await;
        let deadline = self.deadline().unwrap_or_else(Instant::now);
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => {}
            () = self.0.forced.cancelled() => {}
        }
    }
}

/// SIGTERM and SIGINT begin the drain; a second one ends it. Call it within a tokio runtime.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn on_signals(drain: Duration) -> io::Result<Shutdown> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = Shutdown::new(drain);
    let told = shutdown.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if told.is_begun() {
                tracing::warn!("{name} again: ending without the rest of the drain");
                told.force();
                return;
            }
            tracing::info!(deadline_ms = told.drain().as_millis() as u64, "{name}: draining");
            told.begin();
        }
    });
    Ok(shutdown)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn it_ends_at_its_deadline_and_not_before_it_began() {
        let shutdown = Shutdown::new(Duration::from_millis(50));
        assert!(!shutdown.is_begun() && shutdown.deadline().is_none());
        assert!(shutdown.ended().now_or_never().is_none(), "ended without having begun");
        let start = Instant::now();
        shutdown.begin();
        let deadline = shutdown.deadline();
        assert!(shutdown.ended().now_or_never().is_none(), "ended with time left");
        shutdown.ended().await;
        assert!(start.elapsed() >= Duration::from_millis(50));
        shutdown.begin();
        assert_eq!(shutdown.deadline(), deadline, "a second begin moved the deadline");
    }

    #[tokio::test]
    async fn forcing_it_leaves_no_time() {
        let shutdown = Shutdown::new(Duration::from_secs(3600));
        shutdown.force();
        assert!(shutdown.ended().now_or_never().is_some(), "time is left");
    }
}
