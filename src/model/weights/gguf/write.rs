//! A model as a GGUF file that llama.cpp runs.

use std::path::Path;

use super::file::{self, Tensor, Value};
use super::gemma;
use super::layout::{
    Architecture, FAMILIES, architecture_of, llama_cpp_name, permute, swap_groups, transpose,
};
use super::phi3;
use super::rope::StoredScaling;
use super::tensor_type::TensorType;
use super::vocabulary;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::config::{ModelConfig, TensorSpec};
use crate::model::weights::{WeightSource, read_tensor};
use crate::model::{Architecture as Family, BloomConfig, GatedDecoderConfig, Gpt2Config};
use crate::ops::Mask;

/// A model to write.
#[derive(Clone, Copy)]
pub struct GgufModel<'a> {
    /// What the file says it is.
    pub name: &'a str,
    /// The configuration.
    pub config: &'a ModelConfig,
    /// The weights, in Hugging Face's layout.
    pub weights: &'a dyn WeightSource,
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
}

impl GgufModel<'_> {
    /// Refuses what llama.cpp computes otherwise or cannot be told, before anything is read or written. Returns a warning for what it
    /// computes otherwise in long texts only.
    ///
    /// # Errors
    /// `Error::Usage`.
    pub fn check(&self) -> Result<Option<String>> {
        self.plan(TensorType::F16).map(|plan| plan.warning)
    }

    /// Writes the file; matrices are stored as `kind`, the embedding of a 4-bit file in 8 bits.
    ///
    /// # Errors
    /// Those of [`GgufModel::check`], of reading and of writing; `Error::Usage` for a number that f16 cannot hold.
    pub fn write(&self, path: &Path, kind: TensorType) -> Result<()> {
        let Plan {
            architecture,
            metadata,
            tensors,
            specs,
            factors,
            warning: _,
        } = self.plan(kind)?;
        file::write(path, &metadata, &tensors, |at| {
            let Some(spec) = specs.get(at) else {
                return Ok(factors[at - specs.len()].1.clone());
            };
            let values = read_tensor(self.weights, spec)?;
            tensors[at].kind.check_range(&spec.name, &values)?;
            Ok(stored(architecture, self.config, spec, values))
        })
    }

    fn plan(&self, kind: TensorType) -> Result<Plan> {
        let refuse = |message: String| Error::Usage(format!("--to a .gguf file: {message}"));
        let family = self.config.family();
        let architecture = architecture_of(family).ok_or_else(|| {
            let written = FAMILIES.map(|(family, _)| family).join(", ");
            refuse(format!(
                "models of family {family} are not written as GGUF; those of {written} are"
            ))
        })?;
        let tokenizer = self.tokenizer.to_json()?;
        let tokenizer = vocabulary::keys(&tokenizer, self.config.vocab_size()).map_err(refuse)?;
        let mut metadata = self.general(architecture, &tokenizer, kind);
        let mut factors = Vec::new();
        let mut warning = None;
        match self.config.architecture() {
            Family::Gated(config) => {
                let narrow = |mask: &Mask| match mask {
                    Mask::Causal => false,
                    Mask::Window(width) => *width < config.max_position_embeddings,
                    Mask::Full => true,
                };
                let is_narrow = config.masks.iter().any(narrow);
                if architecture == Architecture::Phi3 {
                    let window = phi3::window(config);
                    metadata.push(count(architecture, "attention.sliding_window", window));
                    warning = is_narrow.then(|| phi3::window_warning(window));
                } else if is_narrow {
                    return Err(refuse(
                        "the model attends within a window, which llama.cpp does not do for its family".into(),
                    ));
                }
                if let Some(other) = computed_otherwise(architecture, config) {
                    return Err(refuse(format!(
                        "llama.cpp does not compute {family} with {other}"
                    )));
                }
                let scaling = StoredScaling::new(architecture, config);
                let scaling =
                    scaling.map_err(|other| refuse(format!("llama.cpp cannot be told {other}")))?;
                let (eps, theta) = (config.rms_norm_eps, config.rope_theta);
                metadata.extend(self.decoder_keys(architecture, eps, theta, config.rotary_dim));
                let key = |key: &str| format!("{}.rope.scaling.{key}", architecture.name());
                let keys = scaling.metadata.into_iter();
                metadata.extend(keys.map(|(name, value)| (key(name), value)));
                factors = scaling.factors;
            }
            Family::Gpt2(config) => metadata.extend(gpt2_keys(config)),
            Family::Gemma(config) => {
                let (eps, theta) = (config.rms_norm_eps, config.rope_theta);
                metadata.extend(self.decoder_keys(architecture, eps, theta, config.head_dim));
                metadata.extend(gemma::keys(architecture, config).map_err(refuse)?);
            }
            Family::Bloom(config) => {
                if config.apply_residual_connection_post_layernorm {
                    return Err(refuse(
                        "the residual stream continues from norms, which llama.cpp does not compute".into(),
                    ));
                }
                metadata.extend(bloom_keys(config));
            }
            Family::GptNeox(_) | Family::Opt(_) => {
                unreachable!("{family} has no name in llama.cpp above")
            }
        }
        metadata.extend(tokenizer);
        metadata.extend(self.special_tokens());
        let specs: Vec<TensorSpec> = (self.config.tensors().into_iter())
            .filter(|spec| spec.tied_to.is_none())
            .collect();
        let tensors = specs.iter().map(|spec| {
            let name = llama_cpp_name(architecture, &spec.name)
                .ok_or_else(|| refuse(format!("llama.cpp has no name for {}", spec.name)))?;
            let mut shape = spec.shape.clone();
            if transposed(architecture, spec) {
                shape.reverse();
            }
            let kind = match shape.as_slice() {
                [_, width] if name == "token_embd.weight" && kind == TensorType::Q4_0 => {
                    TensorType::Q8_0.of_rows(*width)
                }
                // llama.cpp adds positions in f32.
                [_, _] if name == "position_embd.weight" => TensorType::F32,
                [_, width] => kind.of_rows(*width),
                _ => TensorType::F32,
            };
            Ok(Tensor { name, shape, kind })
        });
        let mut tensors = tensors.collect::<Result<Vec<Tensor>>>()?;
        tensors.extend(factors.iter().map(|(name, values)| Tensor {
            name: (*name).into(),
            shape: vec![values.len()],
            kind: TensorType::F32,
        }));
        Ok(Plan {
            architecture,
            metadata,
            tensors,
            specs,
            factors,
            warning,
        })
    }

    fn general(
        &self,
        architecture: Architecture,
        tokenizer: &[(String, Value)],
        kind: TensorType,
    ) -> Vec<(String, Value)> {
        let has = |token: &str| {
            let is_token = |(_, value): &(String, Value)| matches!(value, Value::Texts(texts) if texts.iter().any(|text| text == token));
            tokenizer
                .iter()
                .filter(|(key, _)| key == "tokenizer.ggml.tokens")
                .any(is_token)
        };
        let strips = phi3::markers_strip(architecture, has);
        let text = |key: &str, text: &str| (format!("general.{key}"), Value::Text(text.into()));
        let count = |key: &str, x: u32| (format!("general.{key}"), Value::U32(x));
        vec![
            text("architecture", architecture.name()),
            text("type", "model"),
            text("name", &phi3::name(self.name, strips)),
            count("file_type", kind.file_type()),
            count("quantization_version", 2),
        ]
    }

    /// Of decoders with RMSNorm, rotary positions and a gated MLP; `theta`: base of the rotary frequencies.
    fn decoder_keys(
        &self,
        architecture: Architecture,
        eps: f64,
        theta: f64,
        rotary_dim: usize,
    ) -> Vec<(String, Value)> {
        let (config, layout) = (self.config, self.config.head_layout());
        let count = |key: &str, x: usize| count(architecture, key, x);
        vec![
            count("vocab_size", config.vocab_size()),
            count("context_length", config.max_positions()),
            count("embedding_length", config.hidden_size()),
            count("block_count", config.num_layers()),
            count("feed_forward_length", config.intermediate_size()),
            count("attention.head_count", layout.heads),
            count("attention.head_count_kv", layout.kv_heads),
            count("attention.key_length", layout.head_dim),
            count("attention.value_length", layout.head_dim),
            count("rope.dimension_count", rotary_dim),
            number(architecture, "attention.layer_norm_rms_epsilon", eps),
            number(architecture, "rope.freq_base", theta),
        ]
    }

    fn special_tokens(&self) -> Vec<(String, Value)> {
        let tokenizer = self.tokenizer;
        let ids = [
            ("bos", tokenizer.bos_id()),
            ("eos", Some(tokenizer.eos_id())),
            ("padding", tokenizer.pad_id()),
        ];
        let ids = ids.into_iter().filter_map(|(name, id)| {
            Some((format!("tokenizer.ggml.{name}_token_id"), Value::U32(id?)))
        });
        // llama.cpp ends a response at the end of a turn besides EOS.
        let turn_end = tokenizer
            .stop_ids()
            .iter()
            .find(|id| **id != tokenizer.eos_id());
        let turn_end = turn_end.map(|id| ("tokenizer.ggml.eot_token_id".into(), Value::U32(*id)));
        let starts = tokenizer
            .encode_start("a")
            .is_ok_and(|ids| ids.first().copied() == tokenizer.bos_id());
        let adds = ("tokenizer.ggml.add_bos_token".into(), Value::Bool(starts));
        let template = tokenizer.chat().ok().map(|template| {
            (
                "tokenizer.chat_template".into(),
                Value::Text(template.source().to_owned()),
            )
        });
        ids.chain(turn_end).chain([adds]).chain(template).collect()
    }
}

