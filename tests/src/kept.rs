//! A fleet whose daemons are started again when they die, as systemd would do it, and what must be true of it after each
//! death.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::{Deref, DerefMut},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::ExitStatus,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Fleet, Ran, Setup, run, wait_for};

/// The leases of [`Setup::new`], and the ten seconds that anything may wait beyond one.
pub const PATIENCE: Duration = Duration::from_secs(3 + 10);
/// What the work itself may take beside, on a machine that does other things too.
pub const WORK: Duration = Duration::from_secs(30);

/// See the module.
pub struct Kept {
    fleet: Arc<Mutex<Option<Fleet>>>,
    keeper: Option<JoinHandle<()>>,
    over: Arc<AtomicBool>,
    deaths: Arc<Mutex<Vec<Death>>>,
    faults: TempDir,
    /// Each message seen on `demo.done`, by job, task and attempt.
    done: BTreeMap<(String, String, u64), Value>,
}

/// The end of a daemon that the keeper saw.
#[derive(Debug, Clone)]
pub struct Death {
    /// `None`: the broker.
    pub worker: Option<usize>,
    /// When it was started again.
    pub at: Instant,
    status: ExitStatus,
}

impl Kept {
    /// Starts the fleet; the first `kept` workers and the broker are started again when they die.
    pub fn start(mut setup: Setup, kept: usize) -> Self {
        let faults = tempfile::Builder::new().prefix("codering-faults-").tempdir().unwrap();
        let variable = ("CODERING_TEST_FAULTS".into(), faults.path().as_os_str().to_owned());
        setup.broker_environment.push(variable.clone());
        setup.worker_environment.push(variable);
        let mut fleet = Fleet::prepare(setup);
        fleet.start_broker();
        fleet.ctl(&["project", "create", "demo"]);
        (0..kept).for_each(|number| fleet.start_worker(number));
        fleet.wait_for_workers();
        let fleet = Arc::new(Mutex::new(Some(fleet)));
        let (over, deaths) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Death>>>::default());
        let keeper = thread::spawn({
            let (fleet, over, deaths) = (fleet.clone(), over.clone(), deaths.clone());
            move || {
                while !over.load(Ordering::SeqCst) {
                    if let Some(fleet) = lock(&fleet).as_mut() {
                        keep(fleet, kept, &mut lock(&deaths));
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Self { fleet, keeper: Some(keeper), over, deaths, faults, done: BTreeMap::new() }
    }

    /// The fleet itself; while it is held, nobody starts a dead daemon again.
    pub fn fleet(&self) -> Running<'_> {
        Running(lock(&self.fleet))
    }

    /// The deaths so far.
    pub fn deaths(&self) -> Vec<Death> {
        lock(&self.deaths).clone()
    }

    /// Whoever passes this point for the `passage`th time from now on dies there.
    pub fn arm(&self, point: &str, passage: u32) {
        fs::write(self.faults.path().join(point), passage.to_string()).unwrap();
    }

    /// Whether somebody died there.
    pub fn hit(&self, point: &str) -> bool {
        self.faults.path().join(format!("{point}.hit")).exists()
    }

    /// Waits for a death there.
    pub fn wait_for_hit(&self, point: &str) {
        wait_for(&format!("a process dies at {point}"), WORK, || self.hit(point).then_some(()));
    }

    /// Runs coderingctl once, whatever comes of it.
    pub fn once(&self, args: &[&str]) -> Ran {
        let mut command = self.fleet().command(args);
        run(&mut command, WORK * 2)
    }

    /// Repeats a verb until it succeeds, or fails with one of these codes, as someone does whose broker was away.
    pub fn insist(&self, args: &[&str], unless: &[&str]) -> Ran {
        let end = Instant::now() + WORK;
        loop {
            let ran = self.once(args);
            if ran.code == Some(0) || unless.iter().any(|code| ran.stderr.contains(&format!("[{code}]"))) {
                return ran;
            }
            assert!(
                Instant::now() < end,
                "coderingctl {args:?} fails for ever: {}\n{}",
                ran.stderr,
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The same, as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let ran = self.insist(&[&["--output", "json"], args].concat(), &[]);
        serde_json::from_slice(&ran.stdout)
            .unwrap_or_else(|error| panic!("{args:?}: {error} in {}", ran.text()))
    }

    /// The daemons' last words.
    pub fn log(&self) -> String {
        self.fleet().log()
    }

    /// Waits until a job is finished: at most a lease and ten seconds after the last death, and what the work takes.
    pub fn finished(&self, job: &str) -> Value {
        let bound = PATIENCE + WORK;
        let began = Instant::now();
        loop {
            let shown = self.json(&["job", "show", job]);
            if !shown["finished_at"].is_null() {
                return shown;
            }
            assert!(began.elapsed() < bound, "{job} waits longer than {bound:?}: {shown}\n{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A job's recorded results, line by line.
    pub fn results(&self, job: &str) -> Vec<Value> {
        let ran = self.insist(&["results", job, "--output", "jsonl"], &[]);
        ran.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A job has exactly one recorded result for each of its tasks, and each is on the done queue, always the same.
    pub fn assert_whole(&mut self, job: &str, tasks: usize) -> Vec<Value> {
        let results = self.results(job);
        let ids: BTreeSet<_> = results.iter().map(|result| result["task_id"].to_string()).collect();
        assert_eq!(
            (results.len(), ids.len()),
            (tasks, tasks),
            "recorded results and distinct tasks of {job}\n{}",
            self.log()
        );
        let end = Instant::now() + PATIENCE + WORK;
        for result in &results {
            let key = key_of(result);
            while !self.done.contains_key(&key) {
                assert!(Instant::now() < end, "{key:?} is not on the done queue\n{}", self.log());
                self.drain();
            }
            assert_eq!(self.done[&key], *result, "the recorded result and the message on the done queue");
        }
        results
    }

    /// Takes all that is on the done queue. A message that comes again must be the same.
    pub fn drain(&mut self) {
        let came = self.fleet().take_all("demo.done");
        if came.is_empty() {
            thread::sleep(Duration::from_millis(50));
        }
        for message in came {
            let key = key_of(&message);
            if let Some(before) = self.done.insert(key.clone(), message.clone()) {
                assert_eq!(before, message, "{key:?} came twice, and not the same");
            }
        }
    }

    /// Attempts of a task that were seen on the done queue.
    pub fn seen(&self, task: &str) -> Vec<&Value> {
        self.done.iter().filter(|((_, id, _), _)| id == task).map(|(_, message)| message).collect()
    }

    /// Ends all of it; nothing may be left.
    pub fn stop(mut self) {
        self.end_keeping();
        for death in self.deaths() {
            assert_eq!(death.status.signal(), Some(9), "a daemon ended by itself: {death:?}\n{}", self.log());
        }
        let fleet = lock(&self.fleet).take().expect("stopped once");
        fleet.stop();
    }

    fn end_keeping(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }

    /// The directory of armed points.
    pub fn faults(&self) -> &Path {
        self.faults.path()
    }
}

/// The fleet, while it is held.
pub struct Running<'a>(MutexGuard<'a, Option<Fleet>>);

impl Deref for Running<'_> {
    type Target = Fleet;
    fn deref(&self) -> &Fleet {
        self.0.as_ref().expect("not stopped yet")
    }
}

impl DerefMut for Running<'_> {
    fn deref_mut(&mut self) -> &mut Fleet {
        self.0.as_mut().expect("not stopped yet")
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.end_keeping();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(fleet: &mut Fleet, workers: usize, deaths: &mut Vec<Death>) {
    if let Some(status) = fleet.broker_ended() {
        fleet.spawn_broker();
        deaths.push(Death { worker: None, at: Instant::now(), status });
    }
    for number in 0..workers {
        if let Some(status) = fleet.worker_ended(number) {
            fleet.start_worker(number);
            deaths.push(Death { worker: Some(number), at: Instant::now(), status });
        }
    }
}

fn key_of(message: &Value) -> (String, String, u64) {
    let text =
        |name: &str| message[name].as_str().unwrap_or_else(|| panic!("no {name} in {message}")).to_owned();
    (text("job_id"), text("task_id"), message["attempt"].as_u64().unwrap())
}
