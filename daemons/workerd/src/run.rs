//! A started command: its output drained, its input fed, its time kept, its end awaited.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use codering_core::{LeaseToken, Outcome, time::Millis, units::show_duration};
use codering_kit::{
    clock::now,
    fault::{self, Point},
};
use futures::{StreamExt, stream::BoxStream};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    attempt::{Ended, Fault},
    broker::Broker,
    held::{Held, Stop},
    leases,
    output::Capture,
    sandbox::{Control, Exit, Piece, Record, Running, Unavailable, docker::read_again},
    worker::Worker,
};

/// For the rest of the output, once the command has ended.
const DRAIN: Duration = Duration::from_secs(15);
/// Bytes beyond its limit that a command gets rid of in a second; then its writes wait. Docker copies each three times, and
/// at full speed that takes the processor from everybody else's tasks.
const THROWN_AWAY_A_SECOND: f64 = 16e6;
/// Between tries to kill a container.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// Then it is left to the orphans' sweep.
const KILLS: u32 = 10;

/// What goes to the standard input.
pub(crate) enum Feed {
    /// None.
    Nothing,
    /// The task's own.
    Bytes(Vec<u8>),
    /// The job's results, from the broker.
    Results(Broker, LeaseToken),
}

/// Ends a task with its owner.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is awaited of a command.
pub(crate) struct Order<'a> {
    /// Whose attempt it is.
    pub worker: &'a Arc<Worker>,
    /// What goes to its standard input.
    pub feed: Feed,
    /// When it is killed.
    pub until: Instant,
    /// What it was started with.
    pub record: &'a Record,
    /// A former process started it, so that what it wrote meanwhile is only in Docker's log.
    pub adopted: bool,
}

/// Stays with a command until it has ended, and removes its container.
pub(crate) async fn supervise(
    running: Running,
    held: &Arc<Held>,
    order: Order<'_>,
) -> Result<(Ended, Option<Exit>), Fault> {
    let (control, tasks) = (running.control.clone(), order.worker.tasks.clone());
    let ended = watch(running, held, order).await;
    if !matches!(ended, Err(Fault::Detached)) {
        let id = held.container();
        // Its room is free again before Docker is done with it; a stop waits for it.
        tasks.spawn(async move {
            if let Err(e) = control.remove().await {
                tracing::warn!(container = id, "left for the next sweep: {e}");
            }
            fault::reached(Point::ContainerRemoved);
        });
    }
    ended
}

async fn watch(running: Running, held: &Arc<Held>, order: Order<'_>) -> Result<(Ended, Option<Exit>), Fault> {
    let Running { output, stdin, control, .. } = running;
    let drained = tokio::spawn(drain(output, held.capture.clone()));
    let _drained = AbortOnDrop(drained.abort_handle());
    if stdin.is_none() {
        // At once: where this process is to end in this moment, the next one can take it up.
        held.fed();
    }
    let (fed, mut trouble) = tokio::sync::oneshot::channel();
    let feeding = tokio::spawn(feed_all(stdin, order.feed, held.clone(), fed));
    let _feeding = AbortOnDrop(feeding.abort_handle());
    let mut input_over = false;
    let wait = control.wait();
    tokio::pin!(wait);
    let (ended, exit) = loop {
        tokio::select! {
            biased;
            exit = &mut wait => {
                let exit = exit?;
                break (Ended::by(exit, order.record.memory_bytes), Some(exit));
            }
            why = held.stopped() => {
                if why == Stop::Detach && held.is_fed() {
                    return Err(Fault::Detached);
                }
                end(control.as_ref()).await?;
                return Err(Fault::Stopped(why));
            }
            () = tokio::time::sleep_until(order.until) => {
                let paused = control.paused().await;
                end(control.as_ref()).await?;
                if paused {
                    let why = "the container was paused through Docker by somebody else until its time was over";
                    return Err(Fault::Ours(why.into()));
                }
                let limit = show_duration(order.record.timeout_ms);
                let message = format!("it ran past its limit of {limit} and was killed");
                break (Ended::of(Outcome::TimedOut, message), None);
            }
            went = &mut trouble, if !input_over => {
                input_over = true;
                if let Ok(Err(why)) = went {
                    end(control.as_ref()).await?;
                    return Err(Fault::Ours(why));
                }
                // From now on another process could take the container up.
                leases::write(order.worker);
            }
        }
    };
    let drained = drained_within(drained).await;
    // A connection to Docker that breaks looks like an end of the output, only too early.
    let early = |at: &Millis| exit.is_some_and(|exit| *at < exit.finished_at);
    if order.adopted || drained.as_ref().map_or(true, early) {
        again(control.as_ref(), &held.capture).await?;
    }
    Ok((ended, exit))
}

async fn drained_within(
    drained: tokio::task::JoinHandle<Result<Millis, Unavailable>>,
) -> Result<Millis, Unavailable> {
    match tokio::time::timeout(DRAIN, drained).await {
        Ok(Ok(done)) => done,
        Ok(Err(e)) => Err(Unavailable(e.to_string())),
        Err(_) => Err(Unavailable("the output did not end with the command".into())),
    }
}

/// Takes the output from Docker's log, from its beginning.
async fn again(control: &dyn Control, capture: &Capture) -> Result<(), Fault> {
    capture.reset();
    let whole = read_again(control, |(stream, data)| _ = capture.push(stream, &data)).await?;
    if whole {
        return Ok(());
    }
    Err(Fault::Ours("the output was interrupted, and was longer than the log to read it again from".into()))
}