/// What is written.
struct Plan {
    architecture: Architecture,
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
    /// Of the same tensors, but for those of factors at the end.
    specs: Vec<TensorSpec>,
    /// Of rotary wavelengths.
    factors: Vec<(&'static str, Vec<f32>)>,
    /// What llama.cpp computes otherwise in long texts.
    warning: Option<String>,
}

/// A whole number of an architecture's own.
pub(super) fn count(architecture: Architecture, key: &str, x: usize) -> (String, Value) {
    (
        format!("{}.{key}", architecture.name()),
        Value::U32(x as u32),
    )
}

/// A number of an architecture's own.
pub(super) fn number(architecture: Architecture, key: &str, x: f64) -> (String, Value) {
    (
        format!("{}.{key}", architecture.name()),
        Value::F32(x as f32),
    )
}

/// What llama.cpp's graph of the architecture has otherwise or not at all.
fn computed_otherwise(
    architecture: Architecture,
    config: &GatedDecoderConfig,
) -> Option<&'static str> {
    let mut layers = config.rotated_layers.iter().enumerate();
    let every_fourth = layers.all(|(layer, rotated)| *rotated != (layer + 1).is_multiple_of(4));
    match architecture {
        Architecture::SmolLm3 if !every_fourth => {
            Some("other layers without rotation than every fourth")
        }
        Architecture::Olmo2 if config.tie_word_embeddings => {
            Some("an output head that is the embedding")
        }
        Architecture::Olmo2 if config.qkv_bias => Some("biases"),
        Architecture::Olmo2 | Architecture::Phi3
            if config.layout().q_width() != config.hidden_size =>
        {
            Some("heads that together are not as wide as the hidden state")
        }
        _ => None,
    }
}

