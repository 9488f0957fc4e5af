//! `queue dead`: what could not be made a task, and why.

use clap::Subcommand;
use codering_core::{Error, ProjectName};
use codering_proto::v1;

use crate::{
    client::said,
    context::Context,
    verbs::{complete, words},
};

/// Dead letters of a project.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List them with the reason of each; nothing is taken.
    #[command(after_help = "Examples:\n  \
        coderingctl queue dead list demo\n  \
        coderingctl queue dead list demo --output jsonl | jq -r .reason")]
    List {
        /// Which.
        #[arg(add = complete::projects())]
        project: ProjectName,
        /// How many at most.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Put them back on the project's todo queue.
    #[command(after_help = "Examples:\n  \
        coderingctl queue dead requeue demo --all\n  \
        coderingctl queue dead requeue demo ID1 ID2")]
    Requeue {
        /// Which.
        #[arg(add = complete::projects())]
        project: ProjectName,
        /// Those of these ids.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

/// Runs the verb.
pub async fn run(ctx: &Context, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::List { project, limit } => {
            let request = v1::ListDeadRequest { project: project.to_string(), limit };
            let answer = said(ctx.broker().await?.queues().list_dead(request).await)?;
            let now = ctx.now();
            ctx.out.list(&answer.letters, &["ID", "AGE", "REASON", "MESSAGE"], |letter| {
                vec![
                    letter.id.clone(),
                    words::ago(letter.at_ms, now),
                    words::brief(&letter.reason, 60),
                    words::brief(&letter.message, 60),
                ]
            })?;
            match answer.total {
                0 => ctx.out.note(format!("no message of {project} is dead")),
                total if total > answer.letters.len() as u64 => {
                    ctx.out.note(format!("{} of {total}; more with --limit", answer.letters.len()));
                }
                _ => ctx.out.note(format!("put them back: coderingctl queue dead requeue {project} --all")),
            }
            Ok(())
        }
        Verb::Requeue { project, ids, all } => {
            let request = v1::RequeueDeadRequest { project: project.to_string(), ids, all };
            let answer = said(ctx.broker().await?.queues().requeue_dead(request).await)?;
            ctx.out.one(&answer, || vec![format!("requeued  {} messages of {project}", answer.requeued)])
        }
    }
}
