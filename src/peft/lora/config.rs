//! What a recipe says of LoRA.

use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{A, B_BIAS, B_NAME, EMBEDDING_A, EMBEDDING_B, InitLoraWeights, Lora, MAGNITUDE, file};
use crate::error::{Error, Problem, Result};
use crate::ops::ModelBackend;
use crate::peft::files::{AdapterConfig, Keys};
use crate::peft::method::{AdapterMethod, LayerMethod, Site};
use crate::peft::patterns::Patterns;
use crate::peft::targets::{LayerKind, LinearSpec, Targets, resolve_targets};
use crate::peft::{Bias, TokenIndices, TokenName, TokenRows, beside};
use crate::settings::Settings;

/// Low-rank adaptation.
///
/// # Source
/// Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732; DoRA: Liu et al. 2024, arXiv:2402.09353.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Inner dimension of the low-rank product.
    pub rank: usize,
    /// The product is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Scale by `alpha / sqrt(rank)` instead.
    pub use_rslora: bool,
    /// Train the norm of each output's weights beside their direction (DoRA).
    pub use_dora: bool,
    /// What the matrices are at the start, in PEFT's words.
    pub init_lora_weights: InitLoraWeights,
    /// Which biases of the base are trained beside it.
    pub bias: Bias,
    /// Give the up projection a bias, which begins at zero.
    pub lora_bias: bool,
    /// Learning rate of the up projection as a multiple of the down projection's (LoRA+); `None` for the same.
    pub loraplus_lr_ratio: Option<f64>,
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
    /// Embeddings, norms and the output head to train and store whole, by the ends of their paths: `"embed_tokens"`, `"norm"`. A
    /// `"score"` head is trained in any case.
    pub modules_to_save: Vec<String>,
    /// Where the embedding is the output head, too, train the two as one.
    pub ensure_weight_tying: bool,
    /// Tokens whose rows of the embedding are trained: `["<think>"]`, by text or id, also of a head that is tied to it; or of tables
    /// by the ends of their paths, `{"embed_tokens": [..], "lm_head": [..]}`.
    pub trainable_token_indices: Option<TokenIndices>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            use_rslora: false,
            use_dora: false,
            init_lora_weights: InitLoraWeights::Uniform,
            bias: Bias::None,
            lora_bias: false,
            loraplus_lr_ratio: None,
            dropout: 0.0,
            target_modules: vec!["all-linear".into()],
            exclude_modules: Vec::new(),
            layers_to_transform: None,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            trainable_token_indices: None,
        }
    }
}

/// PEFT refuses both too.
pub(super) const BIAS_AND_DORA: &str = "goes with `use_dora: false` only";
pub(super) const BIAS_AND_START: &str = "goes with `init_lora_weights: true` only";

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

    /// Learning rate of all but the down projection, as a multiple of its.
    pub(super) fn lr_ratio(&self) -> f64 {
        self.loraplus_lr_ratio.unwrap_or(1.0)
    }
}

/// Why an embedding or an output head cannot have a setting.
fn refused_on(table: &LinearSpec, key: &str) -> String {
    let what = match table.kind {
        LayerKind::Embedding => "the embedding",
        LayerKind::Head | LayerKind::Linear => "the output head",
    };
    format!(
        "target_modules: {} is {what}, where `{key}` is not supported; leave one of them out",
        table.name
    )
}

impl AdapterMethod for LoraConfig {
    const PEFT_TYPE: &'static str = "LORA";

    const ADAPTS_TABLES: bool = true;

    const STORES_WEIGHT_TYING: bool = true;

    fn problems(&self, settings: &mut Settings) {
        settings.positive("rank", self.rank);
        settings.above_zero("alpha", self.alpha);
        for (key, alpha) in self.alpha_pattern.iter() {
            settings.above_zero(&format!("alpha_pattern.{key}"), *alpha);
        }
        settings.below_one("dropout", self.dropout);
        if let Some(ratio) = self.loraplus_lr_ratio {
            settings.above_zero("loraplus_lr_ratio", ratio);
        }
        if self.lora_bias && self.use_dora {
            settings.note(Problem::new("lora_bias", BIAS_AND_DORA));
        }
        if self.lora_bias && self.init_lora_weights != InitLoraWeights::Uniform {
            let message = format!("{BIAS_AND_START}, found {}", self.init_lora_weights);
            settings.note(Problem::new("lora_bias", message));
        }
        settings.targets(&self.target_modules);
        settings.modules_to_save(&self.modules_to_save);
        if let Some(rows) = self.token_rows() {
            settings.token_rows(&rows);
        }
    }

