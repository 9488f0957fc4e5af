//! Who is calling, and what they may do.
//!
//! People and programs show a token (`cdr_<id>_<secret>`), workers a client certificate that the CA signed for
//! a one-use join token. The ledger keeps a token's SHA-256 and nothing more of it.
//!
//! - [`Auth::authenticate`] turns a bearer text into a [`Caller`]; the [`Caller`] says what it may do.
//! - [`Auth::worker`] turns a client certificate into a worker's name; [`enroll`] makes the certificate and renews it.
//! - [`tokens`]: create, list, revoke, and the first administrator's.
//! - [`throttle`]: an address that guesses is slowed down.
//!
//! Each decision is logged with who (a token's id and name, a worker's name; never a secret), what (the call, in the
//! span) and from where.
//!
//! A token that was verified costs no ledger read on its next call, and a revoked one is refused from the moment
//! that revoking it was answered: this process is the ledger's only writer, and forgets it first.

mod caller;
mod enroll;
mod secret;
mod throttle;
mod tokens;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use codering_core::{Code, Error, WorkerName, ids::shown, joining};
use codering_kit::{
    listen::Peer,
    live::Live,
    tls::{Ca, WORKER_LIFE},
};
use subtle::ConstantTimeEq;

pub use caller::{Caller, name as role_name};
pub use enroll::Enrolled;
pub use tokens::NewToken;

use crate::{
    broker::now,
    ledger::{Ledger, Role, Token, Worker},
    metrics::Metrics,
};
use secret::Bearer;
use throttle::Throttle;

/// Verified tokens kept in memory.
const CACHED_TOKENS: usize = 4096;
/// A cached token is read again after this long, whatever happened.
const CACHED_FOR: Duration = Duration::from_secs(60);
/// `last_used_at` is written at most this often.
const USED_EVERY_MS: i64 = 60_000;

/// A handle; clones share one state.
#[derive(Clone)]
pub struct Auth(Arc<Inner>);

struct Inner {
    ledger: Arc<dyn Ledger>,
    ca: Arc<Ca>,
    /// Of a worker's certificate.
    certificate_life: Live<Duration>,
    metrics: Arc<Metrics>,
    cache: Mutex<Cache>,
    throttle: Mutex<Throttle>,
    /// Held while a token's row is changed, so that no change is written over another.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Cache {
    tokens: HashMap<String, (Arc<Token>, Instant)>,
    /// The ids of all recorded tokens, a bounded number, once they were read.
    ids: Option<HashSet<String>>,
    /// Counts revocations: what was read before one is not kept after it.
    revocations: u64,
}

