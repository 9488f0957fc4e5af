//! Addresses that no git host has: those of this very link, where clouds answer with the machine's own credentials, and
//! those that are nobody's.
//!
//! Looked up before libgit2 looks it up again, so a name server that lies the second time gets by: a wall against that
//! is a firewall on the worker. Loopback and private networks are not refused: many a git host is there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

/// The host of an address that is one of them, with what it stands for.
pub(super) fn refused(url: &str) -> Option<(String, IpAddr)> {
    let (host, port) = host(url)?;
    let addresses = (host.as_str(), port).to_socket_addrs().ok()?;
    let found = addresses.map(|address: SocketAddr| address.ip()).find(|ip| is_nearby(*ip))?;
    Some((host, found))
}

/// Host and port of `scheme://[user@]host[:port]/path` or `user@host:path`; `None` where there is none (file).
fn host(url: &str) -> Option<(String, u16)> {
    if !url.contains("://") {
        let (host, _) = url.split_once(':')?;
        return Some((host.rsplit('@').next()?.to_owned(), 22));
    }
    let url = url::Url::parse(url).ok()?;
    let port = url.port_or_known_default().unwrap_or(22);
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// Clouds whose metadata answers outside of the link-local range.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

fn is_nearby(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    link_local || ip.is_unspecified() || ip.is_multicast() || METADATA.contains(&ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_address_is_refused_however_it_is_written() {
        for url in [
            "http://169.254.169.254/latest/meta-data",
            "https://169.254.169.254:8443/x",
            "https://me:secret@169.254.169.254/x",
            "ssh://git@169.254.169.254/x",
            "git@169.254.169.254:x",
            "http://[::ffff:169.254.169.254]/x",
            "http://2852039166/x",
            "http://0xa9.0xfe.0xa9.0xfe/x",
            "http://[fe80::1]/x",
            "http://[fd00:ec2::254]/x",
            "http://0.0.0.0/x",
        ] {
            assert!(refused(url).is_some(), "{url}");
        }
        for url in
            ["https://127.0.0.1:1/x", "https://10.0.0.1/x", "git@192.168.0.1:x", "file:///169.254.169.254/x"]
        {
            assert_eq!(refused(url), None, "{url}");
        }
    }
}
