//! Listeners that systemd holds: they outlive brokerd, and it uses them in place of its own.

mod running;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Command, Output, Stdio},
};

use running::{PATIENCE, Place, Running, until};

/// brokerd started as systemd starts it: the sockets from number 3 on, named.
fn handed(place: &Place, names: &str, first: &TcpListener, second: &TcpListener) -> Command {
    let program = place.command();
    let mut command = Command::new("sh");
    let handing = "exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\"";
    command.args(["-c", handing, "sh"]).arg(program.get_program()).args(program.get_args());
    let given = |listener: &TcpListener| Stdio::from(OwnedFd::from(listener.try_clone().expect("cloned")));
    command
        .env("LISTEN_FDNAMES", names)
        .env_remove("NOTIFY_SOCKET")
        .stdin(given(first))
        .stdout(given(second));
    command
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let at = listener.local_addr().expect("bound");
    (listener, at)
}

fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

fn healthz(at: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(at).expect("not refused");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("written");
    stream
}

#[test]
fn a_client_that_comes_while_brokerd_restarts_waits_and_is_answered() {
    let place = Place::new("");
    let ((grpc, grpc_at), (rest, rest_at)) = (listener(), listener());
    for round in 0..3 {
        // The first comes before it was ever started, the others while it is gone.
        let waiting = healthz(rest_at);
        TcpStream::connect(grpc_at).expect("not refused");
        let mut brokerd = Running::start(&mut handed(&place, "grpc:rest", &grpc, &rest));
        assert!(answer(waiting).starts_with("HTTP/1.1 200"), "round {round}");
        brokerd.terminate();
        assert_eq!(brokerd.code(), Some(0));
    }
    assert!(
        TcpStream::connect(place.grpc).is_err(),
        "it bound its own address beside the one that it was handed"
    );
}

fn refused(place: &Place, names: &str, rest: &TcpListener) -> String {
    let (grpc, _) = listener();
    let mut command = handed(place, names, &grpc, rest);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("started");
    let mut text = String::new();
    until("its end", || child.try_wait().expect("waited"));
    child.stderr.take().expect("piped").read_to_string(&mut text).expect("read");
    let output: Output = child.wait_with_output().expect("waited");
    assert_eq!(output.status.code(), Some(2), "{text}");
    text
}

#[test]
fn a_socket_that_nobody_knows_or_that_would_show_tokens_to_the_network_is_refused() {
    let place = Place::new("");
    let (rest, _) = listener();
    let text = refused(&place, "grpc:http", &rest);
    assert!(text.contains("a socket called `http`") && text.contains("one of grpc, rest"), "{text}");
    let everywhere = TcpListener::bind("0.0.0.0:0").expect("bound");
    let text = refused(&place, "grpc:rest", &everywhere);
    assert!(text.contains("tokens would cross the network readable"), "{text}");
}

#[test]
fn sockets_meant_for_another_process_are_left_alone() {
    for pid in [Some("1"), None] {
        let place = Place::new("");
        let mut command = place.command();
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "grpc").env_remove("LISTEN_PID");
        command.envs(pid.map(|pid| ("LISTEN_PID", pid)));
        let _brokerd = Running::start(&mut command);
        place.until_ready();
    }
}
