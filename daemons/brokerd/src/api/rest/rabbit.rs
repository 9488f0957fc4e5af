//! `/rabbit`: queues and messages, and nothing of jobs.

use axum::{
    Json as Answer,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use codering_core::{Code, Error, QueueName, message::MAX_MESSAGE_BYTES};
use codering_proto::convert::id;
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    input::{self, Json, Named},
    problem::{Problem, no_method},
};
use crate::api::call::Call;

/// A message of the largest size in its envelope.
const BODY_BYTES: usize = MAX_MESSAGE_BYTES + 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Put {
    /// As it was written: nothing of it is lost or reordered.
    message: Box<RawValue>,
}

/// 201, or 200 where it was there.
pub(super) async fn create(call: Call, Json(asked): Json<Create>) -> Result<Response, Problem> {
    let name: QueueName = id(&asked.name, "name")?;
    let created = call.new_queue(&name).await?.create_queue(&name).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Answer(json!({"name": name}))).into_response())
}

/// 201 once the queue has confirmed it.
pub(super) async fn put(
    call: Call,
    Named(queue): Named<String>,
    Json(asked): Json<Put, BODY_BYTES>,
) -> Result<Response, Problem> {
    let queue = input::queue(&queue)?;
    let body = Bytes::from(Box::<str>::from(asked.message).into_string());
    if body.len() > MAX_MESSAGE_BYTES {
        let what = format!("a message has at most {MAX_MESSAGE_BYTES} bytes, this one {}", body.len());
        return Err(Error::new(Code::TooLarge, what).into());
    }
    call.queue(&queue)?.put(&queue, body, 0).await?;
    Ok((StatusCode::CREATED, Answer(json!({"queue": queue}))).into_response())
}

/// 200 with a message, or 204.
pub(super) async fn take(
    method: Method,
    call: Call,
    Named(queue): Named<String>,
) -> Result<Response, Problem> {
    if method != Method::GET {
        // HEAD would take a message and show it to nobody.
        return Err(no_method().await);
    }
    let queue = input::queue(&queue)?;
    match call.queue(&queue)?.get(&queue).await? {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(body) => Ok(([(header::CONTENT_TYPE, "application/json")], shown(&body)).into_response()),
    }
}

/// It was taken, so it is shown whatever it is: bytes of a raw AMQP client that are not JSON, as text or base64.
pub(super) fn shown(body: &[u8]) -> Vec<u8> {
    if serde_json::from_slice::<&RawValue>(body).is_ok() {
        return [br#"{"message":"#, body, b"}"].concat();
    }
    let (text, encoding) = codering_core::message::text_or_base64(body);
    let encoding = encoding.unwrap_or("text");
    json!({"message": text, "encoding": encoding}).to_string().into_bytes()
}
