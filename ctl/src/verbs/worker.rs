//! `worker`: list, show, pause, resume, drain, revoke, and tokens to join with.

use std::time::Duration;

use clap::Subcommand;
use codering_core::{Code, Error, WorkerName, joining};
use codering_proto::v1::{self, GetWorkerRequest, Role, Worker};
use tokio::time::{Instant, sleep};

use crate::{
    client::{Broker, said},
    context::{Context, host_name},
    verbs::{complete, token, words},
};

/// How often a drain looks whether anything still runs.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Workers: what runs where, and who may take more.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List workers.
    #[command(after_help = "Examples:\n  \
        coderingctl worker list\n  \
        coderingctl worker list --output json | jq -r '.[] | select(.connected) | .name'")]
    List,
    /// Show a worker: the containers that run there and the task of each.
    #[command(after_help = "Examples:\n  \
        coderingctl worker show w1\n  \
        coderingctl worker show w1 --output json | jq -r '.running[].container_id'")]
    Show {
        /// Which.
        #[arg(add = complete::workers())]
        name: WorkerName,
    },
    /// Give a worker nothing new; what runs there goes on.
    #[command(after_help = "Examples:\n  \
        coderingctl worker pause w1\n  \
        coderingctl worker pause w1 --output json | jq .busy_slots")]
    Pause {
        /// Which.
        #[arg(add = complete::workers())]
        name: WorkerName,
    },
    /// Let a paused worker take tasks again.
    #[command(after_help = "Examples:\n  \
        coderingctl worker resume w1\n  \
        coderingctl worker resume w1 --output json | jq .paused")]
    Resume {
        /// Which.
        #[arg(add = complete::workers())]
        name: WorkerName,
    },
    /// Pause a worker before it is switched off; with --wait, until nothing runs there any more.
    #[command(after_help = "Examples:\n  \
        coderingctl worker drain w1 --wait\n  \
        coderingctl worker drain w1 --wait --timeout 30m && ssh w1 sudo reboot")]
    Drain {
        /// Which.
        #[arg(add = complete::workers())]
        name: WorkerName,
        /// Wait until nothing runs there.
        #[arg(long, short)]
        wait: bool,
        /// How long to wait; exits with 6 when it is over. The worker stays paused.
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = crate::cli::duration, requires = "wait")]
        timeout: Duration,
    },
    /// Refuse a worker's certificate and its name for good; what runs there runs elsewhere instead.
    #[command(after_help = "Examples:\n  \
        coderingctl worker revoke w1\n  \
        coderingctl worker revoke w1 --yes")]
    Revoke {
        /// Which.
        #[arg(add = complete::workers())]
        name: WorkerName,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Make a token with which a new worker joins; it is printed once, on stdout.
    #[command(after_help = "Examples:\n  \
        coderingctl worker token > join_token\n  \
        coderingctl worker token --name rack2 --ttl 24h | ssh w7 sudo codering-workerd enroll --broker HOST --token-file -")]
    Token {
        /// What to call the token in `token list`. Called like a worker that is there, it replaces that worker's machine.
        #[arg(long, default_value = "for a new worker")]
        name: String,
        /// How long it may be used.
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = crate::cli::duration)]
        ttl: Duration,
    },
}

/// Runs the verb.
pub async fn run(ctx: &Context, verb: Verb) -> Result<(), Error> {
    let broker = ctx.broker().await?;
    match verb {
        Verb::List => list(ctx, &broker).await,
        Verb::Show { name } => {
            let worker = get(&broker, &name).await?;
            ctx.out.one(&worker, || lines(&worker, ctx.now()))
        }
        Verb::Pause { name } => {
            let worker = pause(&broker, &name).await?;
            let n = worker.busy_slots;
            ctx.out.one(&worker, || {
                vec![format!(
                    "paused   {name}; still running there: {n} (undo: coderingctl worker resume {name})"
                )]
            })
        }
        Verb::Resume { name } => {
            let request = v1::ResumeWorkerRequest { name: name.to_string() };
            let worker = said(broker.workers().resume(request).await)?;
            let offline = if worker.connected { "" } else { ", but it is not connected" };
            ctx.out.one(&worker, || vec![format!("resumed  {name}, {} slots{offline}", worker.slots)])
        }
        Verb::Drain { name, wait, timeout } => drain(ctx, &broker, &name, wait.then_some(timeout)).await,
        Verb::Revoke { name, yes } => revoke(ctx, &broker, &name, yes).await,
        Verb::Token { name, ttl } => {
            let created = token::create(&broker, name, Role::Worker, Vec::new(), ttl.as_secs()).await?;
            let broker = ctx
                .target()
                .map_or_else(|_| "HOST".to_owned(), |target| from_elsewhere(&target.address, &host_name()));
            ctx.out.note(format!(
                "on the new worker, within {}: sudo codering-workerd enroll --broker {broker} --token TOKEN",
                codering_core::units::show_duration(ttl.as_millis() as u64)
            ));
            token::print_secret(ctx, &created)
        }
    }
}

