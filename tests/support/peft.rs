//! Adapters against what PEFT computes with them (`tests/reference/adapters.py`), generic over the backend.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};
use serde_json::{Value, json};

use tempering::model::{
    CausalLm, LanguageModel, ModelConfig, ModelSource, ScalarModel, combine_adapters, load_adapter,
    save_adapter, weights::write_safetensors,
};
use tempering::ops::{ModelBackend, Numerics, f32_matmul};
use tempering::optim::{GradientSum, OptimConfig, Optimiser};
use tempering::params::{HostTensor, Parameters};
use tempering::peft::{
    Adaptable, AdapterConfig, AdapterSpec, Combination, CombineSettings, MajoritySign, Peft,
};
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

use super::parity::{Comparison, backend_name};
use super::reference::{
    self, cases_of, distance, folder, load, logprobs, numbers, predicted, read, relative_distance,
    values, wide,
};

/// Largest difference from PEFT in nats, and in units of the score.
const TOLERANCE: f64 = 1e-5;
/// Largest difference that merging may make.
const MERGED: f64 = 1e-5;
/// Largest difference of a gradient, as a share of the largest of its tensor.
const GRADIENTS: f64 = 5e-5;
/// Largest difference of a trained tensor, likewise. AdamW divides gradients by their size: where one is a hundred thousandth of the
/// largest, an error of 1e-6 of the largest is a tenth of it, and so of a step.
const TRAINED: f64 = 2e-4;
/// Largest difference of a combined adapter's change of a weight.
const COMBINED: f64 = 1e-5;

/// The cases whose numbers are of a kind, each with its reference.
fn cases(task: &str) -> Vec<(String, Value)> {
    let cases = cases_of("peft", task).into_iter();
    cases.map(|case| (case.name, case.reference)).collect()
}

fn base(reference: &Value) -> PathBuf {
    folder("peft_base").join(reference["base"].as_str().unwrap())
}

fn rows(reference: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(reference["rows"].clone()).unwrap()
}

/// The base of the adapter of that name, its embedding and head parted where the adapter's file does that.
fn base_of<B: ModelBackend>(
    name: &str,
    reference: &Value,
    device: &B::Device,
) -> (ModelConfig, LanguageModel<B>) {
    let adapter = folder("peft").join(name);
    let source = ModelSource::at(&adapter, base(reference).to_str()).unwrap();
    let model = source.load_base(Numerics::default(), device).unwrap();
    // PEFT stores the base's own table beside an adapter on it.
    (source.config.with_tables_of_base(), model)
}

/// Notes one distance from PEFT.
fn note<B: ModelBackend>(name: &str, what: &str, difference: f64, relative: bool, tolerance: f64) {
    let subject = format!("PEFT adapter \"{name}\"");
    let comparison = Comparison {
        reference: "PEFT 0.21",
        subject: &subject,
        what,
        backend: backend_name::<B>(),
        difference,
        tolerance,
        relative,
    };
    eprintln!(
        "{subject}, {what} on {}: {difference:.1e}",
        backend_name::<B>()
    );
    comparison.check();
}

/// Notes the distance from PEFT with the adapter and merged, and that of the two from each other.
fn compare<B: ModelBackend>(
    name: &str,
    what: &str,
    reference: &Value,
    with: &[f32],
    merged: &[f32],
) {
    let note = |what: &str, difference: f64, tolerance: f64| {
        note::<B>(name, what, difference, false, tolerance)
    };
    note(
        what,
        distance(with, &numbers(&reference["with_adapter"])),
        TOLERANCE,
    );
    note(
        &format!("{what}, merged"),
        distance(merged, &numbers(&reference["merged"])),
        TOLERANCE,
    );
    note(
        &format!("{what}, merged against not merged"),
        distance(merged, &wide(with)),
        MERGED,
    );
}

