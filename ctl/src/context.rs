//! What every verb is given: where its output goes, and the way to the broker.

use std::{
    io::{BufRead, IsTerminal},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use codering_core::{Code, Error, time::Millis};
use codering_proto::v1::Job;
use tokio::sync::OnceCell;

use crate::{
    cli::Global,
    client::{Broker, Target},
    history::{self, History},
    output::Out,
};

/// The wall clock.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

/// This machine's name; empty where it has none.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// One call of coderingctl.
pub struct Context {
    /// Where data, notes and errors go.
    pub out: Out,
    global: Global,
    broker: OnceCell<Broker>,
    /// Empty inside where it cannot be used; that was said once.
    history: OnceCell<Option<History>>,
    exit_code: AtomicU8,
    quiet: AtomicBool,
    afterword: Mutex<String>,
}

impl Context {
    /// For one command line.
    pub fn new(out: Out, global: Global) -> Self {
        Self {
            out,
            global,
            broker: OnceCell::new(),
            history: OnceCell::new(),
            exit_code: AtomicU8::new(0),
            quiet: AtomicBool::new(false),
            afterword: Mutex::new(String::new()),
        }
    }

    /// The broker that the command line, the environment or the current context names; connected.
    pub async fn broker(&self) -> Result<Broker, Error> {
        let connect = async { Broker::connect(self.target()?).await };
        self.broker.get_or_try_init(|| connect).await.cloned()
    }

    /// Where that broker is.
    pub fn target(&self) -> Result<Target, Error> {
        Target::find(self.global.endpoints.as_deref(), self.global.context.as_deref())
    }

    /// Keeps what a job looks like now in the history. A history that cannot be written is noted once
    /// and is no reason to fail.
    pub async fn saw(&self, job: &Job, submitted: bool) {
        let Ok(target) = self.target() else { return };
        let history = self.history.get_or_init(|| async {
            match history::default_path() {
                Ok(path) => History::open(&path).await.map_err(|error| self.out.note(error)).ok(),
                Err(error) => {
                    self.out.note(error);
                    None
                }
            }
        });
        if let Some(history) = history.await
            && let Err(error) = history.saw(&target.address, job, submitted, self.now()).await
        {
            self.out.note(error);
        }
    }

    /// The wall clock.
    pub fn now(&self) -> Millis {
        now()
    }

    /// Asks before something is destroyed; `yes` is the answer given on the command line.
    pub fn confirm(&self, question: &str, yes: bool) -> Result<(), Error> {
        if yes {
            return Ok(());
        }
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return Err(Error::new(Code::InvalidInput, format!("not done without an answer: {question}"))
                .hint("there is no terminal to ask on; say yes with --yes"));
        }
        self.out.ask(&format!("{question} [y/N] "));
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        if read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            return Ok(());
        }
        self.out.note("nothing was done");
        Err(self.quietly(Code::InvalidInput))
    }

    /// An error whose story was told already: it decides the exit code and prints nothing.
    pub fn quietly(&self, code: Code) -> Error {
        self.quiet.store(true, Ordering::Relaxed);
        Error::new(code, "")
    }

    /// The exit code of a verb that did its work, and whose job or task did not do well.
    pub fn end_with(&self, exit_code: u8) {
        self.exit_code.store(exit_code, Ordering::Relaxed);
    }

    /// See [`Self::end_with`].
    pub fn exit_code(&self) -> u8 {
        self.exit_code.load(Ordering::Relaxed)
    }

    /// What an error leaves behind, said after it; the last one set counts.
    pub fn afterword(&self, text: &str) {
        if let Ok(mut afterword) = self.afterword.lock() {
            text.clone_into(&mut afterword);
        }
    }

    /// Prints an error, unless its story was told already.
    pub fn tell(&self, error: &Error) {
        if self.is_quiet() {
            return;
        }
        self.out.error(error);
        if let Ok(afterword) = self.afterword.lock()
            && !afterword.is_empty()
        {
            self.out.note(&*afterword);
        }
    }

    /// See [`Self::quietly`].
    fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }
}
