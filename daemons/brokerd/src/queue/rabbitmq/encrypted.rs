//! AMQP over TLS, by the same rustls as all else that codering speaks. lapin's own way to it brings some thirty crates, DES and
//! RC2 among them, for keys in PKCS #12.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use codering_kit::{connect, tls};
use futures::{AsyncRead, AsyncWrite, Stream};
use lapin::{Connection, ConnectionProperties, tcp::AsyncTcpStream, uri::AMQPUri};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

/// What a connection trusts: the authorities of a PEM text.
///
/// # Errors
/// What is wrong with the text.
pub(super) fn trust(authorities: &[u8]) -> Result<Arc<ClientConfig>, String> {
    let mut config = tls::client_config(authorities, None).map_err(|error| error.to_string())?;
    // AMQP has no name there.
    config.alpn_protocols.clear();
    Ok(Arc::new(config))
}

/// Connects; the certificate has to name the host of the address.
pub(super) async fn connect(
    uri: AMQPUri,
    tls: Arc<ClientConfig>,
    properties: ConnectionProperties,
) -> lapin::Result<Connection> {
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Wires(Tokio::current())));
    let open = async move |uri: AMQPUri, _| Ok(AsyncTcpStream::Plain(open(&uri, tls.clone()).await?));
    Connection::connector(uri, runtime, open, properties).await
}

async fn open(uri: &AMQPUri, tls: Arc<ClientConfig>) -> io::Result<Wire> {
    let (host, port) = (uri.authority.host.as_str(), uri.authority.port);
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    Ok(connect::open(host, port, name, TlsConnector::from(tls), None).await?.compat())
}

type Wire = Compat<TlsStream<TcpStream>>;

/// tokio's reactor with encrypted streams for plain ones, so that lapin takes what [`open`] made; lapin asks it for none.
#[derive(Debug, Clone)]
struct Wires(Tokio);

impl Reactor for Wires {
    type TcpStream = Wire;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Wire, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
