//! Supervised fine-tuning, reward modelling and DPO against TRL's trainers, step by step: `tests/reference/trajectories`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempering::model::weights::{self, write_safetensors};
use tempering::ops::ModelBackend;
use tempering::recipe::{self, RunOptions};
use tempering::report::SilentReporter;

use super::parity::{Comparison, backend_name};

/// Steps of every trajectory.
const STEPS: usize = 20;
/// Rows of the data.
const ROWS: usize = 40;
/// Largest difference relative to the reference, of a step's loss and gradient norm.
const TOLERANCE: f64 = 1e-3;

/// The adapters of trajectories with that name.
const IA3: &str = r#"Ia3(target_modules: ["k_proj", "v_proj", "up_proj", "down_proj"], feedforward_modules: ["down_proj"])"#;

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// Where the runs start from, assembled from the reference's files, and what TRL made of it.
struct Start {
    folder: tempfile::TempDir,
    trajectories: Value,
}

fn reference(name: &str) -> PathBuf {
    Path::new("tests/reference/trajectories").join(name)
}

fn tensors(file: &Path) -> Tensors {
    let source = weights::open(file).unwrap();
    let tensor = |name: String| {
        let (shape, values) = (source.shape(&name).unwrap(), source.read(&name).unwrap());
        (name, shape, values)
    };
    source.names().into_iter().map(tensor).collect()
}

impl Start {
    /// A model; the same with a score head; its adapter; the adapter with B zero; the adapter with a score head.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(reference("trajectories.json")).unwrap();
        let mut start = Self {
            trajectories: serde_json::from_str(&text).unwrap(),
            folder,
        };
        // Those of `prompts.py`.
        let text = fs::read_to_string("tests/reference/prompts/trajectories.json").unwrap();
        let more: Value = serde_json::from_str(&text).unwrap();
        for (name, run) in more["sft"].as_object().unwrap() {
            start.trajectories["sft"][name] = run.clone();
        }
        let head: Vec<f32> = serde_json::from_value(start.trajectories["head"].clone()).unwrap();
        let head = |name: &str| (name.to_owned(), vec![1, head.len()], head.clone());
        let model = tensors(&reference("model.safetensors"));
        let adapter = tensors(&reference("adapter/adapter_model.safetensors"));

