//! REINFORCE++ and REINFORCE++-baseline, on the group loop.
//!
//! # Source
//! Hu, Liu, Xu and Shen 2025, arXiv:2501.03262: advantages normalised over the whole update instead of over each prompt's responses. The
//! KL is k1 in the tokens' rewards, and k2 in the loss for the variant with a baseline.

mod config;

use crate::rl::rollout::{AdvantageEstimator, LossMean, Objective, RatioLevel};
use crate::rl::{KlEstimator, KlIn, KlTerm};
use crate::train::checks::Checks;
use crate::train::config::DataConfig;
use crate::train::group::{GroupKeys, GroupMethod, Method};

pub use config::ReinforcePlusPlusConfig;

impl ReinforcePlusPlusConfig {
    fn kl(&self) -> KlTerm {
        let place = self.kl_in.unwrap_or(match self.baseline {
            true => KlIn::Loss,
            false => KlIn::Reward,
        });
        KlTerm {
            coef: self.kl_coef,
            estimator: self.kl_estimator.unwrap_or(match place {
                KlIn::Reward => KlEstimator::K1,
                KlIn::Loss => KlEstimator::K2,
            }),
            place,
        }
    }
}

impl GroupMethod for ReinforcePlusPlusConfig {
    fn keys(&self) -> GroupKeys<'_> {
        self.group_keys()
    }

    fn data_sets(&mut self) -> Vec<&mut DataConfig> {
        self.group_data()
    }

    fn method(&self) -> Method {
        Method {
            advantage: AdvantageEstimator::Returns {
                gamma: self.gamma,
                baseline: self.baseline.then_some(self.num_generations),
            },
            objective: Objective::Clip {
                low: self.epsilon,
                high: self.epsilon_high.unwrap_or(self.epsilon),
            },
            ratio: RatioLevel::Token,
            mean: LossMean::Tokens,
            kl: self.kl(),
            kl_bias_correction: false,
            reward_clip_range: None,
        }
    }

    fn fewest_generations(&self) -> usize {
        1 + usize::from(self.baseline)
    }

    fn check_own(&self, checks: &mut Checks, path: &str) {
        checks.above_zero(path, "epsilon", self.epsilon);
        if let Some(high) = self.epsilon_high {
            checks.above_zero(path, "epsilon_high", high);
        }
        checks.fraction(path, "gamma", self.gamma);
        let kl = self.kl();
        if (kl.place, kl.estimator) == (KlIn::Loss, KlEstimator::K1) {
            checks.problem(
                format!("{path}.kl_estimator"),
                "k1 cannot be in the loss: its expected gradient is zero, so it would have no effect",
            );
            checks.help("use k2 (whose gradient is that of the KL) or k3, or `kl_in: Reward`");
            checks.depends_on(format!("{path}.kl_in"));
        }
    }
}
