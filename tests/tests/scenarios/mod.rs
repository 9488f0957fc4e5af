//! What is done so that each fault point is passed, and what must be true once its victim is back.

use codering_kit::fault::Point;
use codering_tests::{
    Kept, fixture,
    kept::{PATIENCE, WORK},
    wait_for,
};

/// What passes a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A job from its submit to its answer.
    Flow,
    /// A submit that is refused after it began.
    Refused,
    /// A submit whose broker dies, and the start after that.
    Start,
    /// The message of a raw client.
    Raw,
    /// A raw message that is no task, and its way back.
    Dead,
    /// A running job is cancelled.
    Cancel,
    /// A failed job is retried.
    Retry,
    /// A finished job gets another reduce step.
    Again,
    /// A worker dies with what it runs.
    Expire,
    /// A task runs for longer than half a lease.
    Renew,
    /// A running job is paused and resumed.
    Pause,
    /// The todo queue loses its messages.
    Purge,
    /// A queue that is recorded and was not made.
    Remade,
    /// A reduce step that is counted and was not made.
    Uncounted,
    /// A project is made, changed and deleted.
    Project,
    /// A queue of a user's own.
    Queue,
    /// A worker is paused.
    Worker,
    /// Tokens come and go.
    Token,
    /// A worker joins.
    Enrol,
    /// A worker renews its certificate.
    Renewal,
    /// A worker is revoked.
    Revoke,
    /// A finished job is let go.
    Retention,
    /// A task with much output.
    Large,
    /// A container that was created and never started.
    Left,
}

/// The scenario that passes a point. A new point does not compile before it has one.
pub fn scenario(point: Point) -> Scenario {
    use Point::*;
    match point {
        SubmitBegun | SubmitCommitted | TaskPut | TaskMarked | MessagesTaken | LeaseRecorded
        | AssignmentSent | JobStarted | MessageAcked | WorkerSeen | CommitPinned | BuildKept
        | ReportReceived | ResultRecorded | ReportAnswered | DonePut | DoneMarked | ReduceCounted
        | ReduceMade | JobFinished => Scenario::Flow,
        Assigned | MirrorFetched | CommitResolved | CommitAgreed | ImageBuilt | ImageStamped
        | ContainerCreated | ContainerAttached | ContainerStarted | LeasesWritten | CommandEnded
        | ContainerRemoved | SlotTaken | ResultWritten | ResultSpooled | AttemptLetGo | ReportSent
        | ReportSettled | SpoolRemoved => Scenario::Flow,
        TasksAdded | SubmitDropped => Scenario::Refused,
        UncommittedRemoved => Scenario::Start,
        OpenJobBegun | OpenJobMade | RawTaskAdopted | OpenJobClosed | TaskCommitPinned => Scenario::Raw,
        MessageRejected | DeadRequeued => Scenario::Dead,
        CancelRecorded | TaskCancelled | ContainerKilled => Scenario::Cancel,
        JobWoken | TaskRetried => Scenario::Retry,
        ReduceChosen => Scenario::Again,
        LeaseEnded => Scenario::Expire,
        LeaseRenewed => Scenario::Renew,
        JobPaused | JobResumed | TaskHandedBack => Scenario::Pause,
        TaskUnmarked => Scenario::Purge,
        QueueRemade => Scenario::Remade,
        ReduceUncounted => Scenario::Uncounted,
        ProjectRecorded
        | ProjectQueueRecorded
        | ProjectQueueMade
        | ProjectChanged
        | ProjectJobRemoved
        | ProjectQueueRemoved
        | ProjectQueueForgotten
        | ProjectRemoved => Scenario::Project,
        QueueRecorded | QueueMade | QueueRemoved | QueueForgotten | QueuePurged | MessagePut
        | MessageGiven | MessagesSettled => Scenario::Queue,
        WorkerPaused => Scenario::Worker,
        TokenMade | TokenRevoked => Scenario::Token,
        JoinTokenSpent | WorkerEnrolled | CertificateAsked | KeyWritten | CaWritten | CertificateWritten => {
            Scenario::Enrol
        }
        CertificateRenewed | NextCertificateWritten | NextKeyMoved => Scenario::Renewal,
        WorkerRevoked => Scenario::Revoke,
        JobLetGo => Scenario::Retention,
        LargeReported => Scenario::Large,
        LeftRemoved => Scenario::Left,
    }
}

