//! What doctor looks at of RabbitMQ's own settings, where it runs on this machine.

use std::time::Duration;

use codering_core::units;
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use super::finding::Finding;
use crate::verbs::words;

/// For `rabbitmqctl`, which starts an Erlang of its own.
const PATIENCE: Duration = Duration::from_secs(20);

/// What only `rabbitmqctl` on RabbitMQ's own machine tells.
pub async fn settings() -> Vec<Finding> {
    let status = rabbitmqctl(&["status", "--formatter", "json"]).await;
    let Some(status) = status.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok()) else {
        let why = "rabbitmqctl does not answer here: run doctor as root on RabbitMQ's machine for its watermarks and timeouts";
        return vec![Finding::skipped("rabbitmq", why)];
    };
    let asked = rabbitmqctl(&["eval", "application:get_env(rabbit, consumer_timeout)."]).await;
    let mut findings = watermarks(&status);
    findings.push(consumer_timeout(asked));
    findings
}

async fn rabbitmqctl(arguments: &[&str]) -> Result<String, String> {
    let asked = Command::new("rabbitmqctl").arg("--quiet").args(arguments).kill_on_drop(true).output();
    let late = |_| format!("no answer within {} s", PATIENCE.as_secs());
    let output = timeout(PATIENCE, asked).await.map_err(late)?.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it failed");
    Err(words::harmless(line))
}

/// Each resource has its own alarm, and its own cure.
fn watermarks(status: &Value) -> Vec<Finding> {
    let alarms = &status["alarms"];
    let mut findings = vec![disk(status, names(alarms, "disk"))];
    if names(alarms, "memory") {
        findings.push(memory(status));
    }
    let known = ["disk", "memory"].iter().filter(|resource| names(alarms, resource)).count();
    if alarms.as_array().map_or(0, Vec::len) > known {
        findings.push(Finding::wrong(
            "watermark",
            format!("RabbitMQ has raised alarms: {}", words::harmless(alarms.to_string())),
            "sudo rabbitmq-diagnostics alarms; sudo journalctl -u rabbitmq-server -n 50",
        ));
    }
    findings
}

/// Whether an alarm is about this resource. Its form differs between RabbitMQ's versions; this word is in all of them.
fn names(alarm: &Value, resource: &str) -> bool {
    match alarm {
        Value::String(text) => text == resource,
        Value::Array(values) => values.iter().any(|value| names(value, resource)),
        Value::Object(fields) => fields.values().any(|value| names(value, resource)),
        _ => false,
    }
}

fn disk(status: &Value, alarm: bool) -> Finding {
    let (free, limit) =
        (status["disk_free"].as_u64().unwrap_or(0), status["disk_free_limit"].as_u64().unwrap_or(0));
    let text = format!(
        "RabbitMQ stops publishers below {} free on its disk, and has {}",
        units::show_size(limit),
        units::show_size(free)
    );
    let mend = "make room below /var/lib/rabbitmq (df -h there); then sudo rabbitmq-diagnostics check_alarms";
    match alarm {
        true => Finding::wrong(
            "watermark",
            format!("RabbitMQ's disk is full, and it takes no messages: {text}"),
            mend,
        ),
        false if free > limit.saturating_mul(2) => Finding::good("watermark", text),
        false => Finding::warning("watermark", text, mend),
    }
}

fn memory(status: &Value) -> Finding {
    let limit = status["vm_memory_high_watermark_limit"].as_u64();
    let how = status["memory"]["strategy"].as_str().unwrap_or("rss");
    let used = status["memory"]["total"][how].as_u64();
    let shown = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), units::show_size);
    Finding::wrong(
        "watermark",
        format!(
            "RabbitMQ uses too much memory, and takes no messages: {}, and its limit is {}",
            shown(used),
            shown(limit)
        ),
        "what uses it: sudo rabbitmq-diagnostics memory_breakdown --unit MB\n\
         where the machine has more: sudo rabbitmqctl set_vm_memory_high_watermark 0.6, and\n\
         echo 'vm_memory_high_watermark.relative = 0.6' | sudo tee /etc/rabbitmq/conf.d/90-memory.conf",
    )
}

