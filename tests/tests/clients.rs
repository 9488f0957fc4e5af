//! Clients of a few lines in another language: the outside interfaces are as simple as the design says.

use std::{process::Command, time::Duration};

use codering_tests::{Backend, Dev, fixture, repository, run};

const DOCKERFILE: (&str, &str) = ("Dockerfile", "FROM codering/base\n");

/// Debian's own interpreter: the one that python3-requests and python3-pika are installed for.
fn client(name: &str, args: &[&str]) -> serde_json::Value {
    let script = repository().join("tests/clients").join(name);
    let ran = run(Command::new("/usr/bin/python3").arg(script).args(args), Duration::from_secs(120));
    assert_eq!(ran.code, Some(0), "{name}: {}{}", String::from_utf8_lossy(&ran.stdout), ran.stderr);
    serde_json::from_slice(&ran.stdout).unwrap()
}

fn assert_is_the_result(result: &serde_json::Value) {
    assert_eq!(result["project_id"], "p", "{result}");
    assert_eq!(result["task_id"], "17", "{result}");
    assert_eq!(result["outcome"], "succeeded", "{result}");
    assert_eq!(result["exit_code"], 0, "{result}");
    assert_eq!(result["stdout"], "42\n", "{result}");
    assert_eq!(result["attempt"], 1, "{result}");
    assert_eq!(result["commit"].as_str().map(str::len), Some(40), "{result}");
}

fn a_rest_client_gets_its_result(backend: Backend) {
    let dev = Dev::start(backend, 1);
    let git = fixture::git_repository(&dev.directory().join("repository"), &[DOCKERFILE]);
    let endpoints = dev.endpoints();
    assert_is_the_result(&client("rest_client.py", &[&endpoints.rest, &endpoints.token, &git]));
    dev.stop();
}

#[test]
fn a_rest_client_creates_p_todo_puts_four_fields_and_gets_its_result_on_the_embedded_queue() {
    a_rest_client_gets_its_result(Backend::Embedded);
}

#[test]
fn a_rest_client_creates_p_todo_puts_four_fields_and_gets_its_result_on_rabbitmq() {
    a_rest_client_gets_its_result(Backend::RabbitMq);
}

#[test]
fn an_amqp_client_puts_four_fields_into_rabbitmq_itself_and_gets_its_result() {
    let dev = Dev::start(Backend::RabbitMq, 1);
    let git = fixture::git_repository(&dev.directory().join("repository"), &[DOCKERFILE]);
    // Whose messages are read is an administrator's decision: the project exists before a raw message counts.
    dev.ctl(&["project", "create", "p"]);
    assert_is_the_result(&client("amqp_client.py", &[&dev.rabbitmq(), &git]));
    dev.stop();
}
