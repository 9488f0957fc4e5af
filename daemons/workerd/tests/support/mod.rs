//! What the tests share: a git repository, an image that needs no registry, Docker, and directories of their own.
#![allow(dead_code, clippy::unwrap_used)]

pub mod broker;
pub mod githost;
pub mod proxy;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use bollard::{API_DEFAULT_VERSION, Docker};

/// The worker's own executable.
pub const WORKERD: &str = env!("CARGO_BIN_EXE_codering-workerd");
/// An image of nothing but busybox.
pub const BUSYBOX: &str = "codering-test/busybox:1";

/// Docker, or a failure that says how to start it.
pub async fn docker() -> Docker {
    let socket = "/var/run/docker.sock";
    let docker = Docker::connect_with_unix(socket, 60, API_DEFAULT_VERSION);
    let docker = docker
        .unwrap_or_else(|e| panic!("{socket}: {e}. Start Docker: systemctl start docker, or scripts/setup"));
    docker.ping().await.unwrap_or_else(|e| {
        panic!("Docker does not answer: {e}. Start it: systemctl start docker, or scripts/setup")
    });
    docker
}

/// Docker with the test image in it.
pub async fn docker_with_busybox() -> Docker {
    let docker = docker().await;
    if docker.inspect_image(BUSYBOX).await.is_err() {
        import_busybox();
    }
    docker
}

fn import_busybox() {
    let busybox = "/bin/busybox";
    assert!(
        Path::new(busybox).exists(),
        "{busybox} is missing: apt-get install busybox-static, or scripts/setup"
    );
    let dir = tempfile::tempdir().unwrap();
    for sub in ["bin", "etc", "tmp", "app"] {
        std::fs::create_dir(dir.path().join(sub)).unwrap();
    }
    std::fs::copy(busybox, dir.path().join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "echo", "sleep", "id", "pwd", "ls", "touch", "true", "head", "yes", "wc", "seq", "tee",
        "dd", "kill", "grep", "printf", "env",
    ] {
        std::os::unix::fs::symlink("busybox", dir.path().join("bin").join(name)).unwrap();
    }
    let script = format!("tar -C '{}' -c . | docker import - {BUSYBOX}", dir.path().display());
    run(Command::new("sh").args(["-c", &script]));
}

/// Runs a command that has to succeed.
pub fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{shown}: {e}"));
    assert!(out.status.success(), "{shown}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// A repository of the test's own.
pub struct Repository {
    pub dir: tempfile::TempDir,
}

impl Repository {
    /// With these files in its first commit on `main`.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let repository = Self { dir: tempfile::tempdir().unwrap() };
        repository.git(&["init", "-q", "-b", "main"]);
        repository.commit(files);
        repository
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.path().display())
    }

    pub fn git(&self, args: &[&str]) -> String {
        run(Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example", "-c", "protocol.file.allow=always"])
            .args(args)
            .current_dir(self.path())
            .env("GIT_CONFIG_GLOBAL", "/dev/null"))
    }

    /// Writes files and commits them; answers with the commit.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        for (name, text) in files {
            let path = self.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "x"]);
        self.git(&["rev-parse", "HEAD"])
    }
}

/// Waits for a condition, for half a minute at most.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = condition().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never came: {what}");
}

/// A directory of this test run's own below the machine's temporary one.
pub fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}
