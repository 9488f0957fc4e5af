//! What a project may hold at once.

use serde::{Deserialize, Serialize};

/// 0 means no limit of the project's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Tasks recorded and not yet done.
    pub queued_tasks: u64,
    /// Attempts at the same time.
    pub running_slots: u32,
    /// Bytes of recorded results; at the bound, submits are refused.
    pub result_bytes: u64,
}
