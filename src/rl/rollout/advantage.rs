//! Advantage estimation: from samples to a rollout.

use super::{
    Rollout, Samples, ScaleRewards, ValueTargets, group_advantages, leave_one_out, less_group_mean,
    normalised,
};
use crate::rl::{Gae, KlTerm, Variance, gae, whiten};

/// How advantages are estimated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AdvantageEstimator {
    /// Generalised advantage estimation on per-token rewards, against a value function ([`gae`]).
    Gae {
        /// Discount per token.
        gamma: f64,
        /// Decay of the estimator.
        lam: f64,
        /// Divide rewards by their standard deviation over the rollout.
        whiten_rewards: bool,
        /// Shift and scale advantages to mean 0 and variance 1 over the rollout.
        whiten_advantages: bool,
    },
    /// One number per response, against its group ([`group_advantages`]).
    Group {
        /// Responses to each prompt, consecutive.
        size: usize,
        /// Scale of the differences.
        scale: ScaleRewards,
    },
    /// One number per response, against the others of its group ([`leave_one_out`]).
    LeaveOneOut {
        /// Responses to each prompt, one after the other.
        size: usize,
        /// Shift and scale advantages to mean 0 and deviation 1 over the rollout's responses ([`normalised`]).
        normalize: bool,
    },
    /// The discounted sum of the rewards from each token on, with the KL term at its tokens, shifted and scaled to
    /// mean 0 and variance 1 over the rollout's tokens.
    ///
    /// # Source
    /// Hu 2025, arXiv:2501.03262 (REINFORCE++).
    Returns {
        /// Discount per token.
        gamma: f64,
        /// Responses to each prompt, one after the other, whose mean score is subtracted first.
        baseline: Option<usize>,
    },
}

impl AdvantageEstimator {
    /// The rollout of `samples`. `values`: of the value function, at the value positions.
    ///
    /// # Panics
    /// If `Gae` gets no values, or a group's size does not divide the number of samples.
    pub fn estimate(self, samples: Samples, values: Option<Vec<f32>>, kl: KlTerm) -> Rollout {
        match self {
            Self::Gae {
                gamma,
                lam,
                whiten_rewards,
                whiten_advantages,
            } => {
                let values = values.expect("GAE needs the values of a value function");
                let mut rewards = samples.token_rewards(&kl);
                if whiten_rewards {
                    rewards = whiten(&rewards, false, Variance::Biased);
                }
                let Gae {
                    advantages,
                    returns,
                } = gae(&rewards, &values, samples.layout.values(), gamma, lam);
                let raw_advantages = samples.layout.at_responses(&advantages);
                let advantages = match whiten_advantages {
                    true => whiten(&raw_advantages, true, Variance::Biased),
                    false => raw_advantages.clone(),
                };
                Rollout {
                    samples,
                    kl,
                    raw_advantages,
                    advantages,
                    targets: Some(ValueTargets {
                        values,
                        rewards,
                        returns,
                    }),
                    trained: None,
                }
            }
            Self::Group { size, scale } => {
                let rewards = samples.response_rewards(&kl);
                by_response(samples, kl, &group_advantages(&rewards, size, scale))
            }
            Self::LeaveOneOut { size, normalize } => {
                let rewards = samples.response_rewards(&kl);
                let advantages = leave_one_out(&rewards, size);
                match normalize {
                    true => by_response(samples, kl, &normalised(&advantages)),
                    false => by_response(samples, kl, &advantages),
                }
            }
            Self::Returns { gamma, baseline } => {
                let scores = match baseline {
                    Some(size) => less_group_mean(&samples.scores, size),
                    None => samples.scores.clone(),
                };
                let rewards = samples.token_rewards_of(&scores, &kl);
                // GAE without a value function and without decay.
                let values = vec![0.0; rewards.len()];
                let returns = gae(&rewards, &values, samples.layout.values(), gamma, 1.0);
                let raw_advantages = samples.layout.at_responses(&returns.advantages);
                Rollout {
                    advantages: whiten(&raw_advantages, true, Variance::Biased),
                    raw_advantages,
                    samples,
                    kl,
                    targets: None,
                    trained: None,
                }
            }
        }
    }
}

