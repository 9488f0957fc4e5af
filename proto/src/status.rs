//! Errors over gRPC: a status with an `ErrorInfo` that carries the code, and back.

use std::collections::HashMap;

use codering_core::{Code, Error, error::Grpc};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

const DOMAIN: &str = "codering";

/// The status of an error.
pub fn to_status(error: &Error) -> Status {
    let code = match error.code.grpc() {
        Grpc::InvalidArgument => tonic::Code::InvalidArgument,
        Grpc::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Grpc::NotFound => tonic::Code::NotFound,
        Grpc::AlreadyExists => tonic::Code::AlreadyExists,
        Grpc::PermissionDenied => tonic::Code::PermissionDenied,
        Grpc::ResourceExhausted => tonic::Code::ResourceExhausted,
        Grpc::FailedPrecondition => tonic::Code::FailedPrecondition,
        Grpc::Internal => tonic::Code::Internal,
        Grpc::Unavailable => tonic::Code::Unavailable,
        Grpc::Unauthenticated => tonic::Code::Unauthenticated,
    };
    let metadata: HashMap<String, String> = [("place", &error.place), ("hint", &error.hint)]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    let details = ErrorDetails::with_error_info(error.code.as_str(), DOMAIN, metadata);
    Status::with_error_details(code, error.message.clone(), details)
}

/// The error of a status; one that codering did not make becomes the nearest of its codes.
pub fn from_status(status: &Status) -> Error {
    let details = status.get_error_details();
    let info = details.error_info().filter(|info| info.domain == DOMAIN);
    let code = info.and_then(|info| Code::parse(&info.reason)).unwrap_or(match status.code() {
        tonic::Code::Unavailable => Code::BrokerUnreachable,
        tonic::Code::Unauthenticated => Code::AuthInvalid,
        tonic::Code::PermissionDenied => Code::AuthDenied,
        tonic::Code::DeadlineExceeded => Code::TimedOut,
        tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Code::InvalidInput,
        tonic::Code::NotFound | tonic::Code::Unimplemented => Code::NotFound,
        tonic::Code::ResourceExhausted => Code::TooLarge,
        _ => Code::Internal,
    });
    let field = |name: &str| info.and_then(|info| info.metadata.get(name)).cloned().unwrap_or_default();
    Error { code, message: status.message().to_owned(), place: field("place"), hint: field("hint") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire_whole() {
        for code in Code::ALL {
            let error = Error::new(*code, "what").at("tasks[3]").hint("do that");
            assert_eq!(from_status(&to_status(&error)), error);
        }
    }
}
