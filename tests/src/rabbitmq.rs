//! A RabbitMQ node of the test's own, which may be stopped, killed and wiped.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Ran, free_port, process::succeeded, wait_for};

/// Debian's own start script changes user and directory; what it calls does not.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// An Erlang node is slow to start, and more so while other tests run.
const START: Duration = Duration::from_secs(180);
const BOUND: Duration = Duration::from_secs(120);

/// See the module. It and its epmd end when it is dropped.
pub struct Node {
    directory: TempDir,
    name: String,
    amqp: SocketAddr,
    between_nodes: SocketAddr,
    names: SocketAddr,
    management: Option<SocketAddr>,
    epmd: Child,
    server: Mutex<Option<Child>>,
    turn: Mutex<()>,
}

/// Held while a test has the node for itself.
pub struct Turn<'n>(&'n Node, #[allow(dead_code)] MutexGuard<'n, ()>);

impl std::ops::Deref for Turn<'_> {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.0
    }
}

impl Node {
    /// The node of this test binary: started for whoever asks first, stopped when the last one is done with it.
    pub fn shared() -> Arc<Self> {
        static NODE: Mutex<Weak<Node>> = Mutex::new(Weak::new());
        let mut node = NODE.lock().unwrap_or_else(PoisonError::into_inner);
        node.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Self::start_new(false));
            *node = Arc::downgrade(&new);
            new
        })
    }

    /// Waits until no other test has it, and starts it where the last one left it stopped.
    pub fn turn(&self) -> Turn<'_> {
        let turn = Turn(self, self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        if self.server().is_none() {
            self.start();
        }
        turn
    }

    /// A node with the management plugin, for whoever asks alone.
    pub fn with_management() -> Self {
        let node = Self::start_new(true);
        wait_for("the management API listens", START, || {
            TcpStream::connect_timeout(&node.management(), Duration::from_secs(1)).ok()
        });
        node
    }

    fn start_new(with_management: bool) -> Self {
        let programs = Path::new(PROGRAMS);
        assert!(programs.exists(), "RabbitMQ is not installed: scripts/setup test");
        let directory = tempfile::Builder::new().prefix("codering-rabbitmq-").tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let local = || free_port(Ipv4Addr::LOCALHOST.into());
        let (amqp, between_nodes, names) = (local(), local(), local());
        let management = with_management.then(local);
        let mut config = format!(
            "listeners.tcp.default = {amqp}\nraft.wal_max_size_bytes = 64000000\n\
             disk_free_limit.absolute = 50MB\n"
        );
        if let Some(at) = management {
            config += &format!("management.tcp.ip = {}\nmanagement.tcp.port = {}\n", at.ip(), at.port());
        }
        fs::write(at("rabbitmq.conf"), config).unwrap();
        let plugins = if with_management { "[rabbitmq_management].\n" } else { "[].\n" };
        fs::write(at("plugins"), plugins).unwrap();
        fs::write(at("env.conf"), "").unwrap();
        fs::write(at(".erlang.cookie"), format!("COOKIE{}", std::process::id())).unwrap();
        fs::set_permissions(at(".erlang.cookie"), fs::Permissions::from_mode(0o400)).unwrap();
        // One of its own: the first node of a machine would leave an epmd running.
        let epmd = Command::new("epmd")
            .args(["-port", &names.port().to_string(), "-address", "127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("epmd, which comes with RabbitMQ's Erlang");
        let name = format!("codering-{}@localhost", amqp.port());
        let (server, turn) = (Mutex::new(None), Mutex::new(()));
        let node = Self { directory, name, amqp, between_nodes, names, management, epmd, server, turn };
        node.start();
        node
    }

    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(Path::new(PROGRAMS).join(program));
        command
            .env_remove("NOTIFY_SOCKET")
            .env("HOME", self.directory.path())
            .env("ERL_EPMD_PORT", self.names.port().to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &self.name)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.amqp.port().to_string())
            .env("RABBITMQ_DIST_PORT", self.between_nodes.port().to_string())
            .env("RABBITMQ_MNESIA_BASE", self.at("data"))
            .env("RABBITMQ_LOG_BASE", self.at("log"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.at("plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", self.at("env.conf"))
            .env("RABBITMQ_CONFIG_FILE", self.at("rabbitmq.conf"))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}");
        command
    }

    /// Starts it, and waits until it listens.
    pub fn start(&self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.at("out")).unwrap();
        let mut command = self.command("rabbitmq-server");
        // Told so, the script becomes the node, which then ends by its own id.
        command.env("detached", "yes").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut server = self.server();
        assert!(server.is_none(), "it runs already");
        *server = Some(command.spawn().expect("RabbitMQ starts"));
        wait_for("the test's RabbitMQ listens", START, || {
            if let Some(status) = server.as_mut().and_then(|child| child.try_wait().unwrap()) {
                *server = None;
                panic!(
                    "RabbitMQ ended at once, {status}\n{}",
                    fs::read_to_string(self.at("out")).unwrap_or_default()
                );
            }
            TcpStream::connect_timeout(&self.amqp, Duration::from_secs(1)).ok()
        });
    }

    /// Asks it to stop, and waits for its end.
    pub fn stop(&self) {
        let mut child = self.server().take().expect("it runs");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        wait_for("RabbitMQ ended after SIGTERM", BOUND, || child.try_wait().unwrap());
    }

    /// Kills it without warning.
    pub fn kill(&self) {
        end(&mut self.server().take().expect("it runs"));
    }

    /// Removes all that it knew. It has to be stopped.
    pub fn remove_data(&self) {
        assert!(self.server().is_none(), "it runs");
        fs::remove_dir_all(self.at("data")).unwrap();
    }

    /// Runs rabbitmqctl on it, which must succeed.
    pub fn ctl(&self, args: &[&str]) -> Ran {
        succeeded(self.command("rabbitmqctl").args(args), BOUND)
    }

    /// Where its management API is served, on a node that has it.
    pub fn management(&self) -> SocketAddr {
        self.management.expect("a node with the management plugin")
    }

    /// Where clients and the broker connect.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@{}/%2F", self.amqp)
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut server) = self.server().take() {
            end(&mut server);
        }
        end(&mut self.epmd);
    }
}
