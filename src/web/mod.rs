//! HTTP servers of this program: one way to listen ([`Bind`], [`Server`]), to limit what clients can cost ([`Limits`]) and to refuse
//! what no page of ours sent ([`same_site`]).
//!
//! A server listens on loopback unless the user names another address, speaks HTTP/1.1 without TLS (a tunnel or a reverse proxy
//! adds it), and ends when its [`Interrupt`](crate::report::Interrupt) is set: no new connections, answers under way finish.
//!
//! Requests run on one thread. What computes or waits for a disk belongs on another ([`tokio::task::spawn_blocking`], or a thread
//! of its own): a handler that blocks stops all clients.

mod address;
mod events;
mod headers;
mod limits;
mod same_site;
mod server;
mod token;
mod url;

pub(crate) use self::address::Bind;
pub(crate) use self::events::{EventSource, event_response, event_stream, push_data};
pub(crate) use self::limits::Limits;
#[cfg(test)]
pub(crate) use self::server::Running;
pub(crate) use self::server::Server;
pub(crate) use self::token::{Token, TokenHash, bearer};
pub(crate) use self::url::url_problem;
