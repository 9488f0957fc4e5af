//! Heartbeats that were sent, so that an answer counts from when its beat was sent and not from when it came.

use std::collections::VecDeque;

use codering_core::LeaseToken;
use tokio::time::Instant;

/// Beats without an answer that are remembered; an answer to an older one renews nothing.
const REMEMBERED: usize = 64;

/// A beat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Beat {
    pub seq: u64,
    pub sent: Instant,
    pub tokens: Vec<LeaseToken>,
}

/// The beats of one stream.
#[derive(Debug, Default)]
pub(super) struct Beats {
    last: u64,
    open: VecDeque<Beat>,
}

impl Beats {
    /// The next one is about to be sent.
    pub fn send(&mut self, now: Instant, tokens: Vec<LeaseToken>) -> u64 {
        self.last += 1;
        if self.open.len() >= REMEMBERED {
            self.open.pop_front();
        }
        self.open.push_back(Beat { seq: self.last, sent: now, tokens });
        self.last
    }

    /// The beat that was answered; those before it are settled too.
    pub fn answered(&mut self, seq: u64) -> Option<Beat> {
        let place = self.open.iter().position(|beat| beat.seq == seq)?;
        self.open.drain(..=place).next_back()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_from_when_its_beat_was_sent_and_only_once() {
        let mut beats = Beats::default();
        let token = LeaseToken::from_bytes([1; 16]);
        let first_sent = Instant::now();
        let first = beats.send(first_sent, vec![token.clone()]);
        tokio::time::advance(Duration::from_secs(10)).await;
        let second = beats.send(Instant::now(), vec![]);
        let beat = beats.answered(first).expect("open");
        assert_eq!((beat.sent, beat.tokens), (first_sent, vec![token]));
        assert_eq!(beats.answered(first), None);
        assert!(beats.answered(second).is_some());
        assert_eq!(beats.answered(99), None);
    }

    #[tokio::test(start_paused = true)]
    async fn beats_that_are_never_answered_do_not_pile_up() {
        let mut beats = Beats::default();
        for _ in 0..10_000 {
            beats.send(Instant::now(), vec![]);
        }
        assert_eq!(beats.open.len(), REMEMBERED);
    }
}
