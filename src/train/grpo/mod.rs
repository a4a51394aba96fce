//! Group relative policy optimisation and its relatives, on the group loop.
//!
//! # Source
//! Shao et al. 2024, arXiv:2402.03300; Yu et al. 2025, arXiv:2503.14476 (DAPO); Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO); Zheng et
//! al. 2025, arXiv:2507.18071 (GSPO); MiniMax 2025, arXiv:2506.13585 (CISPO). Keys, defaults and numbers as in TRL 1.16.

mod config;

use crate::rl::rollout::{AdvantageEstimator, LossMean, Objective, RatioLevel};
use crate::rl::{KlEstimator, KlIn, KlTerm};
use crate::train::checks::Checks;
use crate::train::config::DataConfig;
use crate::train::group::{GroupKeys, GroupMethod, Method};

pub use config::{GrpoConfig, GrpoLoss, ImportanceLevel};

impl GroupMethod for GrpoConfig {
    fn keys(&self) -> GroupKeys<'_> {
        self.group_keys()
    }

    fn data_sets(&mut self) -> Vec<&mut DataConfig> {
        self.group_data()
    }

    fn method(&self) -> Method {
        let (low, high) = (self.epsilon, self.epsilon_high.unwrap_or(self.epsilon));
        Method {
            advantage: AdvantageEstimator::Group {
                size: self.num_generations,
                scale: self.scale_rewards,
            },
            objective: match (self.loss_type, self.delta) {
                (GrpoLoss::Cispo, _) => Objective::Cispo { max_ratio: high },
                (_, None) => Objective::Clip { low, high },
                (_, Some(max_ratio)) => Objective::TwoSided {
                    low,
                    high,
                    max_ratio,
                },
            },
            ratio: match self.importance_sampling_level {
                ImportanceLevel::Token => RatioLevel::Token,
                ImportanceLevel::Sequence => RatioLevel::SequenceMean,
            },
            mean: match self.loss_type {
                GrpoLoss::Grpo => LossMean::Responses,
                GrpoLoss::Dapo | GrpoLoss::Cispo => LossMean::RolloutTokens,
                GrpoLoss::DrGrpo => LossMean::Constant(self.response_length),
                GrpoLoss::Bnpo => LossMean::Tokens,
            },
            kl: KlTerm {
                coef: self.kl_coef,
                estimator: KlEstimator::K3,
                place: KlIn::Loss,
            },
            kl_bias_correction: self.use_bias_correction_kl,
            reward_clip_range: None,
        }
    }

    fn check_own(&self, checks: &mut Checks, path: &str) {
        checks.above_zero(path, "epsilon", self.epsilon);
        let is_cispo = self.loss_type == GrpoLoss::Cispo;
        match self.epsilon_high {
            Some(high) => checks.above_zero(path, "epsilon_high", high),
            None if is_cispo => {
                checks.problem(
                    format!("{path}.epsilon_high"),
                    "is missing: `loss_type: cispo` cuts the ratio itself there",
                );
                checks
                    .help("e.g. `epsilon_high: 5.0`; `epsilon` in its place would cut every ratio");
                checks.depends_on(format!("{path}.loss_type"));
            }
            None => {}
        }
        let Some(delta) = self.delta else { return };
        let place = format!("{path}.delta");
        if is_cispo {
            checks.problem(&place, "has no effect with `loss_type: cispo`");
            checks.help("leave out `delta`; `epsilon_high` is the bound");
            checks.depends_on(format!("{path}.loss_type"));
        } else {
            let least = 1.0 + self.epsilon_high.unwrap_or(self.epsilon);
            let expected = format!("above 1 + epsilon = {least}");
            checks.must(&place, delta > least && delta.is_finite(), &expected, delta);
        }
    }
}
