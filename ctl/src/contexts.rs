//! Named brokers, as kubectl's contexts: `$XDG_CONFIG_HOME/codering/contexts.toml`, which its owner
//! alone may read, since it holds the tokens. The CA's certificate is copied into it, so that a
//! context works wherever the file it came from went.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use codering_core::{Code, Error, error::nearest};
use serde::{Deserialize, Serialize};

/// The file's content. It has no `Debug`, so that no token is logged by accident.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contexts {
    /// The one used where none is named; empty where there is none.
    pub current: String,
    /// By name.
    #[serde(rename = "context")]
    pub named: BTreeMap<String, Saved>,
}

/// One broker and how to speak to it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// `HOST:PORT` of its gRPC interface.
    pub broker: String,
    /// The certificate of the CA that signed the broker's.
    pub ca_pem: String,
    /// The secret.
    pub token: String,
}

/// Where the file is: under `XDG_CONFIG_HOME`, else `~/.config`.
pub fn default_path() -> Result<PathBuf, Error> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let config = config.or_else(|| set("HOME").map(|home| home.join(".config"))).ok_or_else(|| {
        Error::new(Code::ConfigInvalid, "neither XDG_CONFIG_HOME nor HOME is set, so no context can be kept")
    })?;
    Ok(config.join("codering/contexts.toml"))
}

impl Contexts {
    /// Reads the file; an absent one is empty.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(wrong(path, &error)),
        };
        // Only the position and the kind of fault: the line itself may hold a token.
        toml::from_str(&text).map_err(|error| wrong(path, &error.message()))
    }

    /// Writes the file whole or not at all, readable by its owner alone.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let text = toml::to_string(self).map_err(|error| wrong(path, &error))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let written = fs::create_dir_all(directory).and_then(|()| {
            let mut file = tempfile::Builder::new()
                .permissions(fs::Permissions::from_mode(0o600))
                .tempfile_in(directory)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error).map(drop)
        });
        written.map_err(|error| wrong(path, &error))
    }

    /// The context of this name, or the current one; `None` where no broker was ever named.
    pub fn find(&self, name: Option<&str>) -> Result<Option<(&str, &Saved)>, Error> {
        let name = match name {
            Some(name) => name,
            None if self.current.is_empty() => return Ok(None),
            None => &self.current,
        };
        match self.named.get_key_value(name) {
            Some((name, saved)) => Ok(Some((name, saved))),
            None => Err(self.unknown(name)),
        }
    }

    /// Makes `name` the current one.
    pub fn switch(&mut self, name: &str) -> Result<(), Error> {
        if !self.named.contains_key(name) {
            return Err(self.unknown(name));
        }
        name.clone_into(&mut self.current);
        Ok(())
    }

    /// Adds or replaces `name` and makes it the current one.
    pub fn put(&mut self, name: &str, saved: Saved) {
        self.named.insert(name.to_owned(), saved);
        name.clone_into(&mut self.current);
    }

    /// Forgets `name`. Where it was the current one and a single other is left, that becomes current.
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        if self.named.remove(name).is_none() {
            return Err(self.unknown(name));
        }
        if self.current == name {
            let mut left = self.named.keys();
            self.current = match (left.next(), left.next()) {
                (Some(only), None) => only.clone(),
                _ => String::new(),
            };
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> Error {
        let shown = codering_core::ids::shown(name);
        let hint = match nearest(name, self.named.keys().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`? all of them: coderingctl login list"),
            None if self.named.is_empty() => format!(
                "there is none yet: coderingctl login {shown} --broker HOST:7443 --ca ca.pem --token-file FILE"
            ),
            None => "all of them: coderingctl login list".to_owned(),
        };
        Error::new(Code::InvalidInput, format!("there is no context `{shown}`")).hint(hint)
    }
}

fn wrong(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(Code::ConfigInvalid, error.to_string().trim_end().to_owned()).at(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(broker: &str) -> Saved {
        Saved { broker: broker.into(), ca_pem: "-----BEGIN".into(), token: "cdr_x_y".into() }
    }

    #[test]
    fn what_was_saved_is_read_back_and_nobody_else_can_read_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/contexts.toml");
        assert!(Contexts::load(&path).expect("absent is empty") == Contexts::default());
        let mut contexts = Contexts::default();
        contexts.put("lab", saved("broker.lan:7443"));
        contexts.put("home", saved("localhost:7443"));
        contexts.save(&path).expect("saved");
        assert!(Contexts::load(&path).expect("read") == contexts);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_newest_login_is_current_and_a_removed_one_leaves_the_only_other() {
        let mut contexts = Contexts::default();
        assert!(contexts.find(None).expect("no error").is_none());
        contexts.put("lab", saved("a:1"));
        contexts.put("home", saved("b:2"));
        assert_eq!(contexts.find(None).expect("known").map(|found| found.0), Some("home"));
        contexts.switch("lab").expect("known");
        contexts.remove("lab").expect("known");
        assert_eq!(contexts.current, "home");
        contexts.remove("home").expect("known");
        assert_eq!(contexts.current, "");
    }

    #[test]
    fn an_unknown_context_names_its_neighbour_and_a_broken_file_shows_no_token() {
        let mut contexts = Contexts::default();
        contexts.put("laboratory", saved("a:1"));
        let Err(error) = contexts.find(Some("laborator")) else { panic!("found") };
        assert!(error.hint.contains("`laboratory`"), "{error}");

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("contexts.toml");
        fs::write(&path, "current = \"lab\"\n[context.lab]\ntoken = \"cdr_secret\n").expect("written");
        let Err(error) = Contexts::load(&path) else { panic!("read") };
        assert!(!error.to_string().contains("cdr_secret"), "{error}");
        assert!(error.place.ends_with("contexts.toml"));
    }
}
