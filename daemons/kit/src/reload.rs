//! `systemctl reload`: SIGHUP has a daemon read its configuration, certificates and secrets again.
//!
//! All of the new takes effect or none of it: what is wrong leaves the old in force. systemd 252 tells nobody how a reload by a
//! signal ended, so the daemon writes its answer below its runtime directory (`RuntimeDirectory=`), and [`request`], which is
//! what the unit's `ExecReload=` runs (`codering-brokerd reload`), sends the signal and waits for that answer.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use codering_core::{Code, Error};
use rustix::process::{Pid, Signal as Number, getpid, kill_process, test_kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{config::Written, health::Readiness, notify, shutdown::Shutdown, telemetry, tls::write_public};

/// In the runtime directory.
const ANSWER_FILE: &str = "reload";
/// systemd's own bound of a reload is 90 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What `/readyz` and `systemctl status` name a configuration that was refused.
const CONDITION: &str = "config";

/// What a reload changed: keys of the configuration.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Effect {
    /// In force now.
    pub now: Vec<String>,
    /// Written down, and in force after a restart.
    pub at_restart: Vec<String>,
}

impl Effect {
    /// Of these keys, those that stand in `at_restart` wait for one.
    pub fn of(changed: Vec<String>, at_restart: &[&str]) -> Self {
        let waits = |key: &String| at_restart.contains(&key.as_str());
        let (at_restart, now) = changed.into_iter().partition(waits);
        Self { now, at_restart }
    }

    fn shown(&self) -> String {
        let now = match self.now.as_slice() {
            [] => "read again: no key that it changes has changed".to_owned(),
            keys => format!("read again: {}", keys.join(", ")),
        };
        match self.at_restart.as_slice() {
            [] => now,
            keys => format!("{now}; only a restart changes {}", keys.join(", ")),
        }
    }
}

/// Where a daemon's configuration came from, and how much of it is in force.
#[derive(Debug)]
pub struct Told {
    /// Read again; `None`: the one that is there by default.
    pub file: Option<PathBuf>,
    /// What is logged.
    pub filter: telemetry::Filter,
    /// As it is written. A key that waits for a restart is told again each time.
    pub in_force: Written,
}

impl Told {
    /// `newer` is in force from now on, but for the keys of `at_restart`.
    pub fn took(&mut self, newer: Written, at_restart: &[&str]) -> Effect {
        let effect = Effect::of(newer.changed_since(&self.in_force), at_restart);
        self.in_force.take_from(newer, &effect.now);
        effect
    }
}

/// SIGHUPs, from the moment that this is made: one that comes during the start is answered after it.
#[derive(Debug)]
pub struct Hangups {
    signals: Signal,
    answers: Option<PathBuf>,
}

impl Hangups {
    /// Listens; call it within a tokio runtime. Without, SIGHUP ends the process.
    ///
    /// # Errors
    /// When the handler cannot be installed.
    pub fn listen() -> io::Result<Self> {
        let this = Self { signals: signal(SignalKind::hangup())?, answers: runtime_directory() };
        this.answer(0, "started", "");
        Ok(this)
    }

    /// Answers each with `again`, which puts the new in force or refuses all of it; until the drain begins.
    /// `settled` is the status line after one that was accepted.
    pub async fn serve(
        mut self,
        readiness: Readiness,
        shutdown: Shutdown,
        settled: String,
        mut again: impl FnMut() -> Result<Effect, Error> + Send,
    ) {
        for number in 1_u64.. {
            tokio::select! {
                _ = self.signals.recv() => {}
                () = shutdown.begun() => return,
            }
            notify::reloading();
            match again() {
                Ok(effect) => {
                    let shown = effect.shown();
                    tracing::info!(
                        now = effect.now.join(" "),
                        at_restart = effect.at_restart.join(" "),
                        "{shown}"
                    );
                    readiness.degraded(CONDITION, None);
                    notify::status(&settled);
                    notify::ready();
                    self.answer(number, "accepted", &shown);
                }
                Err(error) => {
                    let shown = error.to_string();
                    tracing::error!(
                        place = error.place,
                        "the new configuration is refused, the old one stays in force: {shown}"
                    );
                    let status = format!("the old configuration stays in force: {shown}");
                    notify::status(&status);
                    readiness.degraded(CONDITION, Some(status));
                    notify::ready();
                    self.answer(number, "refused", &shown);
                }
            }
        }
    }

