//! `reduce`: runs a command over a job's recorded results, (again) or another one.

use codering_core::{Error, Reduce};
use codering_proto::v1::{GetJobRequest, ReduceJobRequest};

use super::{limits::LimitArgs, watch};
use crate::{client::said, context::Context};

/// Run a command over a job's results, and keep what it prints as the job's answer.
///
/// The command gets the results as JSONL on its standard input and runs in a container of the job's
/// image, as its tasks did. Without a command, the job's own runs again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    coderingctl reduce j-01jd8q --watch -- python3 merge.py --top 10\n  \
    coderingctl reduce j-01jd8q --as total.txt -- 'wc -l'")]
pub struct Args {
    /// Its id, or any unambiguous beginning of it.
    #[arg(add = crate::verbs::complete::jobs())]
    job: String,
    /// The name under which the answer is kept.
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Show its progress until it ends.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    limits: LimitArgs,
    /// A program with its arguments, or one shell line in quotes.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the verb.
pub async fn run(ctx: &Context, args: Args) -> Result<(), Error> {
    let mut jobs = ctx.broker().await?.jobs();
    let reduce = if args.command.is_empty() && args.name.is_none() && args.limits.is_empty() {
        None
    } else {
        let job = said(jobs.get(GetJobRequest { job_id: args.job.clone() }).await)?;
        // Shown as a shell line, which runs as what it was made from.
        let own = vec![job.reduce_command].into_iter().filter(|line| !line.is_empty()).collect();
        let command = if args.command.is_empty() { own } else { args.command };
        let name = args.name.unwrap_or(job.answer_name);
        let reduce = Reduce {
            command: super::command_of(command),
            output: if name.is_empty() { "answer".to_owned() } else { name },
            limits: args.limits.patch(),
        };
        reduce.validate()?;
        Some(reduce.into())
    };
    let request = ReduceJobRequest { job_id: args.job, reduce };
    let job = said(jobs.reduce(request).await)?;
    let id = job.job_id.clone();
    if args.watch {
        return watch::follow(ctx, &id, watch::Show::Progress, None).await;
    }
    ctx.out.one(&job, || vec![format!("reducing {id} (see it end: coderingctl watch {id})")])
}
