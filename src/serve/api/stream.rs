//! Answers piece by piece, as server-sent events.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep, sleep_until};

use super::answer::Writer;
use super::error::ApiError;
use super::timed_out;
use crate::serve::listener::Piece;

/// The body of a streamed answer. Dropping it, as when the client goes, ends its responses.
struct Events {
    pieces: UnboundedReceiver<Piece>,
    writer: Writer,
    /// Bytes that come before all tokens.
    first: Vec<u8>,
    deadline: Pin<Box<Sleep>>,
    done: bool,
}

/// A streamed answer.
pub(crate) fn respond(
    mut writer: Writer,
    pieces: UnboundedReceiver<Piece>,
    deadline: Instant,
    done: bool,
) -> Response {
    let mut first = Vec::new();
    for chunk in writer.first_chunks() {
        event(&mut first, &chunk);
    }
    if done {
        end(&mut first, &writer);
    }
    let body = Events {
        pieces,
        writer,
        first,
        deadline: Box::pin(sleep_until(deadline)),
        done,
    };
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    response
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let mut out = std::mem::take(&mut this.first);
        while !this.done {
            match this.pieces.poll_recv(context) {
                Poll::Ready(Some(mut piece)) => this.write(&mut piece, &mut out),
                Poll::Ready(None) => {
                    let error = ApiError::failed("the engine has ended");
                    this.fail(&error, &mut out);
                }
                Poll::Pending => {
                    if this.deadline.as_mut().poll(context).is_ready() {
                        this.fail(&timed_out(), &mut out);
                    }
                    break;
                }
            }
        }
        match (out.is_empty(), this.done) {
            (false, _) => Poll::Ready(Some(Ok(Frame::data(out.into())))),
            (true, true) => Poll::Ready(None),
            (true, false) => Poll::Pending,
        }
    }
}

impl Events {
    fn write(&mut self, piece: &mut Piece, out: &mut Vec<u8>) {
        let choice = piece.choice;
        match self.writer.take(piece) {
            Ok(all) => {
                let chunk = self.writer.next_chunk(choice);
                event(out, &chunk);
                if all {
                    end(out, &self.writer);
                    self.done = true;
                }
            }
            Err(error) => self.fail(&error, out),
        }
    }

    /// The status has been sent: what goes wrong now is an event.
    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(out, &error.body());
        out.extend_from_slice(b"data: [DONE]\n\n");
        self.pieces.close();
        self.done = true;
    }
}

fn event(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(value.to_string().as_bytes());
    out.extend_from_slice(b"\n\n");
}

fn end(out: &mut Vec<u8>, writer: &Writer) {
    if let Some(usage) = writer.usage_chunk() {
        event(out, &usage);
    }
    out.extend_from_slice(b"data: [DONE]\n\n");
}
