//! Where a process may die between two steps, by name: the one list of them all.
//!
//! After each durable step of a flow stands a [`reached`]. Without the feature `fault-points` that is nothing at all. With it,
//! which only the end-to-end tests turn on, a process that passes a point kills itself there if the test armed it:
//! `CODERING_TEST_FAULTS` names a directory, and a file in it, called like the point, holds the number of the passage at which
//! to die (empty: the first). The file is renamed to `NAME.hit` first, and the rename decides which of several dies.

#[cfg(all(feature = "fault-points", not(debug_assertions)))]
compile_error!("fault points are for tests: a release has none");

/// The table: a variant, its name, and what a crash there leaves and who mends it.
macro_rules! points {
    ($($variant:ident $name:literal $leaves:literal)*) => {
        /// A place to die at.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Point { $(#[doc = $leaves] $variant,)* }

        impl Point {
            /// All of them, in the order of the flow.
            pub const ALL: &[Point] = &[$(Point::$variant,)*];

            /// Its name; the first word is the daemon.
            pub const fn name(self) -> &'static str {
                match self { $(Point::$variant => $name,)* }
            }

            /// What a crash there leaves, and what mends it.
            pub const fn leaves(self) -> &'static str {
                match self { $(Point::$variant => $leaves,)* }
            }
        }
    };
}

