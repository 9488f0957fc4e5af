//! The environment of a task.

use std::collections::BTreeMap;

use super::MAX_COMMAND_BYTES;
use crate::{Code, Error};

/// All variables of an attempt. They travel in its queue message, where a byte may take six.
pub const MAX_ENV_BYTES: usize = 256 << 10;

pub(super) fn env_bytes(env: &BTreeMap<String, String>) -> usize {
    env.iter().map(|(name, value)| name.len() + value.len()).sum()
}

pub(super) fn too_much_env() -> Error {
    Error::new(Code::JobInvalid, "the variables of a task and its job have at most 256 KiB together")
        .at("env")
        .hint("put long input into `stdin` or into the repository")
}

pub(super) fn validate_env(env: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in env {
        let name_ok = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !name_ok || value.contains('\0') || name.len() + value.len() > MAX_COMMAND_BYTES {
            return Err(Error::new(
                Code::JobInvalid,
                "a variable's name has letters, digits and `_`, its value no NUL and at most 64 KiB",
            )
            .at(format!("env.{}", crate::ids::shown(name))));
        }
    }
    Ok(())
}