    fn targets(&self, linear: &[LinearSpec]) -> Result<Vec<usize>> {
        let (targets, excluded) = (&self.target_modules, &self.exclude_modules);
        let listed = Targets::listed(targets, excluded, self.layers_to_transform.as_deref());
        let chosen = resolve_targets(&listed.selection(), linear)?;
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
        for layer in chosen.iter().map(|&index| &linear[index]) {
            self.check_layer(layer).map_err(Error::Usage)?;
            let weight = format!("{}.weight", layer.name);
            let mut saved = self.modules_to_save.iter();
            if let Some(entry) = saved.find(|entry| beside::names(entry, &weight)) {
                return Err(Error::Usage(format!(
                    "modules_to_save: \"{entry}\" trains {} whole, which has an adapter by target_modules; leave one of them out",
                    layer.name
                )));
            }
            if layer.kind == LayerKind::Head && self.dropout > 0.0 {
                return Err(Error::Usage(refused_on(layer, "dropout")));
            }
        }
        if self.init_lora_weights.takes_of_weight() {
            for layer in chosen.iter().map(|&index| &linear[index]) {
                let (rank, most) = (
                    self.rank_of(&layer.name),
                    layer.in_features.min(layer.out_features),
                );
                if rank > most {
                    return Err(Error::Usage(format!(
                        "init_lora_weights: {} begins with a part of the weight, and {} ({} x {}) has no {rank} directions; \
                         the rank there can be {most} at most",
                        self.init_lora_weights, layer.name, layer.in_features, layer.out_features
                    )));
                }
            }
        }
        Ok(chosen)
    }

    fn check_layer(&self, layer: &LinearSpec) -> std::result::Result<(), String> {
        let refused = [
            (self.use_dora, "use_dora"),
            (self.lora_bias, "lora_bias"),
            (
                self.init_lora_weights.takes_of_weight(),
                "init_lora_weights",
            ),
        ];
        match refused.iter().find(|(holds, _)| *holds) {
            Some((_, key)) if layer.kind != LayerKind::Linear => Err(refused_on(layer, key)),
            _ => Ok(()),
        }
    }

