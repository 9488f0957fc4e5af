//! `history`: what was submitted and seen from here, with no broker in reach.

use std::time::Duration;

use clap::Subcommand;
use codering_core::{Code, Error, ids::shown, units::show_size};

use crate::{
    context::Context,
    history::{self, Entry, History},
    verbs::words,
};

/// What was submitted and seen from here; needs no broker.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  \
    coderingctl history --project demo --limit 5\n  \
    coderingctl history --output jsonl | jq -r .job_id")]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Only of this project.
    #[arg(long, short)]
    project: Option<String>,
    /// How many at most, the newest first.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what is known of one job.
    #[command(after_help = "Examples:\n  \
        coderingctl history show j-01jd8q\n  \
        coderingctl history show j-01jd8q --output json | jq -r .command")]
    Show {
        /// Its id, or any unambiguous beginning of it.
        job: String,
    },
    /// Forget jobs; the broker keeps its own record of them.
    #[command(after_help = "Examples:\n  \
        coderingctl history forget --older-than 30d\n  \
        coderingctl history forget --older-than 0 --yes")]
    Forget {
        /// Only jobs made longer ago than this.
        #[arg(long, value_name = "DURATION", value_parser = crate::cli::duration)]
        older_than: Duration,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// Runs the verb.
pub async fn run(ctx: &Context, args: Args) -> Result<(), Error> {
    let history = History::open(&history::default_path()?).await?;
    let done = match args.verb {
        None => list(ctx, &history, args.project.as_deref(), args.limit).await,
        Some(Verb::Show { job }) => show(ctx, &history, &job).await,
        Some(Verb::Forget { older_than, yes }) => forget(ctx, &history, older_than, yes).await,
    };
    history.close().await;
    done
}

async fn list(ctx: &Context, history: &History, project: Option<&str>, limit: u32) -> Result<(), Error> {
    let entries = history.newest(project, limit).await?;
    if entries.is_empty() {
        ctx.out.note("nothing was submitted or watched from here yet (coderingctl submit)");
    }
    let now = ctx.now();
    let header = ["JOB", "NAME", "PROJECT", "STATE", "TASKS", "AGE", "SEEN", "BROKER"];
    ctx.out.list(&entries, &header, |entry| {
        vec![
            entry.job_id.clone(),
            words::harmless(&entry.name),
            entry.project.clone(),
            entry.state.clone(),
            tasks(entry),
            words::ago(entry.created_at, now),
            words::ago(entry.seen_at, now),
            entry.broker.clone(),
        ]
    })
}

fn tasks(entry: &Entry) -> String {
    let done = entry.succeeded + entry.failed + entry.cancelled;
    match entry.failed {
        0 => format!("{done}/{}", entry.total),
        failed => format!("{done}/{}  {failed} failed", entry.total),
    }
}

async fn show(ctx: &Context, history: &History, job: &str) -> Result<(), Error> {
    let mut found = history.beginning(job).await?;
    if found.len() > 1 {
        let ids: Vec<_> = found.iter().map(|entry| entry.job_id.as_str()).collect();
        return Err(Error::new(
            Code::JobAmbiguous,
            format!("`{}` stands for {}", shown(job), ids.join(", ")),
        ));
    }
    let Some(entry) = found.pop() else {
        return Err(Error::new(Code::JobNotFound, format!("no job `{}` was seen from here", shown(job)))
            .hint("all that were: coderingctl history"));
    };
    ctx.out.one(&entry, || lines(&entry, ctx.now()))
}

fn lines(entry: &Entry, now: i64) -> Vec<String> {
    let by = if entry.submitted_at > 0 { "submitted from here" } else { "seen from here" };
    let mut lines = vec![
        format!("job      {}  {}  project {}", entry.job_id, words::harmless(&entry.name), entry.project),
        format!("broker   {}", entry.broker),
        format!("state    {}, as seen {} ago", entry.state, words::ago(entry.seen_at, now)),
        format!("tasks    {}", tasks(entry)),
        format!("made     {}, {by}", words::clock(entry.created_at)),
        format!("git      {} {}", words::harmless(&entry.git_url), words::commit(&entry.commit)),
        format!("command  {}", words::harmless(&entry.command)),
    ];
    if entry.finished_at > 0 {
        let took = words::took(entry.started_at, entry.finished_at);
        lines.push(format!("ended    {}, took {took}", words::clock(entry.finished_at)));
    }
    if !entry.message.is_empty() {
        lines.push(format!("message  {}", words::harmless(&entry.message)));
    }
    if entry.answer_bytes > 0 {
        let size = show_size(entry.answer_bytes.unsigned_abs());
        lines.push(format!("answer   {}, {size}", words::harmless(&entry.answer_name)));
    }
    lines
}

async fn forget(ctx: &Context, history: &History, older_than: Duration, yes: bool) -> Result<(), Error> {
    let age = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
    let before = ctx.now().saturating_sub(age);
    ctx.confirm("forget these jobs in the history kept here?", yes)?;
    let forgotten = history.forget(before).await?;
    ctx.out.note(format!("forgot   {forgotten} jobs"));
    Ok(())
}
