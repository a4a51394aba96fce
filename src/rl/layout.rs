//! Which positions of a response carry a probability, a reward and a value.

use crate::tokens::{Segments, Span};

/// The policy positions and the value positions of a packed rollout.
///
/// A response has one *policy position* per token: log-probabilities, KL and advantages live there. Rewards, values and
/// returns live on *value positions*: the same ones, and in the layout of the N+ code one more for each response that
/// stopped before it was full.
///
/// # Why one more
/// The N+ code pads each response to `T` tokens. With EOS at index `L` it keeps the policy loss on `0..=L` (its
/// `padding_mask`) but values and rewards on `0..=L+1` (`padding_mask_p1`), and pays the score at `L+1` if `L+1 < T`, else at `L`.
/// The value at `L+1` is read from the hidden state *of the EOS token*, the last token of the row, so that a packed row holds
/// all that the model needs. Everything beyond `L+1` is zero and drops out.
///
/// # Example
/// `T = 4`, one response `[a, EOS]` and one full one `[b, c, d, e]`:
/// ```
/// use tempering::{rl::ResponseLayout, tokens::Segments};
///
/// let responses = Segments::from_lens([2, 4]);
/// let reference = ResponseLayout::after_eos(responses.clone(), 4);
/// assert_eq!(reference.values(), &Segments::from_lens([3, 4]));
/// assert_eq!(reference.score_positions(), [2, 6]);
///
/// let simple = ResponseLayout::on_last_token(responses);
/// assert_eq!(simple.values(), &Segments::from_lens([2, 4]));
/// assert_eq!(simple.score_positions(), [1, 5]);
/// ```
///
/// # Source
/// arXiv:2403.17031 and its code, `ppo.py`: `sequence_lengths`, `padding_mask_p1`, `actual_end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseLayout {
    responses: Segments,
    values: Segments,
}

impl ResponseLayout {
    /// The score is paid on the last token itself (the EOS, if there is one); value positions are policy positions: the layout
    /// of methods without a value function.
    ///
    /// # Panics
    /// If a response is empty.
    pub fn on_last_token(responses: Segments) -> Self {
        Self::with_values(responses.clone(), responses)
    }

    /// The N+ layout: a response shorter than `response_length` has one more value position after its last token,
    /// and the score is paid there.
    ///
    /// # Panics
    /// If a response is empty or longer than `response_length`.
    pub fn after_eos(responses: Segments, response_length: usize) -> Self {
        let values = Segments::from_lens(responses.iter().map(|range| {
            let len = range.len();
            assert!(
                len <= response_length,
                "a response of {len} tokens exceeds response_length {response_length}"
            );
            (len + 1).min(response_length)
        }));
        Self::with_values(responses, values)
    }

    fn with_values(responses: Segments, values: Segments) -> Self {
        assert!(
            responses.iter().all(|range| !range.is_empty()),
            "a response holds at least one token"
        );
        Self { responses, values }
    }

    /// Policy positions: segment `r` holds the response tokens of row `r`, the EOS included.
    pub fn responses(&self) -> &Segments {
        &self.responses
    }

    /// Value positions.
    pub fn values(&self) -> &Segments {
        &self.values
    }

    /// Index of each row's score among the value positions.
    pub fn score_positions(&self) -> Vec<usize> {
        self.values.last_tokens()
    }

