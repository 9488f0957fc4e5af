//! A build's output: its end is kept, its steps are counted.

/// What is kept of it.
const MAX_LOG_BYTES: usize = 256 << 10;
/// No line is looked at beyond this.
const MAX_LINE_BYTES: usize = 4 << 10;
/// Stages whose ends are remembered.
const MAX_STAGES: usize = 100;

/// What the classic builder said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildLog {
    text: String,
    line: String,
    truncated: bool,
    steps: u32,
    cached: u32,
    step: String,
    running: String,
    last_id: Option<String>,
    stage_ends: Vec<String>,
}

impl BuildLog {
    /// More of it.
    pub fn push(&mut self, text: &str) {
        let clean = clean(text);
        for part in clean.split_inclusive('\n') {
            if self.line.len() < MAX_LINE_BYTES {
                self.line.push_str(part);
            }
            if part.ends_with('\n') {
                self.end_line();
            }
        }
        self.text.push_str(&clean);
        // Cut now and then, not at every line.
        if self.text.len() > 2 * MAX_LOG_BYTES {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.text.len() <= MAX_LOG_BYTES {
            return;
        }
        let mut from = self.text.len() - MAX_LOG_BYTES;
        while !self.text.is_char_boundary(from) {
            from += 1;
        }
        self.text.drain(..from);
        self.truncated = true;
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = line.trim_end();
        if let Some(total) = step_total(line) {
            self.steps = total;
            line.clone_into(&mut self.step);
            if self.at_from() {
                self.end_stage();
            }
        } else if let Some(id) = line.strip_prefix(" ---> Running in ").filter(|id| is_id(id)) {
            id.clone_into(&mut self.running);
        } else if line == " ---> Using cache" {
            self.cached += 1;
        } else if let Some(id) = line.strip_prefix(" ---> ").filter(|id| is_id(id))
            && !self.at_from()
        {
            self.last_id = Some(id.to_owned());
        }
    }

    fn at_from(&self) -> bool {
        self.step.split(" : ").nth(1).is_some_and(|what| what.to_ascii_uppercase().starts_with("FROM "))
    }

    fn end_stage(&mut self) {
        if let Some(id) = self.last_id.take()
            && self.stage_ends.len() < MAX_STAGES
        {
            self.stage_ends.push(id);
        }
    }

    /// The images that a build leaves without a name: where its stages ended, and where it failed.
    pub fn leftovers(&mut self, failed: bool) -> Vec<String> {
        if failed {
            self.end_stage();
        }
        self.stage_ends.clone()
    }

    /// How many steps the Dockerfile has.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// How many of them came from the cache.
    pub fn cached_steps(&self) -> u32 {
        self.cached
    }

    /// The step that it is at, e.g. `Step 3/5 : RUN make`.
    pub fn step(&self) -> &str {
        &self.step
    }

    /// The container that a step ran in last; empty before the first.
    pub fn running(&self) -> &str {
        &self.running
    }

    /// The step for people, e.g. `step 3 of 5: RUN make`; `None` before the first.
    pub fn place(&self) -> Option<String> {
        let (at, what) = self.step.strip_prefix("Step ")?.split_once(" : ")?;
        let (number, total) = at.split_once('/')?;
        Some(format!("step {number} of {total}: {what}"))
    }

    /// The last lines.
    pub fn last_lines(&self, n: usize) -> String {
        let lines: Vec<&str> = self.text.lines().rev().take(n).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// The text, and whether its beginning is missing.
    pub fn finish(mut self) -> (String, bool) {
        self.cut();
        (self.text, self.truncated)
    }
}

/// Without escape sequences (Docker itself colours standard error) and control characters: a log is shown on terminals.
fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                let rest = chars.as_str();
                if let Some(sequence) = rest.strip_prefix('[')
                    && let Some(end) = sequence.find(|c: char| ('@'..='~').contains(&c))
                {
                    chars = sequence[end + 1..].chars();
                }
            }
            '\n' | '\t' => out.push(c),
            // What rewrites a line is shown as another.
            '\r' if !chars.as_str().starts_with('\n') => out.push('\n'),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// The short id of an image.
fn is_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// `5` of `Step 3/5 : RUN make`.
fn step_total(line: &str) -> Option<u32> {
    let (count, _) = line.strip_prefix("Step ")?.split_once(" : ")?;
    let (at, total) = count.split_once('/')?;
    at.parse::<u32>().ok()?;
    total.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_cached_steps_are_counted_across_pieces() {
        let mut log = BuildLog::default();
        for piece in
            ["Step 1/3 : FROM x\n ---> abc\nStep 2", "/3 : RUN a\n ---> Using cache\n", "Step 3/3 : RUN b\n"]
        {
            log.push(piece);
        }
        assert_eq!((log.steps(), log.cached_steps(), log.step()), (3, 1, "Step 3/3 : RUN b"));
        assert_eq!(log.last_lines(1), "Step 3/3 : RUN b");
    }

    #[test]
    fn what_a_build_leaves_without_a_name_is_known_and_a_base_image_is_none_of_it() {
        let said = "Step 1/4 : FROM base AS a\n ---> aaaaaaaaaaaa\nStep 2/4 : RUN x\n ---> Running in 000000000000\n ---> bbbbbbbbbbbb\n\
                    Step 3/4 : FROM base\n ---> aaaaaaaaaaaa\nStep 4/4 : RUN y\n ---> cccccccccccc\n";
        let mut log = BuildLog::default();
        log.push(said);
        assert_eq!(log.leftovers(false), ["bbbbbbbbbbbb"]);
        assert_eq!(log.leftovers(true), ["bbbbbbbbbbbb", "cccccccccccc"]);
    }

    #[test]
    fn the_end_is_kept_and_terminals_are_spared() {
        let mut log = BuildLog::default();
        for n in 0..100_000 {
            log.push(&format!("ä line {n} \u{1b}[31m\n"));
        }
        let (text, truncated) = log.finish();
        assert!(truncated && text.len() <= MAX_LOG_BYTES);
        assert!(text.contains("line 99999\n") || text.contains("line 99999 \n"), "the end is missing");
        assert_eq!(clean("\u{1b}[91mbad\u{1b}[0m\0\r\nworse\u{1b}"), "bad\nworse");
    }
}
