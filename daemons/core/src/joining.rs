//! What an administrator types to give a machine another worker's certificate. Doctor and both daemons say it, and one of them
//! would say it wrongly otherwise: the token is to be called like the worker, and is for no command line.

use std::net::IpAddr;

/// Who says it and does not know the addresses writes these.
pub const BROKER: &str = "BROKER";
/// See [`BROKER`].
pub const HOST: &str = "HOST";

/// Joins the machine `host` to `broker` (`https://HOST:PORT`, or without the scheme) as the worker `name`, which may have been
/// there before.
pub fn again(name: &str, broker: &str, host: &str) -> String {
    typed(&format!("worker token --name {name}"), "--replace", broker, host)
}

/// The same under another name, which the administrator chooses: a revoked one is not given again.
pub fn renamed(broker: &str, host: &str) -> String {
    typed("worker token", "--replace --name OTHER", broker, host)
}

fn typed(token: &str, how: &str, broker: &str, host: &str) -> String {
    let address = broker.strip_prefix("https://").unwrap_or(broker).trim_end_matches('/');
    let enroll = format!("codering-workerd enroll {how} --broker {address} --token-file -");
    let restart = "systemctl restart codering-workerd";
    let at = host_of(address);
    match is_loopback(at) || at.eq_ignore_ascii_case(host) {
        true => format!("sudo sh -c 'coderingctl {token} | {enroll} && {restart}'"),
        false => {
            format!(
                "on {at}: sudo coderingctl {token} | ssh {host} sudo {enroll} && ssh {host} sudo {restart}"
            )
        }
    }
}

/// The host of `HOST:PORT` or `[ADDRESS]:PORT`.
fn host_of(address: &str) -> &str {
    match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => host,
        None => address.rsplit_once(':').map_or(address, |(host, _)| host),
    }
}

/// Whether a host, without brackets, is this very machine by whatever name.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_certificate_is_asked_for_by_the_workers_name_and_no_command_line_has_the_token() {
        assert_eq!(
            again("w1", "https://broker.lan:7443", "w1.lan"),
            "on broker.lan: sudo coderingctl worker token --name w1 | ssh w1.lan sudo codering-workerd enroll --replace \
             --broker broker.lan:7443 --token-file - && ssh w1.lan sudo systemctl restart codering-workerd"
        );
        assert!(again("w1", "[fd00::7]:7443", "w1").starts_with("on fd00::7: "));
        assert!(
            renamed(BROKER, HOST)
                .contains("worker token | ssh HOST sudo codering-workerd enroll --replace --name OTHER")
        );
    }

    #[test]
    fn the_brokers_own_machine_needs_no_ssh() {
        for broker in ["https://localhost:7443", "127.0.0.1:7443", "[::1]:7443", "https://Hub:7443"] {
            let said = again("w1", broker, "hub");
            assert!(said.starts_with("sudo sh -c 'coderingctl worker token --name w1 | "), "{said}");
            assert!(
                !said.contains("ssh ") && said.ends_with("&& systemctl restart codering-workerd'"),
                "{said}"
            );
        }
    }
}
