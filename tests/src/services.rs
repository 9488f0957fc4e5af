//! The machine's own Docker and RabbitMQ.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{Ran, process::succeeded, repository, run};

const BOUND: Duration = Duration::from_secs(60);

/// Fails where Docker does not answer, and builds `codering/base` where it is not there yet.
pub fn require_base_image() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let docker = run(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]), BOUND);
        assert_eq!(
            docker.code,
            Some(0),
            "Docker does not answer; start it: scripts/setup test\n{}",
            docker.stderr
        );
        let built =
            run(&mut Command::new(repository().join("packaging/runtimes/base")), Duration::from_secs(600));
        assert_eq!(built.code, Some(0), "the base image could not be built\n{}", built.stderr);
    });
}

/// The ids of the containers, running or not, that have this label.
pub fn containers_of(label: &str) -> Vec<String> {
    let filter = format!("label={label}");
    let listed = run(Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &filter]), BOUND);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    listed.text().lines().map(str::to_owned).collect()
}

/// A virtual host of RabbitMQ for one test, deleted when it is dropped.
pub struct Vhost {
    name: String,
    /// A user of its own, and its password.
    own: Option<String>,
}

impl Vhost {
    /// Makes one in the machine's RabbitMQ.
    pub fn create() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 5672));
        let reached = TcpStream::connect_timeout(&local, Duration::from_secs(5));
        assert!(reached.is_ok(), "RabbitMQ does not listen on {local}; start it: scripts/setup test");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("codering-test-{}-{number}", std::process::id());
        rabbitmqctl(&["add_vhost", &name]);
        rabbitmqctl(&["set_permissions", "--vhost", &name, "guest", ".*", ".*", ".*"]);
        Self { name, own: None }
    }

    /// Makes one with a user of the same name, which has this password.
    pub fn create_with_password(password: &str) -> Self {
        let mut vhost = Self::create();
        rabbitmqctl(&["add_user", &vhost.name, password]);
        vhost.own = Some(password.to_owned());
        rabbitmqctl(&["set_permissions", "--vhost", &vhost.name, &vhost.name, ".*", ".*", ".*"]);
        vhost
    }

    /// Where clients and the broker connect.
    pub fn url(&self) -> String {
        let (user, password) = match &self.own {
            Some(password) => (self.name.as_str(), password.as_str()),
            None => ("guest", "guest"),
        };
        format!("amqp://{user}:{password}@127.0.0.1:5672/{}", self.name)
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // Panicking here while a failed test unwinds would hide why it failed.
        let user = self.own.is_some().then_some(["delete_user", &self.name]);
        for removed in [["delete_vhost", &self.name]].into_iter().chain(user) {
            if !std::thread::panicking() {
                rabbitmqctl(&removed);
            } else {
                run(&mut command(&removed), BOUND);
            }
        }
    }
}

fn command(args: &[&str]) -> Command {
    as_root("rabbitmqctl", args)
}

/// A program as root, by sudo where the test is not.
pub(crate) fn as_root(program: &str, args: &[&str]) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", program]);
        sudo
    };
    command.args(args);
    command
}

fn rabbitmqctl(args: &[&str]) -> Ran {
    succeeded(&mut command(args), BOUND)
}
