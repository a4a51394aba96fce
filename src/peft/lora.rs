//! LoRA: a low-rank product beside the weight of a linear layer.
//!
//! # Source
//! Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732; files: PEFT 0.21, `LoraConfig`.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::files::{AdapterConfig, Keys, SCORE, is_off, list_or_null, number};
use super::keys::tensor_key;
use super::method::{AdapterMethod, LayerAdapter, Merged, Settings, dropout_mask};
use super::patterns::Patterns;
use super::projection::{ColumnOrder, LayerSpec};
use super::targets::{LinearSpec, Selection, TargetModules, Targets, resolve_targets};
use crate::error::{Error, Result};
use crate::ops::{ModelBackend, f32_matmul};
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::rng::Seed;

/// Name of the down projection below a layer's path.
const A: &str = "lora_A.weight";
/// Name of the up projection below a layer's path.
const B_NAME: &str = "lora_B.weight";

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
}

impl AdapterMethod for LoraConfig {
    type Layer<B: Backend> = Lora<B>;

    const PEFT_TYPE: &'static str = "LORA";

    fn problems(&self, settings: &mut Settings) {
        settings.positive("rank", self.rank);
        settings.above_zero("alpha", self.alpha);
        settings.below_one("dropout", self.dropout);
        settings.targets(&self.target_modules);
    }

    fn targets(&self, linear: &[LinearSpec]) -> Result<Vec<usize>> {
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

    fn tensors(&self, layer: &LinearSpec) -> Vec<(&'static str, [usize; 2])> {
        let rank = self.rank_of(&layer.name);
        vec![
            (A, [rank, layer.in_features]),
            (B_NAME, [layer.out_features, rank]),
        ]
    }

    fn fresh<B: Backend>(&self, layer: &LinearSpec, seed: Seed, device: &B::Device) -> Lora<B> {
        Lora::new(self, layer, seed, device)
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    fn continues<B: Backend>(&self, present: &Self, layer: &Lora<B>, path: &str) -> bool {
        self.use_rslora == present.use_rslora
            && layer.rank() == self.rank_of(path)
            && (layer.scale - self.scale_of(path)).abs() < 1e-9
    }

    fn read(keys: &Keys<'_>, targets: &Targets) -> Result<Self, String> {
        let pattern_keys = ["rank_pattern", "alpha_pattern"];
        let lora = Self {
            rank: keys.read("r", 8, count)?,
            alpha: keys.read("lora_alpha", 8.0, Value::as_f64)?,
            use_rslora: keys.read("use_rslora", false, Value::as_bool)?,
            dropout: keys.read("lora_dropout", 0.0, |v| {
                v.as_f64().filter(|p| (0.0..1.0).contains(p))
            })?,
            target_modules: targets.target_modules.entries().to_vec(),
            exclude_modules: (targets.exclude_modules.iter())
                .flat_map(|modules| modules.entries().to_vec())
                .collect(),
            layers_to_transform: targets.layers_to_transform.clone(),
            rank_pattern: keys
                .read(pattern_keys[0], Patterns::default(), |v| patterns(v, count))?,
            alpha_pattern: keys.read(pattern_keys[1], Patterns::default(), |v| {
                patterns(v, Value::as_f64)
            })?,
            modules_to_save: Vec::new(),
        };
        let invalid = [lora.rank_pattern.invalid(), lora.alpha_pattern.invalid()];
        for (key, invalid) in pattern_keys.into_iter().zip(invalid) {
            if !invalid.is_empty() {
                return Err(format!(
                    "\"{key}\": {} cannot be read as a regular expression",
                    invalid.join(", ")
                ));
            }
        }
        Ok(lora)
    }

    fn accepts(key: &str, value: &Value) -> Option<bool> {
        match key {
            "bias" => Some(value == "none" || value.is_null()),
            "init_lora_weights" => Some(!value.as_str().is_some_and(|how| {
                let how = how.to_lowercase();
                CHANGES_BASE.iter().any(|start| how.starts_with(start))
            })),
            key if READ.contains(&key) || HARMLESS.contains(&key) => Some(true),
            key if REFUSED.contains(&key) => Some(is_off(value)),
            _ => None,
        }
    }

    fn unused(&self, paths: &[&str]) -> Vec<String> {
        let unused = [
            (
                "rank_pattern",
                self.rank_pattern.unused(paths.iter().copied()),
            ),
            (
                "alpha_pattern",
                self.alpha_pattern.unused(paths.iter().copied()),
            ),
        ];
        let entries = unused.into_iter().flat_map(|(key, patterns)| {
            (patterns.into_iter()).map(move |pattern| {
                format!("{key}: \"{pattern}\" matches no layer with an adapter")
            })
        });
        entries.collect()
    }

    fn write(&self, config: &AdapterConfig) -> Value {
        let alphas: Map<String, Value> = (self.alpha_pattern.iter())
            .map(|(key, alpha)| (key.to_owned(), number(*alpha)))
            .collect();
        json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": alphas,
            "arrow_config": null,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "fan_in_fan_out": config.fan_in_fan_out,
            "init_lora_weights": true,
            "kasa_config": null,
            "layer_replication": null,
            "layers_pattern": list_or_null(&config.targets.layers_pattern),
            "layers_to_transform": config.targets.layers_to_transform,
            "loftq_config": {},
            "lora_alpha": number(self.alpha),
            "lora_bias": false,
            "lora_dropout": self.dropout,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "monteclora_config": null,
            "qalora_group_size": 16,
            "r": self.rank,
            "rank_pattern": self.rank_pattern,
            "target_parameters": null,
            "trainable_token_indices": null,
            "use_bdlora": null,
            "use_dora": false,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
            "velora_config": null,
        })
    }
}

