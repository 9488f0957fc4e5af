//! `/api/v1` as its clients see it.

use axum::{
    body::Body,
    http::{Method, StatusCode},
};
use bytes::Bytes;
use codering_core::QueueName;
use futures::{StreamExt, stream};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::rig::{BOUND, Rig, job, pi, until};
use crate::{
    api::{access::Access, rest::ROUTES},
    ledger::Role,
};

#[tokio::test]
async fn a_job_is_submitted_shown_and_listed_without_its_password() {
    let rig = Rig::new().await;
    let submitted = rig.post("/api/v1/jobs", job(3)).await;
    assert_eq!(submitted.status, StatusCode::CREATED, "{submitted:?}");
    let shown = submitted.json();
    let id = shown["job_id"].as_str().expect("an id").to_owned();
    assert_eq!(submitted.header("content-length"), submitted.text.len().to_string());
    assert_eq!(submitted.header("location"), format!("/api/v1/jobs/{id}"));
    assert_eq!((&shown["project"], &shown["tasks"]["total"]), (&json!("pi"), &json!(3)));
    assert_eq!((&shown["command"], &shown["git_url"]), (&json!("pi {}"), &json!("https://me@host/pi.git")));
    assert_eq!(shown["limits"]["memory_bytes"], 64 << 20);
    assert!(shown["created_at"].as_str().expect("a time").contains('T'), "{shown}");
    for path in [format!("/api/v1/jobs/{id}"), format!("/api/v1/jobs/{}/", &id[..8])] {
        assert_eq!(rig.get(&path).await.json()["job_id"], json!(id), "{path}");
    }
    rig.post("/api/v1/jobs/", job(1)).await;
    let page = rig.get("/api/v1/jobs?page_size=1&project=pi").await.json();
    assert_eq!(page["jobs"].as_array().expect("jobs").len(), 1);
    let token = page["next_page_token"].as_str().expect("a token");
    let rest = rig.get(&format!("/api/v1/jobs?page_size=1&page_token={token}")).await.json();
    assert_ne!(rest["jobs"][0]["job_id"], page["jobs"][0]["job_id"]);
    assert_eq!(rig.get("/api/v1/jobs?state=failed").await.json()["jobs"], json!([]));
    assert_eq!(rig.get("/api/v1/jobs?state=odd").await.problem(), "invalid.input");
    assert_eq!(rig.get("/api/v1/jobs?stat=failed").await.problem(), "invalid.input");
    rig.stop().await;
}

