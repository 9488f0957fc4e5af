//! `codering-workerd enroll`: an administrator makes this machine a worker.

use std::{
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
};

use clap::Args;
use codering_core::{Code, Error, WorkerName};
use codering_kit::{
    config::{self, Secret, secret_file},
    tls::write_public,
};

use crate::{
    config::{Config, File},
    enroll::{self, Asking},
};

const DEFAULT_PORT: u16 = 7443;
/// Beside the administrator's own drop-ins, which may go over it.
const DROP_IN: &str = "10-enrolled.toml";
/// No token is longer.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Fetch a certificate for this machine with a join token, which names the CA that the broker has to show.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sudo codering-workerd enroll --broker broker.lan --token cdr_…\n  \
    coderingctl worker token | ssh w7 sudo codering-workerd enroll --broker broker.lan --token-file -")]
pub(crate) struct Enroll {
    /// HOST, HOST:PORT or https://HOST:PORT [default port: 7443]
    #[arg(long, value_name = "HOST")]
    broker: String,
    /// The join token (coderingctl worker token). It works once; every user of this machine may see a command line
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file", required_unless_present = "token_file")]
    token: Option<String>,
    /// A file with the join token; `-` for the standard input
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The worker's name [default: that of workerd.toml, or the host's]
    #[arg(long, value_name = "NAME")]
    name: Option<WorkerName>,
    /// Enrol anew: a certificate that is there is replaced
    #[arg(long)]
    replace: bool,
}

/// Does it, and says what is next.
pub(crate) fn run(asked: Enroll, file: Option<&Path>) -> Result<(), Error> {
    let mut config = config::load("workerd", file, File::check)?;
    config.broker = address(&asked.broker)?;
    if let Some(name) = &asked.name {
        config.name = name.clone();
    }
    let dir = config.path("tls");
    let there = dir.join("worker.pem").exists();
    if there && !asked.replace {
        return Err(Error::new(Code::ConfigInvalid, "this machine has a certificate already")
            .at(dir.display().to_string())
            .hint("to replace it, add --replace; the running worker takes it at its next start"));
    }
    let token = token(&asked)?;
    // First, so that a directory which cannot be written is found while the token is unused. It counts only when the worker
    // has joined: until then the one that is here goes on to its own broker, over a restart too.
    let prepared = prepare_drop_in(&config, file)?;
    crate::start::private_directory(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(Code::Internal, format!("no runtime: {e}")))?;
    runtime.block_on(enroll::join(&config, &dir, &token, Asking::Once))?;
    let drop_in = prepared.put()?;
    give_to_owner(&config.data_dir, &dir)?;
    eprintln!("enrolled  {} at {}, written to {}", config.name, config.broker, drop_in.display());
    eprintln!("next      systemctl restart codering-workerd");
    Ok(())
}

fn address(host: &str) -> Result<String, Error> {
    let wrong = || {
        Error::new(Code::InvalidInput, format!("`{}` is no broker", codering_core::ids::shown(host)))
            .at("--broker")
            .hint("for example broker.lan, or https://broker.lan:7443")
    };
    let bare = host.strip_prefix("https://").unwrap_or(host).trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
    if bare.is_empty() || !bare.chars().all(plain) {
        return Err(wrong());
    }
    let has_port = match bare.rsplit_once(']') {
        Some((_, after)) => after.starts_with(':'),
        // More than one colon is an address of IPv6 without its brackets.
        None if bare.matches(':').count() > 1 => return Ok(format!("https://[{bare}]:{DEFAULT_PORT}")),
        None => bare.contains(':'),
    };
    Ok(if has_port { format!("https://{bare}") } else { format!("https://{bare}:{DEFAULT_PORT}") })
}

fn token(asked: &Enroll) -> Result<Secret, Error> {
    match (&asked.token, &asked.token_file) {
        (Some(token), _) => Ok(Secret::new(token.trim())),
        (None, Some(file)) if file.as_os_str() == "-" => {
            let mut text = String::new();
            let read = std::io::stdin().lock().take(MAX_TOKEN_BYTES).read_to_string(&mut text);
            read.map_err(|e| {
                Error::new(Code::InvalidInput, format!("the standard input: {e}")).at("--token-file")
            })?;
            Ok(Secret::new(text.trim()))
        }
        (None, Some(file)) => secret_file("--token-file", file),
        (None, None) => Err(Error::new(Code::InvalidInput, "a join token is needed").at("--token")),
    }
}

