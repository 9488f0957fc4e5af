//! Serving HTTP/1.1 and HTTP/2, with TLS or without, within bounds: connections, handshake and header time.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use codering_core::{Code, Error};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use crate::{shutdown::Shutdown, tls::Identity};

/// Bounds of one listener.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Connections at once; more wait in the kernel's backlog.
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

/// Serves until the drain begins; then no connection is taken, those that are there finish what they are at, and
/// what is left at the deadline is dropped.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    bounds: Bounds,
    shutdown: Shutdown,
) {
    let room = Arc::new(Semaphore::new(bounds.connections));
    let acceptor = tls.map(TlsAcceptor::from);
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = shutdown.begun() => break,
        };
        let Some((stream, address, permit)) = accepted else { break };
        let served =
            connection(stream, address, acceptor.clone(), router.clone(), bounds.clone(), shutdown.clone());
        tasks.spawn(async move {
            served.await;
            drop(permit);
        });
    }
    drop(listener);
    tasks.close();
    tokio::select! {
        () = tasks.wait() => {}
        () = shutdown.ended() => tracing::warn!(connections = tasks.len(), "connections dropped at the drain's deadline"),
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, address)) => return Some((stream, address, permit)),
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

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    bounds: Bounds,
    shutdown: Shutdown,
) {
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(%address, "no TCP_NODELAY: {e}");
    }
    let Some(acceptor) = acceptor else {
        return speak(stream, Peer { address, certificate: None }, router, bounds, shutdown).await;
    };
    let stream = match tokio::time::timeout(bounds.handshake, acceptor.accept(stream)).await {
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
    speak(stream, Peer { address, certificate }, router, bounds, shutdown).await;
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: Peer,
    router: Router,
    bounds: Bounds,
    shutdown: Shutdown,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.header);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(bounds.keepalive)
        .keep_alive_timeout(bounds.keepalive)
        .max_concurrent_streams(bounds.streams);
    let address = peer.address;
    let asked = CancellationToken::new();
    let service = router.map_request({
        let asked = asked.clone();
        move |mut request: axum::http::Request<_>| {
            asked.cancel();
            request.extensions_mut().insert(peer.clone());
            request
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = pin!(connection);
    // hyper's own header time begins when it knows the protocol, which a silent client never tells.
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = silence(&asked, bounds.header) => return tracing::info!(%address, "no request in time"),
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
async fn silence(asked: &CancellationToken, time: Duration) {
    if tokio::time::timeout(time, asked.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