/// A message that its reader does not settle in this time ends the reader's channel. codering's own are settled in seconds; a
/// slow reader of `queue subscribe` is what it may hit.
fn consumer_timeout(answer: Result<String, String>) -> Finding {
    let answer = match answer {
        Ok(answer) => answer,
        Err(why) => {
            return Finding::skipped(
                "consumers",
                format!("rabbitmqctl does not tell consumer_timeout: {why}"),
            );
        }
    };
    let set = answer.trim().strip_prefix("{ok,").and_then(|rest| rest.strip_suffix('}')).map(str::trim);
    let ms = set.and_then(|set| set.parse::<u64>().ok());
    match (ms, set) {
        (Some(ms), _) if ms < 300_000 => Finding::warning(
            "consumers",
            format!(
                "RabbitMQ's consumer_timeout is {}: slow readers of queues lose their place",
                units::show_duration(ms)
            ),
            "echo 'consumer_timeout = 1800000' | sudo tee /etc/rabbitmq/conf.d/90-codering.conf\n\
             sudo rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, 1800000).'",
        ),
        (Some(ms), _) => {
            Finding::good("consumers", format!("RabbitMQ's consumer_timeout is {}", units::show_duration(ms)))
        }
        // Either is how one is turned off.
        (None, Some("undefined")) => Finding::good("consumers", "RabbitMQ has no consumer_timeout"),
        (None, None) if answer.trim() == "undefined" => {
            Finding::good("consumers", "RabbitMQ has no consumer_timeout")
        }
        _ => {
            let said = words::harmless(answer.trim());
            Finding::skipped("consumers", format!("rabbitmqctl said of consumer_timeout: {said}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Verdict::{self, Good, Skipped, Warning, Wrong};
    use super::*;

    fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
        findings.iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn each_alarm_of_rabbitmq_s_has_its_own_cure() {
        let of = |alarms: Value, free: u64| {
            watermarks(&json!({ "alarms": alarms, "disk_free": free, "disk_free_limit": 50_000_000,
                "memory": { "strategy": "rss", "total": { "rss": 3_u64 << 30 } },
                "vm_memory_high_watermark_limit": 2_u64 << 30 }))
        };
        assert_eq!(verdicts(&of(json!([]), 1 << 40)), [Good]);
        assert_eq!(verdicts(&of(json!([]), 60_000_000)), [Warning]);
        let full = of(json!(["disk"]), 40_000_000);
        assert_eq!(verdicts(&full), [Wrong]);
        assert!(full[0].mend.contains("make room below /var/lib/rabbitmq"), "{full:?}");
        for alarms in [
            json!(["memory"]),
            json!([["resource_limit", "memory", "rabbit@disk"]]),
            json!([{ "resource": "memory", "node": "rabbit@disk" }]),
        ] {
            let hungry = of(alarms, 1 << 40);
            assert_eq!(verdicts(&hungry), [Good, Wrong]);
            assert!(hungry[1].finding.contains("3.0 GB"), "{hungry:?}");
            assert!(hungry[1].mend.contains("set_vm_memory_high_watermark"), "{hungry:?}");
            assert!(!hungry[1].mend.contains("/var/lib/rabbitmq"), "{hungry:?}");
        }
        assert_eq!(verdicts(&of(json!(["file_descriptor_limit"]), 1 << 40)), [Good, Wrong]);
    }

    #[test]
    fn a_consumer_timeout_that_was_not_told_is_not_called_none() {
        let of = |answer: &str| consumer_timeout(Ok(answer.to_owned())).verdict;
        assert_eq!([of("{ok,1800000}\n"), of("undefined\n"), of("{ok,30000}\n")], [Good, Good, Warning]);
        assert_eq!([of("{ok,undefined}\n"), of("\n"), of("{error,nodedown}\n")], [Good, Skipped, Skipped]);
        let late = consumer_timeout(Err("no answer within 20 s".into()));
        assert_eq!(late.verdict, Skipped);
        assert!(late.finding.contains("no answer within 20 s"), "{late:?}");
    }
}
