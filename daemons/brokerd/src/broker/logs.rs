//! The output of running attempts, by byte offset, in files named by their lease token alone. Once a
//! result is recorded, it holds the output, and the file goes.

use std::{
    collections::HashMap,
    io::{ErrorKind, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use codering_core::{Code, Error, LeaseToken, TaskKey, WorkerName, limits::MAX_OUTPUT_BYTES, task::State};
use tokio::{
    fs,
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    sync::watch,
};

use super::{Broker, leases::Held};

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of a task's output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogPiece {
    /// Where it begins.
    pub offset: u64,
    /// At most as much as was asked.
    pub data: Vec<u8>,
    /// Of which attempt.
    pub attempt: u32,
    /// The task is done, and this piece reaches the end.
    pub done: bool,
    /// The stream was longer than its bound.
    pub truncated: bool,
}

#[derive(Debug)]
struct Written {
    /// Bytes in each file; held while one is appended to.
    lengths: tokio::sync::Mutex<[u64; 2]>,
    grown: watch::Sender<u64>,
}

/// The files of running attempts.
#[derive(Debug)]
pub(super) struct LiveLogs {
    dir: PathBuf,
    open: Mutex<HashMap<LeaseToken, Arc<Written>>>,
}

impl LiveLogs {
    /// Makes the directory. What a former process left is removed: a worker sends no byte twice, and the result
    /// will hold all of it.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let fail = |error: std::io::Error| {
            let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            let code = if full { Code::LedgerFull } else { Code::Internal };
            Error::new(code, error.to_string()).at(dir.display().to_string())
        };
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail(error)),
            _ => std::fs::create_dir_all(dir).map_err(fail)?,
        }
        Ok(Self { dir: dir.to_owned(), open: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LeaseToken, Arc<Written>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, token: &LeaseToken, stream: Stream) -> PathBuf {
        let ending = match stream {
            Stream::Stdout => "out",
            Stream::Stderr => "err",
        };
        self.dir.join(format!("{token}.{ending}"))
    }

    fn written(&self, token: &LeaseToken) -> Arc<Written> {
        let new = || Arc::new(Written { lengths: Default::default(), grown: watch::Sender::new(0) });
        self.lock().entry(token.clone()).or_insert_with(new).clone()
    }

    /// Appends what is new of `data`. What begins beyond the end is dropped: a gap is filled by the result.
    pub(super) async fn append(
        &self,
        token: &LeaseToken,
        stream: Stream,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Error> {
        let written = self.written(token);
        let mut lengths = written.lengths.lock().await;
        let length = &mut lengths[stream as usize];
        let end = offset.saturating_add(data.len() as u64).min(MAX_OUTPUT_BYTES);
        if offset > *length || end <= *length {
            return Ok(());
        }
        let from = usize::try_from(*length - offset).unwrap_or(data.len());
        let to = usize::try_from(end - offset).unwrap_or(data.len());
        let path = self.path(token, stream);
        let fail = |error: std::io::Error| {
            Error::new(Code::Internal, format!("live output cannot be kept: {error}"))
        };
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).await.map_err(fail)?;
        let wrote = async {
            file.write_all(&data[from..to]).await?;
            file.flush().await
        };
        if let Err(error) = wrote.await {
            // Half of it may be there, and the next piece goes where this one began.
            let _ = file.set_len(*length).await;
            return Err(fail(error));
        }
        *length = end;
        drop(lengths);
        written.grown.send_modify(|n| *n = n.wrapping_add(1));
        Ok(())
    }

    async fn read(&self, token: &LeaseToken, stream: Stream, offset: u64, max: usize) -> Vec<u8> {
        let read = async {
            let mut file = fs::File::open(self.path(token, stream)).await?;
            file.seek(SeekFrom::Start(offset)).await?;
            let mut data = Vec::new();
            file.take(max as u64).read_to_end(&mut data).await?;
            Ok::<_, std::io::Error>(data)
        };
        // No file yet, or not any more: nothing to read now.
        read.await.unwrap_or_default()
    }

    /// The attempt is over. Its files go whether they are known here or not: output that was on its way when it ended
    /// may have made them since, and whoever wrote it ends it again.
    pub(super) fn end(&self, token: &LeaseToken) {
        let known = self.lock().remove(token);
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Err(error) = std::fs::remove_file(self.path(token, stream))
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(%error, "live output could not be removed");
            }
        }
        if let Some(written) = known {
            written.grown.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    fn grown(&self, token: &LeaseToken) -> watch::Receiver<u64> {
        self.written(token).grown.subscribe()
    }
}

