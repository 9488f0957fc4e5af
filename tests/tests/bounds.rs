//! brokerd's memory beside its backlog, and channels without a bound.

use std::{fs, path::Path, time::Duration};

use codering_tests::{Backend, Fleet, Setup, repository, wait_for};

const BOUND: Duration = Duration::from_secs(300);
/// SQLite's page caches, which fill once: the ledger's writer and readers, the embedded queue.
const CACHES_KIB: u64 = (16 + 4 * 8 + 4) << 10;
/// The allocator's arenas, connections, statements.
const NOISE_KIB: u64 = 16 << 10;

/// What a process holds in memory, in KiB, the pages of files left out.
fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("every process has one");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// No worker takes any of them: all stand in the queue.
fn memory_stays_bounded_whatever_the_backlog(backend: Backend, backlog: u64) {
    let fleet = Fleet::start(Setup { simulate: true, ..Setup::new(backend, 0) });
    let before = resident(fleet.broker_id());
    let file = fleet.directory().join("queued.toml");
    let job = format!(
        "project = 'demo'\ngit = 'https://127.0.0.1/none.git'\ncommand = 'true {{}}'\narray = '1-{backlog}'\n"
    );
    fs::write(&file, job).unwrap();
    fleet.ctl_within(&["submit", file.to_str().unwrap()], BOUND);
    wait_for("all tasks are queued", BOUND, || (fleet.waiting("demo.todo") == backlog).then_some(()));
    let after = resident(fleet.broker_id());
    assert!(
        after < before + CACHES_KIB + NOISE_KIB,
        "{before} KiB without a task, {after} KiB with {backlog} queued"
    );
    fleet.stop();
}

#[test]
fn invariant_5_the_brokers_memory_does_not_grow_with_the_backlog_in_the_embedded_queue() {
    memory_stays_bounded_whatever_the_backlog(Backend::Embedded, 300_000);
}

#[test]
fn invariant_5_the_brokers_memory_does_not_grow_with_the_backlog_in_rabbitmq() {
    memory_stays_bounded_whatever_the_backlog(Backend::RabbitMq, 100_000);
}

fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        match path.extension() {
            _ if path.is_dir() => sources(&path, found),
            Some(ending) if ending == "rs" => {
                found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
            }
            _ => {}
        }
    }
}

#[test]
fn invariant_6_no_channel_of_a_daemon_is_without_a_bound() {
    let mut found = Vec::new();
    for part in ["core", "kit", "brokerd", "workerd"] {
        sources(&repository().join("daemons").join(part).join("src"), &mut found);
    }
    assert!(found.len() > 100, "only {} sources were found", found.len());
    let unbounded = ["unbounded_channel", "UnboundedSender", "mpsc::unbounded", "std::sync::mpsc::channel"];
    let places: Vec<_> = found
        .iter()
        .flat_map(|(file, text)| text.lines().enumerate().map(move |(n, line)| (file, n + 1, line)))
        .filter(|(_, _, line)| unbounded.iter().any(|word| line.contains(word)))
        .map(|(file, n, line)| format!("{file}:{n}: {}", line.trim()))
        .collect();
    assert!(places.is_empty(), "a channel without a bound:\n{}", places.join("\n"));
}
