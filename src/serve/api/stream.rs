//! Answers piece by piece, as server-sent events.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use axum::response::Response;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep, sleep_until};

use super::answer::Writer;
use super::error::ApiError;
use super::timed_out;
use crate::serve::listener::Piece;
use crate::web::{EventSource, event_response, push_data};

/// The data of the event after all others.
const DONE: &str = "[DONE]";

/// The events of a streamed answer. Dropping it, as when the client goes, ends its responses.
struct Events {
    pieces: UnboundedReceiver<Piece>,
    writer: Writer,
    /// Events that come before all tokens.
    first: String,
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
    let mut first = String::new();
    for chunk in writer.first_chunks() {
        push_data(&mut first, &chunk.to_string());
    }
    if done {
        end(&mut first, &writer);
    }
    event_response(Events {
        pieces,
        writer,
        first,
        deadline: Box::pin(sleep_until(deadline)),
        done,
    })
}

impl EventSource for Events {
    fn poll_events(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut out = std::mem::take(&mut self.first);
        while !self.done {
            match self.pieces.poll_recv(context) {
                Poll::Ready(Some(mut piece)) => self.write(&mut piece, &mut out),
                Poll::Ready(None) => {
                    let error = ApiError::failed("the engine has ended");
                    self.fail(&error, &mut out);
                }
                Poll::Pending => {
                    if self.deadline.as_mut().poll(context).is_ready() {
                        self.fail(&timed_out(), &mut out);
                    }
                    break;
                }
            }
        }
        match (out.is_empty(), self.done) {
            (false, _) => Poll::Ready(Some(out.into())),
            (true, true) => Poll::Ready(None),
            (true, false) => Poll::Pending,
        }
    }
}

impl Events {
    fn write(&mut self, piece: &mut Piece, out: &mut String) {
        let choice = piece.choice;
        match self.writer.take(piece) {
            Ok(all) => {
                let chunk = self.writer.next_chunk(choice);
                push_data(out, &chunk.to_string());
                if all {
                    end(out, &self.writer);
                    self.done = true;
                }
            }
            Err(error) => self.fail(&error, out),
        }
    }

    /// The status has been sent: what goes wrong now is an event.
    fn fail(&mut self, error: &ApiError, out: &mut String) {
        push_data(out, &error.body().to_string());
        push_data(out, DONE);
        self.pieces.close();
        self.done = true;
    }
}

fn end(out: &mut String, writer: &Writer) {
    if let Some(usage) = writer.usage_chunk() {
        push_data(out, &usage.to_string());
    }
    push_data(out, DONE);
}
