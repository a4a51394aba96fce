//! `adapter_config.json`, as PEFT writes and reads it.
//!
//! # Source
//! PEFT 0.21, `PeftConfig` and its methods' own, and `tuners_utils.check_target_module_exists` for what selections mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::base::{read_base, write_base};
use super::targets::{LinearSpec, Selection, TargetModules, Targets};
use super::{AdapterSpec, DecoderShape, bottleneck_files};
use crate::atomic::write_atomic;
use crate::error::{Error, Result, some_of};
use crate::outside;

/// File name of the configuration inside an adapter's folder.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// File name of the tensors inside an adapter's folder.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// File name of PEFT's before 0.6, which is not read.
const PICKLED_WEIGHTS: &str = "adapter_model.bin";

/// The version whose fields are written.
const PEFT_VERSION: &str = "0.21.2";

/// The head of a classification model, which is stored whole beside any method's adapters.
pub(crate) const SCORE: &str = "score";

/// What PEFT adds to the `modules_to_save` of every classifier; the models here have a `score`.
const CLASSIFIER: [&str; 2] = [SCORE, "classifier"];

/// What a model with the adapter does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskType {
    /// Next-token prediction.
    CausalLm,
    /// A scalar head: reward and value models.
    SeqCls,
}

/// The configuration of an adapter's folder: what all methods have, and the method's own.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Causal model or classifier.
    pub task_type: TaskType,
    /// The model the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
    /// Which layers, in PEFT's words.
    pub targets: Targets,
    /// Layers stored and trained whole (`score`).
    pub modules_to_save: Vec<String>,
    /// The base stores weights as `[in, out]` (GPT-2). An adapter's own tensors are the same for both, and PEFT corrects the
    /// flag by the layers that it finds: it never changes the numbers.
    pub fan_in_fan_out: bool,
    /// The method, with its settings as a recipe gives them.
    pub spec: AdapterSpec,
    /// Sizes of the model, of which a method with virtual tokens writes some; files are read without.
    pub shape: Option<DecoderShape>,
}

