//! What systemd is told (`sd_notify`). Without systemd each of these does nothing.

use sd_notify::NotifyState;

use crate::shutdown::Shutdown;

/// A status is one line of a page.
const STATUS_CHARS: usize = 500;

fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::warn!("systemd was not told {state:?}: {e}");
    }
}

/// `READY=1`: every latch dropped.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// `STOPPING=1`: the drain began.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// `RELOADING=1`; follow it with [`ready`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(e) => tracing::warn!("no monotonic clock: {e}"),
    }
}

/// `EXTEND_TIMEOUT_USEC=`: the start, or the stop, may take this much longer from now on.
pub fn longer(time: std::time::Duration) {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
}

/// `STATUS=`: one line that `systemctl status` shows. Cut where it is long.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(&shown_line(text))]);
}

fn shown_line(text: &str) -> String {
    // A newline would start the next assignment of the protocol.
    let line = text.lines().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(STATUS_CHARS) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

/// Beats `WATCHDOG=1` twice in each interval that systemd asked for, as long as `alive` says so, until the
/// process ends. Returns at once where systemd asked for no watchdog.
pub async fn watchdog(alive: impl Fn() -> bool, shutdown: Shutdown) {
    let Some(interval) = sd_notify::watchdog_enabled().filter(|i| !i.is_zero()) else { return };
    let mut beat = tokio::time::interval(interval / 2);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = shutdown.ended() => return,
        }
        if alive() {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("not alive: systemd's watchdog is left to act");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_cannot_smuggle_in_another_assignment() {
        assert_eq!(shown_line("all well\nREADY=1"), "all well READY=1");
        assert!(shown_line(&"ä".repeat(5000)).chars().count() <= STATUS_CHARS + 1);
    }
}
