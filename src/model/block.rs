//! Pieces that several families share.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::KvCache;
use super::config::RopeScaling;
use crate::ops::{self, HeadLayout, ModelBackend};
use crate::params::{ParamKind, ParamMeta, ParamSlot, placeholder};
use crate::peft::Projection;
use crate::rng::Seed;
use crate::tokens::{Segments, TokenBatch};

/// What a forward pass needs beside the tokens.
pub(super) struct Pass<'a, B: Backend> {
    pub(super) segments: &'a Segments,
    pub(super) positions: Vec<usize>,
    pub(super) cache: Option<&'a mut KvCache<B>>,
    pub(super) dropout: Option<Seed>,
}

impl<'a, B: ModelBackend> Pass<'a, B> {
    pub(super) fn new(
        batch: &'a TokenBatch<B>,
        cache: Option<&'a mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Self {
        let segments = &batch.segments;
        let positions = match &cache {
            Some(cache) => cache.positions(segments),
            None => segments.positions(),
        };
        Self {
            segments,
            positions,
            cache,
            dropout,
        }
    }

    /// Dropout masks of one layer.
    pub(super) fn layer_dropout(&self, layer: usize) -> Option<Seed> {
        self.dropout.map(|seed| seed.fork_index(layer as u64))
    }

    pub(super) fn attend(
        &mut self,
        layer: usize,
        qkv: Tensor<B, 2>,
        layout: HeadLayout,
    ) -> Tensor<B, 2> {
        match &mut self.cache {
            Some(cache) => cache.attend(layer, qkv, layout, self.segments),
            None => ops::attention(qkv, layout, self.segments),
        }
    }

    /// Marks the batch as held by the cache.
    pub(super) fn finish(self) {
        if let Some(cache) = self.cache {
            cache.advance(self.segments);
        }
    }
}

/// A norm's weight, without bias.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[hidden]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square.
    pub eps: f64,
}

impl<B: Backend> RmsNorm<B> {
    pub(super) fn new(eps: f64, device: &B::Device) -> Self {
        Self {
            weight: placeholder(device),
            eps,
        }
    }

    pub(super) fn walk(
        &mut self,
        path: &str,
        len: usize,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    ) {
        let meta = ParamMeta::single(ParamKind::Vector, format!("{path}.weight"), len, false);
        visit(&meta, ParamSlot::Vector(&mut self.weight));
    }
}

impl<B: ModelBackend> RmsNorm<B> {
    pub(super) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        ops::rms_norm(x, self.weight.val(), self.eps)
    }
}

/// `down(silu(gate(x)) * up(x))`, gate and up as one product.
#[derive(Module, Debug)]
pub struct GatedMlp<B: Backend> {
    /// Gate and up.
    pub gate_up: Projection<B>,
    /// Down.
    pub down: Projection<B>,
}

impl<B: Backend> GatedMlp<B> {
    pub(super) fn new(path: &str, hidden: usize, intermediate: usize, device: &B::Device) -> Self {
        let gate_up = [
            (format!("{path}.gate_proj"), intermediate),
            (format!("{path}.up_proj"), intermediate),
        ];
        Self {
            gate_up: Projection::new(&gate_up, false, true, device),
            down: Projection::new(
                &[(format!("{path}.down_proj"), hidden)],
                false,
                true,
                device,
            ),
        }
    }
}

impl<B: ModelBackend> GatedMlp<B> {
    pub(super) fn forward(&self, x: Tensor<B, 2>, dropout: Option<Seed>) -> Tensor<B, 2> {
        self.down
            .forward(ops::swiglu(self.gate_up.forward(x, dropout)), dropout)
    }
}

/// Rotary frequencies of one head.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    /// Radians per position, `head_dim / 2` of them, rounded to f32 as transformers does.
    inv_freq: Vec<f32>,
}

impl Rotary {
    /// Frequencies `theta^(-2i / head_dim)`, stretched as Llama 3 does if asked.
    pub(super) fn new(head_dim: usize, theta: f64, scaling: Option<&RopeScaling>) -> Self {
        let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
        let inv_freq = plain
            .map(|f| scaling.map_or(f, |s| stretch(f, s)) as f32)
            .collect();
        Self { inv_freq }
    }

    /// Cosines and sines, `[tokens, head_dim / 2]` each.
    pub(super) fn tables<B: Backend>(
        &self,
        positions: &[usize],
        device: &B::Device,
    ) -> [Tensor<B, 2>; 2] {
        let shape = [positions.len(), self.inv_freq.len()];
        let angles: Vec<f32> = positions
            .iter()
            .flat_map(|&p| self.inv_freq.iter().map(move |&f| p as f32 * f))
            .collect();
        let table = |f: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|&a| f(a)).collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        [table(f32::cos), table(f32::sin)]
    }
}

/// Llama 3's rule: long wavelengths are divided by the factor, short ones stay, between them a linear blend.
fn stretch(frequency: f64, s: &RopeScaling) -> f64 {
    let wavelength = std::f64::consts::TAU / frequency;
    let context = s.original_max_position_embeddings as f64;
    if wavelength < context / s.high_freq_factor {
        return frequency;
    }
    if wavelength > context / s.low_freq_factor {
        return frequency / s.factor;
    }
    let blend =
        (context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    (1.0 - blend) * frequency / s.factor + blend * frequency
}

/// Token table, looked up by id.
pub(super) fn embed<B: Backend>(
    table: &Param<Tensor<B, 2>>,
    ids: &Tensor<B, 1, Int>,
) -> Tensor<B, 2> {
    table.val().select(0, ids.clone())
}
