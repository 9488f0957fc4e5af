//! What doctor looks at of the disk, of RabbitMQ's own settings and of who may read what, where a daemon is installed.

use std::{
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use codering_core::{time::Millis, units};
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use super::{finding::Finding, tls};
use crate::verbs::words;

/// brokerd's and workerd's own default of `min_free_disk`.
const MIN_FREE_BYTES: u64 = 256 << 20;
/// The ledger's log is taken into it at some 16 MB; one that is much longer is not taken in any more.
const LONG_LOG_BYTES: u64 = 256 << 20;
/// Every commit of the ledger waits for one.
const SLOW_SYNC: Duration = Duration::from_millis(20);
const SYNCS: usize = 15;
/// For `rabbitmqctl`, which starts an Erlang of its own.
const PATIENCE: Duration = Duration::from_secs(20);
/// A worker renews at two thirds of its certificate's life. One with less than this part left does not succeed.
const LATE: f64 = 0.25;

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

/// The ledger's write-ahead log.
pub fn log(dir: &Path) -> Finding {
    let file = dir.join("ledger.db-wal");
    match std::fs::metadata(&file) {
        Ok(about) => log_of(&file, about.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Finding::good("wal", "the ledger has none: it is closed, or was never opened")
        }
        Err(error) => Finding::skipped(
            "wal",
            format!("{}: {}; run doctor as root", file.display(), words::io_error(&error)),
        ),
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
        Err(error) => Finding::skipped(
            "fsync",
            format!("{}: {}; run doctor as root", dir.display(), words::io_error(&error)),
        ),
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
            "put data_dir on a disk of its own (lsblk -o NAME,ROTA,MOUNTPOINT): stop the daemon, move the directory, set data_dir",
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

/// A worker's certificate on its own machine.
pub fn worker_certificate(dir: &Path, now: Millis) -> Finding {
    let file = dir.join("tls/worker.pem");
    let read = std::fs::read_to_string(&file);
    match read.map(|pem| tls::life(&pem)) {
        Ok(Ok((begins, ends))) => certificate_of(begins, ends, now),
        Ok(Err(why)) => Finding::wrong("worker", format!("{}: {why}", file.display()), ENROL),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && dir.exists() => {
            Finding::wrong("worker", "this machine has no worker's certificate", ENROL)
        }
        Err(error) => Finding::skipped(
            "worker",
            format!("{}: {}; run doctor as root", file.display(), words::io_error(&error)),
        ),
    }
}

const ENROL: &str =
    "coderingctl worker token; then here: sudo codering-workerd enroll --replace --broker HOST --token TOKEN";

fn certificate_of(begins: Millis, ends: Millis, now: Millis) -> Finding {
    let until = format!("{} ({})", words::clock(ends), words::until(ends, now));
    let left = (ends - now) as f64 / (ends - begins).max(1) as f64;
    match left {
        _ if ends <= now => Finding::wrong(
            "worker",
            format!("the worker's certificate ended {}", words::until(ends, now)),
            ENROL,
        ),
        _ if left < LATE => Finding::warning(
            "worker",
            format!("the worker's certificate is valid until {until}, and should have been renewed by now"),
            "journalctl -u codering-workerd --grep 'was not renewed' -n 3",
        ),
        _ => Finding::good(
            "worker",
            format!("the worker's certificate, valid until {until}, renews by itself"),
        ),
    }
}

/// What only `rabbitmqctl` on RabbitMQ's own machine tells.
pub async fn rabbitmq() -> Vec<Finding> {
    let status = rabbitmqctl(&["status", "--formatter", "json"]).await;
    let Some(status) = status.and_then(|text| serde_json::from_str::<Value>(&text).ok()) else {
        let why = "rabbitmqctl does not answer here: run doctor as root on RabbitMQ's machine for its watermarks and timeouts";
        return vec![Finding::skipped("rabbitmq", why)];
    };
    let asked = rabbitmqctl(&["eval", "application:get_env(rabbit, consumer_timeout)."]).await;
    vec![watermarks(&status), consumer_timeout(asked.as_deref().unwrap_or_default())]
}

async fn rabbitmqctl(arguments: &[&str]) -> Option<String> {
    let asked = Command::new("rabbitmqctl").arg("--quiet").args(arguments).kill_on_drop(true).output();
    let output = timeout(PATIENCE, asked).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn watermarks(status: &Value) -> Finding {
    let alarms = status["alarms"].as_array().map_or(0, Vec::len);
    let (free, limit) =
        (status["disk_free"].as_u64().unwrap_or(0), status["disk_free_limit"].as_u64().unwrap_or(0));
    let text = format!(
        "RabbitMQ stops publishers below {} free on its disk, and has {}",
        units::show_size(limit),
        units::show_size(free)
    );
    let mend = "make room below /var/lib/rabbitmq (df -h there); then sudo rabbitmq-diagnostics check_alarms";
    match alarms {
        0 if free > limit.saturating_mul(2) => Finding::good("watermark", text),
        0 => Finding::warning("watermark", text, mend),
        _ => Finding::wrong(
            "watermark",
            format!("RabbitMQ has raised {}, and takes no messages: {text}", status["alarms"]),
            mend,
        ),
    }
}

/// A message that its reader does not settle in this time ends the reader's channel. codering's own are settled in seconds; a
/// slow reader of `queue subscribe` is what it may hit.
fn consumer_timeout(answer: &str) -> Finding {
    let ms = answer
        .trim()
        .strip_prefix("{ok,")
        .and_then(|rest| rest.strip_suffix('}')?.trim().parse::<u64>().ok());
    match ms {
        Some(ms) if ms < 300_000 => Finding::warning(
            "consumers",
            format!(
                "RabbitMQ's consumer_timeout is {}: slow readers of queues lose their place",
                units::show_duration(ms)
            ),
            "echo 'consumer_timeout = 1800000' | sudo tee /etc/rabbitmq/conf.d/90-codering.conf\n\
             sudo rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, 1800000).'",
        ),
        Some(ms) => {
            Finding::good("consumers", format!("RabbitMQ's consumer_timeout is {}", units::show_duration(ms)))
        }
        None => Finding::good("consumers", "RabbitMQ has no consumer_timeout"),
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
    fn a_worker_s_certificate_that_was_not_renewed_in_time_is_worth_a_look() {
        let of = |now| verdict(&certificate_of(0, 1000, now));
        assert_eq!([of(100), of(700), of(800), of(1000)], [Good, Good, Warning, Wrong]);
        let nowhere = tempfile::tempdir().expect("a directory");
        assert_eq!(verdict(&worker_certificate(nowhere.path(), 0)), Wrong);
    }

    #[test]
    fn rabbitmq_s_watermark_and_consumer_timeout_are_told() {
        let of = |alarms: Value, free: u64| {
            verdict(&watermarks(
                &json!({ "alarms": alarms, "disk_free": free, "disk_free_limit": 50_000_000 }),
            ))
        };
        assert_eq!(
            [of(json!([]), 1 << 40), of(json!([]), 60_000_000), of(json!(["disk"]), 1 << 40)],
            [Good, Warning, Wrong]
        );
        let of = |answer| verdict(&consumer_timeout(answer));
        assert_eq!([of("{ok,1800000}\n"), of("undefined\n"), of("{ok,30000}\n")], [Good, Good, Warning]);
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