/// The address by which another machine reaches the broker: `this` for one that is reached over loopback.
fn from_elsewhere(address: &str, this: &str) -> String {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "7443"));
    match joining::is_loopback(host.trim_matches(['[', ']'])) && !this.is_empty() {
        true => format!("{this}:{port}"),
        false => address.to_owned(),
    }
}

async fn get(broker: &Broker, name: &WorkerName) -> Result<Worker, Error> {
    said(broker.workers().get(GetWorkerRequest { name: name.to_string() }).await)
}

async fn pause(broker: &Broker, name: &WorkerName) -> Result<Worker, Error> {
    said(broker.workers().pause(v1::PauseWorkerRequest { name: name.to_string() }).await)
}

async fn list(ctx: &Context, broker: &Broker) -> Result<(), Error> {
    let answer = said(broker.workers().list(v1::ListWorkersRequest {}).await)?;
    if answer.workers.is_empty() {
        ctx.out.note("no worker has joined yet: coderingctl worker token makes a token to join with");
    }
    let now = ctx.now();
    let header = ["WORKER", "STATE", "SLOTS", "SINCE", "VERSION", "LABELS"];
    ctx.out.list(&answer.workers, &header, |worker| row(worker, now))
}

fn row(worker: &Worker, now: i64) -> Vec<String> {
    let since = if worker.connected { worker.connected_at_ms } else { worker.last_seen_at_ms };
    let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    vec![
        worker.name.clone(),
        state(worker).to_owned(),
        format!("{}/{}", worker.busy_slots, worker.slots),
        words::ago(since, now),
        dash(words::harmless(&worker.version)),
        dash(labels(worker)),
    ]
}

fn state(worker: &Worker) -> &'static str {
    match (worker.revoked, worker.connected, worker.paused, worker.busy_slots) {
        (true, ..) => "revoked",
        (_, false, ..) => "gone",
        (_, _, true, 0) => "drained",
        (_, _, true, _) => "draining",
        (_, _, _, 0) => "idle",
        _ => "busy",
    }
}

fn labels(worker: &Worker) -> String {
    let mut labels: Vec<_> = worker.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    words::harmless(labels.join(","))
}

fn lines(worker: &Worker, now: i64) -> Vec<String> {
    let name = &worker.name;
    let since = match worker.connected {
        true => format!("connected {} ago", words::ago(worker.connected_at_ms, now)),
        false => format!("last seen {} ago", words::ago(worker.last_seen_at_ms, now)),
    };
    let mut lines = vec![
        format!("worker       {name}, {}, {since}", state(worker)),
        format!("slots        {} of {} busy", worker.busy_slots, worker.slots),
        format!("version      {}", words::harmless(&worker.version)),
        format!(
            "certificate  ends {} ({})",
            words::until(worker.certificate_expires_at_ms, now),
            words::clock(worker.certificate_expires_at_ms)
        ),
    ];
    if !worker.labels.is_empty() {
        lines.push(format!("labels       {}", labels(worker)));
    }
    lines.push(String::new());
    if worker.running.is_empty() {
        lines.push("nothing runs there".into());
    } else {
        let mut rows = vec![["CONTAINER", "TASK", "ATTEMPT", "PHASE", "FOR", "PROJECT"].map(str::to_owned)];
        rows.extend(worker.running.iter().map(|running| {
            let container: String = running.container_id.chars().take(12).collect();
            [
                if container.is_empty() { "-".into() } else { words::harmless(container) },
                format!("{}/{}", running.job_id, running.task_id),
                running.attempt.to_string(),
                words::harmless(&running.phase),
                words::ago(running.leased_at_ms, now),
                running.project.clone(),
            ]
        }));
        lines.extend(columns(&rows));
    }
    lines.push(String::new());
    if let Some(first) = worker.running.first() {
        lines.push(format!(
            "what one prints          coderingctl task logs {}/{} --follow",
            first.job_id, first.task_id
        ));
        lines.push(format!("empty it                 coderingctl worker drain {name} --wait"));
    }
    if worker.paused && !worker.revoked {
        lines.push(format!("let it take tasks again  coderingctl worker resume {name}"));
    }
    lines
}

