//! The wall clock, for records and for people; whatever must not jump runs on `Instant`.

use std::time::{SystemTime, UNIX_EPOCH};

use codering_core::time::Millis;

/// Now; the beginning of 1970 on a clock that is set before it.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}
