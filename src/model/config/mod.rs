//! `config.json` of the supported families, and the tensors that follow from it.

mod gated_decoder;
mod gpt2;
mod gpt_neox;
mod keys;
mod opt;
mod rope;

use std::path::Path;

use serde_json::{Map, Value, json};

pub use gated_decoder::GatedDecoderConfig;
pub use gpt_neox::GptNeoxConfig;
pub use gpt2::Gpt2Config;
pub use opt::{OptConfig, POSITION_OFFSET};
pub use rope::RopeScaling;

use super::weights::{StoreAs, gguf};
use crate::error::{Error, Result};
use crate::ops::HeadLayout;
pub use crate::peft::LinearSpec;
use keys::Keys;

/// The values of `model_type` that can be loaded.
pub const FAMILIES: [&str; 6] = ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt"];

/// A model's `config.json`, by family.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// `model_type` "llama" (SmolLM2, Llama 2 and 3).
    Llama(GatedDecoderConfig),
    /// `model_type` "qwen2" (Qwen2, Qwen2.5).
    Qwen2(GatedDecoderConfig),
    /// `model_type` "qwen3".
    Qwen3(GatedDecoderConfig),
    /// `model_type` "gpt2".
    Gpt2(Gpt2Config),
    /// `model_type` "gpt_neox" (Pythia).
    GptNeox(GptNeoxConfig),
    /// `model_type` "opt".
    Opt(OptConfig),
}

/// What a family's configuration tells of its model, in words that all families share.
trait Decoder {
    fn sizes(&self) -> Sizes;
    fn raw(&self) -> &Map<String, Value>;
    /// The parameters without any head, in Hugging Face's names, shapes and order.
    fn backbone_tensors(&self) -> Vec<TensorSpec>;
    /// Every linear layer but the output head, in the order of the model.
    fn linear_modules(&self) -> Vec<LinearSpec>;
}

/// The numbers of a decoder.
struct Sizes {
    vocab: usize,
    hidden: usize,
    output: usize,
    intermediate: usize,
    layers: usize,
    layout: HeadLayout,
    max_positions: usize,
    learned_positions: bool,
    initializer_range: f64,
    tied: bool,
}

