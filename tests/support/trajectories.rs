//! Supervised fine-tuning, reward modelling, learning from preferences and distillation against TRL's trainers, step by step:
//! `tests/reference/trajectories`, `preferences` and `distill`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use ron::extensions::Extensions;
use serde_json::{Value, json};

use tempering::data::{
    DataConfig, DataContext, DataSource, Tokenizer, encode_completions, read_rows,
};
use tempering::model::weights::write_safetensors;
use tempering::model::{CausalLm, LanguageModel, attach_adapters};
use tempering::ops::ModelBackend;
use tempering::optim::{GradientSum, OptimConfig, Optimiser, lr_at};
use tempering::params::HostTensor;
use tempering::peft::{AdapterConfig, Peft};
use tempering::recipe::{self, RunOptions};
use tempering::report::SilentReporter;
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

use super::parity::{Comparison, backend_name};
use super::prompts::load_encoder;
use super::reference::{folder, indices, load, read, tensors, values};

/// Steps of every trajectory.
const STEPS: usize = 20;
/// Rows of the data.
const ROWS: usize = 40;
/// Largest difference relative to the reference, of a step's loss and gradient norm.
const TOLERANCE: f64 = 1e-3;
/// The same of learning from preferences, whose trajectories are the nearest.
const PREFERENCES_TOLERANCE: f64 = 1e-4;

/// The adapters of trajectories with that name.
const IA3: &str = r#"Ia3(target_modules: ["k_proj", "v_proj", "up_proj", "down_proj"], feedforward_modules: ["down_proj"])"#;

/// The VeRA of trajectories with that name, which begins alike from its seed on both sides.
const VERA: &str = "Vera(rank: 16, projection_prng_key: 3)";

/// Series of numbers by name, one for each step.
type Series = BTreeMap<String, Vec<f64>>;

/// Where the runs start from, assembled from the reference's files, and what TRL made of it.
struct Start {
    folder: tempfile::TempDir,
    trajectories: Value,
}

fn reference(name: &str) -> PathBuf {
    folder("trajectories").join(name)
}

