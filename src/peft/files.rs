//! `adapter_config.json`, as PEFT writes and reads it.
//!
//! # Source
//! PEFT 0.21, `LoraConfig`, and `tuners_utils.check_target_module_exists` for what its selections mean.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::LoraConfig;
use super::patterns::Patterns;
use super::targets::{LinearSpec, Selection, TargetModules};
use crate::atomic::write_atomic;
use crate::error::{Error, Result};

/// File name of the configuration inside an adapter's folder.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// File name of the tensors inside an adapter's folder.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// The version whose fields are written.
const PEFT_VERSION: &str = "0.21.2";

/// The head of a classification model, the one module beside the low-rank matrices that is stored whole.
pub(crate) const SCORE: &str = "score";

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
    /// Which layers not.
    pub exclude_modules: Option<TargetModules>,
    /// Of the layers that an entry of a list selects by its end, those with these numbers only.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Before the number stands one of these; any name if empty.
    pub layers_pattern: Vec<String>,
    /// Layers stored and trained whole (`score`).
    pub modules_to_save: Vec<String>,
    /// Other ranks by module path.
    pub rank_pattern: Patterns<usize>,
    /// Other alphas by module path.
    pub alpha_pattern: Patterns<f64>,
    /// rsLoRA's scaling.
    pub use_rslora: bool,
    /// The base stores weights as `[in, out]` (GPT-2). The adapter's own tensors are `[r, in]` and `[out, r]` all the
    /// same, and PEFT corrects the flag by the layers that it finds: it never changes the numbers.
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
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            modules_to_save: match task_type {
                TaskType::CausalLm => Vec::new(),
                TaskType::SeqCls => vec![SCORE.into()],
            },
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            use_rslora: false,
            fan_in_fan_out: false,
        }
    }

    /// Reads the configuration of an adapter's folder (or the file itself).
    ///
    /// Returns warnings too: one for each key that is not known.
    ///
    /// # Errors
    /// `Error::Format` for another kind of adapter, for keys that would change the numbers and are not implemented, and
    /// for unknown keys that switch something on; `Error::Io`.
    pub fn load(path: impl AsRef<Path>) -> Result<(Self, Vec<String>)> {
        let path = path.as_ref();
        let file = if path.is_dir() {
            path.join(ADAPTER_CONFIG)
        } else {
            path.to_path_buf()
        };
        let text = std::fs::read_to_string(&file).map_err(Error::io("read", &file))?;
        let value = serde_json::from_str(&text)
            .map_err(|e| Error::format(&file, format!("not valid JSON: {e}")))?;
        Self::from_value(&value).map_err(|message| Error::format(&file, message))
    }

    fn from_value(value: &Value) -> Result<(Self, Vec<String>), String> {
        let raw = value.as_object().ok_or("expected a JSON object")?;
        let kind = get(raw, "peft_type").and_then(Value::as_str);
        if kind != Some("LORA") {
            return Err(format!(
                "peft_type {} is not supported; supported is \"LORA\"",
                get(raw, "peft_type").unwrap_or(&Value::Null)
            ));
        }
        let warnings = judge_keys(raw)?;
        let task_type = match get(raw, "task_type").map(|v| v.as_str().unwrap_or("not a string")) {
            None | Some("CAUSAL_LM") => TaskType::CausalLm,
            Some("SEQ_CLS") => TaskType::SeqCls,
            Some(other) => {
                return Err(format!(
                    "task_type \"{other}\" is not supported; supported are CAUSAL_LM, SEQ_CLS"
                ));
            }
        };
        let modules = |key: &str| {
            let modules = get(raw, key).map(|value| {
                serde_json::from_value(value.clone()).map_err(|_| {
                    format!("\"{key}\": expected a string or a list of strings, found {value}")
                })
            });
            modules.transpose()
        };
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
            target_modules: modules("target_modules")?.ok_or("no \"target_modules\"")?,
            exclude_modules: modules("exclude_modules")?.filter(|modules| !modules.is_empty()),
            layers_to_transform: read(raw, "layers_to_transform", None, |v| {
                indices(v).map(|layers| Some(layers).filter(|layers| !layers.is_empty()))
            })?,
            layers_pattern: read(raw, "layers_pattern", Vec::new(), one_or_more)?,
            modules_to_save: read(raw, "modules_to_save", Vec::new(), one_or_more)?,
            rank_pattern: read(raw, "rank_pattern", Patterns::default(), |v| {
                patterns(v, count)
            })?,
            alpha_pattern: read(raw, "alpha_pattern", Patterns::default(), |v| {
                patterns(v, Value::as_f64)
            })?,
            use_rslora: read(raw, "use_rslora", false, Value::as_bool)?,
            fan_in_fan_out: read(raw, "fan_in_fan_out", false, Value::as_bool)?,
        };
        config.check()?;
        Ok((config, warnings))
    }

    /// What PEFT refuses, and what this crate cannot do.
    fn check(&self) -> Result<(), String> {
        let is_regex = matches!(&self.target_modules, TargetModules::One(_));
        if is_regex && self.layers_to_transform.is_some() {
            return Err(
                "\"layers_to_transform\" goes with a list of target_modules, not with one string"
                    .into(),
            );
        }
        if self.layers_to_transform.is_none() && !self.layers_pattern.is_empty() {
            return Err("\"layers_pattern\" without \"layers_to_transform\"".into());
        }
        let known = |name: &String| {
            // PEFT adds both names to every classifier; the models here have a `score`.
            self.task_type == TaskType::SeqCls && (name == SCORE || name == "classifier")
        };
        let others: Vec<&str> = (self.modules_to_save.iter())
            .filter(|name| !known(name))
            .map(String::as_str)
            .collect();
        if !others.is_empty() {
            return Err(format!(
                "modules_to_save {}: only the head of a classifier (\"score\" with task_type SEQ_CLS) can be stored whole; \
                 merge the adapter into its base with PEFT and take the merged model",
                others.join(", ")
            ));
        }
        for (key, invalid) in [
            ("rank_pattern", self.rank_pattern.invalid()),
            ("alpha_pattern", self.alpha_pattern.invalid()),
        ] {
            if !invalid.is_empty() {
                return Err(format!(
                    "\"{key}\": {} cannot be read as a regular expression",
                    invalid.join(", ")
                ));
            }
        }
        self.selection().check()
    }

    /// Which layers it is for.
    pub fn selection(&self) -> Selection<'_> {
        Selection {
            target_modules: &self.target_modules,
            exclude_modules: self.exclude_modules.as_ref(),
            layers_to_transform: self.layers_to_transform.as_deref(),
            layers_pattern: &self.layers_pattern,
        }
    }

    /// Warnings that PEFT gives too: entries that name no layer of the model.
    pub fn unused(&self, targeted: &[&LinearSpec]) -> Vec<String> {
        let paths = targeted.iter().map(|layer| layer.name.as_str());
        let unused = [
            ("rank_pattern", self.rank_pattern.unused(paths.clone())),
            ("alpha_pattern", self.alpha_pattern.unused(paths)),
        ];
        let said = unused.into_iter().flat_map(|(key, names)| {
            (names.into_iter()).map(move |name| {
                format!("{ADAPTER_CONFIG}: {key}: \"{name}\" matches no layer with an adapter")
            })
        });
        said.collect()
    }

    /// The same as a recipe would say it.
    pub fn lora(&self) -> LoraConfig {
        LoraConfig {
            rank: self.r,
            alpha: self.lora_alpha,
            use_rslora: self.use_rslora,
            dropout: self.lora_dropout,
            target_modules: self.target_modules.entries().to_vec(),
            exclude_modules: (self.exclude_modules.iter())
                .flat_map(|modules| modules.entries().to_vec())
                .collect(),
            layers_to_transform: self.layers_to_transform.clone(),
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            modules_to_save: Vec::new(),
        }
    }

    /// The file's content with every field of PEFT's `LoraConfig`.
    pub fn to_json(&self) -> Value {
        fn or_null(names: &[String]) -> Value {
            match names {
                [] => Value::Null,
                names => json!(names),
            }
        }
        let alphas: Map<String, Value> = (self.alpha_pattern.iter())
            .map(|(key, alpha)| (key.to_owned(), whole(*alpha)))
            .collect();
        json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": alphas,
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": self.exclude_modules,
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": true,
            "init_lora_weights": true,
            "kasa_config": null,
            "layer_replication": null,
            "layers_pattern": or_null(&self.layers_pattern),
            "layers_to_transform": self.layers_to_transform,
            "loftq_config": {},
            "lora_alpha": whole(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": or_null(&self.modules_to_save),
            "monteclora_config": null,
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
            "use_bdlora": null,
            "use_dora": false,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
            "velora_config": null,
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
}

/// Keys that never change what a saved adapter computes, whatever they hold: how it came about, and settings of
/// methods that other keys switch on.
const HARMLESS: [&str; 14] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Keys that are read.
const READ: [&str; 14] = [
    "alpha_pattern",
    "exclude_modules",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
    "bias",
    "init_lora_weights",
];

/// Keys that change the numbers unless they hold nothing or `false`.
const REFUSED: [&str; 14] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// Initialisations that change the base weights, which a saved adapter then no longer fits.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Whether a value switches nothing on.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Refuses keys that change what a saved adapter computes; returns warnings about keys that are not known.
///
/// PEFT switches its methods on by `true`, a list or an object. An unknown key that holds one of these may change the
/// numbers and is refused; a number or a string is a setting of something, and warned of.
fn judge_keys(raw: &Map<String, Value>) -> Result<Vec<String>, String> {
    let (mut refused, mut warnings) = (Vec::new(), Vec::new());
    for (key, value) in raw {
        let neutral = match key.as_str() {
            "bias" => value == "none" || value.is_null(),
            "init_lora_weights" => !value.as_str().is_some_and(|how| {
                let how = how.to_lowercase();
                CHANGES_BASE.iter().any(|start| how.starts_with(start))
            }),
            key if READ.contains(&key) || HARMLESS.contains(&key) => true,
            key if REFUSED.contains(&key) => is_off(value),
            _ => {
                let switch = matches!(value, Value::Bool(_) | Value::Array(_) | Value::Object(_));
                if !switch && !is_off(value) {
                    warnings.push(format!(
                        "{ADAPTER_CONFIG}: unknown key \"{key}\" is ignored"
                    ));
                }
                !switch || is_off(value)
            }
        };
        if !neutral {
            refused.push(format!("\"{key}\": {value}"));
        }
    }
    match refused.is_empty() {
        true => Ok(warnings),
        false => Err(format!("not supported: {}", refused.join(", "))),
    }
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

/// A string or a list of strings.
fn one_or_more(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(items) => items.iter().map(|v| Some(v.as_str()?.to_owned())).collect(),
        _ => None,
    }
}

/// A number or a list of numbers.
fn indices(value: &Value) -> Option<Vec<usize>> {
    let index = |value: &Value| usize::try_from(value.as_u64()?).ok();
    match value {
        Value::Array(items) => items.iter().map(index).collect(),
        one => Some(vec![index(one)?]),
    }
}

fn patterns<'a, T>(
    value: &'a Value,
    convert: impl Fn(&'a Value) -> Option<T>,
) -> Option<Patterns<T>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Value {
        json!({"peft_type": "LORA", "target_modules": ["q_proj"]})
    }

    fn with(key: &str, to: Value) -> Result<(AdapterConfig, Vec<String>), String> {
        let mut value = minimal();
        value[key] = to;
        AdapterConfig::from_value(&value)
    }

    #[test]
    fn the_smallest_file_has_pefts_defaults() {
        let (config, warnings) = AdapterConfig::from_value(&minimal()).unwrap();
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
        config.rank_pattern = [("v_proj".to_owned(), 4)].into_iter().collect();
        config.alpha_pattern = [(r"layers\.1\..*".to_owned(), 2.5), ("a".to_owned(), 3.0)]
            .into_iter()
            .collect();
        config.exclude_modules = Some(TargetModules::List(vec!["o_proj".into()]));
        config.base_model_name_or_path = Some("Qwen/Qwen3-0.6B-Base".into());
        config.lora_dropout = 0.05;
        config.save(folder.path()).unwrap();
        let (read, warnings) = AdapterConfig::load(folder.path()).unwrap();
        assert_eq!(read, config);
        assert!(warnings.is_empty(), "{warnings:?}");
        let text = std::fs::read_to_string(folder.path().join(ADAPTER_CONFIG)).unwrap();
        assert!(text.contains("\"lora_alpha\": 32,") && text.contains("\"inference_mode\": true"));
        assert!(text.contains("\"modules_to_save\": [\n    \"score\"\n  ]"));
    }

    #[test]
    fn the_same_as_a_recipe_says_it() {
        let mut value = minimal();
        for (key, to) in [
            ("r", json!(16)),
            ("lora_alpha", json!(32)),
            ("rank_pattern", json!({"v_proj": 4})),
            ("alpha_pattern", json!({r"layers\.1\..*": 8})),
            ("layers_to_transform", json!(1)),
            ("exclude_modules", json!(".*0.*")),
        ] {
            value[key] = to;
        }
        let lora = AdapterConfig::from_value(&value).unwrap().0.lora();
        let path = "model.layers.1.self_attn.v_proj";
        assert_eq!((lora.rank_of(path), lora.scale_of(path)), (4, 2.0));
        assert_eq!(lora.layers_to_transform, Some(vec![1]));
        assert_eq!(lora.exclude_modules, [".*0.*"]);
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
            ("init_lora_weights", json!("lora_ga")),
            ("target_parameters", json!(["experts.gate_up_proj"])),
            ("trainable_token_indices", json!([0])),
            ("alora_invocation_tokens", json!([1, 2])),
            ("megatron_config", json!({"tp": 2})),
            ("use_bdlora", json!({"nblocks": 2})),
            ("modules_to_save", json!(["lm_head"])),
            ("modules_to_save", json!(["score"])),
            ("layers_pattern", json!("layers")),
            ("alpha_pattern", json!({"(?=q)q_proj": 2})),
            ("exclude_modules", json!("(")),
            ("new_switch", json!(true)),
            ("new_config", json!({"a": 1})),
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
        for quiet in [json!(null), json!(false), json!([]), json!({})] {
            assert!(with("new_thing", quiet).unwrap().1.is_empty());
        }
        // PEFT corrects the flag by the layers that it finds.
        assert!(with("fan_in_fan_out", json!(true)).is_ok());
        let mut regex = minimal();
        regex["target_modules"] = json!(".*");
        assert!(AdapterConfig::from_value(&regex).is_ok());
        regex["layers_to_transform"] = json!([0]);
        assert!(AdapterConfig::from_value(&regex).is_err());
    }
}