impl AdapterConfig {
    /// The configuration of a trained adapter on the layers at `paths`.
    pub fn new(task_type: TaskType, spec: AdapterSpec, paths: Vec<String>) -> Self {
        Self {
            task_type,
            base_model_name_or_path: None,
            targets: Targets::of(TargetModules::List(paths)),
            modules_to_save: {
                let score = (task_type == TaskType::SeqCls).then_some(SCORE);
                let modules = spec.beside().entries().chain(score);
                modules.map(str::to_owned).collect()
            },
            fan_in_fan_out: false,
            spec,
            shape: None,
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
        let text = outside::read_text(&file, outside::SETTINGS)?;
        let value = serde_json::from_str(&text)
            .map_err(|e| Error::format(&file, format!("not valid JSON: {e}")))?;
        Self::from_value(&value).map_err(|message| Error::format(&file, message))
    }

    fn from_value(value: &Value) -> Result<(Self, Vec<String>), String> {
        let keys = Keys(value.as_object().ok_or("expected a JSON object")?);
        let peft_type = match keys.get("peft_type") {
            None if bottleneck_files::is_library_file(keys.0) => bottleneck_files::KIND,
            Some(Value::String(peft_type)) => peft_type.as_str(),
            other => {
                let found = other.unwrap_or(&Value::Null);
                return Err(format!("\"peft_type\": {found} cannot be used"));
            }
        };
        if !AdapterSpec::PEFT_TYPES.contains(&peft_type) {
            return Err(super::unknown_method(peft_type));
        }
        let warnings = judge_keys(peft_type, keys)?;
        let task_type = match keys
            .get("task_type")
            .map(|v| v.as_str().unwrap_or("not a string"))
        {
            None | Some("CAUSAL_LM") => TaskType::CausalLm,
            Some("SEQ_CLS") => TaskType::SeqCls,
            Some(other) => {
                return Err(format!(
                    "task_type \"{other}\" is not supported; supported are CAUSAL_LM, SEQ_CLS"
                ));
            }
        };
        let target_modules = keys.modules("target_modules")?;
        let targets = Targets {
            target_modules: target_modules
                .clone()
                .unwrap_or(TargetModules::List(Vec::new())),
            exclude_modules: (keys.modules("exclude_modules")?).filter(|m| !m.is_empty()),
            layers_to_transform: keys.read("layers_to_transform", None, |v| {
                indices(v).map(|layers| Some(layers).filter(|layers| !layers.is_empty()))
            })?,
            layers_pattern: keys.read("layers_pattern", Vec::new(), one_or_more)?,
        };
        let named = target_modules.is_some() || AdapterSpec::has_own_targets(peft_type);
        let spec = AdapterSpec::read(peft_type, &keys, named.then_some(&targets))?;
        let config = Self {
            task_type,
            base_model_name_or_path: read_base(keys.0),
            modules_to_save: keys.read("modules_to_save", Vec::new(), one_or_more)?,
            fan_in_fan_out: keys.read("fan_in_fan_out", false, Value::as_bool)?,
            targets: spec.own_targets().unwrap_or(targets),
            spec,
            shape: None,
        };
        config.check()?;
        Ok((config, warnings))
    }

    /// What PEFT refuses, and what this crate cannot do.
    fn check(&self) -> Result<(), String> {
        let targets = &self.targets;
        let is_regex = matches!(&targets.target_modules, TargetModules::One(_));
        if is_regex && targets.layers_to_transform.is_some() {
            return Err(
                "\"layers_to_transform\" goes with a list of target_modules, not with one string"
                    .into(),
            );
        }
        if targets.layers_to_transform.is_none() && !targets.layers_pattern.is_empty() {
            return Err("\"layers_pattern\" without \"layers_to_transform\"".into());
        }
        let known = |name: &String| match CLASSIFIER.contains(&name.as_str()) {
            true => self.task_type == TaskType::SeqCls,
            false => self.spec.beside().modules.contains(name),
        };
        let others: Vec<&str> = (self.modules_to_save.iter())
            .filter(|name| !known(name))
            .map(String::as_str)
            .collect();
        if !others.is_empty() {
            return Err(format!(
                "modules_to_save {}: {} has none here but the head of a classifier (\"score\" with task_type SEQ_CLS); train by a method \
                 on layers instead, e.g. LoRA",
                others.join(", "),
                self.spec.peft_type()
            ));
        }
        self.selection().check()
    }

    /// Which layers it is for.
    pub fn selection(&self) -> Selection<'_> {
        self.targets.selection()
    }

    /// Warnings that PEFT gives too: entries that name no layer of the model.
    pub fn unused(&self, targeted: &[&LinearSpec]) -> Vec<String> {
        let paths: Vec<&str> = targeted.iter().map(|layer| layer.name.as_str()).collect();
        let unused = self.spec.unused(&paths).into_iter();
        unused
            .map(|entry| format!("{ADAPTER_CONFIG}: {entry}"))
            .collect()
    }

