//! The way to the broker, step by step; the first step that fails ends it, since the rest would only
//! repeat it.

use std::time::Instant;

use codering_core::{Code, Error, time::Millis};
use codering_proto::{
    status::from_status,
    v1::{self, Role, Token},
};

use super::{
    certificates::{DAY_MS, SOON_DAYS, certificates},
    clock,
    finding::Finding,
    local,
};
use crate::{
    client::{Broker, Target},
    context,
    verbs::{token, words},
};

/// Every finding about the broker.
pub async fn look(target: &Target, now: Millis) -> Vec<Finding> {
    let again =
        format!("copy /var/lib/codering/brokerd/ca/ca.pem from {0}, then {1}", target.host(), login(target));
    let (mut findings, is_reached) = reach(target, &again, now).await;
    if !is_reached {
        return findings;
    }
    match ask(target, now).await {
        Ok(more) => findings.extend(more),
        Err(error) => findings.push(token_wrong(target, &error)),
    }
    if let Some(rest) = &target.rest {
        findings.push(rest_port(rest).await);
    }
    findings
}

/// The way there without a login, and whether it leads there. `again` gives this machine the CA's certificate anew.
pub async fn reach(target: &Target, again: &str, now: Millis) -> (Vec<Finding>, bool) {
    let mut findings = vec![Finding::good("target", format!("{} ({})", target.address, target.label))];
    let started = Instant::now();
    let stream = match local::connect(&target.address).await {
        Ok(stream) => stream,
        Err(error) => {
            findings.push(unreachable(target, &error));
            return (findings, false);
        }
    };
    let ms = started.elapsed().as_millis();
    findings.push(Finding::good("endpoint", format!("{} answers in {ms} ms", target.address)));
    match certificates(target, stream, again, now).await {
        Ok(more) => findings.extend(more),
        Err(wrong) => {
            findings.push(wrong);
            return (findings, false);
        }
    }
    (findings, true)
}

fn unreachable(target: &Target, error: &std::io::Error) -> Finding {
    let here = ["127.0.0.1", "localhost", "::1"].contains(&target.host());
    let mend = match (error.kind(), target.is_dev(), here) {
        (_, true, _) => "coderingctl dev --data-dir DIR with the DIR of that file".into(),
        (_, _, true) => {
            "sudo systemctl restart codering-brokerd; journalctl -u codering-brokerd -n 20".into()
        }
        (std::io::ErrorKind::ConnectionRefused, ..) => {
            format!("ssh {} sudo systemctl restart codering-brokerd", target.host())
        }
        _ => format!(
            "ping {0}; then look whether a firewall keeps TCP port {1} of {0} closed",
            target.host(),
            target.port()
        ),
    };
    Finding::wrong(
        "endpoint",
        format!("{} does not answer: {}", target.address, words::io_error(error)),
        mend,
    )
}

/// What only a caller with a token learns.
async fn ask(target: &Target, now: Millis) -> Result<Vec<Finding>, Error> {
    let broker = Broker::connect(target.clone()).await?;
    let before = context::now();
    let answer =
        broker.tokens().who_am_i(v1::WhoAmIRequest {}).await.map_err(|status| from_status(&status))?;
    let after = context::now();
    let date = clock::date(answer.metadata());
    let me = answer.into_inner();
    let mut findings = vec![token_good(target, &me, now)];
    findings.extend(date.map(|date| clock::apart(date, before, after)));
    match broker.workers().list(v1::ListWorkersRequest {}).await.map_err(|status| from_status(&status)) {
        Ok(answer) => findings.push(workers(&answer.into_inner().workers)),
        Err(error) if error.code == Code::AuthDenied => {
            findings.push(Finding::skipped("workers", "this token may not see them"));
        }
        Err(error) => return Err(error),
    }
    match broker.queues().list(v1::ListQueuesRequest::default()).await.map_err(|status| from_status(&status))
    {
        Ok(answer) => {
            let answer = answer.into_inner();
            let text =
                format!("{}, {} queues to be seen with this token", answer.backend, answer.queues.len());
            findings.push(Finding::good("queue", text));
        }
        Err(error) => findings.push(Finding::wrong(
            "queue",
            error.to_string(),
            format!(
                "on {}: sudo systemctl status rabbitmq-server; journalctl -u codering-brokerd -n 20",
                target.host()
            ),
        )),
    }
    Ok(findings)
}

