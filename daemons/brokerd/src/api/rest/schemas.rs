//! JSON schemas: those of `codering.v1` messages follow from their descriptors, comments included, by the same rules
//! as their JSON does (codering-proto's `build.rs` and `json`); the few others are written here.

use std::collections::BTreeMap;

use codering_proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use serde_json::{Map, Value, json};

use super::openapi;

const PACKAGE: &str = ".codering.v1.";

/// A reference to a schema.
pub(in crate::api) fn named(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Every schema that a route or another schema refers to.
pub(in crate::api) fn all() -> Map<String, Value> {
    let proto = Proto::read();
    let mut schemas = written();
    let mut wanted: Vec<String> = super::routes::ROUTES.iter().flat_map(names_of).collect();
    wanted.extend(schemas.values().flat_map(references));
    while let Some(name) = wanted.pop() {
        if schemas.contains_key(&name) {
            continue;
        }
        if let Some(schema) = proto.schema(&name) {
            wanted.extend(references(&schema));
            schemas.insert(name, schema);
        }
    }
    schemas
}

fn names_of(route: &super::routes::Route) -> Vec<String> {
    use super::routes::Shape::{Bytes, Empty, Events, Json, JsonOrLines};
    let mut names: Vec<_> = route.body.into_iter().collect();
    for (_, shape) in route.answers {
        match shape {
            Json(name) | Events(name) => names.push(name),
            JsonOrLines(page, line) => names.extend([page, line]),
            Empty | Bytes => {}
        }
    }
    names.into_iter().map(str::to_owned).collect()
}

/// The schemas that a schema refers to.
pub(in crate::api) fn references(schema: &Value) -> Vec<String> {
    match schema {
        Value::Object(fields) => {
            let own = fields.get("$ref").and_then(Value::as_str);
            let own = own.and_then(|r| r.strip_prefix("#/components/schemas/")).map(str::to_owned);
            own.into_iter().chain(fields.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// The descriptors, by name.
struct Proto {
    messages: BTreeMap<String, (DescriptorProto, BTreeMap<Vec<i32>, String>)>,
    enums: BTreeMap<String, EnumDescriptorProto>,
}

impl Proto {
    fn read() -> Self {
        let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).map(|set| set.file).unwrap_or_default();
        let (mut messages, mut enums) = (BTreeMap::new(), BTreeMap::new());
        for file in files {
            let comments = comments(&file);
            for (place, message) in file.message_type.into_iter().enumerate() {
                // 4 is the field of messages in a file's descriptor.
                let own = vec![4, i32::try_from(place).unwrap_or(i32::MAX)];
                let own: BTreeMap<_, _> = comments
                    .iter()
                    .filter_map(|(path, text)| {
                        Some((path.strip_prefix(own.as_slice())?.to_vec(), text.clone()))
                    })
                    .collect();
                messages.insert(message.name().to_owned(), (message, own));
            }
            enums.extend(file.enum_type.into_iter().map(|e| (e.name().to_owned(), e)));
        }
        Self { messages, enums }
    }

    fn schema(&self, name: &str) -> Option<Value> {
        let (message, comments) = self.messages.get(name)?;
        let mut properties = Map::new();
        for (place, field) in message.field.iter().enumerate() {
            let (key, mut schema) = self.property(message, field);
            // 2 is the field of fields in a message's descriptor.
            if let Some(says) = comments.get([2, i32::try_from(place).unwrap_or(i32::MAX)].as_slice()) {
                schema["description"] = json!(says);
            }
            properties.insert(key, schema);
        }
        let required: Vec<_> = properties.keys().cloned().collect();
        let mut schema = json!({ "type": "object", "properties": properties, "required": required });
        if let Some(says) = comments.get([].as_slice()) {
            schema["description"] = json!(says);
        }
        Some(schema)
    }

    fn property(&self, of: &DescriptorProto, field: &FieldDescriptorProto) -> (String, Value) {
        let name = field.name();
        if name.ends_with("_at_ms") || name == "at_ms" {
            let key = name.trim_end_matches("_ms").to_owned();
            return (key, json!({ "type": ["string", "null"], "format": "date-time" }));
        }
        if of.name() == "Task" && name == "result" {
            return (name.into(), nullable(named("Result")));
        }
        let one = self.value(field);
        let schema = match () {
            () if field.label() == Label::Repeated => match self.map_of(of, field) {
                Some(values) => json!({ "type": "object", "additionalProperties": values }),
                None => json!({ "type": "array", "items": one }),
            },
            () if field.proto3_optional() || field.r#type() == Type::Message => nullable(one),
            () => one,
        };
        (name.to_owned(), schema)
    }

    fn value(&self, field: &FieldDescriptorProto) -> Value {
        let name = field.type_name().strip_prefix(PACKAGE).unwrap_or_default();
        match field.r#type() {
            Type::Bool => json!({ "type": "boolean" }),
            Type::Double | Type::Float => json!({ "type": "number" }),
            Type::String => json!({ "type": "string" }),
            Type::Bytes => json!({ "type": "array", "items": { "type": "integer" } }),
            Type::Enum => self.names(name),
            Type::Message if name == "Command" => named("Command"),
            Type::Message => named(name),
            _ => json!({ "type": "integer" }),
        }
    }

    /// The names without their prefix; the unspecified one is null.
    fn names(&self, name: &str) -> Value {
        let Some(values) = self.enums.get(name).map(|e| &e.value) else { return json!({}) };
        let zero = values.first().map(|v| v.name()).unwrap_or_default();
        let prefix = zero.trim_end_matches("UNSPECIFIED");
        let names = values.iter().skip(1).map(|v| json!(v.name().trim_start_matches(prefix).to_lowercase()));
        let names: Vec<_> = names.chain([Value::Null]).collect();
        json!({ "type": ["string", "null"], "enum": names })
    }

    fn map_of(&self, of: &DescriptorProto, field: &FieldDescriptorProto) -> Option<Value> {
        let entry = field.type_name().rsplit('.').next()?;
        let entry = of.nested_type.iter().find(|nested| nested.name() == entry)?;
        entry.field.iter().find(|f| f.name() == "value").map(|value| self.value(value))
    }
}

fn comments(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, String> {
    let places = file.source_code_info.iter().flat_map(|info| &info.location);
    let said = places.filter_map(|place| Some((place.path.clone(), place.leading_comments.as_deref()?)));
    said.map(|(path, text)| (path, text.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}

fn nullable(schema: Value) -> Value {
    match schema.get("type").and_then(Value::as_str).map(str::to_owned) {
        Some(kind) => {
            let mut schema = schema;
            schema["type"] = json!([kind, "null"]);
            schema
        }
        None => json!({ "anyOf": [schema, { "type": "null" }] }),
    }
}

/// What no message describes.
fn written() -> Map<String, Value> {
    let text = || json!({ "type": "string" });
    let count = || json!({ "type": "integer", "minimum": 0 });
    let table =
        || json!({ "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } });
    let duration = json!({ "type": ["string", "number"], "description": "`\"10m\"`, or seconds." });
    let size = json!({ "type": ["string", "number"], "description": "`\"512M\"`, or bytes." });
    let object = |required: &[&str], properties: Value| {
        json!({
            "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        })
    };
    let outcomes: Vec<_> = codering_core::Outcome::ALL.iter().map(|o| o.as_str()).collect();
    let schemas = json!({
        "Anything": { "type": "object" },
        "Command": {
            "description": "A string is run by `/bin/sh -c`; an array is program and arguments.",
            "anyOf": [text(), { "type": "array", "items": text() }, { "type": "null" }],
        },
        "CreateQueue": object(&["name"], json!({
            "name": { "type": "string", "description": "`<project>.<name>`; a bare name belongs to `default`." },
        })),
        "QueueCreated": object(&["name"], json!({ "name": text() })),
        "MessagePut": object(&["queue"], json!({ "queue": text() })),
        "Message": object(&["message"], json!({
            "message": {
                "type": ["string", "number", "boolean", "object", "array", "null"], "description": "Any JSON.",
            },
            "encoding": {
                "description": "Only where the message taken is not JSON: `text`, or `base64`.",
                "type": "string", "enum": ["text", "base64"],
            },
        })),
        "CreateProject": object(&["name"], json!({ "name": text(), "quota": named("SetQuota") })),
        "SetQuota": object(&[], json!({
            "queued_tasks": count(), "running_slots": count(), "result_bytes": count(),
        })),
        "RequeueDead": object(&[], json!({
            "ids": { "type": "array", "items": text() }, "all": { "type": "boolean" },
        })),
        "CreateToken": object(&["name", "role"], json!({
            "name": text(),
            "role": { "type": "string", "enum": ["admin", "submitter", "viewer", "worker"] },
            "projects": { "type": "array", "items": text(), "description": "Empty means every project." },
            "ttl_seconds": { "type": "integer", "minimum": 0, "description": "0 means never to expire." },
        })),
        "LimitsFile": object(&[], json!({
            "timeout": duration, "memory": size, "cpus": { "type": "number" }, "pids": count(),
            "network": { "type": "boolean" }, "attempts": count(), "output": size,
        })),
        "ReduceFile": object(&["command"], json!({
            "command": named("Command"), "output": text(), "limits": named("LimitsFile"),
        })),
        "TaskFile": object(&[], json!({
            "id": { "type": ["string", "number"] }, "arg": { "type": ["string", "number"] },
            "command": named("Command"), "env": table(), "stdin": text(), "limits": named("LimitsFile"),
        })),
        "JobFile": object(&["git"], json!({
            "project": text(), "name": text(), "git": text(), "ref": text(), "dockerfile": text(),
            "command": named("Command"),
            "array": {
                "description": "`\"1-100\"`, or a list with one argument a task.",
                "anyOf": [text(), { "type": "array", "items": { "type": ["string", "number"] } }],
            },
            "env": table(), "limits": named("LimitsFile"), "reduce": named("ReduceFile"),
            "tasks": { "type": "array", "items": named("TaskFile") },
            "priority": { "type": "integer" }, "labels": table(),
        })),
        "Result": {
            "type": "object",
            "description": "The message on `<project>.done`.",
            "properties": {
                "project_id": text(), "job_id": text(), "task_id": text(), "attempt": count(),
                "outcome": { "type": "string", "enum": outcomes },
                "exit_code": { "type": ["integer", "null"] }, "signal": { "type": ["integer", "null"] },
                "stdout": text(), "stderr": text(),
                "encoding": { "type": "string", "enum": ["base64"], "description": "Where a stream is not UTF-8; then for both." },
                "stdout_truncated": { "type": "boolean" }, "stderr_truncated": { "type": "boolean" },
                "started_at": { "type": "string", "format": "date-time" },
                "finished_at": { "type": "string", "format": "date-time" },
                "phases_ms": object(&["queued", "checkout", "build", "start", "run"], json!({
                    "queued": count(), "checkout": count(), "build": count(), "start": count(), "run": count(),
                })),
                "worker": text(), "commit": text(), "image": text(), "message": text(),
            },
            "required": [
                "project_id", "job_id", "task_id", "attempt", "outcome", "exit_code", "signal", "stdout", "stderr",
                "stdout_truncated", "stderr_truncated", "started_at", "finished_at", "phases_ms", "worker", "commit",
                "image", "message",
            ],
        },
        "ResultsPage": object(&["results", "next_page_token"], json!({
            "results": { "type": "array", "items": named("Result") }, "next_page_token": text(),
        })),
        "Problem": {
            "type": "object",
            "description": "RFC 9457.",
            "properties": {
                "type": { "type": "string", "format": "uri", "description": "`urn:codering:error:CODE`." },
                "title": text(), "status": { "type": "integer" }, "detail": text(),
                "code": { "type": "string", "enum": openapi::codes() },
                "place": { "type": "string", "description": "The path of the field, or where else." },
                "hint": { "type": "string", "description": "What to do about it." },
            },
            "required": ["type", "title", "status", "detail", "code"],
        },
    });
    match schemas {
        Value::Object(schemas) => schemas,
        _ => Map::new(),
    }
}
