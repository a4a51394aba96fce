//! Responses of a policy with scores and log-probabilities.

use std::collections::BTreeSet;

use crate::rl::{KlEstimator, KlTerm, ResponseLayout, kl_per_token, mean, row_sums, token_rewards};

/// Responses of a policy with their scores and log-probabilities.
///
/// Arrays by token are packed row after row, as in [`ResponseLayout::responses`]; there are no entries for padding.
#[derive(Debug, Clone)]
pub struct Samples {
    /// Query and response, row by row.
    pub rows: Vec<Vec<u32>>,
    /// Length of each row's query in tokens.
    pub query_lens: Vec<usize>,
    /// Policy and value positions of the responses.
    pub layout: ResponseLayout,
    /// Whether each response ended with EOS.
    pub has_eos: Vec<bool>,
    /// Score of each response, after the missing-EOS rule.
    pub scores: Vec<f32>,
    /// `[response tokens]`, nats, under the policy that generated the responses.
    pub logprobs: Vec<f32>,
    /// `[response tokens]`, nats, under the reference; `None` for a method without one.
    pub ref_logprobs: Option<Vec<f32>>,
}

impl Samples {
    /// The rows as slices.
    pub fn row_slices(&self) -> Vec<&[u32]> {
        self.rows.iter().map(Vec::as_slice).collect()
    }

    /// KL of the policy from the reference, `[response tokens]`, nats; zero without a reference.
    pub fn kl(&self, estimator: KlEstimator) -> Vec<f32> {
        match &self.ref_logprobs {
            Some(reference) => kl_per_token(estimator, &self.logprobs, reference),
            None => vec![0.0; self.logprobs.len()],
        }
    }

    /// Mean over responses of the summed `logprob - ref_logprob`, nats: the KL that is reported and controlled, whichever
    /// estimator enters the rewards.
    pub fn mean_kl(&self) -> f64 {
        mean(&row_sums(
            &self.kl(KlEstimator::K1),
            self.layout.responses(),
        ))
    }

    /// [`repetition`] of the responses.
    pub fn repetition(&self) -> f64 {
        let responses = self.rows.iter().zip(&self.query_lens);
        repetition(responses.map(|(row, &query)| &row[query..]))
    }

    /// `[value positions]`: the KL term on each token, and the score at each row's end; see [`token_rewards`].
    pub fn token_rewards(&self, kl: &KlTerm) -> Vec<f32> {
        self.token_rewards_of(&self.scores, kl)
    }

    /// The same with other scores.
    pub(super) fn token_rewards_of(&self, scores: &[f32], kl: &KlTerm) -> Vec<f32> {
        let per_token = self.kl(kl.estimator);
        token_rewards(&per_token, scores, kl.reward_coef(), &self.layout)
    }

    /// `[rows]`: the score minus the KL term of the whole response, for methods whose action is the response.
    pub fn response_rewards(&self, kl: &KlTerm) -> Vec<f32> {
        let sums = row_sums(&self.kl(kl.estimator), self.layout.responses());
        (self.scores.iter().zip(sums))
            .map(|(&score, sum)| (f64::from(score) - kl.reward_coef() * f64::from(sum)) as f32)
            .collect()
    }

    /// Repeats a number per response at each of its tokens: `[rows] -> [response tokens]`.
    ///
    /// # Panics
    /// If `per_row` does not have one entry per row.
    pub fn at_tokens(&self, per_row: &[f32]) -> Vec<f32> {
        assert_eq!(per_row.len(), self.rows.len(), "rows");
        (self.layout.responses().iter().zip(per_row))
            .flat_map(|(tokens, &value)| tokens.map(move |_| value))
            .collect()
    }
}

/// Mean over responses of the share of their groups of three tokens that occur earlier in the same response; 0 for responses of less than
/// four tokens.
pub fn repetition<'a>(responses: impl IntoIterator<Item = &'a [u32]>) -> f64 {
    let (mut total, mut count) = (0.0, 0usize);
    for ids in responses {
        let unique: BTreeSet<&[u32]> = ids.windows(3).collect();
        total += match ids.len().saturating_sub(2) {
            0 => 0.0,
            groups => 1.0 - unique.len() as f64 / groups as f64,
        };
        count += 1;
    }
    total / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::Segments;

    #[test]
    fn repeated_groups_of_three() {
        // Of 1 2 1 2 1 2 the groups are 121 twice and 212 twice: half repeat. The others have none; the query does not count.
        let responses: [&[u32]; 3] = [&[1, 2, 1, 2, 1, 2], &[1, 2, 3, 4], &[5]];
        let lens = responses.map(<[u32]>::len);
        let samples = Samples {
            rows: responses.map(|ids| [&[7, 7, 7, 7], ids].concat()).to_vec(),
            query_lens: vec![4; 3],
            layout: ResponseLayout::on_last_token(Segments::from_lens(lens)),
            has_eos: vec![true; 3],
            scores: vec![0.0; 3],
            logprobs: vec![0.0; 11],
            ref_logprobs: None,
        };
        assert!((samples.repetition() - 0.5 / 3.0).abs() < 1e-12);
    }
}
