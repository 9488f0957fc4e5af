//! Exit codes, as documented in the help.

use codering_core::{Code, error::Grpc};

/// The job, task or run failed.
pub const FAILED: u8 = 1;
/// Interrupted by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// The exit code of an error.
pub fn of(code: Code) -> u8 {
    match code {
        Code::BrokerUnreachable | Code::BrokerStopping => 5,
        Code::ConfigInvalid => 2,
        Code::AuthTooMany => 4,
        _ => match code.grpc() {
            Grpc::InvalidArgument => 2,
            Grpc::NotFound => 3,
            Grpc::PermissionDenied | Grpc::Unauthenticated => 4,
            Grpc::DeadlineExceeded => 6,
            _ => FAILED,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_error_has_its_documented_exit_code() {
        let cases = [
            (Code::JobUnknownField, 2),
            (Code::JobNotFound, 3),
            (Code::AuthDenied, 4),
            (Code::AuthMissing, 4),
            (Code::AuthTooMany, 4),
            (Code::BrokerUnreachable, 5),
            (Code::TimedOut, 6),
            (Code::QuotaExceeded, 1),
        ];
        for (code, exit) in cases {
            assert_eq!(of(code), exit, "{}", code.as_str());
        }
    }
}