fn bloom_keys(config: &BloomConfig) -> Vec<(String, Value)> {
    let count = |key: &str, x: usize| count(Architecture::Bloom, key, x);
    let eps = config.layer_norm_epsilon;
    vec![
        count("vocab_size", config.vocab_size),
        count("context_length", config.seq_length),
        count("embedding_length", config.hidden_size),
        count("block_count", config.n_layer),
        count("feed_forward_length", 4 * config.hidden_size),
        count("attention.head_count", config.n_head),
        count("attention.head_count_kv", config.n_head),
        number(Architecture::Bloom, "attention.layer_norm_epsilon", eps),
    ]
}

fn gpt2_keys(config: &Gpt2Config) -> Vec<(String, Value)> {
    let count = |key: &str, x: usize| count(Architecture::Gpt2, key, x);
    let eps = config.layer_norm_epsilon;
    vec![
        count("vocab_size", config.vocab_size),
        count("context_length", config.n_positions),
        count("embedding_length", config.n_embd),
        count("block_count", config.n_layer),
        count("feed_forward_length", config.n_inner),
        count("attention.head_count", config.n_head),
        number(Architecture::Gpt2, "attention.layer_norm_epsilon", eps),
    ]
}

/// Whether llama.cpp has the transpose.
fn transposed(architecture: Architecture, spec: &TensorSpec) -> bool {
    architecture == Architecture::Gpt2
        && spec.shape.len() == 2
        && spec.name.starts_with("transformer.h.")
}

