//! The one writer. Operations arrive on a bounded channel and share a transaction, so that one fsync
//! serves up to 256 of them; each is answered after COMMIT.
//!
//! None of a batch has been answered while another of it runs, so any order among them is right.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{batch::Batch, change, error};
use crate::ledger::{Figures, LedgerError, Result, Swapped, TaskChange};

/// Operations of one transaction.
const BATCH: usize = 256;
/// What they may weigh together; a row weighs 1, and so does every 64 KiB.
const BATCH_WEIGHT: usize = 4_000;
/// How long a batch waits for as many operations as the last one had, if they were [`MANY`]: each commit costs, and their callers come
/// back. Where they were few, somebody would wait for hardly anybody.
const LINGER: Duration = Duration::from_millis(2);
const MANY: usize = 16;
/// Operations that wait for the writer before callers wait themselves.
const WAITING: usize = 1_024;
/// How long a caller waits for room among them.
const ROOM_WITHIN: Duration = Duration::from_secs(10);
/// How long it waits for its answer then; more than SQLite's busy timeout and a slow disk's fsyncs.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// An operation with its data, written once or, when another of its batch fails, twice.
type Run<D, T> = for<'a> fn(&'a D, &'a mut Batch) -> BoxFuture<'a, sqlx::Result<T>>;

/// Any operation but a swap.
pub(super) trait Operation: Send {
    fn weight(&self) -> usize;
    fn run<'a>(&'a mut self, batch: &'a mut Batch) -> BoxFuture<'a, sqlx::Result<()>>;
    fn answer(self: Box<Self>, verdict: Result<()>);
}

struct Single<D, T> {
    data: D,
    weight: usize,
    run: Run<D, T>,
    value: Option<T>,
    reply: oneshot::Sender<Result<T>>,
}

impl<D: Send + Sync, T: Send> Operation for Single<D, T> {
    fn weight(&self) -> usize {
        self.weight
    }

    fn run<'a>(&'a mut self, batch: &'a mut Batch) -> BoxFuture<'a, sqlx::Result<()>> {
        Box::pin(async move {
            self.value = Some((self.run)(&self.data, batch).await?);
            Ok(())
        })
    }

    fn answer(self: Box<Self>, verdict: Result<()>) {
        let never_ran = || LedgerError::Failed("the operation was not carried out".into());
        // A caller that went away does not want to know.
        let Self { value, reply, .. } = *self;
        let _ = reply.send(verdict.and_then(|()| value.ok_or_else(never_ran)));
    }
}

/// A swap and what became of it.
pub(super) struct Swap {
    pub(super) change: TaskChange,
    pub(super) swapped: Swapped,
    reply: oneshot::Sender<Result<Swapped>>,
}

enum Write {
    Swap(Box<Swap>),
    Other(Box<dyn Operation>),
}

impl Write {
    fn weight(&self) -> usize {
        match self {
            Self::Swap(swap) => 1 + change::bytes(&swap.change) / 65_536,
            Self::Other(other) => other.weight(),
        }
    }

    fn answer(self, verdict: Result<()>) {
        match self {
            Self::Swap(swap) => {
                let _ = swap.reply.send(verdict.map(|()| swap.swapped));
            }
            Self::Other(other) => other.answer(verdict),
        }
    }
}

enum Message {
    Write(Write),
    Close,
}

/// Where callers hand their operations in.
pub(super) struct Writer {
    messages: mpsc::Sender<Message>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    operations: AtomicU64,
    commits: AtomicU64,
}

impl Writer {
    /// Starts the writer on an open connection.
    pub(super) fn start(
        path: PathBuf,
        options: SqliteConnectOptions,
        connection: SqliteConnection,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (messages, incoming) = mpsc::channel(WAITING);
        let counters = Arc::new(Counters::default());
        let writing = Writing {
            path,
            options,
            batch: Some(Batch::new(connection)),
            counters: counters.clone(),
            last: 1,
        };
        (Self { messages, counters }, tokio::spawn(writing.serve(incoming)))
    }

    /// What was written so far.
    pub(super) fn figures(&self) -> Figures {
        Figures {
            operations: self.counters.operations.load(Relaxed),
            commits: self.counters.commits.load(Relaxed),
        }
    }

    /// Swaps.
    pub(super) async fn swap(&self, change: TaskChange) -> Result<Swapped> {
        let (reply, answer) = oneshot::channel();
        self.hand_in(Write::Swap(Box::new(Swap { change, swapped: Swapped::No, reply }))).await?;
        answered(answer).await
    }

    /// Carries out `run`, which weighs as much as one row.
    pub(super) async fn write<D, T>(&self, data: D, run: Run<D, T>) -> Result<T>
    where
        D: Send + Sync + 'static,
        T: Send + 'static,
    {
        self.write_heavy(data, 1, run).await
    }

    /// Carries out `run`, which weighs as much as so many rows.
    pub(super) async fn write_heavy<D, T>(&self, data: D, weight: usize, run: Run<D, T>) -> Result<T>
    where
        D: Send + Sync + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.hand_in(Write::Other(Box::new(Single { data, weight, run, value: None, reply }))).await?;
        answered(answer).await
    }

    async fn hand_in(&self, write: Write) -> Result<()> {
        use mpsc::error::SendTimeoutError::{Closed, Timeout};
        self.messages.send_timeout(Message::Write(write), ROOM_WITHIN).await.map_err(|error| match error {
            Timeout(_) => LedgerError::Failed("too many writes wait for the disk; try again shortly".into()),
            Closed(_) => LedgerError::Failed("it is closed".into()),
        })
    }

    /// Lets the writer finish what was handed in, and end.
    pub(super) async fn close(&self) {
        // An error says that it has ended already.
        let _ = self.messages.send(Message::Close).await;
    }
}

