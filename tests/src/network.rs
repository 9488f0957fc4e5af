//! A network of the test's own between the machine and a namespace, which can be cut and made lossy.

use std::{
    fs::File,
    io::Read,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::Duration,
};

use crate::{run, services::as_root};

const BOUND: Duration = Duration::from_secs(60);

/// A network namespace with one link to the machine. Removed when it is dropped.
pub struct Namespace {
    name: String,
    link: String,
    host: Ipv4Addr,
}

impl Namespace {
    /// Makes one.
    pub fn create() -> Self {
        let mut random = [0; 4];
        File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
        let id = u32::from_le_bytes(random);
        // Four addresses of 10.192.0.0/10.
        let host = Ipv4Addr::from(0x0ac0_0000 | ((id & 0x000f_ffff) << 2) | 1);
        let inside = Ipv4Addr::from(u32::from(host) + 1);
        let namespace = Self { name: format!("codering-{id:08x}"), link: format!("cdr{id:08x}a"), host };
        let (name, link, peer) = (namespace.name.as_str(), namespace.link.as_str(), format!("cdr{id:08x}b"));
        root("ip", &["netns", "add", name]);
        root("ip", &["link", "add", link, "type", "veth", "peer", "name", &peer, "netns", name]);
        root("ip", &["address", "add", &format!("{host}/30"), "dev", link]);
        root("ip", &["link", "set", link, "up"]);
        root("ip", &["-n", name, "address", "add", &format!("{inside}/30"), "dev", &peer]);
        root("ip", &["-n", name, "link", "set", &peer, "up"]);
        root("ip", &["-n", name, "link", "set", "lo", "up"]);
        namespace
    }

    /// The machine, as it is seen from inside.
    pub fn host(&self) -> IpAddr {
        self.host.into()
    }

    /// What a program is started through to run inside.
    pub fn prefix(&self) -> Vec<String> {
        let command = as_root("ip", &["netns", "exec", &self.name]);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_str().unwrap().to_owned()).collect()
    }

    /// Nothing comes through any more, and nobody is told.
    pub fn cut(&self) {
        root("ip", &["link", "set", &self.link, "down"]);
    }

    /// All comes through again.
    pub fn mend(&self) {
        root("ip", &["link", "set", &self.link, "up"]);
    }

    /// This part of the packets is lost in both directions, such as `0.3`.
    pub fn lose(&self, part: &str) {
        for chain in ["INPUT", "OUTPUT"] {
            let mut args = vec!["netns", "exec", &self.name, "iptables", "-A", chain, "-m", "statistic"];
            args.extend(["--mode", "random", "--probability", part, "-j", "DROP"]);
            root("ip", &args);
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The link goes with the namespace, at the latest when the kernel has let go of it.
        for args in [&["link", "delete", &self.link][..], &["netns", "delete", &self.name]] {
            run(&mut as_root("ip", args), BOUND);
        }
    }
}

fn root(program: &str, args: &[&str]) {
    let mut command: Command = as_root(program, args);
    let ran = run(&mut command, BOUND);
    assert_eq!(ran.code, Some(0), "{program} {args:?}: {}", ran.stderr);
}
