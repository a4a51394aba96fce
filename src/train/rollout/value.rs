//! The value function of an on-policy method: a separate network, or a head on the policy.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::model::{LanguageModel, ScalarModel, TrainableModel, scalar_head};
use crate::ops::ModelBackend;
use crate::optim::Optimiser;
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters};

/// Estimates the return at each position; in training.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of them")]
pub enum ValueFunction<B: ModelBackend> {
    /// A separate network.
    Network {
        /// The network.
        model: ScalarModel<Autodiff<B>>,
        /// Its optimiser.
        optim: Optimiser<B>,
    },
    /// A head on the policy's states, trained with the policy by its optimiser. It saves half of an update's arithmetic; the
    /// gradient of the value loss reaches the policy's weights.
    Head(ValueHead<Autodiff<B>>),
}

/// A value function without gradients.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of them")]
pub enum FrozenValue<B: Backend> {
    /// A separate network.
    Network(ScalarModel<B>),
    /// A head on the policy's states.
    Head(ValueHead<B>),
}

/// A linear head that maps a state of the policy to its value.
#[derive(Module, Debug)]
pub struct ValueHead<B: Backend> {
    /// `[hidden]`.
    pub score: Param<Tensor<B, 1>>,
}

impl<B: Backend> ValueHead<B> {
    /// A head whose values are 0.
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

impl<B: ModelBackend> TrainableModel<B> for WithHead<'_, B> {
    fn decoder(&self) -> &LanguageModel<Autodiff<B>> {
        self.policy
    }
}

impl<B: ModelBackend> ValueFunction<B> {
    /// The value function on the inner backend.
    pub fn valid(&self) -> FrozenValue<B> {
        match self {
            Self::Network { model, .. } => FrozenValue::Network(model.valid()),
            Self::Head(head) => FrozenValue::Head(head.valid()),
        }
    }

    /// Its parameters.
    pub fn parameters(&mut self) -> &mut dyn Parameters<Autodiff<B>> {
        match self {
            Self::Network { model, .. } => model,
            Self::Head(head) => head,
        }
    }
}
