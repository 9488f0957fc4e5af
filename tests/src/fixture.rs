//! Jobs for tests: the examples, small ones made on the fly, and git repositories.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{repository, run};

/// A directory of `examples/`.
pub fn example(name: &str) -> PathBuf {
    repository().join("examples").join(name)
}

/// The answer that an example's `check.py` computes by one process from the text in the base image.
pub fn wordcount_expected() -> serde_json::Value {
    let script = fs::read_to_string(example("wordcount").join("check.py")).unwrap();
    let mut docker = Command::new("docker");
    docker.args(["run", "--rm", "--network", "none", "codering/base", "python3", "-c", &script]);
    let ran = run(&mut docker, Duration::from_secs(60));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    serde_json::from_slice(&ran.stdout).unwrap()
}

/// A job of `tasks` tasks that each square their number after `seconds`; its answer is the squares, sorted, and their sum.
pub fn squares(into: &Path, tasks: u32, seconds: f32) -> PathBuf {
    let directory = into.join(format!("squares-{tasks}"));
    fs::create_dir_all(&directory).unwrap();
    let write = |name: &str, text: &str| fs::write(directory.join(name), text).unwrap();
    write("Dockerfile", "FROM codering/base\nWORKDIR /app\nCOPY collect.py ./\n");
    write(
        "collect.py",
        "import json, sys\n\
         parts = sorted(int(json.loads(line)['stdout']) for line in sys.stdin)\n\
         print(json.dumps({'squares': parts, 'sum': sum(parts)}))\n",
    );
    write(
        "job.toml",
        &format!(
            "project = 'demo'\nname = 'squares'\npush = '.'\narray = '1-{tasks}'\n\
             command = 'sleep {seconds}; number={{}}; echo $((number * number))'\n\
             [limits]\ntimeout = '1m'\nmemory = '64M'\n\
             [reduce]\ncommand = 'python3 collect.py'\noutput = 'squares.json'\n"
        ),
    );
    directory
}

/// The answer of [`squares`].
pub fn squares_expected(tasks: u32) -> serde_json::Value {
    let squares: Vec<_> = (1..=tasks).map(|number| number * number).collect();
    serde_json::json!({ "sum": squares.iter().sum::<u32>(), "squares": squares })
}

/// A git repository with these files in one commit; its `file://` address.
pub fn git_repository(at: &Path, files: &[(&str, &str)]) -> String {
    fs::create_dir_all(at).unwrap();
    for (name, text) in files {
        fs::write(at.join(name), text).unwrap();
    }
    let author = ["-c", "user.name=Tester", "-c", "user.email=tester@localhost"];
    for step in [&["init", "--quiet"][..], &["add", "--all"], &["commit", "--quiet", "--message=Start"]] {
        let ran = run(
            Command::new("git").args(author).args(step).current_dir(at).env("GIT_CONFIG_GLOBAL", "/dev/null"),
            Duration::from_secs(30),
        );
        assert_eq!(ran.code, Some(0), "git {step:?}: {}", ran.stderr);
    }
    format!("file://{}", at.display())
}
