//! `/rabbit`, as its clients see it.

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::rig::{Rig, queue_name};
use crate::ledger::Role;

#[tokio::test]
async fn a_queue_is_created_once_and_messages_go_through_it_in_order() {
    let rig = Rig::new().await;
    for (path, status) in [("/rabbit/", StatusCode::CREATED), ("/rabbit", StatusCode::OK)] {
        let answer = rig.post(path, json!({"name": "fresh.todo"})).await;
        assert_eq!((answer.status, answer.json()["name"].as_str()), (status, Some("fresh.todo")));
    }
    rig.post("/rabbit/", json!({"name": "fresh.mine"})).await;
    for message in [json!({"n": 1}), json!(null), json!([1, "two"])] {
        let answer = rig.post("/rabbit/fresh.mine/", json!({ "message": message })).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    }
    for (path, message) in [
        ("/rabbit/fresh.mine/", json!({"n": 1})),
        ("/rabbit/fresh.mine", json!(null)),
        ("/rabbit/fresh.mine/", json!([1, "two"])),
    ] {
        let answer = rig.get(path).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({ "message": message })));
    }
    let empty = rig.get("/rabbit/fresh.mine/").await;
    assert_eq!((empty.status, empty.text.as_str()), (StatusCode::NO_CONTENT, ""));
    rig.stop().await;
}

#[tokio::test]
async fn a_message_comes_out_as_it_was_written() {
    let rig = Rig::new().await;
    rig.post("/rabbit/", json!({"name": "pi.mine"})).await;
    let written = r#"{"b":1.0000000000000000000001,"a":18446744073709551616,"b":2,"s":"\u00e9"}"#;
    let put =
        rig.ask(Method::POST, "/rabbit/pi.mine/").header("content-type", "application/json; charset=utf-8");
    assert_eq!(put.body(format!(r#"{{"message": {written}}}"#)).send().await.status, StatusCode::CREATED);
    assert_eq!(rig.get("/rabbit/pi.mine/").await.text, format!(r#"{{"message":{written}}}"#));
    rig.stop().await;
}

#[tokio::test]
async fn what_is_no_json_is_shown_all_the_same_since_it_was_taken() {
    let rig = Rig::new().await;
    let queue = queue_name("pi.mine");
    rig.broker.create_queue(&queue).await.expect("made");
    for (bytes, shown) in [
        (&b"plain"[..], json!({"message": "plain", "encoding": "text"})),
        (&[0xff, 0][..], json!({"message": "/wA=", "encoding": "base64"})),
    ] {
        rig.broker.put(&queue, bytes.to_vec().into(), 0).await.expect("put");
        assert_eq!(rig.get("/rabbit/pi.mine/").await.json(), shown);
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_a_404_whatever_its_name() {
    let rig = Rig::new().await;
    for path in ["/rabbit/pi.none/", "/rabbit/none.todo", "/rabbit/NO%20QUEUE/", "/rabbit/..%2F..%2Fetc/"] {
        let answer = rig.get(path).await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (StatusCode::NOT_FOUND, "queue.not_found"),
            "{path}"
        );
        let answer = rig.post(path, json!({"message": 1})).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn head_takes_no_message() {
    let rig = Rig::new().await;
    rig.post("/rabbit/", json!({"name": "pi.mine"})).await;
    rig.post("/rabbit/pi.mine/", json!({"message": "precious"})).await;
    let head = rig.ask(Method::HEAD, "/rabbit/pi.mine/").open().await;
    assert_eq!(head.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(rig.get("/rabbit/pi.mine/").await.json()["message"], "precious");
    rig.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_told_with_its_place() {
    let rig = Rig::new().await;
    rig.post("/rabbit/", json!({"name": "pi.mine"})).await;
    for (path, body, status, code, detail) in [
        ("/rabbit/pi.mine/", "{", 400, "invalid.json", "EOF"),
        ("/rabbit/pi.mine/", "{}", 400, "invalid.json", "missing field `message`"),
        (
            "/rabbit/pi.mine/",
            r#"{"message": 1, "priority": 2}"#,
            400,
            "invalid.json",
            "unknown field `priority`",
        ),
        ("/rabbit/pi.mine/", r#"{"message": 1} x"#, 400, "invalid.json", "trailing"),
        ("/rabbit/", r#"{"name": 7}"#, 400, "invalid.json", "expected a string"),
        ("/rabbit/", r#"{"name": "No Name"}"#, 400, "invalid.input", "is not a queue name"),
    ] {
        let ask = rig.ask(Method::POST, path).header("content-type", "application/json");
        let answer = ask.body(body).send().await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (status, code), "{body}");
        assert!(answer.json()["detail"].as_str().expect("text").contains(detail), "{answer:?}");
    }
    let wrong = rig.ask(Method::POST, "/rabbit/").header("content-type", "application/json");
    assert_eq!(wrong.body(r#"{"name": 7}"#).send().await.json()["place"], "name");
    for kind in ["text/plain", "application/x-www-form-urlencoded", ""] {
        let answer = rig.ask(Method::POST, "/rabbit/").header("content-type", kind).body("{}").send().await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem().as_str()),
            (415, "invalid.media_type"),
            "{kind}"
        );
    }
    let large = format!(r#"{{"message": "{}"}}"#, "x".repeat(9 << 20));
    let ask = rig.ask(Method::POST, "/rabbit/pi.mine/").header("content-type", "application/json");
    let answer = ask.body(large).send().await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (413, "invalid.too_large"));
    assert_eq!(rig.get("/rabbit/pi.mine/").await.status, StatusCode::NO_CONTENT, "something was put");
    rig.stop().await;
}

#[tokio::test]
async fn only_an_administrator_makes_a_project_by_its_queue_and_a_viewer_takes_nothing() {
    let rig = Rig::new().await;
    let (submitter, viewer) = (rig.token(Role::Submitter, &[]).await, rig.token(Role::Viewer, &[]).await);
    let create = |token: &str, name: &str| {
        rig.ask(Method::POST, "/rabbit/").token(token).json(json!({ "name": name }))
    };
    assert_eq!(create(&submitter, "other.todo").send().await.problem(), "auth.denied");
    assert_eq!(create(&submitter, "pi.mine").send().await.status, StatusCode::CREATED);
    let denied = rig.ask(Method::GET, "/rabbit/pi.mine/").token(&viewer).send().await;
    assert_eq!((denied.status.as_u16(), denied.problem().as_str()), (403, "auth.denied"));
    assert!(denied.json()["hint"].as_str().expect("a hint").contains("--role submitter"), "{denied:?}");
    rig.stop().await;
}
