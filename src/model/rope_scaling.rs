//! Scalings of rotary frequencies for rows longer than those of pretraining.
//!
//! Every step is rounded to f32 where transformers rounds it: at position 8,000 one unit in the last place of a frequency changes
//! the angle noticeably.
//!
//! # Source
//! transformers, `modeling_rope_utils.py`.

use std::f64::consts::TAU;

/// A scaling of rotary frequencies; the variants are the values of `rope_type`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// `linear`: positions are divided by the factor.
    Linear {
        /// Divides all frequencies.
        factor: f64,
    },
    /// `dynamic`.
    Dynamic(DynamicNtk),
    /// `yarn`.
    Yarn(Yarn),
    /// `longrope`.
    LongRope(LongRope),
    /// `llama3`.
    Llama3(Llama3),
}

/// NTK-aware scaling by a row's length: rows of up to `max_position_embeddings` tokens keep the base, longer ones get a larger base.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicNtk {
    /// How fast the base grows with the length.
    pub factor: f64,
    /// Longest row, in tokens, with the frequencies of pretraining.
    pub max_position_embeddings: usize,
}

/// YaRN: short wavelengths are unchanged, long ones are divided by the factor, with a linear ramp over the pairs between, and scores
/// are scaled.
///
/// # Source
/// Peng, Quesnelle, Fan and Shippole 2023, arXiv:2309.00071.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// Divides the frequencies of long wavelengths.
    pub factor: f64,
    /// Factor of cosines and sines: scores are multiplied by its square.
    pub attention_factor: f64,
    /// Pairs that turn more often than this in the original context are unchanged.
    pub beta_fast: f64,
    /// Pairs that turn less often than this in the original context are divided by the factor.
    pub beta_slow: f64,
    /// Whether the ramp begins and ends at whole pairs.
    pub truncate: bool,
    /// Context length of pretraining, in tokens.
    pub original_max_position_embeddings: usize,
}

/// LongRoPE: a searched factor for each pair, one list for rows within the original context and one for longer rows.
///
/// # Source
/// Ding et al. 2024, arXiv:2402.13753.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Divide the frequencies of rows within the original context, `[rotary_dim / 2]`.
    pub short_factor: Vec<f64>,
    /// Divide the frequencies of longer rows, `[rotary_dim / 2]`.
    pub long_factor: Vec<f64>,
    /// Factor of cosines and sines: scores are multiplied by its square.
    pub attention_factor: f64,
    /// Context length of pretraining, in tokens.
    pub original_max_position_embeddings: usize,
}

/// Llama 3's scaling: frequencies of long wavelengths are divided by the factor, those of short ones are unchanged, with a linear
/// blend between.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama3 {
    /// Factor for long wavelengths.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are scaled by `factor`.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are unchanged.
    pub high_freq_factor: f64,
    /// Context length of pretraining, in tokens.
    pub original_max_position_embeddings: usize,
}

impl RopeScaling {
    /// The value of `rope_type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Dynamic(_) => "dynamic",
            Self::Yarn(_) => "yarn",
            Self::LongRope(_) => "longrope",
            Self::Llama3(_) => "llama3",
        }
    }

    /// Radians per position of each pair in a row of `row_len` tokens, `[rotary_dim / 2]`.
    pub(super) fn inv_freq(&self, theta: f64, rotary_dim: usize, row_len: usize) -> Vec<f32> {
        let powers = powers(theta as f32, rotary_dim);
        match self {
            Self::Linear { factor } => powers.map(|power| 1.0 / power / *factor as f32).collect(),
            Self::Dynamic(scaling) => {
                unscaled(scaling.base(theta, rotary_dim, row_len), rotary_dim)
            }
            Self::Yarn(scaling) => scaling.inv_freq(theta, rotary_dim),
            Self::LongRope(scaling) => {
                let factors = scaling.factors(row_len).iter();
                let pairs = powers.zip(factors);
                pairs
                    .map(|(power, &factor)| 1.0 / (factor as f32 * power))
                    .collect()
            }
            Self::Llama3(scaling) => powers.map(|power| scaling.scaled(1.0 / power)).collect(),
        }
    }

    /// Factor of cosines and sines.
    pub(super) fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn(scaling) => scaling.attention_factor,
            Self::LongRope(scaling) => scaling.attention_factor,
            Self::Linear { .. } | Self::Dynamic(_) | Self::Llama3(_) => 1.0,
        }
    }

    /// Where frequencies depend on the length of a row: the longest row, in tokens, that has those of short rows.
    pub fn short_rows(&self) -> Option<usize> {
        match self {
            Self::Dynamic(scaling) => Some(scaling.max_position_embeddings),
            Self::LongRope(scaling) => Some(scaling.original_max_position_embeddings),
            Self::Linear { .. } | Self::Yarn(_) | Self::Llama3(_) => None,
        }
    }
}

