//! What a worker does beside its attempts: caches under a bound, orphans removed, an absent Docker noticed.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use codering_core::Outcome;
use support::{
    BUSYBOX, Repository,
    broker::{Broker, assignment, ours},
    docker_with_busybox, run, scratch,
};
use tokio::{net::UnixListener, task::JoinHandle};

fn docker_says(args: &[&str]) -> String {
    run(std::process::Command::new("docker").args(args))
}

/// Something that no image on this machine was built from.
fn unique() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[tokio::test]
async fn images_mirrors_and_what_failed_builds_left_go_when_they_are_over_the_bound() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let broker = Broker::start(&dir, 30_000).await;
    let _worker = broker.worker("w-bound", "[cache]\nmax_bytes = 1\n");
    let unique = unique();
    let broken = Repository::new(&[(
        "Dockerfile",
        &format!("FROM {BUSYBOX}\nENV UNIQUE={unique}\nCOPY Dockerfile /app/\nRUN exit 1\n"),
    )]);
    let failed = broker.assign(assignment(&broken.url(), "true")).await;
    assert_eq!(broker.result(&failed).await.outcome, Outcome::BuildFailed);
    let contexts = dir.join("w-bound/contexts");
    let left = std::fs::read_dir(&contexts).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = left.filter_map(|name| name.strip_prefix("step-").map(str::to_owned)).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let repository = Repository::new(&[(
        "Dockerfile",
        &format!("FROM {BUSYBOX}\nENV OTHER={unique}\nCOPY Dockerfile /app/\n"),
    )]);
    // Another's, which this worker never used, is none of its business.
    let others = format!("codering/ctx:{unique}");
    docker_says(&["tag", BUSYBOX, &others]);
    let done = broker.assign(assignment(&repository.url(), "true")).await;
    let image = broker.result(&done).await.image;
    support::until("the eviction of all", async || {
        let images = docker_says(&["images", "-aq", "--no-trunc"]);
        let named = docker_says(&["images", "-q", &image]);
        let mirrors = std::fs::read_dir(dir.join("w-bound/mirrors")).unwrap().count();
        (named.is_empty() && !images.contains(&left[0]) && mirrors == 0).then_some(())
    })
    .await;
    assert!(!docker_says(&["images", "-q", BUSYBOX]).is_empty(), "the base image went");
    assert!(!docker_says(&["images", "-q", &others]).is_empty(), "another worker's image went");
    docker_says(&["rmi", &others]);
    // What went comes back when it is needed.
    let again = broker.assign(assignment(&repository.url(), "echo again")).await;
    assert_eq!(broker.result(&again).await.stdout, b"again\n");
    let _ = std::process::Command::new("docker").args(["rmi", &image]).output();
}

#[tokio::test]
async fn a_container_of_this_worker_that_no_attempt_knows_is_removed_at_the_start_and_at_the_end() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let broker = Broker::start(&dir, 30_000).await;
    let mut worker = broker.worker("w-orphan", "");
    broker.until("the worker", |said| said.hellos.first().map(|_| ())).await;
    worker.crash();
    let label = format!("codering.worker={}", worker.name);
    let create = |label: &str| docker_says(&["create", "--label", label, BUSYBOX, "/bin/true"]);
    let (mine, others) = (create(&label), create(&format!("{label}-2")));
    worker.start();
    let there = |id: &str| !docker_says(&["ps", "-aq", "--filter", &format!("id={id}")]).is_empty();
    support::until("the orphan's removal", async || (!there(&mine)).then_some(())).await;
    // Docker may make what a killed process asked for after the next one has looked.
    let late = create(&label);
    worker.stop().await;
    assert!(!there(&late), "a container that was never started outlived its worker");
    assert!(there(&others), "another worker's container was removed");
    docker_says(&["rm", &others]);
}

/// A way to Docker that can be cut.
struct Way {
    socket: PathBuf,
    open: Option<JoinHandle<()>>,
}

impl Way {
    fn new(dir: &Path) -> Self {
        let mut way = Self { socket: dir.join("docker.sock"), open: None };
        way.open();
        way
    }

    fn open(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).unwrap();
        self.open = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut to = tokio::net::UnixStream::connect("/var/run/docker.sock").await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                });
            }
        }));
    }

    /// All connections break, and no new one is taken.
    fn cut(&mut self) {
        self.open.take().unwrap().abort();
    }
}

#[tokio::test]
async fn while_docker_is_away_nothing_new_is_wanted_and_what_runs_is_not_lost() {
    docker_with_busybox().await;
    let (_dir, dir) = scratch();
    let broker = Broker::start(&dir, 6_000).await;
    let mut way = Way::new(&dir);
    let _worker = broker.worker("w-away2", &format!("[docker]\nsocket = \"{}\"\n", way.socket.display()));
    let repository = Repository::new(&[("Dockerfile", &format!("FROM {BUSYBOX}\nCOPY Dockerfile /app/\n"))]);
    let script = "for i in $(seq 60); do echo line $i; sleep 0.1; done; exit 6";
    let running = broker.assign(assignment(&repository.url(), script)).await;
    broker.running(&running).await;
    way.cut();
    let refused = broker.assign(assignment(&repository.url(), "true")).await;
    let refused = broker.result(&refused).await;
    assert!(ours(&refused) && refused.message.contains("Docker"), "{refused:?}");
    broker
        .until("a beat that wants nothing", |said| said.beats.last().filter(|b| b.draining).map(|_| ()))
        .await;
    way.open();
    broker
        .until("a beat that wants more", |said| said.beats.last().filter(|b| !b.draining).map(|_| ()))
        .await;
    let result = broker.result(&running).await;
    let lines: String = (1..=60).map(|i| format!("line {i}\n")).collect();
    assert_eq!(
        (result.exit_code, String::from_utf8_lossy(&result.stdout).into_owned()),
        (Some(6), lines),
        "{}",
        result.message
    );
}
