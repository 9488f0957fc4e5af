//! Calling a broker over gRPC with a rustls configuration of our own.

use std::time::Duration;

use codering_core::{Code, Error, ids::shown};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    live::Live,
    proxy::{Hop, Proxy},
};

/// How long a connection may take, its handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent connection is asked for a sign of life, so that one which is dead and was never closed is noticed without any
/// call, and early enough for a worker to renew its leases (30 s by default) over another.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A channel to `https://host:port` that connects when it is first used, and again whenever it was lost; each time with the
/// newest `tls`.
///
/// # Errors
/// [`Code::InvalidInput`] when the address is not of that form.
pub fn channel(broker: &str, tls: impl Into<Live<ClientConfig>>) -> Result<Channel, Error> {
    channel_by(broker, tls, Live::new(Proxy::default()))
}

/// The same, through the newest `proxy` where that is the way to the broker.
///
/// # Errors
/// As for [`channel`].
pub fn channel_by(
    broker: &str,
    tls: impl Into<Live<ClientConfig>>,
    proxy: Live<Proxy>,
) -> Result<Channel, Error> {
    let tls = tls.into();
    let wrong = || {
        Error::new(Code::InvalidInput, format!("`{}` is no broker's address", shown(broker)))
            .hint("it has the form https://host:7443")
    };
    let uri: Uri = broker.parse().map_err(|_| wrong())?;
    let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
    if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
        return Err(wrong());
    }
    let port = uri.port_u16().unwrap_or(7443);
    let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
    // tonic takes an https address for its own TLS only, so it is told http and the requests say https.
    let inner: Uri = format!("http://{}", uri.authority().ok_or_else(wrong)?).parse().map_err(|_| wrong())?;
    let endpoint = Endpoint::from(inner)
        .origin(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (host, name, connector) = (host.clone(), name.clone(), TlsConnector::from(tls.get()));
        let hop = proxy.get().to(&host, port);
        async move { open(&host, port, name, connector, hop).await.map(TokioIo::new) }
    })))
}

/// A TLS connection, through `hop` where one is in the way.
///
/// # Errors
/// Those of connecting, and of a certificate that is not trusted or not for `name`.
pub async fn open(
    host: &str,
    port: u16,
    name: ServerName<'static>,
    connector: TlsConnector,
    hop: Option<Hop>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = match hop {
        Some(hop) => hop.connect(host, port).await?,
        None => TcpStream::connect((host, port)).await?,
    };
    stream.set_nodelay(true)?;
    connector.connect(name, stream).await
}
