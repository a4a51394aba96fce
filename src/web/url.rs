//! Addresses of servers that a recipe names: a judge's endpoint, a tracker of metrics.

/// What is wrong with the address of a server, to which paths are added; `example` is one as it should be. Recipes are shown and kept in
/// the run's folder, so a password has no place in it: `secret` says where one goes.
pub(crate) fn url_problem(url: &str, example: &str, secret: &str) -> Option<String> {
    let rest = (url.strip_prefix("http://")).or(url.strip_prefix("https://"));
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or("");
    // Before all messages that show the address.
    if authority.contains('@') {
        return Some(format!(
            "holds a user or password, which would be written to the run's folder; {secret}"
        ));
    }
    let begins = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    let odd = match begins {
        true => odd_address(url)?,
        false => format!("expected an address, http:// or https://, such as {example:?}"),
    };
    Some(format!("{odd}, found {url:?}"))
}

fn odd_address(url: &str) -> Option<String> {
    if url.contains(['?', '#']) {
        return Some("expected an address without `?` and `#`: a path is added to it".into());
    }
    let uri = match url.parse::<ureq::http::Uri>() {
        Ok(uri) => uri,
        Err(error) => return Some(format!("is no address ({error})")),
    };
    let authority = uri.authority()?.as_str();
    let host = uri.host().unwrap_or_default();
    if host.is_empty() {
        return Some("names no host".into());
    }
    let port = uri.port_u16().filter(|&port| port > 0);
    (authority.len() > host.len() && port.is_none())
        .then(|| "expected a port from 1 to 65535 after the host's `:`".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(url: &str) -> Option<String> {
        url_problem(url, "http://127.0.0.1:8000/v1", "name a key by `KEY`")
    }

    #[test]
    fn addresses_are_checked_before_a_server_is_asked() {
        for (url, expected) in [
            ("http://127.0.0.1:8000/v1", ""),
            ("https://api.example.org/v1", ""),
            ("http://[::1]:8000/v1", ""),
            ("http://h/a@b", ""),
            ("http://[::1", "is no address"),
            ("http://h:0/v1", "a port from 1 to 65535"),
            ("http://h:99999/v1", "a port from 1 to 65535"),
            ("http://h:/v1", "a port from 1 to 65535"),
            ("http://:8000/v1", "found \"http://:8000/v1\""),
            ("http://h/v1?key=secret", "without `?` and `#`"),
            ("http://h/v1#f", "without `?` and `#`"),
            ("http://h\0/v1", "is no address"),
            ("http://h\r\nX: y/v1", "is no address"),
            ("http://a b/v1", "is no address"),
            (
                "h:8000",
                "expected an address, http:// or https://, such as \"http://127.0.0.1:8000/v1\", found \"h:8000\"",
            ),
            ("http:///v1", "expected an address"),
        ] {
            match (problem(url), expected) {
                (found, "") => assert_eq!(found, None, "{url}"),
                (found, _) => assert!(found.is_some_and(|why| why.contains(expected)), "{url}"),
            }
        }
    }

    #[test]
    fn a_password_is_refused_and_not_shown() {
        for url in [
            "http://user:sekret@127.0.0.1:1",
            "https://user:sekret@h?x",
            "ftp://user:sekret@h/v1",
            "http://user:sekret@:0",
        ] {
            let found = problem(url).unwrap();
            assert_eq!(
                found,
                "holds a user or password, which would be written to the run's folder; name a key by `KEY`",
                "{url}"
            );
        }
    }
}
