//! A brokerd of a test's own. Each test binary uses the part of it that it needs.
#![allow(dead_code)]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// No wait of these tests is longer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration and a data directory of its own, on free ports.
pub struct Place {
    directory: tempfile::TempDir,
    pub grpc: SocketAddr,
    pub rest: SocketAddr,
}

impl Place {
    pub fn new(more: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (grpc, rest) = (free_port(), free_port());
        let place = Self { directory, grpc, rest };
        place.configure(more);
        place
    }

    /// Writes its configuration anew; `more` begins in line 4, and wins.
    pub fn configure(&self, more: &str) {
        let line = |key: &str, value: String| match more.contains(key) {
            true => "#\n".to_owned(),
            false => format!("{key} = '{value}'\n"),
        };
        let text = [
            line("data_dir", self.path("data").display().to_string()),
            line("grpc.listen", self.grpc.to_string()),
            line("rest.listen", self.rest.to_string()),
            format!("{more}\n"),
        ];
        std::fs::write(self.path("brokerd.toml"), text.concat()).expect("written");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codering-brokerd"));
        command.arg("--config").arg(self.path("brokerd.toml")).env_remove("NOTIFY_SOCKET");
        command
    }

    pub fn check(&self) -> Output {
        self.command().arg("--check").output().expect("ran")
    }

    pub fn until_ready(&self) {
        until("readiness", || self.get("/readyz").filter(|answer| answer.starts_with("HTTP/1.1 200")));
    }

    pub fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.rest).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

pub fn free_port() -> SocketAddr {
    codering_tests::free_port(Ipv4Addr::LOCALHOST.into())
}

pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running brokerd; killed when the test ends before it does.
pub struct Running(Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stderr(Stdio::null()).spawn().expect("started"))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn terminate(&self) {
        self.signal("TERM");
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.id().to_string()]).status();
        assert!(sent.expect("kill ran").success());
    }

    pub fn code(&mut self) -> Option<i32> {
        until("its end", || self.0.try_wait().expect("waited")).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, which is then what the test asked for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