/// A fleet on which one scenario after the other is played.
pub struct Stage {
    kept: Kept,
    real: bool,
    number: u32,
    /// The worker that joins next.
    newcomer: usize,
    /// Jobs and how many tasks each has, to be looked at again at the end.
    jobs: Vec<(String, usize)>,
}

impl Stage {
    pub fn new(kept: Kept, real: bool) -> Self {
        Self { kept, real, number: 0, newcomer: 1, jobs: Vec::new() }
    }

    /// Somebody dies at the point, and all is well.
    pub fn play(&mut self, point: Point) {
        self.number += 1;
        match scenario(point) {
            Scenario::Flow => self.flow(point),
            Scenario::Refused => self.refused(point),
            Scenario::Start => self.start(point),
            Scenario::Raw => self.raw(point),
            Scenario::Dead => self.dead(point),
            Scenario::Cancel => self.cancel(point),
            Scenario::Retry => self.retry(point),
            Scenario::Again => self.again(point),
            Scenario::Expire => self.expire(point),
            Scenario::Renew => self.renew(point),
            Scenario::Pause => self.pause(point),
            Scenario::Purge => self.purge(point),
            Scenario::Remade => self.remade(point),
            Scenario::Uncounted => self.uncounted(point),
            Scenario::Project => self.project(point),
            Scenario::Queue => self.queue(point),
            Scenario::Worker => self.worker(point),
            Scenario::Token => self.token(point),
            Scenario::Enrol => self.enrol(point),
            Scenario::Renewal => self.renewal(point),
            Scenario::Revoke => self.revoke(point),
            Scenario::Retention => self.retention(point),
            Scenario::Large => self.large(point),
            Scenario::Left => self.left(point),
        }
        self.kept.wait_for_hit(point.name());
        // It comes back by itself, and is whole.
        self.kept.insist(&["job", "list"], &[]);
    }

    /// All that was ever acknowledged is there still, and nothing else is left.
    pub fn end(mut self) {
        for (job, tasks) in std::mem::take(&mut self.jobs) {
            self.kept.assert_whole(&job, tasks);
        }
        self.kept.stop();
    }

    fn arm(&self, point: Point) {
        self.kept.arm(point.name(), 1);
    }

    /// A repository of this scenario's own, unlike those of former runs too, so that it is fetched and its image built.
    fn git(&self) -> String {
        if !self.real {
            return "file:///nowhere".into();
        }
        let at = self.kept.fleet().directory().join(format!("git/{}.git", self.number));
        let own = at.display();
        fixture::git_repository(&at, &[("Dockerfile", &format!("FROM codering/base\nENV OF={own}\n"))])
    }

    /// Submits a job; a broker that dies in the middle is asked again with the same key, and there is one job.
    fn submit(&self, options: &[&str], command: &str) -> String {
        let (git, key) = (self.git(), format!("key-{}", self.number));
        let common = ["submit", "--project", "demo", "--git", &git, "--key", &key, "--memory", "64M"];
        let args = [&common[..], options, &["--", command]].concat();
        let job = self.kept.json(&args);
        let id = job["job_id"].as_str().unwrap_or_else(|| panic!("no job_id in {job}")).to_owned();
        assert_eq!(self.kept.json(&args)["job_id"], job["job_id"], "one key, one job");
        id
    }

    fn state(&self, job: &str) -> String {
        self.kept.json(&["job", "show", job])["state"].as_str().unwrap_or_default().to_owned()
    }

    fn tasks(&self, job: &str, which: &str) -> u64 {
        self.kept.json(&["job", "show", job])["tasks"][which].as_u64().unwrap_or(0)
    }

    fn wait_for_tasks(&self, job: &str, which: &str, count: u64) {
        wait_for(&format!("{count} tasks of {job} are {which}"), PATIENCE + WORK, || {
            (self.tasks(job, which) >= count).then_some(())
        });
    }

    fn whole(&mut self, job: &str, tasks: usize, state: &str) -> Vec<serde_json::Value> {
        self.kept.finished(job);
        assert_eq!(self.state(job), state, "{job}\n{}", self.kept.log());
        let results = self.kept.assert_whole(job, tasks);
        self.jobs.push((job.to_owned(), tasks));
        if self.real {
            let none = || self.kept.fleet().containers().is_empty().then_some(());
            wait_for("no container is left", PATIENCE + WORK, none);
        }
        results
    }

