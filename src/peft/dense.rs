//! The trained linear layers of encoders and bottlenecks.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::ops::{self, ModelBackend};
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::rng::Seed;

/// A linear layer with a bias, all of it trained.
#[derive(Module, Debug)]
pub struct Dense<B: Backend> {
    /// `[in, out]`; files hold `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Dense<B> {
    /// PyTorch's start: weight and bias uniform in `+-1 / sqrt(in)`.
    pub(super) fn fresh(size: [usize; 2], seed: Seed, device: &B::Device) -> Self {
        Self::uniform(size, 1.0 / (size[0] as f64).sqrt(), seed, device)
    }

    /// As [`Dense::fresh`] with a zero bias.
    pub(super) fn with_zero_bias(size: [usize; 2], seed: Seed, device: &B::Device) -> Self {
        Self {
            bias: Self::zeros(size, device).bias,
            ..Self::fresh(size, seed, device)
        }
    }

    /// Weight and bias uniform in `+-bound`.
    pub(super) fn uniform(
        [inputs, outputs]: [usize; 2],
        bound: f64,
        seed: Seed,
        device: &B::Device,
    ) -> Self {
        let draw = |seed: Seed, count: usize| -> Vec<f32> {
            let value = |i| (bound * (2.0 * seed.uniform(i as u64) - 1.0)) as f32;
            (0..count).map(value).collect()
        };
        let weight = draw(seed.fork("weight"), inputs * outputs);
        let bias = draw(seed.fork("bias"), outputs);
        Self::of(
            Tensor::from_data(TensorData::new(weight, [inputs, outputs]), device),
            Tensor::from_data(TensorData::new(bias, [outputs]), device),
        )
    }

    /// Zero weight and bias.
    pub(super) fn zeros([inputs, outputs]: [usize; 2], device: &B::Device) -> Self {
        Self::of(
            Tensor::zeros([inputs, outputs], device),
            Tensor::zeros([outputs], device),
        )
    }

    fn of(weight: Tensor<B, 2>, bias: Tensor<B, 1>) -> Self {
        Self {
            weight: Param::initialized(ParamId::new(), weight),
            bias: Param::initialized(ParamId::new(), bias),
        }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        ops::f32_matmul(x, self.weight.val()) + self.bias.val().unsqueeze::<2>()
    }

    /// Walks `{name}.weight` and `{name}.bias`.
    pub(super) fn walk(&mut self, name: &str, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let [_, outputs] = self.weight.val().dims();
        let kind = ParamKind::Adapter;
        let meta = ParamMeta::single(kind, format!("{name}.weight"), outputs, true);
        visit(&meta, ParamSlot::Matrix(&mut self.weight));
        let meta = ParamMeta::single(kind, format!("{name}.bias"), outputs, false);
        visit(&meta, ParamSlot::Vector(&mut self.bias));
    }
}
