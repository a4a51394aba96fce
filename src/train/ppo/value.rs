//! The value function of PPO: a network of its own, or a head on the policy.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::error::{Error, Result};
use crate::model::{LanguageModel, ScalarModel, Trained, prepare_adapters, scalar_head};
use crate::ops::ModelBackend;
use crate::optim::AdamW;
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters};
use crate::rng::Seed;
use crate::train::config::{PpoConfig, ValueInit, ValueTrunk};
use crate::train::policy::{Policy, RewardModel};

/// Why a value network cannot start from a reward model with another tokenizer, and what to do.
pub const OTHER_TOKENS: &str = "the value network starts from the reward model, which has another tokenizer than the policy and cannot read \
     its tokens; set `value_init: Policy`";

/// What estimates the return at each position.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of them")]
pub enum ValueFunction<B: ModelBackend> {
    /// A network beside the policy.
    Network {
        /// The network.
        model: ScalarModel<Autodiff<B>>,
        /// Its optimiser.
        optim: AdamW<B>,
    },
    /// A head on the policy's states, which is trained with the policy, by its optimiser: half of the arithmetic of an update,
    /// and the value loss moves the policy's weights too.
    Head(ValueHead<Autodiff<B>>),
}

/// A value function that takes part in no update.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of them")]
pub enum FrozenValue<B: Backend> {
    /// A network beside the policy.
    Network(ScalarModel<B>),
    /// A head on the policy's states.
    Head(ValueHead<B>),
}

/// One number for each state of the policy.
#[derive(Module, Debug)]
pub struct ValueHead<B: Backend> {
    /// `[hidden]`.
    pub score: Param<Tensor<B, 1>>,
}

impl<B: Backend> ValueHead<B> {
    /// A head that says 0.
    pub fn zero(hidden: usize, device: &B::Device) -> Self {
        Self {
            score: Param::initialized(ParamId::new(), Tensor::zeros([hidden], device)),
        }
    }

    /// `[positions, hidden]` to `[positions]`.
    pub fn values(&self, states: Tensor<B, 2>) -> Tensor<B, 1> {
        scalar_head(states, self.score.val())
    }
}

impl<B: Backend> Parameters<B> for ValueHead<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let hidden = self.score.val().dims()[0];
        let meta = ParamMeta::single(ParamKind::Score, "score.weight", hidden, false);
        visit(&meta, ParamSlot::Vector(&mut self.score));
    }
}

/// Policy and head as one model.
pub(super) struct WithHead<'a, B: ModelBackend> {
    pub(super) policy: &'a mut LanguageModel<Autodiff<B>>,
    pub(super) head: &'a mut ValueHead<Autodiff<B>>,
}

impl<B: ModelBackend> Parameters<Autodiff<B>> for WithHead<'_, B> {
    fn for_each_parameter(
        &mut self,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, Autodiff<B>>),
    ) {
        self.policy.for_each_parameter(visit);
        self.head.for_each_parameter(visit);
    }
}

impl<B: ModelBackend> Trained<B> for WithHead<'_, B> {
    fn decoder(&self) -> &LanguageModel<Autodiff<B>> {
        self.policy
    }
}

impl<B: ModelBackend> ValueFunction<B> {
    /// On the inner backend.
    pub fn valid(&self) -> FrozenValue<B> {
        match self {
            Self::Network { model, .. } => FrozenValue::Network(model.valid()),
            Self::Head(head) => FrozenValue::Head(head.valid()),
        }
    }

    /// Its weights.
    pub fn parameters(&mut self) -> &mut dyn Parameters<Autodiff<B>> {
        match self {
            Self::Network { model, .. } => model,
            Self::Head(head) => head,
        }
    }
}

/// The value function that `config` asks for.
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
    let optim = config.value_optim.as_ref().unwrap_or(&config.optim);
    Ok(ValueFunction::Network {
        model: value_network(policy, reward, config, seed, device)?,
        optim: AdamW::new(optim.clone()),
    })
}

/// A network of its own, over the same frozen base where the adapters allow: the weights of `reward`, head and centre
/// included, or without one (or with [`ValueInit::Policy`]) those of the policy under a zero head. With adapters only they
/// and the head are trained.
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
        Some(reward) if config.value_init.unwrap_or_default() == ValueInit::Reward => {
            if !reward.tokenizer.reads_ids_of(&policy.tokenizer) {
                return Err(Error::Stage {
                    stage: config.name.clone(),
                    message: OTHER_TOKENS.into(),
                });
            }
            (reward.model, reward.adapter, reward.config)
        }
        _ => {
            let hidden = policy.config.output_size();
            (
                ScalarModel::with_zero_head(policy.model.clone(), hidden, device),
                policy.adapter.clone(),
                policy.config.clone(),
            )
        }
    };
    prepare_adapters(
        &mut model,
        &model_config,
        present.as_ref(),
        &config.peft,
        seed.fork("value"),
    )?;
    let mut model = ScalarModel::<Autodiff<B>>::from_inner(model);
    config.peft.mark_trained(&mut model);
    Ok(model)
}
