//! The broker's certificates: those of its CA and its own, for whom and until when.

use std::path::{Path, PathBuf};

use codering_core::time::Millis;

use super::{
    finding::Finding,
    local,
    tls::{self, Refused},
};
use crate::{client::Target, verbs::words};

/// Days before a certificate's end from which on it is worth a look.
pub const SOON_DAYS: i64 = 21;
/// Milliseconds in one.
pub const DAY_MS: i64 = 86_400_000;

/// Shakes hands over `stream` and says what was shown; an error where nothing is to be asked over it. `again` gives
/// this machine the CA's certificate anew.
pub async fn certificates(
    target: &Target,
    stream: tokio::net::TcpStream,
    again: &str,
    now: Millis,
) -> Result<Vec<Finding>, Finding> {
    let ca = tls::certificates(&target.ca_pem)
        .map_err(|why| Finding::wrong("ca", format!("the CA certificate cannot be used: {why}"), again))?;
    let mut findings = Vec::new();
    let ca_ends = ca.iter().map(|found| found.1).min().unwrap_or_default();
    findings.push(ends("ca", "the CA's certificate", ca_ends, now, SOON_DAYS, again));
    let roots = ca.into_iter().map(|found| found.0).collect();
    // A connection of this machine with itself has one address at both ends.
    let is_here = matches!((stream.local_addr(), stream.peer_addr()), (Ok(ours), Ok(theirs)) if ours.ip() == theirs.ip());
    let shown = tls::look(stream, target.host(), roots, &[b"h2"])
        .await
        .map_err(|why| Finding::wrong("tls", why, again))?;
    let renew = format!(
        "on {}: sudo rm /var/lib/codering/brokerd/tls/server.pem && sudo systemctl restart codering-brokerd",
        target.host()
    );
    match shown.refused {
        None => findings.push(ends(
            "tls",
            "the broker's certificate, signed by the CA",
            shown.expires_at,
            now,
            SOON_DAYS,
            &renew,
        )),
        Some(Refused::Expired) => {
            let when = words::until(shown.expires_at, now);
            return Err(Finding::wrong(
                "tls",
                format!("the broker's certificate ended {when}, or a clock is wrong"),
                renew,
            ));
        }
        Some(Refused::OtherName) => {
            let names = words::harmless(shown.names.join(", "));
            let set_by = if is_here { public_names_here(Path::new("/")) } else { None };
            return Err(Finding::wrong(
                "tls",
                format!("the broker's certificate is not for {}, but for {names}", target.host()),
                other_name(target.host(), &shown.names, set_by.as_deref()),
            ));
        }
        Some(Refused::OtherCa) => {
            return Err(Finding::wrong(
                "tls",
                "another CA than the one kept here signed the broker's certificate",
                again,
            ));
        }
        Some(Refused::Other(why)) => {
            return Err(Finding::wrong(
                "tls",
                format!("no TLS handshake: {}", words::harmless(why)),
                format!("is {} the gRPC port (7443), and not REST (7480)?", target.address),
            ));
        }
    }
    Ok(findings)
}

/// Where the broker's names are written; a drop-in with a later name goes over it.
const NAMES: &str = "/etc/codering/brokerd.d/90-names.toml";

/// The file that says by what names the broker on this machine is reached.
fn public_names_here(root: &Path) -> Option<PathBuf> {
    let brokerd = local::Configured::read(root, "brokerd").ok()??;
    brokerd.set_by("public_names").map(Path::to_owned)
}

/// Has the broker's certificate name `host` too. The last file that sets the list counts, and the whole of it: those of Ansible and
/// of the appliance come after brokerd.toml. `set_by` is that file, where it is known.
fn other_name(host: &str, names: &[String], set_by: Option<&Path>) -> String {
    // What another machine said is to be pasted into a shell.
    let plain = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:*".contains(c));
    let list: Vec<_> = names.iter().map(String::as_str).chain([host]).filter(plain).collect();
    let list = format!("public_names = [\"{}\"]", list.join("\", \""));
    let reload = "sudo systemctl reload codering-brokerd";
    let ours = Path::new(NAMES);
    match set_by.filter(|file| file.parent() == ours.parent() && *file > ours) {
        Some(file) => format!("in {}, write {list}; then {reload}", file.display()),
        None => {
            let later = match set_by {
                Some(_) => "",
                None => {
                    "\na later file there that sets public_names goes over it: grep -l public_names /etc/codering/brokerd.d/*"
                }
            };
            format!("on the broker's machine: echo '{list}' | sudo tee {NAMES} && {reload}{later}")
        }
    }
}

/// Until when a certificate is valid, and what to do where that is in less than `soon` days.
pub fn ends(check: &'static str, what: &str, at: Millis, now: Millis, soon: i64, mend: &str) -> Finding {
    let text = format!("{what}, valid until {} ({})", words::clock(at), words::until(at, now));
    match (at - now) / DAY_MS {
        _ if at <= now => Finding::wrong(check, format!("{what} ended {}", words::until(at, now)), mend),
        days if days < soon => Finding::warning(check, text, mend),
        _ => Finding::good(check, text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_certificate_that_ends_soon_is_worth_a_look_and_one_that_ended_is_wrong() {
        let now = 1_795_260_000_000;
        let verdict = |days: i64| ends("tls", "it is", now + days * DAY_MS, now, SOON_DAYS, "renew").verdict;
        assert_eq!(
            [verdict(100), verdict(3), verdict(-3)],
            [Verdict::Good, Verdict::Warning, Verdict::Wrong]
        );
    }

    #[test]
    fn a_name_that_the_certificate_lacks_is_added_where_no_later_file_goes_over_it() {
        let names = ["localhost".to_owned(), "hub'; rm -rf /".to_owned(), "hub".to_owned()];
        let elsewhere = other_name("10.0.0.5", &names, None);
        let list = r#"echo 'public_names = ["localhost", "hub", "10.0.0.5"]' | sudo tee /etc/codering/brokerd.d/90-names.toml"#;
        assert!(elsewhere.contains(list) && elsewhere.contains("reload codering-brokerd"), "{elsewhere}");
        assert!(elsewhere.contains("later file"), "{elsewhere}");
        let root = tempfile::tempdir().expect("a directory");
        let drop_ins = root.path().join("etc/codering/brokerd.d");
        std::fs::create_dir_all(&drop_ins).expect("made");
        std::fs::write(root.path().join("etc/codering/brokerd.toml"), "").expect("written");
        assert_eq!(public_names_here(root.path()), None);
        let ansible = drop_ins.join("50-ansible.toml");
        std::fs::write(&ansible, "public_names = ['hub']\n").expect("written");
        assert_eq!(public_names_here(root.path()), Some(ansible));
        let over = other_name("hub", &names, Some(Path::new("/etc/codering/brokerd.d/50-ansible.toml")));
        assert!(
            over.contains("tee /etc/codering/brokerd.d/90-names.toml") && !over.contains("later file"),
            "{over}"
        );
        let main = other_name("hub", &names, Some(Path::new("/etc/codering/brokerd.toml")));
        assert!(main.contains("tee /etc/codering/brokerd.d/90-names.toml"), "{main}");
        let last = other_name("hub", &names, Some(Path::new("/etc/codering/brokerd.d/site.toml")));
        assert!(last.starts_with("in /etc/codering/brokerd.d/site.toml, write public_names"), "{last}");
    }
}
