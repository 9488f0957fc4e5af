//! `watch`: a job's progress until it ends. A lost connection is taken up again; Ctrl-C leaves the
//! job running.

mod more;
mod screen;
mod words;

use std::time::Duration;

use codering_core::{Code, Error, ids::shown};
use codering_proto::{
    status::from_status,
    v1::{GetJobRequest, Job, JobEvent, JobState, ListWorkersRequest, WatchJobRequest},
};
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use self::{
    more::More,
    screen::{Notes, Screen},
};
use crate::{
    client::{Jobs, said},
    context::Context,
    output::{Format, exit},
    verbs::lost::{FIRST_PAUSE, LONGEST_PAUSE, is_lost},
};

pub use self::words::heading;

/// Show a job's progress until it ends; the exit code is 0 if it succeeded and 1 if not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    coderingctl watch j-01jd8q\n  \
    coderingctl watch j-01jd8q --output jsonl | jq .job.tasks")]
pub struct Args {
    /// Its id, or any unambiguous beginning of it.
    #[arg(add = crate::verbs::complete::jobs())]
    job: String,
    /// Stop waiting after this long, with exit code 6; the job goes on.
    #[arg(long, value_name = "DURATION", value_parser = crate::cli::duration)]
    timeout: Option<Duration>,
}

/// Runs the verb.
pub async fn run(ctx: &Context, args: Args) -> Result<(), Error> {
    follow(ctx, &args.job, Show::Whole, args.timeout).await
}

/// What is shown of a job while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// What it is, how far it is, and what happens.
    Whole,
    /// The same without what it is.
    Progress,
    /// Nothing until it ends.
    End,
}

/// How long a job may wait before it is asked why.
const WAITS_LONG: Duration = Duration::from_secs(4);
/// For how long a lost connection is tried.
const PATIENCE: Duration = Duration::from_secs(300);

/// Shows the job until it ends, and leaves the exit code that its end asks for.
pub async fn follow(ctx: &Context, id: &str, show: Show, patience: Option<Duration>) -> Result<(), Error> {
    let mut jobs = ctx.broker().await?.jobs();
    let mut screen = Screen::new(&ctx.out, show);
    // Waiting for ever is a week: an Instant beyond its range would be a panic.
    let patience = patience.unwrap_or(Duration::from_secs(7 * 86_400));
    let notes = screen.notes();
    let ended = tokio::select! {
        () = Box::pin(why_it_waits(ctx, id, &notes)), if show != Show::End => None,
        ended = timeout(patience, Box::pin(to_the_end(ctx, &mut jobs, id, &mut screen))) => Some(ended),
        _ = tokio::signal::ctrl_c() => None,
    };
    screen.clear();
    let Some(ended) = ended else {
        let id = shown(id);
        ctx.out.note(format!("{id} goes on without you (see it again: coderingctl watch {id})"));
        ctx.end_with(exit::INTERRUPTED);
        return Ok(());
    };
    let job = match ended {
        Ok(job) => job?,
        Err(_) => {
            return Err(Error::new(Code::TimedOut, format!("{} did not end in time; it goes on", shown(id)))
                .hint(format!("see it again: coderingctl watch {}", shown(id))));
        }
    };
    // An event tells how the job stands; how large its answer is, the job itself.
    let job = match jobs.get(GetJobRequest { job_id: job.job_id.clone() }).await {
        Ok(whole) => whole.into_inner(),
        Err(_) => job,
    };
    ctx.saw(&job, false).await;
    match ctx.out.format() {
        Format::Table => {
            let more = More::of(&mut jobs, &job).await;
            for line in words::ending(&job, &more, ctx.out.style()) {
                ctx.out.line(&line)?;
            }
        }
        Format::Json => ctx.out.one(&job, Vec::new)?,
        // The last event was written as it came.
        Format::Jsonl => {}
    }
    if job.state() != JobState::Succeeded {
        ctx.end_with(exit::FAILED);
    }
    Ok(())
}

/// A job that does not begin may wait for workers that are not there: says so, once, and never returns.
async fn why_it_waits(ctx: &Context, id: &str, notes: &Notes<'_>) {
    sleep(WAITS_LONG).await;
    let none_connected = async {
        let broker = ctx.broker().await?;
        let job = said(broker.jobs().get(GetJobRequest { job_id: id.to_owned() }).await)?;
        let workers = said(broker.workers().list(ListWorkersRequest {}).await)?.workers;
        let some = workers.iter().any(|worker| worker.connected && !worker.paused);
        Ok::<_, Error>(job.state() == JobState::Queued && !some)
    };
    // A token that may not see the workers goes without this hint.
    if none_connected.await.unwrap_or(false) {
        notes.note("no worker is there to begin it (coderingctl worker list)");
    }
    std::future::pending().await
}

/// Watches until a final state, over as many connections as it takes.
async fn to_the_end(ctx: &Context, jobs: &mut Jobs, id: &str, screen: &mut Screen<'_>) -> Result<Job, Error> {
    let mut pause = FIRST_PAUSE;
    let mut lost_at: Option<Instant> = None;
    loop {
        let mut heard = false;
        let status = match once(ctx, jobs, id, screen, &mut heard).await {
            Ok(Some(job)) => return Ok(job),
            Ok(None) => Status::unavailable("the broker ended the watch before the job did"),
            Err(Ended::Lost(status)) => status,
            Err(Ended::Failed(error)) => return Err(error),
        };
        if heard {
            (lost_at, pause) = (None, FIRST_PAUSE);
        }
        let first = lost_at.is_none();
        let since = *lost_at.get_or_insert_with(Instant::now);
        if since.elapsed() + pause > PATIENCE {
            let mut error = from_status(&status);
            error.code = Code::BrokerUnreachable;
            return Err(error.hint(format!("the job goes on; see it again: coderingctl watch {}", shown(id))));
        }
        if first {
            screen.note("the connection to the broker was lost; connecting again");
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Ended {
    /// Worth another try.
    Lost(Status),
    /// Not.
    Failed(Error),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        if is_lost(&status) { Self::Lost(status) } else { Self::Failed(from_status(&status)) }
    }
}

fn is_final(state: JobState) -> bool {
    matches!(state, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

/// One connection: the finished job, or `None` where it ended before the job.
async fn once(
    ctx: &Context,
    jobs: &mut Jobs,
    id: &str,
    screen: &mut Screen<'_>,
    heard: &mut bool,
) -> Result<Option<Job>, Ended> {
    let request = WatchJobRequest { job_id: id.to_owned() };
    let mut events = jobs.watch(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if !*heard && let Some(job) = &event.job {
            ctx.saw(job, false).await;
        }
        *heard = true;
        if ctx.out.format() == Format::Jsonl {
            ctx.out.json_line(&event).map_err(Ended::Failed)?;
        }
        screen.show(&event);
        if let JobEvent { job: Some(job), .. } = event
            && is_final(job.state())
        {
            return Ok(Some(job));
        }
    }
    Ok(None)
}
