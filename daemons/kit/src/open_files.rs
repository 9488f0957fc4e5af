//! How many files and connections this process may have open at once.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than any daemon of ours needs, where the system would allow millions.
const ENOUGH: u64 = 65_536;

/// Raises the soft limit as far as the hard one lets it, and says what it is then. Shells and systemd hand down 1,024,
/// which is for programs that use `select`.
pub fn raise() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(ENOUGH).min(ENOUGH);
    let current = now.current.unwrap_or(ENOUGH);
    if current >= most {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: now.maximum }) {
        Ok(()) => most,
        Err(error) => {
            tracing::warn!(limit = current, "the limit on open files stays: {error}");
            current
        }
    }
}

/// How many connections each of so many listeners may hold, so that the rest of the process (the ledger, logs, the
/// queue) never goes without a file.
pub fn connections(limit: u64, listeners: u64) -> usize {
    let rest = (limit / 4).min(2048);
    usize::try_from((limit - rest) / listeners.max(1)).unwrap_or(usize::MAX).clamp(16, MOST)
}

/// Connections of one listener, however many files there may be.
const MOST: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        for limit in [256, 1024, 4096, 20_000, 65_536] {
            let connections = connections(limit, 2) as u64 * 2;
            assert!(connections + (limit / 4).min(2048) <= limit, "{limit}: {connections}");
        }
        assert_eq!(connections(20_000, 2), 4096);
        assert_eq!(connections(1024, 2), 384);
    }

    #[test]
    fn the_limit_is_as_high_as_it_may_be() {
        let raised = raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, Some(raised));
        assert!(raised >= ENOUGH || limit.current == limit.maximum);
    }
}
