//! The process itself: what it says to a person, to systemd and to a probe, and how it ends.

mod running;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    process::Output,
};

use running::{PATIENCE, Place, Running, free_port, until};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn systemd_hears_of_readiness_of_the_load_and_of_the_stop() {
    let place = Place::new("");
    let socket = UnixDatagram::bind(place.path("notify")).expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut brokerd = Running::start(
        place.command().env("NOTIFY_SOCKET", place.path("notify")).env("WATCHDOG_USEC", "200000"),
    );
    let heard = |wanted: &str| {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("no {wanted} in {all:?}: {e}"));
            all.push(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
            if all.last().is_some_and(|told| told.starts_with(wanted)) {
                return;
            }
        }
    };
    heard("READY=1");
    assert!(place.get("/readyz").expect("answered").starts_with("HTTP/1.1 200"), "READY=1 came too early");
    heard("WATCHDOG=1");
    heard("STATUS=0 workers, 0 tasks queued, 0 running");
    brokerd.terminate();
    heard("STOPPING=1");
    assert_eq!(brokerd.code(), Some(0));
}

#[test]
fn a_restart_keeps_the_ca_and_the_administrators_token() {
    let place = Place::new("");
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut brokerd = Running::start(&mut place.command());
        place.until_ready();
        let read = |name: &str| std::fs::read_to_string(place.path("data").join(name)).expect("made");
        kept.push((read("ca/ca.pem"), read("tls/server.pem"), read("admin.token")));
        brokerd.terminate();
        assert_eq!(brokerd.code(), Some(0));
    }
    assert!(kept[0] == kept[1], "they changed");
}

#[test]
fn metrics_and_probes_answer_and_grpc_speaks_tls_alone() {
    let place = Place::new("");
    let _brokerd = Running::start(&mut place.command());
    place.until_ready();
    assert!(place.get("/healthz").expect("answered").starts_with("HTTP/1.1 200"));
    until("the first look at queue and ledger", || {
        let text = place.get("/metrics")?;
        ["codering_queue_connected 1\n", "codering_ledger_writable 1\n"]
            .iter()
            .all(|line| text.contains(line))
            .then_some(())
    });
    let mut plain = TcpStream::connect(place.grpc).expect("connected");
    plain.set_read_timeout(Some(PATIENCE)).expect("set");
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").expect("written");
    let mut answer = Vec::new();
    // A TLS alert or a closed connection, but never HTTP.
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "gRPC was answered without TLS");
}

#[test]
fn check_says_what_is_wrong_where_and_changes_nothing() {
    let place = Place::new("\n[leases]\nduration = '1ms'");
    let refused = place.check();
    assert_eq!(refused.status.code(), Some(2));
    let text = stderr(&refused);
    let file = place.path("brokerd.toml").display().to_string();
    assert!(
        text.starts_with(&format!("error[config.invalid]: {file}:6: `leases.duration`: must be from")),
        "{text}"
    );
    let unknown = place.command().arg("--check").env("CODERING_GRPC_LISTN", "x").output().expect("ran");
    assert!(stderr(&unknown).contains("did you mean `CODERING_GRPC_LISTEN`?"), "{}", stderr(&unknown));
    let sound = Place::new("").check();
    assert!(sound.status.success() && sound.stdout.is_empty(), "{}", stderr(&sound));
    assert!(!place.path("data").exists());
}

#[test]
fn check_finds_a_secret_and_a_certificate_that_are_not_there() {
    for more in [
        "queue.url_file = '/nonexistent/url'",
        "rest.tls = true\ntls = { cert_file = '/nonexistent/c', key_file = '/nonexistent/k' }",
    ] {
        let refused = Place::new(more).check();
        assert_eq!(refused.status.code(), Some(2), "{more}");
        assert!(stderr(&refused).contains("/nonexistent/"), "{}", stderr(&refused));
    }
}

#[test]
fn a_port_that_is_taken_is_found_before_anything_is_opened() {
    let place = Place::new("");
    let _taken = TcpListener::bind(place.grpc).expect("bound");
    let refused = place.command().output().expect("ran");
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("another process has this port"), "{}", stderr(&refused));
    assert!(!place.path("data/ledger.db").exists());
}

#[test]
fn with_rabbitmq_away_it_serves_and_says_so() {
    let nobody = free_port();
    let place = Place::new(&format!("queue.url = 'amqp://guest:hunter2@{nobody}/%2f'"));
    let mut brokerd = Running::start(&mut place.command());
    let answer = until("readiness", || {
        place.get("/readyz").filter(|a| a.starts_with("HTTP/1.1 200") && a.contains("\"queue\""))
    });
    assert!(!answer.contains("hunter2"), "{answer}");
    assert!(place.get("/metrics").expect("answered").contains("codering_queue_connected 0\n"));
    brokerd.terminate();
    assert_eq!(brokerd.code(), Some(0));
}
