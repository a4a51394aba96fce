//! The scored responses of a stage that has not run, as later stages' plans count them.

use super::Lengths;
use crate::data::{RowKind, Take, num_top};
use crate::train::shared::num_held_out;

/// Scored responses that a stage is expected to write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredRows {
    /// Number of prompts to train on, each a row.
    pub prompts: u64,
    /// Number of prompts that are held out.
    pub held_out: u64,
    /// Responses to each prompt.
    pub responses: usize,
    /// Mean length of prompt and longest response, in tokens.
    pub len: f64,
    /// Mean length of a prompt and expected length of a response, in tokens.
    pub expected: (f64, f64),
    /// Whether they are comparisons with the probability that the chosen response is the better one.
    pub judged: bool,
}

/// Responses to a prompt at least and at most, where pairs of them are compared.
pub(in crate::train) const PAIR: (usize, usize) = (2, usize::MAX);

/// Pairs of the responses to one prompt that a stage compares: all, or at most `most`.
pub(in crate::train) fn num_pairs(responses: usize, most: Option<usize>) -> u64 {
    let all = responses * responses.saturating_sub(1) / 2;
    most.map_or(all, |most| most.min(all)) as u64
}

/// How many of `rows` rows a stage keeps for training, and how many it holds out.
pub(in crate::train) fn split(rows: u64, fraction: f64) -> (u64, u64) {
    let held_out = num_held_out(rows as usize, fraction) as u64;
    (rows - held_out.min(rows), held_out)
}

impl ScoredRows {
    /// Compared pairs, each a row: `pairs` for each of `rows` prompts, of which a fraction `held_out` is held out. `len`: mean length of
    /// a response with its prompt, in tokens.
    pub(in crate::train) fn of_pairs(rows: u64, held_out: f64, pairs: u64, len: f64) -> Self {
        let (prompts, held_out) = split(rows, held_out);
        Self {
            prompts: prompts * pairs,
            held_out: held_out * pairs,
            responses: 2,
            len,
            expected: (0.0, len),
            judged: true,
        }
    }

    /// Lengths of these rows when read as `kind`: as comparisons all responses to a prompt together, otherwise one response.
    /// How many responses a threshold keeps is unknown: one is expected of each prompt.
    pub(super) fn lengths(&self, kind: RowKind, held_out: bool, take: Option<Take>) -> Lengths {
        let compared = matches!(
            kind,
            RowKind::Preference | RowKind::Responses | RowKind::Rated
        );
        let responses = if compared { self.responses } else { 1 };
        let taken = match take {
            _ if compared => 1,
            Some(Take::BestAndWorst) => 2,
            _ if kind == RowKind::Labelled => self.responses,
            Some(Take::All) => self.responses,
            Some(Take::TopFraction(share)) => num_top(share, self.responses),
            _ => 1,
        };
        let prompts = [self.prompts, self.held_out][usize::from(held_out)];
        let rows = taken as u64 * prompts;
        let (prompt, response) = self.expected;
        Lengths::unseen(rows, responses as f64 * self.len)
            .expecting(prompt + responses as f64 * response)
    }
}