async fn answered<T>(answer: oneshot::Receiver<Result<T>>) -> Result<T> {
    let unknown = |what: &str| Err(LedgerError::Unknown(what.to_owned()));
    match timeout(ANSWER_WITHIN, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => unknown("its writer ended"),
        Err(_) => unknown("the disk did not answer within 60 s"),
    }
}

/// The writer's own side.
struct Writing {
    path: PathBuf,
    options: SqliteConnectOptions,
    /// `None` after an error that leaves the connection in doubt.
    batch: Option<Batch>,
    counters: Arc<Counters>,
    /// Operations of the last batch: as many callers may be coming back.
    last: usize,
}

impl Writing {
    async fn serve(mut self, mut incoming: mpsc::Receiver<Message>) {
        while let Some(first) = incoming.recv().await {
            let mut writes = Vec::with_capacity(BATCH);
            if self.collect(first, &mut incoming, &mut writes).await {
                incoming.close();
            }
            self.last = writes.len();
            if !writes.is_empty() {
                self.write(writes).await;
            }
        }
        if let Some(batch) = self.batch.take()
            && let Err(error) = batch.connection.close().await
        {
            tracing::warn!(file = %self.path.display(), %error, "the ledger did not close cleanly");
        }
    }

    /// Fills a batch; `true` when it is to be the last.
    async fn collect(
        &self,
        first: Message,
        incoming: &mut mpsc::Receiver<Message>,
        writes: &mut Vec<Write>,
    ) -> bool {
        let deadline = Instant::now() + LINGER;
        let mut weight = 0;
        let mut next = Some(first);
        while let Some(message) = next.take() {
            match message {
                Message::Close => return true,
                Message::Write(write) => {
                    weight += write.weight();
                    writes.push(write);
                }
            }
            if writes.len() >= BATCH || weight >= BATCH_WEIGHT {
                break;
            }
            next = match incoming.try_recv() {
                Ok(message) => Some(message),
                Err(_) if writes.len() < self.last && self.last >= MANY => {
                    timeout_at(deadline, incoming.recv()).await.ok().flatten()
                }
                Err(_) => None,
            };
        }
        false
    }

    async fn write(&mut self, mut writes: Vec<Write>) {
        self.counters.operations.fetch_add(writes.len() as u64, Relaxed);
        if writes.len() > 1 {
            match self.transact(&mut writes).await {
                // One of them may be to blame; by itself each can fail only itself.
                Err(Fault::Operation(_)) => {}
                verdict => return answer_all(writes, verdict.map_err(Fault::told)),
            }
        }
        let mut rest = writes.into_iter();
        while let Some(write) = rest.next() {
            let mut alone = vec![write];
            let verdict = self.transact(&mut alone).await;
            if matches!(verdict, Err(Fault::Begin(_))) {
                alone.extend(rest.by_ref());
            }
            answer_all(alone, verdict.map_err(Fault::told));
        }
    }

    /// All of it in one transaction, or nothing.
    async fn transact(&mut self, writes: &mut [Write]) -> std::result::Result<(), Fault> {
        let batch = self.connected().await.map_err(Fault::Begin)?;
        batch.begin().await.map_err(Fault::Begin)?;
        let fault = match carry_out(batch, writes).await {
            Err(error) => Fault::Operation(error),
            Ok(()) => match batch.commit().await {
                Ok(()) => {
                    self.counters.commits.fetch_add(1, Relaxed);
                    return Ok(());
                }
                Err(error) => Fault::Commit(error),
            },
        };
        // After a failed COMMIT there may be no transaction left to roll back.
        let rolled_back = batch.roll_back().await.is_ok();
        if !rolled_back || matches!(fault, Fault::Commit(_)) || error::is_of_disk(fault.error()) {
            self.batch = None;
        }
        tracing::warn!(file = %self.path.display(), error = %fault.error(), "a ledger transaction was undone");
        Err(fault)
    }

    async fn connected(&mut self) -> sqlx::Result<&mut Batch> {
        let batch = match self.batch.take() {
            Some(batch) => batch,
            None => Batch::new(self.options.connect().await?),
        };
        Ok(self.batch.insert(batch))
    }
}

async fn carry_out(batch: &mut Batch, writes: &mut [Write]) -> sqlx::Result<()> {
    let mut swaps = Vec::new();
    for write in writes {
        match write {
            Write::Swap(swap) => swaps.push(&mut **swap),
            Write::Other(other) => other.run(batch).await?,
        }
    }
    change::swap(batch, swaps).await?;
    batch.flush().await
}

/// Where a transaction failed.
enum Fault {
    Begin(sqlx::Error),
    Operation(sqlx::Error),
    Commit(sqlx::Error),
}

impl Fault {
    fn error(&self) -> &sqlx::Error {
        let (Self::Begin(error) | Self::Operation(error) | Self::Commit(error)) = self;
        error
    }

    fn told(self) -> LedgerError {
        match self {
            Self::Begin(error) | Self::Operation(error) => error::failed(error),
            Self::Commit(error) => error::of_commit(&error),
        }
    }
}

fn answer_all(writes: Vec<Write>, verdict: Result<()>) {
    for write in writes {
        write.answer(verdict.clone());
    }
}