/// Aligned columns.
fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

async fn drain(
    ctx: &Context,
    broker: &Broker,
    name: &WorkerName,
    wait: Option<Duration>,
) -> Result<(), Error> {
    let mut worker = pause(broker, name).await?;
    let Some(wait) = wait else {
        return ctx.out.one(&worker, || {
            let n = worker.busy_slots;
            vec![format!("paused   {name}; still running there: {n} (wait for them: --wait)")]
        });
    };
    let deadline = Instant::now() + wait;
    let mut told = u32::MAX;
    // Of one that is not connected too: what it held may run until its leases end.
    while worker.busy_slots > 0 || !worker.running.is_empty() {
        if worker.busy_slots != told {
            told = worker.busy_slots;
            ctx.out.note(format!("waiting  {} on {name}", words::tasks(told)));
        }
        if Instant::now() >= deadline {
            let stay = format!("the worker stays paused; undo: coderingctl worker resume {name}");
            return Err(Error::new(
                Code::TimedOut,
                format!("{name} is not empty yet: {} there", words::tasks(told)),
            )
            .hint(stay));
        }
        sleep(LOOK_AGAIN).await;
        worker = get(broker, name).await?;
    }
    ctx.out.one(&worker, || {
        let gone = if worker.connected { "" } else { " (it is not connected)" };
        vec![format!("drained  nothing runs on {name} any more{gone}; it may be switched off")]
    })
}

async fn revoke(ctx: &Context, broker: &Broker, name: &WorkerName, yes: bool) -> Result<(), Error> {
    let worker = get(broker, name).await?;
    let runs = match worker.busy_slots {
        0 => String::new(),
        n => format!("; what runs there ({}) will run again elsewhere", words::tasks(n)),
    };
    ctx.confirm(&format!("refuse the certificate of {name}, and the name, for good{runs}?"), yes)?;
    let worker = said(broker.workers().revoke(v1::RevokeWorkerRequest { name: name.to_string() }).await)?;
    ctx.out.one(&worker, || {
        vec![format!("revoked  {name} (its machine may join under another name: coderingctl worker token)")]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> Worker {
        Worker {
            name: "w1".into(),
            connected: true,
            slots: 4,
            busy_slots: 1,
            running: vec![v1::Running {
                job_id: "j-01jd8qabcd".into(),
                task_id: "17".into(),
                attempt: 2,
                phase: "run".into(),
                container_id: "0123456789abcdef".into(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_new_worker_is_told_an_address_that_it_can_reach() {
        for (address, told) in [
            ("localhost:7443", "hub:7443"),
            ("127.0.0.1:9000", "hub:9000"),
            ("[::1]:7443", "hub:7443"),
            ("broker.lan:7443", "broker.lan:7443"),
            ("[fd00::7]:7443", "[fd00::7]:7443"),
        ] {
            assert_eq!(from_elsewhere(address, "hub"), told);
        }
        assert_eq!(from_elsewhere("localhost:7443", ""), "localhost:7443");
    }

    #[test]
    fn a_workers_page_names_each_container_and_its_task() {
        let page = lines(&worker(), 0).join("\n");
        for expected in
            ["1 of 4 busy", "0123456789ab  j-01jd8qabcd/17  2        run", "worker drain w1 --wait"]
        {
            assert!(page.contains(expected), "no `{expected}` in\n{page}");
        }
    }

    #[test]
    fn a_workers_state_is_one_word() {
        assert_eq!(state(&worker()), "busy");
        assert_eq!(state(&Worker { paused: true, ..worker() }), "draining");
        assert_eq!(state(&Worker { paused: true, busy_slots: 0, ..worker() }), "drained");
        assert_eq!(state(&Worker { connected: false, ..worker() }), "gone");
        assert_eq!(state(&Worker { revoked: true, ..worker() }), "revoked");
    }
}