    /// The layout of the chosen rows, in this order.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&self, rows: &[usize]) -> Self {
        let lens = |all: &Segments| Segments::from_lens(rows.iter().map(|&row| all.row_len(row)));
        Self {
            responses: lens(&self.responses),
            values: lens(&self.values),
        }
    }

    /// Index of each policy position among the value positions.
    pub fn responses_among_values(&self) -> Vec<usize> {
        (self.responses.iter().zip(self.values.iter()))
            .flat_map(|(response, value)| value.start..value.start + response.len())
            .collect()
    }

    /// Numbers on value positions, kept where there is a policy position: `[values] -> [responses]`.
    ///
    /// # Panics
    /// If `per_value` does not have one entry per value position.
    pub fn at_responses(&self, per_value: &[f32]) -> Vec<f32> {
        assert_eq!(per_value.len(), self.values.num_tokens(), "value positions");
        (self.responses_among_values().into_iter())
            .map(|position| per_value[position])
            .collect()
    }

    /// Numbers on policy positions, with zero at the extra value positions: `[responses] -> [values]`.
    ///
    /// # Panics
    /// If `per_token` does not have one entry per policy position.
    pub fn at_values(&self, per_token: &[f32]) -> Vec<f32> {
        assert_eq!(
            per_token.len(),
            self.responses.num_tokens(),
            "policy positions"
        );
        let mut spread = vec![0.0; self.values.num_tokens()];
        for (response, value) in self.responses.iter().zip(self.values.iter()) {
            spread[value.start..value.start + response.len()].copy_from_slice(&per_token[response]);
        }
        spread
    }

    /// Positions in the packed batch of whole rows (query and response) whose hidden state predicts each response token:
    /// one per policy position, starting at the query's last token.
    ///
    /// # Panics
    /// If `rows` has other rows than this layout, or a row without a query token.
    pub fn logprob_positions(&self, rows: &Segments) -> Vec<usize> {
        self.hidden_positions(rows.spans(), &self.responses)
    }

    /// The same where rows share tokens; `rows` are the spans of whole rows.
    ///
    /// # Panics
    /// As [`Self::logprob_positions`].
    pub fn logprob_positions_of(&self, rows: &[Span]) -> Vec<usize> {
        self.hidden_positions(rows.iter().cloned(), &self.responses)
    }

    /// Positions in the packed batch of whole rows whose hidden state the value head reads: one per value position. The
    /// extra one of a row is its last token.
    ///
    /// # Panics
    /// As [`Self::logprob_positions`].
    pub fn value_positions(&self, rows: &Segments) -> Vec<usize> {
        self.hidden_positions(rows.spans(), &self.values)
    }

    /// The same where rows share tokens; `rows` are the spans of whole rows.
    ///
    /// # Panics
    /// As [`Self::logprob_positions`].
    pub fn value_positions_of(&self, rows: &[Span]) -> Vec<usize> {
        self.hidden_positions(rows.iter().cloned(), &self.values)
    }

    fn hidden_positions(
        &self,
        rows: impl ExactSizeIterator<Item = Span>,
        positions: &Segments,
    ) -> Vec<usize> {
        assert_eq!(rows.len(), self.responses.num_rows(), "rows");
        (rows.zip(self.responses.iter()).zip(positions.iter()))
            .flat_map(|((row, response), positions)| {
                assert!(
                    row.len() > response.len(),
                    "a row needs a query before its response"
                );
                let first = row.len() - response.len() - 1;
                (first..first + positions.len()).map(move |position| row.token(position))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_value_position_only_where_the_response_ended_early() {
        // T = 3: EOS at 0, EOS at T - 1, and no EOS at all; the last two look alike: L + 1 < T is false.
        let layout = ResponseLayout::after_eos(Segments::from_lens([1, 3, 3]), 3);
        assert_eq!(layout.values(), &Segments::from_lens([2, 3, 3]));
        assert_eq!(layout.score_positions(), [1, 4, 7]);
    }

    #[test]
    fn numbers_move_between_policy_and_value_positions() {
        let layout = ResponseLayout::after_eos(Segments::from_lens([1, 3, 2]), 3);
        let spread = layout.at_values(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(spread, [1.0, 0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]);
        let back = layout.at_responses(&[1.0, 9.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0]);
        assert_eq!(back, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn logprobs_start_at_the_last_query_token() {
        // The slice [ctx - 1 : -1]. Rows: 3 query + 2 response tokens, then 1 + 3; T = 3.
        let rows = Segments::from_lens([5, 4]);
        let layout = ResponseLayout::after_eos(Segments::from_lens([2, 3]), 3);
        assert_eq!(layout.logprob_positions(&rows), [2, 3, 5, 6, 7]);
        // The first row's extra value is read at its last token, 4.
        assert_eq!(layout.value_positions(&rows), [2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn rows_that_share_a_query_read_its_last_token() {
        // A query of 3 tokens at 0..3, responses of 2 and 3 tokens after it at 3..5 and 5..8.
        let rows = Segments::continuing(&[(3, None), (2, Some(0)), (3, Some(0))]);
        let layout = ResponseLayout::after_eos(Segments::from_lens([2, 3]), 3);
        let spans = [rows.span(1), rows.span(2)];
        assert_eq!(layout.logprob_positions_of(&spans), [2, 3, 2, 5, 6]);
        assert_eq!(layout.value_positions_of(&spans), [2, 3, 4, 2, 5, 6]);
    }

    #[test]
    fn some_rows_have_a_layout_of_their_own() {
        let layout = ResponseLayout::after_eos(Segments::from_lens([1, 3, 2]), 3);
        let some = layout.select(&[2, 0]);
        assert_eq!(some.responses(), &Segments::from_lens([2, 1]));
        assert_eq!(some.values(), &Segments::from_lens([3, 2]));
        assert_eq!(some.responses_among_values(), [0, 1, 3]);
    }

    #[test]
    #[should_panic(expected = "exceeds response_length 2")]
    fn a_response_longer_than_the_limit_is_a_mistake() {
        let _ = ResponseLayout::after_eos(Segments::from_lens([3]), 2);
    }
}
