//! A ledger that is damaged, backed up and restored, with the commands that an administrator has.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use codering_tests::{Backend, Fleet, Ran, Setup, SmallDisk, run, wait_for};

const BOUND: Duration = Duration::from_secs(90);

/// Submits so many simulated tasks; their job's id.
fn submit(fleet: &Fleet, tasks: u32, command: &str) -> String {
    let git = format!("file://{}/git/none.git", fleet.directory().display());
    let array = format!("1-{tasks}");
    let mut words = vec!["submit", "--project", "demo", "--git", &git, "--array", &array];
    words.extend(["--output", "json", "--", command]);
    let job: serde_json::Value = serde_json::from_slice(&fleet.ctl(&words)).unwrap();
    job["job_id"].as_str().unwrap().to_owned()
}

fn file(fleet: &Fleet, name: &str) -> PathBuf {
    fleet.directory().join(name)
}

/// brokerd's attempt to start, which must end by itself.
fn start(fleet: &Fleet) -> Ran {
    run(&mut fleet.broker_command(), BOUND)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn invariant_1_a_restored_backup_has_all_that_was_recorded_before_it_and_the_rest_runs_again() {
    let mut fleet = Fleet::start(Setup::simulated(Backend::Embedded, 1, 2));
    let done = submit(&fleet, 20, "echo {}");
    fleet.succeeded(&done, BOUND);
    let amid = submit(&fleet, 12, "sleep 0.7; echo {}");
    wait_for("some tasks succeeded", BOUND, || (fleet.succeeded_tasks(&amid) >= 3).then_some(()));
    let backup = file(&fleet, "saved");
    let written = fleet.json(&["ledger", "backup", text(&backup)]);
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    let sums =
        run(Command::new("sha256sum").args(["-c", "saved.sha256"]).current_dir(fleet.directory()), BOUND);
    assert_eq!(sums.code, Some(0), "{}", sums.stderr);
    assert!(
        fs::read_to_string(file(&fleet, "saved.sha256"))
            .unwrap()
            .contains(written["sha256"].as_str().unwrap())
    );
    let again = fleet.try_ctl(&["ledger", "backup", text(&backup)], BOUND);
    assert!(again.code == Some(2) && again.stderr.contains("already"), "{}", again.stderr);
    assert_eq!(fleet.json(&["ledger", "check"])["sound"], true, "the running one");
    assert_eq!(fleet.json(&["ledger", "check", text(&backup)])["sound"], true, "the backup");
    let lost = submit(&fleet, 2, "echo {}");
    fleet.succeeded(&lost, BOUND);

    let data_dir = fleet.broker_dir();
    let restore = ["ledger", "restore", text(&backup), "--data-dir", text(&data_dir), "--yes"];
    let busy = fleet.try_ctl(&restore, BOUND);
    assert!(busy.code == Some(1) && busy.stderr.contains("stop that one first"), "{}", busy.stderr);

    fleet.kill_broker();
    let ledger = data_dir.join("ledger.db");
    let bytes = fs::read(&ledger).unwrap();
    fs::write(&ledger, &bytes[..bytes.len() / 2]).unwrap();
    let _ = fs::remove_file(data_dir.join("ledger.db-wal"));
    let refused = start(&fleet);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("coderingctl ledger restore"), "{}", refused.stderr);

    let told = fleet.try_ctl(&restore, BOUND);
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    assert!(told.stderr.contains("submit later jobs again"), "{}", told.stderr);
    let aside = fs::read_dir(&data_dir).unwrap().flatten().filter(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with("ledger.db.aside-") && !name.ends_with("-shm"))
    });
    assert_eq!(aside.count(), 1, "what was there is kept");
    fleet.start_broker();
    assert_eq!(fleet.results(&done).len(), 20);
    fleet.succeeded(&amid, BOUND);
    let mut ids: Vec<_> = fleet.results(&amid).iter().map(|result| result["task_id"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), fleet.results(&amid).len()), (12, 12), "one result a task");
    let gone = fleet.try_ctl(&["job", "show", &lost], BOUND);
    assert!(gone.code == Some(3) && gone.stderr.contains("job.not_found"), "{}", gone.stderr);
    assert_eq!(fleet.json(&["ledger", "check"])["sound"], true);
    fleet.stop();
}

