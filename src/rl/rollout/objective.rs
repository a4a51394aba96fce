//! The policy's objective as a function of the probability ratio, and what its loss is averaged over.

use crate::tokens::Segments;

/// The policy's objective at a token, with `rho = exp(logprob - old_logprob)` and advantage `A`. The loss is
/// [`crate::loss::policy_loss`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// `min(A rho, A clip(rho, 1 - low, 1 + high))`: a token whose ratio has left the range in the direction of its advantage
    /// has no gradient.
    ///
    /// # Source
    /// Schulman et al. 2017, arXiv:1707.06347, eq. 7, where `low = high`; Yu et al. 2025, arXiv:2503.14476 (DAPO,
    /// "clip-higher"), where they differ.
    Clip {
        /// How far the ratio may fall below 1.
        low: f64,
        /// How far it may rise above 1.
        high: f64,
    },
    /// `Clip` with a bound on the ratio of tokens with a negative advantage too: `min(A min(rho, max_ratio), A clip(rho, 1 - low, 1 + high))`.
    ///
    /// # Source
    /// Prime Intellect 2025, arXiv:2505.07291, section 3.2 (two-sided GRPO clipping); TRL's `delta`.
    TwoSided {
        /// How far the ratio may fall below 1.
        low: f64,
        /// How far it may rise above 1.
        high: f64,
        /// Largest ratio of a token with a negative advantage.
        max_ratio: f64,
    },
    /// `A min(rho, max_ratio) logprob` with the clipped ratio as a constant: every token keeps its gradient.
    ///
    /// # Source
    /// MiniMax 2025, arXiv:2506.13585, eq. 4 (CISPO), with an upper bound only, as in TRL 1.16.
    Cispo {
        /// Largest weight of a token.
        max_ratio: f64,
    },
}

impl Objective {
    /// PPO's clip, symmetric around 1.
    pub fn clip(cliprange: f64) -> Self {
        Self::Clip {
            low: cliprange,
            high: cliprange,
        }
    }

    /// Whether the clip is active at a token with this ratio and advantage.
    pub fn is_clipped(&self, ratio: f64, advantage: f64) -> bool {
        match *self {
            Self::Clip { low, high } => {
                (advantage > 0.0 && ratio > 1.0 + high) || (advantage < 0.0 && ratio < 1.0 - low)
            }
            Self::TwoSided {
                low,
                high,
                max_ratio,
            } => {
                Self::Clip { low, high }.is_clipped(ratio, advantage)
                    || (advantage < 0.0 && ratio > max_ratio)
            }
            Self::Cispo { max_ratio } => advantage > 0.0 && ratio > max_ratio,
        }
    }
}

/// What the probability ratio is a ratio of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RatioLevel {
    /// Each token: `logprob - old_logprob` (PPO, GRPO).
    #[default]
    Token,
    /// The response, per token: the mean of its tokens' differences, at each of them.
    ///
    /// # Source
    /// Zheng et al. 2025, arXiv:2507.18071, eq. 7 (GSPO).
    SequenceMean,
    /// The response: the sum of its tokens' differences, at each of them (RLOO, whose action is the response).
    Sequence,
}

impl RatioLevel {
    /// Log ratios of responses from the `changes` of their tokens' log-probabilities.
    ///
    /// # Shapes
    /// - `changes`: `[response tokens]`, nats; returns the same
    ///
    /// # Panics
    /// If `changes` does not have one entry per token.
    pub fn log_ratios(self, changes: Vec<f32>, responses: &Segments) -> Vec<f32> {
        assert_eq!(changes.len(), responses.num_tokens(), "response tokens");
        if self == Self::Token {
            return changes;
        }
        (responses.iter())
            .flat_map(|row| {
                let len = row.len();
                let sum: f64 = changes[row].iter().map(|&x| f64::from(x)).sum();
                let ratio = match self {
                    Self::SequenceMean => sum / len as f64,
                    _ => sum,
                };
                std::iter::repeat_n(ratio as f32, len)
            })
            .collect()
    }
}

/// Sizes that a loss may be averaged over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MinibatchSize {
    /// Responses of the minibatch, those that are not trained on included.
    pub rows: usize,
    /// Trained tokens of the minibatch.
    pub tokens: usize,
    /// Trained tokens of the rollout, divided by its number of minibatches.
    pub tokens_of_rollout: f64,
}