/// Answers with when it ended.
async fn drain(
    mut output: BoxStream<'static, Result<Piece, Unavailable>>,
    capture: Capture,
) -> Result<Millis, Unavailable> {
    while let Some(piece) = output.next().await {
        let (stream, data) = piece?;
        let thrown_away = capture.push(stream, &data);
        if thrown_away > 0 {
            tokio::time::sleep(Duration::from_secs_f64(thrown_away as f64 / THROWN_AWAY_A_SECOND)).await;
        }
    }
    Ok(now())
}

/// Kills it and sees it end.
async fn end(control: &dyn Control) -> Result<Exit, Unavailable> {
    let mut last = None;
    for _ in 0..KILLS {
        if let Err(e) = control.kill().await {
            last = Some(e);
            tokio::time::sleep(KILL_AGAIN).await;
            continue;
        }
        fault::reached(Point::ContainerKilled);
        if let Ok(exit) = tokio::time::timeout(KILL_AGAIN * 5, control.wait()).await {
            return exit;
        }
    }
    Err(last.unwrap_or_else(|| Unavailable("the container does not end".into())))
}

async fn feed_all(
    stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    feed: Feed,
    held: Arc<Held>,
    done: tokio::sync::oneshot::Sender<Result<(), String>>,
) {
    let Some(mut stdin) = stdin else {
        let _ = done.send(Ok(()));
        return;
    };
    let fed = match feed {
        Feed::Nothing => Ok(()),
        Feed::Bytes(bytes) => {
            write(&mut stdin, &bytes).await;
            Ok(())
        }
        Feed::Results(broker, token) => feed_results(&mut stdin, &broker, &token).await,
    };
    if fed.is_ok() {
        // The command may have closed its end already.
        let _ = stdin.shutdown().await;
        held.fed();
    }
    let _ = done.send(fed);
}

/// `false`: the command does not read any more, which is its own affair.
async fn write(stdin: &mut Pin<Box<dyn AsyncWrite + Send>>, bytes: &[u8]) -> bool {
    stdin.write_all(bytes).await.is_ok()
}

async fn feed_results(
    stdin: &mut Pin<Box<dyn AsyncWrite + Send>>,
    broker: &Broker,
    token: &LeaseToken,
) -> Result<(), String> {
    let mut input = broker.input(token).await?;
    loop {
        let chunk: Option<Bytes> = input
            .next()
            .await
            .transpose()
            .map_err(|e: String| format!("the results could not be read to their end: {e}"))?;
        match chunk {
            None => return Ok(()),
            Some(chunk) => {
                if !write(stdin, &chunk).await {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use codering_core::{JobId, TaskId};
    use futures::stream;

    use super::*;
    use crate::{config::File, metrics::Metrics, output::Stream, worker::Work};

    /// A container that runs until it is killed.
    #[derive(Default)]
    struct Sleeper(AtomicBool);

    #[async_trait::async_trait]
    impl Control for Sleeper {
        async fn wait(&self) -> Result<Exit, Unavailable> {
            std::future::pending().await
        }

        async fn kill(&self) -> Result<(), Unavailable> {
            self.0.store(true, Ordering::Relaxed);
            Err(Unavailable("not now".into()))
        }

        async fn paused(&self) -> bool {
            false
        }

        async fn recorded(
            &self,
        ) -> Result<(BoxStream<'static, Result<Piece, Unavailable>>, u64), Unavailable> {
            Ok((stream::empty().boxed(), 0))
        }

        async fn remove(&self) -> Result<(), Unavailable> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_that_was_started_in_the_moment_of_a_stop_is_left_to_the_next_process() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = File { data_dir: Some(directory.path().to_owned()), ..File::default() };
        let channel = tonic::transport::Endpoint::from_static("http://localhost:1").connect_lazy();
        let metrics = Metrics::new(&mut Default::default());
        let name = "w".parse().expect("valid");
        let (worker, _events) =
            Worker::new(name, file.check().expect("valid"), Broker::new(channel), Work::Simulated, metrics)
                .expect("a worker");
        let held = Held::new(
            LeaseToken::from_bytes([1; 16]),
            "p".parse().expect("valid"),
            JobId::at(1_763_722_560_000, 1),
            TaskId::new("1").expect("valid"),
            1,
            1000,
            Duration::from_secs(30),
            Instant::now() + Duration::from_secs(30),
        );
        held.stop(Stop::Detach);
        let control = Arc::new(Sleeper::default());
        let output = stream::pending().boxed();
        let running = Running { id: "c".into(), output, stdin: None, control: control.clone() };
        let until = Instant::now() + Duration::from_secs(60);
        let record = Record::default();
        let order = Order { worker: &worker, feed: Feed::Nothing, until, record: &record, adopted: false };
        assert_eq!(supervise(running, &held, order).await, Err(Fault::Detached));
        assert!(!control.0.load(Ordering::Relaxed), "it was killed");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_command_writes_beyond_its_limit_goes_slower_and_what_is_kept_does_not() {
        let pieces = |count| stream::repeat(Bytes::from(vec![b'x'; 1000])).take(count);
        let write = async |count, limit| {
            let began = tokio::time::Instant::now();
            let output = pieces(count).map(|piece| Ok((Stream::Stdout, piece))).boxed();
            drain(output, Capture::new(limit)).await.expect("an end");
            began.elapsed().as_secs_f64()
        };
        assert!(write(8000, 8_000_000).await < 0.1);
        assert!(write(8000, 1000).await > 8e6 / THROWN_AWAY_A_SECOND);
    }
}