    fn flow(&mut self, point: Point) {
        self.arm(point);
        if point == Point::WorkerSeen {
            self.kept.fleet().kill_worker(0);
            self.restart_worker(0);
            self.kept.wait_for_hit(point.name());
        }
        let job = self.submit(&["--array", "1-4", "--reduce", "wc -l; echo answer"], "echo {}");
        self.kept.finished(&job);
        self.kept.wait_for_hit(point.name());
        let results = self.whole(&job, 4, "succeeded");
        assert!(results.iter().all(|result| result["outcome"] == "succeeded"), "{results:?}");
        let answer = self.kept.insist(&["results", &job, "--answer"], &[]).text();
        assert_eq!(answer, if self.real { "4\nanswer\n" } else { "answer\n" });
    }

    fn refused(&mut self, point: Point) {
        self.arm(point);
        let args =
            ["submit", "--project", "demo", "--git", "file:///nowhere", "--array", "1-2001", "--", "true"];
        let ran = self.kept.insist(&args, &["job.too_many_tasks"]);
        assert_ne!(ran.code, Some(0), "2001 tasks are too many");
        self.kept.wait_for_hit(point.name());
    }

    fn start(&mut self, point: Point) {
        self.arm(point);
        self.arm(Point::SubmitBegun);
        let job = self.submit(&["--array", "1-3"], "echo {}");
        self.whole(&job, 3, "succeeded");
    }

    fn put_raw(&self, id: &str) {
        let git = self.git();
        let message = serde_json::json!({
            "project_id": "demo", "task_id": id, "git_url": git, "command": "echo raw", "memory_bytes": 64 << 20,
        });
        self.kept.insist(&["queue", "put", "demo.todo", &message.to_string()], &[]);
    }

    fn raw(&mut self, point: Point) {
        // The open job of an earlier scenario is closed by now, or will be.
        let open = || {
            let jobs = self.kept.json(&["job", "list"]);
            jobs.as_array().unwrap().iter().all(|job| !job["finished_at"].is_null()).then_some(())
        };
        wait_for("earlier raw messages are done with", PATIENCE + WORK, open);
        self.arm(point);
        let id = format!("raw-{}", self.number);
        self.put_raw(&id);
        self.kept.wait_for_hit(point.name());
        let end = std::time::Instant::now() + PATIENCE + WORK;
        while self.kept.seen(&id).is_empty() {
            assert!(std::time::Instant::now() < end, "{id} has no result\n{}", self.kept.log());
            self.kept.insist(&["job", "list"], &[]);
            self.kept.drain();
        }
        assert_eq!(self.kept.seen(&id).len(), 1, "one result");
        assert_eq!(self.kept.seen(&id)[0]["outcome"], "succeeded");
        let job = self.kept.seen(&id)[0]["job_id"].as_str().unwrap().to_owned();
        self.whole(&job, 1, "succeeded");
    }

    fn dead(&mut self, point: Point) {
        let before = self.dead_letters();
        self.arm(point);
        self.kept.insist(&["queue", "put", "demo.todo", "{\"no\": \"task\"}"], &[]);
        if point == Point::DeadRequeued {
            wait_for("the message is among the dead", PATIENCE, || {
                (self.dead_letters() > before).then_some(())
            });
            self.kept.once(&["queue", "dead", "requeue", "demo", "--all"]);
        }
        self.kept.wait_for_hit(point.name());
        // Wherever it was, it is among the dead again.
        wait_for("the message is among the dead", PATIENCE + WORK, || {
            (self.dead_letters() > before).then_some(())
        });
    }

    fn dead_letters(&self) -> usize {
        self.kept.json(&["queue", "dead", "list", "demo"]).as_array().map_or(0, Vec::len)
    }

    fn cancel(&mut self, point: Point) {
        let job = self.submit(&["--array", "1-6"], "sleep 60");
        let running = if self.real { 2 } else { 4 };
        self.wait_for_tasks(&job, "running", running);
        if self.real {
            wait_for("containers run", WORK, || (!self.kept.fleet().containers().is_empty()).then_some(()));
        }
        self.arm(point);
        self.kept.insist(&["job", "cancel", &job], &["job.finished"]);
        self.kept.wait_for_hit(point.name());
        let results = self.whole(&job, 6, "cancelled");
        assert!(results.iter().all(|result| result["outcome"] == "cancelled"), "{results:?}");
    }

