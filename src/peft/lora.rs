//! Low-rank adaptation of one linear layer.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::LoraConfig;
use crate::ops::{ModelBackend, f32_matmul};
use crate::rng::Seed;

/// `scale * (dropout(x) . a) . b`, added to the layer's output.
///
/// # Shapes
/// - `a`: `[in, rank]`, `b`: `[rank, out]` (PEFT's files hold the transposes)
///
/// # Source
/// Hu et al. 2021, arXiv:2106.09685.
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// Down projection.
    pub a: Param<Tensor<B, 2>>,
    /// Up projection; zero at the start, so that an adapter begins as the identity.
    pub b: Param<Tensor<B, 2>>,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scale: f64,
    /// Probability with which an input of the adapter is dropped.
    pub dropout: f64,
}

impl<B: Backend> Lora<B> {
    /// A fresh adapter for the layer at `path`: `a` uniform in `±1/sqrt(in)` (PEFT's `kaiming_uniform(a = sqrt 5)`), `b`
    /// zero.
    pub fn new(
        config: &LoraConfig,
        path: &str,
        inputs: usize,
        outputs: usize,
        seed: Seed,
        device: &B::Device,
    ) -> Self {
        let rank = config.rank_of(path);
        let bound = 1.0 / (inputs as f64).sqrt();
        let a: Vec<f32> = (0..inputs * rank)
            .map(|i| ((2.0 * seed.uniform(i as u64) - 1.0) * bound) as f32)
            .collect();
        let a = Tensor::from_data(TensorData::new(a, [inputs, rank]), device);
        Self {
            a: Param::initialized(ParamId::new(), a),
            b: Param::initialized(ParamId::new(), Tensor::zeros([rank, outputs], device)),
            scale: config.scale_of(path),
            dropout: config.dropout,
        }
    }

    /// Inner dimension.
    pub fn rank(&self) -> usize {
        self.a.val().dims()[1]
    }

    /// `scale * a . b`, `[in, out]`: what a merge adds to the weight.
    pub fn delta(&self) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        f32_matmul(self.a.val(), self.b.val()).mul_scalar(self.scale)
    }
}
