//! Pieces that several families share.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::KvCache;
use super::activation::Activation;
use super::config::RopeScaling;
use crate::ops::{self, Attend, Gate, Head, HeadLayout, LinearInput, ModelBackend, unwrap};
use crate::params::{ParamKind, ParamMeta, ParamSlot, placeholder};
use crate::peft::Projection;
use crate::rng::Seed;
use crate::tokens::{Segments, TokenBatch};

/// A family's layers, one by one. States are `[tokens, width]`.
pub(super) trait Layers<B: ModelBackend> {
    /// The states before the first layer: embeddings, and what the family makes of them.
    fn embed(&self, ids: &Tensor<B, 1, Int>, pass: &Pass<'_, B>) -> Tensor<B, 2>;

    /// Layer `index`.
    fn layer(&self, index: usize, x: Tensor<B, 2>, pass: &mut Pass<'_, B>) -> Tensor<B, 2>;

    /// What a head reads of the states after the last layer.
    fn finish(&self, x: Tensor<B, 2>, pass: &Pass<'_, B>) -> Tensor<B, 2>;

    /// Angles of a pass, where positions enter as rotations.
    fn rotary(&self) -> Option<&Rotary> {
        None
    }

    /// Output head.
    fn head(&self) -> Head<B>;

    /// Attention heads.
    fn head_layout(&self) -> HeadLayout;

    /// Number of layers.
    fn num_layers(&self) -> usize;
}

/// What a forward pass needs beside the tokens.
pub(super) struct Pass<'a, B: Backend> {
    pub(super) segments: &'a Segments,
    pub(super) positions: Vec<usize>,
    /// Cosines and sines, `[tokens, head_dim / 2]`.
    angles: Option<[Tensor<B, 2>; 2]>,
    /// Positions in the batch whose states are asked for; all if `None`.
    wanted: Option<Tensor<B, 1, Int>>,
    num_layers: usize,
    pub(super) cache: Option<&'a mut KvCache<B>>,
    pub(super) dropout: Option<Seed>,
}

impl<'a, B: ModelBackend> Pass<'a, B> {
    pub(super) fn new(
        model: &impl Layers<B>,
        batch: &'a TokenBatch<B>,
        wanted: Option<Tensor<B, 1, Int>>,
        cache: Option<&'a mut KvCache<B>>,
        dropout: Option<Seed>,
    ) -> Self {
        let segments = &batch.segments;
        let positions = match &cache {
            Some(cache) => cache.positions(segments),
            None => segments.positions(),
        };
        let device = batch.input_ids.device();
        let angles = (model.rotary()).map(|rotary| rotary.tables(&positions, &device));
        Self {
            segments,
            positions,
            angles,
            wanted,
            num_layers: model.num_layers(),
            cache,
            dropout,
        }
    }

    /// The rows of `x` that layer `layer` still needs once its keys and values are formed: in the last one those whose
    /// states are asked for.
    pub(super) fn keep(&self, layer: usize, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.wanted {
            Some(wanted) if layer + 1 == self.num_layers => x.select(0, wanted.clone()),
            _ => x,
        }
    }

    /// Turns the first `num_heads` heads of each row by its position's angles, where the family does so.
    pub(super) fn rotate(&self, x: Tensor<B, 2>, num_heads: usize) -> Tensor<B, 2> {
        match &self.angles {
            Some([cos, sin]) => ops::rope(x, cos.clone(), sin.clone(), num_heads),
            None => x,
        }
    }

    /// Dropout masks of one layer.
    pub(super) fn layer_dropout(&self, layer: usize) -> Option<Seed> {
        self.dropout.map(|seed| seed.fork_index(layer as u64))
    }

    /// Attention of one layer, at the positions that [`Pass::keep`] keeps. `attend` is of [`Pass::segments`].
    pub(super) fn attend(
        &mut self,
        layer: usize,
        qkv: Tensor<B, 2>,
        attend: &Attend,
    ) -> Tensor<B, 2> {
        let attended = match &mut self.cache {
            Some(cache) => cache.attend(layer, qkv, attend),
            None => ops::attention(qkv, attend),
        };
        self.keep(layer, attended)
    }

    /// Marks the batch as held by the cache.
    pub(super) fn end(self) {
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

    /// The norm as what a linear layer reads.
    pub(super) fn input(&self) -> LinearInput<B> {
        LinearInput::RmsNorm {
            weight: unwrap(self.weight.val()),
            eps: self.eps as f32,
        }
    }
}

/// LayerNorm with weight and bias.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[hidden]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[hidden]`.
    pub bias: Param<Tensor<B, 1>>,
    /// Added to the variance.
    pub eps: f64,
}

impl<B: Backend> LayerNorm<B> {
    pub(super) fn new(eps: f64, device: &B::Device) -> Self {
        Self {
            weight: placeholder(device),
            bias: placeholder(device),
            eps,
        }
    }

    pub(super) fn walk(
        &mut self,
        path: &str,
        len: usize,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    ) {
        let meta =
            |name: &str| ParamMeta::single(ParamKind::Vector, format!("{path}.{name}"), len, false);
        visit(&meta("weight"), ParamSlot::Vector(&mut self.weight));
        visit(&meta("bias"), ParamSlot::Vector(&mut self.bias));
    }
}

impl<B: ModelBackend> LayerNorm<B> {
    pub(super) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        ops::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }
}

/// `down(activation(up(x)))`.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// Up.
    pub up: Projection<B>,
    /// Down.
    pub down: Projection<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: Backend> Mlp<B> {
    pub(super) fn new(up: Projection<B>, activation: Activation, down: Projection<B>) -> Self {
        Self {
            up,
            down,
            activation,
        }
    }
}

impl<B: ModelBackend> Mlp<B> {
    pub(super) fn forward(&self, x: Tensor<B, 2>, dropout: Option<Seed>) -> Tensor<B, 2> {
        let up = self.up.forward(x, dropout);
        self.down.forward(self.activation.forward(up), dropout)
    }
}

/// `down(silu(gate(norm(x))) * up(norm(x)))`, gate and up as one product.
#[derive(Module, Debug)]
pub struct GatedMlp<B: Backend> {
    /// Gate and up.
    pub gate_up: Projection<B>,
    /// Down.
    pub down: Projection<B>,
}

impl<B: Backend> GatedMlp<B> {
    pub(super) fn new(
        path: &str,
        hidden: usize,
        intermediate: usize,
        with_bias: bool,
        device: &B::Device,
    ) -> Self {
        let gate_up = [
            (format!("{path}.gate_proj"), intermediate),
            (format!("{path}.up_proj"), intermediate),
        ];
        Self {
            gate_up: Projection::new(&gate_up, with_bias, true, device),
            down: Projection::new(
                &[(format!("{path}.down_proj"), hidden)],
                with_bias,
                true,
                device,
            ),
        }
    }
}

impl<B: ModelBackend> GatedMlp<B> {
    /// Of the states `x` before `norm`.
    pub(super) fn forward(
        &self,
        x: Tensor<B, 2>,
        norm: &RmsNorm<B>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2> {
        let gate_up = self.gate_up.forward_of(x, norm.input(), dropout);
        let input = LinearInput::Gated(Gate::Silu);
        self.down.forward_of(gate_up, input, dropout)
    }
}

/// Rotary frequencies of one head.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    /// Radians per position, `head_dim / 2` of them.
    inv_freq: Vec<f32>,
}

impl Rotary {
    /// Frequencies `theta^(-2i / rotary_dim)`, stretched as Llama 3 does if asked. Of a head's `head_dim` entries the
    /// pairs `(i, i + head_dim / 2)` with `i < rotary_dim / 2` turn; the other pairs have frequency 0 and stay.
    ///
    /// Every step is rounded to f32 as in transformers: at position 8,000 one unit in the last place of a frequency is a
    /// visible angle.
    pub(super) fn new(
        head_dim: usize,
        rotary_dim: usize,
        theta: f64,
        scaling: Option<&RopeScaling>,
    ) -> Self {
        let turning = (0..rotary_dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / rotary_dim as f32;
            let power = f64::from(theta as f32).powf(f64::from(exponent)) as f32;
            let frequency = 1.0 / power;
            scaling.map_or(frequency, |scaling| stretch(frequency, scaling))
        });
        let mut inv_freq: Vec<f32> = turning.collect();
        inv_freq.resize(head_dim / 2, 0.0);
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
fn stretch(frequency: f32, s: &RopeScaling) -> f32 {
    let context = s.original_max_position_embeddings as f64;
    let factor = s.factor as f32;
    let wavelength = std::f64::consts::TAU as f32 / frequency;
    if wavelength > (context / s.low_freq_factor) as f32 {
        return frequency / factor;
    }
    if wavelength < (context / s.high_freq_factor) as f32 {
        return frequency;
    }
    let blend = (context as f32 / wavelength - s.low_freq_factor as f32)
        / (s.high_freq_factor - s.low_freq_factor) as f32;
    (1.0 - blend) * frequency / factor + blend * frequency
}

/// Rows of a table of learned positions, the row of position 0 being `offset`.
///
/// # Panics
/// If a position has no row. Rows of data are held against `max_positions` before a model is loaded; a look-up outside
/// the table would give whatever the device makes of it.
pub(super) fn embed_positions<B: Backend>(
    table: &Param<Tensor<B, 2>>,
    positions: &[usize],
    offset: usize,
) -> Tensor<B, 2> {
    let table = table.val();
    let most = table.dims()[0] - offset;
    let longest = positions.iter().max().map_or(0, |last| last + 1);
    assert!(
        longest <= most,
        "a row of {longest} tokens; the model's table of positions takes at most {most}"
    );
    let rows: Vec<i32> = positions.iter().map(|&p| (p + offset) as i32).collect();
    let shape = [rows.len()];
    let rows = Tensor::<B, 1, Int>::from_data(TensorData::new(rows, shape), &table.device());
    table.select(0, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `LlamaRotaryEmbedding(LlamaConfig(..)).inv_freq.view(torch.int32)` of transformers 5.23; the last line is
    /// GPT-NeoX's with a quarter of 32 entries rotated.
    #[test]
    fn frequencies_are_those_of_transformers_to_the_bit() {
        let bits =
            |rotary: Rotary| -> Vec<u32> { rotary.inv_freq.iter().map(|x| x.to_bits()).collect() };
        let llama3 = |factor| RopeScaling {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_eq!(
            bits(Rotary::new(16, 16, 1e6, None)),
            [
                0x3f80_0000,
                0x3e36_1887,
                0x3d01_86e3,
                0x3bb8_449c,
                0x3a83_126f,
                0x393a_7753,
                0x3804_a2b2,
                0x36bc_b0c1
            ]
        );
        // Llama 3.2: kept, kept, kept, kept, blended, stretched, stretched, stretched.
        assert_eq!(
            bits(Rotary::new(16, 16, 5e5, Some(&llama3(32.0)))),
            [
                0x3f80_0000,
                0x3e46_93b0,
                0x3d1a_08c8,
                0x3bee_f74f,
                0x39e1_3620,
                0x370f_c8f8,
                0x35df_10c4,
                0x34ad_07a7
            ]
        );
        let turning = [0x3f80_0000, 0x3dcc_cccd, 0x3c23_d70a, 0x3a83_126f];
        let rotary = bits(Rotary::new(32, 8, 1e4, None));
        assert_eq!((&rotary[..4], &rotary[4..]), (&turning[..], &[0; 12][..]));
    }

    #[test]
    #[should_panic(expected = "a row of 4 tokens; the model's table of positions takes at most 3")]
    fn a_position_beyond_the_table_is_named() {
        use burn::backend::NdArray;
        let device = Default::default();
        let table = Param::from_tensor(Tensor::<NdArray, 2>::zeros([5, 2], &device));
        embed_positions(&table, &[0, 1, 2, 0], 2);
        embed_positions(&table, &[0, 1, 2, 3], 2);
    }
}
