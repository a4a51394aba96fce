//! What a base in fewer bits costs: how far its distribution is from that of the same base in f32.

use std::fmt::{self, Display};

use crate::backend::Task;
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, SamplingConfig, generate};
use crate::model::{LanguageModel, ModelSource};
use crate::ops::{ModelBackend, Numerics};
use crate::rng::Seed;
use crate::train::row_logprobs;

/// Texts that the f32 base writes.
const TEXTS: usize = 16;
/// Tokens of each.
const TOKENS: usize = 64;
/// Tokens per forward pass.
const MICRO_BATCH: usize = 1024;

/// Measures a base on text of its own: tokens that it draws in f32, at temperature 1, from an empty beginning. The mean of
/// what a token loses is then an unbiased estimate of `KL(f32 || reduced)`.
pub(super) struct PrecisionCost<'a> {
    /// The recipe's `model`.
    pub(super) model: &'a str,
    /// The recipe's.
    pub(super) numerics: Numerics,
}

/// The largest and the mean difference, in nats.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    numerics: Numerics,
    tokens: usize,
    /// Of the log-probability of a token.
    largest: f64,
    /// Of the same, its absolute value.
    mean: f64,
    /// Mean loss of a token, and its standard error.
    kl: [f64; 2],
}

impl Cost {
    fn new(numerics: Numerics, full: &[f32], reduced: &[f32]) -> Self {
        let losses: Vec<f64> = full
            .iter()
            .zip(reduced)
            .map(|(full, reduced)| f64::from(*full) - f64::from(*reduced))
            .collect();
        let n = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / n;
        let squares = losses.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        Self {
            numerics,
            tokens: losses.len(),
            largest: losses.iter().fold(0.0, |most, x| most.max(x.abs())),
            mean: losses.iter().map(|x| x.abs()).sum::<f64>() / n,
            kl: [mean, (squares / (n - 1.0) / n).sqrt()],
        }
    }
}

impl Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            numerics,
            tokens,
            largest,
            mean,
            kl: [kl, error],
        } = self;
        let name = numerics.name();
        write!(
            f,
            "the base in {name} against f32, on {tokens} tokens that it writes in f32: log-probabilities differ by {mean:.1e} nats on average and \
             {largest:.1e} at most; KL(f32 || {name}) {kl:.1e} +- {error:.1e} nats per token"
        )
    }
}

impl Task for PrecisionCost<'_> {
    type Output = Cost;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<Cost> {
        let source = ModelSource::find(self.model)?;
        let tokenizer = source.tokenizer()?;
        let load = |numerics| {
            let mut model: LanguageModel<B> = source.load_base(numerics, &device)?;
            source.attach_outermost(&mut model, &device)?;
            Ok::<_, Error>(model)
        };
        let full = load(Numerics::default())?;
        let start = [tokenizer.bos_id().unwrap_or(tokenizer.eos_id())];
        let prompts = vec![start.as_slice(); TEXTS];
        let options = GenerateOptions {
            max_new_tokens: TOKENS,
            sampling: SamplingConfig::default(),
            stop_ids: Vec::new(),
            truncate: None,
            batch_size: TEXTS,
        };
        let seed = Seed::new(1);
        let texts = generate(&full, &prompts, &options, seed, &device, &mut |_, _| {});
        let rows: Vec<Vec<u32>> = (texts.iter())
            .map(|text| [&start, text.ids.as_slice()].concat())
            .collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let logprobs = |model: &LanguageModel<B>| {
            row_logprobs(model, &rows, &[1; TEXTS], 1.0, MICRO_BATCH, &device).concat()
        };
        let exact = logprobs(&full);
        drop(full);
        let reduced = logprobs(&load(self.numerics)?);
        Ok(Cost::new(self.numerics, &exact, &reduced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Precision;

    #[test]
    fn what_a_token_loses_is_averaged() {
        let cost = Cost::new(
            Precision::Int8.into(),
            &[-1.0, -2.0, -3.0],
            &[-1.5, -1.5, -3.3],
        );
        // Losses 0.5, -0.5, 0.3: mean 0.1, variance 0.28.
        assert!((cost.kl[0] - 0.1).abs() < 1e-6 && (cost.largest - 0.5).abs() < 1e-6);
        assert!(
            (cost.kl[1] - (0.28f64 / 3.0).sqrt()).abs() < 1e-6,
            "{cost:?}"
        );
        assert!((cost.mean - 1.3 / 3.0).abs() < 1e-6);
        assert!(
            cost.to_string()
                .contains("KL(f32 || int8) 1.0e-1 +- 3.1e-1")
        );
    }
}