/// Log-probabilities with the adapter and merged.
pub(crate) fn adapters<B: ModelBackend>(device: B::Device) {
    for (name, reference) in cases("logprobs") {
        let (config, mut model) = base_of::<B>(&name, &reference, &device);
        let rows = rows(&reference);
        let plain = logprobs(&model, &rows, &device);
        assert!(
            distance(&plain, &numbers(&reference["without_adapter"])) < TOLERANCE,
            "{name}"
        );
        let adapter = folder("peft").join(&name);
        let loaded = load_adapter(&mut model, &config, &adapter, &device).unwrap();
        // "proj" is no layer's name.
        let unused = loaded
            .warnings
            .iter()
            .filter(|w| w.contains("\"proj\" matches no layer"));
        assert_eq!(
            unused.count(),
            usize::from(name == "patterns"),
            "{name}: {:?}",
            loaded.warnings
        );
        assert_eq!(
            loaded.warnings.len(),
            usize::from(name == "patterns"),
            "{name}"
        );
        let with = logprobs(&model, &rows, &device);
        // The adapters are large enough to show.
        let change = distance(&with, &wide(&plain));
        assert!(change > 1e-2, "{name} changes nothing");
        model.merge_adapters().unwrap();
        // PEFT merges into both sides of a table that is embedding and head at once, and so changes the numbers.
        let mut reference = reference;
        if reference["merged"].is_null() {
            reference["merged"] = reference["with_adapter"].take();
            reference["with_adapter"] = reference["merged"].clone();
        }
        compare::<B>(
            &name,
            "log-probabilities",
            &reference,
            &with,
            &logprobs(&model, &rows, &device),
        );
    }
}

fn scores<B: ModelBackend>(
    model: &ScalarModel<B>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> Vec<f32> {
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    model.row_scores(&rows, 1024, device, &mut |_, _| {})
}

fn load_classifier<B: ModelBackend>(
    reference: &Value,
    adapter: &Path,
    device: &B::Device,
) -> (ModelConfig, ScalarModel<B>) {
    let (config, model) = load::<B>(&base(reference), device);
    let mut model =
        ScalarModel::with_zero_head(model.into_backbone(), config.hidden_size(), device);
    let loaded = load_adapter(&mut model, &config, adapter, device).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    model.set_score(loaded.score.unwrap(), device);
    (config, model)
}

/// Scores of classifiers, whose head the adapter brings.
pub(crate) fn classifiers<B: ModelBackend>(device: B::Device) {
    for (name, reference) in cases("scores") {
        let adapter = folder("peft").join(&name);
        let (_, mut model) = load_classifier::<B>(&reference, &adapter, &device);
        let rows = rows(&reference);
        let with = scores(&model, &rows, &device);
        model.merge_adapters().unwrap();
        compare::<B>(
            &name,
            "scores",
            &reference,
            &with,
            &scores(&model, &rows, &device),
        );
    }
}

/// Names, shapes and numbers of an adapter's tensors.
fn tensors(adapter: &Path) -> Vec<HostTensor> {
    reference::tensors(&adapter.join("adapter_model.safetensors"))
}

/// Without the tables of the base that PEFT stores beside adapters on them.
fn of_adapter(mut tensors: Vec<HostTensor>) -> Vec<HostTensor> {
    tensors.retain(|(name, ..)| !name.ends_with(".base_layer.weight"));
    tensors
}

/// Read and written again, an adapter has PEFT's tensors bit by bit, and a configuration that selects the same layers
/// with the same ranks and scales.
pub(crate) fn written<B: ModelBackend>(device: B::Device) {
    for (name, reference) in [cases("logprobs"), cases("scores")].concat() {
        let theirs = folder("peft").join(&name);
        let ours = tempfile::tempdir().unwrap();
        let (peft, _) = AdapterConfig::load(&theirs).unwrap();
        let base = reference["base"].as_str().unwrap();
        let config = if reference["task"] == "scores" {
            let (config, mut model) = load_classifier::<B>(&reference, &theirs, &device);
            save_adapter(&mut model, &config, &peft.spec, base, ours.path()).unwrap();
            config
        } else {
            let (config, mut model) = base_of::<B>(&name, &reference, &device);
            load_adapter(&mut model, &config, &theirs, &device).unwrap();
            save_adapter(&mut model, &config, &peft.spec, base, ours.path()).unwrap();
            config
        };
        if name.contains("pissa") || name == "olora" {
            // Files hold a LoRA of twice the rank on the base as it was.
            converted::<B>(&name, &reference, ours.path(), &device);
            continue;
        }
        assert!(
            tensors(ours.path()) == of_adapter(tensors(&theirs)),
            "{name}: other tensors"
        );
        let (written, warnings) = AdapterConfig::load(ours.path()).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        for layer in config.adaptable_modules(&peft.spec) {
            let path = layer.name.as_str();
            let selected = written.selection().selects(&layer);
            assert_eq!(selected, peft.selection().selects(&layer), "{name}: {path}");
            match (&written.spec, &peft.spec) {
                (AdapterSpec::Lora(ours), AdapterSpec::Lora(theirs)) => {
                    assert_eq!(ours.rank_of(path), theirs.rank_of(path), "{name}: {path}");
                    assert_eq!(ours.scale_of(path), theirs.scale_of(path), "{name}: {path}");
                }
                (ours, theirs) if written.selection().selects(&layer) => {
                    assert_eq!(
                        ours.tensors(&layer),
                        theirs.tensors(&layer),
                        "{name}: {path}"
                    );
                }
                _ => {}
            }
        }
        // The same keys, so that PEFT finds what it looks for.
        let keys = |folder: &Path| -> Vec<String> {
            let config = read(&folder.join("adapter_config.json"));
            let mut keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(ours.path()), keys(&theirs), "{name}");
    }
}

/// What began with a part of the weight computes the same when it is read as LoRA, and as PEFT's `init_lora_weights: true`.
fn converted<B: ModelBackend>(name: &str, reference: &Value, ours: &Path, device: &B::Device) {
    let theirs = read(&folder("peft").join(name).join("adapter_config.json"));
    let config = read(&ours.join("adapter_config.json"));
    assert_eq!(config["init_lora_weights"], true, "{name}");
    let rank = |config: &Value| config["r"].as_u64().unwrap();
    assert_eq!(rank(&config), 2 * rank(&theirs), "{name}");
    let (config, mut model) = base_of::<B>(name, reference, device);
    let loaded = load_adapter(&mut model, &config, ours, device).unwrap();
    let with = logprobs(&model, &rows(reference), device);
    // It is trained on as what it was.
    let (peft, _) = AdapterConfig::load(folder("peft").join(name)).unwrap();
    let layer = config.linear_modules().remove(0);
    assert_eq!(loaded.config.spec.start(), peft.spec.start(), "{name}");
    assert_eq!(
        loaded.config.spec.tensors(&layer),
        peft.spec.tensors(&layer),
        "{name}"
    );
    let off = distance(&with, &numbers(&reference["with_adapter"]));
    note::<B>(
        name,
        "log-probabilities, stored as LoRA",
        off,
        false,
        TOLERANCE,
    );
}

/// A copy of an adapter, its tensors renamed and its configuration changed.
fn rewritten(
    theirs: &Path,
    rename: impl Fn(&str) -> String,
    change: impl Fn(&mut Value),
    more: &[&str],
) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut config = read(&theirs.join("adapter_config.json"));
    change(&mut config);
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    let mut stored = tensors(theirs);
    for (name, ..) in &mut stored {
        *name = rename(name);
    }
    stored.extend((more.iter()).map(|name| ((*name).to_owned(), vec![1, 2], vec![1.0, 2.0])));
    write_safetensors(dir.path().join("adapter_model.safetensors"), &stored).unwrap();
    dir
}

