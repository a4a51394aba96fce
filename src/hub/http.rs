//! Requests to the hub: redirects without the token, repetition of what fails for a while.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body};

use super::error::host;
use super::progress::decimal;
use super::settings::{HubSettings, shown};

/// Most redirects in a row.
const MAX_REDIRECTS: usize = 10;
/// Most tries of a request.
const MAX_TRIES: u32 = 5;
/// Longest wait that the hub may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A connection that brings less than [`LEAST`] bytes in this time has ended.
const WINDOW: Duration = Duration::from_secs(60);
const LEAST: u64 = 4096;

/// Sends requests.
#[derive(Debug, Clone)]
pub(super) struct Http {
    agent: Agent,
}

/// An answer, whatever its status.
pub(super) struct Answer {
    pub(super) status: u16,
    response: Response<Body>,
}

/// Where redirects end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// At the last answer.
    All,
    /// At a redirect to another host, which has the headers of the hub.
    SameHost,
}

impl Answer {
    /// A header's text; empty if there is none.
    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.response.headers().get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// A header's number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.header(name).parse().ok()
    }

    pub(super) fn is_redirect(&self) -> bool {
        (300..400).contains(&self.status) && !self.header("location").is_empty()
    }

    /// The content.
    pub(super) fn into_reader(self) -> impl Read {
        Steady::new(self.response.into_body().into_reader(), WINDOW)
    }

    /// A content of at most `most` bytes.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    pub(super) fn into_bytes(self, most: u64) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let mut reader = self.into_reader().take(most + 1);
        reader
            .read_to_end(&mut bytes)
            .map_err(|error| format!("the connection broke: {error}"))?;
        match bytes.len() as u64 > most {
            true => Err(format!("the answer has more than {}", decimal(most))),
            false => Ok(bytes),
        }
    }
}

/// A content that ends with an error where hardly anything comes: a server that sends a byte now and then keeps any time-out of single
/// reads from ending the wait.
struct Steady<R> {
    inner: R,
    window: Duration,
    since: Instant,
    bytes: u64,
}

impl<R> Steady<R> {
    fn new(inner: R, window: Duration) -> Self {
        Self {
            inner,
            window,
            since: Instant::now(),
            bytes: 0,
        }
    }
}

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        let elapsed = self.since.elapsed();
        if count > 0 && elapsed > self.window {
            if self.bytes < LEAST {
                let message = format!("{} bytes in {} s", self.bytes, elapsed.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            (self.since, self.bytes) = (Instant::now(), 0);
        }
        Ok(count)
    }
}

impl Http {
    /// Requests to the hub at `endpoint`, through the proxy that the environment names unless that is on this machine.
    pub(super) fn new(endpoint: &str) -> Self {
        let is_local = ["127.0.0.1", "localhost", "[::1]"]
            .iter()
            .any(|local| host(endpoint).starts_with(local));
        let config = Agent::config_builder();
        let config = match is_local {
            true => config.proxy(None),
            false => config,
        };
        let config = config
            .http_status_as_error(false)
            // Followed here: the token stays with the hub.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("tempering/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Self {
            agent: config.new_agent(),
        }
    }

    /// What sends requests.
    pub(super) fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The answer for `path` of the hub, from byte `from` on. Requests that the hub cannot serve for a while are repeated.
    ///
    /// # Errors
    /// Why there is no answer, in words.
    pub(super) fn send(
        &self,
        settings: &HubSettings,
        method: &Method,
        path: &str,
        from: u64,
        follow: Follow,
    ) -> Result<Answer, String> {
        let first = match path.contains("://") {
            true => path.to_owned(),
            false => format!("{}/{path}", settings.endpoint),
        };
        let mut tries = 1;
        loop {
            let answer = self.follow(settings, method, &first, from, follow);
            let wait = match &answer {
                Ok(answer) if matches!(answer.status, 429 | 500 | 502 | 503 | 504) => {
                    let asked = answer.number("retry-after").map(Duration::from_secs);
                    asked.map(|wait| wait.min(LONGEST_WAIT))
                }
                Err(error) if passes(error) => None,
                Ok(_) => return answer.map_err(|error| error.to_string()),
                Err(error) => {
                    return Err(format!("cannot reach {}: {error}", host(&shown(&first))));
                }
            };
            if tries == MAX_TRIES {
                return answer
                    .map_err(|error| format!("cannot reach {}: {error}", host(&shown(&first))));
            }
            std::thread::sleep(wait.unwrap_or_else(|| pause(settings, tries)));
            tries += 1;
        }
    }

    fn follow(
        &self,
        settings: &HubSettings,
        method: &Method,
        first: &str,
        from: u64,
        follow: Follow,
    ) -> Result<Answer, ureq::Error> {
        let mut url = first.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let mut request = Request::builder()
                .method(method.clone())
                .uri(&url)
                // Compressed content would have another length and hash.
                .header("accept-encoding", "identity");
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            if let Some(token) = &settings.token
                && same_origin(&url, &settings.endpoint)
            {
                request = request.header("authorization", format!("Bearer {}", token.text));
            }
            let response = self.agent.run(request.body(())?)?;
            let answer = Answer {
                status: response.status().as_u16(),
                response,
            };
            if !answer.is_redirect() {
                return Ok(answer);
            }
            let next = resolve(&url, answer.header("location"));
            if follow == Follow::SameHost && !same_origin(&next, &url) {
                return Ok(answer);
            }
            if url.starts_with("https://") && !next.starts_with("https://") {
                return Err(failed(format!("a redirect from https to {}", shown(&next))));
            }
            url = next;
        }
        Err(failed(format!("more than {MAX_REDIRECTS} redirects")))
    }
}

