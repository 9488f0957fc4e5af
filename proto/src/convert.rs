//! Wire types become validated types once, here, and go back.

use codering_core::{
    self as core, Code, Error, JobId, LeaseToken, ProjectName, Source, TaskId,
    job::JobState,
    outcome::Outcome,
    quota::Quota,
    result::Phases,
    time::{Millis, WRITABLE},
};

use crate::v1;

/// A required id or name, with its place in the error.
pub fn id<T: std::str::FromStr<Err = Error>>(text: &str, place: &str) -> Result<T, Error> {
    text.parse().map_err(|error: Error| error.at(place))
}

/// A command, where there is one.
pub fn command(wire: Option<v1::Command>) -> Option<core::Command> {
    wire?.kind.map(|kind| match kind {
        v1::command::Kind::Shell(line) => core::Command::Shell(line),
        v1::command::Kind::Argv(argv) => core::Command::Argv(argv.args),
    })
}

impl From<core::Command> for v1::Command {
    fn from(command: core::Command) -> Self {
        Self {
            kind: Some(match command {
                core::Command::Shell(line) => v1::command::Kind::Shell(line),
                core::Command::Argv(args) => v1::command::Kind::Argv(v1::Argv { args }),
            }),
        }
    }
}

/// Limits as named; validated with the job or task that they belong to.
pub fn limits_patch(wire: Option<v1::Limits>) -> core::LimitsPatch {
    let wire = wire.unwrap_or_default();
    core::LimitsPatch {
        timeout_ms: wire.timeout_ms,
        memory_bytes: wire.memory_bytes,
        cpus: wire.cpus,
        max_pids: wire.max_pids,
        network: wire.network,
        max_attempts: wire.max_attempts,
        output_bytes: wire.output_bytes,
    }
}

impl From<core::LimitsPatch> for v1::Limits {
    fn from(limits: core::LimitsPatch) -> Self {
        Self {
            timeout_ms: limits.timeout_ms,
            memory_bytes: limits.memory_bytes,
            cpus: limits.cpus,
            max_pids: limits.max_pids,
            network: limits.network,
            max_attempts: limits.max_attempts,
            output_bytes: limits.output_bytes,
        }
    }
}

impl From<&core::Limits> for v1::Limits {
    fn from(limits: &core::Limits) -> Self {
        Self {
            timeout_ms: Some(limits.timeout_ms),
            memory_bytes: Some(limits.memory_bytes),
            cpus: Some(limits.cpus),
            max_pids: Some(limits.max_pids),
            network: Some(limits.network),
            max_attempts: Some(limits.max_attempts),
            output_bytes: Some(limits.output_bytes),
        }
    }
}

impl TryFrom<v1::JobSpec> for core::JobSpec {
    type Error = Error;

    fn try_from(wire: v1::JobSpec) -> Result<Self, Error> {
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let spec = Self {
            project: id(&wire.project, "project")?,
            name: wire.name,
            source: Source {
                git_url: wire.git_url,
                git_ref: or(wire.git_ref, Source::DEFAULT_REF),
                dockerfile: or(wire.dockerfile, Source::DEFAULT_DOCKERFILE),
            },
            command: command(wire.command),
            env: wire.env.into_iter().collect(),
            limits: limits_patch(wire.limits),
            reduce: wire.reduce.map(core::Reduce::try_from).transpose()?,
            priority: wire.priority,
            labels: wire.labels.into_iter().collect(),
        };
        spec.validate()?;
        Ok(spec)
    }
}

impl From<core::JobSpec> for v1::JobSpec {
    fn from(spec: core::JobSpec) -> Self {
        Self {
            project: spec.project.into(),
            name: spec.name,
            git_url: spec.source.git_url,
            git_ref: spec.source.git_ref,
            dockerfile: spec.source.dockerfile,
            command: spec.command.map(Into::into),
            env: spec.env.into_iter().collect(),
            limits: Some(spec.limits.into()),
            reduce: spec.reduce.map(Into::into),
            priority: spec.priority,
            labels: spec.labels.into_iter().collect(),
        }
    }
}

impl TryFrom<v1::Reduce> for core::Reduce {
    type Error = Error;

