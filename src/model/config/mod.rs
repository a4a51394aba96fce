//! `config.json` of the supported families, and the tensors that follow from it.

mod gated_decoder;
mod gpt2;
mod keys;

use std::path::Path;

use serde_json::{Map, Value, json};

pub use gated_decoder::{LlamaConfig, Qwen3Config, RopeScaling};
pub use gpt2::Gpt2Config;

use super::weights::gguf;
use crate::error::{Error, Result};
pub use crate::peft::LinearSpec;
use keys::Keys;

/// The values of `model_type` that can be loaded.
pub const FAMILIES: [&str; 3] = ["llama", "qwen3", "gpt2"];

/// A model's `config.json`, by family.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// `model_type` "llama" (SmolLM2, Llama 2 and 3).
    Llama(LlamaConfig),
    /// `model_type` "qwen3".
    Qwen3(Qwen3Config),
    /// `model_type` "gpt2".
    Gpt2(Gpt2Config),
}

/// One parameter as Hugging Face stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face name, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Stored shape.
    pub shape: Vec<usize>,
    /// The parameter this one shares its values with; such a tensor may be absent from a file.
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
        } else if ends_with("gguf") || ends_with("safetensors") {
            path.with_file_name("config.json")
        } else {
            path.to_path_buf()
        };
        if !file.exists() {
            if ends_with("gguf") {
                return gguf::GgufFile::open(path)?.config();
            }
            if path.is_dir()
                && let Some(weights) = super::weights::only_gguf(path)?
            {
                return gguf::GgufFile::open(&weights)?.config();
            }
        }
        let text = std::fs::read_to_string(&file).map_err(Error::io("read", &file))?;
        let value = serde_json::from_str(&text)
            .map_err(|e| Error::format(&file, format!("not valid JSON: {e}")))?;
        Self::parse(&file, value)
    }

    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// `Error::Format` for an unknown family, a missing or ill-typed key, numbers that do not fit together, and every
    /// feature that would change the numbers and is not implemented (attention biases, sliding windows, other RoPE
    /// scalings, other activations).
    pub fn from_value(value: Value) -> Result<Self> {
        Self::parse(Path::new("config.json"), value)
    }

    pub(crate) fn parse(path: &Path, value: Value) -> Result<Self> {
        let Value::Object(raw) = value else {
            return Err(Error::format(path, "expected a JSON object"));
        };
        let keys = Keys { path, raw: &raw };
        let family = keys.string("model_type")?.ok_or_else(|| {
            keys.error(format!(
                "no \"model_type\"; expected one of {}",
                FAMILIES.join(", ")
            ))
        })?;
        match family {
            "llama" => Ok(Self::Llama(LlamaConfig::parse(&keys)?)),
            "qwen3" => Ok(Self::Qwen3(Qwen3Config::parse(&keys)?)),
            "gpt2" => Ok(Self::Gpt2(Gpt2Config::parse(&keys)?)),
            other => Err(keys.error(format!(
                "model_type \"{other}\" is not supported; supported are {}",
                FAMILIES.join(", ")
            ))),
        }
    }

    /// The `config.json` to write beside exported weights: the one read, with `architectures` set to the causal model
    /// or, for `classification`, to the sequence classifier with one label.
    pub fn to_json(&self, classification: bool) -> Value {
        let mut raw = self.raw().clone();
        let (causal, classifier) = match self {
            Self::Llama(_) => ("LlamaForCausalLM", "LlamaForSequenceClassification"),
            Self::Qwen3(_) => ("Qwen3ForCausalLM", "Qwen3ForSequenceClassification"),
            Self::Gpt2(_) => ("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
        };
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

    /// Whether the file describes a sequence classifier (a reward model).
    pub fn is_classifier(&self) -> bool {
        self.raw()
            .get("architectures")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .any(|a| a.ends_with("ForSequenceClassification"))
    }

    /// The value of `model_type`.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Llama(_) => "llama",
            Self::Qwen3(_) => "qwen3",
            Self::Gpt2(_) => "gpt2",
        }
    }

    /// The file as read.
    pub fn raw(&self) -> &Map<String, Value> {
        match self {
            Self::Llama(c) => &c.raw,
            Self::Qwen3(c) => &c.raw,
            Self::Gpt2(c) => &c.raw,
        }
    }

    /// Rows of the token embedding.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Llama(c) => c.vocab_size,
            Self::Qwen3(c) => c.vocab_size,
            Self::Gpt2(c) => c.vocab_size,
        }
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Llama(c) => c.hidden_size,
            Self::Qwen3(c) => c.hidden_size,
            Self::Gpt2(c) => c.n_embd,
        }
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        match self {
            Self::Llama(c) => c.num_hidden_layers,
            Self::Qwen3(c) => c.num_hidden_layers,
            Self::Gpt2(c) => c.n_layer,
        }
    }

    /// Longest row in tokens.
    pub fn max_positions(&self) -> usize {
        match self {
            Self::Llama(c) => c.max_position_embeddings,
            Self::Qwen3(c) => c.max_position_embeddings,
            Self::Gpt2(c) => c.n_positions,
        }
    }

    /// Standard deviation of fresh weights.
    pub fn initializer_range(&self) -> f64 {
        match self {
            Self::Llama(c) => c.initializer_range,
            Self::Qwen3(c) => c.initializer_range,
            Self::Gpt2(c) => c.initializer_range,
        }
    }

    /// Whether the output head is the token embedding.
    pub fn tie_word_embeddings(&self) -> bool {
        match self {
            Self::Llama(c) => c.tie_word_embeddings,
            Self::Qwen3(c) => c.tie_word_embeddings,
            Self::Gpt2(c) => c.tie_word_embeddings,
        }
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

    /// The parameters of the causal model in Hugging Face's names, shapes and order, the output head last.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut specs = self.backbone_tensors();
        specs.push(TensorSpec {
            name: "lm_head.weight".into(),
            shape: vec![self.vocab_size(), self.hidden_size()],
            tied_to: self
                .tie_word_embeddings()
                .then(|| self.embedding_name().to_owned()),
        });
        specs
    }

    /// The parameters without any head.
    pub fn backbone_tensors(&self) -> Vec<TensorSpec> {
        match self {
            Self::Llama(c) => c.decoder().tensors(),
            Self::Qwen3(c) => c.decoder().tensors(),
            Self::Gpt2(c) => c.backbone_tensors(),
        }
    }

    /// The parameters of the sequence classifier with one label: the backbone and `score.weight`, `[1, hidden]`.
    pub fn classifier_tensors(&self) -> Vec<TensorSpec> {
        let mut specs = self.backbone_tensors();
        specs.push(spec("score.weight".into(), &[1, self.hidden_size()]));
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

    /// Every linear layer but the output head, in the order of the model: what PEFT's "all-linear" adapts.
    pub fn linear_modules(&self) -> Vec<LinearSpec> {
        match self {
            Self::Llama(c) => c.decoder().linear_modules(),
            Self::Qwen3(c) => c.decoder().linear_modules(),
            Self::Gpt2(c) => c.linear_modules(),
        }
    }

    fn embedding_name(&self) -> &'static str {
        match self {
            Self::Llama(_) | Self::Qwen3(_) => "model.embed_tokens.weight",
            Self::Gpt2(_) => "transformer.wte.weight",
        }
    }
}

