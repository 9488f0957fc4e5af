//! brokerd and workerds that the test itself starts, kills and starts again, with settings of its own.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    ops::Deref,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use toml::Table;

use crate::{
    Backend, Ctl, Vhost, binary,
    process::assert_nothing_names,
    run,
    services::{containers_of, require_base_image},
    wait_for,
};

/// A daemon starts slowly while other tests build and run too.
const START: Duration = Duration::from_secs(60);
/// And ends slowly.
const STOP: Duration = Duration::from_secs(60);

/// How a fleet is set up.
pub struct Setup {
    /// Which queue stands behind the broker.
    pub backend: Backend,
    /// The address of a RabbitMQ of the test's own, instead of a virtual host in the machine's.
    pub rabbitmq: Option<String>,
    /// How many workers.
    pub workers: usize,
    /// The slots of each.
    pub slots: u32,
    /// No Docker and no git.
    pub simulate: bool,
    /// The address that the broker listens on for gRPC, and the workers call.
    pub host: IpAddr,
    /// More of brokerd.toml.
    pub broker: String,
    /// More of each workerd.toml; those that are there already stay as they are.
    pub worker: String,
    /// More of brokerd's environment.
    pub broker_environment: Vec<(OsString, OsString)>,
    /// More of each workerd's environment.
    pub worker_environment: Vec<(OsString, OsString)>,
    /// What each workerd is started through, e.g. `ip netns exec NAME`. It has to become the daemon (exec).
    pub worker_prefix: Vec<String>,
}

impl Setup {
    /// Real workers on short leases.
    pub fn new(backend: Backend, workers: usize) -> Self {
        Self {
            backend,
            rabbitmq: None,
            workers,
            slots: 2,
            simulate: false,
            host: Ipv4Addr::LOCALHOST.into(),
            broker: "leases.duration = '3s'\nbroker.reconcile_every = '1s'\n".into(),
            worker: String::new(),
            broker_environment: Vec::new(),
            worker_environment: Vec::new(),
            worker_prefix: Vec::new(),
        }
    }

    /// The same with workers that only pretend.
    pub fn simulated(backend: Backend, workers: usize, slots: u32) -> Self {
        Self { simulate: true, slots, ..Self::new(backend, workers) }
    }

    /// Daemons that log warnings alone: of many tasks, their logs would be longer than their data.
    pub fn quiet(mut self) -> Self {
        let quiet = ("CODERING_LOG".into(), "warn,lapin=off".into());
        self.broker_environment.push(quiet.clone());
        self.worker_environment.push(quiet);
        self
    }
}

/// A running process of codering.
struct Daemon(Child);

