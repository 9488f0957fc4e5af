//! The one stream to the broker: assignments and answers come down, heartbeats, progress, output and results go up.
//! It is built anew for as long as it takes; what the worker holds is told again each time.

mod clock;
mod logs;
mod reports;
mod session;

use std::{sync::Arc, time::Duration};

use codering_core::Code;
use codering_kit::{
    health::{Latch, Pulse, Readiness},
    shutdown::Shutdown,
};
use codering_proto::v1::from_worker::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, worker::Worker};

/// Between tries, when the broker does not want this worker at all.
const REFUSED_WAIT: Duration = Duration::from_secs(60);

/// What the stream tells the process.
pub struct Signs {
    /// Whether the broker is reached.
    pub readiness: Readiness,
    /// Dropped when it is reached for the first time.
    pub latch: Option<Latch>,
    /// Beats while the stream's loop comes round.
    pub pulse: Pulse,
}

/// Keeps the stream up until `end`.
pub async fn run(
    worker: Arc<Worker>,
    mut events: mpsc::Receiver<Message>,
    mut signs: Signs,
    shutdown: Shutdown,
    end: CancellationToken,
) {
    let mut backoff = Backoff::default();
    loop {
        let ended = tokio::select! {
            biased;
            () = end.cancelled() => return,
            ended = session::run(&worker, &mut events, &mut signs, &shutdown, &mut backoff) => ended,
        };
        worker.metrics.connected.set(0);
        let why = ended.to_string();
        let wait = match ended.code {
            Code::WorkerRevoked | Code::AuthDenied | Code::AuthInvalid | Code::WorkerNotFound => {
                tracing::error!("the broker refuses this worker: {why}");
                REFUSED_WAIT
            }
            _ => backoff.next(),
        };
        tracing::warn!(again_in_ms = wait.as_millis() as u64, "no stream to the broker: {why}");
        signs.readiness.degraded("broker", Some(why));
        signs.pulse.beat();
        let mut waited = std::pin::pin!(tokio::time::sleep(wait));
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                () = &mut waited => break,
                _ = beat.tick() => signs.pulse.beat(),
            }
        }
    }
}
