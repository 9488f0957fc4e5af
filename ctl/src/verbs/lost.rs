//! A connection that broke while something was read from it, and how soon to try again.

use std::time::Duration;

use codering_core::Code;
use codering_proto::status::from_status;
use tonic::Status;

/// The pause before the first try to connect again; doubled after each.
pub const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Whether the connection broke or the broker stops, rather than the broker having answered no.
pub fn is_lost(status: &Status) -> bool {
    let error = from_status(status);
    match error.code {
        Code::BrokerUnreachable | Code::BrokerStopping | Code::BrokerBusy => true,
        // What a torn HTTP/2 stream looks like, depending on where it tore.
        Code::Internal => {
            matches!(status.code(), tonic::Code::Unknown | tonic::Code::Cancelled | tonic::Code::Aborted)
                || status.message().contains("h2 protocol error")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use codering_core::Error;
    use codering_proto::status::to_status;

    use super::*;

    #[test]
    fn a_torn_stream_is_lost_and_an_answer_is_not() {
        for lost in [
            Status::unavailable("gone"),
            Status::unknown("h2 protocol error: broken pipe"),
            Status::cancelled(""),
        ] {
            assert!(is_lost(&lost), "{lost}");
        }
        assert!(is_lost(&to_status(&Error::new(Code::BrokerStopping, "stopping"))));
        for code in [
            Code::JobNotFound,
            Code::AuthDenied,
            Code::QueueNotFound,
            Code::Internal,
            Code::LedgerUnavailable,
        ] {
            assert!(!is_lost(&to_status(&Error::new(code, "no"))), "{}", code.as_str());
        }
    }
}
