//! Tells on which queues messages may have come. Each by its name: a free slot is held for a queue while it is asked,
//! and one that asks in vain is missed by the others.

use std::collections::BTreeSet;

use codering_core::QueueName;
use tokio::sync::broadcast::{
    Receiver, Sender,
    error::{RecvError, TryRecvError},
};

/// Rings that a listener may be behind; of more it hears as of one for all queues.
const BEHIND: usize = 1024;

/// Rung by a backend.
#[derive(Debug, Clone)]
pub struct Bell(Sender<Option<QueueName>>);

/// What rang since the last look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rung {
    /// Any queue that is listened to: the backend is back, or the listener was too far behind.
    All,
    /// These.
    Queues(BTreeSet<QueueName>),
}

/// Hears what rings from when it was made.
#[derive(Debug)]
pub struct Listener(Receiver<Option<QueueName>>);

impl Default for Bell {
    fn default() -> Self {
        Self(Sender::new(BEHIND))
    }
}

impl Bell {
    /// Messages may have come on `queue`.
    pub(super) fn ring(&self, queue: QueueName) {
        // An error says that nobody listens.
        let _ = self.0.send(Some(queue));
    }

    /// Messages may have come on any queue.
    pub(super) fn ring_all(&self) {
        let _ = self.0.send(None);
    }

    pub(super) fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

impl Listener {
    /// Waits for a ring, and answers with all that have come; `None` once the backend is gone.
    pub async fn rung(&mut self) -> Option<Rung> {
        let mut queues = BTreeSet::new();
        match self.0.recv().await {
            Ok(Some(queue)) => queues.insert(queue),
            Ok(None) | Err(RecvError::Lagged(_)) => return Some(Rung::All),
            Err(RecvError::Closed) => return None,
        };
        loop {
            match self.0.try_recv() {
                Ok(Some(queue)) => queues.insert(queue),
                Ok(None) | Err(TryRecvError::Lagged(_)) => return Some(Rung::All),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Some(Rung::Queues(queues)),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rings_are_heard_by_name_and_as_one_for_all_by_who_is_far_behind() {
        let bell = Bell::default();
        let mut listener = bell.listen();
        let queue = |n: usize| QueueName::new(format!("p{n}.todo")).expect("valid");
        for n in [2, 1, 2] {
            bell.ring(queue(n));
        }
        assert_eq!(listener.rung().await, Some(Rung::Queues(BTreeSet::from([queue(1), queue(2)]))));
        (0..=BEHIND).for_each(|n| bell.ring(queue(n)));
        assert_eq!(listener.rung().await, Some(Rung::All));
        let mut listener = bell.listen();
        bell.ring(queue(1));
        bell.ring_all();
        assert_eq!(listener.rung().await, Some(Rung::All));
        drop(bell);
        assert_eq!(listener.rung().await, None);
    }
}