/// What transformers calls a family and its parts.
struct Names {
    family: &'static str,
    causal: &'static str,
    classifier: &'static str,
    embedding: &'static str,
    head: &'static str,
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
    /// feature that would change the numbers and is not implemented (sliding windows, other RoPE scalings, other
    /// activations).
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
            "llama" => Ok(Self::Llama(GatedDecoderConfig::llama(&keys)?)),
            "qwen2" => Ok(Self::Qwen2(GatedDecoderConfig::qwen2(&keys)?)),
            "qwen3" => Ok(Self::Qwen3(GatedDecoderConfig::qwen3(&keys)?)),
            "gpt2" => Ok(Self::Gpt2(Gpt2Config::parse(&keys)?)),
            "gpt_neox" => Ok(Self::GptNeox(GptNeoxConfig::parse(&keys)?)),
            "opt" => Ok(Self::Opt(OptConfig::parse(&keys)?)),
            other => Err(keys.error(format!(
                "model_type \"{other}\" is not supported; supported are {}",
                FAMILIES.join(", ")
            ))),
        }
    }

    fn names(&self) -> Names {
        let gated = |family, causal, classifier| Names {
            family,
            causal,
            classifier,
            embedding: "model.embed_tokens.weight",
            head: "lm_head.weight",
        };
        match self {
            Self::Llama(_) => gated(
                "llama",
                "LlamaForCausalLM",
                "LlamaForSequenceClassification",
            ),
            Self::Qwen2(_) => gated(
                "qwen2",
                "Qwen2ForCausalLM",
                "Qwen2ForSequenceClassification",
            ),
            Self::Qwen3(_) => gated(
                "qwen3",
                "Qwen3ForCausalLM",
                "Qwen3ForSequenceClassification",
            ),
            Self::Gpt2(_) => Names {
                family: "gpt2",
                causal: "GPT2LMHeadModel",
                classifier: "GPT2ForSequenceClassification",
                embedding: "transformer.wte.weight",
                head: "lm_head.weight",
            },
            Self::GptNeox(_) => Names {
                family: "gpt_neox",
                causal: "GPTNeoXForCausalLM",
                classifier: "GPTNeoXForSequenceClassification",
                embedding: "gpt_neox.embed_in.weight",
                head: "embed_out.weight",
            },
            Self::Opt(_) => Names {
                family: "opt",
                causal: "OPTForCausalLM",
                classifier: "OPTForSequenceClassification",
                embedding: "model.decoder.embed_tokens.weight",
                head: "lm_head.weight",
            },
        }
    }

    fn decoder(&self) -> &dyn Decoder {
        match self {
            Self::Llama(c) | Self::Qwen2(c) | Self::Qwen3(c) => c,
            Self::Gpt2(c) => c,
            Self::GptNeox(c) => c,
            Self::Opt(c) => c,
        }
    }

    /// The `config.json` to write beside exported weights: the one read, with `architectures` set to the causal model
    /// or, for `classification`, to the sequence classifier with one label.
    pub fn to_json(&self, classification: bool) -> Value {
        let mut raw = self.raw().clone();
        let Names {
            causal, classifier, ..
        } = self.names();
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

    /// [`ModelConfig::to_json`] for weights that are stored as `dtype`, which `dtype` and, if the file that was read has
    /// it, `torch_dtype` then name: transformers 5 loads a model in the number format that this key says.
    pub fn to_json_as(&self, classification: bool, dtype: StoreAs) -> Value {
        let mut json = self.to_json(classification);
        set_dtype(&mut json, dtype);
        json
    }

    /// The same model with an output head that is stored apart from the embedding.
    ///
    /// # Errors
    /// As [`ModelConfig::from_value`].
    pub fn untied(&self) -> Result<Self> {
        let mut raw = self.raw().clone();
        raw.insert("tie_word_embeddings".into(), json!(false));
        Self::from_value(Value::Object(raw))
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

    /// The name of the token embedding.
    pub fn embedding_name(&self) -> &'static str {
        self.names().embedding
    }

    /// The value of `model_type`.
    pub fn family(&self) -> &'static str {
        self.names().family
    }

    /// The file as read.
    pub fn raw(&self) -> &Map<String, Value> {
        self.decoder().raw()
    }

    /// Rows of the token embedding.
    pub fn vocab_size(&self) -> usize {
        self.decoder().sizes().vocab
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.decoder().sizes().hidden
    }

    /// Width of the states that the output head and a score head read: the hidden size but for OPT's
    /// `word_embed_proj_dim`.
    pub fn output_size(&self) -> usize {
        self.decoder().sizes().output
    }

    /// Width of the MLP.
    pub fn intermediate_size(&self) -> usize {
        self.decoder().sizes().intermediate
    }

    /// Attention heads.
    pub fn head_layout(&self) -> HeadLayout {
        self.decoder().sizes().layout
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.decoder().sizes().layers
    }

    /// Longest row in tokens.
    pub fn max_positions(&self) -> usize {
        self.decoder().sizes().max_positions
    }

    /// Whether positions are rows of a table, so that a longer row than [`ModelConfig::max_positions`] cannot be
    /// computed at all.
    pub fn has_learned_positions(&self) -> bool {
        self.decoder().sizes().learned_positions
    }

    /// Standard deviation of fresh weights.
    pub fn initializer_range(&self) -> f64 {
        self.decoder().sizes().initializer_range
    }

    /// Whether the output head is the token embedding.
    pub fn tie_word_embeddings(&self) -> bool {
        self.decoder().sizes().tied
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
        let Names {
            embedding, head, ..
        } = self.names();
        let mut specs = self.backbone_tensors();
        specs.push(TensorSpec {
            name: head.into(),
            shape: vec![self.vocab_size(), self.output_size()],
            tied_to: self.tie_word_embeddings().then(|| embedding.to_owned()),
        });
        specs
    }

    /// The parameters without any head.
    pub fn backbone_tensors(&self) -> Vec<TensorSpec> {
        self.decoder().backbone_tensors()
    }

    /// The parameters of the sequence classifier with one label: the backbone and `score.weight`, `[1, output size]`.
    pub fn classifier_tensors(&self) -> Vec<TensorSpec> {
        let mut specs = self.backbone_tensors();
        specs.push(spec("score.weight".into(), &[1, self.output_size()]));
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
        self.decoder().linear_modules()
    }
}

