//! Certificates and rustls configurations: TLS 1.2 and 1.3, by ring, ALPN `h2` and `http/1.1`.
//!
//! - [`Ca`]: the broker's own certificate authority, made at its first start.
//! - [`server_config`], [`client_config`]; [`pinned_client_config`] for a worker that knows the CA by its
//!   fingerprint alone, from its join token.
//! - [`Identity`]: who a client certificate names.

mod ca;
mod files;
mod verify;

use std::sync::Arc;

use codering_core::{Code, Error, WorkerName, time::Millis};
use rcgen::{CertificateParams, DnType, KeyPair, SerialNumber};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use sha2::{Digest, Sha256};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

pub use ca::{Ca, Issued, SignedWorker, WORKER_LIFE};
pub use files::{write_private, write_public};

use crate::clock::now;

/// The organisational unit that a worker's certificate carries.
pub const WORKER_ROLE: &str = "worker";

/// Makes ring the process's provider; again is no harm. Call it first in `main`.
pub fn install_provider() {
    // The error says that one is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
}

fn broken(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Code::ConfigInvalid, format!("{what}: {why}"))
}

/// SHA-256 of a certificate's DER, in hexadecimal.
pub fn fingerprint(der: &[u8]) -> String {
    hex(&Sha256::digest(der))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The certificates of a PEM text.
///
/// # Errors
/// [`Code::ConfigInvalid`] when it is not PEM or holds none.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(broken("certificate", "there is none in the PEM text")),
        Err(e) => Err(broken("certificate", e)),
    }
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The common name; a worker's name.
    pub name: String,
    /// The organisational unit: [`WORKER_ROLE`], or empty.
    pub role: String,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// When its time begins.
    pub not_before_ms: Millis,
    /// When its time is over.
    pub not_after_ms: Millis,
}

impl Identity {
    /// Reads a certificate; says nothing of who signed it.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] when it is no certificate.
    pub fn of(der: &[u8]) -> Result<Self, Error> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| broken("certificate", e))?;
        let subject = certificate.subject();
        let text = |name: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            name.and_then(|n| n.as_str().ok()).unwrap_or_default().to_owned()
        };
        let validity = certificate.validity();
        Ok(Self {
            name: text(subject.iter_common_name().next()),
            role: text(subject.iter_organizational_unit().next()),
            serial: serial_hex(certificate.raw_serial()),
            not_before_ms: validity.not_before.timestamp().saturating_mul(1000),
            not_after_ms: validity.not_after.timestamp().saturating_mul(1000),
        })
    }

    /// When the CA signed it: a certificate is valid from a while before that.
    pub fn issued_at_ms(&self) -> Millis {
        self.not_before_ms + ca::CLOCK_SKEW.whole_milliseconds() as Millis
    }

    /// The worker that it names, if that is what it is for.
    pub fn worker(&self) -> Option<WorkerName> {
        (self.role == WORKER_ROLE).then(|| WorkerName::new(&self.name).ok())?
    }
}

/// DER puts a zero before a serial whose first bit is set; without it the number is the same.
fn serial_hex(serial: &[u8]) -> String {
    hex(serial.strip_prefix(&[0]).unwrap_or(serial))
}

/// Refuses a certificate whose time has not come or is over; `place` names its file.
///
/// # Errors
/// [`Code::ConfigInvalid`] at `place`, with what to do.
pub fn check_validity(pem: &[u8], place: &str) -> Result<Identity, Error> {
    let first = certificates(pem).map_err(|e| e.at(place))?;
    let identity = Identity::of(&first[0]).map_err(|e| e.at(place))?;
    let now = now();
    let when = |at| codering_core::time::rfc3339(at);
    if now >= identity.not_after_ms {
        let what = format!("the certificate expired at {}", when(identity.not_after_ms));
        return Err(Error::new(Code::ConfigInvalid, what)
            .at(place)
            .hint("put a valid one there and restart"));
    }
    if now < identity.not_before_ms {
        let what = format!("the certificate is valid from {}", when(identity.not_before_ms));
        return Err(Error::new(Code::ConfigInvalid, what).at(place).hint("is this machine's clock right?"));
    }
    Ok(identity)
}

/// A certificate chain and its key, from PEM.
fn pair(chain: &[u8], key: &[u8]) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| broken("private key", e))?;
    Ok((certificates(chain)?, key))
}

fn roots(ca_pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    // A system's bundle may have some that are of no use.
    match roots.add_parsable_certificates(certificates(ca_pem)?) {
        (0, _) => Err(broken("CA certificate", "none of them can be used")),
        _ => Ok(roots),
    }
}

fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

/// What a server shows. With `client_ca`, a client may prove itself by a certificate that this CA signed; one without
/// a certificate is let in all the same, and has to prove itself by a token.
///
/// # Errors
/// [`Code::ConfigInvalid`] when a certificate or the key is none, or when they do not belong together.
pub fn server_config(chain: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<ServerConfig, Error> {
    let (chain, key) = pair(chain, key)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| broken("TLS", e))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|e| broken("CA certificate", e))?,
        ),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| broken("certificate and key", e))?;
    config.alpn_protocols = alpn();
    Ok(config)
}

/// What a client trusts (the PEM of one CA or more) and, with `identity` (chain and key in PEM), proves itself by.
///
/// # Errors
/// As for [`server_config`].
pub fn client_config(ca: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<ClientConfig, Error> {
    let builder = client_builder()?.with_root_certificates(roots(ca)?);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let (chain, key) = pair(chain, key)?;
            builder.with_client_auth_cert(chain, key).map_err(|e| broken("certificate and key", e))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A client that knows the CA by its fingerprint: the server has to send that CA in its chain, and its own
/// certificate has to be signed by it and to name the host, as ever.
///
/// # Errors
/// [`Code::InvalidInput`] when it is not 64 hexadecimal digits.
pub fn pinned_client_config(ca_fingerprint: &str) -> Result<ClientConfig, Error> {
    let verifier = verify::Pinned::new(ca_fingerprint, provider())?;
    let mut config = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| broken("TLS", e))
}

/// A signing request for `name` with a new key: both in PEM, `(request, key)`.
///
/// # Errors
/// [`Code::Internal`] when the machine has no randomness.
pub fn csr(name: &WorkerName) -> Result<(String, String), Error> {
    let fail = |e: rcgen::Error| Error::new(Code::Internal, format!("no signing request: {e}"));
    let key = KeyPair::generate().map_err(fail)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(fail)?;
    Ok((request, key.serialize_pem()))
}

/// 16 random bytes, the first bit clear so that its DER and its hexadecimal form are the same number.
fn random_serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0_u8; 16];
    provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| Error::new(Code::Internal, "the machine gives no random numbers"))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests;
