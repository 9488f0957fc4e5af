//! Logs: to the journal with their fields when systemd started the process, as text on stderr otherwise.
//!
//! A field `job` becomes `CODERING_JOB` in the journal, so that `journalctl CODERING_JOB=j-…` tells one job's story.

use std::{
    io::IsTerminal,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use codering_core::{Code, Error};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// lapin writes as errors what it also answers: a queue that is not there, a RabbitMQ that restarts. What of it is an error, the
/// queue's own supervisor says.
pub const DEFAULT_FILTER: &str = "info,lapin=off";

/// What of this process is logged; it can be changed while it runs.
#[derive(Debug, Clone)]
pub struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    /// From now on by this filter.
    pub fn set(&self, filter: EnvFilter) {
        if let Err(e) = self.0.reload(filter) {
            tracing::warn!("the log's filter was not changed: {e}");
        }
    }
}

/// A filter from what the key `log` says.
///
/// # Errors
/// [`Code::ConfigInvalid`] at `log`.
pub fn filter(directives: &str) -> Result<EnvFilter, Error> {
    let filter = EnvFilter::try_new(directives).map_err(|e| {
        Error::new(Code::ConfigInvalid, format!("`log`: is no log filter: {e}"))
            .at("log")
            .hint("for example `info` or `warn,codering_brokerd=debug`")
    })?;
    // lapin warns of a returned message with its whole body, which is a user's.
    let bodies = "lapin::returned_messages=off".parse();
    Ok(bodies.into_iter().fold(filter, EnvFilter::add_directive))
}

/// Starts logging for this process; `daemon` is the journal's identifier, e.g. `codering-brokerd`.
///
/// # Errors
/// [`Code::Internal`] when it was called before.
pub fn init(daemon: &str, filter: EnvFilter) -> Result<Filter, Error> {
    let (filter, handle) = reload::Layer::new(filter);
    let journal = if stderr_is_journal() { tracing_journald::layer().ok() } else { None };
    let registry = Registry::default().with(filter);
    let started = match journal {
        Some(layer) => {
            // By default an info would be a notice there, and be shown as something out of the ordinary.
            let priorities = PriorityMappings {
                info: Priority::Informational,
                debug: Priority::Debug,
                ..PriorityMappings::new()
            };
            let layer = layer
                .with_field_prefix(Some("CODERING".into()))
                .with_syslog_identifier(daemon.to_owned())
                .with_priority_mappings(priorities);
            registry.with(layer).try_init()
        }
        None => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            registry
                .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours))
                .try_init()
        }
    };
    started.map_err(|e| Error::new(Code::Internal, format!("logging was started before: {e}")))?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("panicked");
        tracing::error!(place, "panic: {message}");
    }));
    Ok(Filter(handle))
}

/// Whether stderr is the very stream that systemd connected to the journal: `JOURNAL_STREAM` is `device:inode`.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = std::io::stderr().as_fd().try_clone_to_owned() else { return false };
    std::fs::File::from(stderr).metadata().is_ok_and(|about| is_stream(&stream, about.dev(), about.ino()))
}

fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_used_only_when_stderr_is_its_stream() {
        assert!(is_stream("8:1234", 8, 1234));
        for other in ["8:1235", "9:1234", "", "8", "x:y"] {
            assert!(!is_stream(other, 8, 1234), "{other}");
        }
    }
}
