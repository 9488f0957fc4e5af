//! `queue put`: one message, or a stream of them with a bounded number unconfirmed.

use std::{
    io::IsTerminal,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::Args;
use codering_core::{Code, Error, QueueName};
use codering_proto::{
    status::from_status,
    v1::{PutRequest, PutResponse},
};
use serde::Serialize;
use tokio::{
    io::{AsyncBufRead, BufReader},
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;

use super::lines::{Lines, message};
use crate::{context::Context, verbs::complete};

/// Messages sent and not yet confirmed, at most.
const WINDOW: usize = 256;

/// What to put where.
#[derive(Debug, Args)]
pub struct PutArgs {
    /// Which.
    #[arg(add = complete::queues())]
    queue: QueueName,
    /// The message, JSON; without it and without --file, lines are read from standard input.
    message: Option<String>,
    /// One message a line; `-` is standard input.
    #[arg(long, short, value_name = "FILE", conflicts_with = "message")]
    file: Option<PathBuf>,
    /// Pass over the first lines, to go on where an earlier put ended.
    #[arg(long, value_name = "LINES", default_value_t = 0, conflicts_with = "message")]
    skip: u64,
}

/// The answer.
#[derive(Serialize)]
struct Put {
    queue: String,
    put: u64,
}

/// Runs the verb.
pub async fn run(ctx: &Context, args: PutArgs) -> Result<(), Error> {
    let file = args.file.filter(|path| path.as_os_str() != "-");
    let put = match (&args.message, file) {
        (Some(text), _) => {
            // Checked before anything is sent, so that the error is about the text and not about the stream.
            let text = message(text.as_bytes())?;
            stream(ctx, &args.queue, Lines::new(text.replace('\n', " ").as_bytes(), "message"), 0).await?
        }
        (None, Some(path)) => {
            let name = path.display().to_string();
            let opened = tokio::fs::File::open(&path).await;
            let opened =
                opened.map_err(|error| Error::new(Code::InvalidInput, error.to_string()).at(&name))?;
            stream(ctx, &args.queue, Lines::new(BufReader::new(opened), name), args.skip).await?
        }
        (None, None) => {
            if std::io::stdin().is_terminal() {
                ctx.out.note("reading messages from the terminal, one JSON a line; Ctrl-D ends");
            }
            stream(ctx, &args.queue, Lines::new(BufReader::new(tokio::io::stdin()), "-"), args.skip).await?
        }
    };
    let queue = args.queue.to_string();
    ctx.out.one(&Put { queue: queue.clone(), put }, || vec![format!("put      {put} into {queue}")])
}

/// Sends every line and waits until all are confirmed; answers how many.
async fn stream<R: AsyncBufRead + Unpin>(
    ctx: &Context,
    queue: &QueueName,
    mut lines: Lines<R>,
    skip: u64,
) -> Result<u64, Error> {
    let (sender, receiver) = mpsc::channel(WINDOW);
    let free = Arc::new(Semaphore::new(WINDOW));
    // The line of the last message that was confirmed.
    let confirmed_line = AtomicU64::new(skip);
    let (line_sender, mut sent_lines) = mpsc::channel::<u64>(WINDOW);
    let sending = async {
        // Dropped however this ends, which ends the stream.
        let (sender, line_sender) = (sender, line_sender);
        let mut first = true;
        while let Some((number, message)) = lines.next().await? {
            if number <= skip {
                continue;
            }
            let Ok(permit) = free.clone().acquire_owned().await else { break };
            // Given back by the confirmation.
            permit.forget();
            let queue = if first { queue.to_string() } else { String::new() };
            first = false;
            let sent = line_sender.send(number).await.is_ok();
            if !sent || sender.send(PutRequest { queue, message }).await.is_err() {
                // The receiving side ended, and it says why.
                break;
            }
        }
        Ok::<(), Error>(())
    };
    let mut queues = ctx.broker().await?.queues();
    let confirming = async {
        let mut confirmed = 0;
        let mut answers =
            queues.put(ReceiverStream::new(receiver)).await.map_err(|s| from_status(&s))?.into_inner();
        while let Some(PutResponse { .. }) = answers.message().await.map_err(|s| from_status(&s))? {
            confirmed += 1;
            if let Some(line) = sent_lines.recv().await {
                confirmed_line.store(line, Ordering::Relaxed);
            }
            free.add_permits(1);
        }
        // Wakes a sender that waits for room which nobody will give.
        free.close();
        Ok::<u64, Error>(confirmed)
    };
    let (sent, confirmed) = tokio::join!(sending, confirming);
    let line = confirmed_line.load(Ordering::Relaxed);
    let resume = |error: Error| match line {
        0 => error,
        line => {
            let also = if error.hint.is_empty() { String::new() } else { format!("{}; ", error.hint) };
            error.hint(format!("{also}lines to {line} were put; go on after them with --skip {line}"))
        }
    };
    let confirmed = confirmed.map_err(resume)?;
    sent.map_err(resume)?;
    Ok(confirmed)
}
