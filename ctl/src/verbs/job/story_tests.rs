//! The page of a job, for each kind of end.

use codering_proto::v1::{Attempt, Command, TaskCounts, TaskState, command::Kind};

use super::*;

const NOW: Millis = 1_795_260_000_000;

fn job(state: JobState, counts: TaskCounts) -> Job {
    Job {
        job_id: "j-01jd8qabcd".into(),
        project: "demo".into(),
        name: "pi".into(),
        state: state as i32,
        tasks: Some(counts),
        created_at_ms: NOW - 300_000,
        started_at_ms: NOW - 299_000,
        finished_at_ms: NOW - 200_000,
        submitted_by: "ci".into(),
        git_url: "https://u:hidden@host/pi.git".into(),
        git_ref: "main".into(),
        commit: "3f2a9c1d00aa".into(),
        command: Some(Command { kind: Some(Kind::Shell("python3 pi.py --seed {}".into())) }),
        ..Default::default()
    }
}

fn story(job: Job) -> Story {
    Story {
        job,
        builds: Vec::new(),
        sample: Vec::new(),
        failed_tasks: Vec::new(),
        running_tasks: Vec::new(),
        reduce_task: None,
        workers_connected: None,
    }
}

fn failed_task(id: &str, stderr: &str) -> Task {
    Task {
        job_id: "j-01jd8qabcd".into(),
        task_id: id.into(),
        state: TaskState::Done as i32,
        outcome: Outcome::Failed as i32,
        attempt: 3,
        worker: "w1".into(),
        attempts: vec![Attempt::default()],
        result: Some(TaskResult {
            exit_code: Some(1),
            stderr: stderr.as_bytes().to_vec().into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn a_failed_job_shows_the_last_lines_of_its_failed_tasks_and_how_to_run_them_again() {
    let counts = TaskCounts { total: 100, succeeded: 93, failed: 7, ..Default::default() };
    let mut story = story(job(JobState::Failed, counts));
    let output: String = (1..=30).map(|n| format!("line {n}\n")).collect();
    story.failed_tasks = vec![failed_task("17", &output), failed_task("23", "\x1b[2Jboom\n")];
    let page = story.lines(NOW).join("\n");
    for expected in [
        "failed: 7 of 100 tasks failed",
        "by ci, 5m ago",
        "@host/pi.git  main at 3f2a9c1",
        "100: 93 succeeded, 7 failed",
        "failed tasks (the first 2 of 7)",
        "17  failed, exit code 1, attempt 3 on w1",
        "| line 30",
        "coderingctl job retry j-01jd8qabcd",
        "coderingctl task list j-01jd8qabcd --failed",
        "coderingctl task logs j-01jd8qabcd/17",
    ] {
        assert!(page.contains(expected), "no `{expected}` in\n{page}");
    }
    assert!(!page.contains("line 24\n") && page.contains("line 25\n"), "{page}");
    for never in ["hidden", "\x1b", "job cancel", "coderingctl watch"] {
        assert!(!page.contains(never), "`{never}` in\n{page}");
    }
}

#[test]
fn a_build_that_failed_every_task_is_told_once() {
    let counts = TaskCounts { total: 3, failed: 3, ..Default::default() };
    let mut story = story(job(JobState::Failed, counts));
    let failed = |id: &str, stderr: &str| {
        let mut task = failed_task(id, stderr);
        task.outcome = Outcome::BuildFailed as i32;
        let message = "demo.git at 3f2a9c1, Dockerfile step 2 of 2: RUN make: it returned 2".into();
        task.result = task.result.map(|result| TaskResult { exit_code: None, message, ..result });
        task
    };
    story.failed_tasks = vec![failed("1", "make: no rule\n"), failed("2", ""), failed("3", "")];
    let page = story.lines(NOW).join("\n");
    assert_eq!(page.matches("step 2 of 2").count(), 1, "{page}");
    assert!(page.contains("| make: no rule") && page.contains("2, 3  the same"), "{page}");
    assert!(page.contains("job logs j-01jd8qabcd --build"), "{page}");
}

#[test]
fn a_job_that_is_tried_again_says_why_and_not_that_it_waits_for_a_slot() {
    let mut held_up = job(JobState::Queued, TaskCounts { total: 1, queued: 1, ..Default::default() });
    held_up.message = "the git host cannot be reached".into();
    let page = story(held_up).lines(NOW).join("\n");
    assert!(page.contains("queued: will be tried again\nwhy        the git host cannot"), "{page}");
}

#[test]
fn a_queued_job_without_a_worker_says_so_and_names_the_commands_that_help() {
    let counts = TaskCounts { total: 4, queued: 4, ..Default::default() };
    let mut waiting = job(JobState::Queued, counts);
    (waiting.started_at_ms, waiting.finished_at_ms, waiting.commit) = (0, 0, String::new());
    let mut story = story(waiting);
    story.workers_connected = Some(0);
    let page = story.lines(NOW).join("\n");
    for expected in
        ["no worker takes tasks", "coderingctl worker list", "job cancel", "so far: no task has started"]
    {
        assert!(page.contains(expected), "no `{expected}` in\n{page}");
    }
}

#[test]
fn each_phase_has_a_line_with_its_time() {
    let counts = TaskCounts { total: 3, succeeded: 3, ..Default::default() };
    let mut story = story(job(JobState::Succeeded, counts));
    story.builds = vec![Build {
        worker: "w2".into(),
        image: "codering/demo:1".into(),
        succeeded: true,
        took_ms: 14_100,
        steps: 3,
        cached_steps: 2,
        ..Default::default()
    }];
    let result = |run_ms| TaskResult {
        phases: Some(Phases { checkout_ms: 300, start_ms: 200, run_ms, ..Default::default() }),
        ..Default::default()
    };
    story.sample = vec![result(9000), result(2000), result(1000)];
    let page = story.lines(NOW).join("\n");
    for expected in [
        "queued         1.0s  from the submit",
        "build           14s  of the image, on w2, 2 of 3 steps cached",
        "run            2.0s  a task (median of 3)",
        "altogether   1m 39s",
        "image      codering/demo:1",
        "coderingctl reduce j-01jd8qabcd -- COMMAND",
    ] {
        assert!(page.contains(expected), "no `{expected}` in\n{page}");
    }
}
