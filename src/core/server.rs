//! The API server's URL as guests use it.

use std::net::IpAddr;

/// Why guests cannot use this URL of an API server, and what to write instead.
pub fn check(url: &str) -> Result<(), (String, &'static str)> {
    const EXAMPLE: &str = "write it as in https://192.168.3.101:6443";
    let Some(rest) = url.strip_prefix("https://") else {
        return Err((format!("`{url}` is not an https URL"), EXAMPLE));
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let Some((_, port)) = split(authority) else {
        return Err((format!("`{url}` has no host"), EXAMPLE));
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err((format!("`{url}` has no valid port"), EXAMPLE));
    }
    check_way(url)
}

/// Why no other machine reaches an API server by this URL, and what to do.
pub fn check_way(url: &str) -> Result<(), (String, &'static str)> {
    let authority = url
        .split("://")
        .last()
        .and_then(|rest| rest.split('/').next());
    match authority.and_then(split) {
        Some((host, _)) if is_loopback(host) => Err((
            format!("`{url}` is the machine itself, wherever it is used: guests cannot reach it"),
            "set `cluster.server` (--server) to the API server's address on the guests' network",
        )),
        _ => Ok(()),
    }
}

/// Host, without brackets, and port.
pub fn split(authority: &str) -> Option<(&str, Option<&str>)> {
    let authority = authority.rsplit('@').next()?;
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        return Some((host, rest.strip_prefix(':')));
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (!host.is_empty() && host.chars().all(allowed)).then_some((host, port))
}

pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost"
        || host.ends_with(".localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_need_a_url_that_leads_away_from_themselves() {
        for good in [
            "https://192.168.3.101:6443",
            "https://k8s.lan",
            "https://[fd00::1]:6443",
            "https://k8s.lan:6443/prefix",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("192.168.3.101:6443", "not an https URL"),
            ("http://192.168.3.101:6443", "not an https URL"),
            ("https://", "no host"),
            ("https://:6443", "no host"),
            ("https://a b:1", "no host"),
            ("https://fd00::1:6443", "no valid port"),
            ("https://k8s.lan:99999", "no valid port"),
            ("https://127.0.0.1:6443", "the machine itself"),
            ("https://localhost:6443", "the machine itself"),
            ("https://[::1]:6443", "the machine itself"),
            ("https://0.0.0.0:6443", "the machine itself"),
        ] {
            let (message, _) = check(bad).unwrap_err();
            assert!(message.contains(why), "{bad}: {message}");
        }
    }
}
