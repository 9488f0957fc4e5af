//! The directory of a `dev`: who holds it, what is where, the daemons' configuration.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use codering_core::{Code, Error};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use toml::{Table, Value, toml};

use super::Args;
use crate::client::Endpoints;

/// An open directory, held by this process alone.
pub struct Place {
    dir: PathBuf,
    /// Tells this directory's workers from those of another on the same machine, as Docker sees them.
    mark: String,
    ports: Ports,
    _held: File,
}

struct Ports {
    grpc: u16,
    rest: u16,
}

impl Place {
    /// Makes the directory, takes it, chooses ports and writes the daemons' configuration.
    pub fn open(args: &Args) -> Result<Self, Error> {
        let wrong = |error: std::io::Error| {
            Error::new(Code::ConfigInvalid, format!("cannot be used: {error}"))
                .at(args.data_dir.display().to_string())
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&args.data_dir).map_err(wrong)?;
        let dir = args.data_dir.canonicalize().map_err(wrong)?;
        let held = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(dir.join("dev.lock"))
            .map_err(wrong)?;
        flock(&held, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::new(Code::ConfigInvalid, "another coderingctl dev runs on this directory")
                .at(args.data_dir.display().to_string())
                .hint("stop it with Ctrl-C, or name another --data-dir")
        })?;
        let hash = Sha256::digest(dir.as_os_str().as_encoded_bytes());
        let mark = hash.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
        let before = fs::read(dir.join("ports.json")).ok();
        let before: (u16, u16) = before.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or((0, 0));
        let grpc = free_port(args.grpc_port, before.0)?;
        let rest = free_port(args.rest_port, before.1)?;
        let ports = Ports { grpc: port(&grpc)?, rest: port(&rest)? };
        let place = Self { dir, mark, ports, _held: held };
        place.remove_endpoints();
        // A push of a directory around this one must never take its secrets along.
        place.write(".gitignore", b"*\n")?;
        place.write("ports.json", format!("[{}, {}]", place.ports.grpc, place.ports.rest).as_bytes())?;
        place.make("git")?;
        place.write_configs(args)?;
        Ok(place)
    }

    /// All of it is here.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The broker's REST port.
    pub fn rest_port(&self) -> u16 {
        self.ports.rest
    }

    /// A worker's name, which no other `dev` of this machine uses: its containers are found by it.
    pub fn worker_name(&self, number: u32) -> String {
        format!("w{number}-{}", self.mark)
    }

    pub fn broker_config(&self) -> PathBuf {
        self.dir.join("brokerd.toml")
    }

    pub fn worker_config(&self, number: u32) -> PathBuf {
        self.dir.join(format!("workerd-{number}.toml"))
    }

    pub fn join_token(&self, number: u32) -> PathBuf {
        self.dir.join(format!("workerd-{number}.join"))
    }

    pub fn endpoints_file(&self) -> PathBuf {
        self.dir.join("endpoints.json")
    }

    fn broker_dir(&self) -> PathBuf {
        self.dir.join("brokerd")
    }

    fn worker_dir(&self, number: u32) -> PathBuf {
        self.dir.join(format!("workerd-{number}"))
    }

    fn ca(&self) -> PathBuf {
        self.broker_dir().join("ca/ca.pem")
    }

    /// Whether this worker has enrolled.
    pub fn has_certificate(&self, number: u32) -> bool {
        self.worker_dir(number).join("tls/worker.pem").exists()
    }

    /// Leaves a join token where the worker finds it.
    pub fn write_join_token(&self, number: u32, secret: &str) -> Result<(), Error> {
        self.write(&format!("workerd-{number}.join"), secret.as_bytes())
    }

    /// Takes a join token away.
    pub fn remove_join_token(&self, number: u32) {
        // A worker that enrolled before had none.
        let _ = fs::remove_file(self.join_token(number));
    }

    /// What `endpoints.json` says once everything runs.
    pub fn endpoints(&self, project: &str) -> Result<Endpoints, Error> {
        let token = self.broker_dir().join("admin.token");
        let read = fs::read_to_string(&token).map_err(|error| {
            Error::new(Code::Internal, format!("the broker left no token: {error}"))
                .at(token.display().to_string())
        })?;
        let rest = format!("http://127.0.0.1:{}", self.ports.rest);
        Ok(Endpoints {
            metrics: format!("{rest}/metrics"),
            rest,
            grpc: format!("https://127.0.0.1:{}", self.ports.grpc),
            token: read.trim().to_owned(),
            ca: self.ca(),
            git_root: Some(format!("file://{}", self.dir.join("git").display())),
            project: Some(project.to_owned()),
        })
    }

    /// Writes it whole: whoever waits for the file finds all of it.
    pub fn write_endpoints(&self, endpoints: &Endpoints) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(endpoints)
            .map_err(|error| Error::new(Code::Internal, error.to_string()))?;
        self.write("endpoints.json", &text)
    }

    /// What is stopped has no endpoints.
    pub fn remove_endpoints(&self) {
        // It may not have been written yet.
        let _ = fs::remove_file(self.endpoints_file());
    }

    fn write_configs(&self, args: &Args) -> Result<(), Error> {
        let mut broker = toml! {
            public_names = ["localhost"]
            [shutdown]
            deadline = "10s"
        };
        set(&mut broker, &["data_dir"], path(&self.broker_dir()));
        set(&mut broker, &["grpc", "listen"], format!("127.0.0.1:{}", self.ports.grpc));
        set(&mut broker, &["rest", "listen"], format!("127.0.0.1:{}", self.ports.rest));
        if let Some(url) = &args.rabbitmq {
            self.write("rabbitmq.url", url.as_bytes())?;
            set(&mut broker, &["queue", "backend"], "rabbitmq");
            set(&mut broker, &["queue", "url_file"], path(&self.dir.join("rabbitmq.url")));
        } else {
            set(&mut broker, &["queue", "backend"], "embedded");
        }
        self.write("brokerd.toml", broker.to_string().as_bytes())?;
        for number in 1..=args.workers {
            let mut worker = toml! {
                on_stop = "kill"
                [git]
                schemes = ["file", "https", "http", "ssh"]
                [listen]
                metrics = "127.0.0.1:0"
                [shutdown]
                deadline = "10s"
            };
            set(&mut worker, &["name"], self.worker_name(number));
            set(&mut worker, &["data_dir"], path(&self.worker_dir(number)));
            set(&mut worker, &["broker"], format!("https://127.0.0.1:{}", self.ports.grpc));
            set(&mut worker, &["enroll", "ca_file"], path(&self.ca()));
            if let Some(slots) = args.slots {
                set(&mut worker, &["slots"], i64::from(slots));
            }
            if args.simulate {
                set(&mut worker, &["simulate", "enabled"], true);
            }
            self.write(&format!("workerd-{number}.toml"), worker.to_string().as_bytes())?;
        }
        Ok(())
    }

    fn make(&self, name: &str) -> Result<(), Error> {
        let path = self.dir.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| unwritten(&path, &error))
    }

    /// Writes a file whole or not at all, readable by its owner alone.
    fn write(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let path = self.dir.join(name);
        let written = tempfile::NamedTempFile::new_in(&self.dir).and_then(|mut file| {
            file.write_all(content)?;
            file.persist(&path).map_err(|error| error.error).map(drop)
        });
        written.map_err(|error| unwritten(&path, &error))
    }
}