impl Start {
    /// Models, the same with a score head, and adapters: with B zero, with a score head, and of other methods.
    fn new() -> Self {
        let mut start = Self {
            trajectories: read(&reference("trajectories.json")),
            folder: tempfile::tempdir().unwrap(),
        };
        // Those of `prompts.py`, `bottlenecks.py`, `preferences.py` and `distill.py`.
        for more in ["prompts", "bottlenecks", "preferences", "distill"] {
            let more = read(&folder(more).join("trajectories.json"));
            for (method, runs) in more.as_object().unwrap() {
                for (name, run) in runs.as_object().unwrap() {
                    start.trajectories[method][name] = run.clone();
                }
            }
        }
        let head: Vec<f32> = serde_json::from_value(start.trajectories["head"].clone()).unwrap();
        let head = |name: &str| (name.to_owned(), vec![1, head.len()], head.clone());
        let model = tensors(&reference("model.safetensors"));
        let adapter = tensors(&reference("adapter/adapter_model.safetensors"));

        start.model("model", &reference("config.json"), &model);
        let classifier = [model, vec![head("score.weight")]].concat();
        start.model("classifier", &reference("config.json"), &classifier);
        let gpt2 = tensors(&reference("gpt2/model.safetensors"));
        start.model("gpt2", &reference("gpt2/config.json"), &gpt2);
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
        start.copied("dora", &reference("dora"), "adapter_model.safetensors");
        for name in ["prompt", "prefix"] {
            let from = folder(format!("prompts/trajectory_{name}"));
            start.copied(name, &from, "adapter_model.safetensors");
        }
        for name in ["houlsby", "pfeiffer", "parallel"] {
            let from = folder(format!("bottlenecks/trajectory_{name}"));
            start.copied(name, &from, "adapter.safetensors");
        }
        start
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self, name: &str, config: &Path, tensors: &[HostTensor]) {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        write_safetensors(folder.join("model.safetensors"), tensors).unwrap();
        fs::copy(config, folder.join("config.json")).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(Path::new("models/tiny").join(file), folder.join(file)).unwrap();
        }
    }

    fn adapter(&self, name: &str, tensors: &[HostTensor], scores: bool) {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        write_safetensors(folder.join("adapter_model.safetensors"), tensors).unwrap();
        let mut config = read(&reference("adapter/adapter_config.json"));
        config["base_model_name_or_path"] = json!(self.path("model"));
        if scores {
            config["task_type"] = json!("SEQ_CLS");
            config["modules_to_save"] = json!(["score"]);
        }
        fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    }

    /// An adapter as it is stored in the references.
    fn copied(&self, name: &str, from: &Path, weights: &str) {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        let mut config = read(&from.join("adapter_config.json"));
        config["base_model_name_or_path"] = json!(self.path("model"));
        fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        fs::copy(from.join(weights), folder.join(weights)).unwrap();
    }

    /// Runs a stage with the settings of a trajectory; returns its metrics, series by series.
    fn run<B: ModelBackend>(
        &self,
        device: B::Device,
        stage: &Stage<'_>,
        name: &str,
        settings: &Value,
    ) -> Series {
        let batch_size = batch_size(settings);
        let text = format!(
            "(name: \"{name}\", model: {model:?}, stages: [{kind}(name: \"stage\", init: {init}, peft: {peft},
                data: (source: Jsonl({data:?})), shuffle: false, max_length: 64, micro_batch_tokens: {micro_batch_tokens},
                batch_size: {batch_size}, epochs: {epochs}, {more}
                optim: {optim})])",
            model = self.path(stage.model),
            kind = stage.kind,
            init = match stage.adapter {
                Some(adapter) => format!("Folder({:?})", self.path(adapter)),
                None => "Base".into(),
            },
            peft = stage.peft,
            data = stage.data,
            // With accumulation on one side, on the other too: most passes then take one row, which may have 8 generated tokens more.
            micro_batch_tokens = match settings["accumulation"].as_u64() {
                Some(1) => 2048,
                _ => 72,
            },
            epochs = STEPS * batch_size / ROWS,
            // The teacher of a distillation.
            more = stage.more.replace("GPT2", &format!("{:?}", self.path("gpt2"))),
            optim = optim(settings),
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
        let mut series = Series::new();
        let lines = fs::read_to_string(output.join("stage/metrics.jsonl")).unwrap();
        for line in lines.lines() {
            let row: BTreeMap<String, f64> = serde_json::from_str(line).unwrap();
            for (name, value) in row {
                series.entry(name).or_default().push(value);
            }
        }
        series
    }

    /// The steps of supervised fine-tuning through an encoder of virtual tokens. No stage can begin with its weights, which adapters'
    /// files leave out, so this does what a stage does.
    fn through_encoder<B: ModelBackend>(
        &self,
        device: B::Device,
        kind: &str,
        settings: &Value,
    ) -> Series {
        let _turn = tempering::guard::lock_gradients();
        let from = folder(format!("prompts/trajectory_{kind}"));
        let (config, mut model) = load::<B>(&self.path("model"), &device);
        let (adapter, _) = AdapterConfig::load(&from).unwrap();
        attach_adapters(&mut model, &config, adapter.spec.clone(), Seed::new(1)).unwrap();
        load_encoder(&mut model, &from.join("encoder.safetensors"), &device);
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
        Peft::from(adapter.spec).mark_trained(&mut model);

        let data = DataConfig::of(DataSource::Jsonl(reference("sft.jsonl")));
        let rows = read_rows(&data, &DataContext::default()).unwrap();
        let tokenizer = Tokenizer::load(&self.path("model")).unwrap();
        let encoded = encode_completions(&rows, &tokenizer, &data.format, 64, true).unwrap();
        let ron = ron::Options::default().with_default_extension(Extensions::IMPLICIT_SOME);
        let optim: OptimConfig = ron.from_str(&optim(settings)).unwrap();
        let (schedule, peak) = (optim.schedule.clone(), optim.lr);
        let mut optimiser = Optimiser::<B>::new(optim);
        let mut series = Series::new();
        let mut rows = encoded.items.iter().cycle();
        for step in 0..STEPS {
            let examples: Vec<_> = rows.by_ref().take(batch_size(settings)).collect();
            let ids: Vec<&[u32]> = examples.iter().map(|row| row.ids.as_slice()).collect();
            let batch = TokenBatch::<Autodiff<B>>::from_rows(&ids, &device);
            let (mut places, mut targets) = (Vec::new(), Vec::new());
            for (row, range) in examples.iter().zip(batch.segments.iter()) {
                for i in (0..row.ids.len()).filter(|&i| row.trained[i]) {
                    places.push(range.start + i - 1);
                    targets.push(row.ids[i]);
                }
            }
            let count = targets.len() as f64;
            let at = Some(indices(places, &device));
            let states = model.states_at(&batch, at, None, None);
            let (logprobs, _) = model.logprobs(states, &Arc::new(targets), 1.0);
            let loss = logprobs.sum().neg();
            let mut sum = GradientSum::<B>::default();
            sum.add::<Autodiff<B>>(&mut model, &mut loss.backward());
            let lr = lr_at(&schedule, peak, step, STEPS);
            let norm = optimiser.update::<Autodiff<B>>(&mut model, sum, count, lr);
            let loss = f64::from(values(loss.inner())[0]) / count;
            for (name, value) in [("loss", loss), ("grad_norm", norm), ("lr", lr)] {
                series.entry(name.to_owned()).or_default().push(value);
            }
        }
        series
    }
}