    fn answer(&self, number: u64, verdict: &str, text: &str) {
        let Some(directory) = &self.answers else { return };
        let answer = format!("{} {number}\n{verdict}\n{text}\n", getpid().as_raw_nonzero());
        if let Err(e) = write_public(&directory.join(ANSWER_FILE), answer.as_bytes()) {
            tracing::warn!(directory = %directory.display(), "the answer to a reload was not written: {e}");
        }
    }
}

/// For the daemons' tests: `## NAME.toml` of docs/reload.md has a row for every key, and what it says is so.
///
/// # Panics
/// When it is not.
pub fn assert_documented(docs: &str, daemon: &str, keys: &[crate::config::Key], at_restart: &[&str]) {
    let section = docs.split("\n## ").find(|part| part.starts_with(&format!("{daemon}.toml")));
    let rows = section.unwrap_or_default().lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.trim_end_matches('`').to_owned(), cells.next()? == "restart"))
    });
    let mut rows: Vec<_> = rows.collect();
    let mut is: Vec<_> =
        keys.iter().map(|key| (key.path.clone(), at_restart.contains(&key.path.as_str()))).collect();
    rows.sort();
    is.sort();
    assert_eq!(rows, is, "docs/reload.md is not current");
    assert!(at_restart.iter().all(|key| keys.iter().any(|known| known.path == *key)), "{at_restart:?}");
}

/// The first of `$RUNTIME_DIRECTORY`.
fn runtime_directory() -> Option<PathBuf> {
    let all = std::env::var_os("RUNTIME_DIRECTORY")?;
    std::env::split_paths(&all).next().filter(|path| path.is_absolute())
}

/// Has the daemon `$MAINPID` reload, and says what came of it.
///
/// # Errors
/// [`Code::ConfigInvalid`] with the daemon's reason where it refused; [`Code::InvalidInput`] outside a unit's
/// `ExecReload=`; [`Code::TimedOut`] where the daemon does not answer.
pub fn request(daemon: &str) -> Result<String, Error> {
    let outside = |what: &str| {
        Error::new(Code::InvalidInput, format!("{what} is not set: this is what the unit's ExecReload= runs"))
            .hint(format!("systemctl reload {daemon}"))
    };
    let pid = std::env::var("MAINPID").ok().and_then(|pid| Pid::from_raw(pid.parse().ok()?));
    let pid = pid.ok_or_else(|| outside("$MAINPID"))?;
    let directory = runtime_directory().ok_or_else(|| outside("$RUNTIME_DIRECTORY (RuntimeDirectory=)"))?;
    ask(pid, &directory.join(ANSWER_FILE))
}

fn ask(pid: Pid, file: &Path) -> Result<String, Error> {
    let before = fs::read_to_string(file).unwrap_or_default();
    let unsent =
        |e: rustix::io::Errno| Error::new(Code::Internal, format!("no signal to process {pid:?}: {e}"));
    kill_process(pid, Number::HUP).map_err(unsent)?;
    let asked = Instant::now();
    loop {
        let answer = fs::read_to_string(file).unwrap_or_default();
        let mut lines = answer.splitn(3, '\n');
        let (Some(_), Some(verdict), Some(text)) = (lines.next(), lines.next(), lines.next()) else {
            wait(pid, asked)?;
            continue;
        };
        match verdict {
            _ if answer == before => wait(pid, asked)?,
            "accepted" => return Ok(text.trim_end().to_owned()),
            "refused" => return Err(Error::new(Code::ConfigInvalid, text.trim_end())),
            _ => wait(pid, asked)?,
        }
    }
}

fn wait(pid: Pid, since: Instant) -> Result<(), Error> {
    if test_kill_process(pid).is_err() {
        return Err(Error::new(Code::Internal, "the daemon ended meanwhile"));
    }
    if since.elapsed() > ANSWER_WITHIN {
        return Err(Error::new(Code::TimedOut, format!("no answer within {} s", ANSWER_WITHIN.as_secs())));
    }
    std::thread::sleep(LOOK_AGAIN);
    Ok(())
}
