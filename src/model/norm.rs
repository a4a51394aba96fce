//! Norms.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::ops::{self, HeadLayout, LinearInput, ModelBackend, unwrap};
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

/// RMSNorm of the queries and keys in the joint matrix, over as many columns at a time as the norms have weights: a head, or all. Values
/// are unchanged.
pub(super) fn norm_heads<B: ModelBackend>(
    qkv: Tensor<B, 2>,
    q_norm: &RmsNorm<B>,
    k_norm: &RmsNorm<B>,
    layout: HeadLayout,
) -> Tensor<B, 2> {
    let [tokens, _] = qkv.dims();
    let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
    let normed = |x: Tensor<B, 2>, norm: &RmsNorm<B>| {
        let [_, width] = x.dims();
        let [of] = norm.weight.val().dims();
        norm.forward(x.reshape([tokens * width / of, of]))
            .reshape([tokens, width])
    };
    let q = normed(qkv.clone().narrow(1, 0, q_width), q_norm);
    let k = normed(qkv.clone().narrow(1, q_width, kv_width), k_norm);
    Tensor::cat(vec![q, k, qkv.narrow(1, q_width + kv_width, kv_width)], 1)
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
