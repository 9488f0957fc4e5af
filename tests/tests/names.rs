//! Wherever a name is taken: slashes, `..`, NUL, 10,000 characters and marks that reorder a line are refused with the
//! rule, name nothing, and reach no terminal.

use std::time::Duration;

use codering_tests::{Backend, Fleet, Ran, Setup, rest};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

fn evil() -> Vec<String> {
    let long = "x".repeat(10_000);
    let texts = [
        "a/b",
        "../x",
        "..",
        "a\0b",
        long.as_str(),
        "\u{202e}gpj.exe",
        "a\u{200f}b",
        "\u{1b}[2Jx",
        "\u{9b}31mx",
        "a\nb",
    ];
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn steers(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn refused(ran: &Ran, of: &str) {
    assert!(matches!(ran.code, Some(2 | 3)), "{of:?}: {:?} {}", ran.code, ran.stderr);
    let all = format!("{}{}", String::from_utf8_lossy(&ran.stdout), ran.stderr);
    assert!(!all.contains(steers), "{of:?}: {all:?}");
}

/// Every byte of it as `%XX`.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn job_with(change: impl FnOnce(&mut Value)) -> Value {
    let mut job = json!({"project": "demo", "git": "https://h/p.git", "command": "x"});
    change(&mut job);
    job
}

/// What there is of what has a name.
fn inventory(fleet: &Fleet) -> Value {
    let lists = [
        &["project", "list"][..],
        &["queue", "list"],
        &["job", "list"],
        &["token", "list"],
        &["worker", "list"],
    ];
    Value::Array(lists.iter().map(|args| fleet.json(args)).collect())
}

#[test]
fn a_name_that_could_harm_is_refused_over_rest_with_the_rule_and_names_nothing() {
    let fleet = Fleet::start(Setup::simulated(Backend::Embedded, 0, 1));
    // So that using the token counts the same before and after.
    rest::call(&fleet, "GET", "/api/v1/projects", None);
    let before = inventory(&fleet);
    for name in evil() {
        let bodies = [
            ("/api/v1/projects", json!({"name": name})),
            ("/rabbit", json!({"name": name})),
            ("/rabbit", json!({"name": format!("demo.{name}")})),
            ("/api/v1/tokens", json!({"name": "t", "role": "viewer", "projects": [name]})),
            ("/api/v1/tokens", json!({"name": "t", "role": name})),
            ("/api/v1/jobs", job_with(|job| job["project"] = json!(name))),
            ("/api/v1/jobs", job_with(|job| job["git"] = json!(name))),
            ("/api/v1/jobs", job_with(|job| job["dockerfile"] = json!(format!("../{name}")))),
            ("/api/v1/jobs", job_with(|job| job["ref"] = json!(format!("{name}/..")))),
            ("/api/v1/jobs", job_with(|job| job["task"] = json!([{"id": name}]))),
            ("/api/v1/jobs", job_with(|job| job["env"] = json!({format!("{name}="): "x"}))),
            ("/api/v1/jobs", job_with(|job| job["reduce"] = json!({"command": "r", "output": name}))),
            ("/api/v1/projects/demo/dead/requeue", json!({"ids": "x", name.clone(): 1})),
        ];
        for (path, body) in bodies {
            let (status, answer) = rest::call(&fleet, "POST", path, Some(body.to_string().as_bytes()));
            assert!((400..500).contains(&status), "{path} {name:?}: {status} {answer}");
            let problem: Value =
                serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{path}: {e} in {answer}"));
            assert!(problem["code"].is_string() && problem["detail"].is_string(), "{answer}");
            assert!(answer.len() < 2000, "{path}: an error of {} bytes", answer.len());
            assert!(!answer.contains(steers), "{path}: {answer:?}");
        }
        // What may have a slash or dots in it, but steers nobody.
        if name.contains(steers) || name.len() > 1000 {
            for change in [
                json!({"name": name}),
                json!({"labels": {"gpu": name}}),
                json!({"labels": {name.clone(): "x"}}),
            ] {
                let job =
                    job_with(|job| job.as_object_mut().unwrap().extend(change.as_object().unwrap().clone()));
                let (status, answer) =
                    rest::call(&fleet, "POST", "/api/v1/jobs", Some(job.to_string().as_bytes()));
                assert_eq!(status, 400, "{change}: {answer}");
                assert!(answer.len() < 2000 && !answer.contains(steers), "{answer:?}");
            }
        }
        let name = encoded(&name);
        for (method, path) in [
            ("GET", format!("/rabbit/{name}")),
            ("GET", format!("/api/v1/projects/{name}")),
            ("DELETE", format!("/api/v1/projects/{name}")),
            ("DELETE", format!("/api/v1/queues/{name}")),
            ("POST", format!("/api/v1/queues/{name}/purge")),
            ("GET", format!("/api/v1/jobs/{name}")),
            ("GET", format!("/api/v1/jobs/{name}/tasks/{name}/logs")),
            ("GET", format!("/api/v1/workers/{name}")),
            ("POST", format!("/api/v1/workers/{name}/revoke")),
            ("POST", format!("/api/v1/tokens/{name}/revoke")),
            ("GET", format!("/api/v1/jobs?project={name}")),
            ("GET", format!("/api/v1/jobs?page_token={name}")),
        ] {
            let (status, answer) = rest::call(&fleet, method, &path, None);
            assert!((400..500).contains(&status), "{method} {path}: {status} {answer}");
            assert!(answer.len() < 2000 && !answer.contains(steers), "{method} {path}: {answer:?}");
        }
    }
    assert_eq!(without_times(inventory(&fleet)), without_times(before));
    fleet.stop();
}

/// When a token was last used is none of this test's business.
fn without_times(mut inventory: Value) -> Value {
    for list in inventory.as_array_mut().unwrap() {
        for item in list.as_array_mut().unwrap() {
            item.as_object_mut().unwrap().retain(|key, _| !key.contains("last_used"));
        }
    }
    inventory
}

#[test]
fn a_name_that_could_harm_is_refused_on_the_command_line_and_over_grpc_and_names_nothing() {
    let fleet = Fleet::start(Setup::simulated(Backend::Embedded, 0, 1));
    let before = without_times(inventory(&fleet));
    // No argument holds a NUL.
    for name in evil().into_iter().filter(|name| !name.contains('\0')) {
        let name = name.as_str();
        let demo = format!("demo.{name}");
        let task = format!("j-0000000000/{name}");
        let git = ["submit", "--git", "https://h/p.git"];
        let submit = |more: &[&str]| fleet.try_ctl(&[&git[..], more, &["--", "x"]].concat(), MINUTE);
        for args in [
            &["project", "create", name][..],
            &["project", "show", name],
            &["project", "delete", name, "--yes"],
            &["queue", "create", name],
            &["queue", "create", &demo],
            &["queue", "get", name],
            &["queue", "put", name, "1"],
            &["queue", "dead", "list", name],
            &["worker", "show", name],
            &["worker", "revoke", name, "--yes"],
            &["token", "create", "--role", "viewer", "--project", name],
            &["token", "revoke", name, "--yes"],
            &["job", "show", name],
            &["watch", name],
            &["results", name],
            &["task", "show", name],
            &["task", "show", &task],
            &["task", "logs", &task],
        ] {
            refused(&fleet.try_ctl(args, MINUTE), &args.join(" "));
        }
        for more in [&["--project", name][..], &["--ref", name], &["--reduce", "r", "--reduce-as", name]] {
            if more != ["--ref", "a/b"] {
                refused(&submit(more), &more.join(" "));
            }
        }
        if name.contains(steers) || name.contains('\n') || name.len() > 1000 {
            let label = format!("gpu={name}");
            for more in [&["--name", name][..], &["--label", &label]] {
                refused(&submit(more), &more.join(" "));
            }
            refused(&fleet.try_ctl(&["token", "create", "--role", "viewer", "--name", name], MINUTE), name);
        }
    }
    assert_eq!(without_times(inventory(&fleet)), before);
    fleet.stop();
}

#[test]
fn what_a_task_writes_reaches_its_user_as_it_is_and_nobodys_terminal_raw() {
    let fleet = Fleet::start(Setup::simulated(Backend::Embedded, 1, 1));
    let line = "echo \u{1b}]0,title\u{7}\u{1b}[2J\u{202e}x\u{9b}31m";
    let submit = ["submit", "--quiet", "--git", "https://h/p.git", "--array", "1-2", "--", line];
    let job = String::from_utf8(fleet.ctl(&submit)).unwrap();
    let job = job.trim();
    fleet.succeeded(job, MINUTE);
    let task = format!("{job}/1");
    for args in [
        &["results", job][..],
        &["results", job, "--output", "jsonl"],
        &["job", "show", job],
        &["task", "show", &task],
        &["task", "list", job],
        &["watch", job],
        &["history"],
    ] {
        let ran = fleet.try_ctl(args, MINUTE);
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
        let all = format!("{}{}", ran.text(), ran.stderr);
        assert!(!all.contains(steers), "{args:?}: {all:?}");
    }
    // The data itself is the user's own.
    let wrote = format!("{}\n", line.strip_prefix("echo ").unwrap());
    assert_eq!(fleet.ctl(&["task", "logs", &task]), wrote.as_bytes());
    assert_eq!(fleet.results(job)[0]["stdout"], wrote);
    fleet.stop();
}

#[test]
fn json_nested_a_hundred_thousand_deep_is_refused_by_every_route_that_takes_a_body() {
    let fleet = Fleet::start(Setup::simulated(Backend::Embedded, 0, 1));
    let (_, document) = rest::call(&fleet, "GET", "/api/v1/openapi.json", None);
    let document: Value = serde_json::from_str(&document).unwrap();
    let brackets = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let within = |key: &str| [format!("{{\"{key}\": ").as_bytes(), &brackets, b"}"].concat();
    let mut tried = 0;
    for (path, verbs) in document["paths"].as_object().unwrap() {
        for (verb, described) in verbs.as_object().unwrap() {
            if described["requestBody"].is_null() {
                continue;
            }
            let path = path.replace("{queue}", "demo.todo").replace("{project}", "demo");
            let path = path.replace("{job}", "j-0000000000").replace("{task}", "1");
            for body in [
                brackets.clone(),
                b"{\"a\":".repeat(100_000),
                within("name"),
                within("env"),
                within("nosuch"),
            ] {
                let (status, answer) = rest::call(&fleet, &verb.to_uppercase(), &path, Some(&body));
                // A queue takes any JSON, which nobody has to read to carry it.
                let carried = path == "/rabbit/demo.todo" && status == 201;
                assert!(carried || (400..500).contains(&status), "{verb} {path}: {status} {answer}");
                assert!(answer.len() < 2000, "{answer}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 5 * 7, "only {tried} bodies were tried");
    assert_eq!(rest::call(&fleet, "GET", "/readyz", None).0, 200);
    fleet.stop();
}
