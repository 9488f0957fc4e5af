//! `queue`: list, create, put, get, subscribe, purge, delete, rebuild, and the dead letters.

mod dead;
mod lines;
mod put;

use std::time::Duration;

use clap::{ArgAction, Args, Subcommand};
use codering_core::{Code, Error, ProjectName, QueueName, ids::shown};
use codering_proto::{
    status::from_status,
    v1::{self, QueueMessage},
};
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::{
    client::{Queues, said},
    context::Context,
    verbs::{
        complete,
        lost::{FIRST_PAUSE, LONGEST_PAUSE, is_lost},
    },
};

/// For how long a lost connection is tried again.
const GIVE_UP: Duration = Duration::from_secs(300);

/// Queues of messages, each JSON; a project's own are NAME.todo, NAME.done and NAME.dead.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List queues with what waits in them.
    #[command(after_help = "Examples:\n  \
        coderingctl queue list\n  \
        coderingctl queue list --project demo --output json | jq '.[].ready'")]
    List {
        /// Only of this project.
        #[arg(long, short, add = complete::projects())]
        project: Option<ProjectName>,
    },
    /// Create a queue; it is no error where there is one.
    #[command(after_help = "Examples:\n  \
        coderingctl queue create demo.mail\n  \
        coderingctl queue create demo.mail --output json | jq .created")]
    Create {
        /// PROJECT.NAME; a bare NAME belongs to the project `default`.
        queue: QueueName,
    },
    /// Put messages into a queue: one, or a line each from a file or standard input.
    #[command(after_help = "Examples:\n  \
        coderingctl queue put demo.mail '{\"to\": \"ann\"}'\n  \
        coderingctl queue put demo.mail --file messages.jsonl")]
    Put(put::PutArgs),
    /// Take one message out of a queue and print it; exits with 3 where the queue is empty.
    #[command(after_help = "Examples:\n  \
        coderingctl queue get demo.done | jq .outcome\n  \
        while coderingctl queue get demo.mail >> mail.jsonl; do :; done")]
    Get {
        /// Which.
        #[arg(add = complete::queues())]
        queue: QueueName,
    },
    /// Take messages out of a queue as they come and print a line each, until Ctrl-C.
    #[command(after_help = "Examples:\n  \
        coderingctl queue subscribe demo.done | jq --unbuffered .task_id\n  \
        coderingctl queue subscribe demo.mail --count 10 > mail.jsonl")]
    Subscribe {
        /// Which.
        #[arg(add = complete::queues())]
        queue: QueueName,
        /// End after this many.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// Throw away all that waits in a queue.
    #[command(after_help = "Examples:\n  \
        coderingctl queue purge demo.mail\n  \
        coderingctl queue purge demo.done --yes")]
    Purge(Doomed),
    /// Delete a queue and what waits in it.
    #[command(after_help = "Examples:\n  \
        coderingctl queue delete demo.mail\n  \
        coderingctl queue delete demo.mail --yes")]
    Delete(Doomed),
    /// Fill a project's queues again from the ledger, where the queues lost messages.
    ///
    /// The broker finds lost messages by itself; this is for those who do not want to wait. A task is run once, however
    /// often it is published. Recorded results are put on the done queue again, those too that were read before.
    #[command(after_help = "Examples:\n  \
        coderingctl queue rebuild demo\n  \
        coderingctl queue rebuild demo --output json | jq .tasks")]
    Rebuild {
        /// Which.
        #[arg(add = complete::projects())]
        project: ProjectName,
    },
    /// The messages of a project's todo queue that could not be made a task.
    #[command(subcommand)]
    Dead(dead::Verb),
}

/// A queue about to lose its messages.
#[derive(Debug, Args)]
pub struct Doomed {
    /// Which.
    #[arg(add = complete::queues())]
    queue: QueueName,
    /// Do not ask.
    #[arg(long, short, action = ArgAction::SetTrue)]
    yes: bool,
}

/// Runs the verb.
pub async fn run(ctx: &Context, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::List { project } => list(ctx, project).await,
        Verb::Create { queue } => {
            let request = v1::CreateQueueRequest { name: queue.to_string() };
            let answer = said(ctx.broker().await?.queues().create(request).await)?;
            let how = if answer.created { "created " } else { "was there" };
            ctx.out.one(&answer, || vec![format!("{how}  {queue}")])
        }
        Verb::Put(args) => put::run(ctx, args).await,
        Verb::Get { queue } => get(ctx, queue).await,
        Verb::Subscribe { queue, count } => subscribe(ctx, queue, count.unwrap_or(0)).await,
        Verb::Purge(Doomed { queue, yes }) => {
            ctx.confirm(&format!("throw away {} of {queue}?", what_waits(ctx, &queue).await?), yes)?;
            let request = v1::PurgeQueueRequest { name: queue.to_string() };
            let answer = said(ctx.broker().await?.queues().purge(request).await)?;
            ctx.out.one(&answer, || vec![format!("purged   {} messages of {queue}", answer.purged)])
        }
        Verb::Delete(Doomed { queue, yes }) => {
            ctx.confirm(&format!("delete {queue} with {}?", what_waits(ctx, &queue).await?), yes)?;
            let request = v1::DeleteQueueRequest { name: queue.to_string() };
            said(ctx.broker().await?.queues().delete(request).await)?;
            ctx.out.note(format!("deleted  {queue}"));
            Ok(())
        }
        Verb::Rebuild { project } => {
            let request = v1::RebuildQueuesRequest { project: project.into() };
            let answer = said(ctx.broker().await?.queues().rebuild(request).await)?;
            ctx.out.one(&answer, || {
                let v1::RebuildQueuesResponse { project, tasks, results } = &answer;
                vec![format!("rebuilt  {project}: {tasks} tasks and {results} results are published again")]
            })
        }
        Verb::Dead(verb) => dead::run(ctx, verb).await,
    }
}

