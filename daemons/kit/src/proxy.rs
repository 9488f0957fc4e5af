//! The way out through an HTTP proxy: one setting for the daemon's own connections, for git and for image builds.

use std::{io, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use codering_core::{Code, Error};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The head of a proxy's answer is not longer.
const MAX_HEAD_BYTES: usize = 8 << 10;

/// `[proxy]`: `http` for addresses of that scheme, `https` for the others and for the broker, and who is reached without.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Proxy {
    pub http: Option<String>,
    pub https: Option<String>,
    pub no_proxy: Option<String>,
}

impl std::fmt::Debug for Proxy {
    /// An address may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |text: &Option<String>| text.as_deref().map(codering_core::spec::without_password);
        f.debug_struct("Proxy")
            .field("http", &shown(&self.http))
            .field("https", &shown(&self.https))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// One proxy's address.
#[derive(Clone, PartialEq, Eq)]
pub struct Hop {
    host: String,
    port: u16,
    /// `user:password`.
    login: Option<String>,
}

impl Proxy {
    /// Refuses what is no proxy's address.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] at `proxy.http` or `proxy.https`.
    pub fn check(&self) -> Result<(), Error> {
        for (key, value) in [("proxy.http", &self.http), ("proxy.https", &self.https)] {
            if let Some(value) = value
                && hop(value).is_none()
            {
                return Err(Error::new(Code::ConfigInvalid, format!("`{key}`: is no proxy's address"))
                    .at(key)
                    .hint("it has the form http://proxy.lan:3128 or http://USER:PASSWORD@proxy.lan:3128"));
            }
        }
        Ok(())
    }

    /// As the environment of a process, in both spellings.
    pub fn variables(&self) -> Vec<(String, String)> {
        let all = [("http_proxy", &self.http), ("https_proxy", &self.https), ("no_proxy", &self.no_proxy)];
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)))
            .flat_map(|(name, value)| [(name.to_owned(), value.clone()), (name.to_uppercase(), value)])
            .collect()
    }

    /// The proxy by which TLS reaches this host; `None`: directly. This machine itself is always reached directly.
    pub fn to(&self, host: &str, port: u16) -> Option<Hop> {
        let itself = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if itself || self.no_proxy.as_deref().is_some_and(|list| listed(list, host, port)) {
            return None;
        }
        hop(self.https.as_deref()?)
    }
}

/// Whether `no_proxy` names it: `*`, the host, or a domain that it is in, each with or without a port.
fn listed(list: &str, host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    list.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).any(
        |entry| {
            let entry = match entry.rsplit_once(':') {
                // An address of IPv6 has colons of its own.
                Some((name, of)) if !name.contains(':') => match of.parse::<u16>() {
                    Ok(of) if of == port => name.to_owned(),
                    _ => return false,
                },
                _ => entry,
            };
            let domain = entry.trim_start_matches('*').trim_start_matches('.');
            entry == "*"
                || host == domain
                || host.strip_suffix(domain).is_some_and(|above| above.ends_with('.'))
        },
    )
}

fn hop(address: &str) -> Option<Hop> {
    let rest = address.strip_prefix("http://")?.trim_end_matches('/');
    let (login, place) = match rest.rsplit_once('@') {
        Some((login, place)) => (Some(decoded(login)?), place),
        None => (None, rest),
    };
    let (host, port) = match place.strip_prefix('[').and_then(|place| place.split_once(']')) {
        Some((host, "")) => (host, 80),
        Some((host, port)) => (host, port.strip_prefix(':')?.parse().ok()?),
        None => match place.split_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (place, 80),
        },
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    (!host.is_empty() && host.bytes().all(plain)).then(|| Hop { host: host.to_owned(), port, login })
}

/// `%40` and the like, as passwords have them.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

impl Hop {
    /// A connection to this host and port through the proxy (CONNECT).
    ///
    /// # Errors
    /// That the proxy cannot be reached, or what it answered.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let said = |what: String| io::Error::other(format!("proxy {}:{}: {what}", self.host, self.port));
        let mut stream =
            TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| said(e.to_string()))?;
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let login = self.login.as_ref().map_or_else(String::new, |login| {
            format!("proxy-authorization: Basic {}\r\n", STANDARD.encode(login))
        });
        stream
            .write_all(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{login}\r\n").as_bytes())
            .await?;
        let mut head = Vec::new();
        // Byte by byte: what follows the head is the other end's.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= MAX_HEAD_BYTES {
                return Err(said("its answer has no end".into()));
            }
            head.push(stream.read_u8().await.map_err(|e| said(e.to_string()))?);
        }
        let head = String::from_utf8_lossy(&head);
        let first = head.lines().next().unwrap_or_default();
        match first.split(' ').nth(1) {
            Some("200") => Ok(stream),
            _ => Err(said(format!("it does not connect to {target}: {}", codering_core::ids::shown(first)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_may_have_a_port_and_a_password() {
        let of = |text| hop(text).map(|hop| (hop.host, hop.port, hop.login));
        let some =
            |host: &str, port, login: Option<&str>| Some((host.to_owned(), port, login.map(str::to_owned)));
        assert_eq!(of("http://proxy.lan:3128"), some("proxy.lan", 3128, None));
        assert_eq!(of("http://u:p%40ss@proxy.lan/"), some("proxy.lan", 80, Some("u:p@ss")));
        assert_eq!(of("http://[::1]:8080"), some("::1", 8080, None));
        for wrong in
            ["proxy.lan:3128", "https://proxy.lan", "http://", "http://p:x", "http://a b", "http://u%4@p"]
        {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        let proxy = Proxy { https: Some("http://u:hunter2@p:1".into()), ..Proxy::default() };
        assert!(!format!("{proxy:?}").contains("hunter2"));
        let wrong = Proxy { http: Some("p:1".into()), ..Proxy::default() };
        assert_eq!(wrong.check().expect_err("refused").place, "proxy.http");
    }

    #[test]
    fn whoever_no_proxy_names_and_this_machine_are_reached_directly() {
        let to = |no_proxy: &str, host: &str| {
            let no_proxy = Some(no_proxy.to_owned());
            Proxy { https: Some("http://proxy.lan:3128".into()), no_proxy, http: None }
                .to(host, 7443)
                .is_some()
        };
        for (no_proxy, host, through) in [
            ("", "broker.example", true),
            ("", "localhost", false),
            ("", "127.0.0.1", false),
            ("", "::1", false),
            ("broker.example", "broker.example", false),
            (".example", "broker.example", false),
            ("example", "broker.example", false),
            ("*.example", "BROKER.example", false),
            ("ample", "broker.example", true),
            ("x.lan, 192.0.2.7", "192.0.2.7", false),
            ("broker.example:7443", "broker.example", false),
            ("broker.example:443", "broker.example", true),
            ("*", "broker.example", false),
        ] {
            assert_eq!(to(no_proxy, host), through, "{host} with no_proxy {no_proxy}");
        }
        assert!(Proxy::default().to("broker.example", 7443).is_none());
    }
}