fn token_good(target: &Target, me: &Token, now: Millis) -> Finding {
    let text = format!("`{}`, {}", words::harmless(&me.name), token::standing(me));
    match me.expires_at_ms {
        _ if me.role() == Role::Worker => {
            Finding::wrong("token", format!("{text}: it may ask nothing"), login(target))
        }
        end if end != 0 && end - now < SOON_DAYS * DAY_MS => {
            Finding::warning("token", format!("{text}, ends {}", words::until(end, now)), login(target))
        }
        0 => Finding::good("token", format!("{text}, without end")),
        end => Finding::good("token", format!("{text}, ends {}", words::until(end, now))),
    }
}

fn token_wrong(target: &Target, error: &Error) -> Finding {
    let mend = match error.code {
        Code::AuthInvalid | Code::AuthMissing => login(target),
        _ if error.hint.is_empty() => format!("on {}: journalctl -u codering-brokerd -n 20", target.host()),
        _ => error.hint.clone(),
    };
    Finding::wrong("token", format!("{} [{}]", error.message, error.code.as_str()), mend)
}

pub fn login(target: &Target) -> String {
    match target.is_dev() {
        true => "coderingctl dev --data-dir DIR, which writes that file anew".into(),
        false => format!(
            "coderingctl login {} --broker {} --ca FILE --token-file FILE",
            target.context.as_deref().unwrap_or("NAME"),
            target.address
        ),
    }
}

fn workers(workers: &[v1::Worker]) -> Finding {
    let connected: Vec<_> = workers.iter().filter(|worker| worker.connected).collect();
    let paused = connected.iter().filter(|worker| worker.paused).count();
    let slots: u32 = connected.iter().filter(|worker| !worker.paused).map(|worker| worker.slots).sum();
    let gone = workers.iter().filter(|worker| !worker.connected && !worker.revoked).count();
    let gone_text = if gone > 0 { format!(", {gone} gone") } else { String::new() };
    let text = format!("{} connected with {slots} slots{gone_text}", connected.len());
    match (connected.len(), slots) {
        (0, _) => Finding::wrong(
            "workers",
            format!("none is connected{gone_text}: nothing would run"),
            "on a worker: sudo systemctl restart codering-workerd; a new one joins by coderingctl worker token",
        ),
        (_, 0) => Finding::wrong(
            "workers",
            format!("{text}: {paused} paused"),
            format!("coderingctl worker resume {}", connected[0].name),
        ),
        _ if gone > 0 => Finding::warning("workers", text, "coderingctl worker list"),
        _ => Finding::good("workers", text),
    }
}

async fn rest_port(url: &str) -> Finding {
    let parsed = url::Url::parse(url).ok();
    let address =
        parsed.as_ref().and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)));
    let Some(address) = address else {
        return Finding::warning("rest", format!("`{url}` is no address"), "coderingctl dev --data-dir DIR");
    };
    match local::connect(&address).await {
        Ok(_) => Finding::good("rest", format!("something listens on {address}")),
        Err(error) => Finding::wrong(
            "rest",
            format!("{address} does not answer: {}", words::io_error(&error)),
            "coderingctl dev --data-dir DIR",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn no_worker_that_could_run_anything_is_wrong() {
        let worker = |connected, paused| v1::Worker {
            connected,
            paused,
            slots: 4,
            name: "w1".into(),
            ..Default::default()
        };
        assert_eq!(workers(&[]).verdict, Verdict::Wrong);
        assert_eq!(workers(&[worker(true, true)]).mend, "coderingctl worker resume w1");
        assert_eq!(workers(&[worker(true, false), worker(false, false)]).verdict, Verdict::Warning);
        assert_eq!(workers(&[worker(true, false)]).verdict, Verdict::Good);
    }
}
