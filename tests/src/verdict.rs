//! What has to hold of a job after whatever fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{Ctl, wait_for};

/// Submits a job of `tasks` tasks for simulated workers, in the project `demo`; each prints its number after `pause`.
pub fn submit_numbers(ctl: &Ctl, tasks: usize, pause: &str) -> String {
    submit_line(ctl, "https://localhost/none.git", tasks, &format!("sleep {pause}; echo {{}}"), &[])
}

/// Submits `tasks` tasks of one shell line in an image of this repository.
pub fn submit_line(ctl: &Ctl, git: &str, tasks: usize, line: &str, more: &[&str]) -> String {
    let array = format!("1-{tasks}");
    let mut args = vec!["submit", "--project", "demo", "--git", git, "--array", &array];
    args.extend(more);
    args.extend(["--", line]);
    let job = ctl.json(&args);
    job["job_id"].as_str().unwrap_or_else(|| panic!("no job_id in {job}")).to_owned()
}

/// Waits until all tasks have succeeded. Between one success and the next no more than `longest` may pass.
pub fn assert_goes_on(ctl: &Ctl, job: &str, tasks: usize, longest: Duration) {
    let (mut done, mut since) = (ctl.succeeded_tasks(job), Instant::now());
    while done < tasks as u64 {
        std::thread::sleep(Duration::from_millis(200));
        let now = ctl.succeeded_tasks(job);
        if now > done {
            (done, since) = (now, Instant::now());
        }
        assert!(
            since.elapsed() < longest,
            "{done} of {tasks} tasks, and nothing more for {} s\n{}",
            longest.as_secs(),
            ctl.log()
        );
    }
}

/// Waits until so many tasks of the job have succeeded.
pub fn wait_for_successes(ctl: &Ctl, job: &str, count: u64) {
    wait_for(&format!("{count} tasks succeeded"), Duration::from_secs(120), || {
        (ctl.succeeded_tasks(job) >= count).then_some(())
    });
}

/// Exactly one result is recorded for each of the tasks 1 to `tasks`, and it is theirs.
pub fn assert_one_result_each(ctl: &Ctl, job: &str, tasks: usize) -> Vec<Value> {
    let results = ctl.results(job);
    let named: BTreeSet<usize> =
        results.iter().map(|result| result["stdout"].as_str().unwrap().trim().parse().unwrap()).collect();
    assert_eq!(named, (1..=tasks).collect(), "each task's own result");
    assert_eq!(results.len(), tasks, "one result a task");
    for result in &results {
        assert_eq!(result["outcome"], "succeeded", "{result}");
    }
    results
}

/// `demo.done` carries each recorded result of the job at least once, and whenever it does, as it is recorded.
pub fn assert_done_carries(ctl: &Ctl, job: &str, results: &[Value]) {
    let recorded: BTreeMap<&str, &Value> =
        results.iter().map(|result| (result["task_id"].as_str().unwrap(), result)).collect();
    let mut seen = BTreeSet::new();
    wait_for("each result is on demo.done", Duration::from_secs(60), || {
        for message in ctl.take_all("demo.done").iter().filter(|message| message["job_id"] == job) {
            let task = message["task_id"].as_str().unwrap().to_owned();
            let result = recorded.get(&*task).unwrap_or_else(|| panic!("no such task: {message}"));
            for key in ["attempt", "outcome", "stdout", "worker", "started_at", "finished_at", "exit_code"] {
                assert_eq!(message[key], result[key], "{key} of {message}");
            }
            seen.insert(task);
        }
        (seen.len() == recorded.len()).then_some(())
    });
}
