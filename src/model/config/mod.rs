//! `config.json` of the supported families, and the tensors that it implies.

pub(super) mod keys;
mod limits;
pub(super) mod rope;

use std::path::Path;

use serde_json::{Map, Value, json};

use burn_ndarray::NdArray;

pub use super::rope_scaling::{DynamicNtk, Llama3, LongRope, RopeScaling, Yarn};

use super::encoder::is_encoder;
use super::family::Family;
use super::gemma3;
use super::weights::{StoreAs, gguf};
use super::{Architecture, FAMILIES, LanguageModel};
use crate::data::lfs_pointer;
use crate::error::{Error, Result};
use crate::ops::HeadLayout;
use crate::outside;
use crate::params::{ParamKind, Parameters};
use crate::peft::{Adaptable, AdapterSpec};
pub use crate::peft::{LayerKind, LinearSpec};
use crate::suggest::nearest;
use keys::Keys;

/// The supported values of `model_type`.
pub fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

/// The supported values of `model_type`, for messages.
fn family_names() -> String {
    families().collect::<Vec<_>>().join(", ")
}

/// What is supported of other versions of the family `found`, and under names like it; for messages.
fn near_families(found: &str) -> String {
    let stem = |name: &str| {
        let end = name.find(|c: char| !c.is_ascii_alphabetic());
        name[..end.unwrap_or(name.len())].to_ascii_lowercase()
    };
    let typed = nearest(found, families());
    let is_near = |name: &&str| stem(name) == stem(found) || typed == Some(*name);
    match families().filter(is_near).collect::<Vec<_>>().as_slice() {
        [] => String::new(),
        near => format!("; near it: {}", near.join(", ")),
    }
}

/// A model's `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    family: &'static Family,
    architecture: Architecture,
    /// The file's content; written on export.
    raw: Map<String, Value>,
    /// The first row of embedding and head that is not that of the base's files; `None` if all are.
    pub(super) own_rows_from: Option<usize>,
}

/// The sizes of a configuration, under names common to all families.
pub(super) struct Sizes {
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    pub(super) output: usize,
    pub(super) intermediate: usize,
    pub(super) layers: usize,
    pub(super) layout: HeadLayout,
    pub(super) max_positions: usize,
    pub(super) learned_positions: bool,
    pub(super) initializer_range: f64,
    /// Initial weight of norms.
    pub(super) fresh_norm: f32,
    pub(super) tied: bool,
}

/// One parameter as Hugging Face stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face name, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Stored shape.
    pub shape: Vec<usize>,
    /// What it is for.
    pub kind: ParamKind,
    /// The parameter that this one is tied to; a tied tensor may be absent from a file.
    pub tied_to: Option<String>,
}

