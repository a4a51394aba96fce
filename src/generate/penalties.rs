//! What changes logits before a token is sampled, and the log-probabilities that are reported of it.

use super::SamplingConfig;
use super::sampler::{SampledToken, sample_token};

/// Changes of logits by the tokens so far and by the user's wish. The default changes nothing.
///
/// # Source
/// `repetition` as in [`sample_penalised`](super::sample_penalised). `frequency` and `presence` of OpenAI's API: of a token that the
/// response holds `n` times, `logit -= n * frequency + (n > 0) * presence`. `bias` of its `logit_bias`.
#[derive(Debug, Clone, PartialEq)]
pub struct Penalties {
    /// Divides positive and multiplies negative logits of tokens of the prompt and of the response; 1 changes nothing.
    pub repetition: f64,
    /// Taken off for each time that the response holds the token.
    pub frequency: f64,
    /// Taken off once if the response holds the token.
    pub presence: f64,
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
}

impl Default for Penalties {
    fn default() -> Self {
        Self {
            repetition: 1.0,
            frequency: 0.0,
            presence: 0.0,
            bias: Vec::new(),
        }
    }
}

impl Penalties {
    fn change_nothing(&self) -> bool {
        let Self {
            repetition,
            frequency,
            presence,
            bias,
        } = self;
        *repetition == 1.0 && *frequency == 0.0 && *presence == 0.0 && bias.is_empty()
    }

    /// The logits that the next token is sampled from; `None` if they are the model's.
    fn changed(&self, logits: &[f32], prompt: &[u32], response: &[u32]) -> Option<Vec<f32>> {
        if self.change_nothing() {
            return None;
        }
        let mut changed = logits.to_vec();
        if self.repetition != 1.0 {
            let penalty = self.repetition as f32;
            for &id in prompt.iter().chain(response) {
                // From the model's logits, so that a token that stands there twice is penalised once.
                let logit = logits[id as usize];
                changed[id as usize] = match logit < 0.0 {
                    true => logit * penalty,
                    false => logit / penalty,
                };
            }
        }
        if self.frequency != 0.0 || self.presence != 0.0 {
            let mut seen = response.to_vec();
            seen.sort_unstable();
            for same in seen.chunk_by(|a, b| a == b) {
                let off = same.len() as f64 * self.frequency + self.presence;
                changed[same[0] as usize] -= off as f32;
            }
        }
        for &(id, bias) in &self.bias {
            changed[id as usize] += bias;
        }
        Some(changed)
    }

    /// Samples the token after `prompt` and `response`, given a uniform number in `[0, 1)`.
    pub fn sample(
        &self,
        logits: &[f32],
        prompt: &[u32],
        response: &[u32],
        sampling: &SamplingConfig,
        uniform: f64,
    ) -> SampledToken {
        match self.changed(logits, prompt, response) {
            Some(changed) => sample_token(&changed, sampling, uniform),
            None => sample_token(logits, sampling, uniform),
        }
    }
}

/// Log-probabilities of a token and of the most probable ones in its place, nats, under the model's own distribution: at
/// temperature 1, before penalties.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenLogprobs {
    /// Of the token.
    pub logprob: f32,
    /// The most probable tokens, descending; the lower id first among equals.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Those of token `id`, with the `num_top` most probable ones.
    pub fn of(logits: &[f32], id: u32, num_top: usize) -> Self {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // Summed in f64: beside a probability near one, an f32 sum loses the tail of a large vocabulary.
        let sum: f64 = logits.iter().map(|&l| f64::from((l - best).exp())).sum();
        let lse = sum.ln();
        let logprob = |id: u32| (f64::from(logits[id as usize] - best) - lse) as f32;
        let mut top: Vec<u32> = Vec::new();
        let before = |a: u32, b: u32| logits[a as usize] > logits[b as usize];
        for id in 0..logits.len() as u32 {
            if top.len() == num_top && top.last().is_none_or(|&last| !before(id, last)) {
                continue;
            }
            let place = top.partition_point(|&other| !before(id, other));
            top.insert(place, id);
            top.truncate(num_top);
        }
        Self {
            logprob: logprob(id),
            top: top.into_iter().map(|id| (id, logprob(id))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, -1.0];
    const GREEDY: SamplingConfig = SamplingConfig {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
    };

    fn greedy(penalties: &Penalties, prompt: &[u32], response: &[u32]) -> u32 {
        penalties.sample(&LOGITS, prompt, response, &GREEDY, 0.5).id
    }

    #[test]
    fn penalties_count_the_response_and_bias_is_added() {
        let frequency = Penalties {
            frequency: 0.6,
            ..Penalties::default()
        };
        // Token 1 falls to 2 - 0.6 = 1.4, then to 2 - 1.2 = 0.8, below the 1 of token 2.
        assert_eq!(greedy(&frequency, &[], &[1]), 1);
        assert_eq!(greedy(&frequency, &[], &[1, 3, 1]), 2);
        assert_eq!(greedy(&frequency, &[1, 1, 1], &[]), 1);
        let presence = Penalties {
            presence: 1.1,
            ..Penalties::default()
        };
        // To 2 - 1.1 = 0.9, once.
        assert_eq!(greedy(&presence, &[], &[1]), 2);
        // Both at 2 - 1.1 and 1 - 1.1: token 1 again.
        assert_eq!(greedy(&presence, &[], &[1, 1, 1, 2]), 1);
        let bias = Penalties {
            bias: vec![(3, 3.5), (1, -100.0)],
            ..Penalties::default()
        };
        assert_eq!(greedy(&bias, &[], &[]), 3);
        let repetition = Penalties {
            repetition: 2.5,
            ..Penalties::default()
        };
        assert_eq!(greedy(&repetition, &[1, 1], &[]), 2);
    }

    #[test]
    fn reported_logprobs_are_the_models() {
        // ln(1 + e^2 + e + e^-1) = 2.440190
        let found = TokenLogprobs::of(&LOGITS, 0, 2);
        assert!((found.logprob + 2.440_19).abs() < 1e-5, "{found:?}");
        let ids: Vec<u32> = found.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 2]);
        assert!((found.top[0].1 + 0.440_190).abs() < 1e-5, "{found:?}");
        assert!((found.top[1].1 + 1.440_19).abs() < 1e-5, "{found:?}");
        assert!(TokenLogprobs::of(&LOGITS, 0, 0).top.is_empty());
        // Among equals the lower id, and no more than there are.
        let equal = TokenLogprobs::of(&[1.0; 3], 2, 5);
        assert_eq!(
            equal.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            [0, 1, 2]
        );
    }
}
