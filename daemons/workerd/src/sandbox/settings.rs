//! What a container may and may not: everything that was not asked for is denied.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig,
    ResourcesUlimits,
};
use codering_core::WorkerName;

use super::{Image, Spec, StartError, mounts, seccomp, user::UNPRIVILEGED};
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
pub(super) const WORK: &str = "/work";
const OPEN_FILES: i64 = 8192;
/// What a process may keep from being paged out, in bytes; Docker's own process may have more to give.
const LOCKED_BYTES: i64 = 64 << 10;
/// Of the kernel's interfaces, those that a container sees empty: what the newest Docker masks, for every Docker.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/config.gz",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Those that nobody in a container writes.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The container of `spec`, run by `user`. `cores` is what Docker has, beyond which it refuses.
///
/// # Errors
/// Where its image asks for what no container gets.
pub(super) fn body(
    spec: &Spec,
    user: &str,
    worker: &WorkerName,
    config: &SandboxConfig,
    cores: f64,
) -> Result<ContainerCreateBody, StartError> {
    let memory = i64::try_from(spec.limits.memory_bytes).unwrap_or(i64::MAX);
    let (tmpfs, home) = mounts::tmpfs(&spec.image, user, config)?;
    let mut env = vec![format!("HOME={home}")];
    env.extend(spec.env.iter().map(|(name, value)| format!("{name}={value}")));
    let ulimit =
        |name: &str, at: i64| ResourcesUlimits { name: Some(name.into()), soft: Some(at), hard: Some(at) };
    let list = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
    Ok(ContainerCreateBody {
        image: Some(spec.image.id.clone()),
        entrypoint: Some(Vec::new()),
        cmd: Some(spec.argv.clone()),
        env: Some(env),
        user: Some(user.to_owned()),
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
            security_opt: Some(vec![
                "no-new-privileges:true".into(),
                format!("seccomp={}", seccomp::profile()),
            ]),
            masked_paths: list(&MASKED),
            readonly_paths: list(&READ_ONLY),
            privileged: Some(false),
            readonly_rootfs: Some(true),
            tmpfs: Some(tmpfs),
            ipc_mode: Some("private".into()),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            oom_kill_disable: Some(false),
            init: Some(true),
            oom_score_adj: Some(500),
            ulimits: Some(vec![
                ulimit("nofile", OPEN_FILES),
                ulimit("core", 0),
                ulimit("memlock", LOCKED_BYTES),
            ]),
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
    })
}

/// A container that is never started, to look into the image.
pub(super) fn unstarted(image: &Image, worker: &WorkerName) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(image.id.clone()),
        entrypoint: Some(Vec::new()),
        cmd: Some(vec!["none".into()]),
        user: Some(UNPRIVILEGED.into()),
        labels: Some(HashMap::from([(label::WORKER.to_owned(), worker.to_string())])),
        network_disabled: Some(true),
        host_config: Some(HostConfig { network_mode: Some("none".into()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    }
}

/// The bound of one of the two log files. Short lines weigh some ten times their length in it.
pub(super) fn log_bytes(output_bytes: u64) -> u64 {
    (output_bytes * 10).clamp(10 << 20, 256 << 20)
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

    #[test]
    fn the_working_directory_is_the_images_own_where_it_names_one() {
        let named = |workdir: &str| workdir_of(workdir);
        assert_eq!(named(""), "/work");
        assert_eq!(named("/"), "/work");
        assert_eq!(named("/app"), "/app");
    }

    fn workdir_of(named: &str) -> String {
        workdir(&Image { workdir: named.into(), ..Image::default() }, "/work")
    }
}
