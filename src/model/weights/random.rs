//! Random initial weights from a configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::WeightSource;
use super::dtype::Dtype;
use crate::error::{Error, Problem, Result};
use crate::model::Architecture;
use crate::model::config::ModelConfig;
use crate::rng::Seed;

/// Random initial weights: normal with deviation `initializer_range` for matrices and embeddings, ones for norms (zeros for
/// Gemma's, which add one), zeros for biases. GPT-2's projections into the residual stream are scaled by `1 / sqrt(2 n_layer)`.
///
/// A tensor's values depend only on the seed and its name.
///
/// # Source
/// transformers' `_init_weights`; the residual scaling is Radford et al. 2019 ("GPT-2"), section 2.3.
#[derive(Debug)]
pub struct RandomSource {
    path: PathBuf,
    seed: Seed,
    tensors: BTreeMap<String, (Vec<usize>, Fill)>,
}

#[derive(Debug, Clone, Copy)]
enum Fill {
    Constant(f32),
    Normal(f64),
}

impl RandomSource {
    /// A source with the parameters of the causal model (without a tied head) and the sequence classifier's head.
    pub fn new(config: &ModelConfig, seed: Seed) -> Self {
        let std = config.initializer_range();
        let residual = match config.architecture() {
            Architecture::Gpt2(c) => std / (2.0 * c.n_layer as f64).sqrt(),
            _ => std,
        };
        let mut specs = config.tensors();
        specs.extend(config.classifier_tensors().pop());
        let tensors = specs
            .into_iter()
            .filter(|spec| spec.tied_to.is_none())
            .map(|spec| {
                let fill = if spec.name.ends_with(".bias") {
                    Fill::Constant(0.0)
                } else if spec.shape.len() == 1 {
                    Fill::Constant(config.fresh_norm())
                } else if spec.name.ends_with(".c_proj.weight") {
                    Fill::Normal(residual)
                } else {
                    Fill::Normal(std)
                };
                (spec.name, (spec.shape, fill))
            })
            .collect();
        Self {
            path: PathBuf::from("random weights"),
            seed: seed.fork("init"),
            tensors,
        }
    }
}

impl WeightSource for RandomSource {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|(shape, _)| shape.clone())
    }

    fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.contains_key(name).then_some(Dtype::F32)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let (shape, fill) = self.tensors.get(name).ok_or_else(|| Error::Weights {
            path: self.path.clone(),
            problems: vec![Problem::new(name, "missing")],
        })?;
        let len = shape.iter().product();
        Ok(match *fill {
            Fill::Constant(value) => vec![value; len],
            Fill::Normal(std) => {
                let seed = self.seed.fork(name);
                (0..len as u64)
                    .into_par_iter()
                    .map(|i| (std * seed.normal(i)) as f32)
                    .collect()
            }
        })
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use serde_json::json;

    #[test]
    fn fresh_weights_fit_the_model_and_have_their_deviations() {
        let config = ModelConfig::from_value(json!({
            "model_type": "gpt2", "n_embd": 64, "n_layer": 8, "n_head": 2, "n_positions": 8, "vocab_size": 100
        }))
        .unwrap();
        let source = RandomSource::new(&config, Seed::new(1));
        check(&source, &config.tensors()).unwrap();
        check(&source, &config.classifier_tensors()).unwrap();
        let read = |name: &str| source.read(name).unwrap();
        assert_eq!(read("transformer.ln_f.weight"), [1.0; 64]);
        assert_eq!(read("transformer.h.0.attn.c_attn.bias"), [0.0; 192]);
        let deviation = |x: &[f32]| {
            (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64).sqrt()
        };
        // 12,288 and 16,384 samples: relative standard error below 0.7 %. Residual: 0.02 / sqrt(16) = 0.005.
        let wide = deviation(&read("transformer.h.3.attn.c_attn.weight"));
        assert!((wide / 0.02 - 1.0).abs() < 0.03, "{wide}");
        let residual = deviation(&read("transformer.h.3.mlp.c_proj.weight"));
        assert!((residual / 0.005 - 1.0).abs() < 0.03, "{residual}");
        assert_ne!(
            read("transformer.h.3.attn.c_attn.weight")[0],
            read("transformer.h.4.attn.c_attn.weight")[0]
        );
        let again = RandomSource::new(&config, Seed::new(1));
        assert_eq!(
            again.read("transformer.wte.weight").unwrap(),
            read("transformer.wte.weight")
        );
    }
}
