//! What comes in, read within bounds of bytes and time, and what is wrong with it told as a problem.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use bytes::Bytes;
use codering_core::{Code, Error, ProjectName, QueueName, WorkerName, ids::shown};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::problem::Problem;
use crate::api::{call::Call, rooms::Place};

/// Bytes of a body, where nothing else is said.
pub const GENERAL_BYTES: usize = 1 << 20;
/// A client slower than this, over a body's whole allowance, is not waited for.
const SLOWEST_BYTES_PER_SECOND: u64 = 100 << 10;
/// On top of that.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

impl<S: Sync> FromRequestParts<S> for Call {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let call = parts.extensions.get::<Call>().cloned();
        Ok(call.ok_or_else(|| Error::new(Code::Internal, "a call that was not let in"))?)
    }
}

/// What stands in the path.
pub struct Named<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        let path = path.map_err(|e| Error::new(Code::InvalidInput, e.body_text()).at("path"))?;
        Ok(Self(path.0))
    }
}

/// What stands in the query.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        let query = query.map_err(|e| Error::new(Code::InvalidInput, e.body_text()).at("query"))?;
        Ok(Self(query.0))
    }
}

/// A JSON body as it came, of at most so many bytes. Its room is held until it is dropped.
pub struct Raw<const MOST: usize> {
    /// Not looked at yet.
    pub bytes: Bytes,
    _place: Place,
}

impl<const MOST: usize, S: Sync> FromRequest<S> for Raw<MOST> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        check_type(request.headers())?;
        let (bytes, place) = read(request, MOST).await?;
        Ok(Self { bytes, _place: place })
    }
}

/// A JSON body of this type.
pub struct Json<T, const MOST: usize = GENERAL_BYTES>(pub T);

impl<T: DeserializeOwned, const MOST: usize, S: Sync> FromRequest<S> for Json<T, MOST> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let raw = Raw::<MOST>::from_request(request, state).await?;
        Ok(Self(parsed(&raw.bytes, not_of_the_shape)?))
    }
}

/// The same, where none may come as well.
pub struct Optional<T>(pub Option<T>);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Optional<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        let (bytes, _place) = read(request, GENERAL_BYTES).await?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(None));
        }
        check_type(&headers)?;
        Ok(Self(Some(parsed(&bytes, not_of_the_shape)?)))
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), Error> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    let what = match essence.as_str() {
        "" => "the body has no content type".to_owned(),
        other => format!("the body's content type is `{}`", shown(other)),
    };
    Err(Error::new(Code::UnsupportedMediaType, what).hint("send `content-type: application/json`"))
}

async fn read(request: Request, most: usize) -> Result<(Bytes, Place), Error> {
    let call = request.extensions().get::<Call>().cloned();
    let call = call.ok_or_else(|| Error::new(Code::Internal, "a call that was not let in"))?;
    let said = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    if said.is_some_and(|length: usize| length > most) {
        return Err(too_large(most));
    }
    let place = call.rooms().body(said.unwrap_or(most)).await?;
    let patience = BODY_PATIENCE + Duration::from_secs(most as u64 / SLOWEST_BYTES_PER_SECOND);
    Ok((collect(request.into_body(), most, patience).await?, place))
}

fn too_large(most: usize) -> Error {
    Error::new(Code::TooLarge, format!("the body of this call has at most {most} bytes"))
}

async fn collect(body: Body, most: usize, patience: Duration) -> Result<Bytes, Error> {
    match tokio::time::timeout(patience, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(most)),
        Ok(Err(_)) => Err(Error::new(Code::InvalidInput, "the body broke off")),
        Err(_) => Err(Error::new(
            Code::BodyTooSlow,
            format!("the body did not come within {} seconds", patience.as_secs()),
        )),
    }
}

/// JSON of this type; `explain` makes an error of what serde says, and its place is the path of the field.
pub fn parsed<T: DeserializeOwned>(bytes: &[u8], explain: fn(&str) -> Error) -> Result<T, Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let explained = explain(&error.inner().to_string());
        match path.as_str() {
            "." => explained,
            _ => explained.at(told(&path)),
        }
    })?;
    reader.end().map_err(|error| not_of_the_shape(&error.to_string()))?;
    Ok(value)
}

pub(super) fn not_of_the_shape(said: &str) -> Error {
    Error::new(Code::InvalidJson, told(said))
}

/// What serde says repeats the value that it stumbled over, however long that is and whatever is in it.
fn told(said: &str) -> String {
    let harmless = |c: char| if c.is_control() || codering_core::ids::reorders(c) { '\u{fffd}' } else { c };
    let mut told: String = said.chars().take(LONGEST_TOLD).map(harmless).collect();
    if said.chars().nth(LONGEST_TOLD).is_some() {
        told.push('…');
    }
    told
}

/// Characters of an error that a caller's own value may take.
const LONGEST_TOLD: usize = 400;

/// A queue in the path: a name that no queue can have is one that is not there.
pub fn queue(text: &str) -> Result<QueueName, Error> {
    QueueName::new(text)
        .map_err(|rule| Error::new(Code::QueueNotFound, format!("there is no such queue: {}", rule.message)))
}

/// A project in the path.
pub fn project(text: &str) -> Result<ProjectName, Error> {
    ProjectName::new(text).map_err(|rule| {
        Error::new(Code::ProjectNotFound, format!("there is no such project: {}", rule.message))
    })
}

/// A worker in the path.
pub fn worker(text: &str) -> Result<WorkerName, Error> {
    WorkerName::new(text).map_err(|rule| {
        Error::new(Code::WorkerNotFound, format!("there is no such worker: {}", rule.message))
    })
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};

    use super::*;

    #[tokio::test]
    async fn a_body_that_stalls_is_not_waited_for_beyond_its_time() {
        let stalled = stream::iter([Ok::<_, std::io::Error>(Bytes::from("{"))]).chain(stream::pending());
        let read = collect(Body::from_stream(stalled), 100, Duration::from_millis(20)).await;
        assert_eq!(read.expect_err("refused").code, Code::BodyTooSlow);
        let whole = collect(Body::from("{}"), 2, BODY_PATIENCE).await;
        assert_eq!(whole.expect("read"), "{}");
    }
}
