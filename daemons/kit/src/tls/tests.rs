use std::os::unix::fs::PermissionsExt;

use super::*;

fn ca() -> (tempfile::TempDir, Ca) {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Ca::at(&directory.path().join("ca")).expect("made");
    (directory, ca)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn the_ca_is_made_once_and_its_key_is_its_owners_alone() {
    let (directory, ca) = ca();
    let path = directory.path().join("ca");
    let mode = std::fs::metadata(path.join("ca.key")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = Ca::at(&path).expect("read");
    assert_eq!(again.fingerprint(), ca.fingerprint());
    assert_eq!(again.fingerprint().len(), 64);
    std::fs::set_permissions(path.join("ca.key"), PermissionsExt::from_mode(0o644)).expect("set");
    let error = Ca::at(&path).expect_err("refused");
    assert!(error.to_string().contains("ca.key: others may read the CA's key (chmod 600 it)"), "{error}");
}

#[test]
fn a_ca_that_lost_its_key_is_not_silently_made_anew() {
    let (directory, _) = ca();
    let path = directory.path().join("ca");
    std::fs::remove_file(path.join("ca.key")).expect("removed");
    let error = Ca::at(&path).expect_err("refused");
    assert!(error.message.contains("key is missing") && error.hint.contains("backup"), "{error}");
}

#[test]
fn a_worker_gets_its_name_whatever_its_request_says() {
    let (_directory, ca) = ca();
    let (request, _) = csr(&WorkerName::new("mallory").expect("a name")).expect("a request");
    let signed = ca.issue_worker(&request, &WorkerName::new("w1").expect("a name")).expect("signed");
    assert_eq!(signed.identity.worker().expect("a worker").as_str(), "w1");
    assert_eq!(signed.identity.serial.len(), 32);
    let again = ca.issue_worker(&request, &WorkerName::new("w1").expect("a name")).expect("signed");
    assert_ne!(signed.identity.serial, again.identity.serial);
}

#[test]
fn a_request_that_is_broken_or_forged_is_refused() {
    let (_directory, ca) = ca();
    let name = WorkerName::new("w1").expect("a name");
    let (request, _) = csr(&name).expect("a request");
    // One bit of the signature: eight characters before the end of its base 64.
    let place = request.rfind("\n-----END").expect("PEM") - 8;
    let other = if &request[place..=place] == "A" { "B" } else { "A" };
    let forged = format!("{}{other}{}", &request[..place], &request[place + 1..]);
    for bad in ["", "hello", forged.as_str()] {
        assert_eq!(ca.issue_worker(bad, &name).expect_err(bad).code, Code::InvalidInput);
    }
}

#[test]
fn a_server_certificate_is_kept_while_it_names_what_it_should_and_is_valid() {
    let (_directory, ca) = ca();
    let wanted = names(&["localhost", "127.0.0.1", "::1"]);
    let issued = ca.issue_server(&wanted).expect("issued");
    let month = 30 * 86_400_000;
    assert!(ca.covers(&issued.chain_pem, &wanted, now() + month));
    assert!(!ca.covers(&issued.chain_pem, &wanted, now() + 28 * month), "it ends before");
    assert!(!ca.covers(&issued.chain_pem, &names(&["localhost", "127.0.0.1", "broker.lan"]), now()));
    assert!(!ca.covers(&issued.chain_pem, &names(&["localhost"]), now()), "a name was taken away");
    let (_directory, other) = self::ca();
    assert!(!other.covers(&issued.chain_pem, &wanted, now()), "another CA's");
    let error = ca.issue_server(&names(&["a b"])).err().expect("refused");
    assert_eq!(error.place, "public_names");
}

#[test]
fn an_expired_certificate_is_refused_with_its_place_and_the_cure() {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(9);
    params.not_after = time::OffsetDateTime::now_utc() - time::Duration::days(1);
    let old = params.self_signed(&key).expect("signed").pem();
    let error = check_validity(old.as_bytes(), "/etc/x.pem").expect_err("refused").to_string();
    assert!(error.starts_with("/etc/x.pem: the certificate expired at 2"), "{error}");
    assert!(error.contains("put a valid one there"), "{error}");
}
