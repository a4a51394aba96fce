//! Tensor names of `adapter_model.safetensors`.
//!
//! # Source
//! PEFT 0.21, `get_peft_model_state_dict`.

/// What PEFT puts before every module path.
const PREFIX: [&str; 2] = ["base_model", "model"];

/// Components that wrappers of modules add to paths: `torch.compile`, FSDP, activation checkpointing.
const WRAPPERS: [&str; 3] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// A tensor of `adapter_model.safetensors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoredKey {
    /// A tensor of the adapter on the module at `path`.
    Layer {
        /// The module's path.
        path: String,
        /// The tensor's name below it, `lora_A.weight`.
        name: &'static str,
        /// The adapter's own name where the file has it: PEFT leaves it out.
        adapter: Option<String>,
    },
    /// A parameter that is stored whole, e.g. `score.weight`.
    Whole(String),
    /// The untrained copy that PEFT keeps beside a parameter that is stored whole.
    Original,
}

/// The stored name of a tensor of an adapter: `base_model.model.{module_path}.{name}`.
pub fn tensor_key(module_path: &str, name: &str) -> String {
    format!("base_model.model.{module_path}.{name}")
}

/// The stored name of a parameter that is kept whole: `base_model.model.score.weight`.
pub fn saved_key(parameter: &str) -> String {
    format!("base_model.model.{parameter}")
}

/// As [`saved_key`] for a method with virtual tokens, which wraps no layer: `base_model.score.weight`.
pub fn prompt_saved_key(parameter: &str) -> String {
    format!("base_model.{parameter}")
}

/// Parses a stored name, in the spelling of any saver: without PEFT's prefix, through wrappers of modules, with the adapter's
/// own name. `names` are those of the method's tensors below a module's path.
pub(crate) fn parse_key(key: &str, names: &[&'static str]) -> StoredKey {
    let mut parts: Vec<&str> = (key.split('.'))
        .filter(|part| !WRAPPERS.contains(part))
        .collect();
    // DataParallel and its kin wrap the whole.
    if parts.first() == Some(&"module") {
        parts.remove(0);
    }
    let parts = (parts.strip_prefix(&PREFIX))
        .or(parts.strip_prefix(&PREFIX[..1]))
        .unwrap_or(&parts);
    for name in names {
        let mut expected = name.split('.');
        let head = expected.next().unwrap_or_default();
        let tail: Vec<&str> = expected.collect();
        let Some(at) = parts.iter().position(|part| *part == head) else {
            continue;
        };
        let path = parts[..at].join(".");
        match &parts[at + 1..] {
            rest if rest == tail => {
                return StoredKey::Layer {
                    path,
                    name,
                    adapter: None,
                };
            }
            [adapter, rest @ ..] if rest == tail => {
                return StoredKey::Layer {
                    path,
                    name,
                    adapter: Some((*adapter).to_owned()),
                };
            }
            _ => {}
        }
    }
    if parts.contains(&"original_module") {
        return StoredKey::Original;
    }
    // Inside a live PEFT model the parameter is found as score.modules_to_save.default.weight.
    let mut whole = parts.to_vec();
    if let Some(at) = whole.iter().position(|part| *part == "modules_to_save") {
        whole.drain(at..(at + 2).min(whole.len()));
    }
    StoredKey::Whole(whole.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["lora_A.weight", "lora_B.weight", "ia3_l"];
    const PATH: &str = "model.layers.0.self_attn.q_proj";

    fn layer(name: &'static str, adapter: Option<&str>) -> StoredKey {
        StoredKey::Layer {
            path: PATH.into(),
            name,
            adapter: adapter.map(str::to_owned),
        }
    }

    #[test]
    fn keys_are_pefts() {
        let key = tensor_key(PATH, NAMES[0]);
        assert_eq!(
            key,
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        );
        assert_eq!(parse_key(&key, &NAMES), layer("lora_A.weight", None));
        assert_eq!(saved_key("score.weight"), "base_model.model.score.weight");
    }

    #[test]
    fn other_spellings_are_read() {
        let plain = layer("lora_B.weight", None);
        for key in [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
            "model.layers.0.self_attn.q_proj.lora_B.weight",
            "base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_B.weight",
            "_orig_mod.base_model.model.model.layers.0._orig_mod.self_attn.q_proj.lora_B.weight",
            "module.base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
            "base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_B.weight",
        ] {
            assert_eq!(parse_key(key, &NAMES), plain, "{key}");
        }
        for name in ["default", "sft"] {
            let key = format!("base_model.model.{PATH}.lora_B.{name}.weight");
            assert_eq!(
                parse_key(&key, &NAMES),
                layer("lora_B.weight", Some(name)),
                "{key}"
            );
            let key = format!("base_model.model.{PATH}.ia3_l.{name}");
            assert_eq!(parse_key(&key, &NAMES), layer("ia3_l", Some(name)), "{key}");
        }
        for key in [
            "base_model.score.weight",
            "base_model.model.score.weight",
            "score.weight",
            "base_model.model.score.modules_to_save.default.weight",
            "base_model.model.score.modules_to_save.weight",
        ] {
            let expected = match key.ends_with("modules_to_save.weight") {
                // PEFT writes no such name.
                true => "score",
                false => "score.weight",
            };
            assert_eq!(parse_key(key, &NAMES), StoredKey::Whole(expected.into()));
        }
        let copy = "base_model.model.score.original_module.weight";
        assert_eq!(parse_key(copy, &NAMES), StoredKey::Original);
        let other = "model.layers.0.q.lora_embedding_A";
        assert_eq!(parse_key(other, &NAMES), StoredKey::Whole(other.into()));
    }
}