points! {
    SubmitBegun "brokerd.submit.begun" "an uncommitted job, never answered: removed at start"
    TasksAdded "brokerd.submit.tasks-added" "the same, with tasks"
    SubmitCommitted "brokerd.submit.committed" "a job that was not answered: its idempotency key finds it"
    SubmitDropped "brokerd.submit.dropped" "nothing of a submit that was refused"
    UncommittedRemoved "brokerd.start.uncommitted-removed" "nothing of a submit that was never answered"

    TaskPut "brokerd.queue.task-put" "a message whose task is unmarked: published twice, the second is dropped"
    TaskMarked "brokerd.queue.task-marked" "a task that waits in its queue"
    TaskUnmarked "brokerd.queue.task-unmarked" "a task whose message was lost: published again"
    QueueRemade "brokerd.queue.remade" "an empty queue that the backend had lost: refilled from the ledger"

    MessagesTaken "brokerd.take.taken" "unsettled messages: back in their queue"
    OpenJobBegun "brokerd.adopt.job-begun" "an empty uncommitted job: removed at start; the message comes again"
    OpenJobMade "brokerd.adopt.job-made" "an empty open job: taken for the message that comes again"
    RawTaskAdopted "brokerd.adopt.task-recorded" "a task whose message comes again: known by its id"
    OpenJobClosed "brokerd.adopt.job-closed" "a closed job that is not finished: derived again"
    LeaseRecorded "brokerd.lease.recorded" "a lease that its worker never heard of: ended when it comes back without it"
    AssignmentSent "brokerd.lease.sent" "the same or a running attempt, and a message that comes again: dropped"
    JobStarted "brokerd.job.started" "the same; when the job started is known from then on"
    MessageAcked "brokerd.take.acked" "a running attempt: its lease is loaded anew"
    MessageRejected "brokerd.take.rejected" "a dead letter"
    TaskHandedBack "brokerd.take.handed-back" "a ready, unpublished task, and its message: dropped or leased"

    WorkerSeen "brokerd.worker.seen" "a worker that connects again"
    CommitPinned "brokerd.pin.job" "a pinned commit that the worker was not told: it asks again"
    TaskCommitPinned "brokerd.pin.task" "the same for a raw message's task"
    BuildKept "brokerd.build.kept" "a build's log"
    LeaseRenewed "brokerd.lease.renewed" "a renewed lease"
    LeaseEnded "brokerd.lease.ended" "a ready, unpublished task: published at start"

    ReportReceived "brokerd.record.received" "a result in the worker's spool: reported again"
    ResultRecorded "brokerd.record.recorded" "a result that was not answered: reported again and fenced; published from the ledger"
    ReportAnswered "brokerd.record.answered" "a result not yet on the done queue: published from the ledger"
    DonePut "brokerd.done.put" "a result on the done queue that is unmarked: published again, the same"
    DoneMarked "brokerd.done.marked" "a published result"

    ReduceCounted "brokerd.reduce.counted" "a reduce step that is counted and not there: counted anew"
    ReduceMade "brokerd.reduce.made" "a reduce step that is not published: published at start"
    ReduceUncounted "brokerd.reduce.uncounted" "a reduce step that is due: made again"
    ReduceChosen "brokerd.reduce.chosen" "a job with a new reduce step that has not run: made at start"
    JobFinished "brokerd.finish.recorded" "a finished job"
    JobWoken "brokerd.wake.recorded" "a job that counts as running: what follows is derived again"
    TaskRetried "brokerd.retry.task" "a ready task; a retry of the job that is repeated finds the rest"
    CancelRecorded "brokerd.cancel.recorded" "a cancelled job with tasks that are not: cancelled by the reconciler"
    TaskCancelled "brokerd.cancel.task" "the same with fewer tasks, or a task that is asked to stop"
    JobPaused "brokerd.pause.recorded" "a paused job"
    JobResumed "brokerd.resume.recorded" "a job whose tasks wait in the ledger: published at start"
    JobLetGo "brokerd.retention.job" "no job"

    ProjectRecorded "brokerd.project.recorded" "a project without queues: made by the reconciler"
    ProjectQueueRecorded "brokerd.project.queue-recorded" "the same"
    ProjectQueueMade "brokerd.project.queue-made" "the same"
    ProjectChanged "brokerd.project.changed" "a project with a new quota"
    ProjectJobRemoved "brokerd.project.job-removed" "a project with fewer jobs: deleting it again goes on"
    ProjectQueueRemoved "brokerd.project.queue-removed" "a recorded queue that is not there: made again, or deleted by another try"
    ProjectQueueForgotten "brokerd.project.queue-forgotten" "a project without that queue: deleting it again goes on"
    ProjectRemoved "brokerd.project.removed" "no project"
    QueueRecorded "brokerd.user-queue.recorded" "a recorded queue that is not there: made by the reconciler"
    QueueMade "brokerd.user-queue.made" "a queue"
    QueueRemoved "brokerd.user-queue.removed" "a recorded queue that is not there: made again, or deleted by another try"
    QueueForgotten "brokerd.user-queue.forgotten" "no queue"
    QueuePurged "brokerd.user-queue.purged" "an empty queue; what the ledger has for it is published again"
    MessagePut "brokerd.user-queue.put" "a message whose sender was not told"
    MessageGiven "brokerd.user-queue.given" "a message that was taken and not given: it counts as taken"
    MessagesSettled "brokerd.user-queue.settled" "messages that a subscriber was sent: they count as taken"
    DeadRequeued "brokerd.user-queue.dead-requeued" "messages back on their queue"
    WorkerPaused "brokerd.worker.paused" "a paused worker"
    WorkerRevoked "brokerd.worker.revoked" "a revoked worker: its next stream is refused"
    TokenMade "brokerd.token.made" "a token that nobody was told"
    TokenRevoked "brokerd.token.revoked" "a revoked token"
    JoinTokenSpent "brokerd.enrol.token-spent" "a join token that is used up, and no worker: another token is needed"
    WorkerEnrolled "brokerd.enrol.recorded" "a worker that never got its certificate: another token is needed"
    CertificateRenewed "brokerd.renew.recorded" "a worker without its new certificate: the one that it has is good still, and it asks again"

    CertificateAsked "workerd.enrol.answered" "a worker that is enrolled and has no certificate: another token is needed"
    KeyWritten "workerd.enrol.key-written" "the same, with a key"
    CaWritten "workerd.enrol.ca-written" "the same, with the CA"
    CertificateWritten "workerd.enrol.certificate-written" "an enrolled worker"
    NextCertificateWritten "workerd.renew.certificate-written" "the new certificate and its key, to be moved: done at the start"
    NextKeyMoved "workerd.renew.key-moved" "the new key beside the old certificate: the certificate is moved at the start"

    Assigned "workerd.attempt.assigned" "a lease without its attempt: ended when the worker comes back without it"
    MirrorFetched "workerd.checkout.fetched" "the same, with a mirror"
    CommitResolved "workerd.checkout.resolved" "the same"
    CommitAgreed "workerd.checkout.pinned" "the same, with the job's commit pinned"
    ImageBuilt "workerd.image.built" "the same, with an image that nobody noted"
    ImageStamped "workerd.image.stamped" "the same, with an image"
    ContainerCreated "workerd.container.created" "a container that never started: removed at start"
    ContainerAttached "workerd.container.attached" "the same"
    ContainerStarted "workerd.container.started" "a running container: taken up again, or removed where its lease ended or its input is half written"
    LeasesWritten "workerd.lease.written" "the same"
    ContainerKilled "workerd.container.killed" "a container that was ended: removed"
    CommandEnded "workerd.attempt.ended" "an ended container: its result is taken from it"
    ContainerRemoved "workerd.container.removed" "an attempt without its container: ended when the worker comes back without it, or a spooled result"
    LeftRemoved "workerd.readopt.removed" "one container less to look at"
    SlotTaken "workerd.spool.taken" "an empty slot of the spool; the container is taken up again, or the task runs elsewhere"
    ResultWritten "workerd.spool.written" "a spooled result, which a crash of the machine may halve: reported, or the task runs elsewhere"
    ResultSpooled "workerd.spool.synced" "a spooled result: reported"
    AttemptLetGo "workerd.attempt.let-go" "the same"
    ReportSent "workerd.report.sent" "the same, or a recorded one: reported again and fenced"
    LargeReported "workerd.report.large" "the same"
    ReportSettled "workerd.report.settled" "a recorded result in the spool: reported again and fenced"
    SpoolRemoved "workerd.spool.removed" "nothing"
}