/// Values in llama.cpp's layout.
fn stored(
    architecture: Architecture,
    config: &ModelConfig,
    spec: &TensorSpec,
    values: Vec<f32>,
) -> Vec<f32> {
    if transposed(architecture, spec) {
        return transpose(&values, spec.shape[0]);
    }
    if architecture.norms_plus_one() && spec.shape.len() == 1 && spec.name.ends_with("norm.weight")
    {
        return values.into_iter().map(|x| x + 1.0).collect();
    }
    let width = match spec.shape.as_slice() {
        [_, width] => *width,
        _ => 1,
    };
    with_rows_in_order(architecture, config, &spec.name, values, width)
}

/// The rows, `width` values each, of a layer or a tensor of it in llama.cpp's order.
pub(super) fn with_rows_in_order(
    architecture: Architecture,
    config: &ModelConfig,
    name: &str,
    values: Vec<f32>,
    width: usize,
) -> Vec<f32> {
    let of = |layer: &str| name.contains(layer);
    if architecture == Architecture::Bloom && of(".self_attention.query_key_value") {
        return swap_groups(&values, [config.head_layout().heads, 3]);
    }
    let layout = config.head_layout();
    if !architecture.interleaves() {
        values
    } else if of(".self_attn.q_proj") {
        permute(&values, layout.heads, width)
    } else if of(".self_attn.k_proj") {
        permute(&values, layout.kv_heads, width)
    } else {
        values
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::model::config::RopeScaling;
    use crate::model::weights::{GgufFile, RandomSource};
    use crate::rng::Seed;

    fn tokenizer() -> Tokenizer {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        Tokenizer::load(&root.join("models/tiny")).unwrap()
    }

    fn config(own: &Json) -> ModelConfig {
        let mut config = json!({
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
            "max_position_embeddings": 64, "vocab_size": 2100, "eos_token_id": 0, "bos_token_id": 0,
        });
        for (key, value) in own.as_object().unwrap() {
            config[key] = value.clone();
        }
        ModelConfig::from_value(config).unwrap()
    }

    /// Writes a model with random weights and opens the file.
    fn written(config: &ModelConfig, kind: TensorType) -> (RandomSource, GgufFile) {
        let weights = RandomSource::new(config, Seed::new(3));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let model = GgufModel {
            name: "m",
            config,
            weights: &weights,
            tokenizer: &tokenizer(),
        };
        model.write(&path, kind).unwrap();
        // Windows cannot remove an open file; the handle stays valid elsewhere.
        let file = GgufFile::open(path).unwrap();
        (weights, file)
    }

    #[test]
    fn what_is_written_is_read_again() {
        for own in [
            json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true, "rope_theta": 5e5}),
            json!({"model_type": "mistral", "sliding_window": null, "head_dim": 16, "tie_word_embeddings": true}),
            json!({"model_type": "qwen2"}),
            json!({"model_type": "qwen3", "head_dim": 16}),
            json!({"model_type": "qwen2", "rope_scaling": {"type": "linear", "factor": 2.5}}),
            json!({"model_type": "qwen3", "head_dim": 16,
                   "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
            json!({"model_type": "phi3", "partial_rotary_factor": 0.75, "original_max_position_embeddings": 16,
                   "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1, 2.5], "long_factor": [1.0, 3.0, 9.7],
                                    "attention_factor": 1.25}}),
            json!({"model_type": "phi3", "sliding_window": 24}),
            json!({"model_type": "olmo2"}),
            json!({"model_type": "smollm3", "num_hidden_layers": 4, "attention_bias": true}),
            json!({"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 64}),
            json!({"model_type": "gemma", "head_dim": 16, "hidden_act": "gelu_pytorch_tanh"}),
            json!({"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24}),
            json!({"model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24,
                   "num_hidden_layers": 7, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": 15.0}),
            json!({"model_type": "bloom", "n_layer": 2, "seq_length": 64}),
        ] {
            let config = config(&own);
            let (weights, file) = written(&config, TensorType::F32);
            for spec in config.tensors() {
                if spec.tied_to.is_none() {
                    assert_eq!(
                        file.shape(&spec.name),
                        Some(spec.shape.clone()),
                        "{own} {}",
                        spec.name
                    );
                    let (found, expected) = (file.read(&spec.name), weights.read(&spec.name));
                    assert_eq!(found.unwrap(), expected.unwrap(), "{own} {}", spec.name);
                }
            }
            // Mistral is a llama to llama.cpp, and is the same computation.
            let read = file.config().unwrap();
            match (config.architecture(), read.architecture()) {
                (Family::Gated(expected), Family::Gated(found)) => {
                    let expected = GatedDecoderConfig {
                        initializer_range: found.initializer_range,
                        ..expected.clone()
                    };
                    assert_eq!(*found, expected, "{own}");
                }
                (Family::Gpt2(expected), Family::Gpt2(found)) => assert_eq!(found, expected),
                (Family::Gemma(expected), Family::Gemma(found)) => assert_eq!(found, expected),
                (Family::Bloom(expected), Family::Bloom(found)) => assert_eq!(found, expected),
                _ => panic!("{own}: another family"),
            }
        }
    }

    #[test]
    fn matrices_are_blocks_where_their_rows_can_be() {
        let config = config(&json!({"model_type": "llama", "intermediate_size": 48}));
        let (weights, file) = written(&config, TensorType::Q4_0);
        let layer = |name: &str| format!("model.layers.0.{name}.weight");
        for (name, kind, most) in [
            ("model.embed_tokens.weight".to_owned(), "Q8_0", 0.005),
            // The scale is an eighth of the largest entry, whose opposite becomes seven eighths.
            (layer("self_attn.q_proj"), "Q4_0", 0.126),
            (layer("mlp.down_proj"), "F16", 1e-3),
            (layer("input_layernorm"), "F32", 1e-9),
        ] {
            assert_eq!(file.dtype(&name).unwrap().to_string(), kind, "{name}");
            let (found, expected) = (file.read(&name).unwrap(), weights.read(&name).unwrap());
            let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let off = off.fold(0.0f32, f32::max) / largest;
            assert!(off <= most, "{name}: {off}");
        }
    }

    #[test]
    fn the_tokenizer_comes_back() {
        let (_, file) = written(&config(&json!({"model_type": "llama"})), TensorType::F32);
        let (expected, found) = (tokenizer(), file.tokenizer().unwrap().unwrap());
        for text in [
            "Once upon a time",
            " 12 345,6\n\n\t x",
            "na\u{ef}ve \u{4e2d}\u{6587} \u{1f600}",
            "<|endoftext|>a",
        ] {
            assert_eq!(
                found.encode_document(text).unwrap(),
                expected.encode_document(text).unwrap(),
                "{text:?}"
            );
        }
        assert_eq!(found.stop_ids(), expected.stop_ids());
        assert_eq!(
            (found.bos_id(), found.has_chat()),
            (expected.bos_id(), false)
        );
    }

    #[test]
    fn llama_3_stretches_by_factors() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 64});
        let config = config(
            &json!({"model_type": "llama", "rope_theta": 1e4, "rope_scaling": scaling, "head_dim": 16}),
        );
        let (_, file) = written(&config, TensorType::F32);
        let factors = file.read(super::super::rope::FACTORS).unwrap();
        // Wavelengths 2 pi 10^(i / 2): 6.3 stays, 20 and 63 are blended, those above 64 are eight times as long.
        assert_eq!(factors.len(), 8);
        assert_eq!((factors[0], factors[3..].to_vec()), (1.0, vec![8.0; 5]));
        assert!(
            factors[1] > 1.0 && factors[1] < factors[2] && factors[2] < 8.0,
            "{factors:?}"
        );
        // Without a config.json the factors are read as those of all rows.
        let read = file.config().unwrap();
        let Family::Gated(read) = read.architecture() else {
            panic!("llama");
        };
        let Some(RopeScaling::LongRope(long)) = &read.rope_scaling else {
            panic!("{:?}", read.rope_scaling);
        };
        let values: Vec<f32> = long.short_factor.iter().map(|&x| x as f32).collect();
        assert_eq!((values, &long.short_factor), (factors, &long.long_factor));
        assert_eq!(long.attention_factor, 1.0);
    }

    /// As llama.cpp's converter does: the window of a Phi-3 is written, and zero where there is none.
    #[test]
    fn a_window_of_phi_3_is_written_with_a_warning() {
        for (window, stored, warns) in [
            (json!(24), 24, true),
            (json!(64), 64, false),
            (json!(null), 0, false),
        ] {
            let config = config(&json!({"model_type": "phi3", "sliding_window": window}));
            let weights = RandomSource::new(&config, Seed::new(3));
            let model = GgufModel {
                name: "m",
                config: &config,
                weights: &weights,
                tokenizer: &tokenizer(),
            };
            let plan = model.plan(TensorType::F16).unwrap();
            let key = "phi3.attention.sliding_window";
            let value = plan.metadata.iter().find(|(name, _)| name == key);
            assert!(
                matches!(value, Some((_, Value::U32(x))) if *x == stored),
                "{window}"
            );
            let warning = model.check().unwrap();
            assert_eq!(warning.is_some(), warns, "{window}");
            let said = warning.unwrap_or_default();
            assert!(!warns || said.contains("window of 24 tokens"), "{said}");
        }
    }

    #[test]
    fn what_llama_cpp_does_otherwise_is_refused() {
        let refused = |own: Json| {
            let config = config(&own);
            let weights = RandomSource::new(&config, Seed::new(3));
            let model = GgufModel {
                name: "m",
                config: &config,
                weights: &weights,
                tokenizer: &tokenizer(),
            };
            model.check().unwrap_err().to_string()
        };
        let window = refused(json!({"model_type": "mistral", "sliding_window": 16}));
        assert!(window.contains("within a window"), "{window}");
        let family = refused(json!({"model_type": "gpt_neox"}));
        assert!(
            family.contains("family gpt_neox are not written"),
            "{family}"
        );
        let gemma = |key: &str, value: Json| {
            let mut own = json!({"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24});
            own[key] = value;
            refused(own)
        };
        for (key, value, named) in [
            ("query_pre_attn_scalar", json!(12), "query_pre_attn_scalar"),
            ("attn_logit_softcapping", Json::Null, "family's caps"),
            (
                "layer_types",
                json!(["full_attention", "sliding_attention"]),
                "windows in other layers",
            ),
            (
                "tie_word_embeddings",
                json!(false),
                "an output head of its own",
            ),
        ] {
            let found = gemma(key, value);
            assert!(found.contains(named), "{key}: {found}");
        }
        let pattern = refused(json!({"model_type": "smollm3", "no_rope_layer_interval": 2}));
        assert!(
            pattern.contains("other layers without rotation than every fourth"),
            "{pattern}"
        );
        let dynamic = json!({"type": "dynamic", "factor": 2.0});
        let dynamic = refused(json!({"model_type": "llama", "rope_scaling": dynamic}));
        assert!(
            dynamic.contains("cannot be told llama with RoPE scaling dynamic"),
            "{dynamic}"
        );
        let yarn = json!({"type": "yarn", "factor": 2.0, "beta_fast": 16});
        let yarn = refused(json!({"model_type": "qwen3", "rope_scaling": yarn}));
        assert!(yarn.contains("yarn with attention_factor"), "{yarn}");
        let rows = refused(json!({"model_type": "llama", "vocab_size": 9}));
        assert!(
            rows.contains("has no row among the embedding's 9"),
            "{rows}"
        );
    }
}
