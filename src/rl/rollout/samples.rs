//! Responses of a policy with scores and log-probabilities.

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

    /// `[value positions]`: the KL term on each token, and the score at each row's end; see [`token_rewards`].
    pub fn token_rewards(&self, kl: &KlTerm) -> Vec<f32> {
        let per_token = self.kl(kl.estimator);
        token_rewards(&per_token, &self.scores, kl.reward_coef(), &self.layout)
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
