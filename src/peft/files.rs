//! `adapter_config.json` and the tensor names of `adapter_model.safetensors`, as PEFT writes them.
//!
//! # Source
//! PEFT 0.19, `LoraConfig` and `get_peft_model_state_dict`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::targets::TargetModules;
use crate::atomic::write_atomic;
use crate::error::{Error, Result};

/// File name of the configuration inside an adapter's folder.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// File name of the tensors inside an adapter's folder.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// The version whose fields are written.
const PEFT_VERSION: &str = "0.19.1";

/// What a model with the adapter does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskType {
    /// Next-token prediction.
    CausalLm,
    /// A scalar head: reward and value models.
    SeqCls,
}

/// A LoRA adapter's configuration; field names are PEFT's.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Causal model or classifier.
    pub task_type: TaskType,
    /// The model the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
    /// Inner dimension.
    pub r: usize,
    /// The product is scaled by `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
    pub lora_alpha: f64,
    /// Dropout on the adapter's input in training.
    pub lora_dropout: f64,
    /// Which layers.
    pub target_modules: TargetModules,
    /// Layers stored and trained whole (`score`).
    pub modules_to_save: Vec<String>,
    /// Other ranks by module name or pattern.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas by module name or pattern.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// rsLoRA's scaling.
    pub use_rslora: bool,
    /// The base stores weights as `[in, out]` (GPT-2). The adapter's own tensors are `[r, in]` and `[out, r]` all the same.
    pub fan_in_fan_out: bool,
}

impl AdapterConfig {
    /// An adapter without exceptions by layer.
    pub fn new(
        task_type: TaskType,
        r: usize,
        lora_alpha: f64,
        target_modules: TargetModules,
    ) -> Self {
        Self {
            task_type,
            base_model_name_or_path: None,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            target_modules,
            modules_to_save: match task_type {
                TaskType::CausalLm => Vec::new(),
                TaskType::SeqCls => vec!["score".into()],
            },
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            fan_in_fan_out: false,
        }
    }

    /// Reads the configuration of an adapter's folder (or the file itself) for a model of `family`.
    ///
    /// Returns warnings too: one for each key that is not known.
    ///
    /// # Errors
    /// `Error::Format` for another kind of adapter and for keys that would change the numbers and are not implemented;
    /// `Error::Io`.
    pub fn load(path: impl AsRef<Path>, family: &str) -> Result<(Self, Vec<String>)> {
        let path = path.as_ref();
        let file = if path.is_dir() {
            path.join(ADAPTER_CONFIG)
        } else {
            path.to_path_buf()
        };
        let text = std::fs::read_to_string(&file).map_err(Error::io("read", &file))?;
        let value = serde_json::from_str(&text)
            .map_err(|e| Error::format(&file, format!("not valid JSON: {e}")))?;
        Self::from_value(&value, family).map_err(|message| Error::format(&file, message))
    }

    fn from_value(value: &Value, family: &str) -> Result<(Self, Vec<String>), String> {
        let raw = value.as_object().ok_or("expected a JSON object")?;
        let kind = get(raw, "peft_type").and_then(Value::as_str);
        if kind != Some("LORA") {
            return Err(format!(
                "peft_type {} is not supported; supported is \"LORA\"",
                get(raw, "peft_type").unwrap_or(&Value::Null)
            ));
        }
        refuse_unsupported(raw)?;
        let fan_in_fan_out = read(raw, "fan_in_fan_out", false, Value::as_bool)?;
        if fan_in_fan_out && family != "gpt2" {
            return Err(format!(
                "\"fan_in_fan_out\": true does not fit a {family} model"
            ));
        }
        let task_type = match get(raw, "task_type").map(|v| v.as_str().unwrap_or("not a string")) {
            None | Some("CAUSAL_LM") => TaskType::CausalLm,
            Some("SEQ_CLS") => TaskType::SeqCls,
            Some(other) => {
                return Err(format!(
                    "task_type \"{other}\" is not supported; supported are CAUSAL_LM, SEQ_CLS"
                ));
            }
        };
        let target_modules = get(raw, "target_modules").ok_or("no \"target_modules\"")?;
        let config = Self {
            task_type,
            base_model_name_or_path: get(raw, "base_model_name_or_path")
                .and_then(Value::as_str)
                .map(str::to_owned),
            r: read(raw, "r", 8, count)?,
            lora_alpha: read(raw, "lora_alpha", 8.0, Value::as_f64)?,
            lora_dropout: read(raw, "lora_dropout", 0.0, |v| {
                v.as_f64().filter(|p| (0.0..1.0).contains(p))
            })?,
            target_modules: serde_json::from_value(target_modules.clone()).map_err(|_| {
                format!("\"target_modules\": expected a string or a list of strings, found {target_modules}")
            })?,
            modules_to_save: read(raw, "modules_to_save", Vec::new(), strings)?,
            rank_pattern: read(raw, "rank_pattern", BTreeMap::new(), |v| map(v, count))?,
            alpha_pattern: read(raw, "alpha_pattern", BTreeMap::new(), |v| map(v, Value::as_f64))?,
            use_rslora: read(raw, "use_rslora", false, Value::as_bool)?,
            fan_in_fan_out,
        };
        let known =
            Self::new(TaskType::CausalLm, 8, 8.0, TargetModules::List(Vec::new())).to_json();
        let warnings = raw
            .keys()
            .filter(|key| known.get(key.as_str()).is_none() && !IGNORED.contains(&key.as_str()))
            .map(|key| format!("{ADAPTER_CONFIG}: unknown key \"{key}\" is ignored"))
            .collect();
        Ok((config, warnings))
    }

