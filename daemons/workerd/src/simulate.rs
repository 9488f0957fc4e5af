//! `--simulate`: attempts without git and Docker, for tests and measurements of all that is around them. A command line
//! is read as a few words that steer it; whatever else it says, it succeeds at once and writes nothing.

use std::time::Duration;

use codering_core::{Command, Outcome};

use crate::{
    attempt::{Ended, Fault},
    held::Held,
    output::Stream,
};

/// Runs `sleep TIME` or `sleep SHORTEST-LONGEST`, `exit CODE` and `echo TEXT`, in a sequence separated by `;` or `&&`.
pub(crate) async fn run(command: &Command, timeout: Duration, held: &Held) -> Result<Ended, Fault> {
    held.enter("run");
    held.runs_in("simulated", "simulated");
    let line = match command {
        Command::Shell(line) => line.clone(),
        Command::Argv(args) => args.join(" "),
    };
    tokio::select! {
        biased;
        why = held.stopped() => Err(Fault::Stopped(why)),
        code = steps(&line, held) => Ok(Ended::exited(code)),
        () = tokio::time::sleep(timeout) => Ok(Ended::of(Outcome::TimedOut, "simulated: it ran past its limit")),
    }
}

async fn steps(line: &str, held: &Held) -> i32 {
    for step in line.split([';', '&']).map(str::trim) {
        match step.split_once(' ').map(|(word, rest)| (word, rest.trim())) {
            Some(("sleep", time)) => {
                let (shortest, longest) = time.split_once('-').unwrap_or((time, time));
                let ms = |time| codering_core::units::duration_ms(time).unwrap_or(0);
                let (shortest, longest) = (ms(shortest), ms(longest));
                let ms = rand::random_range(shortest..=longest.max(shortest));
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            Some(("exit", code)) => return code.parse().unwrap_or(0),
            Some(("echo", text)) => _ = held.capture.push(Stream::Stdout, format!("{text}\n").as_bytes()),
            _ => {}
        }
    }
    0
}
