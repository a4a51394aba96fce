//! Brings tokens from the engine to the request that waits for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::desk::Ticket;
use super::metrics::Metrics;
use super::text::GrowingText;
use crate::generate::TokenLogprobs;
use crate::generate::continuous::{Ending, GeneratedToken, Listener};

/// Tokens of one choice, on their way to the client.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Piece {
    /// Which choice.
    pub(crate) choice: usize,
    /// What is certain of the text since the last piece.
    pub(crate) text: String,
    /// The tokens since the last piece.
    pub(crate) tokens: Vec<SampledPiece>,
    /// Why the choice ends with this piece.
    pub(crate) ending: Option<PieceEnd>,
}

/// A token, with its log-probabilities if they were asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SampledPiece {
    pub(crate) id: u32,
    pub(crate) logprobs: Option<TokenLogprobs>,
}

/// Why a choice has ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PieceEnd {
    /// A stop token or a stop string.
    Stop,
    /// `max_tokens`, or the model's context.
    Length,
    /// Something is wrong.
    Failed(String),
}

/// Listens for one choice of a request. Dropping the other end of `events` ends the response.
pub(crate) struct ChoiceListener {
    choice: usize,
    text: GrowingText,
    events: UnboundedSender<Piece>,
    /// Whether each token is sent at once, and not all of them at the end.
    streams: bool,
    pending: Piece,
    failure: Option<String>,
    ticket: Option<Ticket>,
    metrics: Arc<Metrics>,
    came: Instant,
    last: Option<Instant>,
}

impl ChoiceListener {
    pub(crate) fn new(
        choice: usize,
        text: GrowingText,
        streams: bool,
        events: UnboundedSender<Piece>,
        ticket: Ticket,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            choice,
            text,
            events,
            streams,
            pending: Piece {
                choice,
                ..Piece::default()
            },
            failure: None,
            ticket: Some(ticket),
            metrics,
            came: Instant::now(),
            last: None,
        }
    }

    fn send(&mut self) {
        let next = Piece {
            choice: self.choice,
            ..Piece::default()
        };
        // Whoever has gone is noticed by `is_gone`.
        let _ = self.events.send(std::mem::replace(&mut self.pending, next));
    }
}

impl Listener for ChoiceListener {
    fn begin(&mut self) {
        self.metrics.queue_time.add(self.came.elapsed());
        self.ticket = None;
    }

    fn token(&mut self, token: GeneratedToken) -> bool {
        let now = Instant::now();
        match self.last.replace(now) {
            None => self.metrics.first_token.add(now - self.came),
            Some(last) => self.metrics.between_tokens.add(now - last),
        }
        // A stop token is no text, also where it is not a special token.
        if !token.is_stop {
            match self.text.push(token.id) {
                Ok(text) => self.pending.text.push_str(&text),
                Err(error) => {
                    self.failure = Some(error.to_string());
                }
            }
        }
        self.pending.tokens.push(SampledPiece {
            id: token.id,
            logprobs: token.logprobs,
        });
        let ends = self.text.stopped() || self.failure.is_some();
        if self.streams && !ends && !token.is_stop {
            self.send();
        }
        ends
    }

    fn end(&mut self, ending: Ending) {
        self.ticket = None;
        if ending == Ending::Gone {
            self.metrics.aborted.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match self.text.finish() {
            Ok(rest) => self.pending.text.push_str(&rest),
            Err(error) => self.failure = Some(error.to_string()),
        }
        let not_finite = "the model gives log-probabilities that are not finite";
        self.pending.ending = Some(match (ending, self.failure.take()) {
            (_, Some(failure)) => PieceEnd::Failed(failure),
            (Ending::NotFinite, None) => PieceEnd::Failed(not_finite.into()),
            // The last token may have completed a stop string.
            (Ending::Length, None) if !self.text.stopped() => PieceEnd::Length,
            _ => PieceEnd::Stop,
        });
        self.send();
        self.metrics.whole.add(self.came.elapsed());
    }

    fn is_gone(&self) -> bool {
        self.events.is_closed()
    }
}
