//! Server-sent events: an answer that stays open and is written to.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Events that wait for a slow client before its sender does.
const WAITING: usize = 16;

/// The writing side of an event stream.
pub(crate) struct EventSender(Sender<Bytes>);

impl EventSender {
    /// Sends an event of a kind with a line of data; `false` if the client has gone.
    pub(crate) async fn event(&self, kind: &str, data: &str) -> bool {
        // A line break in the data would begin another field.
        let data: String = data.chars().filter(|c| !c.is_control()).collect();
        self.write(format!("event: {kind}\ndata: {data}\n\n")).await
    }

    /// Sends a comment, which keeps proxies and tunnels from closing a quiet connection; `false` if the client has gone.
    pub(crate) async fn keep_alive(&self) -> bool {
        self.write(":\n\n".to_owned()).await
    }

    async fn write(&self, text: String) -> bool {
        self.0.send(text.into()).await.is_ok()
    }
}

/// An event stream: what writes to it, and the answer.
pub(crate) fn event_stream() -> (EventSender, Response) {
    let (sender, receiver) = channel(WAITING);
    let body = Body::new(EventBody(receiver));
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        // nginx collects answers otherwise.
        ("x-accel-buffering", "no"),
    ];
    (EventSender(sender), (headers, body).into_response())
}

struct EventBody(Receiver<Bytes>);

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let received = self.0.poll_recv(context);
        received.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
