//! Bottleneck adapters against what the library adapters computes with them (`tests/reference/bottlenecks.py`), generic over the
//! backend.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};
use serde_json::Value;

use tempering::model::weights;
use tempering::model::{
    CausalLm, LanguageModel, ModelConfig, Tape, attach_adapters, load_adapter, save_adapter,
};
use tempering::ops::ModelBackend;
use tempering::optim::GradientSum;
use tempering::params::{ParamKind, Parameters};
use tempering::peft::{Adaptable, AdapterConfig, BottleneckConfig, NonLinearity, Placement};
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

use crate::support::parity::{Comparison, backend_name};

/// Largest difference in nats.
const TOLERANCE: f64 = 2e-5;
/// Largest difference of a gradient, relative to the parameter's largest.
const GRADIENTS: f64 = 1e-4;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn cases() -> Vec<(String, PathBuf, Value)> {
    let mut cases: Vec<_> = std::fs::read_dir(folder("bottlenecks"))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let reference = read(&path.join("ref.json"));
            (name, path, reference)
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(cases.len(), 6);
    cases
}

fn base<B: ModelBackend>(name: &str, device: &B::Device) -> (ModelConfig, LanguageModel<B>) {
    let folder = folder("peft_base").join(name);
    let config = ModelConfig::load(&folder).unwrap();
    let source = weights::open(&folder).unwrap();
    let model = LanguageModel::load(&config, source.as_ref(), device).unwrap();
    (config, model)
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn distance(got: &[f32], expected: &[f64]) -> f64 {
    if got.len() != expected.len() || got.iter().any(|x| x.is_nan()) {
        return f64::INFINITY;
    }
    let pairs = got.iter().zip(expected);
    pairs
        .map(|(a, b)| (f64::from(*a) - b).abs())
        .fold(0.0, f64::max)
}

fn compare<B: ModelBackend>(name: &str, what: &str, difference: f64, tolerance: f64) {
    let backend = backend_name::<B>();
    eprintln!("{name}, {what} on {backend}: {difference:.1e}");
    Comparison {
        reference: "adapters 1.3",
        subject: &format!("bottleneck adapter \"{name}\""),
        what,
        backend,
        difference,
        tolerance,
        relative: what.starts_with("gradient"),
    }
    .check();
}

/// Places before which a token stands, and these tokens.
fn predicted(batch: &TokenBatch<impl ModelBackend>, rows: &[Vec<u32>]) -> (Vec<i32>, Vec<u32>) {
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for (range, row) in batch.segments.iter().zip(rows) {
        positions.extend((range.start..range.end - 1).map(|i| i as i32));
        targets.extend(&row[1..]);
    }
    (positions, targets)
}

fn logprobs<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> Vec<f32> {
    let batch = TokenBatch::from_rows(rows, device);
    let (positions, targets) = predicted(&batch, rows);
    let count = positions.len();
    let at = Tensor::<B, 1, Int>::from_data(TensorData::new(positions, [count]), device);
    let hidden = model.states_at(&batch, Some(at), None, None);
    let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 1.0);
    logprobs.into_data().convert::<f32>().into_vec().unwrap()
}

/// Tensors of a file, by name.
fn tensors(file: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let source = weights::open(file).unwrap();
    let tensor = |name: String| {
        let values = (source.shape(&name).unwrap(), source.read(&name).unwrap());
        (name, values)
    };
    source.names().into_iter().map(tensor).collect()
}

/// Log-probabilities, and the files written again: the same tensors bit by bit, and the same settings.
pub(crate) fn forward<B: ModelBackend>(device: B::Device) {
    for (name, path, reference) in cases() {
        let (config, mut model) = base::<B>(reference["base"].as_str().unwrap(), &device);
        let rows: Vec<Vec<u32>> = serde_json::from_value(reference["rows"].clone()).unwrap();
        let loaded = load_adapter(&mut model, &config, &path, &device).unwrap();
        let off = distance(
            &logprobs(&model, &rows, &device),
            &numbers(&reference["with_adapter"]),
        );
        compare::<B>(&name, "log-probabilities", off, TOLERANCE);
        let error = model.merge_adapters().unwrap_err().to_string();
        assert!(error.contains("cannot be merged"), "{error}");

        let ours = tempfile::tempdir().unwrap();
        save_adapter(
            &mut model,
            &config,
            &loaded.config.spec,
            "base",
            ours.path(),
        )
        .unwrap();
        let file = "adapter.safetensors";
        let theirs = tensors(&path.join(file));
        let renamed = |name: &String| name.replace(".adapters.task.", ".adapters.adapter.");
        let theirs: BTreeMap<_, _> = (theirs.iter())
            .map(|(name, tensor)| (renamed(name), tensor))
            .collect();
        let written = tensors(&ours.path().join(file));
        assert!(
            written
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor))
                .eq(theirs),
            "{name}"
        );
        let (again, warnings) = AdapterConfig::load(ours.path()).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(again.spec, loaded.config.spec, "{name}");
        let (theirs, ours) = (
            read(&path.join("adapter_config.json")),
            read(&ours.path().join("adapter_config.json")),
        );
        for (key, value) in ours["config"].as_object().unwrap() {
            assert_eq!(&theirs["config"][key], value, "{name}: {key}");
        }
    }
}

