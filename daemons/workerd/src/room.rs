//! The disk's room, looked at once a second: results that wait in memory are written as soon as the disk takes them, and
//! `/readyz` tells what it lacks.

use std::{sync::Arc, time::Duration};

use codering_kit::health::Readiness;
use tokio_util::sync::CancellationToken;

use crate::worker::Worker;

const EVERY: Duration = Duration::from_secs(1);

/// Looks until `end`.
pub(crate) async fn run(worker: Arc<Worker>, readiness: Readiness, end: CancellationToken) {
    let mut told = false;
    loop {
        if worker.spool.in_memory() > 0 {
            let spool = worker.spool.clone();
            // It does not panic, and the next look comes soon.
            let _ = tokio::task::spawn_blocking(move || spool.write_again()).await;
        }
        let why = worker.no_room();
        match &why {
            Some(why) if !told => tracing::error!("nothing new is taken: {why}; free space on that disk"),
            None if told => tracing::info!("there is room on the disk again"),
            _ => {}
        }
        told = why.is_some();
        readiness.degraded("disk", why);
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
