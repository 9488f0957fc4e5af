//! Handshakes with a real TLS server on loopback.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A CA of a test's own.
pub(in super::super) type Signer = CertifiedIssuer<'static, KeyPair>;

pub(in super::super) fn ca() -> Signer {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

/// Shows a certificate for `name` that ends in `days`.
pub(in super::super) fn acceptor(signer: &Signer, name: &str, days: i64) -> TlsAcceptor {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(10);
    params.not_after = now + time::Duration::days(days);
    let leaf = params.signed_by(&key, signer).expect("signed");
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("a configuration");
    TlsAcceptor::from(Arc::new(config))
}

/// Serves one handshake with a certificate for `name` that ends in `days` and answers what `look` saw.
async fn shown(signer: &Signer, trusted: &str, name: &str, days: i64) -> Shown {
    let acceptor = acceptor(signer, name, days);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        let _ = acceptor.accept(stream).await;
    });
    let stream = TcpStream::connect(address).await.expect("connected");
    let roots = certificates(trusted).expect("a CA").into_iter().map(|found| found.0).collect();
    let seen = look(stream, "localhost", roots, &[b"h2"]).await.expect("looked");
    server.await.expect("served");
    seen
}

#[tokio::test]
async fn a_good_certificate_is_accepted_and_its_end_and_names_are_told() {
    let ca = ca();
    let seen = shown(&ca, &ca.pem(), "localhost", 20).await;
    assert_eq!(seen.refused, None);
    assert_eq!(seen.names, ["localhost"]);
    let days = (seen.expires_at / 1000 - time::OffsetDateTime::now_utc().unix_timestamp()) / 86_400;
    assert!((19..=20).contains(&days), "{days}");
}

#[tokio::test]
async fn each_reason_to_refuse_a_certificate_is_told_apart() {
    let ours = ca();
    let other = ca();
    assert_eq!(shown(&ours, &other.pem(), "localhost", 20).await.refused, Some(Refused::OtherCa));
    assert_eq!(shown(&ours, &ours.pem(), "localhost", -1).await.refused, Some(Refused::Expired));
    let seen = shown(&ours, &ours.pem(), "broker.lan", 20).await;
    assert_eq!((seen.refused, seen.names), (Some(Refused::OtherName), vec!["broker.lan".to_owned()]));
}

#[test]
fn what_is_no_certificate_is_not_taken_for_a_ca() {
    assert!(certificates("hello").is_err());
    assert!(certificates("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
}
