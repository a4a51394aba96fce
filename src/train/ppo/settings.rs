//! Settings of the rollout core from a PPO configuration.

use crate::generate::SamplingConfig;
use crate::optim::lr_at;
use crate::rl::KlTerm;
use crate::rl::rollout::{AdvantageEstimator, LossMean, Objective, RatioLevel};
use crate::train::config::{OptimConfig, Peft, PpoConfig, ValueInit, ValueTrunk};
use crate::train::generation::Generation;
use crate::train::rollout::{
    PassSettings, PolicyUpdate, Ptx, SampleSettings, UpdateSettings, ValueUpdate,
};

impl PpoConfig {
    /// Temperature of all log-probabilities of the stage: in generation, of the reference, and in every pass of the update.
    ///
    /// # Source
    /// The `logits /= temperature + 1e-7` of lm-human-preferences and of the N+ code.
    pub fn logprob_temperature(&self) -> f64 {
        self.temperature + 1e-7
    }

    /// Number of updates.
    pub(super) fn num_updates(&self) -> usize {
        self.total_episodes / self.batch_size
    }

    /// The reward model (a stage or a folder) that a separate value network starts from, if it does.
    pub fn value_start(&self) -> Option<&str> {
        if self.value_trunk == ValueTrunk::Policy {
            return None;
        }
        let among = self.reward.all_learned();
        match &self.value_init {
            None => self.reward.learned(),
            Some(ValueInit::Policy) => None,
            // One of several is not chosen by chance: the checks ask for its name.
            Some(ValueInit::Reward) => among.first().copied().filter(|_| among.len() == 1),
            Some(ValueInit::Learned(name)) => among.into_iter().find(|known| known == name),
        }
    }

    /// Optimiser of a separate value network.
    pub(super) fn value_optim(&self) -> &OptimConfig {
        self.value_optim.as_ref().unwrap_or(&self.optim)
    }

    /// What a value network of its own trains.
    pub(super) fn value_peft(&self) -> &Peft {
        self.value_peft.as_ref().unwrap_or(&self.peft)
    }

    /// How responses are generated.
    pub(super) fn generation(&self) -> Generation<'_> {
        Generation {
            response_length: self.response_length,
            // No top-k and no top-p: PPO's ratio needs the distribution that tokens were sampled from.
            sampling: SamplingConfig {
                temperature: self.logprob_temperature(),
                ..SamplingConfig::default()
            },
            truncate: self.truncate.as_ref(),
            batch_size: self.generation_batch_size,
        }
    }

    /// Settings of the forward passes over responses.
    pub fn sample_settings(&self) -> SampleSettings {
        SampleSettings {
            response_length: self.response_length,
            temperature: self.logprob_temperature(),
            micro_batch_tokens: self.micro_batch_tokens,
            missing_eos: self.missing_eos,
            share_prompts: false,
        }
    }

    /// How advantages are estimated.
    pub fn advantage(&self) -> AdvantageEstimator {
        AdvantageEstimator::Gae {
            gamma: self.gamma,
            lam: self.lam,
            whiten_rewards: self.whiten_rewards,
            whiten_advantages: self.whiten_advantages,
        }
    }

    /// The KL term of a rollout with coefficient `coef`.
    pub fn kl_term(&self, coef: f64) -> KlTerm {
        KlTerm {
            coef,
            estimator: self.kl_estimator,
            place: self.kl_in,
        }
    }

    /// Settings of update `update` of `num_updates`; `ptx` is its pre-training text.
    pub fn update_settings<'a>(
        &self,
        update: usize,
        num_updates: usize,
        ptx: Option<Ptx<'a>>,
    ) -> UpdateSettings<'a> {
        let lr = |optim: &OptimConfig| lr_at(&optim.schedule, optim.lr, update, num_updates);
        UpdateSettings {
            num_mini_batches: self.num_mini_batches,
            passes: PassSettings {
                micro_batch_tokens: self.micro_batch_tokens,
                gradient_checkpointing: self.gradient_checkpointing,
                share_prompts: false,
            },
            policy: PolicyUpdate {
                objective: Objective::clip(self.cliprange),
                ratio: RatioLevel::Token,
                kl_bias_correction: false,
                mean: LossMean::Tokens,
                temperature: self.logprob_temperature(),
                lr: lr(&self.optim),
            },
            value: Some(ValueUpdate {
                cliprange_value: self.cliprange_value,
                vf_coef: self.vf_coef,
                lr: lr(self.value_optim()),
            }),
            ptx,
        }
    }
}
