//! What of a job is read piece by piece: results, events, logs, the answer.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json as Answer,
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use bytes::Bytes;
use codering_core::{Code, Error, TaskResult, ids::shown, message::DoneMessage};
use futures::{Stream, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::json;

use super::{
    input::{Asked, Named},
    problem::{Problem, document},
    tasks::outcomes,
};
use crate::{
    api::{call::Call, follow, views},
    broker,
};

/// A silent stream of events says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct Results {
    format: String,
    outcome: String,
    page_size: u32,
    page_token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct Log {
    stream: String,
    offset: u64,
    follow: bool,
}

/// All results as JSONL where that is asked for, else a page of them.
pub(super) async fn results(
    call: Call,
    headers: HeaderMap,
    Named(id): Named<String>,
    Asked(asked): Asked<Results>,
) -> Result<Response, Problem> {
    let (broker, job) = call.job(&id).await?;
    let only = outcomes(&asked.outcome)?;
    let lines = match asked.format.as_str() {
        "jsonl" => true,
        "json" => false,
        "" => wants_lines(&headers),
        other => {
            let what = format!("`{}` is no format", shown(other));
            return Err(Error::new(Code::InvalidInput, what).at("format").hint("jsonl or json").into());
        }
    };
    if lines {
        let results = call.clone().while_allowed(follow::results(broker.clone(), job.id, only));
        let body = Body::from_stream(results.map(|result| line(&result?)));
        return Ok(([(header::CONTENT_TYPE, "application/jsonl")], body).into_response());
    }
    let wire = codering_proto::v1::Page { page_size: asked.page_size, page_token: asked.page_token };
    let page = crate::api::grpc::jobs::PageOf::<u64>::read(Some(wire))?;
    let results = broker.results_page(&job.id, &only, page.after, page.size).await?;
    // A page may end before it is full, by its bytes: only an empty one is the last.
    let next_page_token = results.last().map(|(seq, _)| seq.to_string()).unwrap_or_default();
    let results: Vec<_> = results.iter().map(|(_, result)| DoneMessage::from(result)).collect();
    Ok(Answer(json!({"results": results, "next_page_token": next_page_token})).into_response())
}

fn wants_lines(headers: &HeaderMap) -> bool {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    ["application/jsonl", "application/x-ndjson"].iter().any(|kind| accepts.contains(kind))
}

fn line(result: &TaskResult) -> Result<Bytes, Error> {
    let mut line = serde_json::to_vec(&DoneMessage::from(result)).map_err(broker::internal)?;
    line.push(b'\n');
    Ok(line.into())
}

/// A job's changes as server-sent events: `job`, and `problem` where it cannot go on.
pub(super) async fn events(
    call: Call,
    Named(id): Named<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>> + Send>, Problem> {
    let (broker, job) = call.job(&id).await?;
    let events = call.clone().while_allowed(broker.watch(job.id));
    let events = events.map(|event| {
        let (name, data) = match event {
            Ok(event) => ("job", serde_json::to_string(&views::event(event))),
            Err(error) => ("problem", serde_json::to_string(&document(&error))),
        };
        // JSON has no raw line breaks, which is all that an event's data may not hold.
        Ok(Event::default().event(name).data(data.unwrap_or_default()))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// A task's output as it is, from a byte offset. A new attempt's output is not appended to the old one's: the answer
/// ends there, and its headers say which attempt it is of.
pub(super) async fn logs(
    call: Call,
    Named((job, task)): Named<(String, String)>,
    Asked(asked): Asked<Log>,
) -> Result<Response, Problem> {
    let (broker, _, key) = call.task(&job, &task).await?;
    let stream = match asked.stream.as_str() {
        "" | "stdout" => broker::Stream::Stdout,
        "stderr" => broker::Stream::Stderr,
        other => {
            let what = format!("`{}` is no stream", shown(other));
            return Err(Error::new(Code::InvalidInput, what).at("stream").hint("stdout or stderr").into());
        }
    };
    let attempt = broker.task(&key).await?.task.progress.attempt;
    let pieces = follow::log(broker.clone(), key, stream, asked.offset, asked.follow);
    let pieces = pieces.try_take_while(move |piece| {
        // A task that was not leased yet has no attempt to differ from.
        std::future::ready(Ok(attempt == 0 || piece.attempt == attempt))
    });
    let body = call.clone().while_allowed(pieces).map_ok(|piece| Bytes::from(piece.data));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (HeaderName::from_static("codering-attempt"), attempt.into()),
        (HeaderName::from_static("codering-offset"), asked.offset.into()),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// The answer's bytes under its name.
pub(super) async fn answer(call: Call, Named(id): Named<String>) -> Result<Response, Problem> {
    let (broker, job) = call.job(&id).await?;
    let (name, data) = broker.answer(&job.id).await?;
    let kind = match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("json") => "application/json",
        Some("jsonl") => "application/jsonl",
        Some("csv") => "text/csv; charset=utf-8",
        Some("txt") => "text/plain; charset=utf-8",
        Some("png") => "image/png",
        _ => "application/octet-stream",
    };
    // A name has letters, digits, `-`, `_` and `.` only.
    let disposition = HeaderValue::try_from(format!("attachment; filename=\"{name}\""))
        .map_err(|error| Problem(broker::internal(error)))?;
    let headers =
        [(header::CONTENT_TYPE, HeaderValue::from_static(kind)), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, data).into_response())
}
