//! Server-sent events: an answer that stays open and is written to.

use std::convert::Infallible;
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
        let mut text = format!("event: {kind}\n");
        push_data(&mut text, data);
        self.write(text).await
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
    (EventSender(sender), event_response(receiver))
}

/// Ends an event with a line of data.
pub(crate) fn push_data(text: &mut String, data: &str) {
    text.push_str("data: ");
    // A line break in the data would begin another field.
    text.extend(data.chars().filter(|c| !matches!(c, '\n' | '\r')));
    text.push_str("\n\n");
}

/// What an event stream is read from. It is dropped when the client goes.
pub(crate) trait EventSource: Send + Unpin + 'static {
    /// Events that have come since the last call, as they are sent; `None` at the end.
    fn poll_events(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>>;
}

impl EventSource for Receiver<Bytes> {
    fn poll_events(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.poll_recv(context)
    }
}

/// An answer of events from `source`.
pub(crate) fn event_response(source: impl EventSource) -> Response {
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream; charset=utf-8"),
        // nginx collects answers otherwise.
        ("x-accel-buffering", "no"),
    ];
    (headers, Body::new(EventBody(source))).into_response()
}

struct EventBody<S>(S);

impl<S: EventSource> hyper::body::Body for EventBody<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let events = self.0.poll_events(context);
        events.map(|events| events.map(|events| Ok(Frame::data(events))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_stays_one_line() {
        let mut text = String::new();
        push_data(&mut text, "a\nevent: b\r\u{85}c");
        assert_eq!(text, "data: aevent: b\u{85}c\n\n");
    }
}
