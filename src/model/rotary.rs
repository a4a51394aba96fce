//! Rotary position embedding: frequencies and angles.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::config::RopeScaling;

/// Rotary frequencies of one head.
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    /// Radians per position, `[head_dim / 2]`.
    inv_freq: Vec<f32>,
}

impl Rotary {
    /// Frequencies `theta^(-2i / rotary_dim)`, optionally with Llama 3's scaling. Of a head's `head_dim` entries, the pairs
    /// `(i, i + head_dim / 2)` with `i < rotary_dim / 2` are rotated; other pairs have frequency 0.
    ///
    /// Every step is rounded to f32 as in transformers: at position 8,000 one unit in the last place of a frequency changes the
    /// angle noticeably.
    pub(super) fn new(
        head_dim: usize,
        rotary_dim: usize,
        theta: f64,
        scaling: Option<&RopeScaling>,
    ) -> Self {
        let rotated = (0..rotary_dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / rotary_dim as f32;
            let power = f64::from(theta as f32).powf(f64::from(exponent)) as f32;
            let frequency = 1.0 / power;
            scaling.map_or(frequency, |scaling| scaled(frequency, scaling))
        });
        let mut inv_freq: Vec<f32> = rotated.collect();
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

/// Llama 3's rule: frequencies of long wavelengths are divided by the factor, those of short ones are unchanged, with a linear
/// blend between.
pub(super) fn scaled(frequency: f32, s: &RopeScaling) -> f32 {
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
        let rotated = [0x3f80_0000, 0x3dcc_cccd, 0x3c23_d70a, 0x3a83_126f];
        let rotary = bits(Rotary::new(32, 8, 1e4, None));
        assert_eq!((&rotary[..4], &rotary[4..]), (&rotated[..], &[0; 12][..]));
    }
}
