//! Waiting longer each time, by a random part of it: workers that lost one broker do not come back all at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(15);

/// How long to wait before the next try.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// From the half to the whole of a bound that doubles.
    pub fn next(&mut self) -> Duration {
        let bound = (FIRST * 2_u32.pow(self.tries.min(10))).min(LONGEST);
        self.tries += 1;
        bound.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// It went well.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        assert!(backoff.next() <= FIRST);
        for _ in 0..100 {
            let wait = backoff.next();
            assert!(wait >= FIRST && wait <= LONGEST, "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
