//! The way to the broker, step by step; the first step that fails ends it, since the rest would only
//! repeat it.

use std::time::Instant;

use codering_core::{Code, Error, time::Millis};
use codering_proto::{
    status::from_status,
    v1::{self, Role, Token},
};
use time::{PrimitiveDateTime, macros::format_description};

use super::{
    finding::Finding,
    local,
    tls::{self, Refused},
};
use crate::{
    client::{Broker, Target},
    verbs::{token, words},
};

/// Days before a certificate's end from which on it is worth a look.
const SOON_DAYS: i64 = 21;
const DAY_MS: i64 = 86_400_000;
/// Clocks further apart than this are worth a look: tokens and certificates begin to end at other times.
const SKEW_MS: i64 = 10_000;

/// Every finding about the broker.
pub async fn look(target: &Target, now: Millis) -> Vec<Finding> {
    let mut findings = vec![Finding::good("target", format!("{} ({})", target.address, target.label))];
    let started = Instant::now();
    let stream = match local::connect(&target.address).await {
        Ok(stream) => stream,
        Err(error) => {
            findings.push(unreachable(target, &error));
            return findings;
        }
    };
    let ms = started.elapsed().as_millis();
    findings.push(Finding::good("endpoint", format!("{} answers in {ms} ms", target.address)));
    match certificates(target, stream, now).await {
        Ok(more) => findings.extend(more),
        Err(wrong) => {
            findings.push(wrong);
            return findings;
        }
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

async fn certificates(
    target: &Target,
    stream: tokio::net::TcpStream,
    now: Millis,
) -> Result<Vec<Finding>, Finding> {
    let again =
        format!("copy /var/lib/codering/brokerd/ca/ca.pem from {0}, then {1}", target.host(), login(target));
    let ca = tls::certificates(&target.ca_pem)
        .map_err(|why| Finding::wrong("ca", format!("the CA certificate cannot be used: {why}"), &again))?;
    let mut findings = Vec::new();
    let ca_ends = ca.iter().map(|found| found.1).min().unwrap_or_default();
    findings.push(ends("ca", "the CA's certificate", ca_ends, now, &again));
    let roots = ca.into_iter().map(|found| found.0).collect();
    let shown = tls::look(stream, target.host(), roots)
        .await
        .map_err(|why| Finding::wrong("tls", why, login(target)))?;
    let renew = format!(
        "on {}: sudo rm /var/lib/codering/brokerd/tls/server.pem && sudo systemctl restart codering-brokerd",
        target.host()
    );
    match shown.refused {
        None => findings.push(ends(
            "tls",
            "the broker's certificate, signed by the CA",
            shown.expires_at,
            now,
            &renew,
        )),
        Some(Refused::Expired) => {
            let when = words::until(shown.expires_at, now);
            return Err(Finding::wrong(
                "tls",
                format!("the broker's certificate ended {when}, or a clock is wrong"),
                renew,
            ));
        }
        Some(Refused::OtherName) => {
            let names = words::harmless(shown.names.join(", "));
            return Err(Finding::wrong(
                "tls",
                format!("the broker's certificate is not for {}, but for {names}", target.host()),
                format!(
                    "add \"{}\" to public_names in the broker's /etc/codering/brokerd.toml, then {renew}",
                    target.host()
                ),
            ));
        }
        Some(Refused::OtherCa) => {
            return Err(Finding::wrong(
                "tls",
                "another CA than the one kept here signed the broker's certificate",
                again,
            ));
        }
        Some(Refused::Other(why)) => {
            return Err(Finding::wrong(
                "tls",
                format!("no TLS handshake: {}", words::harmless(why)),
                format!("is {} the gRPC port (7443), and not REST (7480)?", target.address),
            ));
        }
    }
    Ok(findings)
}

fn ends(check: &'static str, what: &str, at: Millis, now: Millis, mend: &str) -> Finding {
    let text = format!("{what}, valid until {} ({})", words::clock(at), words::until(at, now));
    match (at - now) / DAY_MS {
        _ if at <= now => Finding::wrong(check, format!("{what} ended {}", words::until(at, now)), mend),
        days if days < SOON_DAYS => Finding::warning(check, text, mend),
        _ => Finding::good(check, text),
    }
}

/// What only a caller with a token learns.
async fn ask(target: &Target, now: Millis) -> Result<Vec<Finding>, Error> {
    let broker = Broker::connect(target.clone()).await?;
    let before = now_ms();
    let answer =
        broker.tokens().who_am_i(v1::WhoAmIRequest {}).await.map_err(|status| from_status(&status))?;
    let after = now_ms();
    let date = answer.metadata().get("date").and_then(|date| http_date(date.to_str().ok()?));
    let me = answer.into_inner();
    let mut findings = vec![token_good(target, &me, now)];
    findings.extend(date.map(|date| clock(date, before, after)));
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

fn now_ms() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
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

fn login(target: &Target) -> String {
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

/// How far apart the clocks are; `date` has a resolution of a second.
fn clock(date: Millis, before: Millis, after: Millis) -> Finding {
    let middle = before + (after - before) / 2;
    let skew = date + 500 - middle;
    match skew.abs() {
        0..=1000 => Finding::good("clock", "the broker's is within a second of this one"),
        apart if apart <= SKEW_MS => {
            Finding::good("clock", format!("the broker's is {:.1} s from this one", skew as f64 / 1000.0))
        }
        apart => Finding::warning(
            "clock",
            format!(
                "the broker's is {} {} this one",
                words::ago(now_ms() - apart, now_ms()),
                if skew > 0 { "ahead of" } else { "behind" }
            ),
            "on the machine that is wrong: sudo timedatectl set-ntp true",
        ),
    }
}

/// `Sat, 21 Nov 2026 11:20:03 GMT`.
fn http_date(text: &str) -> Option<Millis> {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let at = PrimitiveDateTime::parse(text, format).ok()?;
    Some(at.assume_utc().unix_timestamp() * 1000)
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
    fn the_date_of_an_answer_is_read_and_a_clock_far_off_is_told() {
        let date = http_date("Sat, 21 Nov 2026 11:20:03 GMT").expect("a date");
        assert_eq!(codering_core::time::rfc3339(date), "2026-11-21T11:20:03Z");
        assert_eq!(clock(date, date, date + 900).verdict, Verdict::Good);
        let off = clock(date, date + 60_000, date + 60_010);
        assert_eq!(off.verdict, Verdict::Warning);
        assert!(off.finding.contains("behind"), "{off:?}");
        assert!(clock(date, date - 60_000, date - 60_000).finding.contains("ahead of"));
    }

    #[test]
    fn a_certificate_that_ends_soon_is_worth_a_look_and_one_that_ended_is_wrong() {
        let now = 1_795_260_000_000;
        let verdict = |days: i64| ends("tls", "it is", now + days * DAY_MS, now, "renew").verdict;
        assert_eq!(
            [verdict(100), verdict(3), verdict(-3)],
            [Verdict::Good, Verdict::Warning, Verdict::Wrong]
        );
    }

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
