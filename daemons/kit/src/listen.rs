//! Serving HTTP/1.1 and HTTP/2, with TLS or without, within bounds: connections, handshake and header time, and what
//! one HTTP/2 connection may cost.

mod room;

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use codering_core::{Code, Error};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use room::{Room, Seat};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{ServiceExt as _, service_fn};

use crate::{live::Live, shutdown::Shutdown, tls::Identity};

/// Bounds of one listener.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Connections at once. For one more the idlest goes; where all wait for an answer, it is refused.
    pub connections: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// Until the first request has come; and on HTTP/1.1 for the head of each later one, idle time included.
    pub header: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// HTTP/2 pings a silent peer this often, and gives it as long to answer.
    pub keepalive: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            streams: 1024,
            keepalive: Duration::from_secs(20),
        }
    }
}

/// Streams of one connection that were reset before they were looked at, and those that we reset for a fault of the
/// peer's: beyond them the connection ends with ENHANCE_YOUR_CALM (CVE-2023-44487, CVE-2025-8671).
const RESET_STREAMS: usize = 20;
const FAULTY_STREAMS: usize = 256;
/// Bytes of one request's headers, CONTINUATION frames and all.
const HEADER_BYTES: u32 = 16 << 10;
/// Bytes that a peer may send before they are read, on one connection.
const WINDOW_BYTES: u32 = 1 << 20;
/// Bytes of one answer that wait for the peer to take them.
const SEND_BYTES: usize = 256 << 10;

/// Who is at the other end; an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// What its certificate says, where it showed one that the client CA signed.
    pub certificate: Option<Arc<Identity>>,
}

/// Binds.
///
/// # Errors
/// [`Code::ConfigInvalid`] with the address as its place.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|e| {
        let error = Error::new(Code::ConfigInvalid, format!("cannot listen: {e}")).at(address.to_string());
        match e.kind() {
            io::ErrorKind::AddrInUse => error.hint("another process has this port: choose another"),
            io::ErrorKind::AddrNotAvailable => error.hint("this machine does not have this address"),
            io::ErrorKind::PermissionDenied => error.hint("ports below 1024 need CAP_NET_BIND_SERVICE"),
            _ => error,
        }
    })
}

/// Takes a listener that another process opened.
///
/// # Errors
/// [`Code::Internal`] when it cannot be used.
pub fn adopt(listener: std::net::TcpListener) -> Result<TcpListener, Error> {
    let adopted = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
    adopted
        .map_err(|e| Error::new(Code::Internal, format!("a socket that was handed over is of no use: {e}")))
}

/// Serves until the drain begins; then no connection is taken, those that are there finish what they are at, and
/// what is left at the deadline is dropped.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Live<ServerConfig>>,
    router: Router,
    bounds: Bounds,
    shutdown: Shutdown,
) {
    let room = Room::of(bounds.connections);
    let tasks = TaskTracker::new();
    loop {
        let (stream, address) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = shutdown.begun() => break,
        };
        // A connection keeps what it was shown; a newer certificate is for those that come later.
        let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(tls.get()));
        let Some(seat) = room.enter().await else {
            refuse(&stream, acceptor.is_some());
            tracing::warn!(%address, connections = bounds.connections, "refused: as many connections wait for an answer as there may be");
            continue;
        };
        let served = connection(
            stream,
            address,
            acceptor,
            router.clone(),
            bounds.clone(),
            shutdown.clone(),
            Arc::new(seat),
        );
        tasks.spawn(served);
    }
    drop(listener);
    tasks.close();
    tokio::select! {
        () = tasks.wait() => {}
        () = shutdown.ended() => tracing::warn!(connections = tasks.len(), "connections dropped at the drain's deadline"),
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(e) => {
                tracing::warn!("a connection was not accepted: {e}");
                // Out of file descriptors, most likely: without a pause this would spin.
                if !matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Says so where that takes no handshake; what does not fit the socket's empty buffer at once is not worth waiting for.
fn refuse(stream: &TcpStream, tls: bool) {
    if !tls {
        let code = Code::BrokerBusy;
        let body = format!(
            r#"{{"type":"urn:codering:error:{0}","code":"{0}","status":503,"title":"{1}"}}"#,
            code.as_str(),
            code.meaning()
        );
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
             content-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.try_write(answer.as_bytes());
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    bounds: Bounds,
    shutdown: Shutdown,
    seat: Arc<Seat>,
) {
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(%address, "no TCP_NODELAY: {e}");
    }
    let Some(acceptor) = acceptor else {
        return speak(stream, Peer { address, certificate: None }, router, bounds, shutdown, seat).await;
    };
    let shaking = tokio::time::timeout(bounds.handshake, acceptor.accept(stream));
    let shaken = tokio::select! {
        shaken = shaking => shaken,
        () = seat.is_needed() => return tracing::debug!(%address, "made room for another"),
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return tracing::info!(%address, "TLS handshake failed: {e}"),
        Err(_) => return tracing::info!(%address, "TLS handshake not done in time"),
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| Identity::of(chain.first()?).ok())
        .map(Arc::new);
    speak(stream, Peer { address, certificate }, router, bounds, shutdown, seat).await;
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: Peer,
    router: Router,
    bounds: Bounds,
    shutdown: Shutdown,
    seat: Arc<Seat>,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.header);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(bounds.keepalive)
        .keep_alive_timeout(bounds.keepalive)
        .max_concurrent_streams(bounds.streams)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(FAULTY_STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES);
    let address = peer.address;
    let first = CancellationToken::new();
    let service = service_fn({
        let (first, seat) = (first.clone(), seat.clone());
        move |mut request: axum::http::Request<_>| {
            first.cancel();
            request.extensions_mut().insert(peer.clone());
            let (router, asked) = (router.clone(), seat.ask());
            async move {
                let answer = router.oneshot(request.map(Body::new)).await?;
                Ok::<_, Infallible>(asked.until_out(answer))
            }
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = pin!(connection);
    // hyper's own header time begins when it knows the protocol, which a silent client never tells.
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = silence(&first, bounds.header) => return tracing::info!(%address, "no request in time"),
        () = seat.is_needed() => return tracing::debug!(%address, "made room for another"),
        () = shutdown.begun() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection => result,
                () = shutdown.ended() => return,
            }
        }
    };
    if let Err(e) = result {
        tracing::debug!(%address, "connection ended: {e}");
    }
}

/// Resolves when nothing was asked within this time; never, once something was.
async fn silence(first: &CancellationToken, time: Duration) {
    if tokio::time::timeout(time, first.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod abuse;
#[cfg(test)]
mod tests;
