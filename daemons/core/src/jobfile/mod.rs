//! A job as a person writes it, in TOML or JSON; the same as JSON is the body of `POST /api/v1/jobs`.
//!
//! [`JobFile`] is what the file says; [`JobFile::job`] makes of it what core and the broker work with,
//! and finds what no single key can tell: duplicate tasks, none, too many.

mod array;
mod read;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;

pub use array::range as array_range;
pub use read::explained;

use crate::{
    Code, Command, Error, JobSpec, LimitsPatch, ProjectName, Reduce, Source, TaskId, TaskSpec,
    units::{read_duration, read_size},
};

/// More tasks than this are no job, whatever a broker's own bound.
pub const MAX_TASKS: usize = 1_000_000;

/// A job as written. Every key is optional here; [`JobFile::job`] says what is missing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobFile {
    /// The tenant.
    pub project: Option<ProjectName>,
    /// For people.
    pub name: Option<String>,
    /// The repository's address.
    pub git: Option<String>,
    /// A directory, beside the job file, whose files are pushed to `git` first. For coderingctl alone.
    pub push: Option<String>,
    /// A branch, tag or commit.
    #[serde(rename = "ref")]
    pub git_ref: Option<String>,
    /// Its path in the repository.
    pub dockerfile: Option<String>,
    /// The command of tasks that name none.
    #[serde(deserialize_with = "read::command")]
    pub command: Option<Command>,
    /// `"1-100"`, or a list with one argument a task.
    #[serde(deserialize_with = "array::read")]
    pub array: Option<Vec<String>>,
    /// Environment of every task.
    #[serde(deserialize_with = "read::env")]
    pub env: BTreeMap<String, String>,
    /// Limits of every task.
    pub limits: LimitsFile,
    /// The last step.
    pub reduce: Option<ReduceFile>,
    /// The tasks one by one.
    #[serde(alias = "tasks", deserialize_with = "read::tasks")]
    pub task: Option<Vec<TaskFile>>,
    /// Higher first, where the queue backend knows priorities.
    pub priority: i32,
    /// Only workers with all of these labels run it.
    #[serde(deserialize_with = "read::env")]
    pub labels: BTreeMap<String, String>,
}

/// Limits as written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsFile {
    /// `"10m"`, or seconds.
    #[serde(deserialize_with = "read_duration")]
    pub timeout: Option<u64>,
    /// `"512M"`, or bytes.
    #[serde(deserialize_with = "read_size")]
    pub memory: Option<u64>,
    /// Cores.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Whether there is a network.
    pub network: Option<bool>,
    /// Failures of the user's own before a task is failed.
    pub attempts: Option<u32>,
    /// Bytes kept of each stream: `"1M"`, or bytes.
    #[serde(deserialize_with = "read_size")]
    pub output: Option<u64>,
}

impl LimitsFile {
    /// As core's words.
    pub fn patch(&self) -> LimitsPatch {
        LimitsPatch {
            timeout_ms: self.timeout,
            memory_bytes: self.memory,
            cpus: self.cpus,
            max_pids: self.pids,
            network: self.network,
            max_attempts: self.attempts,
            output_bytes: self.output,
        }
    }
}

/// The reduce step as written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReduceFile {
    /// Reads the results as JSONL on its standard input.
    #[serde(deserialize_with = "read::command")]
    pub command: Option<Command>,
    /// The answer's name.
    pub output: Option<String>,
    /// Limits of its own.
    pub limits: LimitsFile,
}

/// One task as written: a `[[task]]` table, or a line of JSON.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskFile {
    /// Its id; the argument where that may be an id, else its number from 1.
    #[serde(deserialize_with = "read::scalar")]
    pub id: Option<String>,
    /// Stands for `{}` in the job's command; the id when absent.
    #[serde(deserialize_with = "read::scalar")]
    pub arg: Option<String>,
    /// Instead of the job's.
    #[serde(deserialize_with = "read::command")]
    pub command: Option<Command>,
    /// Over the job's.
    #[serde(deserialize_with = "read::env")]
    pub env: BTreeMap<String, String>,
    /// Its standard input, as text.
    pub stdin: String,
    /// Over the job's.
    pub limits: LimitsFile,
}

impl TaskFile {
    /// A line of a task list: an object, or a string or number that is the task's argument.
    pub fn from_json(line: &str) -> Result<Self, Error> {
        let read = |error: serde_json::Error| explained(&error.to_string());
        if line.starts_with(['"', '-']) || line.starts_with(|c: char| c.is_ascii_digit()) {
            let value: serde_json::Value = serde_json::from_str(line).map_err(read)?;
            let arg = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            return Ok(Self { arg: Some(arg), ..Self::default() });
        }
        if !line.starts_with('{') {
            return Err(Error::new(
                Code::InvalidJson,
                "a task is a JSON object, or a string or number that is its argument",
            ));
        }
        serde_json::from_str(line).map_err(read)
    }

    /// `number` counts the job's tasks from 1.
    fn spec(self, number: usize) -> Result<TaskSpec, Error> {
        let id = match (self.id, &self.arg) {
            (Some(id), _) => TaskId::new(id).map_err(|error| error.at("id"))?,
            (None, Some(arg)) => id_of(arg).map_or_else(|| TaskId::new(number.to_string()), Ok)?,
            (None, None) => TaskId::new(number.to_string())?,
        };
        let mut spec = TaskSpec::new(id);
        spec.arg = self.arg.filter(|arg| arg != spec.id.as_str());
        spec.command = self.command;
        spec.env = self.env;
        spec.stdin = self.stdin.into_bytes();
        spec.limits = self.limits.patch();
        Ok(spec)
    }
}

