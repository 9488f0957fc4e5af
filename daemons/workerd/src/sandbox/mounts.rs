//! Where a container can write: file systems in memory, each with a bound on its bytes and its files, and nowhere else.

use std::collections::HashMap;

use super::{Image, StartError, settings::WORK};
use crate::config::SandboxConfig;

/// One file for so many bytes of a file system's size. A file's entry takes about 1 kB of the task's memory.
const BYTES_PER_FILE: u64 = 4096;
/// The kernel's interfaces; no file system is mounted there, and no command starts there.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// For shared memory between a task's own processes.
const SHARED_MEMORY: &str = "/dev/shm";
const SHM_BYTES: u64 = 16 << 20;

/// The file systems by their places, and where HOME is.
///
/// # Errors
/// Where the image asks for one that no container gets.
pub(super) fn tmpfs(
    image: &Image,
    user: &str,
    config: &SandboxConfig,
) -> Result<(HashMap<String, String>, &'static str), StartError> {
    let owner = owner(user);
    let options = |bytes: u64| {
        let files = (bytes / BYTES_PER_FILE).max(16);
        format!("rw,exec,nosuid,nodev,mode=1777,size={bytes},nr_inodes={files}{owner}")
    };
    // A descriptor that runc left open would be a way out: CVE-2024-21626.
    let workdir = clean(&image.workdir);
    if !image.workdir.is_empty() && workdir.as_deref().is_none_or(is_kernels) {
        return Err(refused(&format!("the image's working directory `{}`", shown(&image.workdir))));
    }
    let mut places = HashMap::from([
        ("/tmp".to_owned(), options(config.tmp_bytes)),
        // Docker's own would be without a bound on its files.
        (SHARED_MEMORY.to_owned(), options(SHM_BYTES)),
    ]);
    // Where the image has its own files in /work, an empty file system would hide them.
    let own_work = workdir.is_some_and(|workdir| within(&workdir, WORK));
    if !own_work {
        places.insert(WORK.to_owned(), options(config.work_bytes));
    }
    for volume in &image.volumes {
        // A volume of Docker's would be room on the host's disk without a bound. Docker leaves it out where a file system
        // is asked for in its place, letter by letter as Docker cleans the path.
        match clean(volume) {
            Some(place) if place == SHARED_MEMORY => {}
            Some(place) if place != "/" && !is_kernels(&place) => {
                places.entry(place).or_insert_with(|| options(config.tmp_bytes));
            }
            _ => return Err(refused(&format!("the image's volume `{}`", shown(volume)))),
        }
    }
    Ok((places, if own_work { "/tmp" } else { WORK }))
}

fn refused(what: &str) -> StartError {
    let message =
        format!("{what} is not a place that a task can have; name a plain absolute path in its Dockerfile");
    StartError::Refused { code: 126, message }
}

fn shown(path: &str) -> String {
    codering_core::ids::shown(path).to_string()
}

/// An absolute path without `.`, `..` and double slashes, as Docker cleans it; `None` for one that is not absolute.
fn clean(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.strip_prefix('/')?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

fn is_kernels(path: &str) -> bool {
    KERNEL.iter().any(|top| within(path, top))
}

fn within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A file system mounted over a directory of the image takes that directory's mode, which may be root's alone; so it
/// belongs to the user.
fn owner(user: &str) -> String {
    let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
    let number = |name: &str, text: &str| match text.parse::<u32>() {
        Ok(number) => format!(",{name}={number}"),
        Err(_) => String::new(),
    };
    number("uid", uid) + &number("gid", gid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::File;

    fn places(workdir: &str, volumes: &[&str]) -> Result<(Vec<String>, &'static str), StartError> {
        let config = File { name: Some("t".into()), ..File::default() }.check().expect("valid").sandbox;
        let volumes = volumes.iter().map(|&volume| volume.to_owned()).collect();
        let image = Image { workdir: workdir.into(), volumes, ..Image::default() };
        let (found, home) = tmpfs(&image, "7:8", &config)?;
        for options in found.values() {
            assert!(options.contains("size=") && options.contains("nr_inodes=") && options.contains("uid=7"));
        }
        let mut found: Vec<_> = found.into_keys().collect();
        found.sort();
        Ok((found, home))
    }

    #[test]
    fn invariant_6_every_volume_becomes_a_bounded_file_system_in_the_place_that_docker_makes_of_it() {
        let odd = ["/data/", "//two", "/x/../three", "/tmp/", "/work/./w", "/dev/shm/"];
        let (found, _) = places("", &odd).expect("all are absolute");
        assert_eq!(found, ["/data", "/dev/shm", "/three", "/tmp", "/two", "/work", "/work/w"]);
        for refused in ["data", "/", "/..", "/proc", "/proc/x", "/sys/fs", "/dev", "/x/../dev/mqueue"] {
            assert!(places("", &[refused]).is_err(), "{refused}");
        }
    }

    #[test]
    fn invariant_7_no_command_starts_in_the_kernels_interfaces() {
        for refused in
            ["/proc/self/fd/8", "/proc", "//proc/self/fd/7", "/app/../proc/self/fd/9", "/sys", "app"]
        {
            assert!(places(refused, &[]).is_err(), "{refused}");
        }
        assert!(places("/processes", &[]).is_ok() && places("/", &[]).is_ok());
    }

    #[test]
    fn an_images_own_files_in_work_are_not_hidden() {
        let found = vec!["/dev/shm".to_owned(), "/tmp".to_owned()];
        assert_eq!(places("/work/src", &[]).expect("absolute"), (found, "/tmp"));
        assert_eq!(places("/workshop", &[]).expect("absolute").1, "/work");
    }
}
