//! Errors as RFC 9457 problem documents.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use codering_core::{Code, Error};
use serde_json::{Value, json};

/// An error on its way out.
#[derive(Debug)]
pub struct Problem(pub Error);

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// The document: `type`, `title`, `status` and `detail` of the RFC, and what codering's errors have besides.
pub fn document(error: &Error) -> Value {
    let mut document = json!({
        "type": format!("urn:codering:error:{}", error.code.as_str()),
        "title": error.code.meaning(),
        "status": error.code.http(),
        "detail": error.message,
        "code": error.code.as_str(),
    });
    for (key, text) in [("place", &error.place), ("hint", &error.hint)] {
        if !text.is_empty() {
            document[key] = json!(text);
        }
    }
    document
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(document(&self.0))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // As long as a wrong token takes to be forgiven, and about as long as the rest does.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("3"));
            }
            _ => {}
        }
        response
    }
}

/// For paths that are none of ours.
pub async fn no_route() -> Problem {
    Problem(
        Error::new(Code::NotFound, "there is no such route").hint("they are listed in /api/v1/openapi.json"),
    )
}

/// For methods that a path does not take.
pub async fn no_method() -> Problem {
    Problem(
        Error::new(Code::MethodNotAllowed, "the route does not take this method")
            .hint("the header `allow` names those that it takes"),
    )
}