#[tokio::test]
async fn the_same_idempotency_key_answers_with_the_first_job() {
    let rig = Rig::new().await;
    let submit = || rig.ask(Method::POST, "/api/v1/jobs").header("idempotency-key", "k1").json(job(2)).send();
    let (first, second) = (submit().await, submit().await);
    assert_eq!((first.status, second.status), (StatusCode::CREATED, StatusCode::OK));
    assert_eq!(first.json()["job_id"], second.json()["job_id"]);
    rig.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_job_names_its_place_and_nothing_is_recorded() {
    let rig = Rig::new().await;
    let with = |change: fn(&mut Value)| {
        let mut job = job(1);
        change(&mut job);
        job
    };
    for (body, code, place, hint) in [
        (with(|j| j["comand"] = json!("x")), "job.unknown_field", "comand", "command"),
        (with(|j| j["limits"]["memmory"] = json!("1G")), "job.unknown_field", "limits.memmory", "memory"),
        (with(|j| j["limits"]["timeout"] = json!("soon")), "job.invalid", "limits.timeout", ""),
        (with(|j| j["git"] = json!("ext::sh -c id")), "git.url_refused", "git", ""),
        (with(|j| j["project"] = json!("none")), "project.not_found", "", "coderingctl project create"),
        (with(|j| j["array"] = json!([])), "job.empty", "", ""),
        (with(|j| j["push"] = json!(".")), "job.invalid", "push", ""),
    ] {
        let answer = rig.post("/api/v1/jobs", body).await;
        assert_eq!(answer.problem(), code, "{answer:?}");
        let document = answer.json();
        assert_eq!(document["place"].as_str().unwrap_or_default(), place, "{answer:?}");
        assert!(document["hint"].as_str().unwrap_or_default().contains(hint), "{answer:?}");
    }
    assert_eq!(rig.get("/api/v1/jobs").await.json()["jobs"], json!([]));
    rig.stop().await;
}

#[tokio::test]
async fn results_come_as_lines_or_pages_and_a_task_tells_its_story() {
    let rig = Rig::new().await;
    let id = rig.post("/api/v1/jobs", job(3)).await.json()["job_id"].as_str().expect("an id").to_owned();
    let cancelled = rig.post(&format!("/api/v1/jobs/{id}/cancel"), json!({})).await;
    assert_eq!(cancelled.status, StatusCode::OK);
    until("the job is cancelled", async || {
        (rig.get(&format!("/api/v1/jobs/{id}")).await.json()["state"] == "cancelled").then_some(())
    })
    .await;
    let ids = |lines: &str| -> Vec<Value> {
        lines.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON")["task_id"].clone()).collect()
    };
    let path = format!("/api/v1/jobs/{id}/results");
    let lines = rig.ask(Method::GET, &path).header("accept", "application/jsonl").send().await;
    assert_eq!(lines.header("content-type"), "application/jsonl");
    assert_eq!(ids(&lines.text), [json!("1"), json!("2"), json!("3")]);
    assert_eq!(
        ids(&rig.get(&format!("{path}?format=jsonl&outcome=failed,timed_out")).await.text),
        [] as [Value; 0]
    );
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let page = rig.get(&format!("{path}?page_size=2&page_token={token}")).await.json();
        seen.extend(page["results"].as_array().expect("results").iter().map(|r| r["outcome"].clone()));
        token = page["next_page_token"].as_str().expect("a token").to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, [json!("cancelled"), json!("cancelled"), json!("cancelled")]);
    let task = rig.get(&format!("/api/v1/jobs/{id}/tasks/2/")).await.json();
    assert_eq!((&task["state"], &task["outcome"]), (&json!("done"), &json!("cancelled")));
    assert_eq!(task["result"]["task_id"], "2");
    let tasks = rig.get(&format!("/api/v1/jobs/{id}/tasks?state=done&outcome=cancelled")).await.json();
    assert_eq!(tasks["tasks"].as_array().expect("tasks").len(), 3);
    for (path, code) in [
        (format!("/api/v1/jobs/{id}/tasks/9"), "task.not_found"),
        (format!("/api/v1/jobs/{id}/tasks/a%2Fb"), "task.not_found"),
        (format!("/api/v1/jobs/{id}/tasks/9/logs"), "task.not_found"),
        (format!("/api/v1/jobs/{id}/answer"), "job.no_answer"),
        (format!("/api/v1/jobs/{id}/results?format=xml"), "invalid.input"),
        ("/api/v1/jobs/j-zz".into(), "job.not_found"),
    ] {
        assert_eq!(rig.get(&path).await.problem(), code, "{path}");
    }
    let retried = rig.post(&format!("/api/v1/jobs/{id}/tasks/2/retry"), json!({})).await;
    assert_eq!(retried.json()["state"], "queued", "{retried:?}");
    rig.stop().await;
}

#[tokio::test]
async fn events_end_with_the_final_state() {
    let rig = Rig::new().await;
    let id = rig.post("/api/v1/jobs", job(1)).await.json()["job_id"].as_str().expect("an id").to_owned();
    let answer = rig.ask(Method::GET, &format!("/api/v1/jobs/{id}/events")).open().await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let paused = rig.post(&format!("/api/v1/jobs/{id}/pause"), json!({})).await;
    assert_eq!(paused.json()["state"], "paused");
    rig.post(&format!("/api/v1/jobs/{id}/cancel"), json!({})).await;
    let read = tokio::time::timeout(BOUND, answer.into_body().collect()).await.expect("it ends");
    let text = String::from_utf8(read.expect("whole").to_bytes().to_vec()).expect("text");
    let states: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| serde_json::from_str::<Value>(data).expect("JSON")["job"]["state"].clone())
        .collect();
    assert_eq!(states.first(), Some(&json!("queued")), "{text}");
    assert_eq!(states.last(), Some(&json!("cancelled")), "{text}");
    assert!(text.starts_with("event: job\n"), "{text}");
    rig.stop().await;
}