    fn try_from(wire: v1::Reduce) -> Result<Self, Error> {
        let command = command(wire.command).ok_or_else(|| {
            Error::new(Code::JobInvalid, "a reduce step needs a command").at("reduce.command")
        })?;
        let output = if wire.output.is_empty() { "answer".to_owned() } else { wire.output };
        let reduce = Self { command, output, limits: limits_patch(wire.limits) };
        reduce.validate()?;
        Ok(reduce)
    }
}

impl From<core::Reduce> for v1::Reduce {
    fn from(reduce: core::Reduce) -> Self {
        Self {
            command: Some(reduce.command.into()),
            output: reduce.output,
            limits: Some(reduce.limits.into()),
        }
    }
}

/// A task as submitted; checked against its job by [`core::TaskSpec::validate`].
impl TryFrom<v1::TaskSpec> for core::TaskSpec {
    type Error = Error;

    fn try_from(wire: v1::TaskSpec) -> Result<Self, Error> {
        let mut spec = Self::new(id(&wire.task_id, "id")?);
        spec.arg = wire.arg;
        spec.command = command(wire.command);
        spec.env = wire.env.into_iter().collect();
        spec.stdin = wire.stdin.to_vec();
        spec.limits = limits_patch(wire.limits);
        Ok(spec)
    }
}

impl From<core::TaskSpec> for v1::TaskSpec {
    fn from(spec: core::TaskSpec) -> Self {
        Self {
            task_id: spec.id.into(),
            arg: spec.arg,
            command: spec.command.map(Into::into),
            env: spec.env.into_iter().collect(),
            stdin: spec.stdin.into(),
            limits: Some(spec.limits.into()),
        }
    }
}

macro_rules! mirrored {
    ($core:ty, $wire:ty, $($variant:ident),*) => {
        impl From<$core> for $wire {
            fn from(value: $core) -> Self { match value { $(<$core>::$variant => Self::$variant,)* } }
        }
        impl TryFrom<$wire> for $core {
            type Error = Error;
            fn try_from(value: $wire) -> Result<Self, Error> {
                match value {
                    $(<$wire>::$variant => Ok(Self::$variant),)*
                    <$wire>::Unspecified => Err(Error::new(
                        Code::InvalidInput,
                        concat!("no value for ", stringify!($wire)),
                    )),
                }
            }
        }
    };
}

mirrored!(
    Outcome,
    v1::Outcome,
    Succeeded,
    Failed,
    TimedOut,
    OutOfMemory,
    BuildFailed,
    Cancelled,
    InfrastructureError
);
mirrored!(JobState, v1::JobState, Queued, Running, Paused, Reducing, Succeeded, Failed, Cancelled);

impl From<core::TaskResult> for v1::TaskResult {
    fn from(result: core::TaskResult) -> Self {
        Self {
            project: result.project.into(),
            job_id: result.job.into(),
            task_id: result.task.into(),
            attempt: result.attempt,
            outcome: v1::Outcome::from(result.outcome) as i32,
            exit_code: result.exit_code,
            signal: result.signal,
            stdout: result.stdout.into(),
            stderr: result.stderr.into(),
            stdout_truncated: result.stdout_truncated,
            stderr_truncated: result.stderr_truncated,
            started_at_ms: result.started_at,
            finished_at_ms: result.finished_at,
            phases: Some(result.phases.into()),
            worker: result.worker,
            commit: result.commit,
            image: result.image,
            message: result.message,
        }
    }
}

/// A worker whose clock is beyond every calendar has results all the same, and they are told with a time that can be read.
fn writable(at: Millis) -> Millis {
    at.clamp(*WRITABLE.start(), *WRITABLE.end())
}

impl TryFrom<v1::TaskResult> for core::TaskResult {
    type Error = Error;

    fn try_from(wire: v1::TaskResult) -> Result<Self, Error> {
        Ok(Self {
            outcome: wire.outcome().try_into()?,
            project: id::<ProjectName>(&wire.project, "project")?,
            job: id::<JobId>(&wire.job_id, "job_id")?,
            task: id::<TaskId>(&wire.task_id, "task_id")?,
            attempt: wire.attempt,
            exit_code: wire.exit_code,
            signal: wire.signal,
            stdout: wire.stdout.to_vec(),
            stderr: wire.stderr.to_vec(),
            stdout_truncated: wire.stdout_truncated,
            stderr_truncated: wire.stderr_truncated,
            started_at: writable(wire.started_at_ms),
            finished_at: writable(wire.finished_at_ms),
            phases: wire.phases.unwrap_or_default().into(),
            worker: wire.worker,
            commit: wire.commit,
            image: wire.image,
            message: wire.message,
        })
    }
}

