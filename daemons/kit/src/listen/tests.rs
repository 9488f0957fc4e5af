use std::time::Instant;

use axum::{Extension, routing::get};
use codering_core::WorkerName;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    live::Live,
    tls::{self, Ca},
};

struct Server {
    address: SocketAddr,
    ca: Ca,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

/// Serves `/` (who is there) on a free port, with TLS unless `plain`.
async fn server(bounds: Bounds, plain: bool) -> Server {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Ca::at(directory.path()).expect("made");
    let issued = ca.issue_server(&["localhost".into(), "127.0.0.1".into()]).expect("issued");
    let config =
        tls::server_config(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes(), Some(ca.pem().as_bytes()))
            .expect("valid");
    let router = Router::new()
        .route(
            "/",
            get(async |Extension(peer): Extension<Peer>| {
                peer.certificate.and_then(|c| c.worker()).map_or("nobody".into(), |w| w.to_string())
            }),
        )
        .route(
            "/slow",
            get(async || {
                tokio::time::sleep(Duration::from_millis(300)).await;
                "done"
            }),
        );
    let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let shutdown = Shutdown::new(Duration::from_secs(10));
    let tls = (!plain).then(|| Live::new(config));
    let task = tokio::spawn(serve(listener, tls, router, bounds, shutdown.clone()));
    Server { address, ca, shutdown, task, _directory: directory }
}

impl Server {
    /// The body that `GET path` answers with over TLS.
    async fn get(&self, config: ClientConfig, path: &str) -> io::Result<String> {
        let mut config = config;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        request(stream, path).await
    }
}

async fn request(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> io::Result<String> {
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(body.to_owned())
}

#[tokio::test]
async fn a_workers_certificate_says_who_it_is_and_a_client_without_one_is_nobody() {
    let server = server(Bounds::default(), false).await;
    let ca = server.ca.pem().as_bytes();
    let (csr, key) = tls::csr(&WorkerName::new("w1").expect("a name")).expect("a request");
    let signed = server.ca.issue_worker(&csr, &WorkerName::new("w1").expect("a name")).expect("signed");
    let identity = Some((signed.certificate_pem.as_bytes(), key.as_bytes()));
    let with = tls::client_config(ca, identity).expect("valid");
    assert_eq!(server.get(with, "/").await.expect("answered"), "w1");
    let without = tls::client_config(ca, None).expect("valid");
    assert_eq!(server.get(without, "/").await.expect("answered"), "nobody");
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_on_either_side() {
    let server = server(Bounds::default(), false).await;
    let directory = tempfile::tempdir().expect("a directory");
    let other = Ca::at(directory.path()).expect("made");
    let trusting_other = tls::client_config(other.pem().as_bytes(), None).expect("valid");
    assert!(server.get(trusting_other, "/").await.is_err());
    let (csr, key) = tls::csr(&WorkerName::new("w1").expect("a name")).expect("a request");
    let signed = other.issue_worker(&csr, &WorkerName::new("w1").expect("a name")).expect("signed");
    let identity = Some((signed.certificate_pem.as_bytes(), key.as_bytes()));
    let forged = tls::client_config(server.ca.pem().as_bytes(), identity).expect("valid");
    assert!(server.get(forged, "/").await.is_err());
}

#[tokio::test]
async fn the_cas_fingerprint_is_enough_to_trust_its_server_and_no_other() {
    let server = server(Bounds::default(), false).await;
    let pinned = tls::pinned_client_config(&server.ca.fingerprint()).expect("valid");
    assert_eq!(server.get(pinned, "/").await.expect("answered"), "nobody");
    let other = tls::pinned_client_config(&"0".repeat(64)).expect("valid");
    assert!(server.get(other, "/").await.is_err());
    assert!(tls::pinned_client_config("abc").is_err());
}

#[tokio::test]
async fn a_client_that_never_speaks_is_dropped_in_time() {
    let bounds = Bounds {
        handshake: Duration::from_millis(100),
        header: Duration::from_millis(100),
        ..Bounds::default()
    };
    let preface = format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{}", "\0\0\0\x04\0\0\0\0\0");
    let head = "\x16\x03\x01\x02\0\x01";
    for (plain, said) in [
        (false, ""),
        (false, head),
        (true, ""),
        (true, "GET / HTTP/1.1\r\nx: "),
        (true, "PRI * HT"),
        (true, &preface),
    ] {
        let server = server(bounds.clone(), plain).await;
        let mut silent = TcpStream::connect(server.address).await.expect("connected");
        let start = Instant::now();
        silent.write_all(said.as_bytes()).await.expect("written");
        let mut rest = Vec::new();
        let dropped = tokio::time::timeout(Duration::from_secs(5), silent.read_to_end(&mut rest)).await;
        assert!(dropped.is_ok(), "still there after {said:?}");
        assert!(start.elapsed() >= Duration::from_millis(90), "it was not given its time");
    }
}

#[tokio::test]
async fn where_all_places_are_taken_the_idlest_goes_and_who_waits_for_an_answer_stays() {
    let bounds = Bounds { connections: 2, header: Duration::from_secs(60), ..Bounds::default() };
    let server = server(bounds, true).await;
    let connect = || async { TcpStream::connect(server.address).await.expect("connected") };
    let slow = tokio::spawn(request(connect().await, "/slow"));
    let mut idle = connect().await;
    for _ in 0..10 {
        // Each takes the place of the one before; the first that of the idle one.
        assert_eq!(request(connect().await, "/").await.expect("served"), "nobody");
    }
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), idle.read_to_end(&mut rest)).await.expect("dropped").ok();
    assert_eq!(slow.await.expect("no panic").expect("answered"), "done");
}

#[tokio::test]
async fn where_all_wait_for_an_answer_one_more_is_refused_and_told_so() {
    let (entered, leave) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (told, left) = (entered.clone(), leave.clone());
    let router = Router::new().route(
        "/",
        get(async move || {
            told.notify_one();
            left.notified().await;
            "done"
        }),
    );
    let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let shutdown = Shutdown::new(Duration::from_millis(200));
    tokio::spawn(serve(listener, None, router, Bounds { connections: 1, ..Bounds::default() }, shutdown));
    let busy = tokio::spawn(request(TcpStream::connect(address).await.expect("connected"), "/"));
    entered.notified().await;
    let mut refused = String::new();
    let mut one_more = TcpStream::connect(address).await.expect("connected");
    one_more.read_to_string(&mut refused).await.expect("told");
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("broker.busy"), "{refused}");
    leave.notify_one();
    assert_eq!(busy.await.expect("no panic").expect("answered"), "done");
}

