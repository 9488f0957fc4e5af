//! `doctor`: looks at everything between this terminal and a running task, and says how to mend what
//! is wrong. It changes nothing.

mod amqp;
mod broker;
mod certificates;
mod clock;
mod finding;
mod host;
mod local;
mod rabbitmq;
mod tls;
mod worker;

use std::path::Path;

use clap::Args;
use codering_core::{Code, Error, time::Millis};

use self::finding::{Finding, Verdict};
use crate::{client::NONE_NAMED, context::Context};

pub use tls::certificates;

/// Look for what is wrong between here and a running task; each finding with the command that mends it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    coderingctl doctor\n  \
    coderingctl doctor --output json | jq '.[] | select(.verdict == \"wrong\")'")]
pub struct Doctor {}

/// Runs the verb; fails where anything is wrong.
pub async fn run(ctx: &Context, _: Doctor) -> Result<(), Error> {
    let mut findings = Vec::new();
    match ctx.target() {
        Ok(target) => {
            findings.extend(broker::look(&target, ctx.now()).await);
            findings.extend(on_this_machine(Path::new("/"), target.is_dev(), ctx.now()).await);
        }
        Err(error) => {
            let alone = if error.message == NONE_NAMED { worker::alone(Path::new("/")) } else { None };
            match &alone {
                Some(worker) => findings.extend(worker.way(ctx.now()).await),
                None => {
                    let mend =
                        if error.hint.is_empty() { "coderingctl login --help".into() } else { error.hint };
                    let place =
                        if error.place.is_empty() { String::new() } else { format!("{}: ", error.place) };
                    findings.push(Finding::wrong("target", format!("{place}{}", error.message), mend));
                }
            }
            // Whoever has no broker yet is about to run one here.
            findings.extend(on_this_machine(Path::new("/"), alone.is_none(), ctx.now()).await);
        }
    }
    ctx.out.blocks(&findings, Finding::lines)?;
    let wrong = findings.iter().filter(|finding| finding.verdict == Verdict::Wrong).count();
    match wrong {
        0 => {
            ctx.out.note("nothing is wrong");
            Ok(())
        }
        n => {
            ctx.out.note(format!("{n} of {} findings are wrong; mend the first one first", findings.len()));
            Err(ctx.quietly(Code::Internal))
        }
    }
}

/// The daemons that are installed here, and what they need.
async fn on_this_machine(root: &Path, runs_dev: bool, now: Millis) -> Vec<Finding> {
    let mut findings = Vec::new();
    let unreadable =
        |why: String| Finding::skipped("config", format!("{why}; run doctor as root to look there"));
    match local::Configured::read(root, "brokerd") {
        Ok(Some(brokerd)) => {
            findings.push(brokerd.port("grpc", "listen", "0.0.0.0:7443").await);
            findings.push(brokerd.port("rest", "listen", "127.0.0.1:7480").await);
            let dir = brokerd.data_dir();
            findings.push(host::disk(&dir, brokerd.text("", "min_free_disk").as_deref()));
            findings.push(host::log(&dir));
            findings.push(host::sync(&dir));
            let own = ["", "ca/ca.key", "admin.token", "tls/server.key"].map(|name| dir.join(name));
            let named =
                [("queue", "url_file"), ("tls", "key_file")].map(|(table, key)| brokerd.file(table, key));
            let credential = root.join(local::RABBITMQ_CREDENTIAL);
            let secrets: Vec<_> =
                own.into_iter().chain(named.into_iter().flatten()).chain([credential]).collect();
            findings.push(host::permissions(&secrets));
            match brokerd.rabbitmq() {
                Ok(Some(url)) => {
                    findings.extend(amqp::look(&url, brokerd.file("queue", "ca_file"), now).await);
                    findings.extend(rabbitmq::settings().await);
                }
                Ok(None) => {
                    findings.push(Finding::skipped("rabbitmq", "none is configured: the queue is embedded"))
                }
                Err(why) => findings.push(unreadable(why)),
            }
        }
        Ok(None) => findings.push(Finding::skipped("brokerd", "is not installed on this machine")),
        Err(why) => findings.push(unreadable(why)),
    }
    let default_socket = "/var/run/docker.sock";
    match local::Configured::read(root, "workerd") {
        Ok(Some(workerd)) => {
            findings.push(workerd.port("listen", "metrics", "127.0.0.1:7481").await);
            let socket = workerd.text("docker", "socket").unwrap_or_else(|| default_socket.into());
            let wants_proxy = workerd.text("proxy", "https").is_some();
            findings.extend(local::docker(&socket, wants_proxy).await);
            let dir = workerd.data_dir();
            findings.push(host::disk(&dir, workerd.text("", "min_free_disk").as_deref()));
            findings.push(worker::Here::of(&workerd).certificate(now));
            let named = [
                ("enroll", "token_file"),
                ("git", "ssh_key_file"),
                ("git", "credentials_file"),
                ("docker", "credentials_file"),
            ]
            .map(|(table, key)| workerd.file(table, key));
            let secrets = [dir.clone(), dir.join("tls/worker.key")].into_iter();
            findings.push(host::permissions(&secrets.chain(named.into_iter().flatten()).collect::<Vec<_>>()));
        }
        Ok(None) if runs_dev => findings.extend(local::docker(default_socket, false).await),
        Ok(None) => findings.push(Finding::skipped("workerd", "is not installed on this machine")),
        Err(why) => findings.push(unreadable(why)),
    }
    findings
}
