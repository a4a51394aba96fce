//! A model's `config.json` from the metadata of its GGUF file.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::gemma::query_scalar;
use super::header::MetadataValue;
use super::layout::Architecture;
use super::rope::rope_scaling;

/// What a file says of its model.
pub(super) struct Description<'a> {
    pub(super) architecture: Architecture,
    pub(super) metadata: &'a BTreeMap<String, MetadataValue>,
    /// How many tensors the file has.
    pub(super) num_tensors: usize,
    /// Shape of a tensor by Hugging Face's name, if the file has it.
    pub(super) shape: &'a dyn Fn(&str) -> Option<Vec<usize>>,
    /// Values of a tensor.
    pub(super) read: &'a dyn Fn(&str) -> Result<Vec<f32>, String>,
}

impl Description<'_> {
    /// The configuration.
    ///
    /// # Errors
    /// A message that names the missing or unsupported key.
    pub(super) fn config(&self) -> Result<Value, String> {
        let embedding = match self.architecture {
            Architecture::Gpt2 => "transformer.wte.weight",
            Architecture::Bloom => "transformer.word_embeddings.weight",
            _ => "model.embed_tokens.weight",
        };
        let vocab_size = (self.shape)(embedding).and_then(|shape| shape.first().copied());
        let vocab_size = vocab_size.ok_or_else(|| format!("{embedding} is missing"))?;
        let layers = self.count("block_count")?;
        if layers > self.num_tensors as u64 {
            return Err(format!(
                "the GGUF metadata has {}.block_count {layers}, and the file {} tensors",
                self.architecture.name(),
                self.num_tensors
            ));
        }
        let mut config = self.settings()?;
        let mut put = |key: &str, value: Value| config.insert(key.into(), value);
        put("vocab_size", json!(vocab_size));
        put("tie_word_embeddings", json!(!self.has("lm_head.weight")));
        put("torch_dtype", json!("float32"));
        for (to, from) in [
            ("bos_token_id", "bos_token_id"),
            ("eos_token_id", "eos_token_id"),
            ("pad_token_id", "padding_token_id"),
        ] {
            let id = self.metadata.get(&format!("tokenizer.ggml.{from}"));
            if let Some(id) = id.and_then(MetadataValue::as_u64) {
                put(to, json!(id));
            }
        }
        Ok(Value::Object(config))
    }

    fn settings(&self) -> Result<Map<String, Value>, String> {
        let mut config = match self.architecture {
            Architecture::Gpt2 => self.gpt2()?,
            Architecture::Bloom => self.bloom()?,
            _ => self.decoder()?,
        };
        match self.architecture {
            Architecture::Llama
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Phi3
            | Architecture::Olmo2
            | Architecture::SmolLm3 => {
                config.insert("hidden_act".into(), json!("silu"));
                config.extend(self.gated(&config)?);
            }
            Architecture::Gemma => {
                config.insert("hidden_act".into(), json!("gelu_pytorch_tanh"));
                config.extend(self.scaled()?);
            }
            Architecture::Gemma2 => {
                config.extend(self.gemma2(&config));
                config.extend(self.scaled()?);
            }
            Architecture::Gemma3 => config.extend(self.gemma3(&config)?),
            Architecture::Gpt2 | Architecture::Bloom => {}
        }
        Ok(config)
    }

    fn gpt2(&self) -> Result<Map<String, Value>, String> {
        Ok(map([
            ("model_type", json!("gpt2")),
            ("architectures", json!(["GPT2LMHeadModel"])),
            ("activation_function", json!("gelu_new")),
            ("n_embd", json!(self.count("embedding_length")?)),
            ("n_layer", json!(self.count("block_count")?)),
            ("n_head", json!(self.count("attention.head_count")?)),
            ("n_positions", json!(self.count("context_length")?)),
            ("n_inner", json!(self.count("feed_forward_length")?)),
            ("layer_norm_epsilon", json!(self.layer_norm_epsilon())),
        ]))
    }

    fn bloom(&self) -> Result<Map<String, Value>, String> {
        Ok(map([
            ("model_type", json!("bloom")),
            ("architectures", json!(["BloomForCausalLM"])),
            ("hidden_size", json!(self.count("embedding_length")?)),
            ("n_layer", json!(self.count("block_count")?)),
            ("n_head", json!(self.count("attention.head_count")?)),
            ("seq_length", json!(self.count("context_length")?)),
            ("layer_norm_epsilon", json!(self.layer_norm_epsilon())),
        ]))
    }

    /// Of decoders with RMSNorm and a gated MLP.
    fn decoder(&self) -> Result<Map<String, Value>, String> {
        let (model_type, class) = match self.architecture {
            Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Architecture::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Architecture::Phi3 => ("phi3", "Phi3ForCausalLM"),
            Architecture::Olmo2 => ("olmo2", "Olmo2ForCausalLM"),
            Architecture::SmolLm3 => ("smollm3", "SmolLM3ForCausalLM"),
            Architecture::Gemma => ("gemma", "GemmaForCausalLM"),
            Architecture::Gemma2 => ("gemma2", "Gemma2ForCausalLM"),
            Architecture::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
            _ => ("llama", "LlamaForCausalLM"),
        };
        let heads = self.count("attention.head_count")?;
        let kv_heads = match self.key("attention.head_count_kv") {
            Some(_) => self.count("attention.head_count_kv")?,
            None => heads,
        };
        let hidden = self.count("embedding_length")?;
        // Phi-3 rotates a part of a head.
        let rotated = self.key("rope.dimension_count");
        let rotated = rotated.filter(|_| self.architecture != Architecture::Phi3);
        let width = self.key("attention.key_length").or(rotated);
        let head_dim = match width {
            Some(n) => n
                .as_u64()
                .ok_or("the GGUF metadata has no usable head size")?,
            None => hidden / heads.max(1),
        };
        let eps = self.number("attention.layer_norm_rms_epsilon");
        let theta = self.number("rope.freq_base");
        let mut config = map([
            ("model_type", json!(model_type)),
            ("architectures", json!([class])),
            ("hidden_size", json!(hidden)),
            (
                "intermediate_size",
                json!(self.count("feed_forward_length")?),
            ),
            ("num_hidden_layers", json!(self.count("block_count")?)),
            ("num_attention_heads", json!(heads)),
            ("num_key_value_heads", json!(kv_heads)),
            ("head_dim", json!(head_dim)),
            (
                "max_position_embeddings",
                json!(self.count("context_length")?),
            ),
            (
                "rms_norm_eps",
                json!(eps.ok_or("the GGUF metadata has no rms epsilon")?),
            ),
            ("rope_theta", json!(theta.unwrap_or(10_000.0))),
        ]);
        for (key, layer) in [
            ("attention_bias", "self_attn.o_proj"),
            ("mlp_bias", "mlp.gate_proj"),
        ] {
            if self.has(&format!("model.layers.0.{layer}.bias")) {
                config.insert(key.into(), json!(true));
            }
        }
        Ok(config)
    }

    /// RoPE scaling, and what is one family's own.
    fn gated(&self, config: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        let mut more = Map::new();
        if let Some(scaling) = rope_scaling(self)? {
            more.insert("rope_scaling".into(), scaling);
        }
        let count = |key: &str| self.key(key).and_then(MetadataValue::as_u64);
        let window = count("attention.sliding_window").filter(|&window| window > 0);
        match self.architecture {
            Architecture::Phi3 => {
                let head_dim = config.get("head_dim").and_then(Value::as_f64);
                if let (Some(rotated), Some(width)) = (count("rope.dimension_count"), head_dim) {
                    let part = rotated as f64 / width;
                    more.insert("partial_rotary_factor".into(), json!(part));
                }
                more.insert("sliding_window".into(), json!(window));
                if let Some(context) = count("rope.scaling.original_context_length") {
                    more.insert("original_max_position_embeddings".into(), json!(context));
                }
            }
            Architecture::Olmo2 if window.is_some() => {
                return Err("a window of attention is not OLMo 2's".into());
            }
            Architecture::SmolLm3 => {
                // llama.cpp's constant.
                more.insert("no_rope_layer_interval".into(), json!(4));
            }
            _ => {}
        }
        Ok(more)
    }

    fn gemma2(&self, config: &Map<String, Value>) -> Map<String, Value> {
        let count = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
        let sizes = ["hidden_size", "num_attention_heads", "head_dim"].map(count);
        let scalar = query_scalar(self.architecture, count("num_hidden_layers"), sizes);
        let mut more = map([("query_pre_attn_scalar", json!(scalar))]);
        for (to, from) in [
            ("sliding_window", "attention.sliding_window"),
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ] {
            if let Some(number) = self.numeral(from) {
                more.insert(to.into(), number);
            }
        }
        more
    }

    /// The RoPE scaling of all layers.
    fn scaled(&self) -> Result<Map<String, Value>, String> {
        let scaling = rope_scaling(self)?.map(|scaling| ("rope_scaling".to_owned(), scaling));
        Ok(scaling.into_iter().collect())
    }

    fn gemma3(&self, config: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        let mut more = self.gemma2(config);
        let number = |key: &str, default: f64| self.number(key).unwrap_or(default);
        let mut full = json!({
            "rope_type": "default", "rope_theta": number("rope.freq_base", 1_000_000.0)
        });
        if let (Some(Value::Object(scaling)), Some(full)) =
            (rope_scaling(self)?, full.as_object_mut())
        {
            full.extend(scaling);
        }
        let local = number("rope.freq_base_swa", 10_000.0);
        more.insert(
            "rope_parameters".into(),
            json!({
                "full_attention": full,
                "sliding_attention": {"rope_type": "default", "rope_theta": local}
            }),
        );
        if let Some(period) = self.key("attention.sliding_window_pattern") {
            let period = period.as_u64();
            let period = period.ok_or("its attention.sliding_window_pattern is no whole number")?;
            more.insert("sliding_window_pattern".into(), json!(period));
        }
        Ok(more)
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        (self.shape)(tensor).is_some()
    }

    pub(super) fn key(&self, key: &str) -> Option<&MetadataValue> {
        (self.metadata).get(&format!("{}.{key}", self.architecture.name()))
    }

    fn count(&self, key: &str) -> Result<u64, String> {
        let count = self.key(key).and_then(MetadataValue::as_u64);
        count.ok_or_else(|| {
            let architecture = self.architecture.name();
            format!("the GGUF metadata has no usable {architecture}.{key}")
        })
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.key(key).and_then(MetadataValue::as_f64)
    }

    /// A whole number or another one, as it is stored.
    fn numeral(&self, key: &str) -> Option<Value> {
        let value = self.key(key)?;
        value
            .as_u64()
            .map(|n| json!(n))
            .or(value.as_f64().map(|x| json!(x)))
    }

    fn layer_norm_epsilon(&self) -> f64 {
        self.number("attention.layer_norm_epsilon").unwrap_or(1e-5)
    }
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Map<String, Value> {
    entries
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect()
}
