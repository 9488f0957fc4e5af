//! `task logs`: what a task printed, or prints. A dropped connection is taken up at the byte where it
//! broke; two streams are two readings at once.

use std::{pin::pin, time::Duration};

use clap::{Args, ValueEnum};
use codering_core::{Code, Error, message::text_or_base64};
use codering_proto::{
    status::from_status,
    v1::{self, LogChunk, LogStream, LogsRequest, TaskState},
};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::{
    TaskName,
    position::{Position, Step},
};
use crate::{
    client::Jobs,
    context::Context,
    verbs::{
        complete,
        lost::{FIRST_PAUSE, LONGEST_PAUSE, is_lost},
    },
};

/// What to print.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// JOB/TASK; of the job, any unambiguous beginning.
    #[arg(value_name = "JOB/TASK", add = complete::job_slash())]
    task: TaskName,
    /// Wait for more until the task is done.
    #[arg(long, short)]
    follow: bool,
    /// Only this stream, on stdout; without it, both, each to its own.
    #[arg(long)]
    stream: Option<Stream>,
    /// Begin at this byte of the stream; of stdout, where --stream names none.
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
    /// How long to try to connect again after the connection was lost.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = crate::cli::duration)]
    retry_for: Duration,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A chunk in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    stream: &'a str,
    attempt: u32,
    offset: u64,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    truncated: bool,
}

/// Runs the verb.
pub async fn run(ctx: &Context, args: LogsArgs) -> Result<(), Error> {
    let jobs = ctx.broker().await?.jobs();
    let only = args.stream.or(args.offset.map(|_| Stream::Stdout));
    let reading = |stream, to_stderr| Reading {
        ctx,
        jobs: jobs.clone(),
        task: args.task.clone(),
        stream,
        to_stderr,
        follow: args.follow,
        retry_for: args.retry_for,
        position: Position::at(args.offset.unwrap_or(0)),
        truncated: false,
        silent: None,
    };
    let silent = match only {
        Some(stream) => reading(stream, false).run().await?,
        None => {
            let (mut out, mut err) = (reading(Stream::Stdout, false), reading(Stream::Stderr, true));
            let (out, err) = (pin!(out.run()), pin!(err.run()));
            let (out, err) = futures::future::try_join(out, err).await?;
            out.and(err)
        }
    };
    match silent {
        Some(TaskState::Done) => ctx.out.note("it printed nothing"),
        Some(state) => {
            let stands = if state == TaskState::Running { "runs" } else { "waits" };
            ctx.out.note(format!("it {stands}, and has printed nothing yet (wait for it: --follow)"));
        }
        None => {}
    }
    Ok(())
}

/// One stream of one task's log on its way to the terminal.
struct Reading<'a> {
    ctx: &'a Context,
    jobs: Jobs,
    task: TaskName,
    stream: Stream,
    to_stderr: bool,
    follow: bool,
    retry_for: Duration,
    position: Position,
    truncated: bool,
    /// Where the task stands, as long as nothing of it was written.
    silent: Option<TaskState>,
}

/// Why a connection ended.
enum Ended {
    /// The log is at its end.
    Done,
    /// There may be more: ask from the position.
    Again,
}

impl Reading<'_> {
    /// Reads to the end; answers where the task stands if there was nothing to write.
    async fn run(&mut self) -> Result<Option<TaskState>, Error> {
        let mut pause = FIRST_PAUSE;
        let mut lost_at: Option<Instant> = None;
        loop {
            let before = self.position.clone();
            match self.once().await {
                Ok(Ended::Done) => {
                    self.end();
                    return Ok(self.silent);
                }
                Ok(Ended::Again) => lost_at = None,
                Err(status) if is_lost(&status) => {
                    if self.position.next() != before.next() {
                        (lost_at, pause) = (None, FIRST_PAUSE);
                    }
                    let since = *lost_at.get_or_insert_with(Instant::now);
                    if since.elapsed() + pause > self.retry_for {
                        return Err(self.given_up(&status));
                    }
                    let at = self.position.next();
                    self.ctx
                        .out
                        .note(format!("the connection was lost; taking {} up at byte {at}", self.name()));
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(status) => return Err(from_status(&status)),
            }
        }
    }

    /// Reads one connection to its end.
    async fn once(&mut self) -> Result<Ended, Status> {
        let request = LogsRequest {
            job_id: self.task.job.clone(),
            task_id: self.task.task.clone(),
            stream: match self.stream {
                Stream::Stdout => LogStream::Stdout,
                Stream::Stderr => LogStream::Stderr,
            } as i32,
            offset: self.position.next(),
            follow: self.follow,
        };
        self.position.connected();
        let mut chunks = self.jobs.logs(request).await?.into_inner();
        while let Some(chunk) = chunks.message().await? {
            match self.position.take(&chunk) {
                Step::Write(from) => self.write(&chunk, from)?,
                Step::WriteAfterGap(from, gone) => {
                    self.ctx.out.note(format!("{gone} bytes of {} are no longer kept", self.name()));
                    self.write(&chunk, from)?;
                }
                Step::NextAttempt => {
                    self.ctx.out.note(format!("attempt {} begins", chunk.attempt));
                    self.write(&chunk, 0)?;
                }
                Step::Known => {}
                Step::AskAgain => return Ok(Ended::Again),
            }
            self.truncated |= chunk.truncated;
        }
        self.whether_done().await
    }

    /// A stream that ended is at the log's end only if the task is where the reading is.
    async fn whether_done(&mut self) -> Result<Ended, Status> {
        if !self.follow && !self.position.is_silent() {
            return Ok(Ended::Done);
        }
        let request = v1::GetTaskRequest { job_id: self.task.job.clone(), task_id: self.task.task.clone() };
        let task = self.jobs.get_task(request).await?.into_inner();
        self.silent = (self.position.next() == 0).then(|| task.state());
        if self.position.moved_on(task.attempt) {
            self.ctx.out.note(format!("attempt {} begins", task.attempt));
            return Ok(Ended::Again);
        }
        if self.follow && task.state() != TaskState::Done {
            // The broker ended it without an error, as when it stops.
            return Err(Status::unavailable("the log ended before the task did"));
        }
        Ok(Ended::Done)
    }

    fn write(&self, chunk: &LogChunk, from: usize) -> Result<(), Status> {
        let data = &chunk.data[from.min(chunk.data.len())..];
        let (text, encoding) = text_or_base64(data);
        let shown = || Shown {
            stream: self.name(),
            attempt: chunk.attempt,
            offset: chunk.offset + from as u64,
            text,
            encoding,
            truncated: chunk.truncated,
        };
        let written = self.ctx.out.chunk(shown, data, self.to_stderr);
        written.map_err(|error| codering_proto::status::to_status(&error))
    }

    fn name(&self) -> &'static str {
        match self.stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    fn end(&self) {
        if self.truncated {
            self.ctx.out.note(format!(
                "{} was longer than its bound, the rest is not kept (raise the job's limits.output)",
                self.name()
            ));
        }
    }

    fn given_up(&self, status: &Status) -> Error {
        let mut error = from_status(status);
        error.code = Code::BrokerUnreachable;
        error.hint(format!(
            "go on later: coderingctl task logs {}/{} --stream {} --offset {}",
            self.task.job,
            self.task.task,
            self.name(),
            self.position.next()
        ))
    }
}