/// Gradients of the log-probabilities' sum, with every layer computed again or not.
pub(crate) fn gradients<B: ModelBackend>(device: B::Device) {
    let _lock = tempering::guard::lock_gradients();
    for (name, path, reference) in cases() {
        let (config, mut model) = base::<B>(reference["base"].as_str().unwrap(), &device);
        let rows: Vec<Vec<u32>> = serde_json::from_value(reference["rows"].clone()).unwrap();
        load_adapter(&mut model, &config, &path, &device).unwrap();
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
        model.train_only(&|kind| kind == ParamKind::Adapter);
        for checkpointing in [false, true] {
            let batch = TokenBatch::from_rows(&rows, &device);
            let (positions, targets) = predicted(&batch, &rows);
            let count = positions.len();
            let at = Tensor::from_data(TensorData::new(positions, [count]), &device);
            let (states, tape) = Tape::states_at(&model, batch, Some(at), None, checkpointing);
            let (logprobs, _) = model.logprobs(states, &Arc::new(targets), 1.0);
            let mut sum = GradientSum::<B>::default();
            tape.backward(&logprobs.sum(), &mut model, &mut sum);
            let mut found = BTreeMap::new();
            model.for_each_parameter(&mut |meta, slot| {
                if meta.kind == ParamKind::Adapter {
                    found.insert(
                        meta.key().to_owned(),
                        (slot.shape(), sum.values(meta.key()).unwrap()),
                    );
                }
            });
            let expected = reference["gradients"].as_object().unwrap();
            assert_eq!(found.len(), expected.len(), "{name}");
            let mut worst = 0f64;
            for (key, expected) in expected {
                let (shape, ours) = &found[&own_key(key)];
                let ours = match shape[..] {
                    // Files hold `[out, in]`.
                    [inputs, outputs] => (0..outputs)
                        .flat_map(|row| (0..inputs).map(move |column| ours[column * outputs + row]))
                        .collect(),
                    _ => ours.clone(),
                };
                let expected = numbers(expected);
                let largest = expected.iter().fold(1e-6f64, |most, x| most.max(x.abs()));
                worst = worst.max(distance(&ours, &expected) / largest);
            }
            let what = match checkpointing {
                true => "gradients, layers computed again",
                false => "gradients",
            };
            compare::<B>(&name, what, worst, GRADIENTS);
        }
    }
}

/// The key of a parameter that the library calls `name`.
fn own_key(name: &str) -> String {
    let gpt2 = name.starts_with("transformer");
    let sites = match gpt2 {
        true => ["attn.c_proj", "mlp.c_proj"],
        false => ["self_attn.o_proj", "mlp.down_proj"],
    };
    let name = name
        .replace("attention_adapters.adapters.task", sites[0])
        .replace("output_adapters.adapters.task", sites[1])
        .replace("adapter_down.0", "adapter_down");
    format!("base_model.model.{name}")
}

/// Fresh adapters of every placement and non-linearity compute what the base does, and gradients reach them.
pub(crate) fn fresh<B: ModelBackend>(device: B::Device) {
    for name in ["llama", "gpt2"] {
        let (config, plain) = base::<B>(name, &device);
        let rows = [vec![5, 17, 40, 3], vec![12, 7]];
        let expected: Vec<f64> = logprobs(&plain, &rows, &device)
            .iter()
            .map(|&x| f64::from(x))
            .collect();
        for placement in [Placement::Houlsby, Placement::Pfeiffer, Placement::Parallel] {
            for non_linearity in [
                NonLinearity::Relu,
                NonLinearity::GeluTanh,
                NonLinearity::SwiGlu,
            ] {
                let bottleneck = BottleneckConfig {
                    placement,
                    non_linearity,
                    size: Some(3),
                    ..BottleneckConfig::default()
                };
                let mut model = plain.clone();
                attach_adapters(&mut model, &config, &bottleneck, Seed::new(1)).unwrap();
                let off = distance(&logprobs(&model, &rows, &device), &expected);
                assert!(off < 1e-6, "{name}, {placement:?}: {off}");
                let dir = tempfile::tempdir().unwrap();
                save_adapter(
                    &mut model,
                    &config,
                    &(&bottleneck).into(),
                    "base",
                    dir.path(),
                )
                .unwrap();
                load_adapter(&mut plain.clone(), &config, dir.path(), &device).unwrap();
            }
        }
    }
}