/// Keys that never change what a saved adapter computes, whatever they hold: how it came about, and settings of
/// variants that other keys switch on.
const HARMLESS: [&str; 6] = [
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
];

/// Keys that are read.
const READ: [&str; 9] = [
    "alpha_pattern",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "r",
    "rank_pattern",
    "use_rslora",
];

/// Keys that change the numbers unless they hold nothing or `false`.
const REFUSED: [&str; 14] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// Initialisations that change the base weights, which a saved adapter then no longer fits.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

fn count(value: &Value) -> Option<usize> {
    let n = value.as_u64().filter(|&n| n > 0)?;
    usize::try_from(n).ok()
}

fn patterns<'a, T>(
    value: &'a Value,
    convert: impl Fn(&'a Value) -> Option<T>,
) -> Option<Patterns<T>> {
    let items = value.as_object()?.iter();
    items.map(|(k, v)| Some((k.clone(), convert(v)?))).collect()
}

/// `scale * (dropout(x) . a) . b`, added to the layer's output.
///
/// # Shapes
/// - `a`: `[in, rank]`, `b`: `[rank, out]` (PEFT's files hold the transposes)
///
/// # Source
/// Hu et al. 2021, arXiv:2106.09685.
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// Down projection.
    pub a: Param<Tensor<B, 2>>,
    /// Up projection; zero at the start, so that an adapter begins as the identity.
    pub b: Param<Tensor<B, 2>>,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scale: f64,
    /// Probability with which an input of the adapter is dropped.
    pub dropout: f64,
}

impl<B: Backend> Lora<B> {
    /// A fresh adapter: `a` uniform in `±1/sqrt(in)` (PEFT's `kaiming_uniform(a = sqrt 5)`), `b` zero.
    pub fn new(config: &LoraConfig, layer: &LinearSpec, seed: Seed, device: &B::Device) -> Self {
        let (inputs, outputs) = (layer.in_features, layer.out_features);
        let rank = config.rank_of(&layer.name);
        let bound = 1.0 / (inputs as f64).sqrt();
        let a: Vec<f32> = (0..inputs * rank)
            .map(|i| ((2.0 * seed.uniform(i as u64) - 1.0) * bound) as f32)
            .collect();
        let a = Tensor::from_data(TensorData::new(a, [inputs, rank]), device);
        Self {
            a: Param::initialized(ParamId::new(), a),
            b: Param::initialized(ParamId::new(), Tensor::zeros([rank, outputs], device)),
            scale: config.scale_of(&layer.name),
            dropout: config.dropout,
        }
    }

    /// Inner dimension.
    pub fn rank(&self) -> usize {
        self.a.val().dims()[1]
    }

    /// `scale * (dropout(x) . a) . b`, `[tokens, out]`. Each adapter sees its own mask, as in PEFT.
    pub(super) fn product(&self, x: &Tensor<B, 2>, dropout: Option<Seed>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        let x = match dropout {
            Some(seed) => x.clone() * dropout_mask(x, self.dropout, seed),
            None => x.clone(),
        };
        let ranks = f32_matmul(x, self.a.val());
        f32_matmul(ranks, self.b.val()).mul_scalar(self.scale)
    }

    /// `scale * a . b`, `[in, out]`: what a merge adds to the weight.
    pub fn delta(&self) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        f32_matmul(self.a.val(), self.b.val()).mul_scalar(self.scale)
    }
}

impl<B: Backend> LayerAdapter<B> for Lora<B> {
    type Config = LoraConfig;

    fn continue_as(&mut self, wanted: &LoraConfig) {
        self.dropout = wanted.dropout;
    }

    /// Beside the layer's own product; without dropout the fused product of `low_rank.rs` takes its place.
    fn output(&self, x: &Tensor<B, 2>, y: Tensor<B, 2>, dropout: Option<Seed>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        y + self.product(x, dropout)
    }

    fn merge(&self, weight: Tensor<B, 2>, _: Option<Tensor<B, 1>>) -> Option<Merged<B>>
    where
        B: ModelBackend,
    {
        Some(Merged {
            weight: weight + self.delta().detach(),
            bias: None,
        })
    }

    fn walk(
        &mut self,
        layer: &LayerSpec,
        order: &ColumnOrder,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    ) {
        let rank = self.rank();
        let meta = |name, columns| {
            let key = tensor_key(&layer.path, name);
            ParamMeta::single(ParamKind::Adapter, key, columns, true)
        };
        visit(&meta(A, rank), ParamSlot::Matrix(&mut self.a));
        visit(
            &meta(B_NAME, layer.width).ordered(order.clone()),
            ParamSlot::Matrix(&mut self.b),
        );
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
