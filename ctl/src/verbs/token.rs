//! `token`: create, list, revoke. A secret is shown once and kept nowhere.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use codering_core::{Error, ProjectName};
use codering_proto::v1::{self, CreateTokenResponse, Token};

use crate::{
    client::{Broker, said},
    context::Context,
    verbs::{complete, words},
};

/// Tokens: who may do what.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a token; its secret is printed once on stdout, all else on stderr.
    #[command(after_help = "Examples:\n  \
        coderingctl token create --role submitter --project demo --name ci > ci.token\n  \
        coderingctl token create --role viewer --ttl 30d > dashboard.token")]
    Create {
        /// What its owner may do.
        #[arg(long, short)]
        role: Role,
        /// Only for this project; may be given several times. Without it, for every project.
        #[arg(long, short, add = complete::projects())]
        project: Vec<ProjectName>,
        /// What to call it; without it, its role.
        #[arg(long, short)]
        name: Option<String>,
        /// When it ends; without it, never, and a worker's after an hour.
        #[arg(long, value_name = "DURATION", value_parser = crate::cli::duration)]
        ttl: Option<Duration>,
    },
    /// List tokens, without their secrets.
    #[command(after_help = "Examples:\n  \
        coderingctl token list\n  \
        coderingctl token list --output json | jq -r '.[] | select(.revoked_at == null) | .name'")]
    List,
    /// Refuse a token from now on.
    #[command(after_help = "Examples:\n  \
        coderingctl token revoke ci\n  \
        coderingctl token revoke 7k2m9q --yes")]
    Revoke {
        /// Its id, or its name where only one has it.
        token: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// What a token's owner may do; each may do what those below it may.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Role {
    /// All.
    Admin,
    /// Submit jobs, cancel and retry them, put and take messages.
    Submitter,
    /// Look.
    Viewer,
    /// Join a worker, once.
    Worker,
}

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Admin => Self::Admin,
            Role::Submitter => Self::Submitter,
            Role::Viewer => Self::Viewer,
            Role::Worker => Self::Worker,
        }
    }
}

/// Runs the verb.
pub async fn run(ctx: &Context, verb: Verb) -> Result<(), Error> {
    let broker = ctx.broker().await?;
    match verb {
        Verb::Create { role, project, name, ttl } => {
            let role = v1::Role::from(role);
            let projects = project.into_iter().map(String::from).collect();
            let name = name.unwrap_or_else(|| words::role(role));
            let ttl = ttl.map_or(0, |ttl| ttl.as_secs());
            let created = create(&broker, name, role, projects, ttl).await?;
            print_secret(ctx, &created)
        }
        Verb::List => {
            let answer = said(broker.tokens().list(v1::ListTokensRequest {}).await)?;
            let now = ctx.now();
            let header = ["TOKEN", "NAME", "ROLE", "PROJECTS", "STATE", "CREATED", "USED"];
            ctx.out.list(&answer.tokens, &header, |token| row(token, now))
        }
        Verb::Revoke { token, yes } => {
            let shown = codering_core::ids::shown(&token);
            ctx.confirm(&format!("refuse the token {shown} from now on?"), yes)?;
            let token = said(broker.tokens().revoke(v1::RevokeTokenRequest { token_id: token }).await)?;
            let (id, name) = (&token.token_id, words::harmless(&token.name));
            ctx.out.one(&token, || vec![format!("revoked  {id}  {name}")])
        }
    }
}

/// Makes a token.
pub async fn create(
    broker: &Broker,
    name: String,
    role: v1::Role,
    projects: Vec<String>,
    ttl_seconds: u64,
) -> Result<CreateTokenResponse, Error> {
    let request = v1::CreateTokenRequest { name, role: role as i32, projects, ttl_seconds };
    said(broker.tokens().create(request).await)
}

/// The secret alone on stdout, so that it can be redirected into a file; what it is for, on stderr.
pub fn print_secret(ctx: &Context, created: &CreateTokenResponse) -> Result<(), Error> {
    if let Some(token) = &created.token {
        let now = ctx.now();
        ctx.out.note(format!(
            "created  {}  {}, {}, ends {}",
            token.token_id,
            words::harmless(&token.name),
            standing(token),
            words::until(token.expires_at_ms, now)
        ));
        ctx.out.note("its secret is shown this once; keep it in a file that only its user can read");
    }
    ctx.out.one(created, || vec![created.secret.clone()])
}

/// `submitter of demo, pi`, or `admin of every project`.
pub fn standing(token: &Token) -> String {
    let role = words::role(token.role());
    match token.role() {
        v1::Role::Worker => "for joining a worker".into(),
        _ if token.projects.is_empty() => format!("{role} of every project"),
        _ => format!("{role} of {}", token.projects.join(", ")),
    }
}

fn row(token: &Token, now: i64) -> Vec<String> {
    vec![
        token.token_id.clone(),
        words::harmless(&token.name),
        words::role(token.role()),
        match token.role() {
            v1::Role::Worker => "-".into(),
            _ if token.projects.is_empty() => "all".into(),
            _ => token.projects.join(","),
        },
        state(token, now),
        words::ago(token.created_at_ms, now),
        words::ago(token.last_used_at_ms, now),
    ]
}

fn state(token: &Token, now: i64) -> String {
    match (token.revoked_at_ms, token.expires_at_ms) {
        (0, 0) => "live".into(),
        (0, end) if end > now => format!("ends {}", words::until(end, now)),
        (0, _) => "expired".into(),
        _ => "revoked".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_state_says_whether_it_still_works() {
        let token =
            |revoked_at_ms, expires_at_ms| Token { revoked_at_ms, expires_at_ms, ..Default::default() };
        let now = 1_000_000;
        assert_eq!(state(&token(0, 0), now), "live");
        assert_eq!(state(&token(0, now + 60_000), now), "ends in 60s");
        assert_eq!(state(&token(0, now - 1), now), "expired");
        assert_eq!(state(&token(5, now + 60_000), now), "revoked");
    }
}
