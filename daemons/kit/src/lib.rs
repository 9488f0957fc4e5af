//! What every codering daemon's process needs, and nothing of what the daemon is for.
//!
//! - [`config`]: file, drop-ins and environment into one checked value; every mistake with its place.
//! - [`telemetry`]: logs to the journal or to a terminal; [`notify`]: what systemd is told.
//! - [`shutdown`]: signals into one drain with a deadline; [`reload`]: SIGHUP into new settings, or a reason why not.
//! - [`live`]: a value that is replaced while it is used; [`inherited`]: the sockets that systemd holds for the daemon.
//! - [`tls`]: the CA, certificates and rustls configurations; [`listen`]: serving; [`connect`]: calling, [`proxy`]: through what.
//! - [`disk`]: how much room is left, and the reserve that is kept.
//! - [`open_files`]: how many the process may have; [`clock`]: the time for records; [`host`]: this machine.
//! - [`health`]: `/healthz`, `/readyz` and `/metrics`; [`fault`]: where a test lets a process die.
//!
//! It keeps no global state but the log subscriber and rustls's provider, which the process has once.

pub mod clock;
pub mod config;
pub mod connect;
pub mod disk;
pub mod fault;
pub mod health;
pub mod host;
pub mod inherited;
pub mod listen;
pub mod live;
pub mod notify;
pub mod open_files;
pub mod proxy;
pub mod reload;
pub mod shutdown;
pub mod telemetry;
pub mod tls;

use std::process::ExitCode;

use codering_core::{Code, Error};

/// Prints `error[code]: place: message (hint)` to stderr. The exit code is 2 where no restart mends it, so that a unit may
/// refuse to start again on it, and 1 otherwise.
pub fn failed(error: &Error) -> ExitCode {
    eprintln!("error[{}]: {error}", error.code.as_str());
    ExitCode::from(exit_code(error.code))
}

fn exit_code(code: Code) -> u8 {
    match code {
        // The configuration is at fault; or a broker has refused what this daemon has to show.
        Code::ConfigInvalid | Code::AuthDenied | Code::AuthInvalid | Code::WorkerRevoked => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_restart_mends_ends_with_a_status_of_its_own() {
        for code in [Code::ConfigInvalid, Code::AuthDenied, Code::AuthInvalid, Code::WorkerRevoked] {
            assert_eq!(exit_code(code), 2, "{code:?}");
        }
        for code in [Code::BrokerUnreachable, Code::AuthTooMany, Code::LedgerUnavailable, Code::Internal] {
            assert_eq!(exit_code(code), 1, "{code:?}");
        }
    }
}
