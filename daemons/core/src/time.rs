//! Wall-clock times as Unix milliseconds, for records and display; leases run on monotonic clocks.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Unix time in milliseconds.
pub type Millis = i64;

/// The first and the last moment of the years 0 to 9999, which RFC 3339 has.
pub const WRITABLE: std::ops::RangeInclusive<Millis> = -62_167_219_200_000..=253_402_300_799_999;

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
    // Another offset than ours may name a moment that we could not write.
    Millis::try_from(time.unix_timestamp_nanos() / 1_000_000).ok().filter(|at| WRITABLE.contains(at))
}