#[tokio::test]
async fn the_drain_lets_an_answer_finish_and_takes_no_new_connection() {
    let server = server(Bounds::default(), true).await;
    let slow = tokio::spawn(request(TcpStream::connect(server.address).await.expect("connected"), "/slow"));
    // The request is on its way once another on a later connection was answered.
    request(TcpStream::connect(server.address).await.expect("connected"), "/").await.expect("answered");
    server.shutdown.begin();
    assert_eq!(slow.await.expect("no panic").expect("answered"), "done");
    tokio::time::timeout(Duration::from_secs(5), server.task)
        .await
        .expect("ended before its deadline")
        .expect("no panic");
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn what_is_still_under_way_at_the_deadline_is_dropped() {
    let bounds = Bounds { header: Duration::from_secs(3600), ..Bounds::default() };
    let entered = Arc::new(tokio::sync::Notify::new());
    let told = entered.clone();
    let router = Router::new().route(
        "/",
        get(async move || {
            told.notify_one();
            std::future::pending::<()>().await
        }),
    );
    let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("bound");
    let mut stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
    let shutdown = Shutdown::new(Duration::from_millis(200));
    let task = tokio::spawn(serve(listener, None, router, bounds, shutdown.clone()));
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    entered.notified().await;
    let start = Instant::now();
    shutdown.begin();
    tokio::time::timeout(Duration::from_secs(5), task).await.expect("ended").expect("no panic");
    assert!(start.elapsed() >= Duration::from_millis(200), "it was not given its time");
    let left = stream.read(&mut [0; 64]).await;
    assert!(matches!(left, Ok(0) | Err(_)), "{left:?}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_a_cure() {
    let server = server(Bounds::default(), true).await;
    let error = bind(server.address).await.expect_err("taken").to_string();
    assert!(error.starts_with(&server.address.to_string()) && error.contains("another process"), "{error}");
}
