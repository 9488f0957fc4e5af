//! A TLS handshake made only to look at it: what the broker shows, whether the CA vouches for it, and
//! until when.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use codering_core::time::Millis;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What the handshake showed.
#[derive(Debug)]
pub struct Shown {
    /// When the broker's certificate ends; 0 where none was shown.
    pub expires_at: Millis,
    /// The names that it is for.
    pub names: Vec<String>,
    /// Why it was not accepted.
    pub refused: Option<Refused>,
    /// What was shaken hands over, where it was accepted.
    pub stream: Option<TlsStream<TcpStream>>,
}

/// A certificate that is trusted to sign others.
pub type Authority = CertificateDer<'static>;

/// Why a certificate was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its time is over, or has not come.
    Expired,
    /// It is for other names.
    OtherName,
    /// Another CA signed it.
    OtherCa,
    /// The other side does not speak TLS, or spoke it otherwise wrongly.
    Other(String),
}

/// The certificates of a PEM text with the time at which each ends.
pub fn certificates(pem: &str) -> Result<Vec<(CertificateDer<'static>, Millis)>, String> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("it is not PEM: {error}"))?;
        let (ends, _) = facts(&certificate).ok_or("it is not an X.509 certificate")?;
        found.push((certificate, ends));
    }
    if found.is_empty() { Err("it holds no certificate".into()) } else { Ok(found) }
}

/// The certificates of a machine's bundle; what is none is left out, as the broker leaves it out.
pub fn authorities(pem: &str) -> Vec<Authority> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().collect()
}

/// From when until when a certificate is valid.
pub fn life(pem: &str) -> Result<(Millis, Millis), String> {
    let (der, ends) = certificates(pem)?.swap_remove(0);
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|e| e.to_string())?;
    Ok((parsed.validity().not_before.timestamp().saturating_mul(1000), ends))
}

/// The common name of the first certificate of a PEM text.
pub fn common_name(pem: &str) -> Option<String> {
    let (der, _) = certificates(pem).ok()?.swap_remove(0);
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    Some(parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned())
}

/// When a certificate ends, and the names that it is for.
fn facts(certificate: &CertificateDer<'_>) -> Option<(Millis, Vec<String>)> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| {
        extension.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        })
    });
    Some((parsed.validity().not_after.timestamp() * 1000, names.into_iter().flatten().collect()))
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(|b| std::net::IpAddr::from(b).to_string());
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()))
}

/// Shakes hands over `stream` with `host`, for one of these protocols (ALPN), and says what was seen.
pub async fn look(
    stream: TcpStream,
    host: &str,
    ca: Vec<Authority>,
    protocols: &[&[u8]],
) -> Result<Shown, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(ca);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| format!("the CA certificate cannot be used: {error}"))?;
    let seen = Arc::new(Seen { inner, leaf: Mutex::default() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("`{host}` is no host name"))?;
    let shaken = timeout(HANDSHAKE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
    let (stream, refused) = match shaken {
        Err(_) => (None, Some(Refused::Other("it did not finish the TLS handshake within 5 s".into()))),
        Ok(Ok(stream)) => (Some(stream), None),
        Ok(Err(error)) => (None, Some(reason(&error))),
    };
    let leaf = seen.leaf.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (expires_at, names) = leaf.as_ref().and_then(facts).unwrap_or_default();
    Ok(Shown { expires_at, names, refused, stream })
}

fn reason(error: &std::io::Error) -> Refused {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(error)) => match error {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Refused::Expired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Refused::OtherName
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Refused::OtherCa,
            other => Refused::Other(other.to_string()),
        },
        Some(other) => Refused::Other(other.to_string()),
        None => Refused::Other(error.to_string()),
    }
}

/// Verifies as ever, and keeps the certificate that was shown.
#[derive(Debug)]
struct Seen {
    inner: Arc<WebPkiServerVerifier>,
    leaf: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.leaf.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.clone().into_owned());
        self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
pub(super) mod tests;
