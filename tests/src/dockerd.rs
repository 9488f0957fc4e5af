//! A dockerd of the test's own, with a containerd of its own: it may be stopped, killed, frozen, filled and started again.

use std::{
    fs::{self, OpenOptions},
    os::{
        fd::OwnedFd,
        unix::{fs::symlink, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{process::naming, run, wait_for};

/// It starts slowly while other tests run.
const START: Duration = Duration::from_secs(90);
const STOP: Duration = Duration::from_secs(30);
const CALL: Duration = Duration::from_secs(120);
/// An option: its socket is given to it and outlives it, as systemd's `docker.socket` does. Who calls meanwhile waits.
pub const ACTIVATED: &str = "--host=fd://";
/// The image that jobs stand on; here nothing but busybox.
pub const BASE: &str = "codering/base";

/// See the module. Dropped, it ends all that it started, its containers included, and unmounts all that it mounted.
pub struct Dockerd {
    directory: TempDir,
    containerd: Option<Child>,
    dockerd: Option<Child>,
    listener: Option<UnixListener>,
    options: Vec<String>,
}

impl Dockerd {
    /// Not started yet. `options` go to dockerd, e.g. `--live-restore`; its data has a file system of `size` (`200m`) of
    /// its own, if that is given.
    pub fn prepare(options: &[&str], size: Option<&str>) -> Self {
        let directory = tempfile::Builder::new().prefix("codering-dockerd-").tempdir().unwrap();
        let docker = Self {
            directory,
            containerd: None,
            dockerd: None,
            listener: None,
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        let at = docker.directory.path();
        for name in ["data", "exec", "containerd"] {
            fs::create_dir(at.join(name)).unwrap();
        }
        // Nothing of the machine's own dockerd.
        fs::write(at.join("daemon.json"), "{}").unwrap();
        fs::write(
            at.join("containerd.toml"),
            format!(
                "version = 2\nroot = '{0}/containerd/root'\nstate = '{0}/containerd/state'\n\
                 disabled_plugins = ['io.containerd.grpc.v1.cri']\n[grpc]\naddress = '{0}/containerd.sock'\n",
                at.display()
            ),
        )
        .unwrap();
        if let Some(size) = size {
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at.join("data"));
            let mounted = run(&mut mount, CALL);
            assert_eq!(mounted.code, Some(0), "{}", mounted.stderr);
        }
        docker
    }

    /// Started, with [`BASE`] in it.
    pub fn start_new(options: &[&str], size: Option<&str>) -> Self {
        let mut docker = Self::prepare(options, size);
        docker.start_new_base();
        docker
    }

    /// Starts one that was prepared, and puts [`BASE`] in it.
    pub fn start_new_base(&mut self) {
        self.start();
        self.import_base();
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// What a worker's configuration says of it. Its builds and tasks have no network.
    pub fn of_worker(&self) -> String {
        format!("docker.socket = '{}'\nbuild.network = false\n", self.socket().display())
    }

    /// Starts it, and waits until it answers.
    pub fn start(&mut self) {
        let at = self.directory.path().to_owned();
        if self.containerd.is_none() {
            let mut containerd = Command::new("containerd");
            containerd.arg("--config").arg(at.join("containerd.toml"));
            self.containerd = Some(spawn(containerd, Stdio::null(), &at.join("containerd.log")));
            wait_for("containerd listens", START, || at.join("containerd.sock").exists().then_some(()));
        }
        assert!(self.dockerd.is_none(), "dockerd runs already");
        // Left by one that was killed.
        let _ = fs::remove_file(at.join("pid"));
        // In a network namespace of its own: without a bridge, dockerd removes the machine's docker0.
        let mut dockerd = Command::new("sh");
        dockerd
            .args(["-c", "exec 3<&0 < /dev/null; export LISTEN_PID=$$; exec \"$@\"", "activation"])
            .args(["unshare", "--net", "--", "dockerd"])
            .arg(format!("--config-file={}", at.join("daemon.json").display()))
            .arg(format!("--data-root={}", at.join("data").display()))
            .arg(format!("--exec-root={}", at.join("exec").display()))
            .arg(format!("--pidfile={}", at.join("pid").display()))
            .arg(format!("--containerd={}", at.join("containerd.sock").display()))
            .args(["--bridge=none", "--iptables=false", "--ip-masq=false", "--storage-driver=overlay2"])
            .args(&self.options);
        let socket = self.socket();
        let stdin = if self.options.iter().any(|option| option == ACTIVATED) {
            let listener = self.listener.get_or_insert_with(|| UnixListener::bind(socket).unwrap());
            dockerd.env("LISTEN_FDS", "1");
            Stdio::from(OwnedFd::from(listener.try_clone().unwrap()))
        } else {
            dockerd.arg(format!("--host=unix://{}", socket.display()));
            Stdio::null()
        };
        self.dockerd = Some(spawn(dockerd, stdin, &at.join("dockerd.log")));
        let end = Instant::now() + START;
        while run(self.command().arg("version"), CALL).code != Some(0) {
            let ended = self.dockerd.as_mut().and_then(|dockerd| dockerd.try_wait().unwrap());
            if ended.is_some() || Instant::now() > end {
                let log = fs::read_to_string(at.join("dockerd.log")).unwrap_or_default();
                panic!("dockerd does not answer ({ended:?})\n{log}");
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn import_base(&self) {
        let busybox = Path::new("/bin/busybox");
        assert!(busybox.exists(), "{} is missing: scripts/setup test", busybox.display());
        let root = self.directory.path().join("base");
        for name in ["bin", "etc", "tmp", "app"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for name in ["sh", "cat", "echo", "sleep", "true", "kill", "seq", "dd", "yes", "touch"] {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        let script = format!(
            "tar -C '{}' -c . | docker --host unix://{} import - {BASE}",
            root.display(),
            self.socket().display()
        );
        let imported = run(Command::new("sh").args(["-c", &script]), CALL);
        assert_eq!(imported.code, Some(0), "{}", imported.stderr);
    }

    /// The command-line client, talking to it.
    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.socket().display()));
        command
    }

    /// What the client prints; it must succeed.
    pub fn says(&self, args: &[&str]) -> String {
        let ran = run(self.command().args(args), CALL);
        assert_eq!(ran.code, Some(0), "docker {args:?}: {}", ran.stderr);
        ran.text().trim().to_owned()
    }

    /// Its containers, running or not.
    pub fn containers(&self) -> Vec<String> {
        self.says(&["ps", "--all", "--quiet"]).lines().map(str::to_owned).collect()
    }

    /// Ends dockerd without warning. containerd and the containers run on.
    pub fn kill(&mut self) {
        let mut dockerd = self.dockerd.take().expect("dockerd runs");
        dockerd.kill().unwrap();
        dockerd.wait().unwrap();
    }

    /// Asks dockerd to stop, which stops its containers, unless it has `--live-restore`.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        wait_for("dockerd ended", STOP, || {
            self.dockerd.as_mut().expect("dockerd runs").try_wait().unwrap().map(|_| ())
        });
        self.dockerd = None;
    }

    /// It takes calls and answers none, until [`Self::thaw`].
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// See [`Self::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.dockerd.as_ref().expect("dockerd runs")), signal).unwrap();
    }
}

fn spawn(mut command: Command, stdin: Stdio, log: &Path) -> Child {
    let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
    command.stdin(stdin).stdout(log.try_clone().unwrap()).stderr(log).env_remove("NOTIFY_SOCKET");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/usr/bin:/sbin:/bin"));
    command.spawn().unwrap_or_else(|error| panic!("{command:?} did not start: {error}"))
}

/// Ends a process with some patience.
fn ended(mut child: Child) {
    let pid = Pid::from_child(&child);
    for signal in [Signal::CONT, Signal::TERM] {
        let _ = kill_process(pid, signal);
    }
    let end = Instant::now() + STOP;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
        thread::sleep(Duration::from_millis(50));
    }
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if self.dockerd.is_some() && !thread::panicking() {
            let left = run(self.command().args(["ps", "--quiet"]), CALL).text();
            for id in left.lines() {
                run(self.command().args(["rm", "--force", "--volumes", id]), CALL);
            }
        }
        self.dockerd.take().map(ended).unwrap_or_default();
        // Shims whose containers still run name their containerd's socket; those inside belong to them.
        for shim in naming(self.directory.path()) {
            let Some(id) = shim.split(' ').next().and_then(|id| id.parse::<u32>().ok()) else { continue };
            if !shim.contains("containerd-shim") {
                continue;
            }
            for inside in crate::process::children(id) {
                let _ = kill_process(Pid::from_raw(inside.cast_signed()).unwrap(), Signal::KILL);
            }
            thread::sleep(Duration::from_millis(200));
            let _ = kill_process(Pid::from_raw(id.cast_signed()).unwrap(), Signal::KILL);
        }
        self.containerd.take().map(ended).unwrap_or_default();
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let under = self.directory.path().to_str().unwrap();
        let mut points: Vec<_> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|at| at.starts_with(under))
            .collect();
        points.reverse();
        for point in points {
            run(Command::new("umount").args(["--lazy", point]), CALL);
        }
    }
}