async fn list(ctx: &Context, project: Option<ProjectName>) -> Result<(), Error> {
    let request = v1::ListQueuesRequest { project: project.map(String::from).unwrap_or_default() };
    let answer = said(ctx.broker().await?.queues().list(request).await)?;
    if answer.queues.is_empty() {
        ctx.out.note("there is no queue yet: coderingctl project create NAME makes the first three");
    }
    ctx.out.list(&answer.queues, &["QUEUE", "PROJECT", "READY", "UNACKED"], |queue| {
        vec![queue.name.clone(), queue.project.clone(), queue.ready.to_string(), queue.unacked.to_string()]
    })?;
    ctx.out.note(format!("backend: {}", answer.backend));
    Ok(())
}

/// `12 messages`, which also says early that there is no such queue.
async fn what_waits(ctx: &Context, queue: &QueueName) -> Result<String, Error> {
    let request = v1::ListQueuesRequest { project: queue.project().into() };
    let queues = said(ctx.broker().await?.queues().list(request).await)?.queues;
    match queues.iter().find(|found| found.name == queue.as_str()) {
        Some(found) => Ok(format!("{} messages", found.ready)),
        None => Err(Error::new(Code::QueueNotFound, format!("there is no queue {queue}"))
            .hint("all of them: coderingctl queue list")),
    }
}

async fn get(ctx: &Context, queue: QueueName) -> Result<(), Error> {
    let request = v1::GetMessageRequest { queue: queue.to_string() };
    match said(ctx.broker().await?.queues().get(request).await)?.message {
        Some(taken) => print(ctx, &taken),
        None => {
            ctx.out.note(format!(
                "{queue} is empty (wait for the next: coderingctl queue subscribe {queue} --count 1)"
            ));
            Err(ctx.quietly(Code::NotFound))
        }
    }
}

async fn subscribe(ctx: &Context, queue: QueueName, count: u64) -> Result<(), Error> {
    let mut queues = ctx.broker().await?.queues();
    if count == 0 {
        ctx.out.note(format!("taking messages out of {queue} as they come; Ctrl-C ends"));
    }
    let mut taken = 0;
    let mut pause = FIRST_PAUSE;
    let mut lost_at: Option<Instant> = None;
    loop {
        let before = taken;
        let left = count.saturating_sub(taken);
        let request = v1::SubscribeRequest { queue: queue.to_string(), count: left };
        let status = match take(ctx, &mut queues, request, &mut taken).await? {
            Ok(()) if count != 0 && taken >= count => return Ok(()),
            // A broker that stops ends the stream without an error.
            Ok(()) => Status::unavailable("the broker ended the subscription"),
            Err(status) if is_lost(&status) => status,
            Err(status) => return Err(from_status(&status)),
        };
        if taken > before {
            (pause, lost_at) = (FIRST_PAUSE, None);
        }
        if lost_at.is_none() {
            ctx.out.note("the connection was lost; connecting again");
        }
        if lost_at.get_or_insert_with(Instant::now).elapsed() > GIVE_UP {
            return Err(from_status(&status));
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Prints the messages of one connection; the inner error is the connection's.
async fn take(
    ctx: &Context,
    queues: &mut Queues,
    request: v1::SubscribeRequest,
    taken: &mut u64,
) -> Result<Result<(), Status>, Error> {
    let count = request.count;
    let mut messages = match queues.subscribe(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let mut here = 0;
    loop {
        match messages.message().await {
            Ok(Some(message)) => {
                print(ctx, &message)?;
                *taken += 1;
                here += 1;
                if here == count {
                    return Ok(Ok(()));
                }
            }
            Ok(None) => return Ok(Ok(())),
            Err(status) => return Ok(Err(status)),
        }
    }
}

/// A message on a line of its own, as it was put, whatever the output format: it is JSON already.
fn print(ctx: &Context, message: &QueueMessage) -> Result<(), Error> {
    // A message may hold line breaks between its values; on one line it stays one record.
    let line = match serde_json::from_str::<serde_json::Value>(&message.message) {
        Ok(value) if message.message.contains('\n') => value.to_string(),
        Ok(_) => message.message.clone(),
        Err(_) => {
            return Err(Error::new(
                Code::InvalidJson,
                format!("the broker sent what is not JSON: {}", shown(&message.message)),
            ));
        }
    };
    ctx.out.line(&line)
}
