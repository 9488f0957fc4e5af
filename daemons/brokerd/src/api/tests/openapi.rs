//! The document says what is served, and is what it claims to be.

use std::collections::BTreeSet;

use codering_core::{JobId, Outcome, TaskId, TaskResult, message::DoneMessage};
use codering_proto::v1;
use serde_json::{Value, json};

use super::rig::{Rig, pi};
use crate::api::rest::{ROUTES, openapi::document, schemas::references};

#[test]
fn every_route_is_in_it_and_nothing_else_is() {
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    let documented: BTreeSet<_> = paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().expect("an item").keys().map(move |verb| (path.as_str(), verb.as_str()))
        })
        .collect();
    let served: BTreeSet<_> = ROUTES.iter().map(|route| (route.path, route.verb.key())).collect();
    assert_eq!(documented, served);
    let ids: BTreeSet<_> = paths
        .values()
        .flat_map(|item| item.as_object().expect("an item").values())
        .map(|o| o["operationId"].to_string())
        .collect();
    assert_eq!(ids.len(), ROUTES.len(), "operation ids are unique");
    assert_eq!(ROUTES.len(), served.len(), "a route is there twice");
}

#[test]
fn it_reads_as_openapi_by_anothers_types() {
    for (name, schema) in document()["components"]["schemas"].as_object().expect("schemas") {
        let read = serde_json::from_value::<utoipa::openapi::Schema>(schema.clone());
        assert!(read.is_ok(), "{name}: {:?}", read.err());
    }
    let text = document().to_string();
    let read: utoipa::openapi::OpenApi = serde_json::from_str(&text).expect("OpenAPI");
    assert_eq!(read.paths.paths.len(), document()["paths"].as_object().expect("paths").len());
    assert_eq!(document()["openapi"], "3.1.0");
}

#[test]
fn every_reference_leads_to_a_schema_and_every_body_has_one() {
    let document = document();
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    for name in references(&document) {
        assert!(schemas.contains_key(&name), "there is no schema {name}");
    }
    for route in ROUTES {
        let operation = &document["paths"][route.path][route.verb.key()];
        assert!(!operation["summary"].as_str().expect("a summary").is_empty());
        let body = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(body.is_string(), route.body.is_some(), "{}", route.path);
    }
}

/// What an answer looks like, with the schema that describes it.
fn samples() -> Vec<(&'static str, Value)> {
    fn of<T: serde::Serialize + Default>(name: &'static str) -> (&'static str, Value) {
        (name, serde_json::to_value(T::default()).expect("serialises"))
    }
    let result = TaskResult::without_attempt(
        pi(),
        JobId::at(1_763_722_560_000, 7),
        TaskId::new("1").expect("valid"),
        1,
        Outcome::Failed,
        1000,
        "",
    );
    let result = serde_json::to_value(DoneMessage::from(&result)).expect("serialises");
    vec![
        of::<v1::Job>("Job"),
        of::<v1::TaskCounts>("TaskCounts"),
        of::<v1::Limits>("Limits"),
        of::<v1::JobEvent>("JobEvent"),
        of::<v1::Task>("Task"),
        of::<v1::Attempt>("Attempt"),
        of::<v1::Build>("Build"),
        of::<v1::Project>("Project"),
        of::<v1::Quota>("Quota"),
        of::<v1::Queue>("Queue"),
        of::<v1::DeadLetter>("DeadLetter"),
        of::<v1::Worker>("Worker"),
        of::<v1::Running>("Running"),
        of::<v1::Token>("Token"),
        of::<v1::ListJobsResponse>("ListJobsResponse"),
        of::<v1::ListQueuesResponse>("ListQueuesResponse"),
        of::<v1::CreateTokenResponse>("CreateTokenResponse"),
        of::<v1::RetryJobResponse>("RetryJobResponse"),
        ("Result", result),
    ]
}

#[test]
fn the_schemas_have_the_fields_and_types_of_the_answers() {
    let document = document();
    for (name, sample) in samples() {
        let properties = document["components"]["schemas"][name]["properties"].as_object();
        let properties = properties.unwrap_or_else(|| panic!("no schema {name}"));
        for (key, value) in sample.as_object().expect("an object") {
            let schema = properties.get(key).unwrap_or_else(|| panic!("{name}.{key} has no schema"));
            assert!(allows(schema, value), "{name}.{key}: {value} is not {schema}");
        }
        let known: BTreeSet<_> = sample.as_object().expect("an object").keys().collect();
        let required = document["components"]["schemas"][name]["required"].as_array().expect("required");
        for key in required {
            assert!(known.contains(&key.as_str().expect("a name").to_owned()), "{name}.{key} is never there");
        }
    }
}

/// Whether a schema takes a value, as far as types and lists of values go.
fn allows(schema: &Value, value: &Value) -> bool {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|one| allows(one, value));
    }
    if schema["$ref"].is_string() {
        return value.is_object() || value.is_array() || value.is_string();
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    kinds.contains(&json!(kind))
}

#[tokio::test]
async fn it_is_served_to_everybody() {
    let rig = Rig::new().await;
    let answer = rig.ask(axum::http::Method::GET, "/api/v1/openapi.json").token("").send().await;
    assert_eq!(answer.json(), document());
    assert!(
        answer.text.contains("A branch, tag or commit") || answer.text.contains("Attempts after the first")
    );
    rig.stop().await;
}
