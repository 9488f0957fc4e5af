//! The tokens themselves: created, listed, revoked; and the first one, in a file.

use std::path::Path;

use codering_core::{Code, Error, ProjectName, time::Millis};
use codering_kit::tls::write_private;

use super::{
    Auth, Caller,
    caller::name,
    secret::{self, Bearer},
};
use crate::{
    broker::now,
    ledger::{Role, Token},
};

/// No more tokens than these are kept, revoked ones included.
const MAX_TOKENS: usize = 10_000;
/// A join token lives so long where nothing was said.
const JOIN_TTL_MS: Millis = 3_600_000;
/// And never longer: it lies around in an installer's configuration.
const MAX_JOIN_TTL_MS: Millis = 7 * 24 * 3_600_000;

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// For people; not unique.
    pub name: String,
    /// What it is to allow.
    pub role: Role,
    /// Where; empty: everywhere.
    pub projects: Vec<ProjectName>,
    /// How long it lives, in seconds. 0: for ever; for a join token, an hour.
    pub ttl_seconds: u64,
}

impl Auth {
    /// Makes a token. The second of the two is its text, which exists nowhere else; a join token's ends in the CA's
    /// fingerprint.
    ///
    /// # Errors
    /// [`Code::AuthDenied`] where the caller would get more than it has, [`Code::InvalidInput`], or the ledger's.
    pub async fn create_token(&self, caller: &Caller, wanted: NewToken) -> Result<(Token, String), Error> {
        allow_create(caller, &wanted)?;
        let ttl = checked_ttl(&wanted)?;
        let _writing = self.0.writing.lock().await;
        if self.0.ledger.tokens().await?.len() >= MAX_TOKENS {
            return Err(Error::new(Code::BrokerBusy, format!("there are {MAX_TOKENS} tokens already")));
        }
        let (text, id, hash) = secret::new();
        let created_at = now();
        let token = Token {
            id,
            name: wanted.name,
            role: wanted.role,
            projects: wanted.projects,
            hash,
            created_at,
            expires_at: ttl.map_or(0, |ttl| created_at.saturating_add(ttl)),
            revoked_at: 0,
            last_used_at: 0,
        };
        self.0.ledger.put_token(token.clone()).await?;
        tracing::info!(
            token = token.id, name = token.name, role = name(token.role), by = caller.token().id,
            address = %caller.address(), "a token was created"
        );
        let text = match token.role {
            Role::Worker => format!("{text}.{}", self.0.ca.fingerprint()),
            _ => text,
        };
        Ok((token, text))
    }

    /// The tokens that the caller may see: an administrator all, one of some projects those of its projects.
    ///
    /// # Errors
    /// [`Code::AuthDenied`], or the ledger's.
    pub async fn tokens(&self, caller: &Caller) -> Result<Vec<Token>, Error> {
        let tokens = self.0.ledger.tokens().await?;
        if caller.projects().is_none() {
            caller.may_everywhere(Role::Admin)?;
        }
        for project in caller.projects().unwrap_or_default() {
            caller.may(Role::Admin, project)?;
        }
        Ok(tokens.into_iter().filter(|token| governs(caller, token)).collect())
    }

    /// Revokes a token by its id or its unambiguous name. From the answer on it is refused everywhere. A caller may
    /// always revoke its own.
    ///
    /// # Errors
    /// [`Code::TokenNotFound`], [`Code::InvalidInput`] for an ambiguous name, [`Code::AuthDenied`], or the ledger's.
    pub async fn revoke_token(&self, caller: &Caller, id_or_name: &str) -> Result<Token, Error> {
        let _writing = self.0.writing.lock().await;
        let tokens = self.0.ledger.tokens().await?;
        let token = self.one_of(tokens, caller, id_or_name)?;
        if token.revoked_at != 0 {
            return Ok(token);
        }
        let revoked = Token { revoked_at: now(), ..token };
        // Forgotten before and after: whoever read the old row in between does not keep it.
        self.forget(&revoked.id);
        self.0.ledger.put_token(revoked.clone()).await?;
        self.forget(&revoked.id);
        tracing::info!(
            token = revoked.id, name = revoked.name, by = caller.token().id, address = %caller.address(),
            "a token was revoked"
        );
        Ok(revoked)
    }

