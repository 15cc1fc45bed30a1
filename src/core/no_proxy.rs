//! Which servers are reached without the environment's proxy: `NO_PROXY` as kubectl and other Go programs read it
//! (golang.org/x/net/http/httpproxy).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::core::server::is_loopback;

/// Whether a server is not to be asked through the proxy. `no_proxy` is the variable's value.
pub fn bypasses(no_proxy: &str, host: &str, port: u16) -> bool {
    // A proxy elsewhere cannot mean this machine.
    if is_loopback(host) {
        return true;
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let ip = host.parse::<IpAddr>().ok();
    no_proxy
        .split(',')
        .map(|rule| rule.trim().to_ascii_lowercase())
        .any(|rule| {
            if rule == "*" {
                return true;
            }
            if let Some(ip) = ip {
                let net = rule.parse::<IpNet>().is_ok_and(|net| net.contains(&ip));
                return net || names_address(&rule, ip, port);
            }
            let (name, of_port) = match rule.rsplit_once(':') {
                Some((name, rule_port)) => (name.to_owned(), rule_port.parse() == Ok(port)),
                None => (rule, true),
            };
            let name = name.strip_prefix('*').unwrap_or(&name);
            of_port
                && !name.is_empty()
                && match name.strip_prefix('.') {
                    // Only what is below it.
                    Some(parent) => host
                        .strip_suffix(parent)
                        .is_some_and(|rest| rest.ends_with('.')),
                    None => {
                        host == name
                            || host
                                .strip_suffix(name)
                                .is_some_and(|rest| rest.ends_with('.'))
                    }
                }
        })
}

/// An address, alone or with a port.
fn names_address(rule: &str, ip: IpAddr, port: u16) -> bool {
    let plain = rule.trim_start_matches('[').trim_end_matches(']');
    if plain.parse() == Ok(ip) {
        return true;
    }
    rule.parse::<std::net::SocketAddr>()
        .is_ok_and(|rule| rule.ip() == ip && rule.port() == port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_programs_read_it() {
        for (rules, host, bypassed) in [
            ("", "k8s.lan", false),
            ("", "127.0.0.1", true),
            ("", "localhost", true),
            ("*", "k8s.lan", true),
            ("lan", "k8s.lan", true),
            (".lan", "k8s.lan", true),
            ("*.lan", "k8s.lan", true),
            (".k8s.lan", "k8s.lan", false),
            ("k8s.lan", "K8S.LAN.", true),
            ("8s.lan", "k8s.lan", false),
            ("a, k8s.lan:6443", "k8s.lan", true),
            ("k8s.lan:443", "k8s.lan", false),
            ("192.168.0.0/16", "192.168.3.101", true),
            ("10.0.0.0/8,192.168.3.101", "192.168.3.101", true),
            ("192.168.3.101:6443", "192.168.3.101", true),
            ("192.168.3.101:443", "192.168.3.101", false),
            ("192.168.3.10", "192.168.3.101", false),
            ("fd00::/8", "fd00::1", true),
            ("[fd00::1]:6443", "fd00::1", true),
        ] {
            assert_eq!(bypasses(rules, host, 6443), bypassed, "{rules} {host}");
        }
    }
}
