//! Files of bottleneck adapters, in the layout of the library adapters: `adapter_config.json` with the settings under `config`, and
//! `adapter.safetensors` with `{block}.attention_adapters.adapters.{name}.adapter_down.0.weight` and its like.
//!
//! What is written has more keys, which the library does not look at: the base, what the model does, PEFT's `peft_type`, and
//! `modules_to_save` with `ensure_weight_tying`. What these name lies beside the adapters under PEFT's names, `base_model.model.` and
//! the parameter's own, as does a classifier's `score.weight`.
//!
//! # Source
//! adapters 1.3, `BnConfig` and `AdapterLoader`.

use serde_json::{Map, Value, json};

use super::bottleneck::{BottleneckConfig, NonLinearity, Placement, site};
use super::files::{AdapterConfig, Keys, TaskType, is_off, list_or_null, saved_modules};
use super::keys::tensor_key;
use super::targets::LinearSpec;
use crate::error::some_of;

/// The value of `peft_type`: PEFT knows no such method.
pub(super) const KIND: &str = "BOTTLENECK";

/// File name of the tensors.
pub(crate) const WEIGHTS: &str = "adapter.safetensors";

/// The name that adapters have in their files.
const NAME: &str = "adapter";

/// The library's words for what lies between the layers; the first of each is written. The last is no word of the library.
const NON_LINEARITIES: [(NonLinearity, &[&str]); 5] = [
    (NonLinearity::Relu, &["relu"]),
    (NonLinearity::Gelu, &["gelu"]),
    (NonLinearity::GeluTanh, &["gelu_new", "gelu_pytorch_tanh"]),
    (NonLinearity::Swish, &["swish", "silu"]),
    (NonLinearity::SwiGlu, &["swiglu"]),
];

/// From the keys of the file.
pub(super) fn read(keys: &Keys<'_>) -> Result<BottleneckConfig, String> {
    let settings = keys.read("config", None, |value| Some(value.as_object()))?;
    let settings = Keys::of(settings.ok_or("no \"config\"")?);
    refuse(&settings)?;
    let is = |key: &str| settings.read(key, false, Value::as_bool);
    let placement = match (
        is("is_parallel")?,
        is("mh_adapter")?,
        is("original_ln_before")?,
    ) {
        (true, false, _) => Placement::Parallel,
        (false, false, true) => Placement::Pfeiffer,
        (false, true, false) => Placement::Houlsby,
        (parallel, attention, stream) => {
            return Err(format!(
                "\"is_parallel\": {parallel}, \"mh_adapter\": {attention} and \"original_ln_before\": {stream} go together in none of \
                 SeqBnConfig, DoubleSeqBnConfig and ParBnConfig"
            ));
        }
    };
    if !settings.read("output_adapter", true, Value::as_bool)? {
        return Err("\"output_adapter\": false cannot be used".into());
    }
    let non_linearity = settings.read("non_linearity", None, |value| {
        let word = value.as_str()?.to_lowercase();
        let known = NON_LINEARITIES
            .iter()
            .find(|(_, words)| words.contains(&word.as_str()));
        known.map(|(known, _)| Some(*known))
    })?;
    let positive = |value: &Value| value.as_f64().filter(|x| *x > 0.0);
    let indices = |value: &Value| -> Option<Vec<usize>> {
        let items = value.as_array()?.iter();
        items
            .map(|item| usize::try_from(item.as_u64()?).ok())
            .collect()
    };
    Ok(BottleneckConfig {
        placement,
        size: settings.read("size", None, |value| {
            Some(usize::try_from(value.as_u64()?).ok())
        })?,
        reduction_factor: settings.read("reduction_factor", 16.0, positive)?,
        non_linearity: non_linearity.ok_or("no \"non_linearity\"")?,
        scaling: settings.read("scaling", 1.0, Value::as_f64)?,
        leave_out: settings.read("leave_out", Vec::new(), indices)?,
        modules_to_save: saved_modules(keys)?,
        ensure_weight_tying: keys.read("ensure_weight_tying", false, Value::as_bool)?,
    })
}

/// Refuses settings that change what is computed and are not implemented.
fn refuse(settings: &Keys<'_>) -> Result<(), String> {
    let off = [
        "ln_before",
        "ln_after",
        "use_gating",
        "phm_layer",
        "inv_adapter",
        "cross_adapter",
        "adapter_residual_before_ln",
    ];
    let mut refused = Vec::new();
    for (key, value) in settings.entries() {
        let neutral = match key.as_str() {
            key if off.contains(&key) => is_off(value),
            "original_ln_after" | "residual_before_ln" => value == &Value::Bool(true),
            "architecture" => is_off(value),
            "stochastic_depth" => value.as_f64() == Some(0.0),
            _ => true,
        };
        if !neutral {
            refused.push(format!("\"{key}\": {value}"));
        }
    }
    match refused.is_empty() {
        true => Ok(()),
        false => Err(format!("not supported: {}", some_of(&refused))),
    }
}