#[test]
fn every_damage_of_a_ledger_is_refused_with_what_to_do_and_check_names_it() {
    let mut fleet = Fleet::start(Setup::simulated(Backend::Embedded, 1, 4));
    let job = submit(&fleet, 300, "echo {}");
    fleet.succeeded(&job, BOUND);
    fleet.stop_worker(0);
    fleet.stop_broker();
    let data_dir = fleet.broker_dir();
    let ledger = data_dir.join("ledger.db");
    let whole = fs::read(&ledger).unwrap();
    let overwritten = |with: u8| {
        let mut bytes = whole.clone();
        bytes[8192..49_152].fill(with);
        bytes
    };
    for (what, bytes) in [
        ("cut in half", whole[..whole.len() / 2].to_vec()),
        ("emptied", Vec::new()),
        ("zeros over pages", overwritten(0)),
        ("other bytes over pages", overwritten(0x5a)),
        ("no database", b"the wrong file\n".repeat(500)),
    ] {
        fs::write(&ledger, bytes).unwrap();
        let refused = start(&fleet);
        assert_eq!(refused.code, Some(1), "{what}: {}", refused.stderr);
        for part in [
            "ledger.unavailable",
            "ledger.db",
            "damaged",
            "coderingctl ledger check",
            "coderingctl ledger restore",
        ] {
            assert!(refused.stderr.contains(part), "{what}: no `{part}` in {}", refused.stderr);
        }
        let check = fleet.try_ctl(&["ledger", "check", "--data-dir", text(&data_dir)], BOUND);
        assert!(
            check.code == Some(1) && check.text().starts_with("damaged"),
            "{what}: {}{}",
            check.text(),
            check.stderr
        );
    }
    fs::write(&ledger, &whole).unwrap();
    let queue = data_dir.join("queue.db");
    let queued = fs::read(&queue).unwrap();
    fs::write(&queue, &queued[..queued.len() / 2]).unwrap();
    let refused = start(&fleet);
    assert!(refused.code == Some(1) && refused.stderr.contains("Move it away"), "{}", refused.stderr);
    // As it says: without it, all that the ledger has is there.
    for name in ["queue.db", "queue.db-wal", "queue.db-shm"] {
        let _ = fs::remove_file(data_dir.join(name));
    }
    fleet.start_broker();
    assert_eq!(fleet.results(&job).len(), 300);

    fleet.kill_broker();
    let log = data_dir.join("ledger.db-wal");
    fs::rename(&log, file(&fleet, "kept-wal")).unwrap();
    let refused = start(&fleet);
    assert!(
        refused.code == Some(1) && refused.stderr.contains("its log (-wal) is gone"),
        "{}",
        refused.stderr
    );
    fs::rename(file(&fleet, "kept-wal"), &log).unwrap();
    fleet.start_broker();
    fleet.stop();
}

#[test]
fn a_backup_that_finds_no_room_leaves_nothing_and_one_that_changed_is_not_restored() {
    let mut fleet = Fleet::start(Setup::simulated(Backend::Embedded, 1, 2));
    let job = submit(&fleet, 20, "echo {}");
    fleet.succeeded(&job, BOUND);
    let disk = SmallDisk::mount(file(&fleet, "small"), 1);
    disk.fill(64 << 10);
    let target = disk.path().join("saved");
    let full = fleet.try_ctl(&["ledger", "backup", text(&target)], BOUND);
    assert!(full.code == Some(1) && full.stderr.contains("nothing of it is left"), "{}", full.stderr);
    let left: Vec<_> = fs::read_dir(disk.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["ballast"]);
    drop(disk);

    let backup = file(&fleet, "saved");
    fleet.ctl(&["ledger", "backup", text(&backup)]);
    // One bit, which SQLite itself may not notice.
    let mut bytes = fs::read(&backup).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&backup, bytes).unwrap();
    fleet.stop_worker(0);
    fleet.stop_broker();
    let before = fs::read(fleet.broker_dir().join("ledger.db")).unwrap();
    let data_dir = fleet.broker_dir();
    let restore = ["ledger", "restore", text(&backup), "--data-dir", text(&data_dir), "--yes"];
    let refused = fleet.try_ctl(&restore, BOUND);
    assert!(refused.code == Some(2) && refused.stderr.contains("checksum"), "{}", refused.stderr);
    assert_eq!(fs::read(fleet.broker_dir().join("ledger.db")).unwrap(), before, "nothing was changed");
    fleet.stop();
}
