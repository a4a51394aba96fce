//! Every model family against transformers' numbers (`tests/reference/families.py`), generic over the backend.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};
use serde_json::Value;

use tempering::generate::{GenerateOptions, SamplingConfig, generate};
use tempering::model::{CausalLm, LanguageModel, ModelConfig, ScalarModel, weights};
use tempering::ops::ModelBackend;
use tempering::optim::GradientSum;
use tempering::params::{ParamKind, Parameters};
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

const FAMILIES: [&str; 4] = ["llama_tied", "llama_untied", "qwen3", "gpt2"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(name)
}

fn reference(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder(name).join("ref.json")).unwrap()).unwrap()
}

fn rows(reference: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(reference["rows"].clone()).unwrap()
}

fn load<B: ModelBackend>(name: &str, device: &B::Device) -> LanguageModel<B> {
    let config = ModelConfig::load(folder(name)).unwrap();
    let source = weights::open(folder(name)).unwrap();
    LanguageModel::load(&config, source.as_ref(), device).unwrap()
}

/// Log-probability of each token after the first, by row.
fn logprobs<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> Vec<Vec<f32>> {
    let (sum, values) = summed_logprobs(model, rows, device);
    drop(sum);
    values
}

/// The sum as a tensor (for gradients), and the values by row.
fn summed_logprobs<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> (Tensor<B, 1>, Vec<Vec<f32>>) {
    let batch = TokenBatch::from_rows(rows, device);
    let hidden = model.hidden_states(&batch, None, None);
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for (range, row) in batch.segments.iter().zip(rows) {
        positions.extend((range.start..range.end - 1).map(|i| i as i32));
        targets.extend(&row[1..]);
    }
    let count = positions.len();
    let positions = Tensor::<B, 1, Int>::from_data(TensorData::new(positions, [count]), device);
    let (logprobs, _) = model.logprobs(hidden.select(0, positions), &Arc::new(targets), 1.0);
    let flat: Vec<f32> = logprobs.clone().into_data().into_vec().unwrap();
    let mut flat = flat.into_iter();
    let values = rows
        .iter()
        .map(|row| flat.by_ref().take(row.len() - 1).collect())
        .collect();
    (logprobs.sum(), values)
}

fn assert_close(what: &str, got: &[f32], expected: &Value, tolerance: f64) {
    let expected: Vec<f64> = serde_json::from_value(expected.clone()).unwrap();
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert!(
            (f64::from(*got) - expected).abs() <= tolerance,
            "{what}[{i}]: {got} instead of {expected}"
        );
    }
}

pub(crate) fn forward<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let (reference, model) = (reference(name), load::<B>(name, &device));
        let rows = rows(&reference);
        let expected = reference["token_logprobs"].as_array().unwrap();
        // Packed together, in reverse order, and each row alone.
        for (row, got) in logprobs(&model, &rows, &device).iter().enumerate() {
            assert_close(&format!("{name} row {row}"), got, &expected[row], 1e-4);
        }
        let reversed: Vec<Vec<u32>> = rows.iter().rev().cloned().collect();
        for (row, got) in logprobs(&model, &reversed, &device)
            .iter()
            .rev()
            .enumerate()
        {
            assert_close(
                &format!("{name} row {row}, reversed"),
                got,
                &expected[row],
                1e-4,
            );
        }
        for (i, row) in rows.iter().enumerate() {
            let alone = logprobs(&model, std::slice::from_ref(row), &device);
            assert_close(
                &format!("{name} row {i}, alone"),
                &alone[0],
                &expected[i],
                1e-4,
            );
        }
        for probe in reference["logits"].as_array().unwrap() {
            let row = probe["row"].as_u64().unwrap() as usize;
            let position = probe["position"].as_u64().unwrap() as usize;
            let batch = TokenBatch::from_rows(&rows[row..=row], &device);
            let hidden = model
                .hidden_states(&batch, None, None)
                .narrow(0, position, 1);
            let logits: Vec<f32> = model.logits(hidden).into_data().into_vec().unwrap();
            assert_close(
                &format!("{name} logits {row} {position}"),
                &logits,
                &probe["values"],
                2e-4,
            );
        }
    }
}

pub(crate) fn gradients<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let reference = reference(name);
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(load::<B>(name, &device));
        model.train_only(&|_| true);
        let rows = rows(&reference);
        let count: usize = rows.iter().map(|row| row.len() - 1).sum();
        let (sum, _) = summed_logprobs(&model, &rows, &device);
        let loss = sum.neg().div_scalar(count as f32);
        assert_close(
            name,
            &[loss.clone().into_scalar_f32()],
            &Value::from(vec![reference["mean_loss"].clone()]),
            1e-4,
        );
        compare_gradients(name, &mut model, loss, &reference);
    }
}

