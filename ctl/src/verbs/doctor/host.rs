//! What doctor looks at of the disk, of Docker's settings and of who may read what, where a daemon is installed.

use std::{
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use codering_core::units;
use serde_json::Value;

use super::finding::Finding;
use crate::verbs::words;

/// brokerd's and workerd's own default of `min_free_disk`.
const MIN_FREE_BYTES: u64 = 256 << 20;
/// The ledger's log is taken into it at some 16 MB; one that is much longer is not taken in any more.
const LONG_LOG_BYTES: u64 = 256 << 20;
/// Every commit of the ledger waits for one.
const SLOW_SYNC: Duration = Duration::from_millis(20);
const SYNCS: usize = 15;

/// Room on the disk of a data directory.
pub fn disk(dir: &Path, reserve: Option<&str>) -> Finding {
    let reserve = reserve.and_then(units::size_bytes).unwrap_or(MIN_FREE_BYTES);
    match rustix::fs::statvfs(dir) {
        Ok(about) => room(dir, about.f_bavail * about.f_frsize, reserve),
        Err(error) => Finding::skipped("disk", format!("{}: {error}; run doctor as root", dir.display())),
    }
}

fn room(dir: &Path, free: u64, reserve: u64) -> Finding {
    let (shown, kept) = (units::show_size(free), units::show_size(reserve));
    let text = format!("{shown} free below {}, min_free_disk is {kept}", dir.display());
    let mend = format!("sudo du -xh --max-depth=2 {} | sort -h | tail; then make room there", dir.display());
    match free {
        _ if free < reserve => Finding::wrong("disk", format!("{text}: nothing new is taken"), mend),
        _ if free < reserve * 2 => Finding::warning("disk", text, mend),
        _ => Finding::good("disk", text),
    }
}

pub(super) fn unread(about: &'static str, path: &Path, error: &std::io::Error) -> Finding {
    Finding::skipped(about, format!("{}: {}; run doctor as root", path.display(), words::io_error(error)))
}

/// The ledger's write-ahead log.
pub fn log(dir: &Path) -> Finding {
    let file = dir.join("ledger.db-wal");
    match std::fs::metadata(&file) {
        Ok(about) => log_of(&file, about.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Finding::good("wal", "the ledger has none: it is closed, or was never opened")
        }
        Err(error) => unread("wal", &file, &error),
    }
}

fn log_of(file: &Path, bytes: u64) -> Finding {
    let text = format!("{} is {} long", file.display(), units::show_size(bytes));
    match bytes {
        0..=LONG_LOG_BYTES => Finding::good("wal", text),
        _ => Finding::warning(
            "wal",
            format!("{text}: a reader of the ledger keeps it from being taken in"),
            "end who else has ledger.db open (sudo fuser -v on it), then sudo systemctl restart codering-brokerd",
        ),
    }
}

/// How long a write takes to be on the disk of this directory: of a file without a name, which is gone with its end.
pub fn sync(dir: &Path) -> Finding {
    match measure(dir) {
        Ok(median) => sync_of(dir, median),
        Err(error) => unread("fsync", dir, &error),
    }
}

fn measure(dir: &Path) -> std::io::Result<Duration> {
    let mut file = tempfile::tempfile_in(dir)?;
    let mut took = Vec::new();
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        took.push(began.elapsed());
    }
    took.sort();
    Ok(took[SYNCS / 2])
}

fn sync_of(dir: &Path, median: Duration) -> Finding {
    let text =
        format!("4 KiB are on the disk of {} in {:.1} ms", dir.display(), median.as_secs_f64() * 1000.0);
    match median > SLOW_SYNC {
        false => Finding::good("fsync", text),
        true => Finding::warning(
            "fsync",
            format!("{text}: every submit and every result waits for that"),
            "mount a disk of its own at data_dir (lsblk -o NAME,ROTA,MOUNTPOINT): stop the daemon and its sockets, copy the directory, mount, start",
        ),
    }
}

/// Whether others than its own user may enter or read what is secret.
pub fn permissions(secrets: &[PathBuf]) -> Finding {
    let open: Vec<_> = secrets
        .iter()
        .filter(|path| std::fs::metadata(path).is_ok_and(|about| about.mode() & 0o007 != 0))
        .map(|path| path.display().to_string())
        .collect();
    match open.as_slice() {
        [] => Finding::good("permissions", "nobody but the daemons' users may read what is secret"),
        open => Finding::wrong(
            "permissions",
            format!("everybody on this machine may read {}", open.join(", ")),
            format!("sudo chmod o-rwx {}", open.join(" ")),
        ),
    }
}