/// Keys of the file; those below `config` are looked at by [`read`].
pub(super) fn accepts(key: &str, value: &Value) -> Option<bool> {
    match key {
        "config" => Some(value.is_object()),
        "ensure_weight_tying"
        | "hidden_size"
        | "model_class"
        | "model_name"
        | "model_type"
        | "name"
        | "version" => Some(true),
        _ => None,
    }
}

/// The whole file.
pub(super) fn write(method: &BottleneckConfig, config: &AdapterConfig) -> Value {
    let words = NON_LINEARITIES
        .iter()
        .find(|(known, _)| *known == method.non_linearity);
    let words = words.map_or("relu", |(_, words)| words[0]);
    let width = config.shape.as_ref().map(|shape| shape.hidden);
    // The library divides the model's width and rounds down.
    let factor = match (method.size, width) {
        (Some(size), Some(width)) => width as f64 / size as f64,
        _ => method.reduction_factor,
    };
    let whole = |x: f64| {
        if x.fract() == 0.0 {
            json!(x as i64)
        } else {
            json!(x)
        }
    };
    let parallel = method.placement == Placement::Parallel;
    json!({
        "base_model_name_or_path": config.base_model_name_or_path,
        "config": {
            "adapter_residual_before_ln": false,
            "cross_adapter": false,
            "dropout": 0.0,
            "init_weights": if parallel { "mam_adapter" } else { "bert" },
            "inv_adapter": null,
            "inv_adapter_reduction_factor": null,
            "is_parallel": parallel,
            "leave_out": method.leave_out,
            "ln_after": false,
            "ln_before": false,
            "mh_adapter": method.placement == Placement::Houlsby,
            "non_linearity": words,
            "original_ln_after": true,
            "original_ln_before": method.placement == Placement::Pfeiffer,
            "output_adapter": true,
            "phm_layer": false,
            "reduction_factor": whole(factor),
            "residual_before_ln": true,
            "scaling": method.scaling,
            "stochastic_depth": 0.0,
            "use_gating": false,
        },
        "ensure_weight_tying": method.ensure_weight_tying,
        "hidden_size": width,
        "model_name": config.base_model_name_or_path,
        "modules_to_save": list_or_null(&config.modules_to_save),
        "name": NAME,
        "peft_type": KIND,
        "task_type": match config.task_type {
            TaskType::CausalLm => "CAUSAL_LM",
            TaskType::SeqCls => "SEQ_CLS",
        },
        "version": "adapters.1.3.0",
    })
}

/// Whether a file is the library's: it names no method of PEFT's and has the settings under `config`.
pub(super) fn is_library_file(keys: &Map<String, Value>) -> bool {
    let version = keys.get("version").and_then(Value::as_str);
    !keys.contains_key("peft_type")
        && version.is_some_and(|version| version.starts_with("adapters."))
}

/// The file's name of the tensor whose key is that of [`tensor_key`].
pub(super) fn file_key(key: &str) -> String {
    let layer = key.strip_prefix("base_model.model.").unwrap_or(key);
    let Some((path, tensor)) = layer.split_once(".adapter_") else {
        return key.to_owned();
    };
    let Some((block, attention)) = site(path) else {
        return key.to_owned();
    };
    let part = if attention {
        "attention_adapters"
    } else {
        "output_adapters"
    };
    // The first layer is one of a sequence in the library.
    let tensor = tensor.replacen("down.", "down.0.", 1);
    format!("{block}.{part}.adapters.{NAME}.adapter_{tensor}")
}

/// The key of [`tensor_key`] for a tensor of a file; `None` if the name is not one of the library's, or of no layer of `linear`.
pub(crate) fn own_key(name: &str, linear: &[LinearSpec]) -> Option<String> {
    let (at, attention) = match name.find(".attention_adapters.adapters.") {
        Some(at) => (at, true),
        None => (name.find(".output_adapters.adapters.")?, false),
    };
    let block = &name[..at];
    let (_, tensor) = name.split_once(".adapter_")?;
    let layer = (linear.iter()).find(|layer| site(&layer.name) == Some((block, attention)))?;
    let tensor = tensor.replacen("down.0.", "down.", 1);
    Some(tensor_key(&layer.name, &format!("adapter_{tensor}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::LayerKind;

    #[test]
    fn names_are_the_librarys_both_ways() {
        let linear = [LinearSpec {
            kind: LayerKind::Linear,
            name: "model.layers.2.mlp.down_proj".into(),
            in_features: 24,
            out_features: 16,
        }];
        let key = "base_model.model.model.layers.2.mlp.down_proj.adapter_down.weight";
        let name = "model.layers.2.output_adapters.adapters.adapter.adapter_down.0.weight";
        assert_eq!(file_key(key), name);
        assert_eq!(own_key(name, &linear).as_deref(), Some(key));
        let up = "model.layers.2.output_adapters.adapters.task.adapter_up.bias";
        let key = "base_model.model.model.layers.2.mlp.down_proj.adapter_up.bias";
        assert_eq!(own_key(up, &linear).as_deref(), Some(key));
        assert_eq!(
            own_key(
                "model.layers.1.output_adapters.adapters.task.adapter_up.bias",
                &linear
            ),
            None
        );
        assert_eq!(
            file_key("base_model.model.score.weight"),
            "base_model.model.score.weight"
        );
    }
}
