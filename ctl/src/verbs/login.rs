//! `login`: several named brokers, as kubectl's contexts.

use std::{
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use codering_core::{Code, Error, ids::shown};
use codering_proto::v1;
use serde::Serialize;

use crate::{
    client::{Broker, Target, said},
    context::Context,
    contexts::{self, Contexts, Saved},
    verbs::{complete, doctor, token, words},
};

/// Name a broker and keep its address, CA and token; or list, switch and remove those kept.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  \
        coderingctl login lab --broker broker.lan:7443 --ca ca.pem --token-file lab.token\n  \
        coderingctl login lab --broker broker.lan --ca ca.pem --token-file - < lab.token"
)]
pub struct Login {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    to: Option<To>,
}

/// A broker to be kept.
#[derive(Debug, Args)]
pub struct To {
    /// What to call it; it becomes the current one.
    name: String,
    /// Where its gRPC interface is.
    #[arg(long, value_name = "HOST:PORT")]
    broker: String,
    /// The certificate of the CA that signed the broker's: /var/lib/codering/brokerd/ca/ca.pem there.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// A file that holds the token; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
}

/// What to do with those kept.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the brokers kept; `*` marks the current one.
    #[command(after_help = "Examples:\n  \
        coderingctl login list\n  \
        coderingctl login list --output json | jq -r '.[].broker'")]
    List,
    /// Make one the current one, which verbs speak to unless --context names another.
    #[command(after_help = "Examples:\n  \
        coderingctl login use lab\n  \
        coderingctl login use home && coderingctl job list")]
    Use {
        /// Which.
        #[arg(add = complete::contexts())]
        name: String,
    },
    /// Forget one, with its token.
    #[command(after_help = "Examples:\n  \
        coderingctl login remove lab\n  \
        coderingctl login remove home")]
    Remove {
        /// Which.
        #[arg(add = complete::contexts())]
        name: String,
    },
}

/// A context without its token.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    broker: &'a str,
    current: bool,
}

/// Runs the verb.
pub async fn run(ctx: &Context, login: Login) -> Result<(), Error> {
    let path = contexts::default_path()?;
    let mut kept = Contexts::load(&path)?;
    match (login.verb, login.to) {
        (Some(Verb::List), _) => {
            if kept.named.is_empty() {
                ctx.out.note("no broker is kept yet: coderingctl login NAME --broker HOST:7443 --ca FILE --token-file FILE");
            }
            let all: Vec<_> = kept
                .named
                .iter()
                .map(|(name, saved)| Shown { name, broker: &saved.broker, current: *name == kept.current })
                .collect();
            ctx.out.list(&all, &["", "NAME", "BROKER"], |one| {
                let mark = if one.current { "*" } else { "" };
                vec![mark.into(), one.name.into(), one.broker.into()]
            })
        }
        (Some(Verb::Use { name }), _) => {
            kept.switch(&name)?;
            kept.save(&path)?;
            ctx.out.note(format!("now      {name}, {}", kept.named[&name].broker));
            Ok(())
        }
        (Some(Verb::Remove { name }), _) => {
            kept.remove(&name)?;
            kept.save(&path)?;
            let now = if kept.current.is_empty() {
                "none is current".into()
            } else {
                format!("{} is current", kept.current)
            };
            ctx.out.note(format!("removed  {name}; {now}"));
            Ok(())
        }
        (None, Some(to)) => keep(ctx, kept, &path, to).await,
        (None, None) => Err(Error::new(Code::InvalidInput, "which broker?").hint("coderingctl login --help")),
    }
}

