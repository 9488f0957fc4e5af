//! A `coderingctl dev` of the test's own.

use std::{
    fs,
    ops::Deref,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Ctl, Vhost, binary,
    process::{assert_nothing_names, children, command_line},
    services::{containers_of, require_base_image},
    wait_for,
};

/// Which queue stands behind the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// SQLite in the broker's directory.
    Embedded,
    /// The machine's RabbitMQ, in a virtual host of the test's own.
    RabbitMq,
}

/// What `endpoints.json` says.
#[derive(Debug, Deserialize)]
pub struct Endpoints {
    /// The REST API.
    pub rest: String,
    /// The gRPC services.
    pub grpc: String,
    /// The administrator's token.
    pub token: String,
    /// The CA's certificate, a path.
    pub ca: String,
}

/// A running `coderingctl dev`. Stopped when it is dropped; [`Dev::stop`] also checks that nothing is left.
pub struct Dev {
    child: Child,
    endpoints: Endpoints,
    vhost: Option<Vhost>,
    ctl: Ctl,
    /// The names of its workers, by which their containers are found.
    workers: Vec<String>,
}

impl Deref for Dev {
    type Target = Ctl;

    fn deref(&self) -> &Ctl {
        &self.ctl
    }
}

/// Docker starts slowly while other tests build and run too.
const START: Duration = Duration::from_secs(60);
/// What a drain may take: the daemons' own deadline and the removal of containers.
const STOP: Duration = Duration::from_secs(60);

impl Dev {
    /// Starts one and waits until it has written its endpoints.
    pub fn start(backend: Backend, workers: u32) -> Self {
        require_base_image();
        let vhost = (backend == Backend::RabbitMq).then(Vhost::create);
        let ctl = Ctl::new("dev/endpoints.json");
        let directory = ctl.directory();
        let log = fs::File::create(directory.join("dev.log")).unwrap();
        let mut command = Command::new(binary("coderingctl"));
        command
            .args(["dev", "--verbose", "--workers", &workers.to_string(), "--data-dir"])
            .arg(directory.join("dev"))
            .env("HOME", directory)
            .env_remove("CODERING_ENDPOINTS")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(vhost) = &vhost {
            command.args(["--rabbitmq", &vhost.url()]);
        }
        let mut child = command.spawn().unwrap();
        let endpoints = wait_for("coderingctl dev has written endpoints.json", START, || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("coderingctl dev ended at once, {status}\n{}", ctl.log());
            }
            serde_json::from_slice(&fs::read(ctl.endpoints_file()).ok()?).ok()
        });
        let mut dev = Self { child, endpoints, vhost, ctl, workers: Vec::new() };
        let listed = dev.json(&["worker", "list"]);
        let name = |worker: &Value| worker["name"].as_str().unwrap().to_owned();
        dev.workers = listed.as_array().unwrap().iter().map(name).collect();
        assert_eq!(dev.workers.len(), workers as usize, "{listed}");
        dev
    }

    /// Where it listens.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The address of the RabbitMQ behind it.
    pub fn rabbitmq(&self) -> String {
        self.vhost.as_ref().expect("started on RabbitMQ").url()
    }

    /// The running daemons of this name.
    pub fn daemons(&self, name: &str) -> Vec<u32> {
        let of =
            |id: &u32| command_line(*id).split(' ').next().is_some_and(|program| program.ends_with(name));
        children(self.child.id()).into_iter().filter(of).collect()
    }

    /// Ctrl-C, and then nothing may be left: no process, no container, no mount.
    pub fn stop(mut self) {
        self.interrupt();
        let status = self.child.wait().unwrap();
        assert!(
            matches!(status.code(), Some(0 | 130)),
            "coderingctl dev ended with {status}\n{}",
            self.log()
        );
        let containers = self.containers();
        assert!(containers.is_empty(), "containers left: {containers:?}");
        assert_nothing_names(self.directory());
    }

    /// The containers that its workers started and that are there still.
    pub fn containers(&self) -> Vec<String> {
        self.workers.iter().flat_map(|name| containers_of(&format!("codering.worker={name}"))).collect()
    }

    fn interrupt(&mut self) {
        let id = Pid::from_child(&self.child);
        kill_process(id, Signal::INT).unwrap();
        let child = &mut self.child;
        wait_for("coderingctl dev ended after Ctrl-C", STOP, || child.try_wait().unwrap());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        // A test failed: stop all the same, without a second panic, so that the next test has the machine.
        eprintln!("the daemons' log ends with\n{}", self.log());
        let daemons = children(self.child.id());
        let id = Pid::from_child(&self.child);
        let _ = kill_process(id, Signal::INT);
        for _ in 0..STOP.as_millis() / 50 {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for id in daemons.into_iter().filter_map(|id| Pid::from_raw(id.try_into().ok()?)) {
            let _ = kill_process(id, Signal::KILL);
        }
    }
}