fn unwritten(path: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::ConfigInvalid, format!("cannot be written: {error}")).at(path.display().to_string())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn set(table: &mut Table, keys: &[&str], value: impl Into<Value>) {
    let Some((last, parents)) = keys.split_last() else { return };
    let mut here = table;
    for key in parents {
        let below = here.entry((*key).to_owned()).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(below) = below else { return };
        here = below;
    }
    here.insert((*last).to_owned(), value.into());
}

/// A listener on the port asked for, else on the one of the last time, else on any that is free. It
/// is held until all are chosen, so that they differ.
fn free_port(asked: Option<u16>, before: u16) -> Result<TcpListener, Error> {
    let bind = |port| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    match asked {
        Some(asked) => bind(asked).map_err(|error| {
            Error::new(Code::ConfigInvalid, format!("the port {asked} cannot be used: {error}"))
        }),
        None => bind(before)
            .or_else(|_| bind(0))
            .map_err(|error| Error::new(Code::ConfigInvalid, format!("no port is free: {error}"))),
    }
}

fn port(listener: &TcpListener) -> Result<u16, Error> {
    listener.local_addr().map(|at| at.port()).map_err(|error| Error::new(Code::Internal, error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn args(dir: &Path) -> Args {
        Args {
            data_dir: dir.join("dev"),
            workers: 2,
            slots: Some(3),
            rabbitmq: Some("amqp://me:secret@host".into()),
            verbose: false,
            simulate: true,
            rest_port: None,
            grpc_port: None,
        }
    }

    #[test]
    fn a_directory_is_held_by_one_process_and_keeps_its_ports() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Place::open(&args(dir.path())).expect("opened");
        let error = Place::open(&args(dir.path())).map(drop).expect_err("held");
        assert!(error.message.contains("another coderingctl dev"), "{error}");
        let ports = (first.ports.grpc, first.ports.rest);
        assert_ne!(ports.0, ports.1);
        drop(first);
        let again = Place::open(&args(dir.path())).expect("free again");
        assert_eq!((again.ports.grpc, again.ports.rest), ports);
    }

    #[test]
    fn secrets_are_for_the_owner_alone_and_never_part_of_a_push() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::open(&args(dir.path())).expect("opened");
        place.write_join_token(1, "cdr_secret").expect("written");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(place.dir()), mode(&place.join_token(1))), (0o700, 0o600));
        assert_eq!(mode(&place.dir().join("rabbitmq.url")), 0o600);
        assert_eq!(fs::read_to_string(place.dir().join(".gitignore")).expect("there"), "*\n");
        let broker = fs::read_to_string(place.broker_config()).expect("there");
        assert!(broker.contains("url_file") && !broker.contains("secret"), "{broker}");
        let worker: Table = fs::read_to_string(place.worker_config(2)).expect("there").parse().expect("TOML");
        assert_eq!(
            (worker["slots"].as_integer(), worker["simulate"]["enabled"].as_bool()),
            (Some(3), Some(true))
        );
        assert_eq!(worker["on_stop"].as_str(), Some("kill"));
    }

    #[test]
    fn the_workers_of_two_directories_have_names_that_differ() {
        let (one, other) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
        let name = |dir: &Path| Place::open(&args(dir)).expect("opened").worker_name(1);
        assert_ne!(name(one.path()), name(other.path()));
        assert!(codering_core::WorkerName::new(name(one.path())).is_ok());
    }
}
