//! Adapter methods as a recipe names them.

use serde::{Deserialize, Serialize};

use super::files::SCORE;
use super::patterns::Patterns;
use super::targets::{LinearSpec, Selection, TargetModules, resolve_targets};
use crate::error::{Error, Result};

/// Low-rank adaptation.
///
/// # Source
/// Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Inner dimension of the low-rank product.
    pub rank: usize,
    /// The product is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Scale by `alpha / sqrt(rank)` instead.
    pub use_rslora: bool,
    /// Probability with which an input of the adapter (not of the base) is dropped in training.
    pub dropout: f64,
    /// Which linear layers: `["all-linear"]`, last path components (`"q_proj"`), or regular expressions on whole paths.
    pub target_modules: Vec<String>,
    /// Which of them not, said in the same way.
    pub exclude_modules: Vec<String>,
    /// Only those in the blocks with these numbers, from 0.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Other ranks, by the end of a layer's path (a regular expression); the first that matches counts.
    pub rank_pattern: Patterns<usize>,
    /// Other alphas, in the same way.
    pub alpha_pattern: Patterns<f64>,
    /// Layers to train and store whole. Only `"score"`, which reward and value models train in any case.
    pub modules_to_save: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            use_rslora: false,
            dropout: 0.0,
            target_modules: vec!["all-linear".into()],
            exclude_modules: Vec::new(),
            layers_to_transform: None,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            modules_to_save: Vec::new(),
        }
    }
}

impl LoraConfig {
    /// Inner dimension at a layer, `rank_pattern` applied.
    pub fn rank_of(&self, path: &str) -> usize {
        self.rank_pattern.get(path).copied().unwrap_or(self.rank)
    }

    /// Factor on the low-rank product at a layer, both patterns applied.
    pub fn scale_of(&self, path: &str) -> f64 {
        let alpha = self.alpha_pattern.get(path).copied().unwrap_or(self.alpha);
        let rank = self.rank_of(path) as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The indices into `linear` of the layers that get an adapter, ascending.
    ///
    /// # Errors
    /// `Error::Usage` for an entry, pattern or number that matches nothing, and for modules that cannot be trained whole.
    pub fn targets(&self, linear: &[LinearSpec]) -> Result<Vec<usize>> {
        let target_modules = TargetModules::List(self.target_modules.clone());
        let exclude_modules = TargetModules::List(self.exclude_modules.clone());
        let selection = Selection {
            target_modules: &target_modules,
            exclude_modules: (!self.exclude_modules.is_empty()).then_some(&exclude_modules),
            layers_to_transform: self.layers_to_transform.as_deref(),
            layers_pattern: &[],
        };
        let chosen = resolve_targets(&selection, linear)?;
        let paths = chosen.iter().map(|&index| linear[index].name.as_str());
        for (key, unused) in [
            ("rank_pattern", self.rank_pattern.unused(paths.clone())),
            ("alpha_pattern", self.alpha_pattern.unused(paths)),
        ] {
            if !unused.is_empty() {
                return Err(Error::Usage(format!(
                    "{key}: {} matches no layer that gets an adapter",
                    unused.join(", ")
                )));
            }
        }
        if self.rank_pattern.iter().any(|(_, rank)| *rank == 0) {
            return Err(Error::Usage("rank_pattern: a rank of 0".into()));
        }
        if let Some(other) = self.modules_to_save.iter().find(|name| *name != SCORE) {
            return Err(Error::Usage(format!(
                "modules_to_save: {other} cannot be trained whole beside adapters, only \"{SCORE}\" can; \
                 `peft: Full` trains everything"
            )));
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear() -> Vec<LinearSpec> {
        let layer = |name: &str| LinearSpec {
            name: format!("model.layers.{name}"),
            in_features: 4,
            out_features: 4,
        };
        [
            "0.self_attn.q_proj",
            "0.self_attn.v_proj",
            "1.self_attn.q_proj",
            "1.self_attn.v_proj",
        ]
        .map(layer)
        .to_vec()
    }

    #[test]
    fn patterns_change_rank_and_scale() {
        let mut config = LoraConfig {
            rank_pattern: [("v_proj".to_owned(), 4)].into_iter().collect(),
            alpha_pattern: [(r"layers\.1\..*".to_owned(), 8.0)].into_iter().collect(),
            ..LoraConfig::default()
        };
        let path = "model.layers.1.self_attn.v_proj";
        assert_eq!((config.rank_of(path), config.scale_of(path)), (4, 2.0));
        assert_eq!(config.scale_of("model.layers.0.self_attn.v_proj"), 8.0);
        assert_eq!(config.rank_of("model.layers.0.self_attn.my_v_proj"), 16);
        config.use_rslora = true;
        // 32 / sqrt(16), 8 / sqrt(4)
        assert_eq!(config.scale_of("model.layers.0.mlp.up_proj"), 8.0);
        assert_eq!(config.scale_of(path), 4.0);
        assert_eq!(config.targets(&linear()).unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn layers_are_chosen_left_out_and_numbered() {
        let config = |f: &dyn Fn(&mut LoraConfig)| {
            let mut config = LoraConfig::default();
            f(&mut config);
            config.targets(&linear())
        };
        assert_eq!(
            config(&|c| c.exclude_modules = vec!["q_proj".into()]).unwrap(),
            [1, 3]
        );
        assert_eq!(
            config(&|c| c.layers_to_transform = Some(vec![1])).unwrap(),
            [2, 3]
        );
        let both = config(&|c| {
            c.target_modules = vec!["v_proj".into(), r".*\.0\..*q_proj".into()];
            c.exclude_modules = vec![r".*\.1\..*".into()];
        });
        assert_eq!(both.unwrap(), [0, 1]);
        for (change, expected) in [
            (
                &(|c: &mut LoraConfig| c.layers_to_transform = Some(vec![0, 2]))
                    as &dyn Fn(&mut LoraConfig),
                "layers_to_transform: there is no layer 2",
            ),
            (
                &|c| c.exclude_modules = vec!["k_proj".into()],
                "exclude_modules: \"k_proj\" matches no layer",
            ),
            (
                &|c| c.exclude_modules = vec!["all-linear".into()],
                "nothing is left",
            ),
            (
                &|c| c.rank_pattern = [("k_proj".to_owned(), 4)].into_iter().collect(),
                "rank_pattern: k_proj matches no layer",
            ),
            (
                &|c| c.alpha_pattern = [("(".to_owned(), 4.0)].into_iter().collect(),
                "alpha_pattern: ( matches",
            ),
            (
                &|c| c.rank_pattern = [("q_proj".to_owned(), 0)].into_iter().collect(),
                "a rank of 0",
            ),
            (
                &|c| c.modules_to_save = vec!["lm_head".into()],
                "modules_to_save: lm_head cannot",
            ),
        ] {
            let error = config(change).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(config(&|c| c.modules_to_save = vec!["score".into()]).is_ok());
    }
}
