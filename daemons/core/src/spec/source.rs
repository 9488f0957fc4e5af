//! Where an image comes from: a git address, a ref, a Dockerfile.

use serde::{Deserialize, Serialize};

use crate::{Code, Error};

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// The repository's address.
    pub git_url: String,
    /// A branch, tag or commit.
    pub git_ref: String,
    /// The Dockerfile's path in the repository.
    pub dockerfile: String,
}

impl Source {
    /// The default ref.
    pub const DEFAULT_REF: &'static str = "HEAD";
    /// The default Dockerfile.
    pub const DEFAULT_DOCKERFILE: &'static str = "Dockerfile";

    /// Checks the form of each part; whether the scheme is allowed is the worker's configuration.
    pub fn validate(&self) -> Result<(), Error> {
        let fail = |code, place: &str, what: &str| Err(Error::new(code, what.to_owned()).at(place));
        let clean = |text: &str| {
            !text.chars().any(|c| c.is_control() || c.is_whitespace() || crate::ids::reorders(c))
        };
        let scheme =
            ["https://", "http://", "ssh://", "file:///"].iter().any(|s| self.git_url.starts_with(s));
        let scp = !self.git_url.contains("://")
            && !self.git_url.starts_with('-')
            && self
                .git_url
                .split_once(':')
                .is_some_and(|(host, path)| host.contains('@') && !path.is_empty());
        if !(scheme || scp) || !clean(&self.git_url) || self.git_url.len() > 2000 {
            return fail(
                Code::GitUrlRefused,
                "git",
                &format!(
                    "`{}` is not a git address: https://…, ssh://…, user@host:path, or file:///… where the worker allows it",
                    crate::ids::shown(&without_password(&self.git_url))
                ),
            );
        }
        let reference_ok = !self.git_ref.is_empty()
            && self.git_ref.len() <= 250
            && clean(&self.git_ref)
            && !self.git_ref.starts_with('-')
            && !self.git_ref.contains("..")
            && !self.git_ref.contains(['~', '^', ':', '?', '*', '[', '\\']);
        if !reference_ok {
            return fail(
                Code::JobInvalid,
                "ref",
                "a ref is a branch, a tag or a commit of at most 250 characters",
            );
        }
        let path_ok = !self.dockerfile.is_empty()
            && self.dockerfile.len() <= 500
            && !self.dockerfile.starts_with('/')
            && !self.dockerfile.contains(|c: char| c == '\\' || c.is_control() || crate::ids::reorders(c))
            && self.dockerfile.split('/').all(|part| !part.is_empty() && part != "..");
        if !path_ok {
            return fail(
                Code::JobInvalid,
                "dockerfile",
                "a Dockerfile is a relative path inside the repository",
            );
        }
        Ok(())
    }

    /// Whether the ref names one commit already.
    pub fn pinned(&self) -> Option<&str> {
        let full = self.git_ref.len() == 40 && self.git_ref.bytes().all(|b| b.is_ascii_hexdigit());
        full.then_some(self.git_ref.as_str())
    }
}

/// A git address without the password that it may carry, for messages and logs.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // `user:password@host:path` is no address, but somebody may have written one.
        return match url.split_once('@') {
            Some((user, rest)) => format!("{}@{rest}", user.split(':').next().unwrap_or_default()),
            None => url.to_owned(),
        };
    };
    let authority_end = rest.find('/').unwrap_or(rest.len());
    match rest[..authority_end].rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{host}{}", &rest[authority_end..])
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_addresses_of_other_schemes_are_refused() {
        let source = |url: &str| Source {
            git_url: url.into(),
            git_ref: "HEAD".into(),
            dockerfile: "Dockerfile".into(),
        };
        for good in ["https://h/p.git", "ssh://git@h/p", "git@h:p.git", "file:///srv/p.git"] {
            assert_eq!(source(good).validate(), Ok(()), "{good}");
        }
        for bad in
            ["ext::sh -c id", "git://h/p", "-oProxyCommand=x@h:p", "/srv/p", "https://h/a b", "file://h/p"]
        {
            assert!(source(bad).validate().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_never_shown() {
        assert_eq!(without_password("https://me:secret@h/p"), "https://me@h/p");
        assert_eq!(without_password("https://h/p@x"), "https://h/p@x");
        assert_eq!(without_password("me:secret@h:p"), "me@h:p");
    }
}
