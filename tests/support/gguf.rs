//! Writes a model as GGUF, in the names and layouts of llama.cpp's converter, with weights in f32.

use serde_json::Value;
use tempering::params::HostTensor;

/// A key of the file's metadata.
enum Meta {
    Count(u32),
    Number(f32),
    Text(String),
}

/// The file of a model whose `config.json` and tensors are given.
pub(crate) fn file(config: &Value, tensors: &[HostTensor]) -> Vec<u8> {
    let family = config["model_type"].as_str().unwrap();
    let meta = metadata(family, config);
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((meta.len() as u64).to_le_bytes());
    for (key, value) in meta {
        text(&mut out, &key);
        match value {
            Meta::Count(x) => {
                out.extend(4u32.to_le_bytes());
                out.extend(x.to_le_bytes());
            }
            Meta::Number(x) => {
                out.extend(6u32.to_le_bytes());
                out.extend(x.to_le_bytes());
            }
            Meta::Text(x) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, &x);
            }
        }
    }
    let mut data: Vec<u8> = Vec::new();
    for tensor in tensors {
        let (shape, values) = layout(family, config, tensor);
        text(&mut out, &name(family, &tensor.0));
        out.extend((shape.len() as u32).to_le_bytes());
        // Fastest first.
        shape
            .iter()
            .rev()
            .for_each(|&d| out.extend((d as u64).to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        data.resize(data.len().next_multiple_of(32), 0);
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn metadata(family: &str, config: &Value) -> Vec<(String, Meta)> {
    let count = |key: &str| Meta::Count(config[key].as_u64().unwrap() as u32);
    let number = |value: &Value| Meta::Number(value.as_f64().unwrap() as f32);
    let keys = if family == "gpt2" {
        vec![
            ("embedding_length", count("n_embd")),
            ("feed_forward_length", count("n_inner")),
            ("block_count", count("n_layer")),
            ("context_length", count("n_positions")),
            ("attention.head_count", count("n_head")),
            (
                "attention.layer_norm_epsilon",
                number(&config["layer_norm_epsilon"]),
            ),
        ]
    } else {
        let mut keys = vec![
            ("embedding_length", count("hidden_size")),
            ("feed_forward_length", count("intermediate_size")),
            ("block_count", count("num_hidden_layers")),
            ("context_length", count("max_position_embeddings")),
            ("attention.head_count", count("num_attention_heads")),
            ("attention.head_count_kv", count("num_key_value_heads")),
            (
                "attention.layer_norm_rms_epsilon",
                number(&config["rms_norm_eps"]),
            ),
            (
                "rope.freq_base",
                number(&config["rope_parameters"]["rope_theta"]),
            ),
        ];
        if config["head_dim"].is_u64() {
            keys.push(("attention.key_length", count("head_dim")));
        }
        keys
    };
    let mut keys: Vec<(String, Meta)> = (keys.into_iter())
        .map(|(key, value)| (format!("{family}.{key}"), value))
        .collect();
    let architecture = ("general.architecture".into(), Meta::Text(family.into()));
    keys.insert(0, architecture);
    keys
}

fn name(family: &str, name: &str) -> String {
    const MODULES: [(&str, &str); 26] = [
        ("lm_head", "output"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("transformer.wte", "token_embd"),
        ("transformer.wpe", "position_embd"),
        ("transformer.ln_f", "output_norm"),
        ("transformer.h", "blk"),
        ("ln_1", "attn_norm"),
        ("attn.c_attn", "attn_qkv"),
        ("ln_2", "ffn_norm"),
        ("mlp.c_fc", "ffn_up"),
    ];
    let mut name = name
        .replace("mlp.c_proj", "ffn_down")
        .replace("attn.c_proj", "attn_output");
    if family == "olmo2" {
        name = name.replace("post_attention_layernorm", "post_attention_norm");
    }
    for (from, to) in MODULES {
        name = name.replace(from, to);
    }
    name
}

/// Shape, slowest first, and values as the converter writes them.
fn layout(
    family: &str,
    config: &Value,
    (name, shape, values): &HostTensor,
) -> (Vec<usize>, Vec<f32>) {
    let heads = |key: &str| config[key].as_u64().unwrap() as usize;
    if family == "gpt2" && shape.len() == 2 && name.contains(".h.") {
        let (rows, columns) = (shape[0], shape[1]);
        let transposed = (0..columns)
            .flat_map(|column| (0..rows).map(move |row| values[row * columns + column]))
            .collect();
        return (vec![columns, rows], transposed);
    }
    let heads = match family {
        "llama" | "smollm3" if name.contains("q_proj") => heads("num_attention_heads"),
        "llama" | "smollm3" if name.contains("k_proj") => heads("num_key_value_heads"),
        _ => return (shape.clone(), values.clone()),
    };
    // Of each head, the rows of both halves in turn: ggml rotates neighbouring pairs.
    let width = values.len() / shape[0];
    let half = shape[0] / heads / 2;
    let reordered = (0..heads)
        .flat_map(|head| {
            (0..half).flat_map(move |i| [0, 1].map(|part| (head * 2 + part) * half + i))
        })
        .flat_map(|row| values[row * width..(row + 1) * width].iter().copied())
        .collect();
    (shape.clone(), reordered)
}
