//! What a build may take of the machine beyond what Docker's builder bounds itself: processes, and Docker's disk.

use std::path::PathBuf;

use bollard::{Docker, models::ContainerUpdateBody};
use codering_core::units::show_size;

use super::Problem;
use crate::sandbox::docker::call;

/// The disk that Docker's data lies on.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    reserve: u64,
}

impl Disk {
    /// As Docker tells it. `None` where this process does not see that disk: a dockerd in a mount namespace of its own.
    pub async fn of(docker: &Docker, reserve: u64) -> Option<Self> {
        let root = call(docker.info()).await.ok()?.docker_root_dir?;
        let disk = Self { root: root.into(), reserve };
        disk.free().map(|_| disk)
    }

    /// The bytes that are left on it.
    pub fn free(&self) -> Option<u64> {
        let about = rustix::fs::statvfs(&self.root).ok()?;
        Some(about.f_bavail.saturating_mul(about.f_frsize))
    }

    /// How much is missing of the room that stays free.
    pub fn missing(&self) -> u64 {
        self.free().map_or(0, |free| self.reserve.saturating_sub(free))
    }

    /// Refuses to begin on a disk that is nearly full.
    pub(super) fn check(&self) -> Result<(), Problem> {
        match self.missing() {
            0 => Ok(()),
            _ => Err(Problem::Unavailable(self.says("Docker's disk is nearly full"))),
        }
    }

    /// What becomes of a build during which the disk ran low. Where others build too, whose fault it is cannot be told.
    pub(super) fn ran_low(&self, alone: bool) -> Problem {
        match alone {
            true => Problem::Failed(self.says("the build was stopped, for it fills Docker's disk")),
            false => Problem::Unavailable(
                self.says("the builds were stopped, for together they fill Docker's disk"),
            ),
        }
    }

    fn says(&self, what: &str) -> String {
        format!(
            "{what}: {} stay free on {} ([build] disk_reserve in the worker's workerd.toml)",
            show_size(self.reserve),
            self.root.display()
        )
    }
}

/// Bounds the processes of a step: the builder itself does not. A step that ended meanwhile needs no bound.
pub(super) fn bound_processes(docker: &Docker, container: &str, max: u32) {
    let (docker, container) = (docker.clone(), container.to_owned());
    tokio::spawn(async move {
        let bound =
            ContainerUpdateBody { pids_limit: Some(i64::from(max)), ..ContainerUpdateBody::default() };
        if let Err(e) = call(docker.update_container(&container, bound)).await {
            tracing::debug!(container, "the processes of a build's step are not bounded: {e}");
        }
    });
}