async fn keep(ctx: &Context, mut kept: Contexts, path: &Path, to: To) -> Result<(), Error> {
    check_name(&to.name)?;
    let broker = address(&to.broker)?;
    let ca_pem = read(&to.ca)?;
    doctor::certificates(&ca_pem).map_err(|why| {
        Error::new(Code::InvalidInput, format!("not the certificate of a CA: {why}"))
            .at(to.ca.display().to_string())
            .hint("it is /var/lib/codering/brokerd/ca/ca.pem on the broker's machine")
    })?;
    let token = secret(&to.token_file)?;
    let saved = Saved { broker, ca_pem, token };
    // Nothing is kept that does not work.
    let connected = Broker::connect(Target::of_context(&to.name, &saved)).await?;
    let me = said(connected.tokens().who_am_i(v1::WhoAmIRequest {}).await)?;
    let place = saved.broker.clone();
    kept.put(&to.name, saved);
    kept.save(path)?;
    ctx.out.one(&me, || {
        let who = words::harmless(&me.name);
        vec![format!("logged in to {} at {place} as `{who}`, {}", to.name, token::standing(&me))]
    })
}

fn check_name(name: &str) -> Result<(), Error> {
    let good = (1..=60).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if good {
        return Ok(());
    }
    Err(Error::new(Code::InvalidInput, format!("`{}` is not a name for a broker", shown(name)))
        .hint("1 to 60 of a-z, A-Z, 0-9, `-`, `_` and `.`"))
}

/// `HOST:PORT`; the port may be left out, and `https://` may stand before it.
fn address(text: &str) -> Result<String, Error> {
    let wrong = || {
        Error::new(Code::InvalidInput, format!("`{}` is not HOST:PORT", shown(text)))
            .hint("the gRPC interface over TLS, e.g. broker.lan:7443")
    };
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = url::Url::parse(&with_scheme).map_err(|_| wrong())?;
    if url.scheme() != "https" || !matches!(url.path(), "" | "/") || !url.username().is_empty() {
        return Err(wrong());
    }
    Ok(format!("{}:{}", url.host_str().ok_or_else(wrong)?, explicit_port(text).unwrap_or(7443)))
}

/// The port that was written; `Url` drops 443 since it is https's own.
fn explicit_port(text: &str) -> Option<u16> {
    text.trim_end_matches('/').rsplit_once(':')?.1.parse().ok()
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path)
        .map_err(|error| Error::new(Code::InvalidInput, error.to_string()).at(path.display().to_string()))
}

fn secret(path: &Path) -> Result<String, Error> {
    let text = if path.as_os_str() == "-" {
        let mut text = String::new();
        if std::io::stdin().is_terminal() {
            return Err(Error::new(Code::InvalidInput, "a token typed here would be shown")
                .at("--token-file")
                .hint("redirect a file: --token-file - < FILE"));
        }
        // A token is far shorter; a wrong file is not read whole.
        let read = std::io::stdin().take(64 << 10).read_to_string(&mut text);
        read.map_err(|error| Error::new(Code::InvalidInput, error.to_string()).at("--token-file -"))?;
        text
    } else {
        read(path)?
    };
    let token = text.trim();
    let good = token.starts_with("cdr_") && token.len() < 1024 && token.bytes().all(|b| b.is_ascii_graphic());
    if !good {
        return Err(Error::new(Code::InvalidInput, "it holds no token")
            .at(path.display().to_string())
            .hint("a token begins with cdr_; make one: coderingctl token create --role submitter"));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port_however_it_was_written() {
        let read = |text| address(text).map_err(|error| error.code);
        assert_eq!(read("broker.lan"), Ok("broker.lan:7443".into()));
        assert_eq!(read("https://broker.lan:443"), Ok("broker.lan:443".into()));
        assert_eq!(read("10.0.0.7:9000"), Ok("10.0.0.7:9000".into()));
        assert_eq!(read("[::1]:7443"), Ok("[::1]:7443".into()));
        for bad in ["http://broker.lan:7443", "a/b", "", "https://u:p@host:1"] {
            assert_eq!(read(bad), Err(Code::InvalidInput), "{bad}");
        }
    }

    #[test]
    fn a_file_that_holds_no_token_is_refused_without_showing_what_it_holds() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "hunter2").expect("written");
        let error = secret(file.path()).expect_err("no token");
        assert!(!format!("{error}").contains("hunter2"));
        std::fs::write(file.path(), "cdr_abc_def\n").expect("written");
        assert_eq!(secret(file.path()), Ok("cdr_abc_def".into()));
    }
}