/// Adapters in the spellings of other savers compute what PEFT's own compute.
pub(crate) fn spellings<B: ModelBackend>(device: B::Device) {
    let theirs = folder("peft/regex");
    let reference = read(&theirs.join("ref.json"));
    let rows = rows(&reference);
    let compiled = |name: &str| name.replace("base_model.model.", "base_model.model._orig_mod.");
    let named = |name: &str| name.replace(".weight", ".sft.weight");
    let bare = |name: &str| name.replace("base_model.model.", "");
    let headless = |name: &str| name.replace("base_model.model.model.", "base_model.model.");
    let look_ahead = |config: &mut Value| {
        config["target_modules"] = json!(r".*layers\.(?!1\.)\d\.(self_attn\.[qv]|mlp\.up)_proj");
    };
    let as_it_is: &dyn Fn(&mut Value) = &|_| {};
    for (what, rename, change) in [
        ("compiled", &compiled as &dyn Fn(&str) -> String, as_it_is),
        ("with its own name", &named, as_it_is),
        ("without a prefix", &bare, as_it_is),
        ("of a model without its head", &headless, as_it_is),
        ("with look-ahead", &str::to_owned, &look_ahead),
    ] {
        let dir = rewritten(&theirs, rename, change, &[]);
        let (config, mut model) = load::<B>(&base(&reference), &device);
        load_adapter(&mut model, &config, dir.path(), &device)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let with = logprobs(&model, &rows, &device);
        let off = distance(&with, &numbers(&reference["with_adapter"]));
        assert!(off < TOLERANCE, "{what}: {off}");
    }
}

