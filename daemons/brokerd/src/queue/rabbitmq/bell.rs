//! Hears of messages that others put. AMQP has no word for "tell me, but do not hand it over": a consumer
//! as a bell would hold a message unacked for as long as no slot is free. So the counts of the queues that
//! are listened to are asked for, all in one burst: every 50 ms while messages come, once a second else.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use codering_core::QueueName;
use tokio::time::{sleep, timeout};

use super::shared::{Shared, State};

const QUICK: Duration = Duration::from_millis(50);
const SLOW: Duration = Duration::from_secs(1);
/// How long a queue is asked about quickly after messages came.
const QUICK_FOR: Duration = Duration::from_secs(2);

#[derive(Clone, Copy)]
struct Heard {
    ready: u32,
    quick_until: Option<Instant>,
    asked: Instant,
}

impl Heard {
    fn is_quick(&self, now: Instant) -> bool {
        self.quick_until.is_some_and(|until| until > now)
    }
}

/// Runs until the backend is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut heard: HashMap<QueueName, Heard> = HashMap::new();
    let mut state = shared.state.subscribe();
    let mut closing = shared.closing.subscribe();
    while !*closing.borrow() {
        let link = match &*state.borrow_and_update() {
            State::Up(link) => Some(link.clone()),
            State::Down(_) => None,
        };
        let Some(link) = link else {
            tokio::select! { _ = state.changed() => {} _ = closing.changed() => {} }
            continue;
        };
        let listened = shared.listened();
        heard.retain(|queue, _| listened.contains(queue));
        let now = Instant::now();
        let due: Vec<_> = listened
            .into_iter()
            .filter(|queue| heard.get(queue).is_none_or(|h| h.is_quick(now) || h.asked + SLOW <= now))
            .map(|queue| {
                let name = shared.wire_name(&queue);
                (queue, name)
            })
            .collect();
        // An error is the supervisor's to mend; here it is silence until the next round.
        let counts = link.counts(&due).await.unwrap_or_default();
        for ((queue, _), count) in due.into_iter().zip(counts) {
            let ready = count.unwrap_or(0);
            let before = heard.get(&queue).copied();
            let more = ready > before.map_or(0, |before| before.ready);
            let quick_until =
                if more { Some(now + QUICK_FOR) } else { before.and_then(|before| before.quick_until) };
            // What waits is told once a second anew, in case the last ring found no free slot.
            let waits = ready > 0 && before.is_none_or(|before| !before.is_quick(now));
            if more || waits {
                shared.bell.ring(queue.clone());
            }
            heard.insert(queue, Heard { ready, quick_until, asked: now });
        }
        let now = Instant::now();
        let pause = if heard.values().any(|heard| heard.is_quick(now)) { QUICK } else { SLOW };
        tokio::select! {
            () = sleep(pause) => {}
            // A queue that is new to the list is asked about at once.
            _ = timeout(SLOW, shared.listens.notified()) => {}
            _ = closing.changed() => {}
        }
    }
}
