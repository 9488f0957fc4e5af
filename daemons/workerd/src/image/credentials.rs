//! Registry credentials, in the form of Docker's own `config.json`.

use std::{collections::HashMap, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use bollard::auth::DockerCredentials;
use codering_core::{Code, Error};
use serde::Deserialize;

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: HashMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    identitytoken: Option<String>,
}

/// Reads them.
///
/// # Errors
/// [`Code::ConfigInvalid`] at `docker.credentials_file`. The text of the file is not in it.
pub(crate) fn read(file: &Path) -> Result<HashMap<String, DockerCredentials>, Error> {
    let fail = |what: String| {
        Error::new(Code::ConfigInvalid, format!("{}: {what}", file.display())).at("docker.credentials_file")
    };
    let text = std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let config: ConfigJson = serde_json::from_str(&text)
        .map_err(|e| fail(format!("is not in the form of Docker's config.json: line {}", e.line())))?;
    let mut found = HashMap::new();
    for (host, auth) in config.auths {
        let pair = auth.auth.and_then(|auth| {
            let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
            let (user, password) = text.split_once(':')?;
            Some((user.to_owned(), password.to_owned()))
        });
        let (username, password) = pair.unzip();
        found.insert(
            host.clone(),
            DockerCredentials {
                username,
                password,
                identitytoken: auth.identitytoken,
                serveraddress: Some(host),
                ..DockerCredentials::default()
            },
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_own_file_is_understood_and_a_broken_one_is_not_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("config.json");
        std::fs::write(&file, r#"{"auths": {"registry.example": {"auth": "bWU6c2VjcmV0"}}}"#).expect("write");
        let found = read(&file).expect("read");
        let credentials = &found["registry.example"];
        assert_eq!(credentials.username.as_deref(), Some("me"));
        assert_eq!(credentials.password.as_deref(), Some("secret"));
        std::fs::write(&file, r#"{"auths": "sekrit"}"#).expect("write");
        assert!(!read(&file).expect_err("broken").to_string().contains("sekrit"));
    }
}