impl Daemon {
    fn start(mut command: Command, log: &Path) -> Self {
        let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).env_remove("NOTIFY_SOCKET");
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?} did not start: {error}")))
    }

    fn signal(&self, signal: Signal) {
        // One that ended by itself is what some tests wait for.
        let _ = kill_process(Pid::from_child(&self.0), signal);
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn reload(daemon: &Daemon, log: impl Fn() -> String) {
    let told = || {
        let log = log();
        log.matches("read again: ").count() + log.matches("is refused, the old one").count()
    };
    let before = told();
    daemon.signal(Signal::HUP);
    wait_for("it read its configuration again", START, || (told() > before).then_some(()));
}

/// See the module. Dropped, it kills what runs and removes containers; [`Fleet::stop`] also checks that nothing is left.
pub struct Fleet {
    broker: Option<Daemon>,
    workers: Vec<Option<Daemon>>,
    setup: Setup,
    grpc: SocketAddr,
    rest: SocketAddr,
    /// Tells its workers from those of other tests, as Docker sees them.
    mark: String,
    ctl: Ctl,
    vhost: Option<Vhost>,
}

impl Deref for Fleet {
    type Target = Ctl;

    fn deref(&self) -> &Ctl {
        &self.ctl
    }
}

impl Fleet {
    /// Starts all of it and waits until each worker is connected.
    pub fn start(setup: Setup) -> Self {
        let workers = setup.workers;
        let mut fleet = Self::prepare(setup);
        fleet.start_broker();
        fleet.ctl(&["project", "create", "demo"]);
        for number in 0..workers {
            fleet.start_worker(number);
        }
        fleet.wait_for_workers();
        fleet
    }

    /// Only the directory and the broker's configuration.
    pub fn prepare(setup: Setup) -> Self {
        if !setup.simulate {
            require_base_image();
        }
        let own = setup.backend == Backend::RabbitMq && setup.rabbitmq.is_none();
        let vhost = own.then(Vhost::create);
        let ctl = Ctl::new("endpoints.json");
        let name = ctl.directory().file_name().unwrap().to_str().unwrap().to_ascii_lowercase();
        let mark = name.trim_start_matches("codering-test-").to_owned();
        let fleet = Self {
            broker: None,
            workers: (0..setup.workers).map(|_| None).collect(),
            grpc: free_port(setup.host),
            rest: free_port(Ipv4Addr::LOCALHOST.into()),
            setup,
            mark,
            ctl,
            vhost,
        };
        fs::create_dir(fleet.directory().join("git")).unwrap();
        fleet.write_broker_config();
        fleet
    }

    fn write_broker_config(&self) {
        let mut config: Table = toml::from_str(&format!(
            "data_dir = '{}'\npublic_names = ['localhost', '{}']\ngrpc.listen = '{}'\nrest.listen = '{}'\n\
             shutdown.deadline = '5s'\n",
            self.broker_dir().display(),
            self.setup.host,
            self.grpc,
            self.rest
        ))
        .unwrap();
        match self.rabbitmq() {
            Some(url) => {
                let file = self.directory().join("rabbitmq.url");
                let mut written = OpenOptions::new();
                written.write(true).create(true).truncate(true).mode(0o600);
                written.open(&file).unwrap().write_all(url.as_bytes()).unwrap();
                merge(
                    &mut config,
                    &format!("queue.backend = 'rabbitmq'\nqueue.url_file = '{}'", file.display()),
                );
            }
            None => merge(&mut config, "queue.backend = 'embedded'"),
        }
        merge(&mut config, &self.setup.broker);
        fs::write(self.broker_config(), toml::to_string(&config).unwrap()).unwrap();
    }

    /// The address of the RabbitMQ behind it, if it is that.
    pub fn rabbitmq(&self) -> Option<String> {
        self.setup.rabbitmq.clone().or_else(|| self.vhost.as_ref().map(Vhost::url))
    }

    /// How the workers are set up that are started from now on.
    pub fn setup(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// The broker's configuration file.
    pub fn broker_config(&self) -> PathBuf {
        self.directory().join("brokerd.toml")
    }

    /// The broker's data directory.
    pub fn broker_dir(&self) -> PathBuf {
        self.directory().join("brokerd")
    }

    /// A worker's data directory.
    pub fn worker_dir(&self, number: usize) -> PathBuf {
        self.directory().join(format!("workerd-{number}"))
    }

    /// A worker's name.
    pub fn worker_name(&self, number: usize) -> String {
        format!("w{number}-{}", self.mark)
    }

    /// Where REST is served.
    pub fn rest(&self) -> SocketAddr {
        self.rest
    }

    /// Where gRPC is served.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// brokerd as the test would start it; its output goes to `brokerd.log`.
    pub fn broker_command(&self) -> Command {
        let mut command = Command::new(binary("codering-brokerd"));
        command.arg("--config").arg(self.broker_config()).envs(self.setup.broker_environment.clone());
        command
    }

    /// Starts the broker, and waits until it serves.
    pub fn start_broker(&mut self) {
        self.spawn_broker();
        self.wait_for_broker();
    }

    /// Starts the broker, and waits for nothing.
    pub fn spawn_broker(&mut self) {
        assert!(self.broker.is_none(), "the broker runs already");
        self.broker = Some(Daemon::start(self.broker_command(), &self.directory().join("brokerd.log")));
    }

    /// Waits until the broker is ready.
    pub fn wait_for_broker(&mut self) {
        let rest = self.rest;
        wait_for("the broker is ready", START, || {
            let daemon = self.broker.as_mut().expect("started");
            if let Some(status) = daemon.ended() {
                panic!("the broker ended at once, {status}\n{}", self.ctl.log());
            }
            get(rest, "/readyz").filter(|answer| answer.starts_with("HTTP/1.1 200"))
        });
        self.write_endpoints();
    }

    fn write_endpoints(&self) {
        let token = fs::read_to_string(self.broker_dir().join("admin.token")).unwrap();
        let endpoints = json!({
            "rest": format!("http://{}", self.rest),
            "grpc": format!("https://{}", self.grpc),
            "token": token.trim(),
            "ca": self.broker_dir().join("ca/ca.pem"),
            "metrics": format!("http://{}/metrics", self.rest),
            "git_root": format!("file://{}", self.directory().join("git").display()),
            "project": "demo",
        });
        let mut file = OpenOptions::new();
        let mut file =
            file.write(true).create(true).truncate(true).mode(0o600).open(self.endpoints_file()).unwrap();
        file.write_all(endpoints.to_string().as_bytes()).unwrap();
    }

    /// The administrator's token.
    pub fn token(&self) -> String {
        fs::read_to_string(self.broker_dir().join("admin.token")).unwrap().trim().to_owned()
    }

    /// Starts a worker, which joins first if it never did, and waits for nothing.
    pub fn start_worker(&mut self, number: usize) {
        assert!(self.workers[number].is_none(), "worker {number} runs already");
        let file = self.directory().join(format!("workerd-{number}.toml"));
        if !file.exists() {
            self.write_worker_config(number, &file);
        }
        let mut arguments = self.setup.worker_prefix.iter().map(OsString::from).collect::<Vec<_>>();
        arguments.push(binary("codering-workerd").into());
        let mut command = Command::new(&arguments[0]);
        command
            .args(&arguments[1..])
            .arg("--config")
            .arg(&file)
            .env("HOME", self.directory())
            .envs(self.setup.worker_environment.clone());
        self.workers[number] =
            Some(Daemon::start(command, &self.directory().join(format!("workerd-{number}.log"))));
    }

    fn write_worker_config(&self, number: usize, file: &Path) {
        let join = self.directory().join(format!("workerd-{number}.join"));
        let token = self.ctl(&["worker", "token"]);
        let mut written = OpenOptions::new();
        written.write(true).create(true).truncate(true).mode(0o600);
        written.open(&join).unwrap().write_all(&token).unwrap();
        let mut config: Table = toml::from_str(&format!(
            "name = '{}'\ndata_dir = '{}'\nbroker = 'https://{}'\nslots = {}\non_stop = 'kill'\n\
             enroll.token_file = '{}'\nenroll.ca_file = '{}'\ngit.schemes = ['file', 'https', 'http', 'ssh']\n\
             listen.metrics = '127.0.0.1:0'\nshutdown.deadline = '10s'\nsimulate.enabled = {}\n",
            self.worker_name(number),
            self.worker_dir(number).display(),
            self.grpc,
            self.setup.slots,
            join.display(),
            self.broker_dir().join("ca/ca.pem").display(),
            self.setup.simulate
        ))
        .unwrap();
        merge(&mut config, &self.setup.worker);
        fs::write(file, toml::to_string(&config).unwrap()).unwrap();
    }

    /// Waits until as many workers are connected as run.
    pub fn wait_for_workers(&self) {
        let running = self.workers.iter().flatten().count();
        wait_for("the workers are connected", START, || {
            let listed = self.json(&["worker", "list"]);
            let connected = |worker: &&Value| worker["connected"] == true;
            (listed.as_array().unwrap().iter().filter(connected).count() == running).then_some(())
        });
    }

    /// Has the broker read its configuration again, and waits until it has.
    pub fn reload_broker(&self) {
        reload(self.broker.as_ref().expect("the broker runs"), || self.broker_log());
    }

    /// The same of a worker.
    pub fn reload_worker(&self, number: usize) {
        reload(self.workers[number].as_ref().expect("the worker runs"), || self.worker_log(number));
    }

    /// Kills the broker without warning.
    pub fn kill_broker(&mut self) {
        self.broker.take().expect("the broker runs");
    }

    /// Kills a worker without warning. Its containers run on.
    pub fn kill_worker(&mut self, number: usize) {
        self.workers[number].take().expect("the worker runs");
    }

    /// Kills a worker if it runs.
    pub fn end_worker(&mut self, number: usize) {
        drop(self.workers[number].take());
    }

    /// The broker's process.
    pub fn broker_id(&self) -> u32 {
        self.broker.as_ref().expect("the broker runs").0.id()
    }

    /// A worker's process.
    pub fn worker_id(&self, number: usize) -> u32 {
        self.workers[number].as_ref().expect("the worker runs").0.id()
    }

    /// How the broker ended, if it did; it may be started again then.
    pub fn broker_ended(&mut self) -> Option<ExitStatus> {
        let status = self.broker.as_mut()?.ended()?;
        self.broker = None;
        Some(status)
    }

    /// How a worker ended, if it did; it may be started again then.
    pub fn worker_ended(&mut self, number: usize) -> Option<ExitStatus> {
        let status = self.workers[number].as_mut()?.ended()?;
        self.workers[number] = None;
        Some(status)
    }

    /// Asks the broker to stop, and waits for its end.
    pub fn stop_broker(&mut self) -> ExitStatus {
        self.broker.as_ref().expect("the broker runs").signal(Signal::TERM);
        wait_for("the broker ended after SIGTERM", STOP, || self.broker_ended())
    }

    /// Asks a worker to stop, and waits for its end.
    pub fn stop_worker(&mut self, number: usize) -> ExitStatus {
        self.workers[number].as_ref().expect("the worker runs").signal(Signal::TERM);
        wait_for("the worker ended after SIGTERM", STOP, || self.worker_ended(number))
    }

    /// The containers that its workers made and that are there still.
    pub fn containers(&self) -> Vec<String> {
        (0..self.workers.len()).flat_map(|number| self.containers_of(number)).collect()
    }

    /// Those of one worker.
    pub fn containers_of(&self, number: usize) -> Vec<String> {
        match self.setup.simulate {
            true => Vec::new(),
            false => containers_of(&format!("codering.worker={}", self.worker_name(number))),
        }
    }

    /// All that brokerd wrote.
    pub fn broker_log(&self) -> String {
        fs::read_to_string(self.directory().join("brokerd.log")).unwrap_or_default()
    }

    /// All that a worker wrote.
    pub fn worker_log(&self, number: usize) -> String {
        fs::read_to_string(self.directory().join(format!("workerd-{number}.log"))).unwrap_or_default()
    }

    /// Stops all of it, and then nothing may be left: no process, no container, no mount.
    pub fn stop(mut self) {
        for number in 0..self.workers.len() {
            if self.workers[number].is_some() {
                self.stop_worker(number);
            }
        }
        if self.broker.is_some() {
            self.stop_broker();
        }
        let containers = self.containers();
        assert!(containers.is_empty(), "containers left: {containers:?}\n{}", self.log());
        assert_nothing_names(self.directory());
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemons' logs end with\n{}", self.log());
            self.keep_logs();
        }
        self.workers.iter_mut().for_each(|worker| drop(worker.take()));
        drop(self.broker.take());
        let left = self.containers();
        if !left.is_empty() {
            run(Command::new("docker").args(["rm", "--force", "--volumes"]).args(&left), STOP);
        }
    }
}

impl Fleet {
    /// A failed test's whole logs, where `CODERING_TEST_KEEP` names a directory for them.
    fn keep_logs(&self) {
        let Some(keep) = std::env::var_os("CODERING_TEST_KEEP") else { return };
        let keep = Path::new(&keep).join(&self.mark);
        let _ = fs::create_dir_all(&keep);
        for entry in fs::read_dir(self.directory()).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "log") {
                let _ = fs::copy(entry.path(), keep.join(entry.file_name()));
            }
        }
        eprintln!("the daemons' whole logs are in {}", keep.display());
    }
}