/// The pause before a repetition: 1, 2, 4 and 8 times the first.
pub(super) fn pause(settings: &HubSettings, tries: u32) -> Duration {
    settings.retry_wait * 2u32.pow(tries.min(4) - 1)
}

fn failed(message: String) -> ureq::Error {
    ureq::Error::Io(io::Error::other(message))
}

/// Whether an error may be gone the next time.
pub(super) fn passes(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Timeout(_) => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::TimedOut
        ),
        ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> String {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    format!("{scheme}://{}", host(url)).to_lowercase()
}

pub(super) fn same_origin(left: &str, right: &str) -> bool {
    origin(left) == origin(right)
}

/// The address that `location` means in an answer from `url`.
fn resolve(url: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    if let Some(rest) = location.strip_prefix("//") {
        let scheme = url.split_once("://").map_or("https", |(scheme, _)| scheme);
        return format!("{scheme}://{rest}");
    }
    match location.starts_with('/') {
        true => format!("{}{location}", origin(url)),
        false => {
            let folder = url.rsplit_once('/').map_or(url, |(folder, _)| folder);
            format!("{folder}/{location}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let url = "https://hub.co/a/b?c";
        assert_eq!(resolve(url, "/x?y=z"), "https://hub.co/x?y=z");
        assert_eq!(resolve(url, "https://cdn.co/x"), "https://cdn.co/x");
        assert_eq!(resolve(url, "//cdn.co/x"), "https://cdn.co/x");
        assert_eq!(resolve(url, "x"), "https://hub.co/a/x");
        assert!(same_origin("https://HUB.co/a", "https://hub.co"));
        // Another port is another server, and the same host without encryption another place.
        assert!(!same_origin("http://127.0.0.1:1/", "http://127.0.0.1:2/"));
        assert!(!same_origin("http://hub.co", "https://hub.co"));
        // The name of a host may begin with another's, or be that of a user.
        assert!(!same_origin("https://hub.co.evil.org/", "https://hub.co"));
        assert!(!same_origin("https://hub.co@evil.org/", "https://hub.co"));
        assert!(!same_origin("https://evil.org\\@hub.co/", "https://hub.co"));
    }

    #[test]
    fn a_trickle_is_the_end_of_a_content() {
        /// A byte at a time, after a pause.
        struct Trickle(Duration);
        impl Read for Trickle {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                std::thread::sleep(self.0);
                buffer[0] = b'x';
                Ok(1)
            }
        }
        let window = Duration::from_millis(20);
        let mut slow = Steady::new(Trickle(Duration::from_millis(5)), window).take(1000);
        let error = slow.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Enough of it is no trickle, however long it takes.
        let quick = io::repeat(b'x').take(1 << 20);
        let mut steady = Steady::new(quick, Duration::ZERO);
        let mut buffer = [0; 8192];
        let mut all = 0;
        loop {
            match steady.read(&mut buffer).unwrap() {
                0 => break,
                count => all += count,
            }
        }
        assert_eq!(all, 1 << 20);
    }
}
