//! Refuses requests that a page of another site makes in the user's browser.

use axum::http::header::{HOST, HeaderMap, ORIGIN};
use axum::http::{Method, Uri};

use super::address::Bind;

/// Why a request is refused, if it is.
///
/// A page of another site can send requests to a loopback server from the user's browser. Two checks stop it: the `Host` of a server on
/// loopback is a name of loopback (a foreign name that resolves to 127.0.0.1 would make the page "same origin"), and a request
/// that changes something comes from our own pages or from no page at all.
pub(super) fn refuse(
    bind: &Bind,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Option<String> {
    let host = match headers.get(HOST) {
        Some(host) => host.to_str().ok(),
        None => uri.authority().map(|authority| authority.as_str()),
    };
    let Some(host) = host else {
        return Some("the request has no Host".into());
    };
    if bind.is_loopback() && !is_loopback_name(host) {
        return Some(format!(
            "Host: this server is for 127.0.0.1 and localhost, found {host:?}"
        ));
    }
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return None;
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site")
        && !matches!(site, "same-origin" | "none")
    {
        return Some(format!(
            "Sec-Fetch-Site: expected same-origin, found {site:?}"
        ));
    }
    // "null" is what sandboxed pages send.
    match headers
        .get(ORIGIN)
        .map(|origin| origin.to_str().unwrap_or("null"))
    {
        Some(origin) if origin.split_once("://").map(|(_, rest)| rest) != Some(host) => {
            Some(format!("Origin: expected this server's, found {origin:?}"))
        }
        _ => None,
    }
}

/// Whether the value of `Host` names this machine itself, with any port (a tunnel's differs from the server's).
fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(method: Method, lines: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.insert(*name, value.parse().unwrap());
        }
        refuse(&Bind::default(), &method, &Uri::from_static("/x"), &headers).is_some()
    }

    #[test]
    fn names_of_loopback_pass_and_foreign_ones_do_not() {
        for host in [
            "localhost:80",
            "127.0.0.1:8080",
            "[::1]:1",
            "LOCALHOST",
            "127.9.9.9",
        ] {
            assert!(!refused(Method::GET, &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:80",
            "192.168.0.1",
            "[::2]",
            "",
        ] {
            assert!(refused(Method::GET, &[("host", host)]), "{host}");
        }
        assert!(refused(Method::GET, &[]));
    }

    #[test]
    fn changes_come_from_our_pages_or_from_programs() {
        let host = ("host", "localhost:80");
        assert!(!refused(Method::POST, &[host]));
        assert!(!refused(
            Method::POST,
            &[host, ("origin", "http://localhost:80")]
        ));
        assert!(!refused(
            Method::POST,
            &[host, ("sec-fetch-site", "same-origin")]
        ));
        for (name, value) in [
            ("origin", "http://evil.example"),
            ("origin", "http://localhost:81"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert!(
                refused(Method::POST, &[host, (name, value)]),
                "{name}: {value}"
            );
            assert!(
                !refused(Method::GET, &[host, (name, value)]),
                "{name}: {value}"
            );
        }
    }
}
