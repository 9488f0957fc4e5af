//! Who is connected, and who goes when there is no more room: the connection that has done nothing for longest. One
//! that waits for an answer, as a worker's stream does all its life, is never sent away; so whoever holds connections
//! open for nothing only ever takes each other's places.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, HttpBody as _},
    http::Response,
};
use http_body_util::BodyExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Connections that were sent away and have not gone yet, at most: beyond them a newcomer waits until one has.
const LEAVING: usize = 64;
/// For so long; they go at once, unless the whole process stands still.
const GOING: Duration = Duration::from_secs(5);

/// All places of one listener. A handle.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Places>);

#[derive(Debug)]
struct Places {
    most: usize,
    taken: Mutex<Taken>,
    /// Told when one that was sent away has gone.
    left: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    seats: HashMap<u64, State>,
    leaving: usize,
}

#[derive(Debug)]
struct State {
    /// Requests that are not answered in full.
    open: usize,
    /// Whether anything was ever asked.
    asked: bool,
    /// When it last did anything.
    since: Instant,
    leave: CancellationToken,
}

impl Room {
    pub(super) fn of(most: usize) -> Self {
        Self(Arc::new(Places { most: most.max(1), taken: Mutex::default(), left: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if need be that of whoever has been idle for longest; `None` when all are busy.
    pub(super) async fn enter(&self) -> Option<Seat> {
        let gone = async {
            loop {
                let left = self.0.left.notified();
                if self.lock().leaving < LEAVING {
                    return;
                }
                left.await;
            }
        };
        tokio::time::timeout(GOING, gone).await.ok()?;
        self.enter_now()
    }

    fn enter_now(&self) -> Option<Seat> {
        let mut taken = self.lock();
        if taken.seats.len() - taken.leaving >= self.0.most {
            let idle = taken.seats.values().filter(|seat| seat.open == 0 && !seat.leave.is_cancelled());
            // Those that never asked first.
            let idlest = idle.min_by_key(|seat| (seat.asked, seat.since))?.leave.clone();
            idlest.cancel();
            taken.leaving += 1;
        }
        let number = taken.next;
        taken.next += 1;
        let leave = CancellationToken::new();
        let state = State { open: 0, asked: false, since: Instant::now(), leave: leave.clone() };
        taken.seats.insert(number, state);
        drop(taken);
        Some(Seat { room: self.clone(), number, leave })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().seats.len()
    }
}

/// One connection's place; free when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    room: Room,
    number: u64,
    leave: CancellationToken,
}

impl Seat {
    /// Resolves when another needs the place more.
    pub(super) async fn is_needed(&self) {
        self.leave.cancelled().await;
    }

    /// A request has come: the connection is busy until the answer is out.
    pub(super) fn ask(self: &Arc<Self>) -> Asked {
        self.change(|state| {
            state.open += 1;
            state.asked = true;
        });
        Asked(self.clone())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.room.lock().seats.get_mut(&self.number) {
            change(state);
            state.since = Instant::now();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.room.lock();
        if taken.seats.remove(&self.number).is_some_and(|seat| seat.leave.is_cancelled()) {
            taken.leaving = taken.leaving.saturating_sub(1);
            self.room.0.left.notify_one();
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Asked(Arc<Seat>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.change(|state| state.open = state.open.saturating_sub(1));
    }
}

impl Asked {
    /// The answer, under way until the last of it was taken; one that is there whole already is as good as out.
    pub(super) fn until_out(self, answer: Response<Body>) -> Response<Body> {
        if answer.body().size_hint().exact().is_some() {
            return answer;
        }
        answer.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held_until_the_answer_is_out = &self;
                frame
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_idle_for_longest_goes_first_and_whoever_waits_for_an_answer_never() {
        let room = Room::of(3);
        let busy = Arc::new(room.enter_now().expect("room"));
        let asked = busy.ask();
        let (served, silent) = (Arc::new(room.enter_now().expect("room")), room.enter_now().expect("room"));
        drop(served.ask());
        let newcomer = room.enter_now().expect("the silent one's place");
        assert!(silent.leave.is_cancelled(), "it never asked, and goes before one that did");
        assert!(!served.leave.is_cancelled() && !newcomer.leave.is_cancelled());
        drop(silent);
        let newcomer = Arc::new(newcomer);
        let (_a, _b) = (newcomer.ask(), served.ask());
        assert!(room.enter_now().is_none(), "all are busy");
        drop(asked);
        let last = room.enter_now().expect("the first one's place");
        assert!(busy.leave.is_cancelled());
        drop((busy, last));
        assert_eq!((room.len(), room.lock().leaving), (2, 0));
    }
}