/// The argument as a task's id, where it may be one.
fn id_of(arg: &str) -> Option<TaskId> {
    TaskId::new(arg).ok().filter(|id| !id.is_reserved())
}

impl JobFile {
    /// From JSON. The error names the key, the line, and the key that was probably meant.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(text).map_err(|error| {
            let mut explained = explained(&error.to_string());
            if explained.place.is_empty() && error.line() > 0 {
                explained.place = format!("line {}", error.line());
            }
            explained
        })
    }

    /// The job and its tasks, all of it checked. `fallback` is the project of a file that names none.
    pub fn job(mut self, fallback: Option<&ProjectName>) -> Result<(JobSpec, Vec<TaskSpec>), Error> {
        if self.push.is_some() {
            return Err(Error::new(
                Code::JobInvalid,
                "`push` is for coderingctl, which can read the directory",
            )
            .at("push")
            .hint("push the files yourself and name the repository in `git`"));
        }
        let tasks = self.tasks()?;
        let job = self.spec(fallback)?;
        for (number, task) in tasks.iter().enumerate() {
            task.validate(&job).map_err(|error| in_task(error, number))?;
        }
        Ok((job, tasks))
    }

    fn spec(self, fallback: Option<&ProjectName>) -> Result<JobSpec, Error> {
        let missing = |key: &str, what: &str| Error::new(Code::JobInvalid, what.to_owned()).at(key);
        let project = self.project.or_else(|| fallback.cloned()).ok_or_else(|| {
            missing("project", "a job belongs to a project").hint("name it: project = \"NAME\"")
        })?;
        let git_url = self.git.ok_or_else(|| {
            missing("git", "a job names the git repository that its image is built from")
                .hint("git = \"https://host/repository.git\"")
        })?;
        let reduce = match self.reduce {
            None => None,
            Some(written) => Some(Reduce {
                command: written
                    .command
                    .ok_or_else(|| missing("reduce.command", "a reduce step needs a command"))?,
                output: written.output.unwrap_or_else(|| "answer".into()),
                limits: written.limits.patch(),
            }),
        };
        let job = JobSpec {
            project,
            name: self.name.unwrap_or_else(|| name_of(&git_url)),
            source: Source {
                git_url,
                git_ref: self.git_ref.unwrap_or_else(|| Source::DEFAULT_REF.into()),
                dockerfile: self.dockerfile.unwrap_or_else(|| Source::DEFAULT_DOCKERFILE.into()),
            },
            command: self.command,
            env: self.env,
            limits: self.limits.patch(),
            reduce,
            priority: self.priority,
            labels: self.labels,
        };
        job.validate()?;
        Ok(job)
    }

    /// The tasks, with ids that differ; one task where neither an array nor tasks are named.
    fn tasks(&mut self) -> Result<Vec<TaskSpec>, Error> {
        let written = match (self.array.take(), self.task.take()) {
            (Some(_), Some(_)) => {
                return Err(Error::new(Code::JobInvalid, "a job has an array or tasks of its own, not both")
                    .at("array"));
            }
            (None, None) => vec![TaskFile::default()],
            (None, Some(tasks)) => tasks,
            (Some(args), None) => {
                // Ids of one kind: all of them the arguments, or all of them numbers.
                let mut seen = HashSet::new();
                let named = args.iter().all(|arg| id_of(arg).is_some() && seen.insert(arg.as_str()));
                let id = |number: usize| (!named).then(|| (number + 1).to_string());
                let task = |(number, arg)| TaskFile { id: id(number), arg: Some(arg), ..TaskFile::default() };
                args.into_iter().enumerate().map(task).collect()
            }
        };
        if written.is_empty() {
            return Err(Error::new(Code::JobEmpty, "the job has no task")
                .hint("name tasks, or an array, or neither for one task"));
        }
        if written.len() > MAX_TASKS {
            return Err(read::too_many(&format!(
                "a job has at most {MAX_TASKS} tasks, this one {}",
                written.len()
            )));
        }
        let mut tasks = Vec::with_capacity(written.len());
        let mut first = HashMap::with_capacity(written.len());
        for (number, task) in written.into_iter().enumerate() {
            let task = task.spec(number + 1).map_err(|error| in_task(error, number))?;
            if let Some(before) = first.insert(task.id.clone(), number) {
                return Err(Error::new(
                    Code::JobDuplicateTask,
                    format!("tasks {} and {} are both `{}`", before + 1, number + 1, task.id),
                )
                .at(format!("tasks[{number}].id"))
                .hint("give each task an `id` of its own"));
            }
            tasks.push(task);
        }
        Ok(tasks)
    }
}

fn in_task(mut error: Error, number: usize) -> Error {
    error.place = match error.place.as_str() {
        "" => format!("tasks[{number}]"),
        place => format!("tasks[{number}].{place}"),
    };
    error
}

/// The repository's name: what follows the last slash or colon, without `.git`.
fn name_of(git_url: &str) -> String {
    let path = git_url.trim_end_matches('/');
    let last = path.rsplit(['/', ':']).next().unwrap_or_default();
    let name = last.strip_suffix(".git").unwrap_or(last);
    if name.is_empty() { "job".into() } else { name.chars().take(100).collect() }
}
