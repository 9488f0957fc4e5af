//! Every REST route, over a listener.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{super::rig::BOUND, Caller, People, Row, names, row};
use crate::api::rest::ROUTES;

#[rustfmt::skip]
const TABLE: &[Row] = &[
    //                                                      who may     answered           refused to another's admin
    row("POST /rabbit",                                    "AaSs",     "ok",              "auth.denied"),
    row("POST /rabbit/{queue}",                            "AaSs",     "ok",              "auth.denied"),
    row("GET /rabbit/{queue}",                             "AaSs",     "ok",              "auth.denied"),
    row("GET /api/v1/openapi.json",                        "*",        "ok",              ""),
    row("GET /api/v1/projects",                            "AaSsVvo",  "ok",              ""),
    row("POST /api/v1/projects",                           "A",        "project.exists",  "auth.denied"),
    row("GET /api/v1/projects/{project}",                  "AaSsVv",   "ok",              "auth.denied"),
    row("DELETE /api/v1/projects/{project}",               "Aa",       "project.busy",    "auth.denied"),
    row("PUT /api/v1/projects/{project}/quota",            "A",        "ok",              "auth.denied"),
    row("GET /api/v1/projects/{project}/dead",             "AaSsVv",   "ok",              "auth.denied"),
    row("POST /api/v1/projects/{project}/dead/requeue",    "AaSs",     "ok",              "auth.denied"),
    row("GET /api/v1/queues",                              "AaSsVvo",  "ok",              ""),
    row("DELETE /api/v1/queues/{queue}",                   "AaSs",     "queue.reserved",  "auth.denied"),
    row("POST /api/v1/queues/{queue}/purge",               "AaSs",     "ok",              "auth.denied"),
    row("GET /api/v1/jobs",                                "AaSsVvo",  "ok",              ""),
    row("POST /api/v1/jobs",                               "AaSs",     "ok",              "auth.denied"),
    row("GET /api/v1/jobs/{job}",                          "AaSsVv",   "ok",              "job.not_found"),
    row("GET /api/v1/jobs/{job}/results",                  "AaSsVv",   "ok",              "job.not_found"),
    row("GET /api/v1/jobs/{job}/events",                   "AaSsVv",   "ok",              "job.not_found"),
    row("GET /api/v1/jobs/{job}/answer",                   "AaSsVv",   "job.no_answer",   "job.not_found"),
    row("GET /api/v1/jobs/{job}/builds",                   "AaSsVv",   "ok",              "job.not_found"),
    row("POST /api/v1/jobs/{job}/cancel",                  "AaSs",     "job.finished",    "job.not_found"),
    row("POST /api/v1/jobs/{job}/retry",                   "AaSs",     "ok",              "job.not_found"),
    row("POST /api/v1/jobs/{job}/pause",                   "AaSs",     "ok",              "job.not_found"),
    row("POST /api/v1/jobs/{job}/resume",                  "AaSs",     "ok",              "job.not_found"),
    row("POST /api/v1/jobs/{job}/reduce",                  "AaSs",     "job.unfinished",  "job.not_found"),
    row("GET /api/v1/jobs/{job}/tasks",                    "AaSsVv",   "ok",              "job.not_found"),
    row("GET /api/v1/jobs/{job}/tasks/{task}",             "AaSsVv",   "ok",              "job.not_found"),
    row("GET /api/v1/jobs/{job}/tasks/{task}/logs",        "AaSsVv",   "ok",              "job.not_found"),
    row("POST /api/v1/jobs/{job}/tasks/{task}/cancel",     "AaSs",     "task.finished",   "job.not_found"),
    row("POST /api/v1/jobs/{job}/tasks/{task}/retry",      "AaSs",     "task.unfinished", "job.not_found"),
    row("GET /api/v1/workers",                             "ASV",      "ok",              "auth.denied"),
    row("GET /api/v1/workers/{worker}",                    "ASV",      "ok",              "auth.denied"),
    row("POST /api/v1/workers/{worker}/pause",             "A",        "ok",              "auth.denied"),
    row("POST /api/v1/workers/{worker}/resume",            "A",        "ok",              "auth.denied"),
    row("POST /api/v1/workers/{worker}/revoke",            "A",        "worker.not_found", "auth.denied"),
    row("GET /api/v1/tokens",                              "Aao",      "ok",              ""),
    row("POST /api/v1/tokens",                             "Aa",       "ok",              "auth.denied"),
    row("POST /api/v1/tokens/{token}/revoke",              "Aa",       "ok",              "token.not_found"),
    row("GET /api/v1/whoami",                              "AaSsVvo",  "ok",              ""),
];