/// What the policy's loss is averaged over, in the whole minibatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LossMean {
    /// All response tokens of the minibatch: long responses count for more (PPO; TRL's `bnpo`).
    #[default]
    Tokens,
    /// The mean number of response tokens over the rollout's minibatches: a token has the same weight in each of them (DAPO,
    /// arXiv:2503.14476, section 3.3).
    RolloutTokens,
    /// Responses, each averaged over its tokens (GRPO, arXiv:2402.03300, eq. 3).
    Responses,
    /// Responses, each summed over its tokens and divided by this constant, so that the weight of a token does not depend on the
    /// response's length (Dr. GRPO, arXiv:2503.20783).
    Constant(usize),
}

impl LossMean {
    /// The divisor of the summed loss of a minibatch; at least 1.
    pub fn count(self, size: MinibatchSize) -> f64 {
        let count = match self {
            Self::Tokens => size.tokens as f64,
            Self::RolloutTokens => size.tokens_of_rollout,
            Self::Responses => size.rows as f64,
            Self::Constant(len) => (size.rows * len) as f64,
        };
        count.max(1.0)
    }

    /// `[response tokens]`: weight of each token in the sum; `None` if all are 1.
    pub fn weights(self, responses: &Segments) -> Option<Vec<f32>> {
        match self {
            Self::Tokens | Self::RolloutTokens | Self::Constant(_) => None,
            Self::Responses => {
                let weight = |row: std::ops::Range<usize>| {
                    let len = row.len();
                    row.map(move |_| 1.0 / len as f32)
                };
                Some(responses.iter().flat_map(weight).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clip_acts_in_the_direction_of_the_advantage() {
        let clip = Objective::Clip {
            low: 0.2,
            high: 0.28,
        };
        assert!(clip.is_clipped(1.3, 1.0) && !clip.is_clipped(1.25, 1.0));
        assert!(clip.is_clipped(0.75, -1.0) && !clip.is_clipped(0.85, -1.0));
        assert!(!clip.is_clipped(0.1, 1.0) && !clip.is_clipped(9.0, -1.0));
        assert_eq!(
            Objective::clip(0.2),
            Objective::Clip {
                low: 0.2,
                high: 0.2
            }
        );
    }

    #[test]
    fn means_differ_in_how_much_a_long_response_counts() {
        // Responses of 1 and 4 tokens with a loss of 2 and 1 on each: (2 + 4) / 5, (2 + 1) / 2, (2 + 4) / 16.
        let responses = Segments::from_lens([1, 4]);
        let losses = [2.0, 1.0, 1.0, 1.0, 1.0];
        let mean = |by: LossMean| {
            let weights = by.weights(&responses).unwrap_or(vec![1.0; 5]);
            let sum: f32 = losses.iter().zip(weights).map(|(x, w)| x * w).sum();
            f64::from(sum)
                / by.count(MinibatchSize {
                    rows: 2,
                    tokens: 5,
                    tokens_of_rollout: 4.0,
                })
        };
        assert_eq!(mean(LossMean::Tokens), 1.2);
        assert_eq!(mean(LossMean::RolloutTokens), 1.5);
        assert_eq!(mean(LossMean::Responses), 1.5);
        assert_eq!(mean(LossMean::Constant(8)), 0.375);
    }

    #[test]
    fn a_second_bound_holds_negative_advantages_back() {
        let objective = Objective::TwoSided {
            low: 0.2,
            high: 0.28,
            max_ratio: 4.0,
        };
        assert!(objective.is_clipped(4.5, -1.0) && !objective.is_clipped(3.5, -1.0));
        assert!(objective.is_clipped(0.75, -1.0) && objective.is_clipped(1.3, 1.0));
        assert!(!objective.is_clipped(1.2, 1.0));
    }

    #[test]
    fn a_ratio_of_a_response_is_at_each_of_its_tokens() {
        // Changes 0.5, -0.2 and 1: mean 0.15 and sum 0.3 of the first response.
        let responses = Segments::from_lens([2, 1]);
        let of = |level: RatioLevel| level.log_ratios(vec![0.5, -0.2, 1.0], &responses);
        assert_eq!(of(RatioLevel::Token), [0.5, -0.2, 1.0]);
        for (got, want) in [
            (of(RatioLevel::SequenceMean), [0.15, 0.15, 1.0]),
            (of(RatioLevel::Sequence), [0.3, 0.3, 1.0]),
        ] {
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() < 1e-6, "{got}, expected {want}");
            }
        }
    }

    #[test]
    fn cispo_has_a_bound_from_above() {
        let cispo = Objective::Cispo { max_ratio: 5.0 };
        assert!(cispo.is_clipped(5.5, 1.0));
        assert!(!cispo.is_clipped(5.5, -1.0) && !cispo.is_clipped(0.1, 1.0));
    }
}