    fn tensors(&self, layer: &LinearSpec) -> Vec<(&'static str, Vec<usize>)> {
        let rank = self.rank_of(&layer.name);
        if layer.kind == LayerKind::Embedding {
            return vec![
                (EMBEDDING_A, vec![rank, layer.in_features]),
                (EMBEDDING_B, vec![layer.out_features, rank]),
            ];
        }
        let mut tensors = vec![
            (A, vec![rank, layer.in_features]),
            (B_NAME, vec![layer.out_features, rank]),
        ];
        if self.lora_bias {
            tensors.push((B_BIAS, vec![layer.out_features]));
        }
        if self.use_dora {
            tensors.push((MAGNITUDE, vec![layer.out_features]));
        }
        tensors
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    /// DoRA's factors need the output that they multiply.
    fn kept_floats(&self, layer: &LinearSpec) -> usize {
        if self.use_dora { layer.out_features } else { 0 }
    }

    fn bias(&self) -> Bias {
        self.bias
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn ensure_weight_tying(&self) -> bool {
        self.ensure_weight_tying
    }

    fn token_rows(&self) -> Option<TokenRows<'_>> {
        let indices = self.trainable_token_indices.as_ref()?;
        Some(TokenRows {
            key: file::TOKENS,
            prefix: "token_adapter.",
            tables: indices.lists(),
        })
    }

    fn token_lists(&mut self) -> Vec<&mut Vec<TokenName>> {
        let indices = self.trainable_token_indices.as_mut();
        indices.map_or_else(Vec::new, TokenIndices::lists_mut)
    }

    /// LoRA+ puts everything of one dimension beside the up projections.
    fn vector_lr_factor(&self) -> f64 {
        self.lr_ratio()
    }

    fn start(&self) -> Option<String> {
        let init = self.init_lora_weights;
        init.takes_of_weight().then(|| init.to_string())
    }

    fn restored(&self, start: &str) -> Option<Self> {
        let init = InitLoraWeights::parse(start).filter(|init| init.takes_of_weight())?;
        let factor = if self.use_rslora { 2f64.sqrt() } else { 2.0 };
        let (ranks, alphas) = (self.rank_pattern.iter(), self.alpha_pattern.iter());
        // A file that was changed since is one as any other.
        let all_ranks = (self.rank_pattern.iter()).map(|(_, rank)| *rank);
        if !all_ranks
            .chain([self.rank])
            .all(|rank| rank.is_multiple_of(2))
        {
            return None;
        }
        Some(Self {
            rank: self.rank / 2,
            alpha: self.alpha / factor,
            rank_pattern: ranks.map(|(key, rank)| (key.into(), rank / 2)).collect(),
            alpha_pattern: (alphas.map(|(key, alpha)| (key.into(), alpha / factor))).collect(),
            init_lora_weights: init,
            ..self.clone()
        })
    }

    /// One that began with a part of the weight is one of twice the rank on the whole weight; see [`Start`](super::Start).
    fn stored(&self) -> Self {
        if !self.init_lora_weights.takes_of_weight() {
            return self.clone();
        }
        // The factor on the products stays as it is.
        let factor = if self.use_rslora { 2f64.sqrt() } else { 2.0 };
        let ranks = self.rank_pattern.iter();
        let alphas = self.alpha_pattern.iter();
        Self {
            rank: 2 * self.rank,
            alpha: factor * self.alpha,
            rank_pattern: ranks.map(|(key, rank)| (key.into(), 2 * rank)).collect(),
            alpha_pattern: (alphas.map(|(key, alpha)| (key.into(), factor * alpha))).collect(),
            init_lora_weights: InitLoraWeights::Uniform,
            ..self.clone()
        }
    }

    fn read(keys: &Keys<'_>, targets: &Targets) -> Result<Self, String> {
        file::read(keys, targets)
    }

    fn accepts(key: &str, value: &Value) -> Option<bool> {
        file::accepts(key, value)
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
        file::write(self, config)
    }
}

impl LayerMethod for LoraConfig {
    type Layer<B: Backend> = Lora<B>;

    fn fresh<B: ModelBackend>(&self, site: &Site<'_, B>) -> Lora<B> {
        Lora::new(self, site)
    }

    fn continues<B: Backend>(&self, present: &Self, layer: &Lora<B>, path: &str) -> bool {
        self.use_rslora == present.use_rslora
            && self.use_dora == layer.magnitude.is_some()
            && self.lora_bias == layer.bias.is_some()
            && self.bias == present.bias
            && layer.rank() == self.rank_of(path)
            && (layer.scale - self.scale_of(path)).abs() < 1e-9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphas_of_patterns_are_above_zero() {
        for alpha in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            let mut settings = Settings::default();
            let config = LoraConfig {
                alpha_pattern: [("q_proj".to_owned(), alpha)].into_iter().collect(),
                ..LoraConfig::default()
            };
            config.problems(&mut settings);
            let found = format!("{settings:?}");
            assert!(found.contains("alpha_pattern.q_proj"), "{found}");
        }
    }

