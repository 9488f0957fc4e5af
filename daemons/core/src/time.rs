//! Wall-clock times as Unix milliseconds, for records and display; leases run on monotonic clocks.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Unix time in milliseconds.
pub type Millis = i64;

/// `2026-11-21T10:56:00.123Z`.
pub fn rfc3339(at: Millis) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| at.to_string())
}

/// The reverse of [`rfc3339`]; `None` when the text is not RFC 3339.
pub fn from_rfc3339(text: &str) -> Option<Millis> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Millis::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}