    fn retry(&mut self, point: Point) {
        let job = self.submit(&["--array", "1-3", "--attempts", "1"], "exit 1");
        self.whole(&job, 3, "failed");
        self.arm(point);
        self.kept.once(&["job", "retry", &job]);
        self.kept.wait_for_hit(point.name());
        self.kept.insist(&["job", "retry", &job], &[]);
        let results = self.whole(&job, 3, "failed");
        assert!(results.iter().all(|result| result["attempt"].as_u64() >= Some(2)), "{results:?}");
    }

    fn again(&mut self, point: Point) {
        let job = self.submit(&["--array", "1-3", "--reduce", "echo first"], "echo {}");
        self.whole(&job, 3, "succeeded");
        self.arm(point);
        self.kept.once(&["reduce", &job, "--", "echo second"]);
        self.kept.wait_for_hit(point.name());
        self.whole(&job, 3, "succeeded");
        // The answer that the dead broker did not give may be asked for again.
        let answer = self.kept.insist(&["results", &job, "--answer"], &[]).text();
        assert_eq!(answer, "second\n");
    }

    fn expire(&mut self, point: Point) {
        let job = self.submit(&["--array", "1-4"], "sleep 2");
        self.wait_for_tasks(&job, "running", 4);
        self.arm(point);
        self.kept.fleet().kill_worker(0);
        self.restart_worker(0);
        self.kept.wait_for_hit(point.name());
        self.whole(&job, 4, "succeeded");
    }

    fn restart_worker(&self, number: usize) {
        self.kept.fleet().start_worker(number);
    }

    fn renew(&mut self, point: Point) {
        self.arm(point);
        let job = self.submit(&["--array", "1-2"], "sleep 4");
        self.kept.wait_for_hit(point.name());
        self.whole(&job, 2, "succeeded");
    }

    fn pause(&mut self, point: Point) {
        let job = self.submit(&["--array", "1-16"], "sleep 1");
        self.wait_for_tasks(&job, "running", 4);
        self.arm(point);
        self.kept.insist(&["job", "pause", &job], &[]);
        if point != Point::JobResumed {
            self.kept.wait_for_hit(point.name());
        }
        self.kept.insist(&["job", "resume", &job], &[]);
        self.kept.wait_for_hit(point.name());
        self.whole(&job, 16, "succeeded");
    }

    fn names(&self) -> [String; 2] {
        [0, 1].map(|number| self.kept.fleet().worker_name(number))
    }

    fn purge(&mut self, point: Point) {
        for name in self.names() {
            self.kept.insist(&["worker", "pause", &name], &[]);
        }
        let job = self.submit(&["--array", "1-5"], "echo {}");
        let waiting = || (self.kept.fleet().waiting("demo.todo") == 5).then_some(());
        wait_for("all tasks are in the queue", PATIENCE, waiting);
        self.arm(point);
        self.kept.insist(&["queue", "purge", "demo.todo", "--yes"], &[]);
        self.kept.wait_for_hit(point.name());
        for name in self.names() {
            self.kept.insist(&["worker", "resume", &name], &[]);
        }
        self.whole(&job, 5, "succeeded");
    }

    fn remade(&mut self, point: Point) {
        let name = format!("demo.remade-{}", self.number);
        self.arm(point);
        self.arm(Point::QueueRecorded);
        self.kept.once(&["queue", "create", &name]);
        self.kept.wait_for_hit(point.name());
        self.kept.insist(&["queue", "put", &name, "1"], &[]);
        assert_eq!(self.kept.insist(&["queue", "get", &name], &[]).text().trim(), "1");
    }

    fn uncounted(&mut self, point: Point) {
        self.arm(Point::ReduceCounted);
        self.flow(point);
    }

    fn project(&mut self, point: Point) {
        let name = format!("p-{}", self.number);
        self.arm(point);
        self.kept.insist(&["project", "create", &name], &["project.exists"]);
        let queues = || {
            let listed = self.kept.json(&["queue", "list", "--project", &name]);
            (listed.as_array().unwrap().len() == 3).then_some(())
        };
        wait_for("the project has its queues", PATIENCE, queues);
        self.kept.insist(&["project", "quota", "set", &name, "--running-slots", "3"], &[]);
        let quota = self.kept.json(&["project", "show", &name]);
        assert_eq!(quota["quota"]["running_slots"], 3, "{quota}");
        let args =
            ["submit", "--project", &name, "--git", "file:///nowhere", "--key", &name, "--array", "1-2"];
        let job = self.kept.json(&[&args[..], &["--", "true"]].concat());
        let job = job["job_id"].as_str().unwrap();
        self.kept.finished(job);
        let gone = &["project.not_found"];
        self.kept.insist(&["project", "delete", &name, "--yes", "--force"], gone);
        self.kept.wait_for_hit(point.name());
        self.kept.insist(&["project", "delete", &name, "--yes", "--force"], gone);
        let left = || {
            let queues = self.kept.json(&["queue", "list"]);
            let of_it =
                |queue: &&serde_json::Value| queue["name"].as_str().unwrap().starts_with(&format!("{name}."));
            (queues.as_array().unwrap().iter().filter(of_it).count() == 0).then_some(())
        };
        wait_for("nothing of the project is left", PATIENCE, left);
    }

