//! Whose fault it was that a container did not start, read off what Docker says.

use bollard::errors::Error;

use super::{StartError, Unavailable};

/// Docker's answer, where there was one: status and message.
pub(crate) fn answer(error: &Error) -> Option<(u16, &str)> {
    match error {
        Error::DockerResponseServerError { status_code, message } => Some((*status_code, message)),
        _ => None,
    }
}

/// Docker did not do its part.
pub(crate) fn unavailable(what: &str, error: &Error) -> Unavailable {
    Unavailable(match answer(error) {
        Some((_, message)) => format!("Docker could not {what}: {}", one_line(message)),
        None => format!("Docker is not reachable to {what}: {}", one_line(&error.to_string())),
    })
}

pub(crate) fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Sorts a failed create or start.
pub(super) fn of_start(error: &Error) -> StartError {
    let Some((status, message)) = answer(error) else {
        return unavailable("start the container", error).into();
    };
    let lower = message.to_lowercase();
    if status == 404 && lower.contains("no such image") {
        return StartError::ImageGone;
    }
    let refused = |code, what: &str| StartError::Refused {
        code,
        message: format!("{what}: {}", one_line(message.rsplit("process: ").next().unwrap_or(message))),
    };
    if lower.contains("executable file not found")
        || (lower.contains("exec") && lower.contains("no such file or directory"))
    {
        return refused(127, "the command is not in the image");
    }
    if lower.contains("permission denied") && lower.contains("exec") {
        return refused(126, "the command cannot be executed");
    }
    if lower.contains("argument list too long") {
        return refused(126, "the command and its environment are too long");
    }
    // What the image or the task asked for is in order, the host cannot hold it.
    let hosts = [
        "the cgroup is not mounted",
        "your kernel does not support",
        "cgroup mountpoint does not exist",
        "range of cpus is from",
        "unable to apply cgroup configuration",
        "seccomp is not enabled",
    ];
    if hosts.iter().any(|text| lower.contains(text)) {
        let code = codering_core::Code::WorkerUnconfined.as_str();
        return Unavailable(format!("{code}: Docker cannot hold the task's limits: {}", one_line(message)))
            .into();
    }
    if lower.contains("unable to find user") || lower.contains("unable to find group") {
        return refused(126, "the image names a user that it does not have");
    }
    if lower.contains("uids and gids must be in range") {
        return refused(126, "the image names a user that cannot be");
    }
    if lower.contains("error mounting \"tmpfs\"") {
        return refused(126, "a volume of the image cannot be where it wants it");
    }
    if lower.contains("not a directory")
        || lower.contains("chdir to cwd")
        || lower.contains("current working directory")
    {
        return refused(126, "the image's working directory cannot be entered");
    }
    if status == 400 {
        return refused(126, "the container cannot be made as asked for");
    }
    unavailable("start the container", error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(status_code: u16, message: &str) -> StartError {
        of_start(&Error::DockerResponseServerError { status_code, message: message.into() })
    }

    #[test]
    fn a_command_that_is_not_there_is_the_users_fault_and_a_full_disk_is_ours() {
        let message = "OCI runtime create failed: container_linux.go:380: starting container process caused: exec: \"nope\": executable file not found in $PATH: unknown";
        assert!(matches!(sorted(400, message), StartError::Refused { code: 127, .. }));
        assert!(matches!(
            sorted(400, "OCI runtime create failed: exec: \"/etc/passwd\": permission denied: unknown"),
            StartError::Refused { code: 126, .. }
        ));
        assert!(matches!(sorted(404, "No such image: sha256:00"), StartError::ImageGone));
        assert!(matches!(sorted(500, "no space left on device"), StartError::Unavailable(_)));
        assert!(matches!(
            sorted(500, "uids and gids must be in range 0-2147483647"),
            StartError::Refused { .. }
        ));
        assert!(matches!(of_start(&Error::RequestTimeoutError), StartError::Unavailable(_)));
    }

    #[test]
    fn invariant_4_a_host_that_cannot_hold_a_limit_is_ours_whatever_docker_calls_it() {
        for message in [
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted",
            "Range of CPUs is from 0.01 to 1.00, as there are only 1 CPUs available",
            "OCI runtime create failed: cgroups: cgroup mountpoint does not exist: unknown",
        ] {
            assert!(matches!(sorted(400, message), StartError::Unavailable(_)), "{message}");
        }
        // A command of that name is still the user's.
        let named = "OCI runtime create failed: exec: \"your kernel does not support\": executable file not found in $PATH";
        assert!(matches!(sorted(400, named), StartError::Refused { code: 127, .. }));
    }
}
