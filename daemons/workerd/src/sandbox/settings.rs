//! What a container may and may not: everything that was not asked for is denied.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, ResourcesUlimits};
use codering_core::WorkerName;

use super::{Image, Spec};
use crate::config::SandboxConfig;

/// Labels by which a worker finds its containers again.
pub(super) mod label {
    pub const WORKER: &str = "codering.worker";
    pub const TOKEN: &str = "codering.token";
    pub const PROJECT: &str = "codering.project";
    pub const JOB: &str = "codering.job";
    pub const TASK: &str = "codering.task";
    pub const ATTEMPT: &str = "codering.attempt";
    pub const RECORD: &str = "codering.record";
}

/// Where HOME is.
const WORK: &str = "/work";
/// Who runs where an image names nobody, or root: `nobody` and `nogroup` in Debian.
const UNPRIVILEGED: &str = "65534:65534";
/// For shared memory between a task's own processes.
const SHM_BYTES: i64 = 16 << 20;
const OPEN_FILES: i64 = 8192;

/// The container of `spec`. `cores` is what Docker has, beyond which it refuses.
pub(super) fn body(
    spec: &Spec,
    worker: &WorkerName,
    config: &SandboxConfig,
    cores: f64,
) -> ContainerCreateBody {
    let memory = i64::try_from(spec.limits.memory_bytes).unwrap_or(i64::MAX);
    let mut tmpfs = HashMap::new();
    let user = user(&spec.image);
    let owner = owner(&user);
    let options = |bytes: u64| format!("rw,exec,nosuid,nodev,mode=1777,size={bytes}{owner}");
    tmpfs.insert("/tmp".to_owned(), options(config.tmp_bytes));
    // Where the image has its own files in /work, an empty file system would hide them.
    let own_work = within(&spec.image.workdir, WORK);
    let home = if own_work { "/tmp" } else { WORK };
    if !own_work {
        tmpfs.insert(WORK.to_owned(), options(config.work_bytes));
    }
    for volume in &spec.image.volumes {
        // A volume of Docker's would be room on the host's disk without a bound.
        if volume.starts_with('/') && volume != "/" && !tmpfs.contains_key(volume) {
            tmpfs.insert(volume.clone(), options(config.tmp_bytes));
        }
    }
    let mut env = vec![format!("HOME={home}")];
    env.extend(spec.env.iter().map(|(name, value)| format!("{name}={value}")));
    let ulimit =
        |name: &str, at: i64| ResourcesUlimits { name: Some(name.into()), soft: Some(at), hard: Some(at) };
    ContainerCreateBody {
        image: Some(spec.image.id.clone()),
        entrypoint: Some(Vec::new()),
        cmd: Some(spec.argv.clone()),
        env: Some(env),
        user: Some(user),
        working_dir: Some(workdir(&spec.image, home)),
        hostname: Some("task".into()),
        labels: Some(labels(spec, worker)),
        attach_stdin: Some(spec.stdin),
        open_stdin: Some(spec.stdin),
        stdin_once: Some(spec.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(false),
        network_disabled: Some(!spec.limits.network),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() }),
        host_config: Some(HostConfig {
            memory: Some(memory),
            // Together with swap: none beyond the memory.
            memory_swap: Some(memory),
            nano_cpus: Some((spec.limits.cpus.min(cores) * 1e9) as i64),
            pids_limit: Some(i64::from(spec.limits.max_pids)),
            network_mode: Some(if spec.limits.network { config.network.clone() } else { "none".into() }),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges:true".into()]),
            privileged: Some(false),
            readonly_rootfs: Some(true),
            tmpfs: Some(tmpfs),
            shm_size: Some(SHM_BYTES),
            ipc_mode: Some("private".into()),
            init: Some(true),
            oom_score_adj: Some(500),
            ulimits: Some(vec![ulimit("nofile", OPEN_FILES), ulimit("core", 0)]),
            // Lossless, and bounded; read only when this process could not read along to the end.
            log_config: Some(HostConfigLogConfig {
                typ: Some("local".into()),
                config: Some(HashMap::from([
                    ("max-size".to_owned(), log_bytes(spec.limits.output_bytes).to_string()),
                    ("max-file".to_owned(), "2".to_owned()),
                    ("compress".to_owned(), "false".to_owned()),
                ])),
            }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// The bound of one of the two log files. Short lines weigh some ten times their length in it.
pub(super) fn log_bytes(output_bytes: u64) -> u64 {
    (output_bytes * 10).clamp(10 << 20, 256 << 20)
}

fn within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn user(image: &Image) -> String {
    let name = image.user.split(':').next().unwrap_or_default().trim();
    // Docker reads a number as Go does: "00", "+0" and "-0" are root too.
    let root = name.is_empty() || name == "root" || name.parse() == Ok(0_i64);
    if root { UNPRIVILEGED.into() } else { image.user.clone() }
}

/// A file system mounted over a directory of the image takes that directory's mode, which may be root's alone; so it
/// belongs to the user, where that is known by number.
fn owner(user: &str) -> String {
    let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
    let number = |name: &str, text: &str| match text.parse::<u32>() {
        Ok(number) => format!(",{name}={number}"),
        Err(_) => String::new(),
    };
    number("uid", uid) + &number("gid", gid)
}

fn workdir(image: &Image, home: &str) -> String {
    match image.workdir.as_str() {
        "" | "/" => home.to_owned(),
        named => named.to_owned(),
    }
}

fn labels(spec: &Spec, worker: &WorkerName) -> HashMap<String, String> {
    HashMap::from([
        (label::WORKER.to_owned(), worker.to_string()),
        (label::TOKEN.to_owned(), spec.token.to_string()),
        (label::PROJECT.to_owned(), spec.project.to_string()),
        (label::JOB.to_owned(), spec.job.to_string()),
        (label::TASK.to_owned(), spec.task.to_string()),
        (label::ATTEMPT.to_owned(), spec.attempt.to_string()),
        (label::RECORD.to_owned(), serde_json::to_string(&spec.record).unwrap_or_default()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(user: &str, workdir: &str) -> Image {
        Image { user: user.into(), workdir: workdir.into(), ..Image::default() }
    }

    #[test]
    fn root_and_nobody_in_particular_become_an_unprivileged_user_and_another_stays() {
        for root in ["", "root", "0", "0:0", "root:adm", "00", "000:5", "-0", "+0"] {
            assert_eq!(user(&image(root, "")), UNPRIVILEGED, "{root}");
        }
        assert_eq!(user(&image("app:app", "")), "app:app");
        assert_eq!(user(&image("1000", "")), "1000");
    }

    #[test]
    fn a_user_known_by_number_owns_its_file_systems() {
        assert_eq!(owner("65534:65534"), ",uid=65534,gid=65534");
        assert_eq!(owner("1000"), ",uid=1000");
        assert_eq!(owner("app:app"), "");
    }

    #[test]
    fn the_working_directory_is_the_images_own_where_it_names_one() {
        assert_eq!(workdir(&image("", ""), "/work"), "/work");
        assert_eq!(workdir(&image("", "/"), "/work"), "/work");
        assert_eq!(workdir(&image("", "/app"), "/work"), "/app");
        assert!(within("/work/x", "/work") && within("/work", "/work") && !within("/workshop", "/work"));
    }
}
