//! Workers as people see them: what is there, what runs where, pause and revoke.

use std::collections::HashMap;

use codering_core::{Code, Error, WorkerName};
use codering_kit::fault::{self, Point};

use super::{Broker, Running, now};
use crate::ledger;

/// A worker with what runs there.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// The row.
    pub worker: ledger::Worker,
    /// Whether its stream is up.
    pub connected: bool,
    /// Its slots; 0 where it is not connected.
    pub slots: u32,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// Its version.
    pub version: String,
    /// Since when; 0 where it is not.
    pub connected_at: i64,
    /// When it was last heard of.
    pub last_seen_at: i64,
    /// It was told to take nothing new.
    pub draining: bool,
    /// What it runs.
    pub running: Vec<Running>,
}

impl Broker {
    /// All workers that ever enrolled.
    pub async fn workers(&self) -> Result<Vec<WorkerView>, Error> {
        let rows = self.ledger.workers().await?;
        Ok(rows.into_iter().map(|row| self.worker_view(row)).collect())
    }

    /// One worker.
    pub async fn worker(&self, name: &WorkerName) -> Result<WorkerView, Error> {
        let rows = self.workers().await?;
        let found = rows.into_iter().find(|view| view.worker.name == *name);
        found.ok_or_else(|| Error::new(Code::WorkerNotFound, format!("there is no worker {name}")))
    }

    fn worker_view(&self, row: ledger::Worker) -> WorkerView {
        let held = self.leases.of_worker(&row.name).into_iter();
        let mut running: Vec<Running> = held.map(|(_, held)| held.into()).collect();
        running.sort_by(|a, b| a.task.key.cmp(&b.task.key));
        let fleet = self.fleet.lock();
        let connected = fleet.get(&row.name);
        let seen = connected.map_or(row.last_seen_at, |c| now() - c.last_seen.elapsed().as_millis() as i64);
        WorkerView {
            connected: connected.is_some(),
            slots: connected.map_or(0, |c| c.slots),
            labels: connected.map(|c| c.labels.clone()).unwrap_or_default(),
            version: connected.map(|c| c.version.clone()).unwrap_or_default(),
            connected_at: connected.map_or(0, |c| c.connected_at),
            last_seen_at: seen,
            draining: connected.is_some_and(|c| c.draining),
            running,
            worker: row,
        }
    }

    /// Nobody else changes a worker's row while this is held.
    pub async fn worker_rows(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.worker_rows.lock().await
    }

    /// A paused worker finishes what it runs and takes nothing new.
    pub async fn pause_worker(&self, name: &WorkerName, paused: bool) -> Result<WorkerView, Error> {
        let _row = self.worker_rows.lock().await;
        let mut view = self.worker(name).await?;
        view.worker.paused = paused;
        self.ledger.put_worker(view.worker.clone()).await?;
        fault::reached(Point::WorkerPaused);
        self.scheduler().set_paused(name, paused);
        self.dispatch.notify_one();
        Ok(view)
    }

    /// Refuses a worker from now on; what it ran runs elsewhere.
    pub async fn revoke_worker(&self, name: &WorkerName) -> Result<WorkerView, Error> {
        let _row = self.worker_rows.lock().await;
        let mut view = self.worker(name).await?;
        view.worker.revoked = true;
        self.ledger.put_worker(view.worker.clone()).await?;
        fault::reached(Point::WorkerRevoked);
        self.disconnect(name);
        Ok(view)
    }

    /// Ends a worker's stream, which its certificate does not stand for any more.
    pub fn disconnect(&self, name: &WorkerName) {
        if let Some(connected) = self.fleet.lock().get(name) {
            connected.closed.cancel();
        }
    }
}
