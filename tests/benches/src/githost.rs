//! A git host on loopback: `git http-backend` behind plain HTTP, as far as clones need it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
};

/// Serves the repositories of a directory until this process ends; its address.
pub fn serve(root: &Path) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let root = root.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let root = root.clone();
            thread::spawn(move || while answer(&root, &stream).is_some() {});
        }
    });
    format!("http://{address}")
}

/// One request; `None` when there is no further one.
fn answer(root: &Path, stream: &TcpStream) -> Option<()> {
    let mut from = BufReader::new(stream);
    let first = line(&mut from)?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query);
    let (mut length, mut chunked) = (0, false);
    while let Some(header) = line(&mut from).filter(|header| !header.is_empty()) {
        let (name, value) = header.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "transfer-encoding" => chunked = true,
            "content-type" => drop(command.env("CONTENT_TYPE", value)),
            "content-encoding" => drop(command.env("HTTP_CONTENT_ENCODING", value)),
            "git-protocol" => drop(command.env("GIT_PROTOCOL", value)),
            "expect" => (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?,
            _ => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let size = u64::from_str_radix(&line(&mut from)?, 16).ok()?;
            (&mut from).take(size).read_to_end(&mut body).ok()?;
            line(&mut from)?;
            if size == 0 {
                break;
            }
        }
    } else {
        (&mut from).take(length).read_to_end(&mut body).ok()?;
    }
    command.env("CONTENT_LENGTH", body.len().to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut backend = command.spawn().ok()?;
    // What a fetch says is small enough for the pipe.
    backend.stdin.take()?.write_all(&body).ok()?;
    let said = backend.wait_with_output().ok()?.stdout;
    let end = said.windows(4).position(|four| four == b"\r\n\r\n")?;
    let headers = String::from_utf8_lossy(&said[..end]);
    let status = headers.lines().find_map(|header| header.strip_prefix("Status: ")).unwrap_or("200 OK");
    let content = &said[end + 4..];
    let head = format!("HTTP/1.1 {status}\r\n{headers}\r\ncontent-length: {}\r\n\r\n", content.len());
    (&*stream).write_all(head.as_bytes()).ok()?;
    (&*stream).write_all(content).ok()
}

fn line(from: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    let read = from.read_line(&mut line).ok()?;
    (read > 0).then(|| line.trim_end().to_owned())
}