    fn linear() -> Vec<LinearSpec> {
        let layer = |name: &str| LinearSpec {
            kind: LayerKind::Linear,
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
    fn what_began_with_a_part_of_the_weight_is_stored_with_twice_the_rank() {
        let mut config = LoraConfig {
            rank: 3,
            alpha: 6.0,
            init_lora_weights: InitLoraWeights::Olora,
            rank_pattern: [("v_proj".to_owned(), 2)].into_iter().collect(),
            alpha_pattern: [("q_proj".to_owned(), 8.0)].into_iter().collect(),
            ..LoraConfig::default()
        };
        for use_rslora in [false, true] {
            config.use_rslora = use_rslora;
            let stored = config.stored();
            let restored = stored.restored("olora").unwrap();
            assert_eq!(restored.start().as_deref(), Some("olora"));
            assert!(stored.restored("gaussian").is_none());
            assert_eq!(stored.init_lora_weights, InitLoraWeights::Uniform);
            for layer in linear() {
                let path = &layer.name;
                assert_eq!(stored.rank_of(path), 2 * config.rank_of(path));
                assert_eq!(restored.rank_of(path), config.rank_of(path));
                let off = stored.scale_of(path) - config.scale_of(path);
                assert!(off.abs() < 1e-12, "{path}: {off}");
            }
        }
        config.init_lora_weights = InitLoraWeights::Gaussian;
        assert_eq!(config.stored(), config);
    }

    #[test]
    fn a_bias_goes_with_neither_dora_nor_another_start() {
        let config = LoraConfig {
            lora_bias: true,
            use_dora: true,
            init_lora_weights: InitLoraWeights::Gaussian,
            loraplus_lr_ratio: Some(0.0),
            ..LoraConfig::default()
        };
        let mut settings = Settings::default();
        config.problems(&mut settings);
        let problems: Vec<String> = (settings.into_problems().iter())
            .map(|problem| problem.to_string())
            .collect();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(
            problems[0].contains("loraplus_lr_ratio: must be above 0"),
            "{problems:?}"
        );
        assert!(
            problems[2]
                .contains("lora_bias: goes with `init_lora_weights: true` only, found gaussian"),
            "{problems:?}"
        );
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
                &|c| c.init_lora_weights = InitLoraWeights::Pissa,
                "q_proj (4 x 4) has no 16 directions",
            ),
        ] {
            let error = config(change).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn embedding_and_head_are_chosen_by_name_and_have_what_tables_can_have() {
        let mut layers = linear();
        for (kind, name, sizes) in [
            (LayerKind::Embedding, "model.embed_tokens", [48, 4]),
            (LayerKind::Head, "lm_head", [4, 48]),
        ] {
            layers.push(LinearSpec {
                kind,
                name: name.into(),
                in_features: sizes[0],
                out_features: sizes[1],
            });
        }
        assert_eq!(
            LoraConfig::default().targets(&layers).unwrap(),
            [0, 1, 2, 3]
        );
        let config = |names: &[&str], change: &dyn Fn(&mut LoraConfig)| {
            let mut config = LoraConfig {
                rank: 2,
                target_modules: names.iter().map(ToString::to_string).collect(),
                ..LoraConfig::default()
            };
            change(&mut config);
            config
        };
        let both = config(&["all-linear", "embed_tokens", "lm_head"], &|_| {});
        assert_eq!(both.targets(&layers).unwrap(), [0, 1, 2, 3, 4, 5]);
        let shapes = |index: usize| both.tensors(&layers[index]);
        assert_eq!(
            shapes(4),
            [
                ("lora_embedding_A", vec![2, 48]),
                ("lora_embedding_B", vec![4, 2])
            ]
        );
        assert_eq!(
            shapes(5),
            [
                ("lora_A.weight", vec![2, 4]),
                ("lora_B.weight", vec![48, 2])
            ]
        );
        for (name, key, change) in [
            (
                "embed_tokens",
                "use_dora",
                &(|c: &mut LoraConfig| c.use_dora = true) as &dyn Fn(&mut LoraConfig),
            ),
            ("embed_tokens", "lora_bias", &|c| c.lora_bias = true),
            ("lm_head", "init_lora_weights", &|c| {
                c.init_lora_weights = InitLoraWeights::Olora
            }),
            ("lm_head", "dropout", &|c| c.dropout = 0.1),
        ] {
            let refused = config(&[name], change).targets(&layers).unwrap_err();
            let refused = refused.to_string();
            assert!(refused.contains(name) && refused.contains(key), "{refused}");
        }
        // PEFT drops nothing beside a look-up.
        let dropout = config(&["embed_tokens"], &|c| c.dropout = 0.1);
        assert!(dropout.targets(&layers).is_ok());
    }
}
