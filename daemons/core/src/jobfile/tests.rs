use super::*;

fn read(json: &str) -> Result<(JobSpec, Vec<TaskSpec>), Error> {
    JobFile::from_json(json.as_bytes())?.job(None)
}

/// A job of project p with these keys added.
fn job(keys: &str) -> Result<(JobSpec, Vec<TaskSpec>), Error> {
    read(&format!(r#"{{"project": "p", "git": "https://h/count.git"{keys}}}"#))
}

fn ids(tasks: &[TaskSpec]) -> Vec<&str> {
    tasks.iter().map(|task| task.id.as_str()).collect()
}

#[test]
fn a_whole_job_reads_as_it_was_written() {
    let (spec, tasks) = job(r#", "ref": "main", "name": "words", "command": "count {}",
            "array": ["a-f", "g-m"], "env": {"LANG": "C", "N": 3},
            "limits": {"timeout": "10m", "memory": "512M", "cpus": 0.5, "attempts": 1},
            "reduce": {"command": ["merge", "-x"], "output": "counts.json", "limits": {"timeout": 90}}"#)
    .expect("valid");
    assert_eq!((spec.name.as_str(), spec.source.git_ref.as_str()), ("words", "main"));
    assert_eq!(spec.limits.timeout_ms, Some(600_000));
    assert_eq!(spec.limits.memory_bytes, Some(512 << 20));
    assert_eq!(spec.env["N"], "3");
    let reduce = spec.reduce.clone().expect("a reduce step");
    assert_eq!((reduce.output.as_str(), reduce.limits.timeout_ms), ("counts.json", Some(90_000)));
    assert_eq!(ids(&tasks), ["a-f", "g-m"]);
    let attempt = spec.attempt(&tasks[1], &crate::Limits::default());
    assert_eq!(attempt.command, Command::Shell("count g-m".into()));
}

#[test]
fn a_mistyped_key_is_refused_with_its_neighbour_at_any_depth() {
    for (keys, near) in [
        (r#", "comand": "x""#, "`command`"),
        (r#", "limits": {"timout": "1s"}"#, "`timeout`"),
        (r#", "reduce": {"comand": "x"}"#, "`command`"),
        (r#", "task": [{"ide": "1"}]"#, "`id`"),
    ] {
        let error = job(keys).expect_err(keys);
        assert_eq!(error.code, Code::JobUnknownField, "{keys}");
        assert!(error.hint.contains(near), "{keys}: {error}");
        assert_eq!(error.place, "line 1");
    }
}

#[test]
fn a_value_of_the_wrong_kind_says_what_was_expected() {
    for (keys, expected) in [
        (r#", "command": 3"#, "a command line"),
        (r#", "array": "1..9""#, "a range such as"),
        (r#", "array": "9-1""#, "begins after its end"),
        (r#", "array": "1-99999999999""#, "too long"),
        (r#", "limits": {"timeout": "soon"}"#, "a duration such as"),
    ] {
        let error = job(keys).expect_err(keys);
        assert!(error.message.contains(expected) && !error.message.contains("column"), "{keys}: {error}");
    }
}

#[test]
fn an_array_names_its_tasks_by_their_arguments_or_all_by_number() {
    let array = |array: &str| job(&format!(r#", "command": "x {{}}", "array": {array}"#)).expect("valid").1;
    assert_eq!(ids(&array(r#""8-11""#)), ["8", "9", "10", "11"]);
    assert_eq!(ids(&array(r#""08-10""#)), ["08", "09", "10"]);
    let spaced = array(r#"["a b", "c"]"#);
    assert_eq!(ids(&spaced), ["1", "2"]);
    assert_eq!(spaced[0].arg.as_deref(), Some("a b"));
    assert_eq!(ids(&array(r#"["x", "x"]"#)), ["1", "2"]);
}

#[test]
fn no_task_too_many_and_two_of_one_name_are_refused() {
    assert_eq!(job(r#", "command": "x", "task": []"#).expect_err("empty").code, Code::JobEmpty);
    let twice = job(r#", "command": "x", "task": [{"id": "a"}, {"id": "b"}, {"id": "a"}]"#);
    let error = twice.expect_err("duplicate");
    assert_eq!((error.code, error.place.as_str()), (Code::JobDuplicateTask, "tasks[2].id"));
    let mut file = JobFile {
        command: Some(Command::Shell("x".into())),
        task: Some(vec![TaskFile::default(); MAX_TASKS + 1]),
        ..JobFile::default()
    };
    assert_eq!(file.tasks().expect_err("too many").code, Code::JobTooManyTasks);
    assert_eq!(ids(&job(r#", "command": "x""#).expect("one task").1), ["1"]);
}

#[test]
fn what_is_missing_or_wrong_is_told_with_its_place() {
    let place = |json: &str| read(json).expect_err(json).place;
    assert_eq!(place(r#"{"git": "https://h/p", "command": "x"}"#), "project");
    assert_eq!(place(r#"{"project": "p", "command": "x"}"#), "git");
    assert_eq!(place(r#"{"project": "p", "git": "https://h/p"}"#), "tasks[0].command");
    assert_eq!(place(r#"{"project": "p", "push": "."}"#), "push");
    assert_eq!(job(r#", "command": "x", "reduce": {}"#).expect_err("no command").place, "reduce.command");
    let small = job(r#", "task": [{"command": "x"}, {"command": "x", "limits": {"memory": 1}}]"#);
    assert_eq!(small.expect_err("too small").place, "tasks[1].limits.memory");
}

#[test]
fn a_job_without_a_name_is_called_as_its_repository() {
    for (url, name) in [
        ("https://host/wordcount.git", "wordcount"),
        ("git@host:pi.git", "pi"),
        ("file:///srv/x/", "x"),
        ("https://host/.git", "job"),
    ] {
        assert_eq!(name_of(url), name, "{url}");
    }
}

#[test]
fn a_line_of_a_task_list_is_an_object_or_just_an_argument() {
    let spec = |line: &str| TaskFile::from_json(line).and_then(|task| task.spec(7));
    assert_eq!(spec(r#""a b""#).expect("a string").arg.as_deref(), Some("a b"));
    assert_eq!(spec(r#""a b""#).expect("a string").id.as_str(), "7");
    assert_eq!(spec("17").expect("a number").id.as_str(), "17");
    let full = spec(r#"{"id": 3, "arg": "x", "stdin": "in", "limits": {"cpus": 2}}"#).expect("an object");
    assert_eq!((full.id.as_str(), full.arg.as_deref(), full.limits.cpus), ("3", Some("x"), Some(2.0)));
    assert_eq!(spec(r#"{"identity": 3}"#).expect_err("unknown").code, Code::JobUnknownField);
    assert!(spec("[1]").is_err());
}

#[test]
fn the_zeros_of_a_range_are_bounded_since_each_task_has_them() {
    let error = array_range(&format!("{}1-1000000", "0".repeat(100_000))).expect_err("too many zeros");
    assert!(error.contains("expected a range") && error.len() < 500, "{error}");
    assert_eq!(array_range("008-010").expect("a range"), ["008", "009", "010"]);
}

#[test]
fn a_list_of_a_million_and_one_tasks_is_refused_without_being_read_to_its_end() {
    assert!(TOO_MANY_RULE.contains(&MAX_TASKS.to_string()));
    let list = |n: usize| format!("[{}{{}}]", "{},".repeat(n - 1));
    for (key, item) in [("task", "{}"), ("tasks", "{}"), ("array", "1")] {
        // What follows the bound is not even JSON.
        let text = format!("{{\"{key}\": [{}!", format!("{item},").repeat(MAX_TASKS + 1));
        let error = JobFile::from_json(text.as_bytes()).expect_err(key);
        assert_eq!(error.code, Code::JobTooManyTasks, "{key}: {error}");
        assert!(error.to_string().contains("split it"), "{error}");
    }
    let few = JobFile::from_json(format!("{{\"task\": {}}}", list(3)).as_bytes()).expect("valid");
    assert_eq!(few.task.map(|tasks| tasks.len()), Some(3));
    assert_eq!(JobFile::from_json(b"{\"task\": null}").expect("valid").task, None);
}

/// The bound, as the error says it.
const TOO_MANY_RULE: &str = "a job has at most 1000000 tasks";

#[test]
fn a_job_file_nested_a_hundred_thousand_deep_is_refused_and_nothing_overflows() {
    let deep = "[".repeat(100_000);
    for text in [
        deep.clone(),
        format!("{{\"env\": {deep}"),
        format!("{{\"task\": [{{\"arg\": {deep}"),
        format!("{{\"nosuch\": {deep}"),
    ] {
        JobFile::from_json(text.as_bytes()).expect_err("too deep");
        TaskFile::from_json(&text).expect_err("too deep");
    }
}
