//! SIGHUP and `codering-brokerd reload`: new settings without a dropped connection, or the old ones and the reason.

mod running;

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    process::{Command, Output},
    sync::Arc,
};

use running::{PATIENCE, Place, Running, until};
use rustls::{ClientConnection, pki_types::ServerName};

/// A request on a connection that stays open; the answer's head and body.
fn ask(stream: &mut TcpStream, method: &str, path: &str, more: &str, body: &str) -> String {
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\n{more}content-length: {length}\r\n\r\n{body}")
        .expect("written");
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).expect("answered");
        assert!(length > 0, "the connection was closed");
        answer.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let all = head
            .to_lowercase()
            .lines()
            .find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if body.len() >= all.unwrap_or(0) {
            return text;
        }
    }
}

fn with_token(place: &Place) -> String {
    let token = std::fs::read_to_string(place.path("data/admin.token")).expect("made");
    format!("authorization: Bearer {}\r\ncontent-type: application/json\r\n", token.trim())
}

/// A connection that stays open, and a project.
fn connected(place: &Place) -> TcpStream {
    let mut open = TcpStream::connect(place.rest).expect("connected");
    open.set_read_timeout(Some(PATIENCE)).expect("set");
    let made = ask(&mut open, "POST", "/api/v1/projects", &with_token(place), r#"{"name":"demo"}"#);
    assert!(made.starts_with("HTTP/1.1 20"), "{made}");
    open
}

/// Submits a job whose tasks ask for this much memory.
fn submit(stream: &mut TcpStream, place: &Place, memory: &str) -> String {
    let body = format!(
        r#"{{"project":"demo","git":"https://host/x.git","command":"true","array":"1-2","limits":{{"memory":"{memory}"}}}}"#
    );
    ask(stream, "POST", "/api/v1/jobs", &with_token(place), &body)
}

/// Whether the certificate that is shown now is for this name.
fn shows(place: &Place, name: &str) -> bool {
    let ca = std::fs::read(place.path("data/ca/ca.pem")).expect("made");
    let config = Arc::new(codering_kit::tls::client_config(&ca, None).expect("valid"));
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut tls = ClientConnection::new(config, name).expect("a client");
    let mut stream = TcpStream::connect(place.grpc).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    while tls.is_handshaking() {
        if tls.complete_io(&mut stream).is_err() {
            return false;
        }
    }
    true
}

fn reload(place: &Place, brokerd: &Running) -> Output {
    Command::new(env!("CARGO_BIN_EXE_codering-brokerd"))
        .arg("reload")
        .env("MAINPID", brokerd.id().to_string())
        .env("RUNTIME_DIRECTORY", place.path("run"))
        .output()
        .expect("ran")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

struct Systemd(UnixDatagram);

impl Systemd {
    fn hears(place: &Place) -> Self {
        let socket = UnixDatagram::bind(place.path("notify")).expect("bound");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        Self(socket)
    }

    /// What comes until something that begins so, itself included.
    fn until(&self, wanted: &str) -> Vec<String> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let length = self.0.recv(&mut buffer).unwrap_or_else(|e| panic!("no {wanted} in {all:?}: {e}"));
            all.push(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
            if all.last().is_some_and(|told| told.starts_with(wanted)) {
                return all;
            }
        }
    }
}

fn started(place: &Place) -> (Running, Systemd) {
    std::fs::create_dir(place.path("run")).expect("made");
    let systemd = Systemd::hears(place);
    let brokerd = Running::start(
        place
            .command()
            .env("NOTIFY_SOCKET", place.path("notify"))
            .env("RUNTIME_DIRECTORY", place.path("run")),
    );
    systemd.until("READY=1");
    (brokerd, systemd)
}

#[test]
fn a_reload_changes_limits_and_the_certificate_and_drops_no_connection() {
    codering_kit::tls::install_provider();
    let place = Place::new("");
    let (brokerd, systemd) = started(&place);
    let mut open = connected(&place);
    let made = submit(&mut open, &place, "256M");
    assert!(made.starts_with("HTTP/1.1 201"), "{made}");
    assert!(shows(&place, "localhost") && !shows(&place, "broker.test"));

    place.configure("public_names = ['broker.test']\nlimits.max_memory = '128M'\nlimits.memory = '64M'\ngrpc.listen = '127.0.0.1:1'");
    let done = reload(&place, &brokerd);
    assert!(done.status.success(), "{}", said(&done));
    let effect = said(&done);
    assert!(effect.contains("public_names") && effect.contains("limits.max_memory"), "{effect}");
    assert!(effect.contains("only a restart changes grpc.listen"), "{effect}");
    let told = systemd.until("RELOADING=1");
    assert!(told.last().is_some_and(|t| t.contains("\nMONOTONIC_USEC=")), "{told:?}");
    systemd.until("READY=1");

    let refused = submit(&mut open, &place, "256M");
    assert!(refused.starts_with("HTTP/1.1 4") && refused.contains("memory"), "{refused}");
    assert!(submit(&mut open, &place, "64M").starts_with("HTTP/1.1 201"));
    assert!(shows(&place, "broker.test"), "the old certificate is shown still");
    // What waits for a restart is not forgotten.
    assert!(said(&reload(&place, &brokerd)).contains("only a restart changes grpc.listen"));
}

#[test]
fn a_wrong_configuration_leaves_the_old_in_force_and_the_reload_fails_with_file_line_and_key() {
    let place = Place::new("limits.max_memory = '1G'");
    let (brokerd, systemd) = started(&place);
    let mut open = connected(&place);
    let file = place.path("brokerd.toml").display().to_string();
    for (wrong, reason) in [
        (
            "limits.max_memory = '128M'\nlimits.memory = '64M'\nretention.keep_for = '1ms'",
            format!("{file}:6: `retention.keep_for`: must be"),
        ),
        (
            "limits.max_memroy = '128M'",
            format!("{file}:4: unknown key `max_memroy` in [limits] (did you mean `max_memory`?)"),
        ),
        ("log = 'codering=loud'", format!("{file}:4: `log`: is no log filter")),
        (
            "limits.max_memory = '600M'\nrest.tls = true\ntls = { cert_file = '/nonexistent/c', key_file = '/nonexistent/k' }",
            "/nonexistent/c: cannot be read".into(),
        ),
    ] {
        place.configure(wrong);
        let refused = reload(&place, &brokerd);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(
            said(&refused).starts_with(&format!("error[config.invalid]: {reason}")),
            "{} is not {reason}",
            said(&refused)
        );
        systemd.until("RELOADING=1");
        let told = systemd.until("READY=1");
        let status = format!("STATUS=the old configuration stays in force: {reason}");
        assert!(told.iter().any(|told| told.starts_with(&status)), "{told:?}");
        let ready = ask(&mut open, "GET", "/readyz", "", "");
        assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("\"config\""), "{ready}");
        assert!(
            submit(&mut open, &place, "1G").starts_with("HTTP/1.1 201"),
            "{wrong}: some of it took effect"
        );
    }
    place.configure("limits.max_memory = '128M'\nlimits.memory = '64M'");
    let done = reload(&place, &brokerd);
    assert!(done.status.success(), "{}", said(&done));
    assert!(!ask(&mut open, "GET", "/readyz", "", "").contains("\"config\""));
    assert!(submit(&mut open, &place, "1G").starts_with("HTTP/1.1 4"));
}

#[test]
fn a_hangup_during_the_start_does_not_end_it() {
    let place = Place::new("");
    let systemd = Systemd::hears(&place);
    let brokerd = Running::start(place.command().env("NOTIFY_SOCKET", place.path("notify")));
    // Said before the ledger is opened, and after the signals are caught.
    systemd.until("STATUS=opening the ledger");
    brokerd.signal("HUP");
    systemd.until("READY=1");
    systemd.until("RELOADING=1");
    systemd.until("READY=1");
    until("an answer", || place.get("/healthz"));
}

#[test]
fn reload_outside_a_unit_says_what_to_do() {
    let place = Place::new("");
    let output = place.command().arg("reload").env_remove("MAINPID").output().expect("ran");
    assert!(!output.status.success());
    assert!(said(&output).contains("systemctl reload codering-brokerd"), "{}", said(&output));
}