        start.model("model", &model);
        start.model("classifier", &[model, vec![head("score.weight")]].concat());
        start.adapter("adapter", &adapter, false);
        let mut fresh = adapter.clone();
        for (name, _, values) in &mut fresh {
            if name.contains("lora_B") {
                values.fill(0.0);
            }
        }
        start.adapter("fresh", &fresh, false);
        let scored = [adapter, vec![head("base_model.model.score.weight")]].concat();
        start.adapter("scored", &scored, true);
        for name in ["prompt", "prefix"] {
            start.virtual_tokens(name);
        }
        start
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self, name: &str, tensors: &Tensors) {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        write_safetensors(folder.join("model.safetensors"), tensors).unwrap();
        fs::copy(reference("config.json"), folder.join("config.json")).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(Path::new("models/tiny").join(file), folder.join(file)).unwrap();
        }
    }

    fn adapter(&self, name: &str, tensors: &Tensors, scores: bool) {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        write_safetensors(folder.join("adapter_model.safetensors"), tensors).unwrap();
        let text = fs::read_to_string(reference("adapter/adapter_config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["base_model_name_or_path"] = json!(self.path("model"));
        if scores {
            config["task_type"] = json!("SEQ_CLS");
            config["modules_to_save"] = json!(["score"]);
        }
        fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    }

    /// The tokens that a trajectory of `prompts.py` starts from.
    fn virtual_tokens(&self, name: &str) {
        let (from, folder) = (
            format!("tests/reference/prompts/trajectory_{name}"),
            self.path(name),
        );
        let text = fs::read_to_string(format!("{from}/adapter_config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["base_model_name_or_path"] = json!(self.path("model"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let file = "adapter_model.safetensors";
        fs::copy(format!("{from}/{file}"), folder.join(file)).unwrap();
    }

    /// Runs a stage with the settings of a trajectory; returns its metrics, series by series.
    fn run<B: ModelBackend>(
        &self,
        device: B::Device,
        stage: &Stage<'_>,
        name: &str,
        settings: &Value,
    ) -> BTreeMap<String, Vec<f64>> {
        let number = |key: &str| settings[key].as_f64().unwrap();
        let count = |key: &str| settings[key].as_u64().unwrap() as usize;
        let batch_size = count("rows") * count("accumulation");
        let schedule = match settings["schedule"].as_str().unwrap() {
            "linear" => "Linear",
            "cosine" => "Cosine",
            other => panic!("{other}"),
        };
        let text = format!(
            "(name: \"{name}\", model: {model:?}, stages: [{kind}(name: \"stage\", init: {init}, peft: {peft},
                data: (source: Jsonl({data:?})), shuffle: false, max_length: 64, micro_batch_tokens: {micro_batch_tokens},
                batch_size: {batch_size}, epochs: {epochs}, {more}
                optim: (lr: {lr:?}, schedule: {schedule}(warmup_ratio: {warmup:?}), weight_decay: {weight_decay:?},
                    max_grad_norm: {max_grad_norm:?}))])",
            model = self.path(stage.model),
            kind = stage.kind,
            init = match stage.adapter {
                Some(adapter) => format!("Folder({:?})", self.path(adapter)),
                None => "Base".into(),
            },
            peft = match (stage.adapter, settings["train"].as_array()) {
                (Some("prompt"), _) => "PromptTuning(num_virtual_tokens: 4)".to_owned(),
                (Some("prefix"), _) => "PrefixTuning(num_virtual_tokens: 4)".to_owned(),
                (Some(_), _) => "Lora(rank: 4, alpha: 8.0)".to_owned(),
                (None, Some(_)) => format!("Only({})", settings["train"]),
                (None, None) if name.contains("ia3") => IA3.to_owned(),
                (None, None) => "Full".to_owned(),
            },
            data = reference(stage.data),
            // With accumulation on one side, on the other too: most passes then take one row.
            micro_batch_tokens = if count("accumulation") > 1 { 64 } else { 2048 },
            epochs = STEPS * batch_size / ROWS,
            more = stage.more,
            lr = number("lr"),
            warmup = number("warmup"),
            weight_decay = number("weight_decay"),
            max_grad_norm = number("max_grad_norm"),
        );
        let file = self.path("recipe.ron");
        fs::write(&file, text).unwrap();
        let output = self.path(&format!("{}-{name}", stage.kind));
        let options = RunOptions {
            output: Some(output.clone()),
            ..RunOptions::default()
        };
        let loaded = recipe::load_with_places(&file, &[]).unwrap_or_else(|e| panic!("{e}"));
        let checked = recipe::check(loaded, &options).unwrap_or_else(|e| panic!("{e}"));
        recipe::run::<B>(&checked, &options, device, "test", &mut SilentReporter)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut series = BTreeMap::<String, Vec<f64>>::new();
        let lines = fs::read_to_string(output.join("stage/metrics.jsonl")).unwrap();
        for line in lines.lines() {
            let row: BTreeMap<String, f64> = serde_json::from_str(line).unwrap();
            for (name, value) in row {
                series.entry(name).or_default().push(value);
            }
        }
        series
    }
}

/// Settings of a stage beside those of a trajectory.
struct Stage<'a> {
    kind: &'a str,
    model: &'a str,
    adapter: Option<&'a str>,
    data: &'a str,
    more: String,
}

