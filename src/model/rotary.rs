//! Rotary position embedding: frequencies and angles.

use std::borrow::Cow;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::config::RopeScaling;
use super::rope_scaling::unscaled;

/// Rotary frequencies of one head.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    head_dim: usize,
    rotary_dim: usize,
    theta: f64,
    scaling: Option<RopeScaling>,
    /// Radians per position in short rows, `[head_dim / 2]`.
    inv_freq: Vec<f32>,
    /// Factor of cosines and sines of what is rotated.
    attention_factor: f32,
}

impl Rotary {
    /// Frequencies `theta^(-2i / rotary_dim)`, optionally scaled. Of a head's `head_dim` entries, the pairs `(i, i + head_dim / 2)`
    /// with `i < rotary_dim / 2` are rotated; other pairs have frequency 0.
    pub(super) fn new(
        head_dim: usize,
        rotary_dim: usize,
        theta: f64,
        scaling: Option<&RopeScaling>,
    ) -> Self {
        let mut rotary = Self {
            head_dim,
            rotary_dim,
            theta,
            scaling: scaling.cloned(),
            inv_freq: Vec::new(),
            attention_factor: scaling.map_or(1.0, RopeScaling::attention_factor) as f32,
        };
        rotary.inv_freq = rotary.computed(0);
        rotary
    }

    /// Cosines and sines, `[tokens, head_dim / 2]` each, of tokens at `positions` in rows of `row_lens` tokens.
    pub(super) fn tables<B: Backend>(
        &self,
        positions: &[usize],
        row_lens: &[usize],
        device: &B::Device,
    ) -> [Tensor<B, 2>; 2] {
        let half = self.head_dim / 2;
        let mut angles = Vec::with_capacity(positions.len() * half);
        let mut rest = positions;
        for row in row_lens.chunk_by(|a, b| a == b) {
            let (own, others) = rest.split_at(row.len());
            rest = others;
            let inv_freq = self.inv_freq(row[0]);
            for &position in own {
                angles.extend(inv_freq.iter().map(|f| position as f32 * f));
            }
        }
        let table = |f: fn(f32) -> f32| {
            let mut values: Vec<f32> = angles.iter().map(|&angle| f(angle)).collect();
            for token in values.chunks_exact_mut(half) {
                let rotated = &mut token[..self.rotary_dim / 2];
                rotated.iter_mut().for_each(|x| *x *= self.attention_factor);
            }
            Tensor::from_data(TensorData::new(values, [positions.len(), half]), device)
        };
        [table(f32::cos), table(f32::sin)]
    }

    /// Radians per position in a row of `row_len` tokens, `[head_dim / 2]`.
    fn inv_freq(&self, row_len: usize) -> Cow<'_, [f32]> {
        let short = self.scaling.as_ref().and_then(RopeScaling::short_rows);
        match short.is_some_and(|short| row_len > short) {
            true => Cow::Owned(self.computed(row_len)),
            false => Cow::Borrowed(&self.inv_freq),
        }
    }

    fn computed(&self, row_len: usize) -> Vec<f32> {
        let mut inv_freq = match &self.scaling {
            Some(scaling) => scaling.inv_freq(self.theta, self.rotary_dim, row_len),
            None => unscaled(self.theta as f32, self.rotary_dim),
        };
        // Entries that are not rotated.
        inv_freq.resize(self.head_dim / 2, 0.0);
        inv_freq
    }
}

/// The file's entry for each entry of a head. In files the first `rotary_dim` entries are rotated, in pairs `rotary_dim / 2` apart;
/// here pairs are half a head apart. So the two halves of the rotated entries come first in the two halves of the head, followed by
/// entries that are not rotated. Queries and keys are reordered alike, which leaves scores unchanged.
pub(super) fn head_order(head_dim: usize, rotary_dim: usize) -> Vec<usize> {
    let (rotated, kept) = (rotary_dim / 2, (head_dim - rotary_dim) / 2);
    (0..rotated)
        .chain(rotary_dim..rotary_dim + kept)
        .chain(rotated..rotary_dim)
        .chain(rotary_dim + kept..head_dim)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::model::config::Llama3;
    use crate::model::{Architecture, ModelConfig};

    /// `LlamaRotaryEmbedding(LlamaConfig(..)).inv_freq.view(torch.int32)` of transformers 5.23; the last line is
    /// GPT-NeoX's with a quarter of 32 entries rotated.
    #[test]
    fn frequencies_are_those_of_transformers_to_the_bit() {
        let bits =
            |rotary: Rotary| -> Vec<u32> { rotary.inv_freq.iter().map(|x| x.to_bits()).collect() };
        let llama3 = RopeScaling::Llama3(Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        });
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
            bits(Rotary::new(16, 16, 5e5, Some(&llama3))),
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
        let rotated = [0x3f80_0000, 0x3dcc_cccd, 0x3c23_d70a, 0x3a83_126f];
        let rotary = bits(Rotary::new(32, 8, 1e4, None));
        assert_eq!((&rotary[..4], &rotary[4..]), (&rotated[..], &[0; 12][..]));
    }

    /// `tests/reference/families.py` has the frequencies of each scaling in rows within the original context and beyond.
    #[test]
    fn scaled_frequencies_are_those_of_transformers() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/rope_scalings");
        let read = |file: &str| -> Value {
            serde_json::from_str(&std::fs::read_to_string(folder.join(file)).unwrap()).unwrap()
        };
        let plain = read("config.json");
        for case in read("cases.json").as_array().unwrap() {
            let mut config = plain.clone();
            for (key, value) in case["config"].as_object().unwrap() {
                config[key] = value.clone();
            }
            let config = ModelConfig::from_value(config).unwrap();
            let Architecture::Gated(config) = config.architecture() else {
                panic!("{case}");
            };
            let width = config.head_dim;
            let rotary = Rotary::new(
                width,
                width,
                config.rope_theta,
                config.rope_scaling.as_ref(),
            );
            let expected = case["attention_factor"].as_f64().unwrap() as f32;
            assert_eq!(rotary.attention_factor, expected, "{}", case["name"]);
            for (row_len, expected) in case["inv_freq"].as_object().unwrap() {
                let expected: Vec<i32> = serde_json::from_value(expected.clone()).unwrap();
                let found = rotary.inv_freq(row_len.parse().unwrap());
                let found: Vec<i32> = found.iter().map(|x| x.to_bits() as i32).collect();
                assert_eq!(found, expected, "{} in a row of {row_len}", case["name"]);
            }
        }
    }
}
