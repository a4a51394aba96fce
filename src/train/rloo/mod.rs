//! REINFORCE leave-one-out, on the group loop: whole responses are the actions.
//!
//! # Source
//! Ahmadian et al. 2024, arXiv:2402.14740. Keys, defaults and numbers as in TRL 1.16.

mod config;

use crate::rl::rollout::{AdvantageEstimator, LossMean, Objective, RatioLevel};
use crate::rl::{KlEstimator, KlIn, KlTerm};
use crate::train::checks::Checks;
use crate::train::config::DataConfig;
use crate::train::group::{GroupKeys, GroupMethod, Method};

pub use config::RlooConfig;

impl GroupMethod for RlooConfig {
    fn keys(&self) -> GroupKeys<'_> {
        self.group_keys()
    }

    fn data_sets(&mut self) -> Vec<&mut DataConfig> {
        self.group_data()
    }

    fn method(&self) -> Method {
        Method {
            advantage: AdvantageEstimator::LeaveOneOut {
                size: self.num_generations,
                normalize: self.normalize_advantages,
            },
            objective: Objective::Clip {
                low: self.epsilon,
                high: self.epsilon_high.unwrap_or(self.epsilon),
            },
            ratio: RatioLevel::Sequence,
            mean: LossMean::Responses,
            kl: KlTerm {
                coef: self.kl_coef,
                estimator: KlEstimator::K1,
                place: KlIn::Reward,
            },
            kl_bias_correction: false,
            reward_clip_range: self.reward_clip_range,
        }
    }

    fn check_own(&self, checks: &mut Checks, path: &str) {
        checks.above_zero(path, "epsilon", self.epsilon);
        if let Some(high) = self.epsilon_high {
            checks.above_zero(path, "epsilon_high", high);
        }
        if let Some((low, high)) = self.reward_clip_range {
            checks.must(
                format!("{path}.reward_clip_range"),
                low < high && low.is_finite() && high.is_finite(),
                "two finite numbers, the first below the second",
                (low, high),
            );
        }
    }
}