/// A drop-in that is written, under a name that counts for nothing.
struct Prepared {
    next: PathBuf,
    path: PathBuf,
}

impl Prepared {
    /// Gives it its name.
    fn put(self) -> Result<PathBuf, Error> {
        // fault: the certificate is there and the drop-in is not; another enrolment mends it.
        let put = fs::rename(&self.next, &self.path)
            .and_then(|()| fs::File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all());
        put.map_err(|e| unwritten(&self.path, &e))?;
        Ok(self.path.clone())
    }
}

impl Drop for Prepared {
    /// After an enrolment that failed; one that went well has moved it.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.next);
    }
}

fn unwritten(path: &Path, why: &std::io::Error) -> Error {
    Error::new(Code::ConfigInvalid, format!("cannot be written: {why}"))
        .at(path.display().to_string())
        .hint("run it as root")
}

/// What the next start goes by: the broker, and the name that the certificate has.
fn prepare_drop_in(config: &Config, file: Option<&Path>) -> Result<Prepared, Error> {
    let main = file.unwrap_or(Path::new("/etc/codering/workerd.toml"));
    let path = main.with_extension("d").join(DROP_IN);
    let text = format!(
        "# Written by `codering-workerd enroll`; a later file of this directory goes over it.\n\
         broker = \"{}\"\nname = \"{}\"\n",
        config.broker, config.name
    );
    // Not `.toml`, which would count.
    let prepared = Prepared { next: path.with_extension("next"), path };
    let written = fs::create_dir_all(main.with_extension("d"))
        // fault: another try writes it again.
        .and_then(|()| write_public(&prepared.next, text.as_bytes()));
    written.map_err(|e| unwritten(&prepared.path, &e))?;
    Ok(prepared)
}

/// root enrols, and workerd's own user has to read what came of it: whoever has the data directory.
fn give_to_owner(data_dir: &Path, dir: &Path) -> Result<(), Error> {
    let fail = |e: std::io::Error| {
        Error::new(Code::ConfigInvalid, format!("cannot be given to workerd's user: {e}"))
            .at(dir.display().to_string())
    };
    let owner = fs::metadata(data_dir).map_err(fail)?;
    let entries = fs::read_dir(dir).map_err(fail)?.flatten().map(|entry| entry.path());
    for path in entries.chain([dir.to_owned()]) {
        let of = fs::symlink_metadata(&path).map_err(fail)?;
        if (of.uid(), of.gid()) != (owner.uid(), owner.gid()) && !of.is_symlink() {
            chown(&path, Some(owner.uid()), Some(owner.gid())).map_err(fail)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_alone_is_a_broker_at_the_usual_port() {
        for (typed, expected) in [
            ("broker.lan", "https://broker.lan:7443"),
            ("broker.lan:7000", "https://broker.lan:7000"),
            ("https://broker.lan/", "https://broker.lan:7443"),
            ("192.168.56.10", "https://192.168.56.10:7443"),
            ("[::1]", "https://[::1]:7443"),
            ("[::1]:7000", "https://[::1]:7000"),
            ("fe80::1", "https://[fe80::1]:7443"),
        ] {
            assert_eq!(address(typed).expect(typed), expected);
        }
        for wrong in ["", "http://broker.lan", "https://", "a b", "x\"\nslots = 9"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_enrolment_that_fails_leaves_the_next_start_as_it_was() {
        codering_kit::tls::install_provider();
        let dir = tempfile::tempdir().expect("a directory");
        let (file, drop_ins) = (dir.path().join("workerd.toml"), dir.path().join("workerd.d"));
        fs::write(&file, format!("data_dir = '{}'\n", dir.path().join("data").display())).expect("written");
        fs::create_dir(&drop_ins).expect("made");
        fs::write(drop_ins.join(DROP_IN), "broker = \"https://good:7443\"\n").expect("written");
        let asked = Enroll {
            // Nothing listens there.
            broker: "127.0.0.1:1".into(),
            token: Some(format!("cdr_x_y.{}", "0".repeat(64))),
            token_file: None,
            name: None,
            replace: true,
        };
        let error = run(asked, Some(&file)).expect_err("no broker");
        assert_eq!(error.code, Code::BrokerUnreachable, "{error}");
        let written = fs::read_to_string(drop_ins.join(DROP_IN)).expect("there");
        assert!(written.contains("https://good:7443"), "{written}");
        assert_eq!(fs::read_dir(&drop_ins).expect("there").count(), 1, "something is left");
    }
}