/// Largest differences by subject and quantity, over the trajectories of a method.
#[derive(Default)]
struct Differences(BTreeMap<(String, &'static str), (f64, String)>);

impl Differences {
    /// Compares one trajectory.
    fn add(&mut self, subject: &str, name: &str, ours: &BTreeMap<String, Vec<f64>>, trl: &Value) {
        let trl: BTreeMap<String, Vec<f64>> = serde_json::from_value(trl.clone()).unwrap();
        for (series, expected) in &trl {
            let found = &ours[series];
            assert_eq!(
                (found.len(), expected.len()),
                (STEPS, STEPS),
                "{name} {series}"
            );
            let scale = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
            for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
                let differs = (found - expected).abs();
                let (what, difference) = match series.as_str() {
                    "loss" => ("loss", differs / expected.abs()),
                    "grad_norm" => ("gradient norm", differs / expected.abs()),
                    "lr" => {
                        let place = format!("{name}, step {}: {found}, {expected}", step + 1);
                        assert!(differs <= 1e-8 * scale, "learning rate of {place}");
                        continue;
                    }
                    // Rounding decides which of two equal rewards is the larger one.
                    "rewards/accuracies" if trl["rewards/margins"][step].abs() < 1e-4 => continue,
                    "accuracy" | "rewards/accuracies" => {
                        let place = format!("{name}, step {}: {found}, {expected}", step + 1);
                        assert!(differs <= 1e-6, "accuracy of {place}");
                        continue;
                    }
                    // Rewards cross zero: they are measured by the largest of the trajectory.
                    _ => ("rewards", differs / scale),
                };
                let worst = self.0.entry((subject.to_owned(), what)).or_default();
                if difference.is_nan() || difference > worst.0 {
                    *worst = (
                        difference,
                        format!(
                            "{name}, {series} of step {}: {found} and {expected}",
                            step + 1
                        ),
                    );
                }
            }
        }
    }

    fn check(self, backend: &str) {
        for ((subject, what), (difference, place)) in &self.0 {
            eprintln!("{subject}, {what} on {backend}: {difference:.1e} ({place})");
        }
        for ((subject, what), (difference, _)) in self.0 {
            Comparison {
                reference: "TRL 1.16",
                subject: &subject,
                what: &format!("{what} of {STEPS} steps"),
                backend,
                difference,
                tolerance: TOLERANCE,
                relative: true,
            }
            .check();
        }
    }
}

/// Runs the trajectories of a method; `stage` maps a trajectory's name and settings to its stage and title.
fn method<B: ModelBackend>(
    device: B::Device,
    method: &str,
    stage: impl Fn(&str, &Value) -> (String, Stage<'static>),
) {
    let start = Start::new();
    let mut differences = Differences::default();
    for (name, trajectory) in start.trajectories[method].as_object().unwrap() {
        let settings = &trajectory["settings"];
        let (subject, stage) = stage(name, settings);
        let ours = start.run::<B>(device.clone(), &stage, name, settings);
        differences.add(&subject, name, &ours, &trajectory["steps"]);
    }
    differences.check(backend_name::<B>());
}

/// How a trajectory's weights are called.
fn weights_of(name: &str) -> &'static str {
    match () {
        () if name.contains("full") => "full",
        () if name.contains("only") => "selected weights",
        () if name.contains("ia3") => "IA3",
        () if name.contains("prompt") => "prompt tuning",
        () if name.contains("prefix") => "prefix tuning",
        () => "LoRA",
    }
}

/// `SFTTrainer`.
pub(crate) fn sft<B: ModelBackend>(device: B::Device) {
    method::<B>(device, "sft", |name, settings| {
        let completion_only = settings["completion_only_loss"].as_bool().unwrap_or(true);
        let stage = Stage {
            kind: "Sft",
            model: "model",
            adapter: match name.split('_').next() {
                Some("lora") => Some("adapter"),
                Some("prompt") => Some("prompt"),
                Some("prefix") => Some("prefix"),
                _ => None,
            },
            data: "sft.jsonl",
            more: format!("completion_only_loss: {completion_only},"),
        };
        (format!("SFT ({})", weights_of(name)), stage)
    });
}

/// `RewardTrainer`.
pub(crate) fn reward<B: ModelBackend>(device: B::Device) {
    method::<B>(device, "reward", |name, settings| {
        let use_margin = settings["margin"].as_bool().unwrap_or(false);
        let stage = Stage {
            kind: "RewardModel",
            model: "classifier",
            adapter: name.starts_with("lora").then_some("scored"),
            data: "preferences.jsonl",
            more: format!("use_margin: {use_margin},"),
        };
        (format!("reward model ({})", weights_of(name)), stage)
    });
}

/// `DPOTrainer`.
pub(crate) fn dpo<B: ModelBackend>(device: B::Device) {
    method::<B>(device, "dpo", |name, settings| {
        let loss = name.split('_').next().unwrap();
        let stage = Stage {
            kind: "Dpo",
            model: "model",
            adapter: match () {
                () if name.contains("adapter") => Some("adapter"),
                () if name.contains("lora") => Some("fresh"),
                () => None,
            },
            data: "preferences.jsonl",
            more: format!(
                "beta: {:?}, loss_type: {}, label_smoothing: {:?}, precompute_ref_log_probs: {},",
                settings["beta"].as_f64().unwrap(),
                if loss == "conservative" {
                    "sigmoid"
                } else {
                    loss
                },
                settings["label_smoothing"].as_f64().unwrap_or(0.0),
                settings["precompute"].as_bool().unwrap_or(false),
            ),
        };
        (format!("DPO, {loss} ({})", weights_of(name)), stage)
    });
}
