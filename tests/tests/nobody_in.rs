//! Who is let in and who is not, on the real daemons: what they log of it, and that no secret is seen anywhere.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    time::Duration,
};

use codering_tests::{
    Backend, Fleet, Setup, Vhost, binary, fleet, run,
    secrets::{Secret, Watch, assert_no_file_shows, assert_unseen},
    wait_for,
};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);

/// One REST call: the whole answer, and its status.
fn ask(fleet: &Fleet, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(fleet.rest()).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n{authorization}\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {answer}")), answer)
}

/// The id and the secret of a new token.
fn created(fleet: &Fleet, more: Value) -> (String, String) {
    let mut asked = json!({ "name": "test" });
    asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, answer) = ask(fleet, "POST", "/api/v1/tokens", Some(&fleet.token()), &asked.to_string());
    assert_eq!(status, 201, "{answer}");
    let created: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&created["token"]["token_id"]), text(&created["secret"]))
}

/// Waits for a line of brokerd's log with all of these.
fn logged(fleet: &Fleet, with: &[&str]) -> String {
    wait_for(&format!("the log says {with:?}"), Duration::from_secs(20), || {
        let log = fleet.broker_log();
        log.lines().find(|line| with.iter().all(|part| line.contains(part))).map(str::to_owned)
    })
}

/// Runs a workerd of this name to its end, with a join token; what it said.
fn joins(fleet: &Fleet, name: &str, join: &str) -> (Option<i32>, String) {
    let directory = fleet.directory().join(format!("joining-{name}"));
    fs::create_dir_all(&directory).unwrap();
    let token = directory.join("join");
    fs::write(&token, join).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let config = directory.join("workerd.toml");
    let text = format!(
        "name = '{name}'\ndata_dir = '{0}/data'\nbroker = 'https://{1}'\nsimulate.enabled = true\n\
         enroll.token_file = '{2}'\nenroll.ca_file = '{3}'\nlisten.metrics = '127.0.0.1:0'\n",
        directory.display(),
        fleet.grpc(),
        token.display(),
        fleet.broker_dir().join("ca/ca.pem").display()
    );
    fs::write(&config, text).unwrap();
    let mut command = std::process::Command::new(binary("codering-workerd"));
    let ran = run(command.arg("--config").arg(&config), BOUND);
    fs::remove_file(token).unwrap();
    (ran.code, ran.stderr)
}

