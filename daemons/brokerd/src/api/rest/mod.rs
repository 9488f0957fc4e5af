//! REST: the routes of [`routes`], each behind [`guard`]; a trailing slash is optional everywhere.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod input;
mod jobs;
pub(super) mod openapi;
mod problem;
mod projects;
mod queues;
mod rabbit;
mod routes;
pub(super) mod schemas;
mod streams;
mod tasks;
mod tokens;
mod workers;

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use codering_core::{Code, Error};
use codering_kit::listen::Peer;
use http_body_util::BodyExt;
use tracing::Instrument;

use self::{
    problem::{Problem, no_method, no_route},
    routes::Route,
};
use super::{Api, access::Access};
use crate::ledger::Role;
pub(super) use routes::ROUTES;

/// The routes, with these probes beside them: open, but for `/metrics` to callers from other machines, who need
/// a token.
pub fn router(api: &Api, probes: Router) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let guarded = (route.handler)(route.verb.filter())
            .route_layer(middleware::from_fn_with_state((api.clone(), route), guard));
        router = router.route(route.path, guarded.clone()).route(&format!("{}/", route.path), guarded);
    }
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .merge(probes.layer(middleware::from_fn_with_state(api.clone(), guard_metrics)))
        .layer(middleware::map_response(harmless))
}

/// Lets a call in, or answers for it.
async fn guard(
    State((api, route)): State<(Api, &'static Route)>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().cloned();
    let Some(peer) = peer else {
        return Problem(Error::new(Code::Internal, "a call from nowhere")).into_response();
    };
    // What is logged of this call says which it is.
    let span = tracing::info_span!(
        "rest",
        method = route.verb.key(),
        route = route.path,
        caller = tracing::field::Empty
    );
    let admitted = api.admit(route.access, &peer, request.headers()).instrument(span.clone()).await;
    let (call, place) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return Problem(error).into_response(),
    };
    span.record("caller", call.shown());
    request.extensions_mut().insert(call);
    // A verb that began ends, even where its caller has gone: half of one is what nobody asked for. Its place goes with
    // it, so that callers who come and go at once find the room full as well.
    match tokio::spawn(async move { (next.run(request).instrument(span).await, place) }).await {
        // All of it is there already: it keeps its length, and its place is free.
        Ok((answer, _)) if answer.body().size_hint().exact().is_some() => answer,
        Ok((answer, place)) => answer.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held_until_the_answer_is_out = &place;
                frame
            }))
        }),
        Err(error) => {
            tracing::error!(route = route.path, %error, "a call panicked");
            Problem(Error::new(Code::Internal, "the call failed; the broker's log has more")).into_response()
        }
    }
}

/// Metrics tell of every project: another machine shows a token for them.
async fn guard_metrics(State(api): State<Api>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().cloned();
    let near = peer.as_ref().is_some_and(|peer| peer.address.ip().to_canonical().is_loopback());
    if near || request.uri().path() != "/metrics" {
        return next.run(request).await;
    }
    let Some(peer) = peer else {
        return Problem(Error::new(Code::Internal, "a call from nowhere")).into_response();
    };
    let span = tracing::info_span!("rest", method = "get", route = "/metrics");
    match api.admit(Access::Everywhere(Role::Viewer), &peer, request.headers()).instrument(span).await {
        Ok(_) => next.run(request).await,
        Err(error) => Problem(error).into_response(),
    }
}

/// What a browser must not do with an answer.
async fn harmless(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    );
    response
}
