//! `task show`: the command, every try, the result.

use codering_core::{Error, units::show_duration};
use codering_proto::v1::{self, Task, TaskState};

use super::TaskName;
use crate::{
    client::said,
    context::Context,
    verbs::{job::story, words},
};

/// Runs the verb.
pub async fn run(ctx: &Context, name: TaskName) -> Result<(), Error> {
    let request = v1::GetTaskRequest { job_id: name.job, task_id: name.task };
    let task = said(ctx.broker().await?.jobs().get_task(request).await)?;
    ctx.out.one(&task, || lines(&task, ctx.now()))
}

fn lines(task: &Task, now: i64) -> Vec<String> {
    let name = format!("{}/{}", task.job_id, task.task_id);
    let mut lines = Vec::new();
    let mut say = |label: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("{label:<9} {text}"));
        }
    };
    say("task", format!("{name}, project {}", task.project));
    say(
        "state",
        match task.state() {
            TaskState::Done => story::how_it_failed(task),
            TaskState::Running => {
                format!("{} on {}, attempt {}", words::task_state(task), task.worker, task.attempt)
            }
            _ => words::task_state(task),
        },
    );
    say("command", words::harmless(words::command(task.command.as_ref())));
    let at =
        if task.commit.is_empty() { String::new() } else { format!(" at {}", words::commit(&task.commit)) };
    if !task.git_url.is_empty() {
        say("code", format!("{}{at}", words::harmless(codering_core::spec::without_password(&task.git_url))));
    }
    if task.user_failures + task.infrastructure_failures > 0 {
        say(
            "failures",
            format!("{} its own, {} not its fault", task.user_failures, task.infrastructure_failures),
        );
    }
    if let Some(result) = &task.result {
        say("image", words::harmless(&result.image));
        let p = result.phases.unwrap_or_default();
        let phases = [
            ("queued", p.queued_ms),
            ("checkout", p.checkout_ms),
            ("build", p.build_ms),
            ("start", p.start_ms),
            ("run", p.run_ms),
        ];
        let phases = phases.map(|(name, ms)| format!("{name} {}", show_duration(ms)));
        say("phases", phases.join(", "));
        for (label, data, truncated) in [
            ("stdout", &result.stdout, result.stdout_truncated),
            ("stderr", &result.stderr, result.stderr_truncated),
        ] {
            let cut = if truncated { ", cut at its bound" } else { "" };
            let size = codering_core::units::show_size(data.len() as u64);
            say(label, if data.is_empty() { "empty".into() } else { format!("{size}{cut}") });
            for line in story::last_lines(data) {
                say("", format!("| {line}"));
            }
        }
    }
    attempts(task, now, &mut lines);
    lines.push(String::new());
    lines.extend(next(task, &name));
    lines
}

/// Every try but a single one that is told above.
fn attempts(task: &Task, now: i64, lines: &mut Vec<String>) {
    if task.attempts.is_empty() {
        return;
    }
    lines.push(String::new());
    lines.push("attempts".into());
    for attempt in &task.attempts {
        let how = match (attempt.outcome(), attempt.finished_at_ms) {
            (v1::Outcome::Unspecified, 0) => {
                // Of an attempt under way, the message is its phase.
                let phase = if attempt.message.is_empty() { "running" } else { &attempt.message };
                format!("{}, for {}", words::harmless(phase), words::ago(attempt.leased_at_ms, now))
            }
            (outcome, end) => {
                format!("{} after {}", words::outcome(outcome), words::took(attempt.leased_at_ms, end))
            }
        };
        let message = words::harmless(&attempt.message);
        let why = if message.is_empty() || attempt.finished_at_ms == 0 {
            String::new()
        } else {
            format!(": {message}")
        };
        let started = words::clock(attempt.leased_at_ms);
        lines.push(format!("  {}  {started}  on {}  {how}{why}", attempt.attempt, attempt.worker));
    }
}

fn next(task: &Task, name: &str) -> Vec<String> {
    match task.state() {
        TaskState::Done => vec![
            format!("all that it printed  coderingctl task logs {name}"),
            format!("run it again         coderingctl task retry {name}"),
        ],
        TaskState::Running => vec![
            format!("what it prints  coderingctl task logs {name} --follow"),
            format!("stop it         coderingctl task cancel {name}"),
        ],
        _ => vec![format!("see its job go on  coderingctl watch {}", task.job_id)],
    }
}