#[test]
fn invariant_10_each_decision_about_who_may_is_logged_with_who_what_and_from_where() {
    let mut fleet = Fleet::start(Setup::simulated(Backend::Embedded, 1, 1));
    let from = "address=127.0.0.1";
    let worker = fleet.worker_name(0);
    logged(&fleet, &["a worker enrolled", &format!("worker={worker}"), "name=", "Workers/Enroll", from]);

    let whoami = "/api/v1/whoami";
    let (status, answer) = ask(&fleet, "GET", whoami, None, "");
    assert_eq!(status, 401, "{answer}");
    logged(&fleet, &["refused: no token", whoami, from]);
    let unknown = format!("cdr_0123456789ab_{}", "a".repeat(64));
    assert_eq!(ask(&fleet, "GET", whoami, Some(&unknown), "").0, 401);
    logged(&fleet, &["a token was refused: unknown", "0123456789ab", whoami, from]);

    let (viewer, text) = created(&fleet, json!({"role": "viewer", "projects": ["demo"]}));
    let by_admin = format!("by={:?}", fleet.token().split('_').nth(1).unwrap());
    let made = logged(&fleet, &["a token was created", &viewer, "viewer", "demo", &by_admin, from]);
    assert!(made.contains("/api/v1/tokens"), "{made}");
    let wrong = format!("cdr_{viewer}_{}", "a".repeat(64));
    assert_eq!(ask(&fleet, "GET", whoami, Some(&wrong), "").0, 401);
    logged(&fleet, &["a token was refused: wrong", &viewer, from]);
    assert_eq!(ask(&fleet, "GET", "/api/v1/projects/demo", Some(&text), "").0, 200);
    let delete = |token: &str| ask(&fleet, "DELETE", "/api/v1/projects/demo", Some(token), "");
    assert_eq!(delete(&text).0, 403);
    logged(
        &fleet,
        &["denied", &viewer, "needed=\"admin\"", "project=demo", "/api/v1/projects/{project}", from],
    );
    assert_eq!(
        ask(&fleet, "POST", &format!("/api/v1/tokens/{viewer}/revoke"), Some(&fleet.token()), "").0,
        200
    );
    logged(&fleet, &["a token was revoked", &viewer, &by_admin, from]);
    assert_eq!(delete(&text).0, 401);
    logged(&fleet, &["a token was refused: revoked", &viewer, from]);

    let (short, text) = created(&fleet, json!({"role": "viewer", "ttl_seconds": 1}));
    wait_for("the token expires", BOUND, || {
        (ask(&fleet, "GET", whoami, Some(&text), "").0 == 401).then_some(())
    });
    logged(&fleet, &["a token was refused: expired", &short, from]);

    // A join token joins a new worker. It does nothing else, and takes no other's place.
    let (join, text) = created(&fleet, json!({"role": "worker"}));
    assert_eq!(ask(&fleet, "GET", whoami, Some(&text), "").0, 403);
    logged(&fleet, &["a join token was used for a call: denied", &join, from]);
    let (code, said) = joins(&fleet, &worker, &text);
    // No restart mends that, and the unit makes none after this status.
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&format!("coderingctl worker token --name {worker}")), "{said}");
    logged(&fleet, &["a name that is taken: enrolment denied", &join, &format!("worker={worker}"), from]);
    let (submitter, text) = created(&fleet, json!({"role": "submitter"}));
    let (code, said) = joins(&fleet, "w9", &text);
    assert!(code == Some(2) && said.contains("is no join token"), "{said}");
    logged(&fleet, &["not a join token: enrolment denied", &submitter, "worker=w9", from]);
    // A mistake in ctl is answered with what to do, and the exit code for denied.
    let token_file = fleet.directory().join("viewer.token");
    let (_, viewer) = created(&fleet, json!({"role": "viewer", "projects": ["demo"]}));
    let endpoints = endpoints_with(&fleet, &viewer);
    let (code, said) = ctl(&fleet, &endpoints, &["submit", "--git", "https://host/a.git", "--", "true"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(
        said.contains("is a viewer of project demo") && said.contains("token create --role submitter"),
        "{said}"
    );
    let (code, said) = ctl(&fleet, &endpoints_with(&fleet, &unknown), &["job", "list"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("auth.invalid") && said.contains("coderingctl login"), "{said}");
    fs::write(&token_file, &viewer).unwrap();

    assert_eq!(
        ask(&fleet, "POST", &format!("/api/v1/workers/{worker}/revoke"), Some(&fleet.token()), "").0,
        200
    );
    logged(&fleet, &["a worker was revoked", &worker, &by_admin, from]);
    logged(&fleet, &["its certificate was revoked", &format!("worker={worker}"), "Workers/Attach", from]);

    // Guessing: held up after a burst, and said once rather than for each guess.
    let mut held_up = String::new();
    for n in 0..200 {
        let guess = format!("cdr_{n:012x}_{}", "a".repeat(64));
        let (status, answer) = ask(&fleet, "GET", whoami, Some(&guess), "");
        if status == 429 {
            held_up = answer;
        }
    }
    assert!(held_up.contains("retry-after: 3") && held_up.contains("auth.too_many"), "{held_up}");
    logged(&fleet, &["too many wrong tokens: held up", from]);
    let lines = fleet.broker_log().lines().filter(|line| line.contains("held up")).count();
    assert!(lines < 20, "{lines} lines for some hundred guesses");
    let (code, said) = ctl(
        &fleet,
        &endpoints_with(&fleet, &format!("cdr_abcdefabcdef_{}", "b".repeat(64))),
        &["job", "list"],
    );
    assert_ne!(code, Some(0));
    assert!(said.contains("auth.too_many") && said.contains("try again in"), "{said}");
    // Who was never seen before gets in with a right one from the same address all the same.
    assert_eq!(ask(&fleet, "GET", whoami, Some(&viewer), "").0, 200, "locked out by another's guesses");

    fs::remove_file(&token_file).unwrap();
    let _ = fleet.stop_broker();
    fleet.kill_worker(0);
    let secrets =
        [Secret::new("the administrator's token", fleet.token(), &["/admin.token", "/endpoints.json"])];
    assert_no_file_shows(fleet.directory(), &secrets);
}

/// The broker's endpoints with another token, in a file beside them.
fn endpoints_with(fleet: &Fleet, token: &str) -> String {
    let mut endpoints: Value = serde_json::from_slice(&fs::read(fleet.endpoints_file()).unwrap()).unwrap();
    endpoints["token"] = token.into();
    endpoints.to_string()
}

fn ctl(fleet: &Fleet, endpoints: &str, args: &[&str]) -> (Option<i32>, String) {
    let file = fleet.directory().join("other-endpoints.json");
    fs::write(&file, endpoints).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let ran = run(fleet.command(args).env("CODERING_ENDPOINTS", &file), BOUND);
    fs::remove_file(file).unwrap();
    (ran.code, ran.stderr)
}

/// A server that asks everybody for a password and is content with none. What it was shown.
fn asking_for_a_password() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, shown) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    std::thread::spawn({
        let shown = shown.clone();
        move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    if line.to_ascii_lowercase().starts_with("authorization:") {
                        shown.lock().unwrap().push(line.trim().to_owned());
                    }
                    line.clear();
                }
                let _ = stream.write_all(
                    b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"test\"\r\n\
                      docker-distribution-api-version: registry/2.0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                );
            }
        }
    });
    (at, shown)
}

