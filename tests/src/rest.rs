//! REST by hand, so that a test can say what no library would.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::Fleet;

/// No answer of a test's takes longer.
const BOUND: Duration = Duration::from_secs(60);

/// A call with the administrator's token: the status and the body.
pub fn call(fleet: &Fleet, method: &str, path: &str, body: Option<&[u8]>) -> (u16, String) {
    let mut stream = TcpStream::connect(fleet.rest()).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream.set_write_timeout(Some(BOUND)).unwrap();
    let length = body.map_or_else(String::new, |body| format!("content-length: {}\r\n", body.len()));
    // The broker says first whether it wants a body, as far as its length tells.
    let expect = if body.is_some_and(|body| !body.is_empty()) { "expect: 100-continue\r\n" } else { "" };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\nconnection: close\r\n{length}{expect}\r\n",
        fleet.token()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = BufReader::new(stream.try_clone().unwrap());
    let (mut status, mut chunked) = read_head(&mut answer);
    if status == 100 {
        stream.write_all(body.unwrap_or_default()).unwrap();
        (status, chunked) = read_head(&mut answer);
    }
    let mut text = Vec::new();
    if chunked {
        loop {
            let size = line(&mut answer);
            let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("`{size}` is no length"));
            let mut chunk = vec![0; size + 2];
            answer.read_exact(&mut chunk).unwrap();
            if size == 0 {
                break;
            }
            text.extend_from_slice(&chunk[..size]);
        }
    } else {
        answer.read_to_end(&mut text).unwrap();
    }
    (status, String::from_utf8(text).unwrap())
}

fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// The status, and whether the body comes in chunks.
fn read_head(from: &mut impl BufRead) -> (u16, bool) {
    let first = line(from);
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut chunked = false;
    loop {
        let header = line(from).to_ascii_lowercase();
        if header.is_empty() {
            return (status.unwrap_or_else(|| panic!("no status in `{first}`")), chunked);
        }
        chunked |= header == "transfer-encoding: chunked";
    }
}
