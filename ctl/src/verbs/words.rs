//! Wire values as the words and short texts that a person reads in a table or on a page.

use codering_core::{
    time::{Millis, rfc3339},
    units::{show_duration, show_size},
};
use codering_proto::v1;

use crate::output::calm;

/// The longest text that a page shows of one foreign value.
const LONGEST: usize = 400;

/// `12s`, `2m`, `5h`, `3d`: how long ago, in its largest unit; `-` for a time that has not come.
pub fn ago(at: Millis, now: Millis) -> String {
    if at == 0 {
        return "-".into();
    }
    let seconds = now.saturating_sub(at).max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `in 3h`, or `2m ago` for a time that is past; `never` for 0.
pub fn until(at: Millis, now: Millis) -> String {
    match at {
        0 => "never".into(),
        // Rounded up: what was just given an hour ends in one.
        at if at > now => format!("in {}", ago(now, at.saturating_add(999))),
        at => format!("{} ago", ago(at, now)),
    }
}

/// `2026-11-21T11:20:03Z`, to the second; `-` for a time that has not come.
pub fn clock(at: Millis) -> String {
    if at == 0 { "-".into() } else { rfc3339(at - at.rem_euclid(1000)) }
}

/// How long from one time to another; `-` while either has not come.
pub fn took(from: Millis, to: Millis) -> String {
    match u64::try_from(to.saturating_sub(from)) {
        Ok(ms) if from != 0 && to != 0 => show_duration(ms),
        _ => "-".into(),
    }
}

/// `1 task`, `2 tasks`.
pub fn tasks(n: impl Into<u64>) -> String {
    match n.into() {
        1 => "1 task".into(),
        n => format!("{n} tasks"),
    }
}

/// What an I/O error says, without the number that the system has for it.
pub fn io_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// A commit, as short as git shows it.
pub fn commit(hash: &str) -> String {
    hash.chars().take(7).collect()
}

/// A command on one line; empty where there is none.
pub fn command(wire: Option<&v1::Command>) -> String {
    codering_proto::convert::command(wire.cloned())
        .map(|command| command.shown().replace("'{}'", "{}"))
        .unwrap_or_default()
}

/// A foreign text on one line, cut where it is long, without what would move a terminal's cursor or
/// reorder its line.
pub fn harmless(text: impl AsRef<str>) -> String {
    brief(text.as_ref().trim_end(), LONGEST)
}

/// The first `width` characters.
pub fn brief(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        Some((end, _)) => format!("{}…", whole(&text[..end])),
        None => whole(text),
    }
}

/// As [`harmless`], uncut.
pub fn whole(line: &str) -> String {
    calm::text(line).into_owned()
}

/// `timeout 10m 0s, memory 512 MB, 1 cpu, 256 pids, no network, 3 attempts`; only what is set.
pub fn limits(limits: &v1::Limits) -> String {
    let mut parts = Vec::new();
    if let Some(ms) = limits.timeout_ms {
        parts.push(format!("timeout {}", show_duration(ms)));
    }
    if let Some(bytes) = limits.memory_bytes {
        parts.push(format!("memory {}", show_size(bytes)));
    }
    if let Some(cpus) = limits.cpus {
        parts.push(format!("{cpus} cpu"));
    }
    if let Some(pids) = limits.max_pids {
        parts.push(format!("{pids} pids"));
    }
    if let Some(network) = limits.network {
        parts.push(if network { "network" } else { "no network" }.into());
    }
    if let Some(attempts) = limits.max_attempts {
        parts.push(format!("{attempts} attempts"));
    }
    if let Some(bytes) = limits.output_bytes {
        parts.push(format!("output {}", show_size(bytes)));
    }
    parts.join(", ")
}

fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        Some("UNSPECIFIED") | None => "-".into(),
        Some(rest) => rest.to_lowercase(),
    }
}

/// `running`.
pub fn state(state: v1::JobState) -> String {
    word(state.as_str_name(), "JOB_STATE_")
}

/// `out_of_memory`.
pub fn outcome(outcome: v1::Outcome) -> String {
    word(outcome.as_str_name(), "OUTCOME_")
}

/// `submitter`.
pub fn role(role: v1::Role) -> String {
    word(role.as_str_name(), "ROLE_")
}

/// Where a task stands: its outcome once it is done.
pub fn task_state(task: &v1::Task) -> String {
    match task.state() {
        v1::TaskState::Done => outcome(task.outcome()),
        _ if task.cancel_requested => "cancelling".into(),
        other => word(other.as_str_name(), "TASK_STATE_"),
    }
}

/// `61/100  2 failed`.
pub fn counts(job: &v1::Job) -> String {
    let c = job.tasks.unwrap_or_default();
    let mut text = format!("{}/{}", c.succeeded + c.failed + c.cancelled, c.total);
    for (n, name) in [(c.failed, "failed"), (c.cancelled, "cancelled")] {
        if n > 0 {
            text = format!("{text}  {n} {name}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_in_its_largest_unit() {
        let now = 1_000_000_000;
        let before = |seconds: i64| ago(now - seconds * 1000, now);
        assert_eq!(
            [before(9), before(119), before(120), before(7200), before(200_000)],
            ["9s", "119s", "2m", "2h", "2d"]
        );
        assert_eq!(ago(0, now), "-");
        assert_eq!(ago(now + 5000, now), "0s", "a broker's clock may be ahead");
        assert_eq!(
            [until(0, now), until(now + 3_600_000, now), until(now - 1000, now)],
            ["never", "in 60m", "1s ago"]
        );
    }

    #[test]
    fn a_foreign_text_cannot_move_the_cursor_or_break_the_line() {
        assert_eq!(harmless("a\x1b[2Jb\nc\u{202e}d\t."), "a\u{fffd}[2Jb c\u{fffd}d    .");
        assert!(harmless("x".repeat(5000)).len() < 500);
    }

    #[test]
    fn failed_tasks_stand_beside_the_count() {
        let tasks = v1::TaskCounts { total: 100, succeeded: 59, failed: 2, ..Default::default() };
        assert_eq!(counts(&v1::Job { tasks: Some(tasks), ..Default::default() }), "61/100  2 failed");
    }
}