/// Every gradient of the reference, as norm and first entries, to 1e-4 of its norm.
fn compare_gradients<B: ModelBackend>(
    name: &str,
    model: &mut LanguageModel<Autodiff<B>>,
    loss: Tensor<Autodiff<B>, 1>,
    reference: &Value,
) {
    let mut grads = loss.backward();
    let mut sum = GradientSum::<B>::default();
    sum.add::<Autodiff<B>>(model, &mut grads);
    let mut seen = 0;
    model.for_each_parameter(&mut |meta, mut slot| {
        let Some(values) = sum.values(meta.key()) else {
            return;
        };
        // Through `save`, the gradient comes out in the files' layout.
        let shape = slot.shape();
        slot.assign(values, &shape, &Default::default());
        for (tensor, shape, values) in slot.save(meta) {
            let expected = &reference["gradients"][&tensor];
            assert_eq!(
                serde_json::json!(shape),
                expected["shape"],
                "{name} {tensor}"
            );
            let norm = expected["norm"].as_f64().unwrap();
            let got = values
                .iter()
                .map(|&x| f64::from(x).powi(2))
                .sum::<f64>()
                .sqrt();
            assert!(
                (got - norm).abs() <= 1e-4 * norm,
                "{name} {tensor}: norm {got} instead of {norm}"
            );
            let first = expected["first"].as_array().unwrap().len();
            assert_close(
                &format!("{name} {tensor}"),
                &values[..first],
                &expected["first"],
                1e-4 * norm,
            );
            seen += 1;
        }
    });
    assert_eq!(
        seen,
        reference["gradients"].as_object().unwrap().len(),
        "{name}: every gradient is there"
    );
}

pub(crate) fn scores<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let reference = &reference(name);
        let rows = rows(reference);
        let reference = &reference["sequence_classification"];
        let score: Vec<f32> = serde_json::from_value(reference["score_weight"].clone()).unwrap();
        let mut model = ScalarModel::with_zero_head(load::<B>(name, &device), score.len(), &device);
        model.set_score(score, &device);
        let batch = TokenBatch::from_rows(&rows, &device);
        let last: Vec<i32> = batch
            .segments
            .last_tokens()
            .iter()
            .map(|&i| i as i32)
            .collect();
        let count = last.len();
        let last = Tensor::<B, 1, Int>::from_data(TensorData::new(last, [count]), &device);
        let scores: Vec<f32> = model
            .scores(&batch, Some(last), None)
            .into_data()
            .into_vec()
            .unwrap();
        assert_close(name, &scores, &reference["scores"], 2e-4);
    }
}

pub(crate) fn generation<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, &device);
        let prompts = rows(&reference(name));
        let options = GenerateOptions {
            max_new_tokens: 7,
            sampling: SamplingConfig::default(),
            stop_ids: vec![3],
            batch_size: 2,
        };
        let refs: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let run = |batch_size| {
            let options = GenerateOptions {
                batch_size,
                ..options.clone()
            };
            generate(
                &model,
                &refs,
                &options,
                Seed::new(5),
                &device,
                &mut |_, _| {},
            )
        };
        let responses = run(2);
        for (prompt, response) in prompts.iter().zip(&responses) {
            assert_eq!(response.stopped, response.ids.last() == Some(&3), "{name}");
            assert!(response.stopped || response.ids.len() == 7, "{name}");
            // The cache changes nothing: an uncached pass gives the log-probabilities recorded while sampling.
            let row: Vec<u32> = prompt.iter().chain(&response.ids).copied().collect();
            let expected = &logprobs(&model, &[row], &device)[0][prompt.len() - 1..];
            for (got, expected) in response.logprobs.iter().zip(expected) {
                assert!(
                    (got - expected).abs() < 1e-4,
                    "{name}: {got} instead of {expected}"
                );
            }
        }
        for batch_size in [1, 3] {
            let ids = |responses: &[tempering::generate::Response]| -> Vec<Vec<u32>> {
                responses.iter().map(|r| r.ids.clone()).collect()
            };
            assert_eq!(
                ids(&run(batch_size)),
                ids(&responses),
                "{name}: batch size {batch_size}"
            );
        }
    }
}

pub(crate) fn lora<B: ModelBackend>(device: B::Device) {
    for (name, base) in [("llama_lora", "llama_tied"), ("gpt2_lora", "gpt2")] {
        let reference = reference(name);
        let mut plain = load::<B>(base, &device);
        let config = ModelConfig::load(folder(base)).unwrap();
        tempering::model::load_adapter(&mut plain, &config, &folder(name), &device).unwrap();
        let rows = rows(&reference);
        let expected = reference["token_logprobs"].as_array().unwrap();
        for (row, got) in logprobs(&plain, &rows, &device).iter().enumerate() {
            assert_close(&format!("{name} row {row}"), got, &expected[row], 1e-4);
        }
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(plain.clone());
        model.train_only(&|kind| kind == ParamKind::Adapter);
        let (sum, _) = summed_logprobs(&model, &rows, &device);
        let count: usize = rows.iter().map(|row| row.len() - 1).sum();
        compare_gradients(
            name,
            &mut model,
            sum.neg().div_scalar(count as f32),
            &reference,
        );
        // A merged adapter gives the same numbers.
        tempering::peft::Adaptable::merge_adapters(&mut plain);
        for (row, got) in logprobs(&plain, &rows, &device).iter().enumerate() {
            assert_close(
                &format!("{name} row {row}, merged"),
                got,
                &expected[row],
                1e-4,
            );
        }
    }
}

trait IntoF32 {
    fn into_scalar_f32(self) -> f32;
}

impl<B: ModelBackend> IntoF32 for Tensor<B, 1> {
    fn into_scalar_f32(self) -> f32 {
        self.into_data().convert::<f32>().into_vec::<f32>().unwrap()[0]
    }
}