    fn queue(&mut self, point: Point) {
        let name = format!("demo.mail-{}", self.number);
        self.arm(point);
        self.kept.insist(&["queue", "create", &name], &[]);
        self.kept.insist(&["queue", "put", &name, "1"], &[]);
        // A sender that was not told has sent twice, and a message that was taken is gone.
        let got = self.kept.once(&["queue", "get", &name]);
        match point {
            Point::MessageGiven => self.kept.wait_for_hit(point.name()),
            _ => assert_eq!(got.text().trim(), "1", "{}", got.stderr),
        }
        for message in ["2", "3", "4"] {
            self.kept.insist(&["queue", "put", &name, message], &[]);
        }
        // A message that was put twice may be before them.
        let read = self.kept.insist(&["queue", "subscribe", &name, "--count", "2"], &[]).text();
        match (point, &*read) {
            // The first may have died with the connection that it was on; what was not sent is there still.
            (Point::MessagesSettled, "2\n3\n" | "3\n4\n") | (_, "2\n3\n") | (Point::MessagePut, "1\n2\n") => {
            }
            _ => panic!("{read:?}"),
        }
        self.kept.insist(&["queue", "purge", &name, "--yes"], &[]);
        let empty = self.kept.once(&["queue", "get", &name]);
        assert_eq!(empty.code, Some(3), "{}", empty.stderr);
        self.kept.insist(&["queue", "delete", &name, "--yes"], &["queue.not_found"]);
        self.kept.wait_for_hit(point.name());
        self.kept.insist(&["queue", "delete", &name, "--yes"], &["queue.not_found"]);
        let none = || {
            let queues = self.kept.json(&["queue", "list"]);
            queues.as_array().unwrap().iter().all(|queue| queue["name"] != *name).then_some(())
        };
        wait_for("the queue is gone", PATIENCE, none);
    }

    fn worker(&mut self, point: Point) {
        let name = self.names()[0].clone();
        self.arm(point);
        self.kept.insist(&["worker", "pause", &name], &[]);
        self.kept.wait_for_hit(point.name());
        assert_eq!(self.kept.json(&["worker", "show", &name])["paused"], true);
        self.kept.insist(&["worker", "resume", &name], &[]);
    }

    fn token(&mut self, point: Point) {
        let name = format!("token-{}", self.number);
        let args = ["token", "create", "--role", "viewer", "--name", &name];
        let revoke =
            |name: &str| drop(self.kept.insist(&["token", "revoke", name, "--yes"], &["token.not_found"]));
        match point {
            Point::TokenMade => {
                self.arm(point);
                self.kept.once(&args);
            }
            _ => {
                self.kept.insist(&args, &[]);
                self.arm(point);
                revoke(&name);
            }
        }
        self.kept.wait_for_hit(point.name());
        revoke(&name);
        let tokens = self.kept.json(&["token", "list"]);
        let live = |token: &&serde_json::Value| token["name"] == *name && token["revoked_at"].is_null();
        assert_eq!(tokens.as_array().unwrap().iter().filter(live).count(), 0, "{tokens}");
    }

    /// A worker joins, with another token where the first was used up.
    fn enrol(&mut self, point: Point) {
        self.newcomer += 1;
        self.arm(point);
        self.join();
        self.kept.wait_for_hit(point.name());
        self.kept.insist(&["job", "list"], &[]);
        if point != Point::CertificateWritten {
            self.forget_newcomer();
        }
        self.join();
        self.wait_for_newcomer(true);
        let job = self.submit(&["--array", "1-4"], "echo {}");
        self.whole(&job, 4, "succeeded");
        self.kept.fleet().end_worker(self.newcomer);
    }