/// What Docker says of itself beyond whether it can hold a task.
pub fn docker(info: &Value, wants_proxy: bool) -> Vec<Finding> {
    let mut findings = vec![match info["LiveRestoreEnabled"].as_bool() {
        Some(true) => Finding::good("restore", "Docker keeps containers when it is restarted (live-restore)"),
        _ => Finding::warning(
            "restore",
            "Docker ends every task when it is restarted or upgraded: live-restore is off",
            "add \"live-restore\": true to /etc/docker/daemon.json (a new file: {\"live-restore\": true}), then\n\
             sudo systemctl reload docker",
        ),
    }];
    findings.push(match info["CgroupVersion"].as_str() {
        Some("2") => Finding::good("cgroup", "version 2"),
        Some(version) => Finding::warning(
            "cgroup",
            format!("version {version}, which works here, and which Debian 13 refuses to start with"),
            "remove systemd.unified_cgroup_hierarchy=0 from GRUB_CMDLINE_LINUX in /etc/default/grub, then\n\
             sudo update-grub && sudo reboot",
        ),
        None => Finding::skipped("cgroup", "Docker does not say which version"),
    });
    let has = info["HttpsProxy"].as_str().is_some_and(|proxy| !proxy.is_empty());
    if wants_proxy && !has {
        findings.push(Finding::warning(
            "proxy",
            "workerd has a proxy, and Docker, which pulls images, has none",
            "sudo systemctl edit docker, with [Service] Environment=HTTPS_PROXY=http://HOST:PORT NO_PROXY=…; at a quiet time:\n\
             sudo systemctl restart docker",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Verdict::{self, Good, Warning, Wrong};
    use super::*;

    /// Whatever is not good has a command.
    fn verdict(finding: &Finding) -> Verdict {
        assert_eq!(finding.mend.is_empty(), finding.verdict == Good, "{finding:?}");
        finding.verdict
    }

    #[test]
    fn a_disk_is_wrong_below_its_reserve_and_worth_a_look_near_it() {
        let of = |free| verdict(&room(Path::new("/var/lib/codering"), free, 100 << 20));
        assert_eq!([of(99 << 20), of(150 << 20), of(1 << 30)], [Wrong, Warning, Good]);
        assert_eq!(disk(Path::new("/"), Some("1k")).verdict, Good);
        assert_eq!(disk(Path::new("/"), Some("8000T")).verdict, Wrong);
    }

    #[test]
    fn a_log_that_is_not_taken_in_and_a_slow_disk_are_worth_a_look() {
        let of = |bytes| verdict(&log_of(Path::new("ledger.db-wal"), bytes));
        assert_eq!([of(16 << 20), of(1 << 30)], [Good, Warning]);
        let of = |ms| verdict(&sync_of(Path::new("/"), Duration::from_millis(ms)));
        assert_eq!([of(3), of(80)], [Good, Warning]);
        let dir = tempfile::tempdir().expect("a directory");
        assert!(measure(dir.path()).expect("measured") > Duration::ZERO);
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0, "a file is left");
    }

    #[test]
    fn a_secret_that_everybody_may_read_is_wrong() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let (secret, other) = (dir.path().join("admin.token"), dir.path().join("absent"));
        std::fs::write(&secret, "x").expect("written");
        let mode =
            |mode| std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).expect("set");
        mode(0o600);
        assert_eq!(verdict(&permissions(&[secret.clone(), other.clone()])), Good);
        mode(0o644);
        let finding = permissions(&[secret.clone(), other]);
        assert_eq!(verdict(&finding), Wrong);
        assert_eq!(finding.mend, format!("sudo chmod o-rwx {}", secret.display()));
    }

    #[test]
    fn a_docker_that_ends_tasks_with_itself_is_worth_a_look_and_so_is_one_without_the_proxy() {
        let of = |info: Value, proxy| docker(&info, proxy).iter().map(verdict).collect::<Vec<_>>();
        let good = json!({ "LiveRestoreEnabled": true, "CgroupVersion": "2", "HttpsProxy": "http://p:1" });
        assert_eq!(of(good, true), [Good, Good]);
        let poor = json!({ "LiveRestoreEnabled": false, "CgroupVersion": "1", "HttpsProxy": "" });
        assert_eq!(of(poor.clone(), true), [Warning, Warning, Warning]);
        assert_eq!(of(poor, false).len(), 2);
    }
}
