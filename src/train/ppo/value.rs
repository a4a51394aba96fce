//! The value network of PPO.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use crate::error::Result;
use crate::model::ScalarModel;
use crate::ops::ModelBackend;
use crate::params::{ParamKind, Parameters};
use crate::rng::Seed;
use crate::train::config::{PpoConfig, ValueInit};
use crate::train::policy::{Policy, RewardModel, prepare};

/// A network of its own, over the same frozen base where the adapters allow: the weights of `reward`, head and centre
/// included, or without one (or with [`ValueInit::Policy`]) those of the policy under a zero head. With adapters only they
/// and the head are trained.
///
/// # Errors
/// `Error::Usage` for an adapter target that matches no layer.
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
    let (mut model, present) = match reward {
        Some(reward) if config.value_init == ValueInit::Reward => (reward.model, reward.lora),
        _ => {
            let hidden = policy.config.output_size();
            (
                ScalarModel::with_zero_head(policy.model.clone(), hidden, device),
                policy.lora.clone(),
            )
        }
    };
    let (lora, _) = prepare(
        &mut model,
        &policy.config,
        present.as_ref(),
        &config.peft,
        seed.fork("value"),
    )?;
    let mut model = ScalarModel::<Autodiff<B>>::from_inner(model);
    let full = lora.is_none();
    model.train_only(&|kind| full || matches!(kind, ParamKind::Adapter | ParamKind::Score));
    Ok(model)
}
