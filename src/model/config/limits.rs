//! Bounds of the sizes in a `config.json`, checked before anything is multiplied or allocated.

use serde_json::{Map, Value};

/// Largest value of each size: far above any published model's, and low enough that products of a few fit 64 bits.
const LIMITS: [(&[&str], u64); 6] = [
    (&["num_hidden_layers", "n_layer", "n_layers"], 4096),
    (
        &[
            "num_attention_heads",
            "num_key_value_heads",
            "n_head",
            "n_heads",
        ],
        1 << 14,
    ),
    (&["head_dim"], 1 << 14),
    (
        &[
            "hidden_size",
            "n_embd",
            "n_embed",
            "dim",
            "word_embed_proj_dim",
        ],
        1 << 20,
    ),
    (
        &["intermediate_size", "n_inner", "ffn_dim", "hidden_dim"],
        1 << 24,
    ),
    (&["vocab_size", "num_labels", "type_vocab_size"], 1 << 24),
];

/// The largest value of a count; of other keys 32 bits.
pub(super) fn largest(key: &str) -> u64 {
    let limit = LIMITS.iter().find(|(keys, _)| keys.contains(&key));
    limit.map_or(u64::from(u32::MAX), |(_, largest)| *largest)
}

/// The path of a number that f32, in which models compute, cannot hold.
pub(super) fn beyond_f32(raw: &Map<String, Value>) -> Option<(String, &Value)> {
    fn find(value: &Value) -> Option<(String, &Value)> {
        match value {
            Value::Number(number) => {
                let x = number.as_f64().unwrap_or(f64::INFINITY);
                (x.abs() > f64::from(f32::MAX)).then(|| (String::new(), value))
            }
            Value::Array(values) => values.iter().find_map(find),
            Value::Object(map) => beyond_f32(map).map(|(path, found)| (format!(".{path}"), found)),
            _ => None,
        }
    }
    raw.iter()
        .find_map(|(key, value)| find(value).map(|(path, found)| (format!("{key}{path}"), found)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::model::ModelConfig;
    use crate::model::encoder::EncoderConfig;

    fn gpt2() -> serde_json::Value {
        json!({"model_type": "gpt2", "vocab_size": 9, "n_embd": 4, "n_layer": 2, "n_head": 2, "n_positions": 8})
    }

    fn llama() -> serde_json::Value {
        json!({
            "model_type": "llama", "vocab_size": 9, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "max_position_embeddings": 8, "rope_theta": 1e4,
            "rms_norm_eps": 1e-5,
        })
    }

    fn bert() -> serde_json::Value {
        json!({
            "model_type": "bert", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 6, "max_position_embeddings": 8, "num_labels": 1,
        })
    }

    #[test]
    fn absurd_sizes_are_refused_before_anything_is_made_of_them() {
        type Read = fn(serde_json::Value) -> Result<(), String>;
        let decoder: Read = |value| {
            ModelConfig::from_value(value)
                .map(drop)
                .map_err(|e| e.to_string())
        };
        let encoder: Read = |value| {
            EncoderConfig::from_value(value)
                .map(drop)
                .map_err(|e| e.to_string())
        };
        let kinds: [(serde_json::Value, Read, &[&str]); 3] = [
            (
                llama(),
                decoder,
                &[
                    "num_hidden_layers",
                    "hidden_size",
                    "intermediate_size",
                    "vocab_size",
                    "num_attention_heads",
                    "num_key_value_heads",
                    "head_dim",
                ],
            ),
            (
                gpt2(),
                decoder,
                &["n_layer", "n_embd", "n_head", "n_inner", "vocab_size"],
            ),
            (
                bert(),
                encoder,
                &[
                    "num_hidden_layers",
                    "hidden_size",
                    "num_attention_heads",
                    "vocab_size",
                    "type_vocab_size",
                    "num_labels",
                ],
            ),
        ];
        for (config, read, keys) in kinds {
            read(config.clone()).unwrap();
            for key in keys {
                for size in [1u64 << 30, u64::from(u32::MAX) + 1, u64::MAX] {
                    let mut absurd = config.clone();
                    absurd[key] = json!(size);
                    let error = read(absurd).unwrap_err();
                    assert!(error.contains(key) && error.contains("at most"), "{error}");
                }
            }
        }
    }

    #[test]
    fn numbers_beyond_f32_are_refused() {
        for (key, value) in [
            ("rms_norm_eps", json!(1e39)),
            ("rope_theta", json!(1e300)),
            ("initializer_range", json!(-1e300)),
            (
                "rope_scaling",
                json!({"rope_type": "linear", "factor": 1e300}),
            ),
        ] {
            let mut config = llama();
            config[key] = value;
            let error = ModelConfig::from_value(config).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("32 bits"), "{error}");
        }
    }
}
