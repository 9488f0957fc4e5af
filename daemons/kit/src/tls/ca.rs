//! The broker's certificate authority.

use std::{
    fmt,
    fs::DirBuilder,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use codering_core::{Code, Error, WorkerName, time::Millis};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::{
    Identity, certificates, check_validity, fingerprint, hex, random_serial, write_private, write_public,
};

/// Ten years: renewing it means enrolling every worker again.
const CA_LIFE: Duration = Duration::days(3650);
/// The broker makes its own anew long before.
const SERVER_LIFE: Duration = Duration::days(825);
/// It renews its certificate by itself, so what was stolen and not noticed is of no use after this.
pub const WORKER_LIFE: std::time::Duration = std::time::Duration::from_secs(30 * 86_400);
/// A certificate is valid a while before it was made, for clocks that are behind, or were ahead then.
pub(super) const CLOCK_SKEW: Duration = Duration::days(1);

/// Signs certificates with the key at `ca.key`.
pub struct Ca {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({})", self.fingerprint())
    }
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate and the CA's after it, in PEM.
    pub chain_pem: String,
    /// The private key, in PEM.
    pub key_pem: String,
}

/// A worker's new certificate.
#[derive(Debug, Clone)]
pub struct SignedWorker {
    /// The certificate, in PEM.
    pub certificate_pem: String,
    /// What it says, its serial number above all.
    pub identity: Identity,
}

fn internal(what: &str, why: impl fmt::Display) -> Error {
    Error::new(Code::Internal, format!("{what}: {why}"))
}

impl Ca {
    /// The CA in this directory (`ca.pem`, `ca.key`); made there when there is none.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] when one of the two files is missing, broken or expired, or when others may read
    /// the key; [`Code::Internal`] when they cannot be written.
    pub fn at(directory: &Path) -> Result<Self, Error> {
        let (certificate, key) = (directory.join("ca.pem"), directory.join("ca.key"));
        match (certificate.exists(), key.exists()) {
            (true, true) => Self::read(&certificate, &key),
            // The certificate is written last: a key alone is a first start that was cut short.
            (false, _) => Self::make(directory),
            (true, false) => Err(Error::new(Code::ConfigInvalid, "the CA's key is missing")
                .at(key.display().to_string())
                .hint("restore it from your backup; or remove ca.pem too, and enroll every worker again")),
        }
    }