#[tokio::test]
async fn a_revoked_tokens_streams_end() {
    let rig = Rig::new().await;
    let viewer = rig.token(Role::Viewer, &["pi"]).await;
    let id = rig.post("/api/v1/jobs", job(1)).await.json()["job_id"].as_str().expect("an id").to_owned();
    let open = rig.ask(Method::GET, &format!("/api/v1/jobs/{id}/events")).token(&viewer).open().await;
    let whoami = rig.ask(Method::GET, "/api/v1/whoami").token(&viewer).send().await.json();
    let token = whoami["token_id"].as_str().expect("an id");
    rig.post(&format!("/api/v1/tokens/{token}/revoke"), json!({})).await;
    // That it is held up by now does not keep its stream.
    let show = async || rig.ask(Method::GET, "/api/v1/whoami").token(&viewer).send().await.status;
    until("the token is held up", async || (show().await == StatusCode::TOO_MANY_REQUESTS).then_some(()))
        .await;
    let read = tokio::time::timeout(BOUND, open.into_body().collect()).await.expect("it ends");
    let text = String::from_utf8(read.expect("whole").to_bytes().to_vec()).expect("text");
    assert!(text.contains("event: problem") && text.contains("auth.invalid"), "{text}");
    rig.stop().await;
}

#[tokio::test]
async fn a_token_of_one_project_sees_nothing_of_another() {
    let rig = Rig::new().await;
    rig.post("/api/v1/projects", json!({"name": "other", "quota": {"queued_tasks": 5}})).await;
    let mut foreign = job(1);
    foreign["project"] = json!("other");
    let id =
        rig.post("/api/v1/jobs", foreign.clone()).await.json()["job_id"].as_str().expect("an id").to_owned();
    let token = rig.token(Role::Admin, &["pi"]).await;
    let ask = |method, path: &str| rig.ask(method, path).token(&token);
    assert_eq!(ask(Method::GET, "/api/v1/jobs").send().await.json()["jobs"], json!([]));
    let names = ask(Method::GET, "/api/v1/projects").send().await.json();
    assert_eq!(names["projects"].as_array().expect("projects").len(), 1);
    for (method, path, code) in [
        (Method::GET, format!("/api/v1/jobs/{id}"), "job.not_found"),
        (Method::POST, format!("/api/v1/jobs/{id}/cancel"), "job.not_found"),
        (Method::GET, "/api/v1/jobs?project=other".into(), "auth.denied"),
        (Method::GET, "/api/v1/projects/other".into(), "auth.denied"),
        (Method::DELETE, "/api/v1/projects/other".into(), "auth.denied"),
        (Method::GET, "/rabbit/other.todo/".into(), "auth.denied"),
        (Method::GET, "/api/v1/workers".into(), "auth.denied"),
        (Method::GET, "/api/v1/projects/none".into(), "auth.denied"),
    ] {
        assert_eq!(ask(method, &path).send().await.problem(), code, "{path}");
    }
    assert_eq!(ask(Method::POST, "/api/v1/jobs").json(foreign).send().await.problem(), "auth.denied");
    // What names no project goes to the token's only one.
    let mut unnamed = job(1);
    unnamed.as_object_mut().expect("an object").remove("project");
    assert_eq!(ask(Method::POST, "/api/v1/jobs").json(unnamed).send().await.json()["project"], "pi");
    rig.stop().await;
}