/// The whole answer to a GET over plain HTTP.
pub fn get(at: SocketAddr, path: &str) -> Option<String> {
    let bound = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&at, bound).ok()?;
    stream.set_read_timeout(Some(bound)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A free port below those that the kernel gives to outgoing connections: a restart must find it free again.
///
/// The caller listens later, so until this process ends the number is claimed by a UDP socket, which no other caller,
/// in whatever process, can have as well.
pub fn free_port(host: IpAddr) -> SocketAddr {
    static CLAIMS: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    let mut random = [0; 2];
    let mut source = File::open("/dev/urandom").unwrap();
    for _ in 0..1000 {
        source.read_exact(&mut random).unwrap();
        let at = SocketAddr::from((host, 20_000 + u16::from_le_bytes(random) % 12_000));
        let Ok(claim) = UdpSocket::bind(at) else { continue };
        if TcpListener::bind(at).is_ok() {
            CLAIMS.lock().unwrap().push(claim);
            return at;
        }
    }
    panic!("no port from 20000 to 31999 of {host} is free");
}

/// Puts `more`, in TOML, over what is there.
fn merge(config: &mut Table, more: &str) {
    fn over(below: &mut Table, above: Table) {
        for (key, value) in above {
            match (below.get_mut(&key), value) {
                (Some(toml::Value::Table(below)), toml::Value::Table(above)) => over(below, above),
                (_, value) => drop(below.insert(key, value)),
            }
        }
    }
    over(config, toml::from_str(more).unwrap_or_else(|error| panic!("{error} in {more}")));
}