impl From<Phases> for v1::Phases {
    fn from(phases: Phases) -> Self {
        Self {
            queued_ms: phases.queued,
            checkout_ms: phases.checkout,
            build_ms: phases.build,
            start_ms: phases.start,
            run_ms: phases.run,
        }
    }
}

impl From<v1::Phases> for Phases {
    fn from(wire: v1::Phases) -> Self {
        Self {
            queued: wire.queued_ms,
            checkout: wire.checkout_ms,
            build: wire.build_ms,
            start: wire.start_ms,
            run: wire.run_ms,
        }
    }
}

impl From<Quota> for v1::Quota {
    fn from(quota: Quota) -> Self {
        Self {
            queued_tasks: quota.queued_tasks,
            running_slots: quota.running_slots,
            result_bytes: quota.result_bytes,
        }
    }
}

impl From<v1::Quota> for Quota {
    fn from(wire: v1::Quota) -> Self {
        Self {
            queued_tasks: wire.queued_tasks,
            running_slots: wire.running_slots,
            result_bytes: wire.result_bytes,
        }
    }
}

impl From<core::job::TaskCounts> for v1::TaskCounts {
    fn from(counts: core::job::TaskCounts) -> Self {
        Self {
            total: counts.total,
            queued: counts.queued,
            running: counts.running,
            succeeded: counts.succeeded,
            failed: counts.failed,
            cancelled: counts.cancelled,
            retried: counts.retried,
        }
    }
}

/// What an assignment asks for: the token, whose it is, and the attempt with every limit set.
pub struct Assigned {
    /// The fencing token.
    pub token: LeaseToken,
    /// The tenant.
    pub project: ProjectName,
    /// The job.
    pub job: JobId,
    /// The task.
    pub task: TaskId,
    /// Which try, from 1.
    pub attempt: u32,
    /// How long the lease runs from when it was given: the worker counts from a moment that is certain to lie before that, not
    /// from when this arrived.
    pub lease_ms: u64,
    /// The pinned commit, where there is one.
    pub commit: Option<String>,
    /// How long the task waited.
    pub queued_ms: u64,
    /// What to run.
    pub spec: core::AttemptSpec,
}

impl From<Assigned> for v1::Assignment {
    fn from(assigned: Assigned) -> Self {
        let spec = assigned.spec;
        Self {
            token: assigned.token.into(),
            project: assigned.project.into(),
            job_id: assigned.job.into(),
            task_id: assigned.task.into(),
            attempt: assigned.attempt,
            lease_ms: assigned.lease_ms,
            git_url: spec.source.git_url,
            git_ref: spec.source.git_ref,
            commit: assigned.commit.unwrap_or_default(),
            dockerfile: spec.source.dockerfile,
            command: Some(spec.command.into()),
            env: spec.env.into_iter().collect(),
            stdin: spec.stdin.into(),
            stdin_from_results: spec.stdin_from_results,
            limits: Some((&spec.limits).into()),
            queued_ms: assigned.queued_ms,
        }
    }
}

impl TryFrom<v1::Assignment> for Assigned {
    type Error = Error;

    fn try_from(wire: v1::Assignment) -> Result<Self, Error> {
        let limits = limits_patch(wire.limits);
        limits.validate()?;
        let source = Source { git_url: wire.git_url, git_ref: wire.git_ref, dockerfile: wire.dockerfile };
        source.validate()?;
        let command = command(wire.command)
            .ok_or_else(|| Error::new(Code::InvalidInput, "an assignment without a command").at("command"))?;
        Ok(Self {
            token: id(&wire.token, "token")?,
            project: id(&wire.project, "project")?,
            job: id(&wire.job_id, "job_id")?,
            task: id(&wire.task_id, "task_id")?,
            attempt: wire.attempt,
            lease_ms: wire.lease_ms,
            commit: Some(wire.commit).filter(|commit| !commit.is_empty()),
            queued_ms: wire.queued_ms,
            spec: core::AttemptSpec {
                source,
                command,
                env: wire.env.into_iter().collect(),
                stdin: wire.stdin.to_vec(),
                stdin_from_results: wire.stdin_from_results,
                limits: limits.over(&core::Limits::default()),
            },
        })
    }
}