impl ModelConfig {
    /// Reads the configuration of a model: a `config.json`, a folder that holds one, or a weight file with one beside it.
    ///
    /// A GGUF file without a `config.json` beside it is described by its own metadata.
    ///
    /// # Errors
    /// `Error::Io` and `Error::Format`, as in [`ModelConfig::from_value`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let ends_with = |e: &str| path.extension().is_some_and(|x| x.eq_ignore_ascii_case(e));
        let file = if path.is_dir() {
            path.join("config.json")
        } else if gguf::is_gguf(path) || ends_with("safetensors") {
            path.with_file_name("config.json")
        } else {
            path.to_path_buf()
        };
        if !file.exists() {
            if gguf::is_gguf(path) {
                return gguf::GgufFile::open(path)?.config();
            }
            if path.is_dir()
                && let Some(weights) = super::weights::only_gguf(path)?
            {
                return gguf::GgufFile::open(&weights)?.config();
            }
        }
        let text = outside::read_text(&file, outside::SETTINGS)?;
        if let Some(error) = lfs_pointer(&file, text.as_bytes()) {
            return Err(error);
        }
        let value = serde_json::from_str(&text)
            .map_err(|e| Error::format(&file, format!("not valid JSON: {e}")))?;
        Self::parse(&file, value)
    }

    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// `Error::Format` for an unknown family, a missing or ill-typed key, inconsistent sizes, and unsupported features that would
    /// change the numbers (other RoPE scalings, other activations).
    pub fn from_value(value: Value) -> Result<Self> {
        Self::parse(Path::new("config.json"), value)
    }

    pub(crate) fn parse(path: &Path, value: Value) -> Result<Self> {
        let Value::Object(mut raw) = value else {
            return Err(Error::format(path, "expected a JSON object"));
        };
        let quantization = raw.shift_remove("quantization_config");
        let keys = Keys { path, raw: &raw };
        keys.check_quantization(quantization.as_ref())?;
        if keys.string("model_type")? == Some(gemma3::WITH_IMAGES) {
            raw = gemma3::text_config(&keys)?;
        }
        let keys = Keys { path, raw: &raw };
        keys.check_numbers()?;
        let name = keys.string("model_type")?.ok_or_else(|| {
            keys.error(format!(
                "no \"model_type\"; expected one of {}",
                family_names()
            ))
        })?;
        let family = FAMILIES.iter().find(|family| family.model_type == name);
        if is_encoder(name) {
            return Err(Error::Usage(format!(
                "{}: the model is an encoder (model_type \"{name}\"), which scores texts and generates none; as a reward of a recipe it \
                 is `Classifier(model: \"..\", label: \"..\")`, and `temper score --model` gives the scores of its labels",
                path.display()
            )));
        }
        let family: &'static Family = family.ok_or_else(|| {
            keys.error(format!(
                "model_type \"{name}\" is not supported{}; supported are {}",
                near_families(name),
                family_names()
            ))
        })?;
        let architecture = (family.parse)(&keys)?;
        Ok(Self {
            family,
            architecture,
            raw,
            own_rows_from: None,
        })
    }

    /// The configuration by architecture.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The `config.json` for exported weights: the original with `architectures` set to the causal model or, for `classification`, to
    /// the sequence classifier with one label.
    pub fn to_json(&self, classification: bool) -> Value {
        let mut raw = self.raw.clone();
        let Family {
            causal, classifier, ..
        } = self.family;
        // transformers derives num_labels from the two label maps and never writes it.
        raw.shift_remove("num_labels");
        if classification {
            raw.insert("architectures".into(), json!([classifier]));
            raw.insert("id2label".into(), json!({"0": "LABEL_0"}));
            raw.insert("label2id".into(), json!({"LABEL_0": 0}));
        } else {
            raw.insert("architectures".into(), json!([causal]));
            raw.shift_remove("id2label");
            raw.shift_remove("label2id");
        }
        Value::Object(raw)
    }

    /// [`ModelConfig::to_json`] for weights stored as `dtype`: sets the keys `dtype` and, if the original has it, `torch_dtype`.
    /// transformers 5 loads a model in this number format.
    pub fn to_json_as(&self, classification: bool, dtype: StoreAs) -> Value {
        let mut json = self.to_json(classification);
        set_dtype(&mut json, dtype);
        json
    }

    /// The same model with an untied output head.
    ///
    /// # Errors
    /// As [`ModelConfig::from_value`].
    pub fn untied(&self) -> Result<Self> {
        let mut raw = self.raw().clone();
        raw.insert("tie_word_embeddings".into(), json!(false));
        Self::from_value(Value::Object(raw))
    }

    /// Whether the configuration is of a sequence classifier (a reward model).
    pub fn is_classifier(&self) -> bool {
        self.raw()
            .get("architectures")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .any(|a| a.ends_with("ForSequenceClassification"))
    }

    /// The name of the token embedding.
    pub fn embedding_name(&self) -> &'static str {
        self.family.embedding
    }

    /// Names of the embedding and the output head, which may be tied.
    pub fn tables(&self) -> [&'static str; 2] {
        [self.family.embedding, self.family.head]
    }

    /// The value of `model_type`.
    pub fn family(&self) -> &'static str {
        self.family.model_type
    }

    /// The file's content.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// Rows of the token embedding.
    pub fn vocab_size(&self) -> usize {
        self.architecture.sizes().vocab
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.architecture.sizes().hidden
    }

    /// Width of the final states, which heads read: the hidden size, or OPT's `word_embed_proj_dim`.
    pub fn output_size(&self) -> usize {
        self.architecture.sizes().output
    }

    /// Width of the MLP.
    pub fn intermediate_size(&self) -> usize {
        self.architecture.sizes().intermediate
    }

    /// Attention heads.
    pub fn head_layout(&self) -> HeadLayout {
        self.architecture.sizes().layout
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.architecture.sizes().layers
    }

    /// Longest row in tokens.
    pub fn max_positions(&self) -> usize {
        self.architecture.sizes().max_positions
    }

    /// Whether positions are rows of a table, so that rows longer than [`ModelConfig::max_positions`] cannot be computed.
    pub fn has_learned_positions(&self) -> bool {
        self.architecture.sizes().learned_positions
    }

    /// Standard deviation of initial weights.
    pub fn initializer_range(&self) -> f64 {
        self.architecture.sizes().initializer_range
    }

    /// Initial weight of norms.
    pub fn fresh_norm(&self) -> f32 {
        self.architecture.sizes().fresh_norm
    }

    /// Whether the output head is the token embedding.
    pub fn tie_word_embeddings(&self) -> bool {
        self.architecture.sizes().tied
    }

    /// The ids of `eos_token_id` (one number or a list); empty if the file names none.
    pub fn eos_ids(&self) -> Vec<u32> {
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.raw().get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
            Some(value) => id(value).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// The parameters of the causal model with Hugging Face's names and shapes, the output head last.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut specs = self.walk(true);
        if self.tie_word_embeddings() {
            specs.push(TensorSpec {
                name: self.family.head.into(),
                shape: vec![self.vocab_size(), self.output_size()],
                kind: ParamKind::Embedding,
                tied_to: Some(self.family.embedding.into()),
            });
        }
        specs
    }

    /// The parameters without any head.
    pub fn backbone_tensors(&self) -> Vec<TensorSpec> {
        self.walk(false)
    }

    /// The tensors of an unfilled model.
    fn walk(&self, with_head: bool) -> Vec<TensorSpec> {
        let mut specs = Vec::new();
        self.unfilled(with_head)
            .for_each_parameter(&mut |meta, slot| {
                let tensors = meta.file_tensors(&slot.shape()).into_iter();
                specs.extend(tensors.map(|(name, shape)| spec(meta.kind, name, &shape)));
            });
        specs
    }

    /// An unfilled model, for names and shapes. It holds no numbers, so the backend does not matter.
    fn unfilled(&self, with_head: bool) -> LanguageModel<NdArray> {
        LanguageModel::new(self, with_head, &Default::default())
    }

    /// The parameters of the sequence classifier with one label: the backbone and `score.weight`, `[1, output size]`.
    pub fn classifier_tensors(&self) -> Vec<TensorSpec> {
        let mut specs = self.backbone_tensors();
        specs.push(spec(
            ParamKind::Score,
            "score.weight".into(),
            &[1, self.output_size()],
        ));
        specs
    }

    /// Number of parameters of the causal model, tied ones counted once.
    pub fn num_params(&self) -> usize {
        self.tensors()
            .iter()
            .filter(|t| t.tied_to.is_none())
            .map(|t| t.shape.iter().product::<usize>())
            .sum()
    }

    /// The number of those in the embedding and in an output head of its own.
    pub fn num_table_params(&self) -> usize {
        let table = |t: &TensorSpec| t.name == self.family.embedding || t.name == self.family.head;
        self.tensors()
            .iter()
            .filter(|t| t.tied_to.is_none() && table(t))
            .map(|t| t.shape.iter().product::<usize>())
            .sum()
    }

    /// Every linear layer except the output head, in order: PEFT's "all-linear".
    pub fn linear_modules(&self) -> Vec<LinearSpec> {
        let mut modules = Vec::new();
        self.unfilled(false).for_each_projection(&mut |projection| {
            let in_features = projection.inputs();
            modules.extend(projection.layers().iter().map(|layer| LinearSpec {
                kind: LayerKind::Linear,
                name: layer.path.clone(),
                in_features,
                out_features: layer.width,
            }));
        });
        modules
    }

    /// Every layer that adapters of `spec` may be put on: the linear layers, then, for a method that is for tables too, the embedding and
    /// the output head.
    pub fn adaptable_modules(&self, spec: &AdapterSpec) -> Vec<LinearSpec> {
        let mut modules = self.linear_modules();
        if spec.adapts_tables() {
            let (vocab, sizes) = (self.vocab_size(), self.decoder_shape());
            let path = |name: &str| name.trim_end_matches(".weight").to_owned();
            modules.push(LinearSpec {
                kind: LayerKind::Embedding,
                name: path(self.family.embedding),
                in_features: vocab,
                out_features: sizes.embedding,
            });
            modules.push(LinearSpec {
                kind: LayerKind::Head,
                // Of every family in transformers 5, whatever its files call the tensor.
                name: "lm_head".to_owned(),
                in_features: self.output_size(),
                out_features: vocab,
            });
        }
        modules
    }
}