/// A path of the route with something in each place.
fn example(path: &str) -> String {
    let part = |part: &str| match part {
        "{queue}" => "pi.todo".to_owned(),
        "{project}" => "pi".to_owned(),
        part => part.trim_matches(['{', '}']).to_owned(),
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn every_route_refuses_who_has_not_what_its_row_asks_for() {
    let rig = Rig::new().await;
    let (viewer, submitter) = (rig.token(Role::Viewer, &[]).await, rig.token(Role::Submitter, &[]).await);
    for route in ROUTES {
        let method = Method::from_bytes(route.verb.key().to_uppercase().as_bytes()).expect("a method");
        let bodies = match route.body {
            Some("CreateQueue" | "CreateProject") => json!({"name": "pi"}),
            Some("Message") => json!({"message": 1}),
            _ => json!({}),
        };
        let ask = |token: &str| {
            rig.ask(method.clone(), &example(route.path)).token(token).json(bodies.clone()).send()
        };
        let nobody = ask("").await;
        if route.access == Access::Open {
            assert_eq!(nobody.status, StatusCode::OK, "{}", route.path);
            continue;
        }
        assert_eq!(
            (nobody.status.as_u16(), nobody.problem().as_str()),
            (401, "auth.missing"),
            "{}",
            route.path
        );
        assert_eq!(nobody.header("www-authenticate"), "Bearer");
        let needed = match route.access {
            Access::Everywhere(role) | Access::In(_, role) => role,
            _ => continue,
        };
        if needed == Role::Admin {
            assert_eq!(ask(&submitter).await.problem(), "auth.denied", "{:?} {}", route.verb, route.path);
        }
        // Jobs are looked for first: there is none to be denied. Bodies are read first, too.
        let before = route.path.contains("{job}") || route.path.ends_with("/jobs");
        if needed != Role::Viewer && !before {
            assert_eq!(ask(&viewer).await.problem(), "auth.denied", "{:?} {}", route.verb, route.path);
        }
    }
    let guess = rig.ask(Method::GET, "/api/v1/jobs").token("cdr_guess").send().await;
    assert_eq!((guess.status.as_u16(), guess.problem().as_str()), (401, "auth.invalid"));
    rig.stop().await;
}

#[tokio::test]
async fn what_is_no_route_or_no_method_is_a_problem_too() {
    let rig = Rig::new().await;
    for path in ["/", "/api", "/api/v2/execute", "/api/v1/jobs/j-1/nothing", "/rabbit/a/b"] {
        let answer = rig.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (404, "not_found"), "{path}");
    }
    let answer = rig.ask(Method::DELETE, "/api/v1/jobs/").send().await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (405, "invalid.method"));
    let mut allowed: Vec<_> = answer.header("allow").split(',').collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
    rig.stop().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_or_is_too_long_is_refused_while_it_comes() {
    let rig = Rig::new().await;
    let post = || rig.ask(Method::POST, "/api/v1/projects").header("content-type", "application/json");
    let broken = stream::iter([Ok(Bytes::from("{")), Err(std::io::Error::other("gone"))]);
    assert_eq!(post().body(Body::from_stream(broken)).send().await.problem(), "invalid.input");
    // No length is told beforehand, and the body would never end.
    let endless = stream::repeat(Bytes::from(vec![b' '; 64 << 10])).map(Ok::<_, std::io::Error>);
    let answer = post().body(Body::from_stream(endless)).send().await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (413, "invalid.too_large"));
    rig.stop().await;
}