const GIT: &str = "git-secret-5d8f1c0a7e";
const GIT_BASE64: &str = "bWU6Z2l0LXNlY3JldC01ZDhmMWMwYTdl";
const REGISTRY: &str = "registry-secret-91ab44e7";
const REGISTRY_BASE64: &str = "bWU6cmVnaXN0cnktc2VjcmV0LTkxYWI0NGU3";
const RABBITMQ: &str = "rabbitmq-secret-30c9d2b6f1";

#[test]
fn no_secret_is_seen_in_a_log_an_error_a_metric_or_a_process() {
    let vhost = Vhost::create_with_password(RABBITMQ);
    let (git, git_shown) = asking_for_a_password();
    let (registry, registry_shown) = asking_for_a_password();
    let filter =
        "debug,codering_brokerd=trace,codering_workerd=trace,codering_kit=trace,codering_proto=trace";
    let environment = vec![("CODERING_LOG".into(), filter.into())];
    let mut setup = Setup::new(Backend::RabbitMq, 1);
    setup.rabbitmq = Some(vhost.url());
    setup.broker_environment = environment.clone();
    setup.worker_environment = environment;
    let credentials = tempfile::Builder::new().prefix("codering-test-").tempdir().unwrap();
    let keys = credentials.path().join("registry.json");
    fs::write(&keys, json!({"auths": {registry.to_string(): {"auth": REGISTRY_BASE64}}}).to_string())
        .unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    setup.worker = format!("docker.credentials_file = '{}'\n", keys.display());
    let fleet = Fleet::start(setup);
    let watch = Watch::over(vec![fleet.broker_id(), fleet.worker_id(0)]);

    // Every verb that handles one. What ctl prints of a new token on stdout is the one place for it.
    let mut said: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut run_ctl = |args: &[&str], answer: bool| -> String {
        let ran = fleet.try_ctl(args, BOUND);
        said.entry(format!("the stderr of {args:?}")).or_default().extend(ran.stderr.as_bytes());
        if !answer {
            said.entry(format!("the stdout of {args:?}")).or_default().extend(&ran.stdout);
        }
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    };
    let ci = run_ctl(&["token", "create", "--role", "submitter", "--project", "demo", "--name", "ci"], true);
    let join = run_ctl(&["worker", "token", "--name", "spare"], true);
    let file = fleet.directory().join("ci.token");
    fs::write(&file, &ci).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let (broker, ca) = (fleet.grpc().to_string(), fleet.broker_dir().join("ca/ca.pem"));
    let (ca, file) = (ca.to_str().unwrap(), file.to_str().unwrap());
    run_ctl(&["login", "lab", "--broker", &broker, "--ca", ca, "--token-file", file], false);
    let wrong = format!("cdr_0123456789ab_{}", "c0ffee00".repeat(8));
    let wrong_file = fleet.directory().join("wrong.token");
    fs::write(&wrong_file, &wrong).unwrap();
    fs::set_permissions(&wrong_file, fs::Permissions::from_mode(0o600)).unwrap();
    let wrong_path = wrong_file.to_str().unwrap();
    run_ctl(&["login", "bad", "--broker", &broker, "--ca", ca, "--token-file", wrong_path], false);
    run_ctl(&["login", "list"], false);
    run_ctl(&["token", "list", "--output", "json"], false);

    // A repository that asks for a password, which the job's address has.
    let with_password = json!({
        "project": "demo", "name": "private", "git": format!("http://me:{GIT}@{git}/private.git"),
        "command": "true", "array": "1-1", "limits": {"timeout": "1m", "memory": "64M"},
    });
    let job_file = fleet.directory().join("private.json");
    fs::write(&job_file, with_password.to_string()).unwrap();
    fs::set_permissions(&job_file, fs::Permissions::from_mode(0o600)).unwrap();
    let private = run_ctl(&["submit", job_file.to_str().unwrap(), "--output", "json"], false);
    let private: Value = serde_json::from_str(&private).unwrap_or_else(|error| panic!("{error}: {private}"));
    let private = private["job_id"].as_str().unwrap().to_owned();
    // And one whose Dockerfile begins with an image that is for those with the registry's password.
    let image = fleet.directory().join("private-image");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("Dockerfile"), format!("FROM {registry}/private/base:1\n")).unwrap();
    fs::write(
        image.join("job.toml"),
        "project = 'demo'\nname = 'image'\npush = '.'\ncommand = 'true'\narray = '1-1'\n[limits]\nattempts = 1\n",
    )
    .unwrap();
    let built = fleet.submit(&image);
    for (what, shown) in [("git", &git_shown), ("the registry", &registry_shown)] {
        wait_for(&format!("{what} was shown the password"), Duration::from_secs(90), || {
            (!shown.lock().unwrap().is_empty()).then_some(())
        });
    }
    assert!(git_shown.lock().unwrap()[0].ends_with(GIT_BASE64), "{git_shown:?}");
    assert!(registry_shown.lock().unwrap()[0].ends_with(REGISTRY_BASE64), "{registry_shown:?}");
    wait_for("the attempt at git has ended", Duration::from_secs(90), || {
        let task = fleet.json(&["task", "show", &format!("{private}/1")]);
        task["attempts"].as_array().is_some_and(|all| !all.is_empty()).then_some(())
    });
    run_ctl(&["watch", &built], false);
    for args in [
        &["job", "show", &private][..],
        &["job", "show", &private, "--output", "json"],
        &["job", "show", &built],
        &["job", "logs", &built, "--build"],
        &["task", "show", &format!("{private}/1"), "--output", "json"],
        &["task", "show", &format!("{built}/1")],
        &["job", "list", "--output", "json"],
        &["results", &built, "--output", "jsonl"],
        &["job", "cancel", &private, "--yes"],
        &["queue", "list"],
        &["history"],
        &["history", "--output", "json"],
        &["doctor"],
        &["token", "revoke", "ci", "--yes"],
        &["job", "list", "--context", "lab"],
    ] {
        run_ctl(args, false);
    }
    let bodies = [None, Some("letmein"), Some(wrong.as_str()), Some(ci.as_str()), Some(join.as_str())]
        .map(|token| ask(&fleet, "POST", "/api/v1/jobs", token, &with_password.to_string()).1);
    let short = format!("cdr_{}", &wrong[4..40]);
    let broken = ask(
        &fleet,
        "POST",
        "/api/v1/jobs",
        Some(&fleet.token()),
        &with_password.to_string().replace('}', ""),
    );
    let metrics = fleet::get(fleet.rest(), "/metrics").unwrap();

    let own = |token: &str| token.split('.').next().unwrap().rsplit('_').next().unwrap().to_owned();
    let in_ledger = ["/ledger.db", "/ledger.db-wal"];
    let secrets = [
        Secret::new("the administrator's token", own(&fleet.token()), &["/admin.token", "/endpoints.json"]),
        Secret::new("a user's token", own(&ci), &["/ci.token", "/codering/contexts.toml"]),
        Secret::new("a wrong token", own(&wrong), &["/wrong.token"]),
        Secret::new("a broken token", short, &["/wrong.token"]),
        Secret::new("a join token", own(&join), &[]),
        Secret::new("RabbitMQ's password", RABBITMQ, &["/rabbitmq.url"]),
        // The worker needs it: it is part of what is to be done, as the job file is.
        Secret::new("git's password", GIT, &["/private.json", in_ledger[0], in_ledger[1]]),
        Secret::new("git's password as it is sent", GIT_BASE64, &[]),
        Secret::new("the registry's password", REGISTRY, &[]),
        Secret::new("the registry's password as it is sent", REGISTRY_BASE64, &[]),
    ];
    for (place, text) in &said {
        assert_unseen(place, text, &secrets);
    }
    for body in bodies.iter().chain([&broken.1, &metrics]) {
        assert_unseen("an answer", body.as_bytes(), &secrets);
    }
    watch.assert_unseen(&secrets);
    assert!(fleet.broker_log().contains("TRACE") || fleet.broker_log().contains("DEBUG"), "it logs little");
    assert_no_file_shows(fleet.directory(), &secrets);
    for directory in [fleet.broker_dir(), fleet.worker_dir(0)] {
        let mode = fs::metadata(&directory).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", directory.display());
    }
    let token = fleet.broker_dir().join("admin.token");
    assert_eq!(fs::metadata(token).unwrap().permissions().mode() & 0o777, 0o600);
    fleet.stop();
}
