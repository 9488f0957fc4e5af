//! `job show`: the whole story of a job as lines of text. Pure; [`super::show`] fetches what it tells.

use codering_core::{
    time::Millis,
    units::{show_duration, show_size},
};
use codering_proto::v1::{Build, Job, JobState, Outcome, Phases, Task, TaskResult};
use serde::Serialize;

use crate::verbs::words::{ago, clock, command, commit, harmless, limits, outcome, state};

/// Lines of a failed task's output that the page shows.
const LAST_LINES: usize = 6;

/// All that the page tells.
#[derive(Serialize)]
pub struct Story {
    /// The job itself.
    #[serde(flatten)]
    pub job: Job,
    /// Its image's builds, oldest first.
    pub builds: Vec<Build>,
    /// The first of its results, from which the phases of a task are taken.
    #[serde(skip)]
    pub sample: Vec<TaskResult>,
    /// The first of its failed tasks, with their results.
    pub failed_tasks: Vec<Task>,
    /// The first of its running tasks.
    pub running_tasks: Vec<Task>,
    /// The newest reduce step.
    pub reduce_task: Option<Task>,
    /// How many workers could run it, where the token may ask.
    #[serde(skip)]
    pub workers_connected: Option<usize>,
}

impl Story {
    /// The page.
    pub fn lines(&self, now: Millis) -> Vec<String> {
        let mut lines = self.head(now);
        section(&mut lines, "phases", self.phases(now));
        section(&mut lines, "running now", self.running(now));
        section(&mut lines, &self.failed_title(), self.failed());
        let next = self.next();
        let width = next.iter().map(|(question, _)| question.chars().count()).max().unwrap_or(0);
        let next = next.into_iter().map(|(question, command)| format!("{question:width$}  {command}"));
        section(&mut lines, "what next", next.collect());
        lines
    }

    fn head(&self, now: Millis) -> Vec<String> {
        let job = &self.job;
        let mut lines = Vec::new();
        let mut say = |label: &str, text: String| {
            if !text.is_empty() {
                lines.push(format!("{label:<10} {text}"));
            }
        };
        let open = if job.open { "  (the project's open job: it adopts raw messages)" } else { "" };
        say("job", format!("{}  {}{open}", job.job_id, harmless(&job.name)));
        say("project", job.project.clone());
        let state = self.state();
        let why = if state.contains(&job.message) { String::new() } else { harmless(&job.message) };
        say("state", state);
        say("why", why);
        let by = if job.submitted_by.is_empty() { "-" } else { &job.submitted_by };
        say(
            "submitted",
            format!(
                "by {}, {} ago ({})",
                harmless(by),
                ago(job.created_at_ms, now),
                clock(job.created_at_ms)
            ),
        );
        say("code", self.code());
        say("command", harmless(command(job.command.as_ref())));
        say("limits", job.limits.as_ref().map(limits).unwrap_or_default());
        say("image", self.image());
        say("tasks", self.tasks());
        if !job.reduce_command.is_empty() {
            say("reduce", harmless(&job.reduce_command));
        }
        if self.has_answer() {
            let size = if job.answer_bytes > 0 {
                format!(", {}", show_size(job.answer_bytes))
            } else {
                String::new()
            };
            say("answer", format!("{}{size}", harmless(&job.answer_name)));
        }
        lines
    }

    fn has_answer(&self) -> bool {
        self.job.answer_bytes > 0
            || self.job.state() == JobState::Succeeded && !self.job.reduce_command.is_empty()
    }

    fn state(&self) -> String {
        let counts = self.job.tasks.unwrap_or_default();
        match self.job.state() {
            JobState::Queued if self.workers_connected == Some(0) => {
                "queued: no worker takes tasks; none is connected, or all are paused".into()
            }
            // What went wrong stands on the next line.
            JobState::Queued if self.job.message.starts_with("waits for ") => "queued".into(),
            JobState::Queued if !self.job.message.is_empty() => "queued: will be tried again".into(),
            JobState::Queued => "queued: waits for a free slot".into(),
            JobState::Running => format!("running: {} of {} tasks done", done(&self.job), counts.total),
            JobState::Paused => "paused: what runs goes on, nothing new is started".into(),
            JobState::Reducing => "reducing: all tasks are done, the reduce step is not".into(),
            JobState::Failed if counts.failed > 0 => {
                format!("failed: {} of {} tasks failed", counts.failed, counts.total)
            }
            other => state(other),
        }
    }

    fn code(&self) -> String {
        let job = &self.job;
        if job.git_url.is_empty() {
            return String::new();
        }
        let reference = if job.git_ref.is_empty() { "HEAD" } else { &job.git_ref };
        let at = match job.commit.as_str() {
            "" => "  (its commit is pinned when the first task starts)".to_owned(),
            hash if hash == reference => String::new(),
            hash => format!(" at {}", commit(hash)),
        };
        let reference = if reference == job.commit { commit(reference) } else { harmless(reference) };
        format!("{}  {reference}{at}", harmless(codering_core::spec::without_password(&job.git_url)))
    }

