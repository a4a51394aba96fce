//! LoRA's keys of `adapter_config.json`.
//!
//! # Source
//! PEFT 0.21, `LoraConfig`.

use serde_json::{Map, Value, json};

use super::config::{BIAS_AND_DORA, BIAS_AND_START};
use super::{InitLoraWeights, LoraConfig};
use crate::error::some_of;
use crate::peft::files::{
    AdapterConfig, Keys, count, is_off, list_or_null, number, probability, saved_modules,
};
use crate::peft::patterns::Patterns;
use crate::peft::targets::Targets;
use crate::peft::{Bias, TokenIndices};

/// The key of trained rows of tables.
pub(super) const TOKENS: &str = "trainable_token_indices";

/// As [`AdapterMethod::read`](crate::peft::AdapterMethod::read).
pub(super) fn read(keys: &Keys<'_>, targets: &Targets) -> Result<LoraConfig, String> {
    let pattern_keys = ["rank_pattern", "alpha_pattern"];
    let lora = LoraConfig {
        rank: keys.read("r", 8, count)?,
        alpha: keys.read("lora_alpha", 8.0, Value::as_f64)?,
        use_rslora: keys.read("use_rslora", false, Value::as_bool)?,
        use_dora: keys.read("use_dora", false, Value::as_bool)?,
        init_lora_weights: keys.read("init_lora_weights", InitLoraWeights::Uniform, |v| {
            // Of other starts nothing is left in the tensors.
            let init = v.as_str().and_then(InitLoraWeights::parse);
            Some(init.unwrap_or_default())
        })?,
        bias: keys.read("bias", Bias::None, Bias::read)?,
        lora_bias: keys.read("lora_bias", false, Value::as_bool)?,
        loraplus_lr_ratio: None,
        dropout: keys.read("lora_dropout", 0.0, probability)?,
        target_modules: targets.target_modules.entries().to_vec(),
        exclude_modules: targets.excluded(),
        layers_to_transform: targets.layers_to_transform.clone(),
        rank_pattern: keys.read(pattern_keys[0], Patterns::default(), |v| patterns(v, count))?,
        alpha_pattern: keys.read(pattern_keys[1], Patterns::default(), |v| {
            patterns(v, Value::as_f64)
        })?,
        modules_to_save: saved_modules(keys)?,
        ensure_weight_tying: keys.read("ensure_weight_tying", false, Value::as_bool)?,
        trainable_token_indices: keys.read(TOKENS, None, |v| {
            let indices = serde_json::from_value(v.clone()).ok();
            indices.filter(TokenIndices::are_ids).map(Some)
        })?,
    };
    let invalid = [lora.rank_pattern.invalid(), lora.alpha_pattern.invalid()];
    for (key, invalid) in pattern_keys.into_iter().zip(invalid) {
        if !invalid.is_empty() {
            return Err(format!(
                "\"{key}\": {} cannot be read as a regular expression",
                some_of(&invalid)
            ));
        }
    }
    let refused = [
        (lora.use_dora, BIAS_AND_DORA),
        (lora.init_lora_weights.takes_of_weight(), BIAS_AND_START),
    ];
    match refused.iter().find(|(holds, _)| lora.lora_bias && *holds) {
        Some((_, message)) => Err(format!("\"lora_bias\": {message}")),
        None => Ok(lora),
    }
}

/// As [`AdapterMethod::accepts`](crate::peft::AdapterMethod::accepts).
pub(super) fn accepts(key: &str, value: &Value) -> Option<bool> {
    match key {
        "bias" => Some(value.is_null() || Bias::read(value).is_some()),
        "init_lora_weights" => Some(!value.as_str().is_some_and(|how| {
            let how = how.to_lowercase();
            CHANGES_BASE.iter().any(|start| how.starts_with(start))
        })),
        key if READ.contains(&key) || HARMLESS.contains(&key) => Some(true),
        key if REFUSED.contains(&key) => Some(is_off(value)),
        _ => None,
    }
}

/// As [`AdapterMethod::write`](crate::peft::AdapterMethod::write).
pub(super) fn write(lora: &LoraConfig, config: &AdapterConfig) -> Value {
    let alphas: Map<String, Value> = (lora.alpha_pattern.iter())
        .map(|(key, alpha)| (key.to_owned(), number(*alpha)))
        .collect();
    json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": alphas,
        "arrow_config": null,
        "bias": lora.bias,
        "corda_config": null,
        "ensure_weight_tying": lora.ensure_weight_tying,
        "eva_config": null,
        "fan_in_fan_out": config.fan_in_fan_out,
        "init_lora_weights": lora.init_lora_weights,
        "kasa_config": null,
        "layer_replication": null,
        "layers_pattern": list_or_null(&config.targets.layers_pattern),
        "layers_to_transform": config.targets.layers_to_transform,
        "loftq_config": {},
        "lora_alpha": number(lora.alpha),
        "lora_bias": lora.lora_bias,
        "lora_dropout": lora.dropout,
        "lora_ga_config": null,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "monteclora_config": null,
        "qalora_group_size": 16,
        "r": lora.rank,
        "rank_pattern": lora.rank_pattern,
        "target_parameters": null,
        TOKENS: lora.trainable_token_indices,
        "use_bdlora": null,
        "use_dora": lora.use_dora,
        "use_qalora": false,
        "use_rslora": lora.use_rslora,
        "velora_config": null,
    })
}

/// Keys that never change what a saved adapter computes, whatever they hold: how it came about, and settings of
/// variants that other keys switch on.
const HARMLESS: [&str; 5] = [
    "corda_config",
    "eva_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
];

/// Keys that are read.
const READ: [&str; 13] = [
    "alpha_pattern",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "r",
    "rank_pattern",
    TOKENS,
    "use_dora",
    "use_rslora",
];

/// Keys that change the numbers unless they hold nothing or `false`.
const REFUSED: [&str; 11] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Initialisations that change the base weights, by data or by chance, so that what a saved adapter stands on is not known. PiSSA's and OLoRA's
/// parts of the weight are computed again, as PEFT does.
const CHANGES_BASE: [&str; 4] = ["pissa_niter", "corda", "loftq", "lora_ga"];

fn patterns<'a, T>(
    value: &'a Value,
    convert: impl Fn(&'a Value) -> Option<T>,
) -> Option<Patterns<T>> {
    let items = value.as_object()?.iter();
    items.map(|(k, v)| Some((k.clone(), convert(v)?))).collect()
}