#[tokio::test]
async fn projects_quotas_queues_and_tokens_are_managed() {
    let rig = Rig::new().await;
    let made = rig.post("/api/v1/projects", json!({"name": "lab"})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    assert_eq!(rig.post("/api/v1/projects", json!({"name": "lab"})).await.problem(), "project.exists");
    let quota =
        rig.ask(Method::PUT, "/api/v1/projects/lab/quota").json(json!({"running_slots": 3})).send().await;
    assert_eq!(quota.json()["quota"]["running_slots"], 3);
    let queues = rig.get("/api/v1/queues?project=lab").await.json();
    assert_eq!(
        (queues["queues"].as_array().expect("queues").len(), &queues["backend"]),
        (3, &json!("embedded"))
    );
    rig.post("/rabbit/", json!({"name": "lab.mine"})).await;
    rig.post("/rabbit/lab.mine/", json!({"message": 1})).await;
    assert_eq!(rig.post("/api/v1/queues/lab.mine/purge", json!({})).await.json()["purged"], 1);
    let delete = |path: &str| rig.ask(Method::DELETE, path);
    assert_eq!(delete("/api/v1/queues/lab.mine").send().await.status, StatusCode::NO_CONTENT);
    assert_eq!(delete("/api/v1/queues/lab.todo").send().await.problem(), "queue.reserved");
    let dead = rig.get("/api/v1/projects/lab/dead").await.json();
    assert_eq!(dead, json!({"letters": [], "total": 0}));
    assert_eq!(rig.post("/api/v1/projects/lab/dead/requeue", json!({})).await.problem(), "invalid.input");
    assert_eq!(
        rig.post("/api/v1/projects/lab/dead/requeue", json!({"all": true})).await.json()["requeued"],
        0
    );
    assert_eq!(delete("/api/v1/projects/lab").send().await.status, StatusCode::NO_CONTENT);
    assert_eq!(rig.get("/api/v1/projects/lab").await.problem(), "project.not_found");

    let new = json!({"name": "ci", "role": "submitter", "projects": ["pi"], "ttl_seconds": 60});
    let token = rig.post("/api/v1/tokens", new).await;
    assert_eq!(token.status, StatusCode::CREATED);
    let secret = token.json()["secret"].as_str().expect("a secret").to_owned();
    let me = rig.ask(Method::GET, "/api/v1/whoami").token(&secret).send().await.json();
    assert_eq!(
        (&me["name"], &me["role"], &me["projects"]),
        (&json!("ci"), &json!("submitter"), &json!(["pi"]))
    );
    let all = rig.get("/api/v1/tokens").await;
    assert!(all.text.contains("\"ci\"") && !all.text.contains(&secret), "{all:?}");
    let role = rig.post("/api/v1/tokens", json!({"name": "x", "role": "root"})).await;
    assert_eq!((role.problem().as_str(), &role.json()["place"]), ("invalid.json", &json!("role")));
    rig.post("/api/v1/tokens/ci/revoke", json!({})).await;
    assert_eq!(rig.ask(Method::GET, "/api/v1/whoami").token(&secret).send().await.problem(), "auth.invalid");
    rig.stop().await;
}

#[tokio::test]
async fn probes_are_open_and_metrics_only_near() {
    let rig = Rig::new().await;
    let ask = |path: &str, from| rig.ask(Method::GET, path).token("").from(from).send();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(ask(path, [127, 0, 0, 1]).await.status, StatusCode::OK, "{path}");
    }
    let far = [192, 0, 2, 1];
    assert_eq!(ask("/readyz", far).await.status, StatusCode::OK);
    assert_eq!(ask("/metrics", far).await.problem(), "auth.missing");
    let token = rig.token(Role::Viewer, &[]).await;
    assert_eq!(rig.ask(Method::GET, "/metrics").from(far).token(&token).send().await.status, StatusCode::OK);
    rig.stop().await;
}

#[tokio::test]
async fn a_task_put_on_the_todo_queue_over_rest_is_ready_for_a_worker() {
    let rig = Rig::new().await;
    let task =
        json!({"project_id": "pi", "task_id": "17", "git_url": "https://host/pi.git", "command": "true"});
    assert_eq!(rig.post("/rabbit/pi.todo/", json!({ "message": task })).await.status, StatusCode::CREATED);
    let todo = QueueName::todo(&pi());
    let queues = rig.broker.queues(Some(&[pi()])).await.expect("listed");
    assert_eq!(queues.iter().find(|q| q.name == todo).expect("there").depth.ready, 1);
    rig.stop().await;
}
