//! What `submit` takes, and the job that it makes of it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use codering_core::{
    Code, Error, LimitsPatch, ProjectName,
    jobfile::{JobFile, LimitsFile, MAX_TASKS, TaskFile, array_range},
};

use crate::{
    jobfile::Written,
    verbs::{command_of, complete, limits::LimitArgs, words::harmless},
};

/// Submit a job: from a job file, from a list of tasks, or from a command.
///
/// A job file is TOML (or JSON, where its name ends so). What the options name goes over what it says.
/// `{}` in the command stands for the task's argument, as one word.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    coderingctl submit --push examples/wordcount --watch\n  \
    coderingctl submit --git https://host/pi.git --array 1-100 --memory 256M -- python3 pi.py --seed {}\n  \
    generate | coderingctl submit job.toml --tasks - --wait")]
pub struct Args {
    /// A job file, or a directory with a job.toml in it.
    #[arg(value_name = "FILE|DIR")]
    pub source: Option<PathBuf>,
    /// First commit the files of this directory to the job's git repository, and run that commit.
    ///
    /// The commit holds what the directory holds, without what its .gitignore names; it goes on top of
    /// the branch that --ref names, by default one of the job's own. A directory that did not change
    /// makes no new commit.
    #[arg(long, value_name = "DIR")]
    pub push: Option<PathBuf>,
    /// The tasks, one JSON a line: an object as a `[[task]]` table, or just its argument. `-` is stdin.
    #[arg(long, value_name = "FILE|-", conflicts_with = "array")]
    pub tasks: Option<PathBuf>,
    /// The git repository's address.
    #[arg(long, value_name = "URL")]
    pub git: Option<String>,
    /// A branch, tag or commit.
    #[arg(long = "ref", value_name = "REF")]
    pub git_ref: Option<String>,
    /// The Dockerfile's path in the repository.
    #[arg(long, value_name = "PATH")]
    pub dockerfile: Option<String>,
    /// One task for each number, such as 1-100.
    #[arg(long, value_name = "RANGE", value_parser = array)]
    pub array: Option<Arc<Vec<String>>>,
    /// The job's name.
    #[arg(long)]
    pub name: Option<String>,
    /// The project.
    #[arg(long, short, add = complete::projects())]
    pub project: Option<ProjectName>,
    /// A variable of every task's environment.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Only workers that have this label run it.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub label: Vec<(String, String)>,
    /// A shell line that reads the results as JSONL on its standard input; what it prints is the answer.
    #[arg(long, value_name = "COMMAND")]
    pub reduce: Option<String>,
    /// The name under which the answer is kept.
    #[arg(long, value_name = "NAME")]
    pub reduce_as: Option<String>,
    /// Higher first, where the queue backend knows priorities.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub priority: Option<i32>,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Submitting again with the same key in the same project answers with the first job.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Only say whether it is valid.
    #[arg(long, conflicts_with_all = ["wait", "watch"])]
    pub check: bool,
    /// Wait until the job ends; the exit code is 0 if it succeeded and 1 if not.
    #[arg(long, conflicts_with = "watch")]
    pub wait: bool,
    /// Wait, and show its progress.
    #[arg(long)]
    pub watch: bool,
    /// A program with its arguments, or one shell line in quotes.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// In one piece: a bare `Vec` would be taken for an option given several times.
fn array(text: &str) -> Result<Arc<Vec<String>>, String> {
    array_range(text).map(Arc::new)
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

/// A job as asked for, not yet pushed.
pub struct Asked {
    /// What the file and the options say; its `push` is taken out.
    pub written: Written,
    /// The directory to push first.
    pub push: Option<PathBuf>,
}

impl Args {
    /// Reads the job file and lays the options over it. The list of tasks is read by the caller.
    pub fn asked(&mut self) -> Result<Asked, Error> {
        let file = self.file()?;
        let mut written = match &file {
            Some(path) => Written::read(path)?,
            None if self.command.is_empty() && self.tasks.is_none() => {
                return Err(Error::new(Code::InvalidInput, "there is nothing to submit")
                    .hint("name a job file, a directory with a job.toml, or a command after `--`"));
            }
            None => Written::empty(),
        };
        let beside = file.as_deref().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default();
        let named = written.job.push.take().map(|push| beside.join(push));
        let push =
            self.push.take().or(named).map(|dir| if dir.as_os_str().is_empty() { ".".into() } else { dir });
        self.lay_over(&mut written.job);
        if written.job.name.is_none()
            && let Some(dir) = push.as_deref().and_then(|dir| dir.canonicalize().ok())
            && let Some(name) = dir.file_name()
        {
            written.job.name = Some(name.to_string_lossy().into_owned());
        }
        Ok(Asked { written, push })
    }

    /// The job file: the one named, or the `job.toml` of the directory named or pushed.
    fn file(&self) -> Result<Option<PathBuf>, Error> {
        let within = |dir: &Path| {
            ["job.toml", "job.json"].map(|name| dir.join(name)).into_iter().find(|path| path.exists())
        };
        match (&self.source, &self.push) {
            (Some(source), _) if source.is_dir() => match within(source) {
                Some(path) => Ok(Some(path)),
                None => Err(Error::new(Code::InvalidInput, "this directory has no job.toml")
                    .at(source.display().to_string())),
            },
            (Some(source), _) => Ok(Some(source.clone())),
            (None, Some(dir)) => match within(dir) {
                None if self.command.is_empty() => Err(Error::new(
                    Code::InvalidInput,
                    "this directory has no job.toml, and no command is named",
                )
                .at(dir.display().to_string())
                .hint("name a command after `--`, or write a job.toml: coderingctl submit --help")),
                found => Ok(found),
            },
            (None, None) => Ok(None),
        }
    }

    fn lay_over(&mut self, job: &mut JobFile) {
        fn over<T>(to: &mut Option<T>, from: Option<T>) {
            if from.is_some() {
                *to = from;
            }
        }
        over(&mut job.git, self.git.take());
        over(&mut job.git_ref, self.git_ref.take());
        over(&mut job.dockerfile, self.dockerfile.take());
        over(&mut job.name, self.name.take());
        over(&mut job.project, self.project.take());
        if let Some(array) = self.array.take() {
            (job.array, job.task) = (Some(array.as_ref().clone()), None);
        }
        if !self.command.is_empty() {
            job.command = Some(command_of(std::mem::take(&mut self.command)));
        }
        job.env.extend(self.env.drain(..));
        job.labels.extend(self.label.drain(..));
        job.priority = self.priority.unwrap_or(job.priority);
        if let Some(line) = self.reduce.take() {
            job.reduce.get_or_insert_default().command = Some(codering_core::Command::Shell(line));
        }
        if let Some(name) = self.reduce_as.take() {
            job.reduce.get_or_insert_default().output = Some(name);
        }
        let named = self.limits.patch();
        lay_limits(&mut job.limits, &named);
    }
}

fn lay_limits(to: &mut LimitsFile, named: &LimitsPatch) {
    to.timeout = named.timeout_ms.or(to.timeout);
    to.memory = named.memory_bytes.or(to.memory);
    to.cpus = named.cpus.or(to.cpus);
    to.pids = named.max_pids.or(to.pids);
    to.network = named.network.or(to.network);
    to.attempts = named.max_attempts.or(to.attempts);
    to.output = named.output_bytes.or(to.output);
}

fn too_many(name: &str) -> Error {
    Error::new(Code::JobTooManyTasks, format!("a job has at most {MAX_TASKS} tasks, and this list has more"))
        .at(format!("{name}:{}", MAX_TASKS + 1))
        .hint("split it into several jobs")
}

/// Reads a list of tasks, one JSON a line; empty lines are passed over.
pub fn read_tasks(from: impl std::io::BufRead, name: &str) -> Result<Vec<TaskFile>, Error> {
    let mut tasks = Vec::new();
    for (number, line) in from.lines().enumerate() {
        let place = || format!("{name}:{}", number + 1);
        let line = line.map_err(|error| {
            Error::new(Code::InvalidInput, format!("cannot be read: {error}")).at(place())
        })?;
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let task = TaskFile::from_json(line).map_err(|mut error| {
            error.hint = format!("{}\n{}", harmless(line), error.hint).trim_end().to_owned();
            error.at(place())
        })?;
        tasks.push(task);
        if tasks.len() > MAX_TASKS {
            return Err(too_many(name));
        }
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_in_a_list_of_tasks_is_told_with_its_line() {
        let tasks = read_tasks("{\"id\": \"a\"}\n\n\"x y\"\n7\n".as_bytes(), "-").expect("valid");
        assert_eq!(tasks.len(), 3);
        assert_eq!(tasks[1].arg.as_deref(), Some("x y"));
        let error =
            read_tasks("{\"id\": \"a\"}\n{\"idd\": 1}\n".as_bytes(), "tasks.jsonl").expect_err("unknown");
        assert_eq!((error.code, error.place.as_str()), (Code::JobUnknownField, "tasks.jsonl:2"));
        assert!(error.hint.ends_with("did you mean `id`?"), "{}", error.hint);
    }

    #[test]
    fn options_go_over_what_the_file_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = "project = \"p\"\nname = \"n\"\npush = \".\"\ncommand = \"a {}\"\narray = \"1-3\"\n\
            env = { A = \"1\", B = \"1\" }\n[limits]\nmemory = \"1G\"\ntimeout = \"1m\"\n[reduce]\ncommand = \"r\"\n";
        std::fs::write(dir.path().join("job.toml"), text).expect("written");
        let path = dir.path().display().to_string();
        let mut args =
            parsed(&["--push", &path, "--array", "5-6", "--env", "B=2", "--memory", "2G", "--", "b", "{}"]);
        let asked = args.asked().expect("valid");
        let job = asked.written.job;
        assert_eq!(asked.push, Some(dir.path().to_path_buf()));
        assert_eq!(job.array, Some(vec!["5".to_owned(), "6".to_owned()]));
        assert_eq!((job.env["A"].as_str(), job.env["B"].as_str()), ("1", "2"));
        assert_eq!((job.limits.memory, job.limits.timeout), (Some(2 << 30), Some(60_000)));
        assert_eq!(job.command, Some(codering_core::Command::Argv(vec!["b".into(), "{}".into()])));
        assert!(job.push.is_none() && job.reduce.is_some());
        let asked = parsed(&[&path]).asked().expect("valid");
        assert_eq!(asked.push, Some(dir.path().join(".")), "the file's own");
    }

    #[test]
    fn nothing_to_submit_says_what_could_be() {
        let error = parsed(&[]).asked().map(drop).expect_err("nothing");
        assert!(error.hint.contains("job.toml"), "{error}");
    }

    fn parsed(words: &[&str]) -> Args {
        use clap::{Args as _, FromArgMatches};
        let command = Args::augment_args(clap::Command::new("submit"));
        let words = std::iter::once("submit").chain(words.iter().copied());
        Args::from_arg_matches(&command.get_matches_from(words)).expect("parses")
    }
}