/// Sets the number format of weights in a `config.json`.
pub fn set_dtype(config: &mut Value, dtype: StoreAs) {
    let Some(config) = config.as_object_mut() else {
        return;
    };
    let old_name = config.contains_key("torch_dtype");
    for key in ["torch_dtype", "dtype"] {
        if config.contains_key(key) || (key == "dtype" && !old_name) {
            config.insert(key.into(), json!(dtype.torch_name()));
        }
    }
}

fn spec(kind: ParamKind, name: String, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name,
        shape: shape.to_vec(),
        kind,
        tied_to: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GatedDecoderConfig, LocalRope};
    use crate::ops::{Gate, Gelu, Mask};

    fn smollm2() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "attention_bias": false, "eos_token_id": 2, "head_dim": 64,
            "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.02, "intermediate_size": 1536,
            "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 9,
            "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}, "tie_word_embeddings": true,
            "vocab_size": 49152
        })
    }

    fn qwen3() -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "eos_token_id": [151645, 151643],
            "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
            "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
            "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
            "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936
        })
    }

    fn gpt2() -> Value {
        json!({
            "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
            "vocab_size": 50257, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "n_inner": null
        })
    }

    fn qwen2() -> Value {
        json!({
            "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
            "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
            "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "sliding_window": 32768, "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936
        })
    }

    fn pythia() -> Value {
        json!({
            "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072,
            "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 12,
            "num_hidden_layers": 12, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
            "use_parallel_residual": true, "vocab_size": 50304
        })
    }

    fn opt() -> Value {
        json!({
            "activation_function": "relu", "architectures": ["OPTForCausalLM"], "do_layer_norm_before": true,
            "_remove_final_layer_norm": false, "ffn_dim": 3072, "hidden_size": 768, "max_position_embeddings": 2048,
            "model_type": "opt", "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 50272,
            "word_embed_proj_dim": 768
        })
    }

    fn opt_350m() -> Value {
        json!({
            "do_layer_norm_before": false, "ffn_dim": 4096, "hidden_size": 1024, "max_position_embeddings": 2048,
            "model_type": "opt", "num_attention_heads": 16, "num_hidden_layers": 24, "vocab_size": 50272,
            "word_embed_proj_dim": 512
        })
    }

    /// bigscience/bloom-560m's file.
    fn bloom() -> Value {
        json!({
            "apply_residual_connection_post_layernorm": false, "attention_softmax_in_fp32": true, "layer_norm_epsilon": 1e-5,
            "model_type": "bloom", "n_embed": 1024, "n_inner": null, "n_layer": 24, "num_attention_heads": 16,
            "offset_alibi": 100, "pretraining_tp": 1, "seq_length": 2048, "slow_but_exact": false, "vocab_size": 250880
        })
    }

    fn phi3() -> Value {
        json!({
            "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
            "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
            "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 10000.0,
            "sliding_window": 2047, "tie_word_embeddings": false, "vocab_size": 32064
        })
    }

    fn olmo2() -> Value {
        json!({
            "attention_bias": false, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
            "max_position_embeddings": 4096, "model_type": "olmo2", "num_attention_heads": 16, "num_hidden_layers": 16,
            "num_key_value_heads": 16, "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 500000,
            "tie_word_embeddings": false, "vocab_size": 100352
        })
    }

    fn smollm3() -> Value {
        json!({
            "attention_bias": false, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008,
            "max_position_embeddings": 65536, "mlp_bias": false, "model_type": "smollm3", "num_attention_heads": 16,
            "num_hidden_layers": 36, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_scaling": null,
            "rope_theta": 5000000.0, "sliding_window": null, "use_sliding_window": false, "vocab_size": 128256
        })
    }

    fn with(mut value: Value, key: &str, to: Value) -> Value {
        value[key] = to;
        value
    }

    fn architecture(value: Value) -> Architecture {
        let config = ModelConfig::from_value(value).unwrap();
        config.architecture().clone()
    }

    fn gated(value: Value) -> GatedDecoderConfig {
        match architecture(value) {
            Architecture::Gated(config) => config,
            other => panic!("{other:?}"),
        }
    }

    fn message(value: Value) -> String {
        ModelConfig::from_value(value).unwrap_err().to_string()
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        // SmolLM2-135M: 134,515,008; Qwen2.5-0.5B: 494,032,768; Qwen3-0.6B: 596,049,920 without the stored head;
        // GPT-2 small: 124,439,808; Pythia-160M: 162,322,944; OPT-125M: 125,239,296; OPT-350M: 331,196,416; BLOOM-560M: 559,214,592;
        // Phi-3-mini: 3,821,079,552; OLMo-2-1B: 1,484,916,736; SmolLM3-3B: 3,075,098,624.
        for (value, count) in [
            (smollm2(), 134_515_008),
            (qwen2(), 494_032_768),
            (qwen3(), 596_049_920),
            (gpt2(), 124_439_808),
            (pythia(), 162_322_944),
            (opt(), 125_239_296),
            (opt_350m(), 331_196_416),
            (bloom(), 559_214_592),
            (phi3(), 3_821_079_552),
            (olmo2(), 1_484_916_736),
            (smollm3(), 3_075_098_624),
        ] {
            let config = ModelConfig::from_value(value).unwrap();
            assert_eq!(config.num_params(), count, "{}", config.family());
        }
    }

    #[test]
    fn names_and_shapes_follow_hugging_face() {
        let config = ModelConfig::from_value(qwen3()).unwrap();
        let shape = |name: &str| {
            let spec = config.tensors().into_iter().find(|t| t.name == name);
            spec.unwrap_or_else(|| panic!("{name}")).shape
        };
        assert_eq!(
            shape("model.layers.27.self_attn.q_proj.weight"),
            [2048, 1024]
        );
        assert_eq!(
            shape("model.layers.0.self_attn.k_proj.weight"),
            [1024, 1024]
        );
        assert_eq!(
            shape("model.layers.0.self_attn.o_proj.weight"),
            [1024, 2048]
        );
        assert_eq!(shape("model.layers.0.self_attn.q_norm.weight"), [128]);
        // 1 embedding, 11 per layer, 1 norm, 1 head: 311 as in the hub's file.
        assert_eq!(config.tensors().len(), 311);
        let head = config.tensors().pop().unwrap();
        assert_eq!(head.tied_to.as_deref(), Some("model.embed_tokens.weight"));
        assert_eq!(config.eos_ids(), [151_645, 151_643]);

        let config = ModelConfig::from_value(gpt2()).unwrap();
        let specs = config.tensors();
        let conv = specs
            .iter()
            .find(|t| t.name == "transformer.h.0.attn.c_attn.weight");
        assert_eq!(conv.unwrap().shape, [768, 2304], "Conv1D is [in, out]");
        assert_eq!(specs.len(), 149);
        assert_eq!(config.linear_modules().len(), 48);
        assert_eq!(config.linear_modules()[0].out_features, 2304);

        let config = ModelConfig::from_value(pythia()).unwrap();
        let head = config.tensors().pop().unwrap();
        assert_eq!(
            (head.name.as_str(), head.tied_to),
            ("embed_out.weight", None)
        );
        let config = ModelConfig::from_value(opt_350m()).unwrap();
        assert_eq!(config.tensors().pop().unwrap().shape, [50272, 512]);
        assert_eq!(config.classifier_tensors().pop().unwrap().shape, [1, 512]);
        let modules = config.linear_modules();
        assert_eq!(modules.len(), 2 + 24 * 6);
        assert_eq!(modules[0].name, "model.decoder.project_in");
    }

    #[test]
    fn switches_that_a_file_may_set_are_read() {
        // The window is set aside where no layer has it.
        let value = with(qwen2(), "use_sliding_window", json!(true));
        let c = gated(value);
        assert_eq!((c.qkv_bias, c.o_bias, c.head_dim), (true, false, 64));
        let value = with(
            with(smollm2(), "attention_bias", json!(true)),
            "mlp_bias",
            json!(true),
        );
        let c = gated(value);
        assert!(c.qkv_bias && c.o_bias && c.mlp_bias && c.qk_norm.is_none());
        for (value, rotary_dim) in [
            (pythia(), 16),
            (with(pythia(), "rotary_pct", Value::Null), 16),
            (with(pythia(), "rotary_pct", json!(1.0)), 64),
            (
                with(
                    pythia(),
                    "rope_parameters",
                    json!({"partial_rotary_factor": 0.5, "rope_theta": 500.0, "rope_type": "default"}),
                ),
                32,
            ),
        ] {
            let Architecture::GptNeox(c) = architecture(value) else {
                panic!("gpt_neox");
            };
            assert_eq!(c.rotary_dim, rotary_dim);
            assert_eq!(
                c.rope_theta,
                if rotary_dim == 32 { 500.0 } else { 10_000.0 }
            );
        }
        let final_norm = |value| match architecture(value) {
            Architecture::Opt(c) => c.final_layer_norm,
            _ => panic!("opt"),
        };
        assert!(final_norm(opt()));
        assert!(!final_norm(opt_350m()));
        assert!(!final_norm(with(
            opt(),
            "_remove_final_layer_norm",
            json!(true)
        )));
    }

    /// google/gemma-3-4b-it's file, without its part for images: `AutoConfig.from_pretrained(..).text_config` of transformers 5.23.
    #[test]
    fn the_text_model_in_gemma_3_has_what_its_file_leaves_out() {
        let text = json!({
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024
        });
        let whole = json!({"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": text});
        let config = ModelConfig::from_value(whole.clone()).unwrap();
        assert_eq!(
            (config.family(), config.eos_ids()),
            ("gemma3_text", vec![1, 106])
        );
        // 262,208 * 2,560 + 34 * (2,560 * (2,048 + 2 * 1,024 + 2,048 + 3 * 10,240) + 4 * 2,560 + 2 * 256) + 2,560
        assert_eq!(config.num_params(), 3_880_263_168);
        let Architecture::Gemma(c) = config.architecture() else {
            panic!("gemma3");
        };
        assert_eq!(
            (c.num_attention_heads, c.num_key_value_heads, c.head_dim),
            (8, 4, 256)
        );
        assert_eq!(
            (c.vocab_size, c.max_position_embeddings),
            (262_208, 131_072)
        );
        let window = Mask::Window(1024);
        assert_eq!(
            c.masks[..6],
            [window, window, window, window, window, Mask::Causal]
        );
        assert_eq!(
            (c.rope_theta, c.rope_scaling.clone()),
            (1e6, Some(RopeScaling::Linear { factor: 8.0 }))
        );
        assert_eq!(
            c.local_rope,
            Some(LocalRope {
                theta: 1e4,
                scaling: None
            })
        );
        // As transformers 5 writes the same.
        let mut new = text;
        new["rope_scaling"] = Value::Null;
        new["rope_parameters"] = json!({
            "full_attention": {"factor": 8.0, "rope_type": "linear", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}
        });
        let new = with(whole.clone(), "text_config", new);
        assert_eq!(
            ModelConfig::from_value(new.clone()).unwrap().architecture(),
            config.architecture()
        );
        for (key, value, named) in [
            (
                "attn_logit_softcapping",
                json!(50.0),
                "transformers computes gemma3_text without it",
            ),
            (
                "rope_parameters",
                json!({"rope_type": "linear"}),
                "\"rope_type\" is no kind of layer",
            ),
            (
                "use_bidirectional_attention",
                json!(true),
                "\"use_bidirectional_attention\": true",
            ),
        ] {
            let mut changed = new.clone();
            changed["text_config"][key] = value;
            let found = message(changed);
            assert!(found.contains(named), "{key}: {found}");
        }
        let found = message(json!({"model_type": "gemma3"}));
        assert!(found.contains("needs \"text_config\""), "{found}");
    }

    /// `GemmaConfig(hidden_act="gelu").hidden_act` of transformers 5.23 is the approximation.
    #[test]
    fn gelu_means_its_approximation_in_gemma() {
        let gemma = json!({
            "model_type": "gemma", "hidden_act": "gelu", "hidden_size": 2048, "intermediate_size": 16384,
            "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1,
            "vocab_size": 256000
        });
        let gate = |value| match architecture(value) {
            Architecture::Gemma(config) => config.hidden_activation,
            other => panic!("{other:?}"),
        };
        assert_eq!(gate(gemma.clone()), Gate::Gelu(Gelu::Tanh));
        assert_eq!(gate(with(gemma, "hidden_act", json!("silu"))), Gate::Silu);
    }

    /// `SmolLM3Config(..).no_rope_layers` and `.layer_types` of transformers 5.23.
    #[test]
    fn smollm3_leaves_layers_without_rotation() {
        let layers = |value: Value| {
            let config = gated(with(value, "num_hidden_layers", json!(5)));
            (config.rotated_layers, config.masks)
        };
        let (causal, window) = (Mask::Causal, Mask::Window(9));
        let plain = layers(smollm3());
        let fourth = vec![true, true, true, false, true];
        assert_eq!(plain, (fourth.clone(), vec![causal; 5]));
        let with_window = with(smollm3(), "sliding_window", json!(9));
        let with_window = with(with_window, "use_sliding_window", json!(true));
        let masks = vec![causal, causal, causal, window, causal];
        assert_eq!(layers(with_window.clone()), (fourth, masks));
        let third = with(with_window.clone(), "no_rope_layer_interval", json!(3));
        assert_eq!(layers(third).0, [true, true, false, true, true]);
        let mut listed = with(with_window, "no_rope_layers", json!([0, 1, 1, 1, 0, 1]));
        assert_eq!(
            layers(listed.clone()).1,
            [window, causal, causal, causal, window]
        );
        listed["layer_types"] = json!(vec!["full_attention"; 5]);
        let expected = (vec![false, true, true, true, false], vec![causal; 5]);
        assert_eq!(layers(listed), expected);
        assert_eq!(gated(smollm3()).rope_theta, 5e6);
        assert!(gated(smollm3()).tie_word_embeddings);
    }

    /// `Phi3Config(..)` of transformers 5.23 for Phi-3-mini-128k's and Phi-4-mini's kind of file.
    #[test]
    fn phi3_reads_older_names_of_longrope() {
        let scaling =
            json!({"type": "su", "short_factor": vec![1; 36], "long_factor": vec![2; 36]});
        let mut value = with(phi3(), "rope_scaling", scaling);
        value["max_position_embeddings"] = json!(131_072);
        value["partial_rotary_factor"] = json!(0.75);
        let config = gated(value);
        assert_eq!((config.head_dim, config.rotary_dim), (96, 72));
        assert_eq!(config.masks[0], Mask::Window(2047));
        let Some(RopeScaling::LongRope(long)) = config.rope_scaling else {
            panic!("longrope");
        };
        // sqrt(1 + ln 32 / ln 4096) = sqrt(1 + 5 / 12).
        assert!((long.attention_factor - (17.0f64 / 12.0).sqrt()).abs() < 1e-15);
        assert_eq!(long.original_max_position_embeddings, 4096);
    }

    /// `Qwen2Config(..).layer_types` of transformers 5.23.
    #[test]
    fn the_layers_that_a_file_names_have_its_window() {
        let set = with(qwen2(), "use_sliding_window", json!(true));
        let set = with(
            with(set, "max_window_layers", json!(2)),
            "num_hidden_layers",
            json!(4),
        );
        let (causal, window) = (Mask::Causal, Mask::Window(32_768));
        assert_eq!(gated(set.clone()).masks, [causal, causal, window, window]);
        let off = with(set.clone(), "use_sliding_window", json!(false));
        assert_eq!(gated(off).masks, [causal; 4]);
        let null = with(set.clone(), "sliding_window", Value::Null);
        assert_eq!(gated(null).masks, [causal; 4]);
        let mut named = with(set, "sliding_window", json!(7));
        named["layer_types"] = json!([
            "sliding_attention",
            "full_attention",
            "full_attention",
            "sliding_attention"
        ]);
        let window = Mask::Window(7);
        assert_eq!(gated(named).masks, [window, causal, causal, window]);
    }

    #[test]
    fn llama_reads_both_places_of_rope() {
        let c = gated(smollm2());
        assert_eq!((c.rope_theta, c.rope_scaling), (100_000.0, None));
        let old = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192});
        let value = with(
            with(
                with(smollm2(), "rope_parameters", Value::Null),
                "rope_theta",
                json!(5e5),
            ),
            "rope_scaling",
            old,
        );
        let c = gated(value);
        assert_eq!(c.rope_theta, 500_000.0);
        let llama3 = Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_eq!(c.rope_scaling, Some(RopeScaling::Llama3(llama3)));
    }

    fn scaled(scaling: Value) -> Value {
        let value = with(smollm2(), "rope_parameters", Value::Null);
        with(value, "rope_scaling", scaling)
    }

    /// Settings that a file leaves open, as transformers 5.23 has them for the same file.
    #[test]
    fn rope_scalings_follow_the_context() {
        let yarn = |dict: Value| match gated(scaled(dict)).rope_scaling {
            Some(RopeScaling::Yarn(yarn)) => yarn,
            other => panic!("{other:?}"),
        };
        // 0.1 ln 4 + 1; SmolLM2's 8192 positions are 4 times 2048.
        let plain = yarn(json!({"type": "yarn", "original_max_position_embeddings": 2048}));
        assert_eq!(
            (plain.factor, plain.attention_factor),
            (4.0, 0.1 * 4.0f64.ln() + 1.0)
        );
        assert_eq!(
            (plain.beta_fast, plain.beta_slow, plain.truncate),
            (32.0, 1.0, true)
        );
        // (0.1 * 0.707 ln 40 + 1) / (0.1 ln 40 + 1).
        let both =
            yarn(json!({"type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 1.0}));
        assert!(
            (both.attention_factor - 0.921_042_4).abs() < 1e-7,
            "{both:?}"
        );
        let given =
            yarn(json!({"type": "yarn", "factor": 40, "mscale": 0.707, "attention_factor": 2}));
        assert_eq!(given.attention_factor, 2.0);

        let mut phi = scaled(
            json!({"type": "longrope", "short_factor": vec![1; 32], "long_factor": vec![2; 32],
                                    "original_max_position_embeddings": 7}),
        );
        // As in transformers, the key beside the dictionary overrides the one inside.
        phi["original_max_position_embeddings"] = json!(1024);
        let Some(RopeScaling::LongRope(long)) = gated(phi).rope_scaling else {
            panic!("longrope");
        };
        assert_eq!(long.original_max_position_embeddings, 1024);
        // sqrt(1 + ln 8 / ln 1024) = sqrt(1.3).
        assert!(
            (long.attention_factor - 1.3f64.sqrt()).abs() < 1e-15,
            "{long:?}"
        );
        assert_eq!(RopeScaling::LongRope(long).short_rows(), Some(1024));

        let dynamic = gated(scaled(json!({"rope_type": "dynamic", "factor": 2})));
        assert_eq!(dynamic.rope_scaling.unwrap().short_rows(), Some(8192));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let cases = [
            (
                with(smollm2(), "rope_parameters", json!({"rope_type": "yarm"})),
                "RoPE scaling \"yarm\" is not supported; supported are default, linear, dynamic, yarn, longrope, llama3; did you \
                 mean `yarn`?",
            ),
            (
                scaled(json!({"type": "linear"})),
                "RoPE scaling linear needs a positive \"factor\"",
            ),
            (
                scaled(json!({"rope_type": "dynamic", "factor": -2})),
                "\"factor\" must be a positive number, found -2",
            ),
            (
                scaled(json!({"rope_type": "yarn", "factor": 2, "truncate": "no"})),
                "\"truncate\" must be true or false, found \"no\"",
            ),
            (
                scaled(json!({"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 3})),
                "needs \"beta_fast\" of at least \"beta_slow\" (3), found 1",
            ),
            (
                scaled(
                    json!({"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 0.5}),
                ),
                "\"original_max_position_embeddings\" must be a positive whole number, found 0.5",
            ),
            (
                scaled(json!({"rope_type": "longrope", "short_factor": vec![1; 32]})),
                "RoPE scaling longrope needs \"long_factor\", a list of 32 positive numbers, one for each rotated pair",
            ),
            (
                scaled(
                    json!({"rope_type": "longrope", "short_factor": [1, 2, "3"], "long_factor": vec![1; 32]}),
                ),
                "\"short_factor\" must be a list of 32 positive numbers, one for each rotated pair, found 3 entries, 2 of them \
                 positive numbers",
            ),
            (
                scaled(
                    json!({"rope_type": "longrope", "short_factor": "1", "long_factor": vec![1; 32]}),
                ),
                "one for each rotated pair, found \"1\"",
            ),
            (
                with(
                    smollm2(),
                    "rope_parameters",
                    json!({"full_attention": {"rope_type": "default"}}),
                ),
                "by kind of layer (\"full_attention\")",
            ),
            (
                with(smollm2(), "partial_rotary_factor", json!(0.5)),
                "\"partial_rotary_factor\" must be 1, found 0.5",
            ),
            (
                with(smollm2(), "hidden_act", json!("gelu")),
                "\"hidden_act\": \"gelu\"",
            ),
            (
                with(smollm2(), "num_key_value_heads", json!(4)),
                "must be a multiple of",
            ),
            (
                with(smollm2(), "vocab_size", json!("many")),
                "a positive whole number, found \"many\"",
            ),
            (
                with(qwen3(), "layer_types", json!(["sliding_attention"])),
                "a list of one name for each of the 28 layers",
            ),
            (
                with(qwen3(), "layer_types", json!(vec!["sliding_attention"; 28])),
                "names sliding_attention, and the file sets no \"sliding_window\"",
            ),
            (
                with(qwen3(), "layer_types", json!(vec!["chunked_attention"; 28])),
                "\"chunked_attention\" is not supported",
            ),
            (
                with(gpt2(), "activation_function", json!("silu")),
                "gelu_new, gelu_pytorch_tanh",
            ),
            (
                with(gpt2(), "scale_attn_weights", json!(false)),
                "\"scale_attn_weights\": false is not supported",
            ),
            (
                with(pythia(), "rotary_pct", json!(0.02)),
                "rotates 1 of a head's 64 entries",
            ),
            (
                with(
                    pythia(),
                    "rope_scaling",
                    json!({"type": "proportional", "factor": 2.0}),
                ),
                "RoPE scaling \"proportional\" is not supported",
            ),
            (
                with(opt(), "layer_norm_elementwise_affine", json!(false)),
                "\"layer_norm_elementwise_affine\": false",
            ),
            (with(gpt2(), "n_head", json!(7)), "must be a multiple of"),
            (
                with(gpt2(), "model_type", json!("mamba")),
                "\"mamba\" is not supported; supported are llama, qwen2, qwen3",
            ),
            (
                with(gpt2(), "model_type", json!("qwen3_moe")),
                "\"qwen3_moe\" is not supported; near it: qwen2, qwen3; supported are llama",
            ),
            (
                with(gpt2(), "model_type", json!("mistrall")),
                "\"mistrall\" is not supported; near it: mistral; supported are llama",
            ),
            (
                with(
                    phi3(),
                    "rope_scaling",
                    json!({"type": "linear", "factor": 2}),
                ),
                "RoPE scaling \"linear\" is not Phi-3's",
            ),
            (
                with(phi3(), "partial_rotary_factor", json!(0.01)),
                "\"partial_rotary_factor\" rotates 0 of a head's 96 entries; expected an even number between 2 and 96",
            ),
            (
                with(smollm3(), "no_rope_layers", json!([1, 1, 2])),
                "\"no_rope_layers\" must be a list of 1 (rotated) or 0 for each of the 36 layers, found [1,1,2]",
            ),
            (json!({"hidden_size": 3}), "no \"model_type\""),
            (json!([1]), "expected a JSON object"),
        ];
        for (value, expected) in cases {
            let message = message(value);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn export_writes_the_file_back() {
        let config = ModelConfig::from_value(smollm2()).unwrap();
        assert_eq!(config.to_json(false), smollm2());
        let classifier = config.to_json(true);
        assert_eq!(
            classifier["architectures"],
            json!(["LlamaForSequenceClassification"])
        );
        assert_eq!(classifier["id2label"], json!({"0": "LABEL_0"}));
        let back = ModelConfig::from_value(classifier).unwrap();
        assert!(back.is_classifier());
        assert_eq!(back.to_json(false), smollm2());
        assert_eq!(back.classifier_tensors().pop().unwrap().shape, [1, 576]);
    }
}
