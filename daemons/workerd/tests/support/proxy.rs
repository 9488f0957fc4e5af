//! A small HTTP proxy: it knows names that no name server does, and answers plain requests itself.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What it answers to whoever asks it for a plain page.
pub const PAGE: &str = "this came through the proxy\n";

pub struct Proxy {
    pub at: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// `routes`: `host:port` as it is asked for, and where that is.
    pub async fn start(on: IpAddr, routes: &[(&str, SocketAddr)]) -> Self {
        let listener = TcpListener::bind((on, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let routes: HashMap<String, SocketAddr> =
            routes.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
        let (seen, routes) = (heads.clone(), Arc::new(routes));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, routes) = (seen.clone(), routes.clone());
                tokio::spawn(async move { carry(stream, &seen, &routes).await });
            }
        });
        Self { at, heads }
    }

    /// Of each request: its first line, and its headers.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn carry(
    mut stream: TcpStream,
    seen: &Mutex<Vec<String>>,
    routes: &HashMap<String, SocketAddr>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let login = head.to_lowercase().contains("\r\nproxy-authorization: ");
    seen.lock().unwrap().push(head);
    if !login {
        // Some ask without first.
        let ask = "HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic realm=\"test\"\r\n\
                   connection: close\r\ncontent-length: 0\r\n\r\n";
        return stream.write_all(ask.as_bytes()).await.ok();
    }
    if method != "CONNECT" {
        let answer =
            format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{PAGE}", PAGE.len());
        return stream.write_all(answer.as_bytes()).await.ok();
    }
    let Some(to) = routes.get(&target) else {
        return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await.ok();
    };
    let mut other = TcpStream::connect(to).await.ok()?;
    stream.write_all(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n").await.ok()?;
    tokio::io::copy_bidirectional(&mut stream, &mut other).await.ok().map(drop)
}
