//! The tokens themselves: created, listed, revoked; and the first one, in a file.

use std::path::Path;

use codering_core::{Code, Error, ProjectName, time::Millis};
use codering_kit::{
    fault::{self, Point},
    tls::write_private,
};

use super::{
    Auth, Caller,
    caller::name,
    secret::{self, Bearer},
};
use crate::{
    broker::now,
    ledger::{Role, Token},
};

/// No more tokens than these are kept, revoked and expired ones included.
const MAX_TOKENS: usize = 10_000;
/// Revoked and expired ones are kept so long, for people who look; sooner gone where the room is needed.
const KEEP_ENDED_MS: Millis = 30 * 24 * 3_600_000;
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
        self.check_projects(&wanted.projects).await?;
        self.remove_ended(KEEP_ENDED_MS, MAX_TOKENS - 1).await?;
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
        self.record(token.clone()).await?;
        fault::reached(Point::TokenMade);
        tracing::info!(
            token = token.id, name = token.name, role = name(token.role), projects = listed(&token.projects),
            by = caller.token().id, by_name = caller.name(), address = %caller.address(), "a token was created"
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
        fault::reached(Point::TokenRevoked);
        self.forget(&revoked.id);
        tracing::info!(
            token = revoked.id, name = revoked.name, by = caller.token().id, by_name = caller.name(),
            address = %caller.address(), "a token was revoked"
        );
        Ok(revoked)
    }

    /// A name that is typed wrong would be a token for whoever makes that project one day.
    async fn check_projects(&self, wanted: &[ProjectName]) -> Result<(), Error> {
        if wanted.is_empty() {
            return Ok(());
        }
        let there = self.0.ledger.projects().await?;
        match wanted.iter().find(|name| there.iter().all(|project| project.name != **name)) {
            None => Ok(()),
            Some(name) => Err(Error::new(Code::ProjectNotFound, format!("there is no project {name}"))
                .at("projects")
                .hint(format!("coderingctl project create {name}"))),
        }
    }

    /// Takes a project that is gone out of every token that is limited to it, and revokes those that have no other:
    /// whoever makes a project of the same name later owes them nothing. Does nothing where the project is there.
    ///
    /// Called after a project was deleted, and again before one is made, since a crash may come in between.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn forget_project(&self, project: &ProjectName) -> Result<(), Error> {
        let _writing = self.0.writing.lock().await;
        if self.0.ledger.projects().await?.iter().any(|there| there.name == *project) {
            return Ok(());
        }
        let limited =
            self.0.ledger.tokens().await?.into_iter().filter(|token| token.projects.contains(project));
        // At once, so that they share a write.
        let changed = limited.map(async |mut token| {
            // None left would mean all: such a one keeps the name and is revoked.
            if token.projects.iter().any(|name| name != project) {
                token.projects.retain(|name| name != project);
            } else if token.revoked_at == 0 {
                token.revoked_at = now();
            } else {
                return Ok(());
            }
            let (id, revoked) = (token.id.clone(), token.revoked_at != 0);
            self.forget(&id);
            // fault: the next removal of the project, or of its namesake, does it.
            self.0.ledger.put_token(token).await?;
            self.forget(&id);
            tracing::info!(token = id, %project, revoked, "a token lost a project that was deleted");
            Ok::<(), Error>(())
        });
        futures::future::join_all(changed).await.into_iter().collect()
    }

    /// Removes what ended longer ago than `keep`, and more of it, the longest ended first, until no more than
    /// `most` are left. The caller holds `writing`.
    pub(super) async fn remove_ended(&self, keep: Millis, most: usize) -> Result<(), Error> {
        let tokens = self.0.ledger.tokens().await?;
        let (all, before) = (tokens.len(), now() - keep);
        let mut ended: Vec<_> = tokens.into_iter().filter_map(|t| Some((ended_at(&t)?, t.id))).collect();
        ended.sort();
        let old = ended.iter().filter(|(at, _)| *at < before).count();
        ended.truncate(old.max(all.saturating_sub(most)));
        if all - ended.len() > most {
            return Err(Error::new(Code::BrokerBusy, format!("there are {all} live tokens already"))
                .hint("revoke those that nobody needs: coderingctl token list"));
        }
        if ended.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = ended.into_iter().map(|(_, id)| id).collect();
        // fault: they had ended before.
        self.0.ledger.delete_tokens(ids.clone()).await?;
        tracing::info!(tokens = ids.len(), "tokens that had ended were removed");
        let mut cache = self.cache();
        for id in &ids {
            cache.tokens.remove(id);
            cache.ids.as_mut().map(|ids| ids.remove(id));
        }
        Ok(())
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
        let _writing = self.0.writing.lock().await;
        let tokens = self.0.ledger.tokens().await?;
        let lives = |t: &Token| ended_at(t).is_none();
        if tokens.iter().any(|t| t.role == Role::Admin && t.projects.is_empty() && lives(t)) {
            return Ok(());
        }
        // The file comes first: a crash between the two leaves a token that the next start records. Where tokens were
        // recorded before, an unknown one in the file may be one that was revoked, and then removed.
        let left = std::fs::read_to_string(path).ok().filter(|_| tokens.is_empty());
        let unrecorded = left.as_deref().and_then(|text| Bearer::parse(text.trim()));
        let (id, hash) = match unrecorded {
            Some(bearer) => (bearer.id, bearer.hash),
            None => {
                let (text, id, hash) = secret::new();
                // fault: the next start records what it finds there.
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
        self.record(token).await?;
        fault::reached(Point::TokenMade);
        Ok(())
    }
}

/// When it was revoked or expired; `None`: it is live.
pub(super) fn ended_at(token: &Token) -> Option<Millis> {
    let expired = (token.expires_at != 0 && token.expires_at <= now()).then_some(token.expires_at);
    (token.revoked_at != 0).then_some(token.revoked_at).or(expired)
}

fn listed(projects: &[ProjectName]) -> String {
    match projects {
        [] => "all".into(),
        some => some.iter().map(ProjectName::as_str).collect::<Vec<_>>().join(","),
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
    if !codering_core::ids::is_plain_text(&wanted.name, 60) {
        return invalid(
            "name",
            "a token's name has 1 to 60 characters, none of them a control character or a direction mark",
        );
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