/// What is no adapter that can be read is named in one line, with the way out.
pub(crate) fn other_files<B: ModelBackend>(device: B::Device) {
    let theirs = folder("peft/regex");
    let message = |dir: &Path| {
        let (config, mut model) = load::<B>(&folder("peft_base/llama"), &device);
        load_adapter(&mut model, &config, dir, &device)
            .unwrap_err()
            .to_string()
    };
    let whole = [
        "base_model.model.model.norm.weight",
        "base_model.model.model.layers.0.input_layernorm.weight",
    ];
    let dir = rewritten(&theirs, str::to_owned, |_| {}, &whole);
    let found = message(dir.path());
    for part in [
        ": 1 problem:",
        "model.norm.weight",
        "modules_to_save",
        "save_embedding_layers=False",
        "merge_and_unload",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
    let dir = rewritten(
        &theirs,
        |name| name.replace("layers", "blocks"),
        |_| {},
        &[],
    );
    let found = message(dir.path());
    assert!(found.contains("the model has no such layer"), "{found}");
    let two = |name: &str| match name.contains("layers.0") {
        true => name.replace(".weight", ".a.weight"),
        false => name.replace(".weight", ".b.weight"),
    };
    let found = message(rewritten(&theirs, two, |_| {}, &[]).path());
    assert!(
        found.contains("holds tensors of 2 adapters: a, b; keep those of one"),
        "{found}"
    );

    let dir = rewritten(&theirs, str::to_owned, |_| {}, &[]);
    let file = dir.path().join("adapter_model.safetensors");
    std::fs::rename(&file, dir.path().join("adapter_model.bin")).unwrap();
    let found = message(dir.path());
    for part in [
        "adapter_model.bin: pickled PyTorch weights can run code and are not read",
        "save_pretrained(folder)",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
    std::fs::remove_file(dir.path().join("adapter_model.bin")).unwrap();
    let found = message(dir.path());
    assert!(
        found.contains("no weights: expected adapter_model.safetensors"),
        "{found}"
    );
}

/// A copy of an adapter with another configuration is refused, and every tensor that does not fit is named.
pub(crate) fn misfits<B: ModelBackend>(device: B::Device) {
    let theirs = folder("peft/layers");
    for (key, value, expected) in [
        ("r", json!(2), "expected shape [2, 16], found [3, 16]"),
        (
            "rank_pattern",
            json!({"q_proj": 4}),
            "expected shape [4, 16], found [3, 16]",
        ),
        (
            "exclude_modules",
            json!(["q_proj"]),
            "q_proj.lora_A.weight: surplus; the configuration has no adapter",
        ),
        (
            "layers_to_transform",
            json!([0, 1, 2]),
            "model.layers.0.self_attn.q_proj.lora_A.weight: missing",
        ),
        (
            "layers_to_transform",
            json!(2),
            "model.layers.1.self_attn.q_proj.lora_B.weight: surplus",
        ),
        (
            "target_modules",
            json!(["k_proj"]),
            "k_proj.lora_A.weight: missing",
        ),
        ("task_type", json!("SEQ_CLS"), "score.weight: missing"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = read(&theirs.join("adapter_config.json"));
        config[key] = value;
        std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        std::fs::copy(
            theirs.join("adapter_model.safetensors"),
            dir.path().join("adapter_model.safetensors"),
        )
        .unwrap();
        let (config, mut model) = load::<B>(&folder("peft_base/llama"), &device);
        let error = load_adapter(&mut model, &config, dir.path(), &device).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected), "{key}: {error}");
    }
}

/// Adapters trained as PEFT's were, from the same state: losses, the first gradients, and the tensors after the last step.
pub(crate) fn trained<B: ModelBackend>(device: B::Device) {
    let _lock = tempering::guard::lock_gradients();
    let mut count = 0;
    for (name, reference) in cases("logprobs") {
        let file = folder("peft").join(&name).join("trained.json");
        if !file.is_file() {
            continue;
        }
        count += 1;
        let expected = read(&file);
        let (config, mut model) = base_of::<B>(&name, &reference, &device);
        let adapter = folder("peft").join(&name);
        let loaded = load_adapter(&mut model, &config, &adapter, &device).unwrap();
        let mut spec = loaded.config.spec;
        if let AdapterSpec::Lora(lora) = &mut spec {
            lora.loraplus_lr_ratio = expected["loraplus_lr_ratio"].as_f64();
        }
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
        model.for_each_projection(&mut |projection| {
            let adapters = projection.adapters.iter_mut().flatten();
            adapters.for_each(|adapter| adapter.continue_as(&spec));
        });
        let peft = Peft::from(spec);
        peft.mark_trained(&mut model);
        let rows = rows(&reference);
        let mut optim = Optimiser::<B>::new(OptimConfig {
            max_grad_norm: None,
            ..OptimConfig::default()
        })
        .with_vector_lr_factor(peft.vector_lr_factor());
        let lr = expected["lr"].as_f64().unwrap();
        let mut losses = Vec::new();
        let steps = expected["losses"].as_array().unwrap().len();
        for step in 0..steps {
            let loss = mean_loss(&model, &rows, &device);
            losses.push(values(loss.clone())[0]);
            let mut sum = GradientSum::<B>::default();
            sum.add::<Autodiff<B>>(&mut model, &mut loss.backward());
            if step == 0 {
                let gradients = in_files(&model, &|key| sum.values(key), &device);
                note_tensors::<B>(
                    &name,
                    "gradients",
                    &gradients,
                    &expected["gradients"],
                    GRADIENTS,
                );
            }
            optim.update::<Autodiff<B>>(&mut model, sum, 1.0, lr);
        }
        let off = distance(&losses, &numbers(&expected["losses"]));
        note::<B>(
            &name,
            &format!("losses of {steps} steps of AdamW"),
            off,
            false,
            TOLERANCE,
        );
        let mut after = Vec::new();
        model.for_each_parameter(&mut |meta, slot| {
            if slot.is_trained() {
                after.extend(slot.save(meta));
            }
        });
        // AdamW makes whole steps of gradients that are zero but for rounding: those of the keys' biases.
        let (gradients, theirs) = (
            in_base(&expected["gradients"]),
            in_base(&expected["trained"]),
        );
        for (tensor, _, values) in &mut after {
            let gradients = numbers(gradients[tensor.as_str()]);
            let theirs = numbers(theirs[tensor.as_str()]);
            for ((value, gradient), theirs) in values.iter_mut().zip(gradients).zip(theirs) {
                if gradient.abs() < 1e-6 {
                    *value = theirs as f32;
                }
            }
        }
        note_tensors::<B>(
            &name,
            "tensors after them",
            &after,
            &expected["trained"],
            TRAINED,
        );
    }
    assert!(count > 1);
}

/// Losses and gradients of rows and of many copies of them, which are computed in products for many rows.
pub(crate) fn many_rows<B: ModelBackend>(device: B::Device) {
    let _lock = tempering::guard::lock_gradients();
    let mut count = 0;
    for (name, reference) in cases("logprobs") {
        let adapter = folder("peft").join(&name);
        if !adapter.join("trained.json").is_file() {
            continue;
        }
        count += 1;
        let (config, mut model) = base_of::<B>(&name, &reference, &device);
        let loaded = load_adapter(&mut model, &config, &adapter, &device).unwrap();
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
        Peft::from(loaded.config.spec).mark_trained(&mut model);
        let rows = rows(&reference);
        let [few, many] = [1, 8].map(|copies| {
            let loss = mean_loss(&model, &vec![rows.clone(); copies].concat(), &device);
            let mut sum = GradientSum::<B>::default();
            sum.add::<Autodiff<B>>(&mut model, &mut loss.backward());
            let gradients = in_files(&model, &|key| sum.values(key), &device);
            let loss = loss.into_data().convert::<f32>().into_vec::<f32>().unwrap();
            (loss, gradients)
        });
        // A mean of eight times as many numbers.
        assert!((few.0[0] - many.0[0]).abs() < 1e-5, "{name}");
        for ((tensor, _, few), (_, _, many)) in few.1.iter().zip(&many.1) {
            let largest = few.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (few, many) in few.iter().zip(many) {
                let off = (few - many).abs();
                assert!(
                    off <= 5e-5 * largest + 1e-9,
                    "{name} {tensor}: {few} {many} of {largest}"
                );
            }
        }
    }
    assert!(count > 1);
}

/// The mean negative log-probability of every token but a row's first.
fn mean_loss<B: ModelBackend>(
    model: &LanguageModel<Autodiff<B>>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> Tensor<Autodiff<B>, 1> {
    let batch = TokenBatch::from_rows(rows, device);
    let (places, targets) = predicted(&batch, rows, device);
    let states = model.states_at(&batch, Some(places), None, None);
    let (logprobs, _) = model.logprobs(states, &targets, 1.0);
    logprobs.mean().neg()
}

/// Values by parameter, in the names and layout of files.
fn in_files<B: ModelBackend>(
    model: &LanguageModel<Autodiff<B>>,
    values: &dyn Fn(&str) -> Option<Vec<f32>>,
    device: &B::Device,
) -> Vec<HostTensor> {
    let mut tensors = Vec::new();
    let mut copy = model.clone();
    copy.for_each_parameter(&mut |meta, mut slot| {
        if let Some(values) = values(meta.key()) {
            let shape = slot.shape();
            slot.assign(values, &shape, device);
            tensors.extend(slot.save(meta));
        }
    });
    tensors
}

/// Values by tensor; tensors of the base have the names that they have in the base.
fn in_base(tensors: &Value) -> BTreeMap<String, &Value> {
    let neox = tensors
        .as_object()
        .unwrap()
        .keys()
        .any(|key| key.contains("gpt_neox"));
    let plain = |key: &str| match ["lora_", "ia3_", "vera_", "trainable_tokens"]
        .iter()
        .any(|part| key.contains(part))
    {
        true => key.to_owned(),
        false => match (key.replace("base_model.model.", "")).replace(".base_layer", "") {
            // The name in memory; GPT-NeoX's checkpoints have another.
            head if neox && head == "lm_head.weight" => "embed_out.weight".into(),
            name => name,
        },
    };
    let tensors = tensors.as_object().unwrap().iter();
    tensors.map(|(key, values)| (plain(key), values)).collect()
}

/// Notes the largest difference of an entry, as a share of its tensor's largest.
fn note_tensors<B: ModelBackend>(
    name: &str,
    what: &str,
    found: &[HostTensor],
    expected: &Value,
    tolerance: f64,
) {
    let expected = in_base(expected);
    assert_eq!(found.len(), expected.len(), "{name}: {what}");
    let mut most = 0f64;
    for (tensor, _, values) in found {
        most = most.max(relative_distance(values, &numbers(expected[tensor])));
    }
    note::<B>(name, what, most, true, tolerance);
}

/// Several adapters as one: the change of each weight against that of PEFT's `add_weighted_adapter`.
pub(crate) fn combined<B: ModelBackend>(device: B::Device) {
    let expected = read(&folder("peft_combined/ref.json"));
    for (name, expected) in expected.as_object().unwrap() {
        let settings = &expected["settings"];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let adapters = expected["adapters"].as_array().unwrap().iter();
        let folders: Vec<PathBuf> = adapters
            .map(|adapter| folder("peft_combined").join(text(adapter)))
            .collect();
        let settings = CombineSettings {
            combination: Combination::parse(&text(&settings["combination_type"])).unwrap(),
            weights: numbers(&expected["weights"]),
            density: settings["density"].as_f64(),
            majority_sign: match settings["majority_sign_method"].as_str() {
                Some("frequency") => MajoritySign::Frequency,
                _ => MajoritySign::Total,
            },
            svd_rank: settings["svd_rank"].as_u64().map(|rank| rank as usize),
            seed: Seed::new(0),
        };
        let to = tempfile::tempdir().unwrap();
        combine_adapters::<B>(&folders, &settings, to.path(), &device).unwrap();
        let stored = of_adapter(tensors(to.path()));
        let changes = expected["changes"].as_object().unwrap();
        assert_eq!(stored.len(), 2 * changes.len(), "{name}");
        let mut most = 0f64;
        for (path, expected) in changes {
            let matrix = |which: &str| {
                let key = format!("base_model.model.{path}.{which}");
                let (_, shape, values) = stored.iter().find(|(name, ..)| *name == key).unwrap();
                Tensor::<B, 2>::from_data(TensorData::new(values.clone(), shape.clone()), &device)
            };
            // alpha is the rank: the factor on the product is 1.
            let change = match path.ends_with("embed_tokens") {
                true => {
                    f32_matmul(matrix("lora_embedding_B"), matrix("lora_embedding_A")).transpose()
                }
                false => f32_matmul(matrix("lora_B.weight"), matrix("lora_A.weight")),
            };
            most = most.max(distance(&values(change), &numbers(expected)));
        }
        note::<B>(
            &format!("combined: {name}"),
            "changes of the weights",
            most,
            false,
            COMBINED,
        );
    }
}

/// The small llama that most adapters are on.
pub(crate) fn llama<B: ModelBackend>() -> (ModelConfig, LanguageModel<B>) {
    load(&folder("peft_base/llama"), &Default::default())
}