    fn one_of(&self, tokens: Vec<Token>, caller: &Caller, id_or_name: &str) -> Result<Token, Error> {
        let own = caller.token().id.clone();
        let mut seen: Vec<_> =
            tokens.into_iter().filter(|token| token.id == own || governs(caller, token)).collect();
        if let Some(place) = seen.iter().position(|token| token.id == id_or_name) {
            return Ok(seen.swap_remove(place));
        }
        seen.retain(|token| token.name == id_or_name && token.revoked_at == 0);
        match (seen.len(), seen.pop()) {
            (1, Some(token)) => Ok(token),
            (0, _) if caller.token().role != Role::Admin => {
                Err(Error::new(Code::AuthDenied, "only an administrator revokes another's token"))
            }
            (0, _) => {
                let typed = codering_core::ids::shown(id_or_name);
                Err(Error::new(Code::TokenNotFound, format!("there is no token `{typed}`"))
                    .hint("coderingctl token list"))
            }
            (n, _) => Err(Error::new(Code::InvalidInput, format!("{n} tokens have this name"))
                .hint("name it by its id: coderingctl token list")),
        }
    }

    /// Sees to it that there is a live administrator's token, and that the file at `path` (0600) holds the first one.
    /// Once every such token is revoked or expired, a restart makes a new one.
    ///
    /// # Errors
    /// The ledger's, or [`Code::ConfigInvalid`] where the file cannot be written.
    pub async fn ensure_admin(&self, path: &Path) -> Result<(), Error> {
        let tokens = self.0.ledger.tokens().await?;
        let lives = |t: &Token| t.revoked_at == 0 && (t.expires_at == 0 || t.expires_at > now());
        if tokens.iter().any(|t| t.role == Role::Admin && t.projects.is_empty() && lives(t)) {
            return Ok(());
        }
        // The file comes first: a crash between the two leaves a token that the next start records.
        let left = std::fs::read_to_string(path).ok();
        let unrecorded = left.as_deref().and_then(|text| Bearer::parse(text.trim()));
        let (id, hash) = match unrecorded.filter(|b| tokens.iter().all(|t| t.id != b.id)) {
            Some(bearer) => (bearer.id, bearer.hash),
            None => {
                let (text, id, hash) = secret::new();
                write_private(path, format!("{text}\n").as_bytes()).map_err(|e| {
                    Error::new(Code::ConfigInvalid, format!("cannot be written: {e}"))
                        .at(path.display().to_string())
                })?;
                (id, hash)
            }
        };
        let token = Token {
            id,
            name: "admin".into(),
            role: Role::Admin,
            projects: Vec::new(),
            hash,
            created_at: now(),
            expires_at: 0,
            revoked_at: 0,
            last_used_at: 0,
        };
        tracing::info!(token = token.id, file = %path.display(), "an administrator's token was made");
        Ok(self.0.ledger.put_token(token).await?)
    }
}

/// Whether the caller administers all that a token can do.
fn governs(caller: &Caller, token: &Token) -> bool {
    let within = || !token.projects.is_empty() && token.projects.iter().all(|project| caller.sees(project));
    caller.token().role == Role::Admin && (caller.projects().is_none() || within())
}

fn allow_create(caller: &Caller, wanted: &NewToken) -> Result<(), Error> {
    // A worker serves every project, whatever the token says.
    if wanted.projects.is_empty() || wanted.role == Role::Worker {
        caller.may_everywhere(Role::Admin)?;
    }
    wanted.projects.iter().try_for_each(|project| caller.may(Role::Admin, project))
}

/// The life in milliseconds; `None`: for ever.
fn checked_ttl(wanted: &NewToken) -> Result<Option<Millis>, Error> {
    let invalid = |place: &str, what: &str| Err(Error::new(Code::InvalidInput, what.to_owned()).at(place));
    let length = wanted.name.chars().count();
    if !(1..=60).contains(&length) || wanted.name.chars().any(char::is_control) {
        return invalid("name", "a token's name has 1 to 60 characters");
    }
    if wanted.projects.len() > 1000 {
        return invalid("projects", "a token is limited to at most 1000 projects");
    }
    if wanted.role == Role::Worker && !wanted.projects.is_empty() {
        return invalid("projects", "a worker serves every project; a join token is not limited to some");
    }
    let ttl = i64::try_from(wanted.ttl_seconds).unwrap_or(i64::MAX).saturating_mul(1000);
    match (wanted.role, ttl) {
        (Role::Worker, 0) => Ok(Some(JOIN_TTL_MS)),
        (Role::Worker, ttl) if ttl > MAX_JOIN_TTL_MS => {
            invalid("ttl_seconds", "a join token lives at most 7 days")
        }
        (_, 0) => Ok(None),
        (_, ttl) => Ok(Some(ttl)),
    }
}
