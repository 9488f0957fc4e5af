//! Which repository a push goes to, and which branch.

use std::path::{Path, PathBuf};

use codering_core::{Code, Error, Source, spec::without_password};

/// A git repository's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    url: String,
    may_be_made: bool,
}

impl Address {
    /// From what a job or the command line names: an address, or the plain name of a repository in
    /// `root`. Without any, `fallback` in `root`.
    pub fn find(named: Option<&str>, root: Option<&Path>, fallback: &str) -> Result<Self, Error> {
        let plain =
            |name: &str| !name.is_empty() && !name.starts_with(['.', '-']) && !name.contains(['/', ':', '@']);
        let within = |root: &Path, name: &str| {
            let name = name.strip_suffix(".git").unwrap_or(name);
            Self { url: format!("file://{}", root.join(format!("{name}.git")).display()), may_be_made: true }
        };
        match (named, root) {
            (Some(name), Some(root)) if plain(name) => Ok(within(root, name)),
            (Some(url), root) => {
                let path = url.strip_prefix("file://").map(Path::new);
                let may_be_made = path.is_some_and(|path| path.parent().is_some() && path.parent() == root);
                Ok(Self { url: url.to_owned(), may_be_made })
            }
            (None, Some(root)) => Ok(within(root, fallback)),
            (None, None) => Err(Error::new(Code::JobInvalid, "a push needs a git repository to go to")
                .at("git")
                .hint("name it: git = \"https://host/repository.git\" in the job file, or --git URL")),
        }
    }

    /// As jobs name it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it may be made where it is not there: only as a bare repository in the broker's own directory of them.
    pub fn may_be_made(&self) -> bool {
        self.may_be_made
    }

    /// The path of a repository of this machine.
    pub fn local(&self) -> Option<&Path> {
        self.url.strip_prefix("file://").map(Path::new)
    }

    /// For messages: without a password, and a local one by its name alone.
    pub fn shown(&self) -> String {
        match self.local().and_then(Path::file_name) {
            Some(name) => name.to_string_lossy().into_owned(),
            None => without_password(&self.url),
        }
    }

    /// Whether a job may name it, see [`Source::validate`].
    pub fn check(&self) -> Result<(), Error> {
        Source {
            git_url: self.url.clone(),
            git_ref: Source::DEFAULT_REF.into(),
            dockerfile: Source::DEFAULT_DOCKERFILE.into(),
        }
        .validate()
    }
}

/// The branch that a push goes to: the job's ref where it names one, else one of the job's own, which
/// no person works on.
pub fn branch_of(named: Option<&str>, job: &str) -> String {
    match named {
        Some(named) if named != Source::DEFAULT_REF => {
            named.strip_prefix("refs/heads/").unwrap_or(named).to_owned()
        }
        _ => {
            let mut slug: String = job
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
                .take(60)
                .collect();
            slug = slug.trim_matches('-').to_lowercase();
            format!("codering/{}", if slug.is_empty() { "job" } else { &slug })
        }
    }
}

/// Where coderingctl keeps what it fetched of repositories elsewhere.
pub fn cache_dir() -> Result<PathBuf, Error> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("codering/push"))
        .ok_or_else(|| Error::new(Code::ConfigInvalid, "neither XDG_CACHE_HOME nor HOME is set"))
}
