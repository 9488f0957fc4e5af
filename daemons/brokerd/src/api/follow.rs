//! What is read piece by piece: results, logs, answers. The same for gRPC and REST.

use codering_core::{Error, JobId, Outcome, TaskKey, TaskResult};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use crate::broker::{self, Broker, LogPiece};

/// Results read from the ledger at once; a page of large ones ends earlier.
const RESULTS_AT_ONCE: u32 = 100;
/// Bytes of a log or an answer in one piece.
pub const PIECE_BYTES: usize = 1 << 20;

/// Recorded results in the order of the tasks; one page is held at a time.
pub fn results(
    broker: Broker,
    job: JobId,
    outcomes: Vec<Outcome>,
) -> impl Stream<Item = Result<TaskResult, Error>> + Send {
    let pages = stream::try_unfold(None, move |after| {
        let (broker, job, outcomes) = (broker.clone(), job.clone(), outcomes.clone());
        async move {
            let page = broker.results_page(&job, &outcomes, after, RESULTS_AT_ONCE).await?;
            let Some((last, _)) = page.last() else { return Ok::<_, Error>(None) };
            let after = Some(*last);
            Ok(Some((page, after)))
        }
    });
    pages.map_ok(|page| stream::iter(page.into_iter().map(|(_, result)| Ok(result)))).try_flatten()
}

/// From where a log is read on.
struct Reading {
    broker: Broker,
    key: TaskKey,
    stream: broker::Stream,
    offset: u64,
    attempt: u32,
    over: bool,
}

/// A task's output from `offset` on; with `follow`, until the task is done. A new attempt begins at 0 again.
pub fn log(
    broker: Broker,
    key: TaskKey,
    stream: broker::Stream,
    offset: u64,
    follow: bool,
) -> impl Stream<Item = Result<LogPiece, Error>> + Send {
    let reading = Reading { broker, key, stream, offset, attempt: 0, over: false };
    stream::try_unfold(reading, move |mut reading| async move {
        while !reading.over {
            let piece = reading.piece().await?;
            let (empty, done) = (piece.data.is_empty(), piece.done);
            reading.over = done || (empty && !follow);
            if !empty || (done && piece.truncated) {
                return Ok(Some((piece, reading)));
            }
            if !reading.over {
                reading.broker.log_changed(&reading.key).await;
            }
        }
        Ok(None)
    })
    .boxed()
}

impl Reading {
    async fn piece(&mut self) -> Result<LogPiece, Error> {
        let mut piece = self.broker.read_log(&self.key, self.stream, self.offset, PIECE_BYTES).await?;
        if self.attempt != 0 && piece.attempt != self.attempt {
            piece = self.broker.read_log(&self.key, self.stream, 0, PIECE_BYTES).await?;
        }
        self.attempt = piece.attempt;
        self.offset = piece.offset + piece.data.len() as u64;
        Ok(piece)
    }
}

/// An answer in pieces.
pub fn pieces(data: Vec<u8>) -> impl Stream<Item = bytes::Bytes> + Send {
    let mut rest = bytes::Bytes::from(data);
    let next = move || (!rest.is_empty()).then(|| rest.split_to(rest.len().min(PIECE_BYTES)));
    stream::iter(std::iter::from_fn(next))
}
