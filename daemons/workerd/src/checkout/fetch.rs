//! Bringing a mirror up to date: branches, tags and what HEAD stands for. No hooks, no filters, no redirects to
//! another host.

use std::{cell::Cell, fs, path::Path};

use git2::{
    AutotagOption, Cred, CredentialType, FetchOptions, FetchPrune, ProxyOptions, RemoteCallbacks,
    RemoteRedirect, Repository,
};

use super::{
    child::{Failure, HEAD, sorted},
    nearby,
    wire::{Problem, Request},
};

const BRANCHES: &str = "+refs/heads/*:refs/heads/*";
const TAGS: &str = "+refs/tags/*:refs/tags/*";
/// A host that asks for credentials more often does not like them.
const MAX_ASKED: u32 = 4;

pub(super) fn fetch(request: &Request) -> Result<(), Failure> {
    let Request::Fetch { mirror, url, extra, ssh_key, credentials, max_bytes } = request else {
        return Err((Problem::Broken, "not a fetch".into()));
    };
    if let Some((host, ip)) = nearby::refused(url) {
        let host = codering_core::ids::shown(&host);
        return Err((Problem::Nearby, format!("{host} is {ip}")));
    }
    let broken = |e: git2::Error| match sorted(&e) {
        (Problem::NoRoom, message) => (Problem::NoRoom, message),
        (_, message) => (Problem::Broken, message),
    };
    let repository = match Repository::open_bare(mirror) {
        Ok(repository) => repository,
        Err(_) => {
            let _ = fs::remove_dir_all(mirror);
            Repository::init_bare(mirror).map_err(broken)?
        }
    };
    let received = Cell::new(0_u64);
    let mut callbacks = RemoteCallbacks::new();
    let asked = Cell::new(0);
    callbacks.credentials(|url, user, allowed| {
        asked.set(asked.get() + 1);
        if asked.get() > MAX_ASKED {
            return Err(git2::Error::new(
                git2::ErrorCode::Auth,
                git2::ErrorClass::Net,
                "the credentials were not accepted",
            ));
        }
        credential(url, user, allowed, ssh_key.as_deref(), credentials.as_deref())
    });
    callbacks.transfer_progress(|progress| {
        received.set(progress.received_bytes() as u64);
        received.get() <= *max_bytes
    });
    let mut proxy = ProxyOptions::new();
    proxy.auto();
    let mut options = FetchOptions::new();
    options
        .remote_callbacks(callbacks)
        .proxy_options(proxy)
        .follow_redirects(RemoteRedirect::None)
        .update_fetchhead(false);
    let mut remote =
        repository.remote_anonymous(url).map_err(|e| (Problem::Unreachable, e.message().into()))?;
    let specs: Vec<String> = match extra {
        Some(commit) if commit.len() == 40 && !commit.contains('/') => {
            vec![format!("+{commit}:refs/codering/commits/{commit}")]
        }
        Some(reference) => vec![format!("+{reference}:{reference}")],
        None => {
            options.prune(FetchPrune::On).download_tags(AutotagOption::None);
            vec![BRANCHES.into(), TAGS.into()]
        }
    };
    let fetched = remote.fetch(&specs, Some(&mut options), None);
    if received.get() > *max_bytes {
        return Err((Problem::TooLarge, format!("more than {max_bytes} bytes")));
    }
    match fetched {
        Ok(()) => {}
        // What was asked for by name may not be there, or not be given out; looking for it will tell.
        Err(e) if extra.is_some() && !matches!(sorted(&e).0, Problem::Unreachable | Problem::NoRoom) => {
            return Ok(());
        }
        Err(e) => return Err(sorted(&e)),
    }
    if extra.is_none() {
        remember_head(&repository, &remote).map_err(broken)?;
    }
    Ok(())
}

/// What the other side's HEAD stands for is kept under a name of ours, for a fetch knows no symbolic refs.
fn remember_head(repository: &Repository, remote: &git2::Remote<'_>) -> Result<(), git2::Error> {
    let head = remote.list()?.iter().find(|head| head.name() == "HEAD").map(git2::RemoteHead::oid);
    match head {
        Some(oid) if repository.find_commit(oid).is_ok() => {
            repository.reference(HEAD, oid, true, "fetch").map(|_| ())
        }
        _ => match repository.find_reference(HEAD) {
            Ok(mut old) => old.delete(),
            Err(_) => Ok(()),
        },
    }
}

fn credential(
    url: &str,
    user: Option<&str>,
    allowed: CredentialType,
    ssh_key: Option<&Path>,
    credentials: Option<&Path>,
) -> Result<Cred, git2::Error> {
    let none = |what: &str| Err(git2::Error::new(git2::ErrorCode::Auth, git2::ErrorClass::Net, what));
    let user = user.unwrap_or("git");
    if allowed.contains(CredentialType::USERNAME) {
        return Cred::username(user);
    }
    if allowed.contains(CredentialType::SSH_KEY) {
        return match ssh_key {
            Some(key) => Cred::ssh_key(user, None, key, None),
            None => none("an ssh key is needed"),
        };
    }
    if allowed.contains(CredentialType::USER_PASS_PLAINTEXT) {
        let stored = credentials.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        return match stored.lines().find_map(|line| password(line, url)) {
            Some((user, password)) => Cred::userpass_plaintext(&user, &password),
            None => none("a password is needed"),
        };
    }
    none("the host wants a kind of credentials that is not supported")
}

/// User and password of a line of git's credential store, if it is for this address's scheme, host and port.
fn password(line: &str, url: &str) -> Option<(String, String)> {
    let (stored, asked) = (url::Url::parse(line.trim()).ok()?, url::Url::parse(url).ok()?);
    let same = stored.scheme() == asked.scheme()
        && stored.host_str() == asked.host_str()
        && stored.port_or_known_default() == asked.port_or_known_default();
    let decoded = |text: &str| {
        let text = text.replace('+', "%2B");
        url::form_urlencoded::parse(format!("v={text}").as_bytes()).next().map(|(_, v)| v.into_owned())
    };
    let (user, password) = (decoded(stored.username())?, decoded(stored.password()?)?);
    same.then_some((user, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_given_to_its_own_host_alone() {
        let line = "https://me:p%40ss+word@git.example:8443";
        let found = password(line, "https://git.example:8443/a/b.git");
        assert_eq!(found, Some(("me".into(), "p@ss+word".into())));
        for other in ["https://git.example/a", "http://git.example:8443/a", "https://evil.example:8443/a"] {
            assert_eq!(password(line, other), None, "{other}");
        }
    }
}
