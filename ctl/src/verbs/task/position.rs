//! How far a log was read, so that a dropped connection loses no byte and doubles none.

use codering_proto::v1::LogChunk;

/// Where one stream of one task's log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The attempt that is being read; 0 while none was seen.
    attempt: u32,
    /// The next byte wanted.
    next: u64,
    /// Where this connection began to read, until its first chunk came.
    asked: Option<u64>,
}

/// What to do with a chunk.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the chunk from this index on.
    Write(usize),
    /// As above, and these bytes before it are gone for good.
    WriteAfterGap(usize, u64),
    /// Another attempt has begun; write the chunk from its start.
    NextAttempt,
    /// All of it was written before.
    Known,
    /// Bytes are missing that the broker may still have: ask again from [`Position::next`].
    AskAgain,
}

impl Position {
    /// Before anything was read.
    pub fn at(offset: u64) -> Self {
        Self { attempt: 0, next: offset, asked: None }
    }

    /// The byte to ask for.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// A connection was made that asked for [`Self::next`].
    pub fn connected(&mut self) {
        self.asked = Some(self.next);
    }

    /// Whether the connection has brought nothing yet.
    pub fn is_silent(&self) -> bool {
        self.asked.is_some()
    }

    /// The task is at `attempt` by now: where that is not the one read, reads it from its start.
    pub fn moved_on(&mut self, attempt: u32) -> bool {
        let moved = self.attempt != 0 && attempt > self.attempt;
        if moved {
            self.attempt = attempt;
            self.next = 0;
        }
        moved
    }

    /// Takes a chunk; the caller does what is answered.
    pub fn take(&mut self, chunk: &LogChunk) -> Step {
        let first = self.asked.take();
        let end = chunk.offset + chunk.data.len() as u64;
        if chunk.attempt < self.attempt {
            return Step::Known;
        }
        if chunk.attempt > self.attempt && self.attempt != 0 {
            self.attempt = chunk.attempt;
            self.next = 0;
            if chunk.offset != 0 {
                return Step::AskAgain;
            }
            self.next = end;
            return Step::NextAttempt;
        }
        self.attempt = chunk.attempt;
        if chunk.offset > self.next {
            // On a fresh connection the broker was asked for exactly this byte and no longer has it.
            if first != Some(self.next) {
                return Step::AskAgain;
            }
            let gone = chunk.offset - self.next;
            self.next = end;
            return Step::WriteAfterGap(0, gone);
        }
        if end <= self.next {
            return Step::Known;
        }
        let from = usize::try_from(self.next - chunk.offset).unwrap_or(usize::MAX);
        self.next = end;
        Step::Write(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(attempt: u32, offset: u64, data: &'static [u8]) -> LogChunk {
        LogChunk { offset, data: data.into(), attempt, truncated: false }
    }

    /// A reader whose broker holds `log` and drops the connection after every `step` chunks.
    fn read_through_drops(log: &[u8], size: usize, overlap: u64, drop_after: usize) -> Vec<u8> {
        let mut position = Position::at(0);
        let mut read = Vec::new();
        while position.next() < log.len() as u64 {
            position.connected();
            let mut offset = position.next().saturating_sub(overlap) as usize;
            for _ in 0..drop_after {
                let end = (offset + size).min(log.len());
                let data = bytes(&log[offset..end]);
                let sent = LogChunk { offset: offset as u64, data, attempt: 1, truncated: false };
                match position.take(&sent) {
                    Step::Write(from) => read.extend_from_slice(&sent.data[from..]),
                    Step::Known => {}
                    other => panic!("{other:?}"),
                }
                offset = end;
            }
        }
        read
    }

    fn bytes<B: From<Vec<u8>>>(data: &[u8]) -> B {
        data.to_vec().into()
    }

    #[test]
    fn a_dropped_connection_loses_and_doubles_no_byte() {
        let log: Vec<u8> = (0..1000u32).map(|n| (n % 251) as u8).collect();
        for (size, overlap, drop_after) in [(7, 0, 1), (7, 0, 5), (64, 10, 2), (1000, 0, 1), (13, 12, 3)] {
            assert_eq!(
                read_through_drops(&log, size, overlap, drop_after),
                log,
                "{size} {overlap} {drop_after}"
            );
        }
    }

    #[test]
    fn bytes_missing_in_the_middle_are_asked_for_again_and_only_then_given_up() {
        let mut position = Position::at(0);
        position.connected();
        assert_eq!(position.take(&chunk(1, 0, b"abc")), Step::Write(0));
        assert_eq!(position.take(&chunk(1, 5, b"fg")), Step::AskAgain);
        assert_eq!(position.next(), 3);
        position.connected();
        assert_eq!(position.take(&chunk(1, 5, b"fg")), Step::WriteAfterGap(0, 2));
        assert_eq!(position.next(), 7);
    }

    #[test]
    fn a_next_attempt_is_read_from_its_first_byte() {
        let mut position = Position::at(0);
        position.connected();
        assert_eq!(position.take(&chunk(1, 0, b"abc")), Step::Write(0));
        assert_eq!(position.take(&chunk(2, 0, b"x")), Step::NextAttempt);
        assert_eq!((position.attempt, position.next()), (2, 1));
        // After a drop the broker answers from byte 1, but of the third attempt.
        position.connected();
        assert_eq!(position.take(&chunk(3, 1, b"z")), Step::AskAgain);
        assert_eq!((position.attempt, position.next()), (3, 0));
        position.connected();
        assert_eq!(position.take(&chunk(3, 0, b"yz")), Step::Write(0));
        assert_eq!(position.take(&chunk(2, 1, b"late")), Step::Known);
    }

    #[test]
    fn a_shorter_next_attempt_that_ended_in_silence_is_not_missed() {
        let mut position = Position::at(0);
        position.connected();
        position.take(&chunk(1, 0, b"a long first attempt"));
        position.connected();
        assert!(position.is_silent());
        assert!(!position.moved_on(1));
        assert!(position.moved_on(2));
        assert_eq!(position.next(), 0);
    }
}
