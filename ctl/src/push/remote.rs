//! A push to a git host: what the branch holds is fetched into a cache, the commit is made there and
//! sent. Keys and passwords come from where git itself looks: the agent, `~/.ssh`, credential helpers.

use std::{cell::RefCell, fs, path::Path};

use codering_core::{Code, Error};
use git2::{
    Config, Cred, CredentialType, Direction, FetchOptions, Oid, PushOptions, RemoteCallbacks, Repository,
    RepositoryInitOptions,
};
use sha2::{Digest, Sha256};

use super::{Address, Pushed, Tried, failed, on_top};

/// A host that refuses every key asks again and again.
const MAX_ASKED: u32 = 6;

pub fn push(
    dir: &Path,
    address: &Address,
    branch: &str,
    message: &str,
    cache_dir: &Path,
) -> Result<Tried, Error> {
    let repository = cache(address, cache_dir)?;
    let tip = fetch(&repository, address, branch)?;
    let (made, pushed) = on_top(&repository, dir, tip, message)?;
    if Some(made) == tip {
        return Ok(Tried::Done(pushed));
    }
    send(&repository, address, branch, made, pushed)
}

/// A bare repository that keeps what was fetched from this address.
fn cache(address: &Address, dir: &Path) -> Result<Repository, Error> {
    let hash: String =
        Sha256::digest(address.url().as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let path = dir.join(format!("{hash}.git"));
    let mut options = RepositoryInitOptions::new();
    options.bare(true).mkpath(true).external_template(false);
    fs::create_dir_all(&path).map_err(|error| {
        Error::new(Code::GitPushFailed, format!("the cache cannot be made: {error}"))
            .at(path.display().to_string())
    })?;
    Repository::init_opts(&path, &options).map_err(|error| failed(address, &error))
}

/// The branch's commit, fetched; `None` where the host has no such branch.
fn fetch(repository: &Repository, address: &Address, branch: &str) -> Result<Option<Oid>, Error> {
    let told = |error: git2::Error| told(address, &error);
    let wanted = format!("refs/heads/{branch}");
    let mut remote = repository.remote_anonymous(address.url()).map_err(told)?;
    let tip = {
        let connection = remote.connect_auth(Direction::Fetch, Some(callbacks()), None).map_err(told)?;
        let heads = connection.list().map_err(told)?;
        heads.iter().find(|head| head.name() == wanted).map(git2::RemoteHead::oid)
    };
    if let Some(tip) = tip
        && repository.find_commit(tip).is_err()
    {
        let mut options = FetchOptions::new();
        options.remote_callbacks(callbacks());
        let refspec = format!("+{wanted}:{wanted}");
        remote.fetch(&[refspec], Some(&mut options), None).map_err(told)?;
    }
    Ok(tip)
}

fn send(
    repository: &Repository,
    address: &Address,
    branch: &str,
    made: Oid,
    pushed: Pushed,
) -> Result<Tried, Error> {
    let name = format!("refs/heads/{branch}");
    repository.reference(&name, made, true, "push").map_err(|error| failed(address, &error))?;
    let refused = RefCell::new(None);
    let sent = {
        let mut callbacks = callbacks();
        callbacks.push_update_reference(|_, why| {
            *refused.borrow_mut() = why.map(str::to_owned);
            Ok(())
        });
        let mut options = PushOptions::new();
        options.remote_callbacks(callbacks);
        let mut remote = repository.remote_anonymous(address.url()).map_err(|error| told(address, &error))?;
        remote.push(&[format!("{name}:{name}")], Some(&mut options))
    };
    match (sent, refused.into_inner()) {
        (Err(error), _) if error.code() == git2::ErrorCode::NotFastForward => Ok(Tried::Moved),
        (Err(error), _) => Err(told(address, &error)),
        (Ok(()), Some(why)) if why.contains("fast-forward") || why.contains("fetch first") => {
            Ok(Tried::Moved)
        }
        (Ok(()), Some(why)) => {
            Err(Error::new(Code::GitPushFailed, format!("the host refused the branch {branch}: {why}"))
                .at(address.shown()))
        }
        (Ok(()), None) => Ok(Tried::Done(pushed)),
    }
}

fn told(address: &Address, error: &git2::Error) -> Error {
    let told = failed(address, error);
    match error.code() {
        git2::ErrorCode::Auth => told.hint("the host takes none of the keys and passwords that git has here"),
        git2::ErrorCode::Certificate => {
            told.hint("connect once by hand, so that the host's key is known: git ls-remote")
        }
        _ => told,
    }
}

fn callbacks<'a>() -> RemoteCallbacks<'a> {
    let mut asked = 0;
    let mut callbacks = RemoteCallbacks::new();
    callbacks.credentials(move |url, username, allowed| {
        asked += 1;
        credential(url, username, allowed, asked)
    });
    callbacks
}

/// Asked again for each credential that the host did not take.
fn credential(
    url: &str,
    username: Option<&str>,
    allowed: CredentialType,
    asked: u32,
) -> Result<Cred, git2::Error> {
    let user = username.unwrap_or("git");
    if asked > MAX_ASKED {
        return Err(git2::Error::new(
            git2::ErrorCode::Auth,
            git2::ErrorClass::Callback,
            "no key or password was accepted",
        ));
    }
    if allowed.contains(CredentialType::USERNAME) {
        return Cred::username(user);
    }
    if allowed.contains(CredentialType::SSH_KEY) {
        if asked == 1 && std::env::var_os("SSH_AUTH_SOCK").is_some() {
            return Cred::ssh_key_from_agent(user);
        }
        let home = std::env::var_os("HOME").unwrap_or_default();
        let keys = ["id_ed25519", "id_ecdsa", "id_rsa"];
        let mut found =
            keys.iter().map(|name| Path::new(&home).join(".ssh").join(name)).filter(|key| key.exists());
        return match found.nth(asked.saturating_sub(2) as usize) {
            Some(key) => Cred::ssh_key(user, None, &key, None),
            None => Err(git2::Error::new(
                git2::ErrorCode::Auth,
                git2::ErrorClass::Ssh,
                "no key of the agent or of ~/.ssh was accepted",
            )),
        };
    }
    if allowed.contains(CredentialType::USER_PASS_PLAINTEXT) && asked == 1 {
        return Cred::credential_helper(&Config::open_default()?, url, username);
    }
    if allowed.contains(CredentialType::DEFAULT) && asked == 1 {
        return Cred::default();
    }
    Err(git2::Error::new(git2::ErrorCode::Auth, git2::ErrorClass::Callback, "no password was accepted"))
}
