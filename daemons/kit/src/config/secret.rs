//! Secrets: from a file or a systemd credential, never from a command line, and never shown.

use std::{fmt, os::unix::fs::PermissionsExt, path::Path};

use codering_core::Error;

use super::invalid;

/// No secret is longer.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// A text that debug output and logs do not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The secret in a file, without the newline at its end. `key` names the setting in errors.
///
/// # Errors
/// [`codering_core::Code::ConfigInvalid`] at `key`, when the file cannot be read, is empty or too long. One that
/// everybody may read is taken with a warning.
pub fn secret_file(key: &str, path: &Path) -> Result<Secret, Error> {
    let fail = |what: String| invalid(format!("{}: {what}", path.display())).at(key);
    let about = std::fs::metadata(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if about.len() > MAX_SECRET_BYTES {
        return Err(fail("a secret has at most 64 KiB".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if about.permissions().mode() & 0o004 != 0 {
        tracing::warn!(file = %path.display(), "everybody on this machine may read this secret; chmod 600 it");
    }
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(fail("is empty".into())),
        text => Ok(Secret::new(text)),
    }
}

/// The systemd credential of this name (`LoadCredential=`), if the service was given it.
///
/// # Errors
/// As for [`secret_file`].
pub fn credential(name: &str) -> Result<Option<Secret>, Error> {
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return Ok(None) };
    let path = Path::new(&directory).join(name);
    if !path.exists() {
        return Ok(None);
    }
    secret_file(&format!("credential {name}"), &path).map(Some)
}
