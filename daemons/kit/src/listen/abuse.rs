//! What a client that means harm can do with HTTP/2, by hand: frames that no library would write.

use std::time::Instant;

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// What has to end a connection does so within this.
const SOON: Duration = Duration::from_secs(20);

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM_AND_HEADERS: u8 = 5;
/// `GET / http` of host x, from HPACK's static table.
const REQUEST: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 1, b'x'];
/// RFC 9113, 7.
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

async fn server() -> (SocketAddr, Shutdown) {
    let router = Router::new().route("/", get(async || "well"));
    let listener = bind("127.0.0.1:0".parse().expect("an address")).await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let shutdown = Shutdown::new(Duration::from_secs(10));
    tokio::spawn(serve(listener, None, router, Bounds::default(), shutdown.clone()));
    (address, shutdown)
}

/// A connection that has said hello and reads nothing yet.
async fn connected(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("written");
    stream
}

/// The error code of the GOAWAY with which the server ended it; `None` where it ended without one.
async fn farewell(stream: impl AsyncRead + Unpin) -> Option<u32> {
    let mut stream = stream;
    let mut code = None;
    let reading = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if stream.read_exact(&mut payload).await.is_err() {
                return;
            }
            if head[3] == GOAWAY {
                code = Some(u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]));
            }
        }
    };
    tokio::time::timeout(SOON, reading).await.expect("the server ended the connection");
    code
}

async fn is_well(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("written");
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.expect("in time").expect("answered");
    assert!(answer.ends_with("well"), "{answer}");
}

/// The bytes of memory that this process has in use.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("there");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_by_the_thousand_end_their_connection() {
    let (address, _shutdown) = server().await;
    let (read, mut write) = connected(address).await.into_split();
    let burst: Vec<u8> = (0..20_000_u32)
        .flat_map(|n| {
            let stream = 2 * n + 1;
            let open = frame(HEADERS, END_STREAM_AND_HEADERS, stream, &REQUEST);
            [open, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        })
        .collect();
    // The server hangs up in the middle of it.
    tokio::spawn(async move { write.write_all(&burst).await });
    assert_eq!(farewell(read).await, Some(ENHANCE_YOUR_CALM));
    is_well(address).await;
}

#[tokio::test]
async fn headers_without_end_are_not_collected() {
    let (address, _shutdown) = server().await;
    let before = resident();
    let (read, mut write) = connected(address).await.into_split();
    let flood = async move {
        write.write_all(&frame(HEADERS, 0, 1, &REQUEST)).await?;
        // A literal header of 16,000 bytes, never indexed, in each; no frame ends the headers.
        let mut junk = vec![0x10, 1, b'a', 0x7f, 0x81, 0x7c];
        junk.resize(6 + 16_000, b'b');
        let more = frame(CONTINUATION, 0, 1, &junk);
        for _ in 0..20_000 {
            write.write_all(&more).await?;
        }
        Ok::<_, io::Error>(write)
    };
    let flooding = tokio::spawn(flood);
    farewell(read).await;
    let flooded = tokio::time::timeout(SOON, flooding).await.expect("ended").expect("no panic");
    assert!(flooded.is_err(), "320 MB of headers were taken");
    let grown = resident().saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes, with those of the tests beside it");
    is_well(address).await;
}

#[tokio::test]
async fn pings_and_settings_by_the_million_from_a_client_that_reads_nothing_take_no_memory() {
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[])] {
        let (address, _shutdown) = server().await;
        let before = resident();
        let mut stream = connected(address).await;
        let many = frame(kind, 0, 0, payload).repeat(10_000);
        let start = Instant::now();
        let flood = async {
            // Its answers wait to be read, so that in the end the server reads nothing more, or hangs up.
            while stream.write_all(&many).await.is_ok() {}
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), flood).await;
        assert!(start.elapsed() < SOON);
        let grown = resident().saturating_sub(before);
        assert!(grown < 128 << 20, "{grown} bytes, with those of the tests beside it");
        is_well(address).await;
        drop(stream);
    }
}
