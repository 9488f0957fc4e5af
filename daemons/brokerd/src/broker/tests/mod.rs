//! What the verbs do to each other, on a real ledger and a real embedded queue, with what a test of the whole crate cannot see.
#![allow(clippy::unwrap_used, clippy::large_futures)]

mod quotas;
mod reduce;
mod retention;
#[path = "../../../tests/rig/mod.rs"]
#[allow(dead_code, reason = "not every test binary needs all of it")]
pub(super) mod rig;
mod workers;
