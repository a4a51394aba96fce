//! The server: accepts connections, applies the limits, runs the routes.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use tower_service::Service;

use super::address::Bind;
use super::headers::harden;
use super::limits::{Bucket, Limits};
use super::same_site::refuse;
use crate::error::{Error, Result};
use crate::report::Interrupt;

/// How often the server looks whether it is to stop.
const POLL: Duration = Duration::from_millis(50);

/// Addresses whose requests are counted at once; beyond it those that were quiet are forgotten.
const ADDRESSES: usize = 4096;

/// A socket that listens, before it answers.
#[derive(Debug)]
pub(crate) struct Server {
    bind: Bind,
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
    refusal: Refusal,
}

/// The answer to a request that does not reach the routes.
pub(crate) type Refusal = fn(StatusCode, String) -> Response;

/// A refusal as plain text.
fn plain(status: StatusCode, message: String) -> Response {
    (status, message).into_response()
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// `Error::Usage` if the address is not of this machine, or the port is taken or not allowed.
    pub(crate) fn bind(bind: Bind, limits: Limits) -> Result<Self> {
        let listen = || {
            let listener = TcpListener::bind(bind.socket())?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = listen().map_err(|e: std::io::Error| {
            Error::Usage(format!(
                "cannot listen on {}: {e}; choose another with --host and --port (0 takes a free port)",
                bind.socket()
            ))
        })?;
        Ok(Self {
            bind,
            listener,
            address,
            limits,
            refusal: plain,
        })
    }

    /// The same server with its own form of refusals.
    pub(crate) fn refusing_by(self, refusal: Refusal) -> Self {
        Self { refusal, ..self }
    }

    /// What a browser on this machine opens, without a path.
    pub(crate) fn url(&self) -> String {
        match self.address.ip().is_unspecified() {
            true => format!("http://localhost:{}", self.address.port()),
            false => format!("http://{}", self.address),
        }
    }

    /// Answers on this thread until `stop` is requested.
    ///
    /// # Errors
    /// `Error::Usage` if the system gives no event loop.
    pub(crate) fn serve(self, routes: Router, stop: &Interrupt) -> Result<()> {
        let failed = |e: std::io::Error| Error::Usage(format!("the server cannot start: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let outcome = runtime.block_on(self.run(routes, stop)).map_err(failed);
        // Work on blocking threads that outlives the time to drain does not hold the process.
        runtime.shutdown_background();
        outcome
    }

    /// Answers on a thread of its own.
    ///
    /// # Errors
    /// `Error::Usage` if the system gives no thread.
    pub(crate) fn spawn(self, routes: Router) -> Result<Running> {
        #[cfg(test)]
        let address = self.address;
        let stop = Interrupt::default();
        let theirs = stop.clone();
        let thread = std::thread::Builder::new()
            .name("web".into())
            .spawn(move || self.serve(routes, &theirs))
            .map_err(|e| Error::Usage(format!("the server cannot start: {e}")))?;
        Ok(Running {
            #[cfg(test)]
            address,
            stop,
            thread: Some(thread),
        })
    }

    async fn run(self, routes: Router, stop: &Interrupt) -> std::io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let door = Arc::new(Door {
            bind: self.bind,
            limits: self.limits,
            refusal: self.refusal,
            begin: Instant::now(),
            buckets: Mutex::default(),
        });
        let room = Arc::new(Semaphore::new(self.limits.connections));
        let connections = GracefulShutdown::new();
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.limits.read)
            .max_buf_size(64 << 10);
        while !stop.requested() {
            let Ok(place) = timeout(POLL, room.clone().acquire_owned()).await else {
                continue;
            };
            let Ok(accepted) = timeout(POLL, listener.accept()).await else {
                continue;
            };
            // A client that went away, or no free handles: the next one may do.
            let Ok((stream, peer)) = accepted else {
                tokio::time::sleep(POLL).await;
                continue;
            };
            let (routes, door) = (routes.clone(), door.clone());
            let service = hyper::service::service_fn(move |request| {
                let (routes, door) = (routes.clone(), door.clone());
                async move { Ok::<_, Infallible>(door.answer(peer.ip(), request, routes).await) }
            });
            let connection =
                connections.watch(http.serve_connection(TokioIo::new(stream), service));
            tokio::spawn(async move {
                // Errors are the client's: a connection that was cut, or no HTTP.
                let _ = connection.await;
                drop(place);
            });
        }
        drop(listener);
        let _ = timeout(self.limits.drain, connections.shutdown()).await;
        Ok(())
    }
}

/// A server on a thread of its own; it stops when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    #[cfg(test)]
    address: SocketAddr,
    stop: Interrupt,
    thread: Option<JoinHandle<Result<()>>>,
}

#[cfg(test)]
impl Running {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            // Whoever needs the outcome calls `serve`; a panic of the server's thread was printed there.
            let _ = thread.join();
        }
    }
}

