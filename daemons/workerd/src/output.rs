//! A command's output: the first bytes of each stream are kept, the rest is counted and let go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];
}

/// What was written so far, shared by who drains the command and who streams it to the broker.
#[derive(Debug, Clone)]
pub struct Capture(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    kept: Mutex<[Kept; 2]>,
    grown: watch::Sender<u64>,
}

#[derive(Debug, Default, Clone)]
struct Kept {
    data: Vec<u8>,
    seen: u64,
}

/// One stream at its end.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Bounded {
    /// Its first bytes.
    pub data: Vec<u8>,
    /// There was more.
    pub truncated: bool,
}

impl Capture {
    /// Keeps at most `limit` bytes of each stream.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Inner {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            kept: Mutex::default(),
            grown: watch::Sender::new(0),
        }))
    }

    fn kept(&self) -> MutexGuard<'_, [Kept; 2]> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More of a stream. Answers with how many bytes of it are beyond the limit.
    pub fn push(&self, stream: Stream, data: &[u8]) -> usize {
        let mut kept = self.kept();
        let kept = &mut kept[stream as usize];
        let room = self.0.limit.saturating_sub(kept.data.len());
        kept.data.extend_from_slice(&data[..data.len().min(room)]);
        kept.seen += data.len() as u64;
        if room > 0 {
            self.0.grown.send_modify(|n| *n = n.wrapping_add(1));
        }
        data.len().saturating_sub(room)
    }

    /// Begins anew, for a log that is read again from its start. What was streamed stays valid: the same bytes come.
    pub fn reset(&self) {
        *self.kept() = Default::default();
    }

    /// At most `max` of the kept bytes from `offset` on.
    pub fn read(&self, stream: Stream, offset: usize, max: usize) -> Vec<u8> {
        let kept = self.kept();
        let data = &kept[stream as usize].data;
        let from = offset.min(data.len());
        data[from..data.len().min(from.saturating_add(max))].to_vec()
    }

    /// Tells of growth.
    pub fn grown(&self) -> watch::Receiver<u64> {
        self.0.grown.subscribe()
    }

    /// Both streams, `(stdout, stderr)`, as a result carries them.
    pub fn finish(&self) -> (Bounded, Bounded) {
        let take =
            |kept: &Kept| Bounded { data: kept.data.clone(), truncated: kept.seen > kept.data.len() as u64 };
        let kept = self.kept();
        (take(&kept[0]), take(&kept[1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_are_kept_and_the_rest_is_told_of() {
        let capture = Capture::new(5);
        assert_eq!(capture.push(Stream::Stdout, b"abc"), 0);
        assert_eq!(capture.push(Stream::Stdout, b"defg"), 2);
        capture.push(Stream::Stderr, b"12345");
        let (stdout, stderr) = capture.finish();
        assert_eq!(stdout, Bounded { data: b"abcde".to_vec(), truncated: true });
        assert_eq!(stderr, Bounded { data: b"12345".to_vec(), truncated: false });
        assert_eq!(capture.read(Stream::Stdout, 3, 100), b"de");
        assert_eq!(capture.read(Stream::Stdout, 9, 100), b"");
    }

    #[test]
    fn growth_is_told_until_the_bound_and_not_beyond() {
        let capture = Capture::new(2);
        let mut grown = capture.grown();
        grown.mark_unchanged();
        capture.push(Stream::Stdout, b"ab");
        assert!(grown.has_changed().expect("open"));
        grown.mark_unchanged();
        capture.push(Stream::Stdout, b"cd");
        assert!(!grown.has_changed().expect("open"));
    }
}