    /// The file's content with every field of PEFT's `LoraConfig`.
    pub fn to_json(&self) -> Value {
        let modules_to_save = match self.modules_to_save.as_slice() {
            [] => Value::Null,
            names => json!(names),
        };
        json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": self.alpha_pattern,
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": null,
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": whole(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": modules_to_save,
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "qalora_group_size": 16,
            "r": self.r,
            "rank_pattern": self.rank_pattern,
            "revision": null,
            "target_modules": self.target_modules,
            "target_parameters": null,
            "task_type": match self.task_type {
                TaskType::CausalLm => "CAUSAL_LM",
                TaskType::SeqCls => "SEQ_CLS",
            },
            "trainable_token_indices": null,
            "use_dora": false,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
        })
    }

    /// Writes `adapter_config.json` into a folder, atomically.
    ///
    /// # Errors
    /// `Error::Io`.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let text = format!("{:#}\n", self.to_json());
        write_atomic(folder.as_ref().join(ADAPTER_CONFIG), text.as_bytes())
    }

    /// The rank at a module path, `rank_pattern` applied.
    pub fn rank_of(&self, module_path: &str) -> usize {
        pattern_value(&self.rank_pattern, module_path).unwrap_or(self.r)
    }

    /// The factor of `B A` at a module path, both patterns applied.
    pub fn scaling_of(&self, module_path: &str) -> f64 {
        let alpha = pattern_value(&self.alpha_pattern, module_path).unwrap_or(self.lora_alpha);
        let rank = self.rank_of(module_path) as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// Known keys that do not change the numbers of a saved adapter, or only when they hold something else than refused below.
const IGNORED: [&str; 3] = ["velora_config", "monteclora_config", "runtime_config"];

/// Keys that change what a saved adapter computes, with the values at which they do not.
fn refuse_unsupported(raw: &Map<String, Value>) -> Result<(), String> {
    let neutral = |key: &str, value: &Value| match key {
        "bias" => value == "none",
        "use_dora" | "lora_bias" | "use_qalora" => value == false,
        "layer_replication"
        | "layers_to_transform"
        | "exclude_modules"
        | "alora_invocation_tokens"
        | "trainable_token_indices"
        | "target_parameters"
        | "arrow_config"
        | "megatron_config"
        | "velora_config"
        | "monteclora_config" => value.as_array().is_some_and(Vec::is_empty),
        "loftq_config" => value.as_object().is_some_and(Map::is_empty),
        // These initialise by changing the base weights, which a saved adapter then no longer fits.
        "init_lora_weights" => !value.as_str().is_some_and(|how| {
            let how = how.to_lowercase();
            ["pissa", "olora", "corda", "loftq"]
                .iter()
                .any(|p| how.starts_with(p))
        }),
        _ => true,
    };
    let refused: Vec<String> = raw
        .iter()
        .filter(|(key, value)| !value.is_null() && !neutral(key, value))
        .map(|(key, value)| format!("\"{key}\": {value}"))
        .collect();
    if refused.is_empty() {
        Ok(())
    } else {
        Err(format!("not supported: {}", refused.join(", ")))
    }
}

/// The value of the first key that matches the end of the path, as PEFT's `get_pattern_key` finds it.
fn pattern_value<T: Copy>(patterns: &BTreeMap<String, T>, path: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(pattern, _)| {
            regex::Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
                .is_ok_and(|pattern| pattern.is_match(path))
        })
        .map(|(_, value)| *value)
}

fn get<'a>(raw: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    raw.get(key).filter(|v| !v.is_null())
}

fn read<'a, T>(
    raw: &'a Map<String, Value>,
    key: &str,
    default: T,
    convert: impl Fn(&'a Value) -> Option<T>,
) -> Result<T, String> {
    get(raw, key).map_or(Ok(default), |v| {
        convert(v).ok_or_else(|| format!("\"{key}\": {v} cannot be used"))
    })
}

