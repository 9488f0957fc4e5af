//! How much runs at once. A full room is an error that says so, never a queue that grows.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use codering_core::{Code, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls with a token, streams included.
const CALLERS: usize = 1024;
/// Of these, calls with the same token: nobody fills the room alone.
const OF_ONE_CALLER: usize = 512;
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
#[derive(Debug)]
pub struct Place {
    _place: OwnedSemaphorePermit,
    _own: Option<Own>,
}

/// One call more of a caller, for as long as it is there.
#[derive(Debug)]
struct Own {
    callers: Arc<Mutex<HashMap<String, usize>>>,
    token: String,
}

impl Drop for Own {
    fn drop(&mut self) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = callers.get_mut(&self.token) {
            *calls -= 1;
            if *calls == 0 {
                callers.remove(&self.token);
            }
        }
    }
}

/// The rooms. Workers' calls never wait for users', nor the other way round.
#[derive(Debug)]
pub struct Rooms {
    callers: Arc<Semaphore>,
    /// How many calls of each token are among them; no more entries than callers.
    of_each: Arc<Mutex<HashMap<String, usize>>>,
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
            of_each: Arc::default(),
            workers: room(WORKERS),
            anyone: room(ANYONE),
            reports: room(REPORTS),
            bodies: room(BODY_KIB),
        }
    }
}

impl Rooms {
    /// For a call with the token of this id.
    pub fn caller(&self, token: &str) -> Result<Place, Error> {
        let mut place = now(&self.callers)?;
        let mut callers = self.of_each.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = callers.entry(token.to_owned()).or_default();
        if *calls >= OF_ONE_CALLER {
            let what = format!("{OF_ONE_CALLER} calls run with this token, which are as many as may at once");
            return Err(Error::new(Code::BrokerBusy, what).hint("wait for some of them to end"));
        }
        *calls += 1;
        place._own = Some(Own { callers: self.of_each.clone(), token: token.to_owned() });
        Ok(place)
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
    let place = room.clone().try_acquire_owned().map_err(|_| busy())?;
    Ok(Place { _place: place, _own: None })
}

async fn patiently(room: &Arc<Semaphore>, places: u32, at_most: Duration) -> Result<Place, Error> {
    match tokio::time::timeout(at_most, room.clone().acquire_many_owned(places)).await {
        Ok(Ok(place)) => Ok(Place { _place: place, _own: None }),
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
        assert!(rooms.caller("a").is_ok() && rooms.worker().is_ok());
        inside.pop();
        assert!(rooms.anyone().is_ok());
    }

    #[test]
    fn one_caller_does_not_fill_the_room_of_all() {
        let rooms = Rooms::default();
        let mut inside: Vec<_> = (0..OF_ONE_CALLER).map(|_| rooms.caller("a").expect("room")).collect();
        assert_eq!(rooms.caller("a").expect_err("as many as it may").code, Code::BrokerBusy);
        assert!(rooms.caller("b").is_ok(), "another's");
        inside.pop();
        inside.push(rooms.caller("a").expect("one has left"));
        drop(inside);
        assert!(rooms.of_each.lock().expect("not poisoned").is_empty());
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