    fn read(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|e| {
                Error::new(Code::ConfigInvalid, format!("cannot be read: {e}")).at(path.display().to_string())
            })
        };
        let place = key.display().to_string();
        let mode = std::fs::metadata(key).map_err(|e| internal(&place, e))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(Error::new(Code::ConfigInvalid, "others may read the CA's key")
                .at(&place)
                .hint("chmod 600 it"));
        }
        let pem = read(certificate)?;
        check_validity(pem.as_bytes(), &certificate.display().to_string()).map_err(|error| {
            match error.hint {
                ref hint if hint.contains("restart") => error.hint(
                    "move this directory away, start again for a new CA, and enroll every worker again",
                ),
                _ => error,
            }
        })?;
        Self::of(pem, &read(key)?).map_err(|e| e.at(place))
    }

    fn of(pem: String, key_pem: &str) -> Result<Self, Error> {
        let fail = |e: rcgen::Error| Error::new(Code::ConfigInvalid, format!("is not the CA's key: {e}"));
        let key = KeyPair::from_pem(key_pem).map_err(fail)?;
        let der = certificates(pem.as_bytes())?.swap_remove(0);
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(fail)?;
        Ok(Self { pem, der, issuer })
    }

    fn make(directory: &Path) -> Result<Self, Error> {
        let place = directory.display().to_string();
        let fail = |e: rcgen::Error| internal("no CA could be made", e);
        let io = |e: std::io::Error| internal("the CA cannot be written", e).at(&place);
        let key = KeyPair::generate().map_err(fail)?;
        let mut params = params(CA_LIFE)?;
        // The serial number in the name keeps two brokers' CAs apart in one trust store.
        let serial = params.serial_number.as_ref().map(|s| hex(&s.to_bytes()[..4])).unwrap_or_default();
        params.distinguished_name.push(DnType::CommonName, format!("codering CA {serial}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(fail)?;
        let made = Self::of(certificate.pem(), &key.serialize_pem())?;
        DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(io)?;
        write_private(&directory.join("ca.key"), key.serialize_pem().as_bytes()).map_err(io)?;
        write_public(&directory.join("ca.pem"), made.pem.as_bytes()).map_err(io)?;
        Ok(made)
    }

    /// The CA's certificate, in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the CA's certificate, in hexadecimal: what a join token carries.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// A server's certificate with a new key, for these host names and addresses.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] when a name cannot stand in a certificate.
    pub fn issue_server(&self, names: &[String]) -> Result<Issued, Error> {
        self.issue_server_for(names, SERVER_LIFE.unsigned_abs())
    }

    /// The same, for this long.
    ///
    /// # Errors
    /// As for [`Ca::issue_server`].
    pub fn issue_server_for(&self, names: &[String], life: std::time::Duration) -> Result<Issued, Error> {
        let fail = |e: rcgen::Error| internal("no server certificate could be made", e);
        let mut params = params(as_time(life))?;
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("codering", String::as_str));
        params.subject_alt_names = names.iter().map(|name| alternative(name)).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(fail)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(fail)?;
        Ok(Issued { chain_pem: format!("{}{}", certificate.pem(), self.pem), key_pem: key.serialize_pem() })
    }

    /// Signs a worker's request. What the request asks for but its key is ignored: the certificate names `worker`.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] when it is no PKCS #10 request, or not signed by its own key.
    pub fn issue_worker(&self, csr_pem: &str, worker: &WorkerName) -> Result<SignedWorker, Error> {
        self.issue_worker_for(csr_pem, worker, WORKER_LIFE)
    }

    /// The same, for this long.
    ///
    /// # Errors
    /// As for [`Ca::issue_worker`].
    pub fn issue_worker_for(
        &self,
        csr_pem: &str,
        worker: &WorkerName,
        life: std::time::Duration,
    ) -> Result<SignedWorker, Error> {
        let refuse = |e: rcgen::Error| {
            Error::new(Code::InvalidInput, format!("the signing request is refused: {e}")).at("csr_pem")
        };
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(refuse)?;
        let mut params = params(as_time(life))?;
        params.distinguished_name.push(DnType::CommonName, worker.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, super::WORKER_ROLE);
        params.subject_alt_names = vec![alternative(worker.as_str())?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = CertificateSigningRequestParams { params, public_key: request.public_key }
            .signed_by(&self.issuer)
            .map_err(refuse)?;
        Ok(SignedWorker { certificate_pem: signed.pem(), identity: Identity::of(signed.der())? })
    }

    /// Whether a server certificate can still be used for these names: signed by this CA, naming them all, and
    /// valid until `at_least`.
    pub fn covers(&self, chain_pem: &str, names: &[String], at_least: Millis) -> bool {
        let Ok(chain) = certificates(chain_pem.as_bytes()) else { return false };
        let [leaf, .., last] = chain.as_slice() else { return false };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(leaf) else { return false };
        let wanted: Result<Vec<_>, _> = names.iter().map(|name| alternative(name)).collect();
        let named =
            parsed.subject_alternative_name().ok().flatten().map_or(0, |s| s.value.general_names.len());
        *last == self.der
            && Identity::of(leaf).is_ok_and(|i| i.not_after_ms >= at_least)
            && wanted.is_ok_and(|w| w.len() == named)
            && names.iter().all(|name| names_host(&parsed, name))
    }
}

fn as_time(life: std::time::Duration) -> Duration {
    Duration::try_from(life).unwrap_or(CA_LIFE)
}

fn params(life: Duration) -> Result<CertificateParams, Error> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
    params.serial_number = Some(random_serial()?);
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "codering");
    Ok(params)
}

fn alternative(name: &str) -> Result<SanType, Error> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'*');
    let fail = || {
        Error::new(
            Code::ConfigInvalid,
            format!("`{}` is no host name or address", codering_core::ids::shown(name)),
        )
        .at("public_names")
    };
    if name.is_empty() || name.len() > 253 || !name.bytes().all(plain) {
        return Err(fail());
    }
    Ok(SanType::DnsName(name.try_into().map_err(|_| fail())?))
}

fn names_host(certificate: &x509_parser::certificate::X509Certificate<'_>, host: &str) -> bool {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let address = host.parse::<IpAddr>().ok().map(|address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    });
    names.value.general_names.iter().any(|name| match (name, &address) {
        (GeneralName::DNSName(dns), None) => *dns == host,
        (GeneralName::IPAddress(bytes), Some(address)) => *bytes == address.as_slice(),
        _ => false,
    })
}