    fn image(&self) -> String {
        let image = self.builds.iter().rev().map(|build| &build.image);
        let image = image.chain(self.sample.iter().map(|result| &result.image)).find(|name| !name.is_empty());
        image.map(harmless).unwrap_or_default()
    }

    fn tasks(&self) -> String {
        let c = self.job.tasks.unwrap_or_default();
        let parts = [
            (c.succeeded, "succeeded"),
            (c.failed, "failed"),
            (c.cancelled, "cancelled"),
            (c.running, "running"),
            (c.queued, "queued"),
        ];
        let parts: Vec<_> =
            parts.iter().filter(|part| part.0 > 0).map(|(n, name)| format!("{n} {name}")).collect();
        let retried = if c.retried > 0 { format!("; {} retried", c.retried) } else { String::new() };
        match parts.as_slice() {
            [] => c.total.to_string(),
            _ => format!("{}: {}{retried}", c.total, parts.join(", ")),
        }
    }

    fn phases(&self, now: Millis) -> Vec<String> {
        let job = &self.job;
        let mut lines = Vec::new();
        let mut say = |name: &str, ms: u64, what: String| {
            lines.push(format!("{name:<10} {:>8}  {what}", show_duration(ms)));
        };
        let since = |from: Millis, to: Millis| u64::try_from(to.saturating_sub(from)).unwrap_or(0);
        match job.started_at_ms {
            0 => say("queued", since(job.created_at_ms, now), "so far: no task has started".into()),
            started => {
                say("queued", since(job.created_at_ms, started), "from the submit to the first task".into())
            }
        }
        let median = |phase: fn(&Phases) -> u64| {
            let mut all: Vec<u64> =
                self.sample.iter().filter_map(|result| result.phases.as_ref().map(phase)).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied()
        };
        let of = match self.sample.len() {
            1 => "a task (one measured)".to_owned(),
            n => format!("a task (median of {n})"),
        };
        if let Some(ms) = median(|phases| phases.checkout_ms) {
            say("checkout", ms, of.clone());
        }
        for build in &self.builds {
            let cached = match build.cached_steps {
                0 => String::new(),
                n => format!(", {n} of {} steps cached", build.steps),
            };
            let failed = if build.succeeded { "" } else { ": FAILED" };
            say("build", build.took_ms, format!("of the image, on {}{cached}{failed}", build.worker));
        }
        for (name, ms) in
            [("start", median(|phases| phases.start_ms)), ("run", median(|phases| phases.run_ms))]
        {
            if let Some(ms) = ms {
                say(name, ms, of.clone());
            }
        }
        if let Some(result) = self.reduce_task.as_ref().and_then(|task| task.result.as_ref()) {
            let took = since(result.started_at_ms, result.finished_at_ms);
            say("reduce", took, format!("{}, on {}", outcome(result.outcome()), result.worker));
        }
        if job.started_at_ms != 0 {
            match job.finished_at_ms {
                0 => say(
                    "altogether",
                    since(job.started_at_ms, now),
                    "so far, since the first task started".into(),
                ),
                end => {
                    say("altogether", since(job.started_at_ms, end), "from the first task to the end".into())
                }
            }
        }
        lines
    }

    fn running(&self, now: Millis) -> Vec<String> {
        let more = self.job.tasks.unwrap_or_default().running.saturating_sub(self.running_tasks.len() as u64);
        let mut lines: Vec<_> = self
            .running_tasks
            .iter()
            .map(|task| {
                let since =
                    task.attempts.last().map(|attempt| attempt.leased_at_ms).unwrap_or(task.updated_at_ms);
                format!(
                    "{}  on {}, attempt {}, for {}",
                    task.task_id,
                    task.worker,
                    task.attempt,
                    ago(since, now)
                )
            })
            .collect();
        if more > 0 && !lines.is_empty() {
            lines.push(format!("and {more} more"));
        }
        lines
    }

    fn failed_title(&self) -> String {
        let all = self.job.tasks.unwrap_or_default().failed;
        let shown = self.failed_tasks.len() as u64;
        if all > shown { format!("failed tasks (the first {shown} of {all})") } else { "failed tasks".into() }
    }