    /// The file's content with every field of PEFT's configuration of the method, by name.
    pub fn to_json(&self) -> Value {
        if self.spec.has_own_files() {
            return self.spec.write(self);
        }
        let mut base = Map::from_iter([("revision".to_owned(), Value::Null)]);
        write_base(&mut base, self.base_model_name_or_path.as_deref());
        let common = json!({
            "auto_mapping": null,
            "inference_mode": true,
            "modules_to_save": list_or_null(&self.modules_to_save),
            "peft_type": self.spec.peft_type(),
            "peft_version": PEFT_VERSION,
            "task_type": match self.task_type {
                TaskType::CausalLm => "CAUSAL_LM",
                TaskType::SeqCls => "SEQ_CLS",
            },
        });
        let layers = json!({
            "exclude_modules": self.targets.exclude_modules,
            "target_modules": self.targets.target_modules,
        });
        let layers = if self.spec.on_layers() {
            layers
        } else {
            Value::Null
        };
        let objects = [Value::Object(base), common, layers, self.spec.write(self)].into_iter();
        let keys: BTreeMap<String, Value> = objects
            .filter_map(|object| match object {
                Value::Object(keys) => Some(keys),
                _ => None,
            })
            .flatten()
            .collect();
        let has = |key: &str| match key {
            "exclude_modules" => self.spec.has_exclude_modules(),
            "modules_to_save" => self.spec.has_modules_to_save(),
            _ => true,
        };
        Value::Object(keys.into_iter().filter(|(key, _)| has(key)).collect())
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

/// The weight file of an adapter's folder.
///
/// # Errors
/// `Error::Format` where there is none, and for pickled weights.
pub fn weights_file(folder: impl AsRef<Path>) -> Result<PathBuf> {
    let folder = folder.as_ref();
    let file = folder.join(ADAPTER_WEIGHTS);
    let own = folder.join(bottleneck_files::WEIGHTS);
    let pickled = folder.join(PICKLED_WEIGHTS);
    match () {
        () if file.is_file() => Ok(file),
        () if own.is_file() => Ok(own),
        () if pickled.is_file() => Err(Error::format(
            pickled,
            format!(
                "pickled PyTorch weights can run code and are not read; convert them to {ADAPTER_WEIGHTS} \
                 (PEFT: PeftModel.from_pretrained(base, folder).save_pretrained(folder))"
            ),
        )),
        () => Err(Error::format(
            folder,
            format!("no weights: expected {ADAPTER_WEIGHTS} beside {ADAPTER_CONFIG}"),
        )),
    }
}

/// Keys of every method that never change what a saved adapter computes, whatever they hold: how it came about.
const HARMLESS: [&str; 8] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
];

/// Keys of every method that are read.
const READ: [&str; 3] = ["exclude_modules", "modules_to_save", "target_modules"];

/// Whether a value switches nothing on.
pub(super) fn is_off(value: &Value) -> bool {
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
/// PEFT switches its variants on by `true`, a list or an object. An unknown key that holds one of these may change the
/// numbers and is refused; a number or a string is a setting of something, and warned of.
fn judge_keys(peft_type: &str, keys: Keys<'_>) -> Result<Vec<String>, String> {
    let (mut refused, mut warnings) = (Vec::new(), Vec::new());
    for (key, value) in keys.0 {
        let common = READ.contains(&key.as_str()) || HARMLESS.contains(&key.as_str());
        let neutral = match AdapterSpec::accepts(peft_type, key, value) {
            _ if common => true,
            Some(neutral) => neutral,
            None => {
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
        false => Err(format!("not supported: {}", some_of(&refused))),
    }
}

/// The keys of an `adapter_config.json`.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    /// Those of an object inside.
    pub(super) fn of(object: &'a Map<String, Value>) -> Self {
        Self(object)
    }

    /// All of them.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.0.iter()
    }

    /// A value that is not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// A value, `default` where the file has none.
    ///
    /// # Errors
    /// With key and value where `convert` gives `None`.
    pub fn read<T>(
        &self,
        key: &str,
        default: T,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, String> {
        self.get(key).map_or(Ok(default), |v| {
            convert(v).ok_or_else(|| format!("\"{key}\": {v} cannot be used"))
        })
    }

    /// Names of modules: a string or a list.
    ///
    /// # Errors
    /// With key and value of anything else.
    pub fn modules(&self, key: &str) -> Result<Option<TargetModules>, String> {
        let modules = self.get(key).map(|value| {
            serde_json::from_value(value.clone()).map_err(|_| {
                format!("\"{key}\": expected a string or a list of strings, found {value}")
            })
        });
        modules.transpose()
    }
}

/// The modules that are stored whole, but for a classifier's head.
///
/// # Errors
/// For what is no list of names.
pub(super) fn saved_modules(keys: &Keys<'_>) -> Result<Vec<String>, String> {
    let mut modules = keys.read("modules_to_save", Vec::new(), one_or_more)?;
    modules.retain(|name| !CLASSIFIER.contains(&name.as_str()));
    Ok(modules)
}

/// A probability below 1.
pub(super) fn probability(value: &Value) -> Option<f64> {
    value.as_f64().filter(|p| (0.0..1.0).contains(p))
}

/// A number above 0.
pub(super) fn count(value: &Value) -> Option<usize> {
    let n = value.as_u64().filter(|&n| n > 0)?;
    usize::try_from(n).ok()
}

/// A list, or null for an empty one, as PEFT writes it.
pub(super) fn list_or_null(names: &[String]) -> Value {
    match names {
        [] => Value::Null,
        names => json!(names),
    }
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

/// A whole number without ".0", as people write alpha.
pub(super) fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 {
        json!(x as i64)
    } else {
        json!(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::LoraConfig;

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
        let expected = LoraConfig {
            rank: 8,
            alpha: 8.0,
            target_modules: vec!["q_proj".into()],
            ..LoraConfig::default()
        };
        assert_eq!(config.spec, AdapterSpec::Lora(expected));
        assert_eq!(config.task_type, TaskType::CausalLm);
        assert_eq!(
            config.targets.target_modules,
            TargetModules::List(vec!["q_proj".into()])
        );
        assert!(warnings.is_empty());
    }

    #[test]
    fn a_written_file_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let lora = LoraConfig {
            rank: 16,
            alpha: 32.0,
            dropout: 0.05,
            target_modules: vec![".*_proj".into()],
            exclude_modules: vec!["o_proj".into()],
            rank_pattern: [("v_proj".to_owned(), 4)].into_iter().collect(),
            alpha_pattern: [(r"layers\.1\..*".to_owned(), 2.5), ("a".to_owned(), 3.0)]
                .into_iter()
                .collect(),
            ..LoraConfig::default()
        };
        let mut config = AdapterConfig::new(TaskType::SeqCls, (&lora).into(), Vec::new());
        config.targets.target_modules = TargetModules::One(".*_proj".into());
        config.targets.exclude_modules = Some(TargetModules::List(vec!["o_proj".into()]));
        config.base_model_name_or_path = Some("Qwen/Qwen3-0.6B-Base".into());
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
        let expected = LoraConfig {
            rank: 16,
            alpha: 32.0,
            target_modules: vec!["q_proj".into()],
            exclude_modules: vec![".*0.*".into()],
            layers_to_transform: Some(vec![1]),
            rank_pattern: [("v_proj".to_owned(), 4)].into_iter().collect(),
            alpha_pattern: [(r"layers\.1\..*".to_owned(), 8.0)].into_iter().collect(),
            ..LoraConfig::default()
        };
        let spec = AdapterConfig::from_value(&value).unwrap().0.spec;
        assert_eq!(spec, AdapterSpec::from(&expected));
    }

    #[test]
    fn what_changes_the_numbers_is_refused_and_the_rest_warned_of() {
        for (key, value) in [
            ("layer_replication", json!([[0, 2]])),
            ("loftq_config", json!({"loftq_bits": 4})),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("init_lora_weights", json!("lora_ga")),
            ("target_parameters", json!(["experts.gate_up_proj"])),
            ("trainable_token_indices", json!(["a"])),
            ("alora_invocation_tokens", json!([1, 2])),
            ("megatron_config", json!({"tp": 2})),
            ("use_bdlora", json!({"nblocks": 2})),
            ("modules_to_save", json!(["score"])),
            ("layers_pattern", json!("layers")),
            ("alpha_pattern", json!({"(?=q": 2})),
            ("exclude_modules", json!("(")),
            ("new_switch", json!(true)),
            ("new_config", json!({"a": 1})),
            ("r", json!(0)),
            ("rank_pattern", json!({"q_proj": "four"})),
            ("peft_type", json!("OFT")),
            ("task_type", json!("TOKEN_CLS")),
            ("lora_dropout", json!(1.5)),
        ] {
            let message = with(key, value).unwrap_err();
            assert!(message.contains(key), "{message}");
        }
        let saved = ["lm_head", "norm"];
        let (read, _) = with("modules_to_save", json!(saved)).unwrap();
        assert_eq!(read.spec.beside().modules, saved);
        let mut prompt = json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "task_type": "CAUSAL_LM"});
        assert!(AdapterConfig::from_value(&prompt).is_ok());
        prompt["modules_to_save"] = json!(saved);
        let message = AdapterConfig::from_value(&prompt).unwrap_err();
        assert!(
            message.contains("modules_to_save lm_head, norm: PROMPT_TUNING has none here"),
            "{message}"
        );
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
        for (key, value) in [
            ("use_dora", json!(true)),
            ("init_lora_weights", json!("olora")),
        ] {
            let mut bias = minimal();
            bias["lora_bias"] = json!(true);
            assert!(AdapterConfig::from_value(&bias).is_ok());
            bias[key] = value;
            let message = AdapterConfig::from_value(&bias).unwrap_err();
            assert!(message.contains("lora_bias"), "{message}");
        }
    }
}