/// `theta^(-2i / rotary_dim)`, `[rotary_dim / 2]`.
pub(super) fn unscaled(theta: f32, rotary_dim: usize) -> Vec<f32> {
    powers(theta, rotary_dim).map(|power| 1.0 / power).collect()
}

/// `theta^(2i / rotary_dim)` for each pair `i`.
fn powers(theta: f32, rotary_dim: usize) -> impl Iterator<Item = f32> {
    (0..rotary_dim / 2).map(move |pair| {
        let exponent = (2 * pair) as f32 / rotary_dim as f32;
        f64::from(theta).powf(f64::from(exponent)) as f32
    })
}

impl DynamicNtk {
    /// The base in a row of `row_len` tokens.
    fn base(&self, theta: f64, rotary_dim: usize, row_len: usize) -> f32 {
        let Self { factor, .. } = *self;
        let exponent = rotary_dim as f64 / (rotary_dim - 2) as f64;
        if row_len <= self.max_position_embeddings {
            // Almost 1; transformers has it in f64 before the first row.
            let max = self.max_position_embeddings as f64;
            let stretch = factor * max / max - (factor - 1.0);
            return (theta * stretch.powf(exponent)) as f32;
        }
        let max = self.max_position_embeddings as f32;
        let stretch = factor as f32 * row_len as f32 / max - (factor - 1.0) as f32;
        theta as f32 * f64::from(stretch).powf(f64::from(exponent as f32)) as f32
    }
}

impl Yarn {
    fn inv_freq(&self, theta: f64, rotary_dim: usize) -> Vec<f32> {
        let [low, high] = self.ramp(theta, rotary_dim);
        let width = (if low == high { 0.001 } else { high - low }) as f32;
        let powers = powers(theta as f32, rotary_dim).enumerate();
        powers
            .map(|(pair, power)| {
                let kept = 1.0 - ((pair as f32 - low as f32) / width).clamp(0.0, 1.0);
                1.0 / (self.factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
            })
            .collect()
    }

    /// The last pair that is unchanged, and the first that is divided by the factor.
    fn ramp(&self, theta: f64, rotary_dim: usize) -> [f64; 2] {
        let context = self.original_max_position_embeddings as f64;
        let pair =
            |turns: f64| rotary_dim as f64 * (context / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        [low.max(0.0), high.min((rotary_dim - 1) as f64)]
    }

    /// The factor of cosines and sines that the paper proposes, or the ratio of two with `mscale` and `mscale_all_dim`.
    pub(super) fn proposed_attention_factor(factor: f64, mscales: Option<[f64; 2]>) -> f64 {
        let proposed = |mscale: f64| match factor <= 1.0 {
            true => 1.0,
            false => 0.1 * mscale * factor.ln() + 1.0,
        };
        match mscales {
            Some([mscale, all_dim]) => proposed(mscale) / proposed(all_dim),
            None => proposed(1.0),
        }
    }
}

impl LongRope {
    /// The factors for a row of `row_len` tokens.
    fn factors(&self, row_len: usize) -> &[f64] {
        match row_len > self.original_max_position_embeddings {
            true => &self.long_factor,
            false => &self.short_factor,
        }
    }

    /// The factor of cosines and sines that the paper proposes for a context `factor` times as long as the original.
    pub(super) fn proposed_attention_factor(factor: f64, original: usize) -> f64 {
        match factor <= 1.0 {
            true => 1.0,
            false => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        }
    }
}

impl Llama3 {
    /// A frequency, scaled.
    pub(super) fn scaled(&self, frequency: f32) -> f32 {
        let context = self.original_max_position_embeddings as f64;
        let factor = self.factor as f32;
        // torch divides a number by a tensor as the tensor's reciprocal times the number.
        let divided = |x: f64, by: f32| 1.0 / by * x as f32;
        let wavelength = divided(TAU, frequency);
        if wavelength > (context / self.low_freq_factor) as f32 {
            return frequency / factor;
        }
        if wavelength < (context / self.high_freq_factor) as f32 {
            return frequency;
        }
        let blend = (divided(context, wavelength) - self.low_freq_factor as f32)
            / (self.high_freq_factor - self.low_freq_factor) as f32;
        (1.0 - blend) * frequency / factor + blend * frequency
    }
}