impl Auth {
    /// Over this ledger; certificates are signed by this CA.
    pub fn new(ledger: Arc<dyn Ledger>, ca: Arc<Ca>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            ledger,
            ca,
            certificate_life: Live::new(WORKER_LIFE),
            metrics,
            cache: Mutex::default(),
            throttle: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
        }))
    }

    /// How long workers' certificates are valid that are signed from now on.
    pub fn set_certificate_life(&self, life: Duration) {
        self.0.certificate_life.set(life);
    }

    /// Who shows this token. `authorization` is the header's value, `Bearer cdr_…`.
    ///
    /// # Errors
    /// [`Code::AuthMissing`], [`Code::AuthInvalid`], [`Code::AuthTooMany`], [`Code::AuthDenied`] for a join token,
    /// or the ledger's.
    pub async fn authenticate(&self, authorization: Option<&str>, from: SocketAddr) -> Result<Caller, Error> {
        let text = bearer_text(authorization).inspect_err(|_| self.missing(from.ip(), "no token"))?;
        // A join token ends in the CA's fingerprint, and is told what it is for.
        let text = match text.split_once('.') {
            Some((token, end)) if end.eq_ignore_ascii_case(&self.0.ca.fingerprint()) => token,
            _ => text,
        };
        let token = self.verify(text, from.ip()).await?;
        if token.role == Role::Worker {
            self.0.metrics.auth_refused("denied").inc();
            tracing::warn!(
                token = token.id, name = token.name, address = %from.ip(), "a join token was used for a call: denied"
            );
            return Err(Error::new(Code::AuthDenied, "a join token does nothing but join a worker, once"));
        }
        self.note_use(&token);
        Ok(Caller::new(token, from.ip(), self.0.metrics.auth_refused("denied")))
    }

    /// Whether the token that this caller has shown is live still. Nobody's guesses are in the way of the answer.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn is_live(&self, caller: &Caller) -> Result<bool, Error> {
        let shown = caller.token();
        let token = match self.cached(&shown.id) {
            Some(token) => Some(token),
            None => self.look_up(Some(&Bearer { id: shown.id.clone(), hash: shown.hash })).await?,
        };
        Ok(token.is_some_and(|token| tokens::ended_at(&token).is_none()))
    }

    /// The worker whose certificate this is.
    ///
    /// # Errors
    /// [`Code::AuthMissing`] without one, [`Code::WorkerRevoked`], [`Code::AuthInvalid`] when a newer certificate
    /// replaced it, or the ledger's.
    pub async fn worker(&self, peer: &Peer) -> Result<WorkerName, Error> {
        self.worker_row(peer).await.map(|row| row.name)
    }

    async fn worker_row(&self, peer: &Peer) -> Result<Worker, Error> {
        let shown_by = peer.certificate.as_deref().and_then(|c| Some((c.worker()?, c)));
        let Some((name, certificate)) = shown_by else {
            self.missing(peer.address.ip(), "no worker's certificate");
            return Err(Error::new(Code::AuthMissing, "the call carries no worker's certificate")
                .hint("enroll the worker: coderingctl worker token"));
        };
        let rows = self.0.ledger.workers().await?;
        let refuse = |code, what: &str| {
            let hint = match code {
                Code::WorkerRevoked => enroll::another_name(),
                _ => format!(
                    "enroll it again, {}",
                    joining::again(name.as_str(), joining::BROKER, joining::HOST)
                ),
            };
            self.0.metrics.auth_refused("worker").inc();
            tracing::warn!(worker = %name, serial = certificate.serial, address = %peer.address.ip(), "refused: {what}");
            Err(Error::new(code, format!("worker {name}: {what}")).hint(hint))
        };
        match rows.into_iter().find(|row| row.name == name) {
            None => refuse(Code::AuthInvalid, "no worker of this name is enrolled here"),
            Some(row) if row.revoked => refuse(Code::WorkerRevoked, "its certificate was revoked"),
            Some(row) if !row.has_certificate(&certificate.serial) => {
                refuse(Code::AuthInvalid, "a newer certificate has replaced this one")
            }
            Some(row) => Ok(row),
        }
    }

    /// The live token of a text; a wrong one counts against its address.
    async fn verify(&self, text: &str, from: IpAddr) -> Result<Arc<Token>, Error> {
        let bearer = Bearer::parse(text);
        // One that is known and right passes even where its address is held up by another's guesses.
        let cached = bearer.as_ref().and_then(|b| self.cached(&b.id).filter(|t| is_right(t, b)));
        let token = match cached {
            Some(token) => token,
            None => self.verify_anew(bearer.as_ref(), from).await?,
        };
        let ended = if token.revoked_at != 0 {
            "revoked"
        } else if token.expires_at != 0 && token.expires_at <= now() {
            "expired"
        } else {
            return Ok(token);
        };
        // From memory it would never be held up.
        self.cache().tokens.remove(&token.id);
        Err(self.wrong(&token.id, Some(&token.id), from, ended))
    }

    async fn verify_anew(&self, bearer: Option<&Bearer>, from: IpAddr) -> Result<Arc<Token>, Error> {
        let known = match bearer {
            Some(bearer) if self.is_recorded(&bearer.id).await? => Some(bearer),
            _ => None,
        };
        let id = known.map(|bearer| bearer.id.as_str());
        let admitted = self.throttle().admit(from, id, Instant::now());
        admitted.inspect_err(|_| {
            self.0.metrics.auth_refused("throttled").inc();
            if let Some(unsaid) = self.throttle().say(from, "throttled", Instant::now()) {
                tracing::warn!(address = %from, token = id, unsaid, "too many wrong tokens: held up");
            }
        })?;
        match self.look_up(known).await? {
            Some(token) => Ok(token),
            None => {
                let shown_id = bearer.map_or_else(|| "of no known form".into(), |b| shown(&b.id));
                Err(self.wrong(&shown_id, id, from, if id.is_some() { "wrong" } else { "unknown" }))
            }
        }
    }

    /// Whether there is a token of this id, live or not: from memory, so that guesses cost the ledger nothing.
    async fn is_recorded(&self, id: &str) -> Result<bool, Error> {
        if let Some(ids) = &self.cache().ids {
            return Ok(ids.contains(id));
        }
        // Nothing is created or removed while they are read.
        let _writing = self.0.writing.lock().await;
        let ids: HashSet<_> = self.0.ledger.tokens().await?.into_iter().map(|token| token.id).collect();
        Ok(self.cache().ids.insert(ids).contains(id))
    }

    async fn look_up(&self, bearer: Option<&Bearer>) -> Result<Option<Arc<Token>>, Error> {
        let Some(bearer) = bearer else { return Ok(None) };
        let revocations = self.cache().revocations;
        let Some(token) = self.0.ledger.token(&bearer.id).await?.filter(|t| is_right(t, bearer)) else {
            return Ok(None);
        };
        let token = Arc::new(token);
        let mut cache = self.cache();
        if cache.revocations == revocations && token.role != Role::Worker {
            if cache.tokens.len() >= CACHED_TOKENS {
                let any = cache.tokens.keys().next().cloned();
                any.map(|id| cache.tokens.remove(&id));
            }
            cache.tokens.insert(token.id.clone(), (token.clone(), Instant::now()));
        }
        Ok(Some(token))
    }

    fn cached(&self, id: &str) -> Option<Arc<Token>> {
        let cache = self.cache();
        let (token, read_at) = cache.tokens.get(id)?;
        (read_at.elapsed() < CACHED_FOR).then(|| token.clone())
    }

    fn missing(&self, from: IpAddr, what: &'static str) {
        self.0.metrics.auth_refused("missing").inc();
        if let Some(unsaid) = self.throttle().say(from, what, Instant::now()) {
            tracing::info!(address = %from, unsaid, "refused: {what}");
        }
    }

    /// `known` is its id where it is that of a recorded token.
    fn wrong(&self, id: &str, known: Option<&str>, from: IpAddr, how: &str) -> Error {
        self.throttle().wrong(from, known, Instant::now());
        self.0.metrics.auth_refused("wrong_token").inc();
        tracing::warn!(token = id, address = %from, "a token was refused: {how}");
        // One text for all of them: a guess learns nothing from it.
        Error::new(Code::AuthInvalid, "the token is wrong, revoked or expired")
            .hint("coderingctl login, or ask an administrator for a new one")
    }

    /// Writes `last_used_at` behind the answer, seldom; nobody waits for it and nothing depends on it.
    fn note_use(&self, token: &Arc<Token>) {
        if now() - token.last_used_at < USED_EVERY_MS {
            return;
        }
        // Said in the cache first, so that of many calls at once one writes.
        let used = Token { last_used_at: now(), ..Token::clone(token) };
        if let Some(entry) = self.cache().tokens.get_mut(&token.id) {
            if now() - entry.0.last_used_at < USED_EVERY_MS {
                return;
            }
            entry.0 = Arc::new(used);
        }
        let (auth, id) = (self.clone(), token.id.clone());
        tokio::spawn(async move {
            let _writing = auth.0.writing.lock().await;
            // Read again under the lock: a revocation in between must not be undone.
            let written = match auth.0.ledger.token(&id).await {
                // fault: for people alone, and behind the answer.
                Ok(Some(row)) => auth.0.ledger.put_token(Token { last_used_at: now(), ..row }).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                tracing::debug!(token = id, %error, "when it was last used was not written");
            }
        });
    }

    /// For tests that show many wrong tokens and do not guess.
    #[cfg(test)]
    pub fn forgive_all(&self) {
        *self.throttle() = Throttle::default();
    }

    fn forget(&self, id: &str) {
        let mut cache = self.cache();
        cache.revocations += 1;
        cache.tokens.remove(id);
    }

    /// Writes a new row. The caller holds `writing`.
    async fn record(&self, token: Token) -> Result<(), Error> {
        let id = token.id.clone();
        self.0.ledger.put_token(token).await?;
        if let Some(ids) = &mut self.cache().ids {
            ids.insert(id);
        }
        Ok(())
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.0.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bearer_text(authorization: Option<&str>) -> Result<&str, Error> {
    let missing = |what: &str| {
        Error::new(Code::AuthMissing, what.to_owned()).hint("send the header `authorization: Bearer cdr_…`")
    };
    let value = authorization.ok_or_else(|| missing("the call carries no token"))?;
    match value.split_once(' ') {
        Some((scheme, text)) if scheme.eq_ignore_ascii_case("bearer") => Ok(text.trim()),
        _ => Err(missing("the authorization is not a bearer token")),
    }
}

/// Compared in constant time, so that an answer's time tells nothing of how much was right.
fn is_right(token: &Token, bearer: &Bearer) -> bool {
    token.hash.ct_eq(&bearer.hash).into()
}

#[cfg(test)]
mod tests;