/// What stands before the routes of all connections.
struct Door {
    bind: Bind,
    limits: Limits,
    refusal: Refusal,
    begin: Instant,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Door {
    async fn answer(
        &self,
        peer: IpAddr,
        request: Request<Incoming>,
        mut routes: Router,
    ) -> Response {
        let mut response = match self.admit(peer, request).await {
            Ok(request) => match routes.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(refusal) => *refusal,
        };
        harden(response.headers_mut());
        response
    }

    /// The request with its whole body, or the answer to one that is refused.
    async fn admit(
        &self,
        peer: IpAddr,
        request: Request<Incoming>,
    ) -> Result<Request, Box<Response>> {
        let refusal = |status: StatusCode, text: String| Box::new((self.refusal)(status, text));
        if let Some(reason) = refuse(
            &self.bind,
            request.method(),
            request.uri(),
            request.headers(),
        ) {
            return Err(refusal(StatusCode::FORBIDDEN, reason));
        }
        if let Some(seconds) = self.too_many(peer).await {
            let seconds = seconds.ceil().max(1.0).to_string();
            let text = format!("too many requests; wait {seconds} s");
            let mut response = (self.refusal)(StatusCode::TOO_MANY_REQUESTS, text);
            if let Ok(seconds) = seconds.parse() {
                response.headers_mut().insert(RETRY_AFTER, seconds);
            }
            return Err(Box::new(response));
        }
        let limit = self.limits.body;
        let too_large = || {
            refusal(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is larger than {limit} bytes"),
            )
        };
        let claimed = request.headers().get(CONTENT_LENGTH);
        if claimed
            .and_then(|len| len.to_str().ok()?.parse::<usize>().ok())
            .is_some_and(|len| len > limit)
        {
            return Err(too_large());
        }
        let (head, body) = request.into_parts();
        match timeout(
            self.limits.read,
            axum::body::to_bytes(Body::new(body), limit),
        )
        .await
        {
            Ok(Ok(bytes)) => Ok(Request::from_parts(head, Body::from(bytes))),
            // Also a body that was cut: nobody is there to read the answer.
            Ok(Err(_)) => Err(too_large()),
            Err(_) => Err(refusal(
                StatusCode::REQUEST_TIMEOUT,
                format!(
                    "the body did not come within {} s",
                    self.limits.read.as_secs()
                ),
            )),
        }
    }

    /// The seconds that a client has to wait, if it asked too often.
    async fn too_many(&self, peer: IpAddr) -> Option<f64> {
        let rate = self.limits.rate?;
        let now = self.begin.elapsed().as_secs_f64();
        let mut buckets = self.buckets.lock().await;
        if buckets.len() >= ADDRESSES {
            buckets.retain(|_, bucket| !bucket.is_full(rate, now));
        }
        let bucket = buckets
            .entry(peer)
            .or_insert_with(|| Bucket::full(rate, now));
        bucket.take(rate, now).err()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use axum::routing::{get, post};

    use super::*;

    fn running(limits: Limits) -> Running {
        let routes = Router::new().route("/", get(|| async { "hello" })).route(
            "/len",
            post(|body: axum::body::Bytes| async move { body.len().to_string() }),
        );
        Server::bind(Bind::default(), limits)
            .unwrap()
            .spawn(routes)
            .unwrap()
    }

    /// The answer to bytes that are sent as they are; the connection is read to its end.
    fn send(server: &Running, text: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn post_of(len: usize, body: &str) -> String {
        format!(
            "POST /len HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
        )
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

    #[test]
    fn answers_carry_the_policy() {
        let answer = send(&running(Limits::default()), GET);
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
            "{answer}"
        );
        for line in [
            "content-security-policy: default-src 'none'",
            "nosniff",
            "no-store",
        ] {
            assert!(answer.contains(line), "{line}: {answer}");
        }
    }

    #[test]
    fn bodies_are_bounded_in_size_and_time() {
        let server = running(Limits {
            body: 10,
            read: Duration::from_millis(200),
            ..Limits::default()
        });
        assert!(send(&server, &post_of(5, "12345")).ends_with("\r\n5"));
        assert!(send(&server, &post_of(100_000_000, "")).starts_with("HTTP/1.1 413"));
        let chunked = "POST /len HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                       14\r\n01234567890123456789\r\n0\r\n\r\n";
        assert!(send(&server, chunked).starts_with("HTTP/1.1 413"));
        assert!(send(&server, &post_of(5, "123")).starts_with("HTTP/1.1 408"));
        // A head that does not end: the connection is closed, or told so.
        let answer = send(&server, "GET / HTTP/1.1\r\nHost: local");
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
            "{answer}"
        );
    }

    #[test]
    fn many_requests_have_to_wait() {
        let server = running(Limits {
            rate: Some(1.0),
            ..Limits::default()
        });
        let answers: Vec<String> = (0..4).map(|_| send(&server, GET)).collect();
        assert!(
            answers[..2].iter().all(|a| a.starts_with("HTTP/1.1 200")),
            "{answers:?}"
        );
        assert!(
            answers[3].starts_with("HTTP/1.1 429") && answers[3].contains("retry-after: 1"),
            "{answers:?}"
        );
    }

    #[test]
    fn other_sites_are_refused_and_a_stop_ends_the_server() {
        let server = running(Limits::default());
        assert!(
            send(&server, &GET.replace("localhost", "evil.example")).starts_with("HTTP/1.1 403")
        );
        let address = server.address();
        // A connection that stays open without a request does not hold the server.
        let _idle = TcpStream::connect(address).unwrap();
        let begin = Instant::now();
        drop(server);
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn a_taken_port_is_named() {
        let server = running(Limits::default());
        let port = server.address().port();
        let taken = Bind::default().or_port(port);
        let error = Server::bind(taken, Limits::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&port.to_string()) && error.contains("--port"),
            "{error}"
        );
    }
}
