//! Dead letters as AMQP messages: brokerd's own headers, and RabbitMQ's `x-death` for what its delivery
//! limit gave up.

use codering_core::QueueName;
use codering_kit::clock;
use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable, ShortString},
};
use sha2::{Digest, Sha256};

use crate::queue::{DeadLetter, shown_part};

const REASON: &str = "x-codering-reason";
const QUEUE: &str = "x-codering-queue";
const AT: &str = "x-codering-at";
/// A header is shown, not stored for its own sake.
const REASON_BYTES: usize = 2_000;

/// The headers of a message that brokerd rejects.
pub(super) fn headers(from: &QueueName, reason: &str) -> FieldTable {
    let mut end = reason.len().min(REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut table = FieldTable::default();
    table.insert(REASON.into(), AMQPValue::LongString(reason[..end].into()));
    table.insert(QUEUE.into(), AMQPValue::LongString(from.as_str().into()));
    table.insert(AT.into(), AMQPValue::LongLongInt(clock::now()));
    table
}

fn text(table: &FieldTable, key: &str) -> Option<String> {
    match table.inner().get(key)? {
        AMQPValue::LongString(value) => Some(String::from_utf8_lossy(value.as_bytes()).into_owned()),
        AMQPValue::ShortString(value) => Some(value.to_string()),
        _ => None,
    }
}

/// Names a dead letter: its message id, or what it says where a foreign client gave none.
pub(super) fn id(properties: &BasicProperties, body: &[u8]) -> String {
    match properties.message_id() {
        Some(id) => id.to_string(),
        None => Sha256::digest(body).iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// Reads one; `dead` is the queue that it lies on, `prefix` what names start with on the wire.
pub(super) fn read(message: &Delivery, dead: &QueueName, prefix: &str) -> DeadLetter {
    let empty = FieldTable::default();
    let headers = message.properties.headers().as_ref().unwrap_or(&empty);
    let death = match headers.inner().get("x-death") {
        Some(AMQPValue::FieldArray(deaths)) => match deaths.as_slice().first() {
            Some(AMQPValue::FieldTable(death)) => Some(death),
            _ => None,
        },
        _ => None,
    };
    let own = text(headers, QUEUE);
    let native = death.and_then(|death| text(death, "queue"));
    let native = native.map(|name| name.strip_prefix(prefix).unwrap_or(&name).to_owned());
    let at = match (headers.inner().get(AT), death.and_then(|death| death.inner().get("time"))) {
        (Some(AMQPValue::LongLongInt(at)), _) => *at,
        (None, Some(AMQPValue::Timestamp(seconds))) => {
            i64::try_from(*seconds).unwrap_or(0).saturating_mul(1000)
        }
        _ => 0,
    };
    let reason = text(headers, REASON).or_else(|| {
        let why = death.and_then(|death| text(death, "reason"))?;
        Some(match why.as_str() {
            "delivery_limit" => "taken and given back too often".to_owned(),
            other => format!("RabbitMQ: {other}"),
        })
    });
    DeadLetter {
        id: id(&message.properties, &message.data),
        queue: own.or(native).and_then(|name| QueueName::new(name).ok()).unwrap_or_else(|| dead.clone()),
        reason: reason.unwrap_or_else(|| "put here".to_owned()),
        at,
        body: shown_part(&message.data),
    }
}

/// The exchange by which RabbitMQ dead-letters; `packaging/rabbitmq/set-policies` names it too.
pub(super) fn dead_exchange(prefix: &str) -> ShortString {
    wire_text(prefix, "codering.dead")
}

/// The exchange that says that RabbitMQ still has what this broker gave it. Clients make queues again that they miss,
/// so a queue that is there says nothing; nobody else makes this one.
pub(super) fn known_exchange(prefix: &str) -> ShortString {
    wire_text(prefix, "codering.known")
}

/// A queue's name on the wire.
pub(super) fn wire_name(prefix: &str, queue: &QueueName) -> ShortString {
    wire_text(prefix, queue.as_str())
}

/// A name with the prefix.
pub(super) fn wire_text(prefix: &str, text: &str) -> ShortString {
    // Bounded: `open` refuses a prefix that would make a name longer than AMQP's 255 bytes.
    ShortString::try_new(format!("{prefix}{text}")).unwrap_or_default()
}
