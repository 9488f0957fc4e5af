//! One daemon as a child process: started, started again when it dies, stopped when asked.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use codering_core::{Code, Error};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::context::Context;

/// What is wanted of a daemon. Later ones go over earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not yet.
    Hold,
    /// Running, and started again when it dies.
    Run,
    /// Asked to end; killed where it does not.
    Drain,
    /// Killed.
    Kill,
}

impl Phase {
    /// Goes to `to` unless it is beyond it; whether it went.
    pub fn raise(&mut self, to: Phase) -> bool {
        let higher = *self < to;
        if higher {
            *self = to;
        }
        higher
    }
}

/// The pause before a daemon that died is started again; doubled each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A daemon that lived this long died of something new.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// The daemons' own deadline for a drain is shorter.
const DRAIN: Duration = Duration::from_secs(25);
/// A longer line of a log is broken.
const MAX_LINE: usize = 16 << 10;

/// What to start.
pub struct Daemon {
    name: String,
    program: PathBuf,
    config: PathBuf,
    env: Vec<(&'static str, OsString)>,
    deaths: AtomicU32,
}

impl Daemon {
    /// The program beside this one, else of the PATH.
    pub fn new(name: &str, program: &str, config: &Path) -> Result<Self, Error> {
        Ok(Self {
            name: name.to_owned(),
            program: found(program)?,
            config: config.to_path_buf(),
            env: Vec::new(),
            deaths: AtomicU32::new(0),
        })
    }

    /// With a variable in its environment.
    pub fn with_env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// With a variable in its environment, unless it is set for this process.
    pub fn with_default(self, name: &'static str, value: &str) -> Self {
        if std::env::var_os(name).is_some() { self } else { self.with_env(name, value) }
    }

    /// As its lines are marked.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often it ended unasked.
    pub fn deaths(&self) -> u32 {
        self.deaths.load(Ordering::Relaxed)
    }

    fn start(&self) -> std::io::Result<Child> {
        let mut command = match on_path("setpriv") {
            // Ends the daemon also where this process is killed and can end nothing any more.
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "TERM", "--"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .arg("--config")
            .arg(&self.config)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            // What is told to this process is not meant for its daemons.
            .env_remove("CODERING_ENDPOINTS")
            .env_remove("CODERING_CONTEXT")
            .env_remove("CODERING_RABBITMQ")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A terminal's Ctrl-C is for this process, which stops them in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

/// The program beside this one, else of the PATH.
pub fn found(program: &str) -> Result<PathBuf, Error> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(program)));
    beside.filter(|path| path.is_file()).or_else(|| on_path(program)).ok_or_else(|| {
        Error::new(Code::ConfigInvalid, format!("{program} is neither beside coderingctl nor on the PATH"))
            .hint("build all of them: make build; or: apt install codering-broker codering-worker")
    })
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Keeps it running while that is wanted, and ends it when it is not. Returns when it has ended for good.
pub async fn keep(ctx: &Context, daemon: &Daemon, mut wanted: watch::Receiver<Phase>) {
    let mut pause = FIRST_PAUSE;
    // The sender outlives this; were it gone, nothing would be wanted any more.
    while wanted.wait_for(|phase| *phase != Phase::Hold).await.is_ok_and(|phase| *phase == Phase::Run) {
        let began = Instant::now();
        let how = match daemon.start() {
            Ok(child) => one_life(ctx, daemon, child, &mut wanted).await,
            Err(error) => format!("could not be started: {error}"),
        };
        if *wanted.borrow() != Phase::Run {
            return;
        }
        daemon.deaths.fetch_add(1, Ordering::Relaxed);
        if began.elapsed() > LONG_LIFE {
            pause = FIRST_PAUSE;
        }
        ctx.out.note(format!("{} {how}; starting it again in {:.1} s", daemon.name, pause.as_secs_f64()));
        tokio::select! {
            () = sleep(pause) => {}
            _ = wanted.wait_for(|phase| *phase != Phase::Run) => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// From its start to its end, which it tells in words.
async fn one_life(
    ctx: &Context,
    daemon: &Daemon,
    mut child: Child,
    wanted: &mut watch::Receiver<Phase>,
) -> String {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut showing =
        pin!(async { tokio::join!(show(ctx, &daemon.name, out), show(ctx, &daemon.name, err)) });
    let mut shown = false;
    let ended = {
        let mut ending = pin!(end(ctx, daemon, &mut child, wanted));
        loop {
            tokio::select! {
                ended = &mut ending => break ended,
                _ = &mut showing, if !shown => shown = true,
            }
        }
    };
    if !shown {
        // A process that it left behind may hold the other end.
        let _ = timeout(Duration::from_secs(1), showing).await;
    }
    ended
}

async fn end(
    ctx: &Context,
    daemon: &Daemon,
    child: &mut Child,
    wanted: &mut watch::Receiver<Phase>,
) -> String {
    tokio::select! {
        ended = child.wait() => return how(ended),
        _ = wanted.wait_for(|phase| *phase > Phase::Run) => {}
    }
    if *wanted.borrow() == Phase::Drain {
        ask(child);
        tokio::select! {
            ended = timeout(DRAIN, child.wait()) => match ended {
                Ok(ended) => return how(ended),
                Err(_) => ctx.out.note(format!("{} did not end in {} s and is killed", daemon.name, DRAIN.as_secs())),
            },
            _ = wanted.wait_for(|phase| *phase == Phase::Kill) => {}
        }
    }
    // It may have ended meanwhile.
    let _ = child.start_kill();
    how(child.wait().await)
}

fn ask(child: &Child) {
    let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(id) = id {
        // It may have ended meanwhile, and is then no process that another could be taken for: it was not waited for.
        let _ = kill_process(id, Signal::TERM);
    }
}

fn how(ended: std::io::Result<ExitStatus>) -> String {
    match ended {
        Ok(status) => format!("ended with {status}"),
        Err(error) => format!("was lost: {error}"),
    }
}

/// Its lines on stderr, each with its name before it.
async fn show(ctx: &Context, name: &str, from: Option<impl AsyncRead + Unpin>) {
    let Some(mut from) = from else { return };
    let mut line = Vec::new();
    let mut chunk = vec![0; 8 << 10];
    while let Ok(n) = from.read(&mut chunk).await {
        if n == 0 {
            break;
        }
        for byte in &chunk[..n] {
            if *byte == b'\n' || line.len() >= MAX_LINE {
                print(ctx, name, &line);
                line.clear();
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
    }
    if !line.is_empty() {
        print(ctx, name, &line);
    }
}

fn print(ctx: &Context, name: &str, line: &[u8]) {
    ctx.out.note(format!("{name:<10} | {}", String::from_utf8_lossy(line)));
}
