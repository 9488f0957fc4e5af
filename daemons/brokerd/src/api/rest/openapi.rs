//! The OpenAPI 3.1 document, made from the route table and the schemas.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use codering_core::Code;
use serde_json::{Map, Value, json};

use super::{
    routes::{ROUTES, Route, Shape},
    schemas,
};
use crate::api::access::Access;

static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// The document.
pub(super) async fn serve() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

/// Made once.
pub(in crate::api) fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.verb.key()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "codering",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Code on demand. A trailing slash is accepted on every path. Errors are RFC 9457 problem \
                documents; their codes are those of gRPC and of coderingctl.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "description": "coderingctl token create" },
            },
            "responses": {
                "Problem": {
                    "description": "What was wrong, where, and what to do.",
                    "content": { "application/problem+json": { "schema": schemas::named("Problem") } },
                },
            },
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut responses = Map::new();
    for (status, shape) in route.answers {
        responses.insert(status.to_string(), answer(*status, *shape));
    }
    responses.insert("default".into(), json!({ "$ref": "#/components/responses/Problem" }));
    let mut operation = json!({
        "operationId": id(route),
        "tags": [tag(route.path)],
        "summary": route.says,
        "description": needs(route.access),
        "parameters": parameters(route),
        "responses": responses,
        "security": if route.access == Access::Open { json!([]) } else { json!([{ "token": [] }]) },
    });
    if let Some(schema) = route.body {
        operation["requestBody"] = json!({
            "required": schema != "ReduceFile",
            "content": { "application/json": { "schema": schemas::named(schema) } },
        });
    }
    operation
}

/// `post_jobs_cancel`, and with what stands in the path: `get_jobs_of_job`.
fn id(route: &Route) -> String {
    let path = route.path.trim_start_matches('/').trim_start_matches("api/v1/");
    let words =
        path.replace("openapi.json", "openapi").replace('{', "of_").replace(['}'], "").replace('/', "_");
    format!("{}_{words}", route.verb.key())
}

fn tag(path: &str) -> &str {
    let path = path.trim_start_matches('/').trim_start_matches("api/v1/");
    path.split('/').next().unwrap_or(path)
}

fn needs(access: Access) -> String {
    match access {
        Access::Open => "Needs no token.".into(),
        Access::AnyToken => "Needs any token.".into(),
        Access::Certificate => "Needs a worker's certificate.".into(),
        Access::Everywhere(role) => {
            format!("Needs the role {} for all projects.", crate::auth::role_name(role))
        }
        Access::In(_, role) => format!("Needs the role {} in the project.", crate::auth::role_name(role)),
        Access::Listing(role) => {
            format!("Needs the role {}; shows the token's projects.", crate::auth::role_name(role))
        }
    }
}

fn parameters(route: &Route) -> Vec<Value> {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let in_query = route.query.iter().map(|(name, kind, says)| {
        json!({ "name": name, "in": "query", "required": false, "description": says, "schema": { "type": kind } })
    });
    in_path.chain(in_query).collect()
}

fn answer(status: u16, shape: Shape) -> Value {
    let description = match status {
        201 => "Made.",
        204 => "Done; nothing to show.",
        _ => "Done.",
    };
    let content = match shape {
        Shape::Empty => return json!({ "description": description }),
        Shape::Json(schema) => json!({ "application/json": { "schema": schemas::named(schema) } }),
        Shape::JsonOrLines(page, line) => json!({
            "application/json": { "schema": schemas::named(page) },
            "application/jsonl": { "schema": schemas::named(line) },
        }),
        Shape::Events(schema) => json!({ "text/event-stream": { "schema": schemas::named(schema) } }),
        Shape::Bytes => {
            json!({ "application/octet-stream": { "schema": { "type": "string", "format": "binary" } } })
        }
    };
    json!({ "description": description, "content": content })
}

/// Every code with its meaning, for the problem's schema.
pub(in crate::api) fn codes() -> Value {
    let codes: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    json!(codes)
}
