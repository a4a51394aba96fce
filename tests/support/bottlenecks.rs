//! Bottleneck adapters against what the library adapters computes with them (`tests/reference/bottlenecks.py`), generic over the
//! backend.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

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
use crate::support::reference::{
    self, Case, distance, folder, load, logprobs, numbers, predicted, read, relative_distance,
    tensors, wide,
};

/// Largest difference in nats.
const TOLERANCE: f64 = 2e-5;
/// Largest difference of a gradient, relative to the parameter's largest.
const GRADIENTS: f64 = 1e-4;

fn cases() -> Vec<Case> {
    let cases = reference::cases("bottlenecks");
    assert_eq!(cases.len(), 6);
    cases
}

fn base<B: ModelBackend>(name: &str, device: &B::Device) -> (ModelConfig, LanguageModel<B>) {
    load(&folder("peft_base").join(name), device)
}

/// The base that a case's adapter was made for.
fn base_of<B: ModelBackend>(case: &Case, device: &B::Device) -> (ModelConfig, LanguageModel<B>) {
    base(case.reference["base"].as_str().unwrap(), device)
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

/// Log-probabilities, and the files written again: the same tensors bit by bit, and the same settings.
pub(crate) fn forward<B: ModelBackend>(device: B::Device) {
    for case in cases() {
        let (config, mut model) = base_of::<B>(&case, &device);
        let Case { name, path, .. } = &case;
        let loaded = load_adapter(&mut model, &config, path, &device).unwrap();
        let with = logprobs(&model, &case.rows(), &device);
        let off = distance(&with, &case.numbers("with_adapter"));
        compare::<B>(name, "log-probabilities", off, TOLERANCE);
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
        let mut theirs = tensors(&path.join(file));
        for (name, ..) in &mut theirs {
            *name = name.replace(".adapters.task.", ".adapters.adapter.");
        }
        theirs.sort_by(|a, b| a.0.cmp(&b.0));
        assert!(tensors(&ours.path().join(file)) == theirs, "{name}");
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
    for case in cases() {
        let (config, mut model) = base_of::<B>(&case, &device);
        let (name, rows) = (&case.name, case.rows());
        load_adapter(&mut model, &config, &case.path, &device).unwrap();
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
        model.train_only(&|kind| kind == ParamKind::Adapter);
        for checkpointing in [false, true] {
            let batch = TokenBatch::from_rows(&rows, &device);
            let (places, targets) = predicted(&batch, &rows, &device);
            let (states, tape) = Tape::states_at(&model, batch, Some(places), None, checkpointing);
            let (logprobs, _) = model.logprobs(states, &targets, 1.0);
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
            let expected = case.reference["gradients"].as_object().unwrap();
            assert_eq!(found.len(), expected.len(), "{name}");
            let mut worst = 0f64;
            for (key, expected) in expected {
                let (shape, ours) = &found[&own_key(key)];
                let ours: Vec<f32> = match shape[..] {
                    // Files hold `[out, in]`.
                    [inputs, outputs] => (0..outputs)
                        .flat_map(|row| (0..inputs).map(move |column| ours[column * outputs + row]))
                        .collect(),
                    _ => ours.clone(),
                };
                worst = worst.max(relative_distance(&ours, &numbers(expected)));
            }
            let what = match checkpointing {
                true => "gradients, layers computed again",
                false => "gradients",
            };
            compare::<B>(name, what, worst, GRADIENTS);
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
        let expected = wide(&logprobs(&plain, &rows, &device));
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