/// A rollout in which every token of a response has the response's advantage.
fn by_response(samples: Samples, kl: KlTerm, advantages: &[f32]) -> Rollout {
    let advantages = samples.at_tokens(advantages);
    Rollout {
        samples,
        kl,
        raw_advantages: advantages.clone(),
        advantages,
        targets: None,
        trained: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::{KlEstimator, KlIn, ResponseLayout, mean, variance};
    use crate::tokens::Segments;

    /// Responses of 2, 1, 1 and 3 tokens to two prompts, KL 0.5 on each token.
    fn samples() -> Samples {
        let lens = [2, 1, 1, 3];
        Samples {
            rows: lens.iter().map(|&len| vec![7; 1 + len]).collect(),
            query_lens: vec![1; 4],
            layout: ResponseLayout::on_last_token(Segments::from_lens(lens)),
            has_eos: vec![true, true, true, false],
            scores: vec![1.0, 0.0, 3.0, 2.0],
            logprobs: vec![-1.0; 7],
            ref_logprobs: Some(vec![-1.5; 7]),
        }
    }

    fn kl(place: KlIn) -> KlTerm {
        KlTerm {
            coef: 0.2,
            estimator: KlEstimator::K1,
            place,
        }
    }

    #[test]
    fn a_response_pays_its_whole_kl_before_it_is_compared() {
        // 1 - 0.2 * 1 = 0.8, 0 - 0.1, 3 - 0.1, 2 - 0.2 * 1.5 = 1.7: differences 0.9 and 1.2.
        let rollout = (AdvantageEstimator::LeaveOneOut {
            size: 2,
            normalize: false,
        })
        .estimate(samples(), None, kl(KlIn::Reward));
        let want = [0.9, 0.9, -0.9, 1.2, -1.2, -1.2, -1.2];
        for (got, want) in rollout.advantages.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{:?}", rollout.advantages);
        }
        assert_eq!(rollout.raw_advantages, rollout.advantages);
        assert_eq!(rollout.targets, None);
    }

    #[test]
    fn returns_pay_the_kl_from_each_token_on() {
        // KL 0.1 a token: responses of 2, 1, 1 and 3 tokens with scores 1, 0, 3, 2 have returns 1 - 0.2 and 1 - 0.1; -0.1; 2.9;
        // 1.7, 1.8 and 1.9. With the mean of the two of a prompt (0.5 and 2.5) subtracted, they are lower by that.
        let of = |baseline| {
            let estimator = AdvantageEstimator::Returns {
                gamma: 1.0,
                baseline,
            };
            estimator.estimate(samples(), None, kl(KlIn::Reward))
        };
        for (baseline, want) in [
            (None, [0.8, 0.9, -0.1, 2.9, 1.7, 1.8, 1.9]),
            (Some(2), [0.3, 0.4, -0.6, 0.4, -0.8, -0.7, -0.6]),
        ] {
            let rollout = of(baseline);
            for (got, want) in rollout.raw_advantages.iter().zip(want) {
                assert!((got - want).abs() < 1e-6, "{:?}", rollout.raw_advantages);
            }
            let (shift, spread) = (mean(&rollout.advantages), variance(&rollout.advantages));
            assert!(shift.abs() < 1e-6 && (spread - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn a_kl_in_the_loss_leaves_the_comparison_alone() {
        let group = AdvantageEstimator::Group {
            size: 2,
            scale: ScaleRewards::None,
        };
        let rollout = group.estimate(samples(), None, kl(KlIn::Loss));
        let want = [0.5, 0.5, -0.5, 0.5, -0.5, -0.5, -0.5];
        assert_eq!(rollout.advantages, want);
        let metrics: std::collections::BTreeMap<_, _> = rollout.metrics().into_iter().collect();
        // KL per response: (1 + 0.5 + 0.5 + 1.5) / 4.
        assert_eq!(metrics["objective/kl"], 0.875);
        assert_eq!(metrics["val/missing_eos_rate"], 0.25);
        assert!(!metrics.contains_key("val/explained_variance"));
    }

    #[test]
    fn without_a_reference_there_is_no_kl() {
        let mut samples = samples();
        samples.ref_logprobs = None;
        let kl = kl(KlIn::Reward);
        assert_eq!(samples.response_rewards(&kl), [1.0, 0.0, 3.0, 2.0]);
        assert_eq!(samples.mean_kl(), 0.0);
    }
}
