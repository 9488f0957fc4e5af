//! How much runs at once. A full room is an error that says so, never a queue that grows.

use std::{sync::Arc, time::Duration};

use codering_core::{Code, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls with a token, streams included.
const CALLERS: usize = 1024;
/// Calls of workers: a stream each, and what it calls beside it.
const WORKERS: usize = 8192;
/// Calls that need no proof: probes, documents, enrolments.
const ANYONE: usize = 128;
/// Large reports in memory at the same time.
const REPORTS: usize = 4;
/// KiB of REST bodies in memory at the same time.
const BODY_KIB: usize = 256 << 10;
/// For room to become free, where waiting is better than failing.
const PATIENCE: Duration = Duration::from_secs(30);

/// A place in a room, given back when it is dropped.
pub type Place = OwnedSemaphorePermit;

/// The rooms. Workers' calls never wait for users', nor the other way round.
#[derive(Debug)]
pub struct Rooms {
    callers: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    anyone: Arc<Semaphore>,
    reports: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

impl Default for Rooms {
    fn default() -> Self {
        let room = |places| Arc::new(Semaphore::new(places));
        Self {
            callers: room(CALLERS),
            workers: room(WORKERS),
            anyone: room(ANYONE),
            reports: room(REPORTS),
            bodies: room(BODY_KIB),
        }
    }
}

impl Rooms {
    /// For a call with a token.
    pub fn caller(&self) -> Result<Place, Error> {
        now(&self.callers)
    }

    /// For a worker's call.
    pub fn worker(&self) -> Result<Place, Error> {
        now(&self.workers)
    }

    /// For a call that needs no proof.
    pub fn anyone(&self) -> Result<Place, Error> {
        now(&self.anyone)
    }

    /// For a large report.
    pub async fn report(&self) -> Result<Place, Error> {
        patiently(&self.reports, 1, PATIENCE).await
    }

    /// For a body of up to so many bytes.
    pub async fn body(&self, bytes: usize) -> Result<Place, Error> {
        let kib = bytes.div_ceil(1024).clamp(1, BODY_KIB);
        patiently(&self.bodies, u32::try_from(kib).unwrap_or(u32::MAX), PATIENCE).await
    }
}

fn busy() -> Error {
    Error::new(Code::BrokerBusy, "as many calls run as this broker takes at once").hint("try again shortly")
}

fn now(room: &Arc<Semaphore>) -> Result<Place, Error> {
    room.clone().try_acquire_owned().map_err(|_| busy())
}

async fn patiently(room: &Arc<Semaphore>, places: u32, at_most: Duration) -> Result<Place, Error> {
    match tokio::time::timeout(at_most, room.clone().acquire_many_owned(places)).await {
        Ok(Ok(place)) => Ok(place),
        _ => Err(busy()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_room_is_an_error_until_somebody_leaves_and_the_others_are_not_touched() {
        let rooms = Rooms::default();
        let mut inside: Vec<_> = (0..ANYONE).map(|_| rooms.anyone().expect("room")).collect();
        assert_eq!(rooms.anyone().expect_err("full").code, Code::BrokerBusy);
        assert!(rooms.caller().is_ok() && rooms.worker().is_ok());
        inside.pop();
        assert!(rooms.anyone().is_ok());
    }

    #[tokio::test]
    async fn who_may_wait_for_room_waits_and_not_for_ever() {
        let room = Arc::new(Semaphore::new(4));
        let all = patiently(&room, 4, PATIENCE).await.expect("room");
        let refused = patiently(&room, 1, Duration::from_millis(10)).await;
        assert_eq!(refused.expect_err("full").code, Code::BrokerBusy);
        let (one, ()) = tokio::join!(patiently(&room, 1, PATIENCE), async { drop(all) });
        assert!(one.is_ok());
    }
}