/// The path and the body of a call that means something to a caller who may.
fn request(people: &People, route: &str) -> (String, String) {
    let (queue, job, worker) = match route {
        "DELETE /api/v1/queues/{queue}" => ("pi.todo", &people.job, "w1"),
        "POST /api/v1/queues/{queue}/purge" => ("pi.purged", &people.job, "w1"),
        "POST /api/v1/jobs/{job}/cancel" | "POST /api/v1/jobs/{job}/tasks/{task}/cancel" => {
            ("pi.mine", &people.over, "w1")
        }
        "POST /api/v1/workers/{worker}/revoke" => ("pi.mine", &people.job, "w9"),
        _ => ("pi.mine", &people.job, "w1"),
    };
    let body = match route {
        "POST /rabbit" => r#"{"name":"pi.mine"}"#,
        "POST /rabbit/{queue}" => r#"{"message":1}"#,
        "POST /api/v1/projects" => r#"{"name":"pi"}"#,
        "PUT /api/v1/projects/{project}/quota" => r#"{"queued_tasks":0}"#,
        "POST /api/v1/projects/{project}/dead/requeue" => r#"{"all":true}"#,
        "POST /api/v1/jobs" => {
            r#"{"project":"pi","name":"pi","git":"https://host/pi.git","command":"true","array":"1-1"}"#
        }
        "POST /api/v1/tokens" => r#"{"name":"made","role":"viewer","projects":["pi"]}"#,
        _ => "",
    };
    let path = route.split_once(' ').expect("a method").1;
    let path = path
        .replace("{queue}", queue)
        .replace("{project}", "pi")
        .replace("{job}", job)
        .replace("{task}", "1")
        .replace("{worker}", worker)
        .replace("{token}", &people.spare);
    (path, body.to_owned())
}

/// `ok`, or the code of the problem; 2xx and nothing else is `ok`.
async fn call(at: SocketAddr, method: &str, path: &str, token: Option<&str>, body: &str) -> String {
    let calling = async {
        let mut stream = TcpStream::connect(at).await.expect("connected");
        let authorization = token.map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n{authorization}\r\n{body}"
        );
        stream.write_all(head.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        loop {
            let read = stream.read_buf(&mut answer).await.expect("read");
            let good = answer.starts_with(b"HTTP/1.1 2");
            // Events go on for ever; that they began is enough.
            if read == 0 || good && answer.windows(4).any(|w| w == b"\r\n\r\n") {
                return String::from_utf8_lossy(&answer).into_owned();
            }
        }
    };
    let answer = tokio::time::timeout(BOUND, calling).await.expect("answered in time");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer}"));
    if head.starts_with("HTTP/1.1 2") {
        return "ok".into();
    }
    let status = head.split(' ').nth(1).expect("a status");
    if method == "HEAD" {
        return status.into();
    }
    let problem: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("no problem: {e}: {answer}"));
    assert_eq!(problem["status"].to_string(), status);
    assert_eq!(status == "401", head.contains("www-authenticate: Bearer"), "{head}");
    problem["code"].as_str().expect("a code").to_owned()
}

async fn asked(at: SocketAddr, people: &People, caller: &Caller, route: &str) -> String {
    let (path, body) = request(people, route);
    let method = route.split_once(' ').expect("a method").0;
    call(at, method, &path, caller.token.as_deref(), &body).await
}

#[test]
fn invariant_10_every_route_that_is_served_stands_in_the_table_of_who_may() {
    let served = ROUTES.iter().map(|route| format!("{} {}", route.verb.key().to_uppercase(), route.path));
    assert_eq!(names(TABLE), served.collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_10_a_route_is_answered_to_those_who_may_and_to_nobody_else() {
    let people = People::gather().await;
    let at = people.rig.serve_rest().await;
    let mut wrong = Vec::new();
    for row in TABLE {
        // A certificate is nothing here: these are nobody.
        for caller in &people.callers {
            let answer = asked(at, &people, caller, row.name).await;
            let expected = row.expected(caller);
            if answer != expected {
                let (letter, name) = (caller.letter, caller.name);
                wrong.push(format!("{}, to {letter} ({name}): {answer}, not {expected}", row.name));
            }
        }
        // A table of wrong tokens is not an attack: each row begins anew.
        people.rig.auth.forgive_all();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    people.rig.stop().await;
}

#[tokio::test]
async fn invariant_10_no_other_spelling_of_a_route_goes_around_its_guard() {
    let people = People::gather().await;
    let at = people.rig.serve_rest().await;
    for row in TABLE.iter().filter(|row| row.may != "*") {
        let (path, body) = request(&people, row.name);
        let method = row.name.split_once(' ').expect("a method").0;
        assert_eq!(call(at, method, &format!("{path}/"), None, &body).await, "auth.missing", "{path}/");
        if method == "GET" {
            assert_eq!(call(at, "HEAD", &path, None, "").await, "401", "HEAD {path}");
        }
        for spelt in [format!("/{path}"), path.replacen("/api", "/./api", 1), path.to_uppercase()] {
            let answer = call(at, method, &spelt, None, &body).await;
            assert!(["not_found", "auth.missing"].contains(&answer.as_str()), "{method} {spelt}: {answer}");
        }
        let in_query = format!("{path}?token={}&access_token={}", people.rig.admin, people.rig.admin);
        assert_eq!(call(at, method, &in_query, None, &body).await, "auth.missing", "{path}");
    }
    people.rig.stop().await;
}
