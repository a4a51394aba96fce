//! Norms.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::ops::{self, LinearInput, ModelBackend, unwrap};
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters, placeholder};

/// RMSNorm.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[width]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square.
    pub eps: f64,
    #[module(skip)]
    path: String,
    #[module(skip)]
    around_zero: bool,
}

impl<B: Backend> RmsNorm<B> {
    /// An unfilled norm over rows of `width`; its weight is `path`'s.
    pub(super) fn new(path: impl Into<String>, width: usize, eps: f64, device: &B::Device) -> Self {
        Self {
            weight: placeholder([width], device),
            eps,
            path: path.into(),
            around_zero: false,
        }
    }

    /// The same with a stored weight of the factor minus one, as in Gemma: weight decay then pulls the factor towards one.
    pub fn around_zero(mut self) -> Self {
        self.around_zero = true;
        self
    }
}

impl<B: Backend> Parameters<B> for RmsNorm<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        vector(&self.path, "weight", &mut self.weight, visit);
    }
}

impl<B: ModelBackend> RmsNorm<B> {
    pub(super) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        ops::rms_norm(x, self.factor(), self.eps)
    }

    fn factor(&self) -> Tensor<B, 1> {
        let weight = self.weight.val();
        match self.around_zero {
            true => weight.add_scalar(1.0),
            false => weight,
        }
    }

    /// The norm as the input of a linear layer.
    pub(super) fn input(&self) -> LinearInput<B> {
        LinearInput::RmsNorm {
            weight: unwrap(self.factor()),
            eps: self.eps as f32,
        }
    }
}

/// LayerNorm with weight and bias.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[width]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[width]`.
    pub bias: Param<Tensor<B, 1>>,
    /// Added to the variance.
    pub eps: f64,
    #[module(skip)]
    path: String,
}

impl<B: Backend> LayerNorm<B> {
    /// An unfilled norm over rows of `width`; weight and bias are `path`'s.
    pub(super) fn new(path: impl Into<String>, width: usize, eps: f64, device: &B::Device) -> Self {
        Self {
            weight: placeholder([width], device),
            bias: placeholder([width], device),
            eps,
            path: path.into(),
        }
    }
}

impl<B: Backend> Parameters<B> for LayerNorm<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        vector(&self.path, "weight", &mut self.weight, visit);
        vector(&self.path, "bias", &mut self.bias, visit);
    }
}

impl<B: ModelBackend> LayerNorm<B> {
    pub(super) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        ops::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }
}

/// One vector of a norm.
fn vector<B: Backend>(
    path: &str,
    name: &str,
    param: &mut Param<Tensor<B, 1>>,
    visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
) {
    let [width] = param.lazy_shape().dims();
    let meta = ParamMeta::single(ParamKind::Vector, format!("{path}.{name}"), width, false);
    visit(&meta, ParamSlot::Vector(param));
}
