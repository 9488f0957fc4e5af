//! Whether the host can hold a task within its limits. Where it cannot, none is run.

use bollard::Docker;
use codering_core::{Code, Error, enforce::lacking};

use super::{Unavailable, docker::call, refusal};

/// # Errors
/// [`Code::WorkerUnconfined`] where a limit would not hold; [`Code::Internal`] where Docker does not answer.
pub(crate) async fn confines(docker: &Docker) -> Result<(), Error> {
    let info = call(docker.info()).await;
    let info =
        info.map_err(|e| Error::new(Code::Internal, refusal::unavailable("say what it can enforce", &e).0))?;
    judged(&serde_json::to_value(info).unwrap_or_default())
}

fn judged(info: &serde_json::Value) -> Result<(), Error> {
    let lacking = lacking(info);
    if lacking.is_empty() {
        return Ok(());
    }
    let what = format!("Docker cannot bound {} on this host, so no task is run", lacking.join(", "));
    Err(Error::new(Code::WorkerUnconfined, what).hint(
        "turn on the kernel's memory, pids and cpu cgroup controllers and seccomp (`docker info` lists warnings), then \
         systemctl restart docker",
    ))
}

/// What Docker warned of when it made a container: of a limit that it let go, the container must not start.
pub(super) fn held(warnings: &[String]) -> Result<(), Unavailable> {
    match warnings.iter().find(|warning| warning.to_lowercase().contains("discarded")) {
        None => Ok(()),
        Some(warning) => {
            let code = Code::WorkerUnconfined.as_str();
            Err(Unavailable(format!("{code}: Docker would not hold a limit: {}", refusal::one_line(warning))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invariant_10_a_host_that_cannot_bound_processes_runs_no_task() {
        let error = judged(&serde_json::json!({ "MemoryLimit": true, "CpuCfsQuota": true,
            "SecurityOptions": ["name=seccomp,profile=default"] }));
        let error = error.expect_err("it lacks processes");
        assert_eq!(error.code, Code::WorkerUnconfined);
        assert!(error.message.contains("processes") && !error.message.contains("memory"), "{error}");
    }

    #[test]
    fn invariant_10_a_limit_that_docker_lets_go_starts_no_container() {
        let gone = "Your kernel does not support pids limit capabilities or the cgroup is not mounted. PIDs limit discarded.";
        assert!(held(&[gone.to_owned()]).is_err());
        let swap = "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.";
        assert!(held(&[swap.to_owned()]).is_ok() && held(&[]).is_ok());
    }
}
