//! A job's progress and its end as lines.

use codering_core::units::{show_duration, show_size};
use codering_proto::v1::{Job, JobEvent, JobState};

use super::More;
use crate::{
    output::Style,
    verbs::words::{brief, harmless},
};

/// How much of an answer's text is shown.
const PREVIEW_CHARACTERS: usize = 60;

/// `14/24  58 %   6.2 tasks/s   4 running   0 failed   left 0:02`.
pub fn progress(event: &JobEvent, style: Style) -> String {
    let job = event.job.clone().unwrap_or_default();
    let counts = job.tasks.unwrap_or_default();
    let done = done(&job);
    let percent = (done * 100).checked_div(counts.total).unwrap_or(0);
    let mut parts = vec![format!("{done}/{}  {percent} %", counts.total)];
    match job.state() {
        JobState::Queued => parts.push("queued".into()),
        JobState::Paused => parts.push(format!("paused (coderingctl job resume {})", job.job_id)),
        JobState::Reducing => parts.push(style.busy("reducing")),
        _ => {
            if event.tasks_per_second > 0.0 {
                parts.push(format!("{} tasks/s", rate(event.tasks_per_second)));
            }
            parts.push(style.busy(&format!("{} running", counts.running)));
        }
    }
    let failed = format!("{} failed", counts.failed);
    parts.push(if counts.failed > 0 { style.bad(&failed) } else { failed });
    let left = counts.total.saturating_sub(done);
    if left > 0 && event.tasks_per_second > 0.0 && job.state() == JobState::Running {
        parts.push(format!("left {}", clock(left as f64 / event.tasks_per_second)));
    }
    parts.join("   ")
}

/// How many tasks are done.
pub fn done(job: &Job) -> u64 {
    let counts = job.tasks.unwrap_or_default();
    counts.succeeded + counts.failed + counts.cancelled
}

/// `job      j-01jd8q  wordcount  24 tasks  project demo`.
pub fn heading(job: &Job) -> String {
    let total = job.tasks.unwrap_or_default().total;
    let tasks = if total == 1 { "1 task".to_owned() } else { format!("{total} tasks") };
    format!("job      {}  {}  {tasks}  project {}", job.job_id, harmless(&job.name), job.project)
}

/// How it ended, what to do about it, and the answer.
pub fn ending(job: &Job, more: &More, style: Style) -> Vec<String> {
    let counts = job.tasks.unwrap_or_default();
    let id = &job.job_id;
    let mut parts = vec![format!("{} succeeded", counts.succeeded)];
    for (n, word) in [(counts.failed, "failed"), (counts.cancelled, "cancelled")] {
        if n > 0 {
            parts.push(format!("{n} {word}"));
        }
    }
    let mut line = parts.join(", ");
    if job.started_at_ms > 0 && job.finished_at_ms >= job.started_at_ms {
        let took = (job.finished_at_ms - job.started_at_ms).unsigned_abs();
        line = format!("{line} in {}", show_duration(took));
    }
    if counts.retried > 0 {
        line = format!("{line}; {} retried", counts.retried);
    }
    let mut lines = match job.state() {
        JobState::Succeeded => vec![format!("{}     {line}", style.good("done"))],
        JobState::Cancelled => {
            vec![format!("cancelled {line} (take it up again: coderingctl job retry {id})")]
        }
        _ => failed(job, &line, more, style),
    };
    if job.answer_bytes > 0 {
        lines.push(format!("answer   {}, {}", harmless(&job.answer_name), show_size(job.answer_bytes)));
        let get = format!("coderingctl results {id} --answer");
        lines.push(match &more.preview {
            Some(text) => format!("         {} ({get})", in_short(text)),
            None => format!("         {get} > {}", harmless(&job.answer_name)),
        });
    }
    lines
}

/// What failed, and what to do about it.
fn failed(job: &Job, line: &str, more: &More, style: Style) -> Vec<String> {
    let id = &job.job_id;
    let mut lines = vec![format!("{}   {line}", style.bad("failed"))];
    if more.failures.is_empty() && !job.message.is_empty() {
        lines.push(format!("         {}", harmless(&job.message)));
    }
    lines.extend(more.failures.iter().map(|failure| format!("         {failure}")));
    if more.build_failed {
        lines.push(format!("         the whole log:   coderingctl job logs {id} --build"));
    }
    lines.push(format!("         what went wrong: coderingctl job show {id}"));
    lines.push(format!("         try it again:    coderingctl job retry {id}"));
    lines
}

/// The beginning of a text on one line.
fn in_short(text: &str) -> String {
    let joined = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" · ");
    brief(&joined, PREVIEW_CHARACTERS)
}

fn rate(per_second: f64) -> String {
    if per_second < 100.0 { format!("{per_second:.1}") } else { format!("{per_second:.0}") }
}

/// `0:02`, `12:30`, `1:02:03`.
fn clock(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{rest:02}") } else { format!("{minutes}:{rest:02}") }
}

#[cfg(test)]
mod tests {
    use codering_proto::v1::TaskCounts;

    use super::*;

    fn job(state: JobState, tasks: TaskCounts) -> Job {
        Job {
            job_id: "j-01jd8qabcd".into(),
            project: "demo".into(),
            name: "wordcount".into(),
            state: state as i32,
            tasks: Some(tasks),
            started_at_ms: 1000,
            finished_at_ms: 10_300,
            ..Default::default()
        }
    }

    #[test]
    fn progress_tells_share_rate_and_time_left() {
        let tasks = TaskCounts { total: 24, succeeded: 14, running: 4, queued: 6, ..Default::default() };
        let event = JobEvent {
            job: Some(job(JobState::Running, tasks)),
            tasks_per_second: 6.2,
            ..Default::default()
        };
        assert_eq!(
            progress(&event, Style::plain()),
            "14/24  58 %   6.2 tasks/s   4 running   0 failed   left 0:02"
        );
        let idle = JobEvent { tasks_per_second: 0.0, ..event };
        assert_eq!(progress(&idle, Style::plain()), "14/24  58 %   4 running   0 failed");
        assert_eq!((clock(750.0), clock(3723.0)), ("12:30".into(), "1:02:03".into()));
    }

    #[test]
    fn a_success_ends_with_its_answer_and_a_failure_with_what_to_do() {
        let tasks = TaskCounts { total: 24, succeeded: 24, retried: 1, ..Default::default() };
        let mut good = job(JobState::Succeeded, tasks);
        (good.answer_name, good.answer_bytes) = ("counts.json".into(), 1229);
        let preview = Some("the 12334\nof 9871\n\x1b[2J".to_owned());
        let more = More { preview, ..More::default() };
        assert_eq!(
            ending(&good, &more, Style::plain()),
            [
                "done     24 succeeded in 9.3s; 1 retried",
                "answer   counts.json, 1.2 KB",
                "         the 12334 · of 9871 · \u{fffd}[2J (coderingctl results j-01jd8qabcd --answer)",
            ]
        );
        let tasks = TaskCounts { total: 3, succeeded: 1, failed: 2, ..Default::default() };
        let failures = vec!["task 7 failed with exit code 1: oops".to_owned()];
        let more = More { failures, build_failed: true, ..More::default() };
        assert_eq!(
            ending(&job(JobState::Failed, tasks), &more, Style::plain()),
            [
                "failed   1 succeeded, 2 failed in 9.3s",
                "         task 7 failed with exit code 1: oops",
                "         the whole log:   coderingctl job logs j-01jd8qabcd --build",
                "         what went wrong: coderingctl job show j-01jd8qabcd",
                "         try it again:    coderingctl job retry j-01jd8qabcd",
            ]
        );
    }
}