/// Whether this process was built with fault points.
pub const BUILT_IN: bool = cfg!(feature = "fault-points");

/// What a daemon that was built with fault points says at its start.
pub const SAYS: &str = "built with fault points, for tests";

/// The variable with the directory of armed points.
pub const VARIABLE: &str = "CODERING_TEST_FAULTS";

/// A process that passes here dies here, if a test said so.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn reached(_: Point) {}

#[cfg(feature = "fault-points")]
pub use armed::reached;

#[cfg(feature = "fault-points")]
mod armed {
    use std::{
        path::PathBuf,
        sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    use super::Point;

    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    static PASSED: [AtomicU32; Point::ALL.len()] = [const { AtomicU32::new(0) }; Point::ALL.len()];

    /// A process that passes here dies here, if a test said so.
    pub fn reached(point: Point) {
        let directory = DIRECTORY.get_or_init(|| std::env::var_os(super::VARIABLE).map(PathBuf::from));
        let Some(directory) = directory else { return };
        let file = directory.join(point.name());
        let Ok(text) = std::fs::read_to_string(&file) else { return };
        let passed = PASSED[point as usize].fetch_add(1, Ordering::SeqCst) + 1;
        let due = text.trim().parse().unwrap_or(1);
        if passed >= due && std::fs::rename(&file, directory.join(format!("{}.hit", point.name()))).is_ok() {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal is on its way; not a step further.
            loop {
                std::thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own_and_says_what_it_leaves() {
        let names: HashSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for point in Point::ALL {
            let daemon = point.name().split('.').next();
            assert!(matches!(daemon, Some("brokerd" | "workerd")), "{}", point.name());
            assert!(!point.leaves().is_empty());
        }
    }

    #[test]
    fn the_table_in_the_docs_is_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/fault-points.md");
        let mut table = String::from(
            "# Fault points\n\nWhere the test suite kills brokerd and workerd with SIGKILL, one at a time, and what each crash \
             leaves.\nWritten from `daemons/kit/src/fault.rs`; `tests/tests/kill_points.rs` dies at every one of them.\n\n\
             | point | what a crash there leaves, and what mends it |\n|---|---|\n",
        );
        for point in Point::ALL {
            table.push_str(&format!("| `{}` | {} |\n", point.name(), point.leaves()));
        }
        if std::env::var_os("CODERING_WRITE_DOCS").is_some() {
            std::fs::write(path, &table).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == table,
            "docs/fault-points.md is not current; write it with: CODERING_WRITE_DOCS=1 cargo test -p codering-kit docs"
        );
    }
}
