//! Secrets: from a file or a systemd credential, never from a command line, and never shown.

use std::{
    ffi::OsStr,
    fmt,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

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

/// What a file's setting begins with when it names a systemd credential: `credential:NAME`.
const CREDENTIAL: &str = "credential:";

/// Where a file's setting points to: `credential:NAME` is the credential that the service was given under this name
/// (`LoadCredential=NAME:…`), anything else a path.
///
/// # Errors
/// [`codering_core::Code::ConfigInvalid`] at `key`, for a credential that the service was not given.
pub fn secret_path(key: &str, path: &Path) -> Result<PathBuf, Error> {
    path_of(key, path, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref())
}

fn path_of(key: &str, path: &Path, credentials: Option<&OsStr>) -> Result<PathBuf, Error> {
    let Some(name) = path.to_str().and_then(|text| text.strip_prefix(CREDENTIAL)) else {
        return Ok(path.to_owned());
    };
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(
            invalid(format!("`{key}`: a credential's name has no `/` and begins with no dot")).at(key)
        );
    }
    let lacks = |why: &str| {
        invalid(format!("`{key}`: {why} the credential {name}"))
            .at(key)
            .hint(format!("add LoadCredential={name}:FILE to the unit (systemctl edit), and restart"))
    };
    let directory = credentials.ok_or_else(|| lacks("no service manager gave this process"))?;
    let path = Path::new(directory).join(name);
    if path.exists() { Ok(path) } else { Err(lacks("the service was not given")) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_may_name_a_credential_instead_of_a_path() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("tls.key"), "x").expect("written");
        let of = |path: &str, given: Option<&Path>| {
            path_of("tls.key_file", Path::new(path), given.map(Path::as_os_str))
        };
        let given = Some(directory.path());
        assert_eq!(of("/etc/x", None).expect("a path"), Path::new("/etc/x"));
        assert_eq!(of("credential:tls.key", given).expect("there"), directory.path().join("tls.key"));
        for (path, given) in [
            ("credential:tls.key", None),
            ("credential:other", given),
            ("credential:../tls.key", given),
            ("credential:", given),
        ] {
            let error = of(path, given).expect_err(path);
            assert_eq!(error.place, "tls.key_file");
        }
        assert!(of("credential:other", given).expect_err("not given").hint.contains("LoadCredential=other:"));
    }
}