/// Says in a `config.json` how its weights are stored.
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

fn spec(name: String, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name,
        shape: shape.to_vec(),
        tied_to: None,
    }
}

/// Weight, as PyTorch's `Linear` stores it, and bias of a linear layer.
fn linear_tensors(layer: &LinearSpec, with_bias: bool) -> impl Iterator<Item = TensorSpec> {
    let LinearSpec {
        name,
        in_features,
        out_features,
    } = layer;
    let weight = spec(format!("{name}.weight"), &[*out_features, *in_features]);
    let bias = with_bias.then(|| spec(format!("{name}.bias"), &[*out_features]));
    [Some(weight), bias].into_iter().flatten()
}

/// Weight and bias of a LayerNorm.
fn layer_norm_tensors(path: &str, width: usize) -> [TensorSpec; 2] {
    ["weight", "bias"].map(|kind| spec(format!("{path}.{kind}"), &[width]))
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

    fn with(mut value: Value, key: &str, to: Value) -> Value {
        value[key] = to;
        value
    }

    fn message(value: Value) -> String {
        ModelConfig::from_value(value).unwrap_err().to_string()
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        // SmolLM2-135M: 134,515,008; Qwen2.5-0.5B: 494,032,768; Qwen3-0.6B: 596,049,920 without the stored head;
        // GPT-2 small: 124,439,808; Pythia-160M: 162,322,944; OPT-125M: 125,239,296; OPT-350M: 331,196,416.
        for (value, count) in [
            (smollm2(), 134_515_008),
            (qwen2(), 494_032_768),
            (qwen3(), 596_049_920),
            (gpt2(), 124_439_808),
            (pythia(), 162_322_944),
            (opt(), 125_239_296),
            (opt_350m(), 331_196_416),
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
        let ModelConfig::Qwen2(c) = ModelConfig::from_value(value).unwrap() else {
            panic!("qwen2");
        };
        assert_eq!((c.qkv_bias, c.o_bias, c.head_dim), (true, false, 64));
        let value = with(
            with(smollm2(), "attention_bias", json!(true)),
            "mlp_bias",
            json!(true),
        );
        let ModelConfig::Llama(c) = ModelConfig::from_value(value).unwrap() else {
            panic!("llama");
        };
        assert!(c.qkv_bias && c.o_bias && c.mlp_bias && !c.qk_norm);
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
            let ModelConfig::GptNeox(c) = ModelConfig::from_value(value).unwrap() else {
                panic!("gpt_neox");
            };
            assert_eq!(c.rotary_dim, rotary_dim);
            assert_eq!(
                c.rope_theta,
                if rotary_dim == 32 { 500.0 } else { 10_000.0 }
            );
        }
        let final_norm = |value| match ModelConfig::from_value(value).unwrap() {
            ModelConfig::Opt(c) => c.final_layer_norm,
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
                with(
                    with(qwen2(), "use_sliding_window", json!(true)),
                    "max_window_layers",
                    json!(23),
                ),
                "\"use_sliding_window\": true is not supported",
            ),
            (
                with(qwen3(), "layer_types", json!(["sliding_attention"])),
                "\"sliding_attention\" is not supported",
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
                    json!({"type": "dynamic", "factor": 2.0}),
                ),
                "RoPE scaling \"dynamic\"",
            ),
            (
                with(opt(), "layer_norm_elementwise_affine", json!(false)),
                "\"layer_norm_elementwise_affine\": false",
            ),
            (with(gpt2(), "n_head", json!(7)), "must be a multiple of"),
            (
                with(gpt2(), "model_type", json!("mamba")),
                "supported are llama, qwen2, qwen3, gpt2, gpt_neox, opt",
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
