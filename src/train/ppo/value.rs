//! Initialisation of PPO's value function.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use crate::error::{Error, Result};
use crate::model::{ScalarModel, prepare_adapters, trained_tensors};
use crate::ops::ModelBackend;
use crate::optim::Optimiser;
use crate::params::Parameters;
use crate::rng::Seed;
use crate::train::config::{PpoConfig, ValueTrunk};
use crate::train::policy::{Policy, RewardModel, token_ids};
use crate::train::rollout::{ValueFunction, ValueHead};

/// Error message for a value network that would start from a reward model with another tokenizer.
pub const OTHER_TOKENS: &str = "the value network starts from the reward model, which has another tokenizer than the policy and cannot read \
     its tokens; set `value_init: Policy`";

/// The value function by `config`; `reward` is the model of [`PpoConfig::value_start`].
///
/// # Errors
/// As [`value_network`].
pub fn value_function<B: ModelBackend>(
    policy: &Policy<B>,
    reward: Option<RewardModel<B>>,
    config: &PpoConfig,
    seed: Seed,
    device: &B::Device,
) -> Result<ValueFunction<B>> {
    if config.value_trunk == ValueTrunk::Policy {
        let mut head = ValueHead::zero(policy.config.output_size(), device);
        head.train_only(&|_| true);
        return Ok(ValueFunction::Head(head));
    }
    Ok(ValueFunction::Network {
        model: value_network(policy, reward, config, seed, device)?,
        optim: Optimiser::new(config.value_optim().clone())
            .with_vector_lr_factor(config.value_peft().vector_lr_factor()),
    })
}

/// A separate network, over the policy's frozen base where the adapters allow it. Starts with the weights of `reward`, head and
/// offset included; without `reward` with those of the policy under a zero head. With adapters, only they and the head are
/// trained.
///
/// # Errors
/// `Error::Usage` for an adapter target that matches no layer; `Error::Stage` for a reward model with another tokenizer.
///
/// # Source
/// arXiv:2403.17031, detail 28 of `docs/ppo-details.md`; the zero head is lm-human-preferences'.
pub fn value_network<B: ModelBackend>(
    policy: &Policy<B>,
    reward: Option<RewardModel<B>>,
    config: &PpoConfig,
    seed: Seed,
    device: &B::Device,
) -> Result<ScalarModel<Autodiff<B>>> {
    let (mut model, present, model_config) = match reward {
        Some(reward) => {
            if !reward.tokenizer.reads_ids_of(&policy.tokenizer) {
                return Err(Error::Stage {
                    stage: config.name.clone(),
                    message: OTHER_TOKENS.into(),
                });
            }
            (reward.model, reward.adapter, reward.config)
        }
        None => {
            let hidden = policy.config.output_size();
            (
                ScalarModel::with_zero_head(policy.model.clone(), hidden, device),
                policy.adapter.clone(),
                policy.config.clone(),
            )
        }
    };
    let peft = token_ids(config.value_peft(), &policy.tokenizer)?;
    trained_tensors(&model_config, true, &peft)?;
    prepare_adapters(
        &mut model,
        &model_config,
        present.as_ref(),
        &peft,
        seed.fork("value"),
        &|text| policy.tokenizer.encode_document(text),
    )?;
    let mut model = ScalarModel::<Autodiff<B>>::from_inner(model);
    peft.mark_trained(&mut model);
    Ok(model)
}
