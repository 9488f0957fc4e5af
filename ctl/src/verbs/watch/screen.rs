//! Where progress goes: a bar on a terminal, now and then a line elsewhere, nothing where stdout
//! carries the events.

use std::time::{Duration, Instant};

use codering_proto::v1::{JobEvent, JobState};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    Show, is_final,
    words::{done, heading, progress},
};
use crate::{output::Out, verbs::words::harmless};

/// The longest that a log file goes without a line of progress, while there is some.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// `100000/100000  100 %   100.0 tasks/s   16 running   0 failed   left 1:00:00` with two spaces before it.
const LONGEST_PROGRESS: usize = 64;

/// Shows events as they come.
pub struct Screen<'a> {
    out: &'a Out,
    show: Show,
    bar: Option<ProgressBar>,
    last_line: Option<(Instant, JobState, u64)>,
}

impl<'a> Screen<'a> {
    /// Chooses by what stderr is.
    pub fn new(out: &'a Out, show: Show) -> Self {
        let bar = (out.may_draw() && show != Show::End).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template(&format!("{{bar:{}}}  {{msg}}", bar_width()))
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
            bar
        });
        Self { out, show, bar, last_line: None }
    }

    /// One event.
    pub fn show(&mut self, event: &JobEvent) {
        if self.show == Show::End {
            return;
        }
        if let Some(job) = &event.job
            && self.show == Show::Whole
        {
            self.show = Show::Progress;
            if !self.out.is_json() {
                self.note(&heading(job));
            }
        }
        for note in &event.notes {
            self.note(&harmless(note));
        }
        let Some(job) = &event.job else { return };
        if let Some(bar) = &self.bar {
            bar.set_length(job.tasks.unwrap_or_default().total);
            bar.set_position(done(job));
            bar.set_message(progress(event, self.out.style()));
            bar.tick();
            return;
        }
        if self.out.is_json() {
            return;
        }
        let (state, count) = (job.state(), done(job));
        if is_final(state) {
            // Its end is told by who waits for it.
            return;
        }
        let due = self
            .last_line
            .is_none_or(|(at, was, before)| was != state || (before != count && at.elapsed() >= LINE_EVERY));
        if due {
            self.last_line = Some((Instant::now(), state, count));
            self.out.note(progress(event, self.out.style()));
        }
    }

    /// A line that stays.
    pub fn note(&self, line: &str) {
        self.notes().note(line);
    }

    /// For who writes lines beside it.
    pub fn notes(&self) -> Notes<'a> {
        Notes { out: self.out, bar: self.bar.clone() }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What the longest line of progress leaves of the terminal.
fn bar_width() -> usize {
    let columns =
        rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |size| usize::from(size.ws_col));
    columns.saturating_sub(LONGEST_PROGRESS).clamp(8, 30)
}

/// Lines that stay, above the bar where there is one.
pub struct Notes<'a> {
    out: &'a Out,
    bar: Option<ProgressBar>,
}

impl Notes<'_> {
    /// One line.
    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.out.note(line)),
            None => self.out.note(line),
        }
    }
}