fn count(value: &Value) -> Option<usize> {
    let n = value.as_u64().filter(|&n| n > 0)?;
    usize::try_from(n).ok()
}

fn strings(value: &Value) -> Option<Vec<String>> {
    let items = value.as_array()?.iter();
    items.map(|v| Some(v.as_str()?.to_owned())).collect()
}

fn map<'a, T>(
    value: &'a Value,
    convert: impl Fn(&'a Value) -> Option<T>,
) -> Option<BTreeMap<String, T>> {
    let items = value.as_object()?.iter();
    items.map(|(k, v)| Some((k.clone(), convert(v)?))).collect()
}

/// A whole number without ".0", as people write alpha.
fn whole(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 {
        json!(x as i64)
    } else {
        json!(x)
    }
}

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

    fn minimal() -> Value {
        json!({"peft_type": "LORA", "target_modules": ["q_proj"]})
    }

    fn with(key: &str, to: Value) -> Result<(AdapterConfig, Vec<String>), String> {
        let mut value = minimal();
        value[key] = to;
        AdapterConfig::from_value(&value, "llama")
    }

    #[test]
    fn the_smallest_file_has_pefts_defaults() {
        let (config, warnings) = AdapterConfig::from_value(&minimal(), "llama").unwrap();
        assert_eq!(
            (config.r, config.lora_alpha, config.lora_dropout),
            (8, 8.0, 0.0)
        );
        assert_eq!(config.task_type, TaskType::CausalLm);
        assert_eq!(
            config.target_modules,
            TargetModules::List(vec!["q_proj".into()])
        );
        assert!(warnings.is_empty());
    }

    #[test]
    fn a_written_file_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = AdapterConfig::new(
            TaskType::SeqCls,
            16,
            32.0,
            TargetModules::One(".*_proj".into()),
        );
        config.rank_pattern.insert("v_proj".into(), 4);
        config.alpha_pattern.insert(r"layers\.1\..*".into(), 2.5);
        config.base_model_name_or_path = Some("Qwen/Qwen3-0.6B-Base".into());
        config.lora_dropout = 0.05;
        config.save(folder.path()).unwrap();
        let (read, warnings) = AdapterConfig::load(folder.path(), "qwen3").unwrap();
        assert_eq!(read, config);
        assert!(warnings.is_empty(), "{warnings:?}");
        let text = std::fs::read_to_string(folder.path().join(ADAPTER_CONFIG)).unwrap();
        assert!(text.contains("\"lora_alpha\": 32,") && text.contains("\"inference_mode\": true"));
        assert!(text.contains("\"modules_to_save\": [\n    \"score\"\n  ]"));
    }

    #[test]
    fn patterns_change_rank_and_scaling() {
        let mut config = AdapterConfig::new(
            TaskType::CausalLm,
            16,
            32.0,
            TargetModules::One("all-linear".into()),
        );
        config.rank_pattern.insert("v_proj".into(), 4);
        config.alpha_pattern.insert(r"layers\.1\..*".into(), 8.0);
        let path = "model.layers.1.self_attn.v_proj";
        assert_eq!(config.rank_of(path), 4);
        assert_eq!(config.scaling_of(path), 2.0);
        assert_eq!(config.scaling_of("model.layers.0.self_attn.v_proj"), 8.0);
        assert_eq!(config.rank_of("model.layers.0.self_attn.my_v_proj"), 16);
        config.use_rslora = true;
        assert_eq!(config.scaling_of("model.layers.0.mlp.up_proj"), 8.0);
    }

    #[test]
    fn what_changes_the_numbers_is_refused_and_the_rest_warned_of() {
        for (key, value) in [
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("lora_bias", json!(true)),
            ("layer_replication", json!([[0, 2]])),
            ("loftq_config", json!({"loftq_bits": 4})),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("layers_to_transform", json!([1])),
            ("fan_in_fan_out", json!(true)),
            ("r", json!(0)),
            ("rank_pattern", json!({"q_proj": "four"})),
            ("peft_type", json!("IA3")),
            ("task_type", json!("TOKEN_CLS")),
            ("lora_dropout", json!(1.5)),
        ] {
            let message = with(key, value).unwrap_err();
            assert!(message.contains(key), "{message}");
        }
        assert!(with("init_lora_weights", json!("gaussian")).is_ok());
        assert!(with("layers_to_transform", Value::Null).is_ok());
        let (_, warnings) = with("new_thing", json!(1)).unwrap();
        assert_eq!(
            warnings,
            ["adapter_config.json: unknown key \"new_thing\" is ignored"]
        );
        let mut gpt2 = minimal();
        gpt2["fan_in_fan_out"] = json!(true);
        assert!(
            AdapterConfig::from_value(&gpt2, "gpt2")
                .unwrap()
                .0
                .fan_in_fan_out
        );
    }

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
