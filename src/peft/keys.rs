//! Tensor names of `adapter_model.safetensors`.
//!
//! # Source
//! PEFT 0.21, `get_peft_model_state_dict`.

/// Which of the two low-rank matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoraMatrix {
    /// `[r, in]`.
    A,
    /// `[out, r]`.
    B,
}

/// A tensor of `adapter_model.safetensors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterKey {
    /// A low-rank matrix of the module at this path.
    Lora(String, LoraMatrix),
    /// A parameter that is stored whole, e.g. `score.weight`.
    Saved(String),
}

/// The stored name of a low-rank matrix: `base_model.model.{module_path}.lora_A.weight`.
pub fn lora_key(module_path: &str, matrix: LoraMatrix) -> String {
    format!("base_model.model.{module_path}.lora_{matrix:?}.weight")
}

/// The stored name of a parameter that is kept whole: `base_model.model.score.weight`.
pub fn saved_key(parameter: &str) -> String {
    format!("base_model.model.{parameter}")
}

/// Parses a stored name; the adapter's own name (`.default`) may stand in it. `None` for what is neither.
pub fn parse_key(key: &str) -> Option<AdapterKey> {
    let path = key.strip_prefix("base_model.model.")?;
    for matrix in [LoraMatrix::A, LoraMatrix::B] {
        for name in ["", ".default"] {
            if let Some(module) = path.strip_suffix(&format!(".lora_{matrix:?}{name}.weight")) {
                return Some(AdapterKey::Lora(module.to_owned(), matrix));
            }
        }
    }
    if path.contains(".lora_") {
        return None;
    }
    // Inside a live PEFT model the parameter is found as score.modules_to_save.default.weight.
    Some(AdapterKey::Saved(
        path.replace(".modules_to_save.default", ""),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_pefts() {
        let path = "model.layers.0.self_attn.q_proj";
        let key = lora_key(path, LoraMatrix::A);
        assert_eq!(
            key,
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        );
        assert_eq!(
            parse_key(&key),
            Some(AdapterKey::Lora(path.into(), LoraMatrix::A))
        );
        assert_eq!(
            parse_key("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"),
            Some(AdapterKey::Lora(path.into(), LoraMatrix::B))
        );
        assert_eq!(saved_key("score.weight"), "base_model.model.score.weight");
        for key in [
            "base_model.model.score.weight",
            "base_model.model.score.modules_to_save.default.weight",
        ] {
            assert_eq!(
                parse_key(key),
                Some(AdapterKey::Saved("score.weight".into()))
            );
        }
        assert_eq!(parse_key("base_model.model.q.lora_magnitude_vector"), None);
        assert_eq!(parse_key("prompt_embeddings"), None);
    }
}