    fn failed(&self) -> Vec<String> {
        let reduce = self.reduce_task.iter().filter(|task| {
            !matches!(task.outcome(), Outcome::Unspecified | Outcome::Succeeded | Outcome::Cancelled)
        });
        let mut lines = Vec::new();
        let (mut told, mut same) = (None, Vec::new());
        for task in self.failed_tasks.iter().chain(reduce) {
            if task.outcome() == Outcome::BuildFailed {
                let why = task.result.as_ref().map(|result| harmless(&result.message)).unwrap_or_default();
                if told.as_ref() == Some(&why) {
                    same.push(task.task_id.as_str());
                    continue;
                }
                told = Some(why);
            }
            lines.push(format!("{}  {}", task.task_id, how_it_failed(task)));
            let Some(result) = &task.result else { continue };
            let output = if result.stderr.is_empty() { &result.stdout } else { &result.stderr };
            lines.extend(last_lines(output).into_iter().map(|line| format!("  | {line}")));
        }
        if !same.is_empty() {
            lines.push(format!("{}  the same", same.join(", ")));
        }
        lines
    }

    /// The questions that this page raises, each with the command that answers it.
    fn next(&self) -> Vec<(&'static str, String)> {
        let id = &self.job.job_id;
        let counts = self.job.tasks.unwrap_or_default();
        let mut next = Vec::new();
        let mut answer = |question, verb: &str, rest: &str| {
            next.push((question, format!("coderingctl {verb} {id}{rest}")));
        };
        let unfinished =
            !matches!(self.job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled);
        if unfinished {
            answer("see it go on", "watch", "");
        }
        if let Some(task) = self.running_tasks.first() {
            answer("what a running task prints", "task logs", &format!("/{} --follow", task.task_id));
        }
        if self.failed_tasks.iter().any(|task| task.outcome() == Outcome::BuildFailed)
            || self.builds.iter().any(|build| !build.succeeded)
        {
            answer("why the image could not be built", "job logs", " --build");
        }
        if let Some(task) = self.failed_tasks.first() {
            answer("all that a failed task printed", "task logs", &format!("/{}", task.task_id));
            answer("every try at it", "task show", &format!("/{}", task.task_id));
        }
        if counts.failed > self.failed_tasks.len() as u64 {
            answer("every failed task", "task list", " --failed");
        }
        if !unfinished && counts.failed + counts.cancelled > 0 {
            answer("run again what failed", "job retry", "");
        }
        if self.has_answer() {
            answer("the answer", "results", " --answer");
        }
        if counts.succeeded > 0 {
            answer("the results so far as JSON lines", "results", " --output jsonl");
        }
        if self.job.state() == JobState::Succeeded && self.job.reduce_command.is_empty() && !self.job.open {
            answer("make one answer of them", "reduce", " -- COMMAND");
        }
        match self.job.state() {
            JobState::Paused => answer("let it go on", "job resume", ""),
            JobState::Queued | JobState::Running if !self.job.open => {
                answer("hold it", "job pause", "");
                answer("give it up", "job cancel", "");
            }
            _ => {}
        }
        if self.workers_connected == Some(0) {
            next.push(("which workers there are", "coderingctl worker list".to_owned()));
        }
        next
    }
}

fn section(lines: &mut Vec<String>, title: &str, content: Vec<String>) {
    if !content.is_empty() {
        lines.push(String::new());
        lines.push(title.to_owned());
        lines.extend(content.into_iter().map(|line| format!("  {line}")));
    }
}

fn done(job: &Job) -> u64 {
    let counts = job.tasks.unwrap_or_default();
    counts.succeeded + counts.failed + counts.cancelled
}

/// `exit code 1 on w1, attempt 3`; what the broker said of it, where it said something.
pub fn how_it_failed(task: &Task) -> String {
    let mut text = outcome(task.outcome()).to_owned();
    let result = task.result.as_ref();
    match result.map(|result| (result.exit_code, result.signal)) {
        // That one past a limit was killed goes without saying.
        Some((_, Some(_))) if task.outcome() != Outcome::Failed => {}
        Some((_, Some(signal))) => text = format!("{text}, ended by signal {signal}"),
        Some((Some(code), None)) => text = format!("{text}, exit code {code}"),
        _ => {}
    }
    if task.attempt > 0 {
        text = format!("{text}, attempt {}", task.attempt);
    }
    if !task.worker.is_empty() {
        text = format!("{text} on {}", task.worker);
    }
    match result.map(|result| harmless(&result.message)) {
        Some(message) if !message.is_empty() => format!("{text}: {message}"),
        _ => text,
    }
}

/// The last lines of an output, safe to show on a terminal.
pub fn last_lines(output: &[u8]) -> Vec<String> {
    // The last 16 KiB hold the last lines of anything that a person would read.
    let tail = &output[output.len().saturating_sub(16 << 10)..];
    let text = String::from_utf8_lossy(tail);
    let lines: Vec<_> = text.trim_end().lines().map(harmless).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].to_vec()
}

#[cfg(test)]
#[path = "story_tests.rs"]
mod tests;