/// Rows of an optimiser step.
fn batch_size(settings: &Value) -> usize {
    let count = |key: &str| settings[key].as_u64().unwrap() as usize;
    count("rows") * count("accumulation")
}

/// A trajectory's optimiser as a recipe has it.
fn optim(settings: &Value) -> String {
    let number = |key: &str| settings[key].as_f64().unwrap();
    let schedule = match settings["schedule"].as_str().unwrap() {
        "linear" => "Linear",
        "cosine" => "Cosine",
        other => panic!("{other}"),
    };
    format!(
        "(lr: {:?}, schedule: {schedule}(warmup_ratio: {:?}), weight_decay: {:?}, max_grad_norm: {:?})",
        number("lr"),
        number("warmup"),
        number("weight_decay"),
        number("max_grad_norm"),
    )
}

/// Settings of a stage beside those of a trajectory.
struct Stage<'a> {
    kind: &'a str,
    model: &'a str,
    /// The folder of the adapter that it starts from.
    adapter: Option<&'a str>,
    peft: String,
    data: PathBuf,
    more: String,
}

/// Largest differences by subject and quantity, over the trajectories of a method.
#[derive(Default)]
struct Differences(BTreeMap<(String, &'static str), (f64, String)>);

impl Differences {
    /// Compares one trajectory.
    fn add(&mut self, subject: &str, name: &str, ours: &Series, trl: &Value) {
        let trl: Series = serde_json::from_value(trl.clone()).unwrap();
        for (series, expected) in &trl {
            let is_zero = expected.iter().all(|x| *x == 0.0);
            if is_zero && ["nll_loss", "kl"].contains(&series.as_str()) {
                // TRL does not compute it where its weight is zero, or where the loss reads none.
                continue;
            }
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
                    // Which responses a step trains on.
                    "on_policy" | "response_length" => {
                        let place = format!("{name}, step {}: {found}, {expected}", step + 1);
                        assert!(differs <= 1e-6, "{series} of {place}");
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

    fn check(self, backend: &str, tolerance: f64) {
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
                tolerance,
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
        let ours = match name.split('_').next() {
            Some(kind @ ("mlp" | "lstm")) => {
                start.through_encoder::<B>(device.clone(), kind, settings)
            }
            _ => start.run::<B>(device.clone(), &stage, name, settings),
        };
        differences.add(&subject, name, &ours, &trajectory["steps"]);
    }
    let tolerance = match method {
        "dpo" | "cpo" | "orpo" | "kto" => PREFERENCES_TOLERANCE,
        _ => TOLERANCE,
    };
    differences.check(backend_name::<B>(), tolerance);
}

/// How a trajectory's weights are called.
fn weights_of(name: &str) -> &'static str {
    match () {
        () if name.contains("full") => "full",
        () if name.contains("gpt2_only") => "selected weights of gpt2",
        () if name.contains("only") => "selected weights",
        () if name.contains("ia3") => "IA3",
        () if name.contains("vera") => "VeRA",
        () if name.contains("dora") => "DoRA",
        () if name.contains("prompt") => "prompt tuning",
        () if name.contains("prefix") => "prefix tuning",
        () if name.contains("mlp") => "P-tuning, MLP",
        () if name.contains("lstm") => "P-tuning, LSTM",
        () if name.contains("houlsby") => "bottlenecks, Houlsby",
        () if name.contains("pfeiffer") => "bottlenecks, Pfeiffer",
        () if name.contains("parallel") => "bottlenecks, parallel",
        () => "LoRA",
    }
}

/// What a trajectory trains, as a recipe says it.
fn peft(name: &str, settings: &Value) -> String {
    let bottleneck = |placement: &str, more: &str| {
        format!("Bottleneck(placement: {placement}, reduction_factor: {more})")
    };
    match weights_of(name) {
        "full" => "Full".to_owned(),
        "IA3" => IA3.to_owned(),
        "VeRA" => VERA.to_owned(),
        "LoRA" => "Lora(rank: 4, alpha: 8.0)".to_owned(),
        "DoRA" => "Lora(rank: 4, alpha: 8.0, use_dora: true)".to_owned(),
        "prompt tuning" => "PromptTuning(num_virtual_tokens: 4)".to_owned(),
        "prefix tuning" => "PrefixTuning(num_virtual_tokens: 4)".to_owned(),
        "P-tuning, MLP" | "P-tuning, LSTM" => "PTuning(num_virtual_tokens: 4)".to_owned(),
        "bottlenecks, Houlsby" => bottleneck("Houlsby", "4.0, non_linearity: Swish"),
        "bottlenecks, Pfeiffer" => bottleneck("Pfeiffer", "8.0, non_linearity: Gelu"),
        "bottlenecks, parallel" => bottleneck("Parallel", "4.0, scaling: 0.5"),
        _ => format!("Only({})", settings["train"]),
    }
}

/// `SFTTrainer`.
pub(crate) fn sft<B: ModelBackend>(device: B::Device) {
    method::<B>(device, "sft", |name, settings| {
        let completion_only = settings["completion_only_loss"].as_bool().unwrap_or(true);
        let stage = Stage {
            kind: "Sft",
            model: match settings["model"].as_str() {
                Some("gpt2") => "gpt2",
                _ => "model",
            },
            adapter: match name.split('_').next() {
                Some("lora") => Some("adapter"),
                Some("dora") => Some("dora"),
                Some("prompt") => Some("prompt"),
                Some("prefix") => Some("prefix"),
                Some("houlsby") => Some("houlsby"),
                Some("pfeiffer") => Some("pfeiffer"),
                Some("parallel") => Some("parallel"),
                _ => None,
            },
            peft: peft(name, settings),
            data: reference("sft.jsonl"),
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
            peft: peft(name, settings),
            data: reference("preferences.jsonl"),
            more: match settings["center_rewards_coefficient"].as_f64() {
                Some(coef) => {
                    format!("use_margin: {use_margin}, center_rewards_coefficient: {coef:?},")
                }
                None => format!("use_margin: {use_margin},"),
            },
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
            peft: peft(name, settings),
            data: reference("preferences.jsonl"),
            more: format!(
                "{}{}{}precompute_ref_log_probs: {},",
                match loss {
                    "conservative" => "loss_type: sigmoid,".to_owned(),
                    _ => given("loss_type", &settings["loss"]),
                },
                given("loss_weights", &settings["weights"]),
                numbers(settings, &["beta", "label_smoothing", "discopop_tau"]),
                settings["precompute"].as_bool().unwrap_or(false),
            ),
        };
        (format!("DPO, {loss} ({})", weights_of(name)), stage)
    });
}

/// A key of a recipe with a value of the settings, if they have it.
fn given(key: &str, value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        value => format!("{key}: {value}, "),
    }
}

/// Keys of a recipe with numbers of the settings, of those that they have.
fn numbers(settings: &Value, keys: &[&str]) -> String {
    let given = |key: &&str| Some(format!("{key}: {:?}, ", settings[*key].as_f64()?));
    keys.iter().filter_map(given).collect()
}

/// A trajectory on the rows of `preferences.py`, of a stage that starts from the model or from its fresh adapter.
fn on_preferences(kind: &'static str, name: &str, rows: &str, more: String) -> Stage<'static> {
    let lora = name.ends_with("lora");
    Stage {
        kind,
        model: "model",
        adapter: lora.then_some("fresh"),
        peft: if lora {
            "Lora(rank: 4, alpha: 8.0)"
        } else {
            "Full"
        }
        .to_owned(),
        data: folder("preferences").join(rows),
        more,
    }
}

/// `CPOTrainer`, SimPO and AlphaPO included.
pub(crate) fn cpo<B: ModelBackend>(device: B::Device) {
    method::<B>(device, "cpo", |name, settings| {
        let keys = [
            "beta",
            "label_smoothing",
            "cpo_alpha",
            "simpo_gamma",
            "alpha",
        ];
        let loss = settings["loss"].as_str().unwrap_or("sigmoid");
        let more = format!("loss_type: {loss}, {}", numbers(settings, &keys));
        let stage = on_preferences("Cpo", name, "preferences.jsonl", more);
        let (loss, weights) = name.split_once('_').unwrap();
        (format!("CPO, {loss} ({weights})"), stage)
    });
}

/// `KTOTrainer`.
pub(crate) fn kto<B: ModelBackend>(device: B::Device) {
    method::<B>(device, "kto", |name, settings| {
        let loss = settings["loss"].as_str().unwrap_or("kto");
        let precompute = settings["precompute"].as_bool().unwrap_or(false);
        let keys = ["beta", "desirable_weight", "undesirable_weight"];
        let more = format!(
            "loss_type: {loss}, precompute_ref_log_probs: {precompute}, {}",
            numbers(settings, &keys)
        );
        let stage = on_preferences("Kto", name, "labelled.jsonl", more);
        (format!("KTO, {name}"), stage)
    });
}

/// `ORPOTrainer`.
pub(crate) fn orpo<B: ModelBackend>(device: B::Device) {
    method::<B>(device, "orpo", |name, settings| {
        let more = numbers(settings, &["beta"]);
        let stage = on_preferences("Orpo", name, "preferences.jsonl", more);
        let (_, weights) = name.split_once('_').unwrap();
        (format!("ORPO ({weights})"), stage)
    });
}

/// `GKDTrainer` on completions of the data, and on the likeliest responses of the student and of its teacher, which is of another family
/// with the same tokens.
pub(crate) fn distill<B: ModelBackend>(device: B::Device) {
    method::<B>(device, "gkd", |name, settings| {
        let lmbda = settings["lmbda"].as_f64().unwrap_or(0.0);
        let seq_kd = settings["seq_kd"].as_bool().unwrap_or(false);
        let stage = Stage {
            kind: "Distill",
            model: "model",
            adapter: name.contains("lora").then_some("adapter"),
            peft: peft(name, settings),
            data: match settings.get("lmbda") {
                Some(_) => folder("distill").join("rows.jsonl"),
                None => reference("sft.jsonl"),
            },
            more: format!(
                "teacher: Folder(GPT2), lmbda: {lmbda:?}, seq_kd: {seq_kd}, beta: {:?}, response_length: 8, temperature: 1e-6,",
                settings["beta"].as_f64().unwrap()
            ),
        };
        let divergence = name.split('_').next().unwrap();
        let subject = format!("distillation, {divergence} ({})", weights_of(name));
        (subject, stage)
    });
}