    fn join(&self) {
        let mut fleet = self.kept.fleet();
        fleet.end_worker(self.newcomer);
        fleet.start_worker(self.newcomer);
    }

    fn forget_newcomer(&self) {
        let mut fleet = self.kept.fleet();
        fleet.end_worker(self.newcomer);
        let _ = std::fs::remove_dir_all(fleet.worker_dir(self.newcomer));
        let _ = std::fs::remove_file(fleet.directory().join(format!("workerd-{}.toml", self.newcomer)));
    }

    fn wait_for_newcomer(&self, connected: bool) {
        let name = self.kept.fleet().worker_name(self.newcomer);
        wait_for("the newcomer is connected or not", PATIENCE + WORK, || {
            let workers = self.kept.json(&["worker", "list"]);
            let found = workers.as_array().unwrap().iter().find(|worker| worker["name"] == *name);
            (found.is_some_and(|worker| worker["connected"] == connected)).then_some(())
        });
    }

    fn renewal(&mut self, point: Point) {
        self.newcomer += 1;
        // Renewed after two thirds of it; what is left is for whoever dies to come back.
        self.certificates_live(Some("15s"));
        self.join();
        self.wait_for_newcomer(true);
        self.arm(point);
        self.kept.wait_for_hit(point.name());
        self.kept.insist(&["job", "list"], &[]);
        self.certificates_live(None);
        if point != Point::CertificateRenewed {
            self.join();
        }
        self.wait_for_newcomer(true);
        let name = self.kept.fleet().worker_name(self.newcomer);
        wait_for("the newcomer has a certificate that lives on", PATIENCE + WORK, || {
            let ends = self.kept.json(&["worker", "show", &name])["certificate_expires_at"].clone();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
            // Times in this form sort like texts.
            let in_an_hour = codering_core::time::rfc3339(now.as_millis() as i64 + 3_600_000);
            (ends.as_str()? > in_an_hour.as_str()).then_some(())
        });
        // It comes back with it.
        self.join();
        self.wait_for_newcomer(true);
        let job = self.submit(&["--array", "1-4"], "echo {}");
        self.whole(&job, 4, "succeeded");
        self.kept.fleet().end_worker(self.newcomer);
    }

    /// From now on, for those that are made.
    fn certificates_live(&self, life: Option<&str>) {
        let fleet = self.kept.fleet();
        let file = fleet.directory().join("brokerd.d/life.toml");
        std::fs::create_dir_all(file.parent().expect("inside")).unwrap();
        let text = life.map_or_else(String::new, |life| format!("workers.certificate_life = '{life}'\n"));
        std::fs::write(file, text).unwrap();
        fleet.reload_broker();
    }

    fn revoke(&mut self, point: Point) {
        self.newcomer += 1;
        self.join();
        self.wait_for_newcomer(true);
        let name = self.kept.fleet().worker_name(self.newcomer);
        self.arm(point);
        self.kept.insist(&["worker", "revoke", &name, "--yes"], &[]);
        self.kept.wait_for_hit(point.name());
        self.wait_for_newcomer(false);
        assert_eq!(self.kept.json(&["worker", "show", &name])["revoked"], true);
        self.kept.fleet().end_worker(self.newcomer);
    }

    fn retention(&mut self, point: Point) {
        // The fleet keeps one job, the newest; it looks for more at its start.
        let job = self.submit(&["--array", "1-3"], "true");
        self.kept.finished(&job);
        self.number += 1;
        let newest = self.submit(&["--array", "1-3"], "true");
        self.kept.finished(&newest);
        self.arm(point);
        self.kept.fleet().kill_broker();
        self.kept.fleet().spawn_broker();
        self.kept.wait_for_hit(point.name());
        let gone = self.kept.insist(&["job", "show", &job], &["job.not_found"]);
        assert_eq!(gone.code, Some(3), "{}", gone.text());
        self.kept.assert_whole(&newest, 3);
    }

    fn large(&mut self, point: Point) {
        self.arm(point);
        let job =
            self.submit(&["--array", "1-2", "--output-limit", "1M"], "head -c 400000 /dev/zero | tr '\\0' x");
        self.kept.wait_for_hit(point.name());
        let results = self.whole(&job, 2, "succeeded");
        assert!(results.iter().all(|result| result["stdout"].as_str().unwrap().len() == 400_000));
    }

    fn left(&mut self, point: Point) {
        self.arm(Point::ContainerCreated);
        self.flow(point);
    }
}