fn spec(name: String, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name,
        shape: shape.to_vec(),
        tied_to: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn with(mut value: Value, key: &str, to: Value) -> Value {
        value[key] = to;
        value
    }

    fn message(value: Value) -> String {
        ModelConfig::from_value(value).unwrap_err().to_string()
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        // SmolLM2-135M: 134,515,008; Qwen3-0.6B: 596,049,920 without the stored head; GPT-2 small: 124,439,808.
        for (value, count) in [
            (smollm2(), 134_515_008),
            (qwen3(), 596_049_920),
            (gpt2(), 124_439_808),
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
    }

    #[test]
    fn llama_reads_both_places_of_rope() {
        let ModelConfig::Llama(c) = ModelConfig::from_value(smollm2()).unwrap() else {
            panic!("llama");
        };
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
        let ModelConfig::Llama(c) = ModelConfig::from_value(value).unwrap() else {
            panic!("llama");
        };
        assert_eq!(c.rope_theta, 500_000.0);
        let scaling = c.rope_scaling.unwrap();
        assert_eq!(
            (scaling.factor, scaling.original_max_position_embeddings),
            (8.0, 8192)
        );
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let cases = [
            (
                with(smollm2(), "rope_parameters", json!({"rope_type": "yarn"})),
                "RoPE scaling \"yarn\"",
            ),
            (
                with(
                    with(smollm2(), "rope_parameters", Value::Null),
                    "rope_scaling",
                    json!({"type": "linear", "factor": 2.0}),
                ),
                "RoPE scaling \"linear\"",
            ),
            (
                with(smollm2(), "attention_bias", json!(true)),
                "\"attention_bias\": true",
            ),
            (
                with(smollm2(), "mlp_bias", json!(true)),
                "\"mlp_bias\": true",
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
                with(qwen3(), "use_sliding_window", json!(true)),
                "\"use_sliding_window\": true",
            ),
            (
                with(gpt2(), "activation_function", json!("relu")),
                "gelu_new, gelu_pytorch_tanh",
            ),
            (with(gpt2(), "n_head", json!(7)), "must be a multiple of"),
            (
                with(gpt2(), "model_type", json!("mamba")),
                "supported are llama, qwen3, gpt2",
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