impl Broker {
    /// A piece of a task's output: of the running attempt while it runs, of the result once that is recorded.
    pub async fn read_log(
        &self,
        key: &TaskKey,
        stream: Stream,
        offset: u64,
        max: usize,
    ) -> Result<LogPiece, Error> {
        let task = self.ledger_task(key).await?;
        let attempt = task.progress.attempt;
        if let State::Done(_) = task.progress.state {
            let result = self.ledger.result(key).await?;
            let (all, truncated) = match (result, stream) {
                (Some(result), Stream::Stdout) => (result.stdout, result.stdout_truncated),
                (Some(result), Stream::Stderr) => (result.stderr, result.stderr_truncated),
                (None, _) => (Vec::new(), false),
            };
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(all.len());
            let to = from.saturating_add(max).min(all.len());
            let done = to == all.len();
            return Ok(LogPiece {
                offset: from as u64,
                data: all[from..to].to_vec(),
                attempt,
                done,
                truncated: done && truncated,
            });
        }
        let data = match task.progress.lease() {
            Some(lease) => self.logs.read(&lease.token, stream, offset, max).await,
            None => Vec::new(),
        };
        Ok(LogPiece { offset, data, attempt, done: false, truncated: false })
    }

    /// A lease that ended just before its output was looked at, or written, left what nobody would remove.
    fn end_log_of_the_past(&self, token: &LeaseToken, held: &Held) {
        if held.task.progress.lease().is_none_or(|l| self.leases.get(token, &l.worker).is_none()) {
            self.logs.end(token);
        }
    }

    /// Keeps a piece of a running attempt's output; of one that is over, nothing.
    pub(super) async fn append_log(
        &self,
        worker: &WorkerName,
        token: &LeaseToken,
        stream: Stream,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Error> {
        let Some(held) = self.leases.get(token, worker) else { return Ok(()) };
        if self.settings().reserve.touched().is_some() {
            // The room is for its result, which holds all of it.
            return Ok(());
        }
        let kept = self.logs.append(token, stream, offset, data).await;
        self.end_log_of_the_past(token, &held);
        kept
    }

    /// Returns when there may be more of a running task's output, after a second at the latest.
    pub async fn log_changed(&self, key: &TaskKey) {
        let grown = self.leases.of_task(key).map(|(token, held)| {
            let grown = self.logs.grown(&token);
            self.end_log_of_the_past(&token, &held);
            grown
        });
        let wait = async {
            match grown {
                Some(mut grown) => drop(grown.changed().await),
                None => std::future::pending().await,
            }
        };
        // The bound also covers what is not waited for: a task that is not leased yet.
        let _ = tokio::time::timeout(Duration::from_secs(1), wait).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use codering_core::Outcome;

    use super::{super::tests::rig::*, *};

    #[tokio::test]
    async fn output_that_is_written_while_its_attempt_ends_leaves_no_file() {
        let rig = Rig::new().await;
        let mut worker = rig.worker("w1", 1).await;
        rig.submit(spec(), tasks(1)).await;
        let held = worker.assignment().await;
        let (broker, name, token) = (rig.broker.clone(), worker.session.name().clone(), token(&held));
        // The piece is at its file and not in it yet.
        let written = rig.broker.logs.written(&token);
        let lengths = written.lengths.lock().await;
        let late = {
            let token = token.clone();
            async move { broker.append_log(&name, &token, Stream::Stdout, 0, b"late").await }
        };
        let late = tokio::spawn(late);
        until("the piece waits", async || (Arc::strong_count(&written) > 2).then_some(())).await;
        assert!(worker.report(&held, Outcome::Succeeded, "late").await);
        drop(lengths);
        late.await.unwrap().unwrap();
        let left: Vec<_> = std::fs::read_dir(&rig.broker.logs.dir).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(rig.broker.logs.lock().is_empty());
    }
}
