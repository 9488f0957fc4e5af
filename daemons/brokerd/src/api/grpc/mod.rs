//! The gRPC services, with health and reflection. Every call passes [`guard`], which looks it up in the table.

pub(super) mod jobs;
mod ledger;
mod projects;
pub(super) mod queues;
mod tokens;
mod workers;

use std::{pin::Pin, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request as HttpRequest, State},
    http::HeaderMap,
    middleware::{self, Next},
    response::Response as HttpResponse,
};
use codering_core::{Code, Error};
use codering_kit::listen::Peer;
use codering_proto::{
    FILE_DESCRIPTOR_SET,
    status::to_status,
    v1::{
        jobs_server::JobsServer, ledger_server::LedgerServer, projects_server::ProjectsServer,
        queues_server::QueuesServer, tokens_server::TokensServer, workers_server::WorkersServer,
    },
};
use futures::{Stream, StreamExt};
use http_body_util::BodyExt;
use tonic::{Request, Response, Status, service::Routes};
use tower_http::timeout::TimeoutBody;
use tracing::Instrument;

use super::{
    Api,
    access::{self, Access},
    call::Call,
    rooms::Place,
};

/// Bytes of one message of a user's or of a worker's stream.
const MESSAGE_BYTES: usize = 4 << 20;
/// A queue's message of the largest size, with its envelope.
const QUEUE_MESSAGE_BYTES: usize = codering_core::message::MAX_MESSAGE_BYTES + (64 << 10);
/// A result with both of its streams at their bound.
const RESULT_BYTES: usize = 80 << 20;
/// Between two pieces of a request's body, where the client is not expected to pause.
const BODY_PAUSE: Duration = Duration::from_secs(60);

const REPORT: &str = "/codering.v1.Workers/Report";
/// Clients of these speak when they have something to say; HTTP/2's pings find those that are gone.
const MAY_PAUSE: [&str; 3] = [
    "/codering.v1.Queues/Put",
    "/codering.v1.Workers/Attach",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// These answer once all of a long request is there.
const MAY_TAKE_LONG: [&str; 2] = ["/codering.v1.Jobs/Submit", REPORT];
/// Until an answer begins, everywhere else.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The services as routes, for a listener with TLS that asks for client certificates.
pub fn router(api: &Api) -> Router {
    let (reporter, health) = tonic_health::server::health_reporter();
    let stopping = api.0.shutdown.clone();
    tokio::spawn(async move {
        stopping.begun().await;
        reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors are those that were compiled in");
    let workers = || WorkersServer::new(workers::Service).max_encoding_message_size(QUEUE_MESSAGE_BYTES);
    Routes::default()
        .add_service(bounded_projects())
        .add_service(
            QueuesServer::new(queues::Service)
                .max_decoding_message_size(QUEUE_MESSAGE_BYTES)
                .max_encoding_message_size(RESULT_BYTES),
        )
        .add_service(
            JobsServer::new(jobs::Service)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(RESULT_BYTES),
        )
        .add_service(
            TokensServer::new(tokens::Service)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(QUEUE_MESSAGE_BYTES),
        )
        .add_service(LedgerServer::new(ledger::Service).max_decoding_message_size(MESSAGE_BYTES))
        .add_service(workers().max_decoding_message_size(MESSAGE_BYTES))
        .add_service(health)
        .add_service(reflection)
        .into_axum_router()
        // Before the service's own wildcard: reports alone may be so large.
        .route_service(REPORT, workers().max_decoding_message_size(RESULT_BYTES))
        .layer(middleware::from_fn_with_state(api.clone(), guard))
}

fn bounded_projects() -> ProjectsServer<projects::Service> {
    ProjectsServer::new(projects::Service)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(QUEUE_MESSAGE_BYTES)
}

/// Lets a call in, or answers for it.
async fn guard(State(api): State<Api>, mut request: HttpRequest, next: Next) -> HttpResponse {
    let method = request.uri().path().to_owned();
    let Some(access) = access::of_method(&method) else {
        return Status::unimplemented("there is no such method").into_http();
    };
    let Some(peer) = request.extensions().get::<Peer>().cloned() else {
        return Status::internal("a call from nowhere").into_http();
    };
    // What is logged of this call says which it is.
    let span = tracing::info_span!("grpc", method, caller = tracing::field::Empty);
    let admitted = admit(&api, access, &peer, request.headers(), &method).instrument(span.clone()).await;
    let (call, places) = match admitted {
        Ok(admitted) => admitted,
        Err(status) => return status.into_http(),
    };
    span.record("caller", call.shown());
    request.extensions_mut().insert(call);
    if !MAY_PAUSE.contains(&method.as_str()) {
        request = request.map(|body| Body::new(TimeoutBody::new(BODY_PAUSE, body)));
    }
    // A verb that began ends, even where its caller has gone: half of one is what nobody asked for. Its places go
    // with it, so that callers who come and go at once find the room full as well.
    let verb = tokio::spawn(async move { (next.run(request).instrument(span).await, places) });
    let answered = if MAY_TAKE_LONG.contains(&method.as_str()) {
        verb.await
    } else {
        match tokio::time::timeout(ANSWER_TIMEOUT, verb).await {
            Ok(answered) => answered,
            Err(_) => {
                tracing::warn!(method, "a call was not answered in time; it goes on");
                let what = format!(
                    "there was no answer within {} s; it may come about yet",
                    ANSWER_TIMEOUT.as_secs()
                );
                return refused(Error::new(Code::TimedOut, what).hint("look before you ask again"))
                    .into_http();
            }
        }
    };
    match answered {
        Ok((answer, places)) => answer.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held_until_the_answer_is_out = &places;
                frame
            }))
        }),
        Err(error) => {
            tracing::error!(method, %error, "a call panicked");
            refused(Error::new(Code::Internal, "the call failed; the broker's log has more")).into_http()
        }
    }
}

