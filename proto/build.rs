//! Generates the gRPC code; needs `protoc` (Debian: protobuf-compiler).

const FILES: [&str; 7] = ["common", "projects", "queues", "jobs", "tokens", "workers", "ledger"];

/// Enum fields, which JSON shows as their lower-case names instead of numbers.
const ENUM_FIELDS: [(&str, &str); 8] = [
    ("Job.state", "job_state"),
    ("Task.state", "task_state"),
    ("Task.outcome", "outcome"),
    ("Attempt.outcome", "outcome"),
    ("TaskResult.outcome", "outcome"),
    ("Token.role", "role"),
    ("CreateTokenRequest.role", "role"),
    ("LogsRequest.stream", "log_stream"),
];

/// Times, which JSON shows as RFC 3339 under the name without `_ms`.
const TIME_FIELDS: [&str; 22] = [
    "Project.created_at",
    "DeadLetter.at",
    "Job.created_at",
    "Job.started_at",
    "Job.finished_at",
    "JobEvent.at",
    "Build.started_at",
    "Task.updated_at",
    "Attempt.leased_at",
    "Attempt.finished_at",
    "TaskResult.started_at",
    "TaskResult.finished_at",
    "Token.created_at",
    "Token.expires_at",
    "Token.revoked_at",
    "Token.last_used_at",
    "Worker.connected_at",
    "Worker.last_seen_at",
    "Worker.certificate_expires_at",
    "Running.leased_at",
    "EnrollResponse.expires_at",
    "LedgerReport.newest_at",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let mut builder = tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("codering.bin"))
        .bytes(".")
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default)]");
    for message in ["FromWorker.message", "ToWorker.message", "Command.kind"] {
        builder = builder.enum_attribute(
            message,
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(rename_all = \"snake_case\")]",
        );
    }
    // As in every other JSON of codering: a string for the shell, or an array of arguments.
    builder = builder.message_attribute(
        "codering.v1.Command",
        "#[serde(from = \"crate::json::Command\", into = \"crate::json::Command\")]",
    );
    builder = builder.field_attribute("Task.result", "#[serde(with = \"crate::json::result\")]");
    for (field, with) in ENUM_FIELDS {
        builder = builder.field_attribute(field, format!("#[serde(with = \"crate::json::{with}\")]"));
    }
    for field in TIME_FIELDS {
        let name = field.split('.').nth(1).unwrap_or_default();
        builder = builder.field_attribute(
            format!("{field}_ms"),
            format!("#[serde(rename = \"{name}\", with = \"crate::json::time\")]"),
        );
    }
    let files: Vec<_> = FILES.iter().map(|f| format!("proto/codering/v1/{f}.proto")).collect();
    builder.compile_protos(&files, &["proto".into()])?;
    Ok(())
}