async fn admit(
    api: &Api,
    access: Access,
    peer: &Peer,
    headers: &HeaderMap,
    method: &str,
) -> Result<(Call, Vec<Place>), Status> {
    let (call, place) = api.admit(access, peer, headers).await.map_err(refused)?;
    let mut places = vec![place];
    if method == REPORT {
        places.push(call.rooms().report().await.map_err(refused)?);
    }
    Ok((call, places))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(error: Error) -> Status {
    to_status(&error)
}

/// What came, with the call that brought it.
fn opened<M>(request: Request<M>) -> Result<(Call, M), Status> {
    let (_, mut extensions, message) = request.into_parts();
    let call = extensions.remove::<Call>().ok_or_else(|| Status::internal("a call that was not let in"))?;
    Ok((call, message))
}

/// Answers one message with one.
async fn unary<M, R, F>(request: Request<M>, verb: impl FnOnce(Call, M) -> F) -> Result<Response<R>, Status>
where
    F: Future<Output = Result<R, Error>>,
{
    let (call, message) = opened(request)?;
    verb(call, message).await.map(Response::new).map_err(refused)
}

/// Answers with a stream; `begin` says at once what is wrong from the start.
async fn streamed<M, R, S, F>(
    request: Request<M>,
    begin: impl FnOnce(Call, M) -> F,
) -> Result<Response<Answers<R>>, Status>
where
    R: Send + 'static,
    S: Stream<Item = Result<R, Error>> + Send + 'static,
    F: Future<Output = Result<S, Error>>,
{
    let (call, message) = opened(request)?;
    let stream = begin(call.clone(), message).await.map_err(refused)?;
    let stream = call.while_allowed(stream).map(|item| item.map_err(refused));
    Ok(Response::new(stream.boxed()))
}

/// The next message of a caller's stream, whose own failures are errors of ours.
async fn next<M>(stream: &mut tonic::Streaming<M>) -> Result<Option<M>, Error> {
    stream.message().await.map_err(|status| {
        let mut error = codering_proto::status::from_status(&status);
        if error.code == Code::Internal {
            error.code = Code::InvalidInput;
        }
        error
    })
}
