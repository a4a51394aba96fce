//! Every model family against transformers' and PEFT's numbers (`tests/reference/families.py`), generic over the backend.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};
use serde_json::Value;

use tempering::generate::{GenerateOptions, Response, SamplingConfig, generate};
use tempering::model::weights::{self, write_safetensors};
use tempering::model::{
    CausalLm, KvCache, LanguageModel, ModelConfig, ScalarModel, Tape, attach_adapters,
    host_tensors, load_adapter, save_adapter,
};
use tempering::ops::{MatmulPrecision, ModelBackend, Numerics};
use tempering::optim::GradientSum;
use tempering::params::{HostTensor, ParamKind, Parameters};
use tempering::peft::{Adaptable, AdapterSpec, LoraConfig, Peft, TargetModules};
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

use super::parity::{Comparison, backend_name};

pub(crate) const FAMILIES: [&str; 20] = [
    "llama_tied",
    "llama_untied",
    "llama_rope3",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "gpt_neox_sequential",
    "opt",
    "opt_post",
    "qwen2_window",
    "mistral",
    "gemma2",
    "gemma",
    "bloom",
    "bloom_post",
    "gemma3",
    "phi3",
    "olmo2",
    "smollm3",
];

/// Adapters with their base models.
const LORAS: [(&str, &str); 6] = [
    ("llama_lora", "llama_tied"),
    ("gpt2_lora", "gpt2"),
    ("gpt_neox_lora", "gpt_neox"),
    ("opt_lora", "opt_post"),
    ("bloom_lora", "bloom"),
    ("phi3_lora", "phi3"),
];

/// Largest difference allowed: nats for log-probabilities, plain numbers for scores and logits, a share of the
/// parameter's gradient for gradients.
pub(crate) const TOLERANCE: f64 = 1e-4;

/// The same with products in bfloat16: a sum in another order may move an input across an edge of rounding, a 256th of it.
const MIXED_TOLERANCE: f64 = 2e-3;
const MIXED_GRADIENTS: f64 = 2.0 / 256.0;

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(name)
}

fn reference(name: &str) -> Value {
    read(name, "ref.json")
}

pub(crate) fn read(name: &str, file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder(name).join(file)).unwrap()).unwrap()
}

pub(crate) fn rows(reference: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(reference["rows"].clone()).unwrap()
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

pub(crate) fn load<B: ModelBackend>(path: &Path, device: &B::Device) -> LanguageModel<B> {
    let config = ModelConfig::load(path).unwrap();
    let source = weights::open(path).unwrap();
    LanguageModel::load(&config, source.as_ref(), device).unwrap()
}

/// Notes how far a model's numbers are from transformers' or PEFT's, and fails if it is too far.
pub(crate) fn compare<B: ModelBackend>(subject: &str, what: &str, difference: f64, relative: bool) {
    compare_to::<B>(TOLERANCE, subject, what, difference, relative);
}

fn compare_to<B: ModelBackend>(
    tolerance: f64,
    subject: &str,
    what: &str,
    difference: f64,
    relative: bool,
) {
    Comparison {
        reference: if subject.ends_with("_lora") {
            "PEFT 0.21"
        } else {
            "transformers 5.23"
        },
        subject,
        what,
        backend: backend_name::<B>(),
        difference,
        tolerance,
        relative,
    }
    .check();
}

/// Largest difference of two lists of one length; not a number if one of them holds none.
pub(crate) fn largest_difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter()
        .zip(expected)
        .map(|(got, expected)| (f64::from(*got) - expected).abs())
        .fold(0.0, worse)
}

/// The larger of two differences; one that is not a number wins.
pub(crate) fn worse(a: f64, b: f64) -> f64 {
    if b <= a { a } else { b }
}

/// Packed together in three orders, and each row alone.
fn orders(rows: usize) -> Vec<Vec<usize>> {
    let ascending: Vec<usize> = (0..rows).collect();
    let reversed = ascending.iter().rev().copied().collect();
    let shifted = ascending.iter().map(|i| (i + 1) % rows).collect();
    let alone = ascending.iter().map(|&i| vec![i]);
    [ascending.clone(), reversed, shifted]
        .into_iter()
        .chain(alone)
        .collect()
}

/// Indices as a tensor.
fn indices<B: ModelBackend>(indices: Vec<usize>, device: &B::Device) -> Tensor<B, 1, Int> {
    let indices: Vec<i32> = indices.into_iter().map(|i| i as i32).collect();
    let shape = [indices.len()];
    Tensor::from_data(TensorData::new(indices, shape), device)
}

/// Log-probability of each token after the first, by row.
fn logprobs<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> Vec<Vec<f32>> {
    summed_logprobs(model, rows, device).1
}

/// The sum as a tensor (for gradients), and the values by row.
fn summed_logprobs<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> (Tensor<B, 1>, Vec<Vec<f32>>) {
    let batch = TokenBatch::from_rows(rows, device);
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for (range, row) in batch.segments.iter().zip(rows) {
        positions.extend(range.start..range.end - 1);
        targets.extend(&row[1..]);
    }
    if targets.is_empty() {
        return (Tensor::zeros([1], device), vec![Vec::new(); rows.len()]);
    }
    let positions = Some(indices(positions, device));
    let hidden = model.states_at(&batch, positions, None, None);
    let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 1.0);
    let flat: Vec<f32> = logprobs.clone().into_data().into_vec().unwrap();
    let mut flat = flat.into_iter();
    let values = rows
        .iter()
        .map(|row| flat.by_ref().take(row.len() - 1).collect())
        .collect();
    (logprobs.sum(), values)
}

/// Largest difference of a model's log-probabilities from the reference's, over [`orders`].
pub(crate) fn logprob_difference<B: ModelBackend>(
    model: &LanguageModel<B>,
    reference: &Value,
    device: &B::Device,
) -> f64 {
    let rows = rows(reference);
    let mut difference = 0.0;
    for order in orders(rows.len()) {
        let packed: Vec<Vec<u32>> = order.iter().map(|&row| rows[row].clone()).collect();
        for (row, got) in order.into_iter().zip(logprobs(model, &packed, device)) {
            let expected = numbers(&reference["token_logprobs"][row]);
            difference = worse(difference, largest_difference(&got, &expected));
        }
    }
    difference
}

pub(crate) fn forward<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let (reference, model) = (reference(name), load::<B>(&folder(name), &device));
        let difference = logprob_difference(&model, &reference, &device);
        compare::<B>(name, "log-probabilities", difference, false);
        let rows = rows(&reference);
        let mut difference = 0.0;
        for probe in reference["logits"].as_array().unwrap() {
            let row = probe["row"].as_u64().unwrap() as usize;
            let position = probe["position"].as_u64().unwrap() as usize;
            let batch = TokenBatch::from_rows(&rows[row..=row], &device);
            let hidden = model
                .hidden_states(&batch, None, None)
                .narrow(0, position, 1);
            let logits: Vec<f32> = model.logits(hidden).into_data().into_vec().unwrap();
            let expected = numbers(&probe["values"]);
            difference = worse(difference, largest_difference(&logits, &expected));
        }
        compare::<B>(name, "logits", difference, false);
    }
}

pub(crate) fn gradients<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let reference = reference(name);
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(load::<B>(&folder(name), &device));
        model.train_only(&|_| true);
        compare_gradients(TOLERANCE, name, &mut model, &reference, &device);
    }
}

/// Products in bfloat16 against the same in torch (`tests/reference/mixed.py`).
pub(crate) fn mixed<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let (exact, reference) = (reference(name), read(name, "mixed.json"));
        let rounding = numbers(&exact["token_logprobs"][0])
            .into_iter()
            .zip(numbers(&reference["token_logprobs"][0]))
            .fold(0.0, |most, (a, b)| worse(most, (a - b).abs()));
        assert!(rounding > 4.0 * MIXED_TOLERANCE, "{name}: {rounding}");
        let config = ModelConfig::load(folder(name)).unwrap();
        let source = weights::open(folder(name)).unwrap();
        let numerics = Numerics {
            matmul: MatmulPrecision::Bf16,
            ..Numerics::default()
        };
        let model =
            LanguageModel::<B>::load_as(&config, source.as_ref(), numerics, &device).unwrap();
        let subject = format!("{name}, products in bf16");
        let difference = logprob_difference(&model, &reference, &device);
        compare_to::<B>(
            MIXED_TOLERANCE,
            &subject,
            "log-probabilities",
            difference,
            false,
        );
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
        model.train_only(&|_| true);
        compare_gradients(MIXED_GRADIENTS, &subject, &mut model, &reference, &device);
    }
}

/// Frozen layers keep no graph: what they give is tracked only if something below is trained.
pub(crate) fn frozen<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let rows = rows(&reference(name));
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(load::<B>(&folder(name), &device));
        for (entry, expected) in [("-1", true), ("no such parameter", false), ("0", true)] {
            Peft::Only(vec![entry.into()]).mark_trained(&mut model);
            let batch = TokenBatch::from_rows(&rows, &device);
            let states = model.states_at(&batch, None, None, None);
            let tracked = !states.into_primitive().tensor().node.requirement.is_none();
            assert_eq!(tracked, expected, "{name}, {entry} trained");
        }
    }
}

/// Gradients with every layer computed again, of whole models, of parts of them, and of adapters with dropout, against one graph.
pub(crate) fn recomputed<B: ModelBackend>(device: B::Device) {
    let _lock = tempering::guard::lock_gradients();
    for name in FAMILIES {
        let rows = rows(&reference(name));
        let mut base = load::<B>(&folder(name), &device);
        let whole = LanguageModel::<Autodiff<B>>::from_inner(base.clone());
        let config = ModelConfig::load(folder(name)).unwrap();
        let lora = LoraConfig {
            target_modules: vec!["all-linear".into()],
            dropout: 0.2,
            ..LoraConfig::default()
        };
        attach_adapters(&mut base, &config, &lora, Seed::new(4)).unwrap();
        let adapted = LanguageModel::<Autodiff<B>>::from_inner(base);
        // The last block of the tiny models' two or three, and the norms of the first.
        let last = Peft::Only(vec!["-1".into()]);
        let norms = Peft::Only(vec!["0.*norm".into(), "0.ln_1".into(), "-1.*norm".into()]);
        for (mut model, adapters, peft) in [
            (whole.clone(), false, Peft::Full),
            (whole.clone(), false, last),
            (whole, false, norms),
            (adapted, true, Peft::Lora(lora.clone())),
        ] {
            peft.mark_trained(&mut model);
            let mut gradients = |checkpointing| {
                let batch = TokenBatch::from_rows(&rows, &device);
                let (mut positions, mut targets) = (Vec::new(), Vec::new());
                for (range, row) in batch.segments.iter().zip(&rows) {
                    positions.extend(range.start..range.end - 1);
                    targets.extend(&row[1..]);
                }
                let at = Some(indices(positions, &device));
                let dropout = adapters.then(|| Seed::new(9));
                let (states, tape) = Tape::states_at(&model, batch, at, dropout, checkpointing);
                let (logprobs, _) = model.logprobs(states, &Arc::new(targets), 1.0);
                let mut sum = GradientSum::<B>::default();
                tape.backward(&logprobs.sum(), &mut model, &mut sum);
                let names: Vec<String> = sum.names().map(str::to_owned).collect();
                let values = |name: String| (sum.values(&name).unwrap(), name);
                names.into_iter().map(values).collect::<Vec<_>>()
            };
            let (plain, again) = (gradients(false), gradients(true));
            assert!(!plain.is_empty(), "{name}");
            assert_eq!(plain.len(), again.len(), "{name}, adapters {adapters}");
            for ((plain, path), (again, same)) in plain.iter().zip(&again) {
                assert_eq!(path, same);
                let largest = plain.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
                for (plain, again) in plain.iter().zip(again) {
                    // Sums in another order.
                    let off = (plain - again).abs() / largest;
                    assert!(off < 2e-6, "{name} {path}: {again} instead of {plain}");
                }
            }
        }
    }
}

/// The gradient of the mean negative log-probability with respect to every trained parameter, with the rows packed in
/// three orders.
pub(crate) fn compare_gradients<B: ModelBackend>(
    tolerance: f64,
    name: &str,
    model: &mut LanguageModel<Autodiff<B>>,
    reference: &Value,
    device: &B::Device,
) {
    let _lock = tempering::guard::lock_gradients();
    let rows = rows(reference);
    let count: usize = rows.iter().map(|row| row.len() - 1).sum();
    let (mut difference, mut loss_difference) = (0.0, 0.0);
    for order in orders(rows.len()).into_iter().take(3) {
        let packed: Vec<Vec<u32>> = order.iter().map(|&row| rows[row].clone()).collect();
        let (sum, _) = summed_logprobs(model, &packed, device);
        let loss = sum.neg().div_scalar(count as f32);
        let value: Vec<f32> = loss.clone().into_data().into_vec().unwrap();
        let expected = numbers(&Value::from(vec![reference["mean_loss"].clone()]));
        loss_difference = worse(loss_difference, largest_difference(&value, &expected));
        let found = gradient_difference(tolerance, name, model, loss, &reference["gradients"]);
        difference = worse(difference, found);
    }
    compare_to::<B>(tolerance, name, "mean loss", loss_difference, false);
    compare_to::<B>(tolerance, name, "gradients", difference, true);
}

/// Largest difference of a gradient from the reference's, relative to the parameter's gradient; see [`relative_difference`].
fn gradient_difference<B: ModelBackend>(
    tolerance: f64,
    name: &str,
    model: &mut LanguageModel<Autodiff<B>>,
    loss: Tensor<Autodiff<B>, 1>,
    expected: &Value,
) -> f64 {
    let mut grads = loss.backward();
    let mut sum = GradientSum::<B>::default();
    sum.add::<Autodiff<B>>(model, &mut grads);
    let (mut seen, mut difference) = (0, 0.0);
    // In the files' layout, through `save`; on a copy, since the model is needed again.
    let mut copy = model.clone();
    copy.for_each_parameter(&mut |meta, mut slot| {
        let Some(values) = sum.values(meta.key()) else {
            return;
        };
        let shape = slot.shape();
        slot.assign(values, &shape, &Default::default());
        for tensor in slot.save(meta) {
            let expected = &expected[&tensor.0];
            assert!(!expected.is_null(), "{name} {}: not expected", tensor.0);
            let found = relative_difference(tolerance, name, &tensor, expected);
            difference = worse(difference, found);
            seen += 1;
        }
    });
    let count = expected.as_object().unwrap().len();
    assert_eq!(seen, count, "{name}: every gradient is there");
    difference
}

/// How far a tensor is from its fingerprint: the norm and the product with `cos(0.1 i + 1)` as shares of the norm, the
/// first entries as shares of the largest entry. A tensor that is zero but for rounding has to stay below a bound.
fn relative_difference(
    tolerance: f64,
    name: &str,
    (tensor, shape, values): &HostTensor,
    expected: &Value,
) -> f64 {
    let whole = format!("{name} {tensor}");
    assert_eq!(serde_json::json!(shape), expected["shape"], "{whole}");
    let norm_of = |values: &[f32]| {
        let squares = values.iter().map(|&x| f64::from(x).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let got = norm_of(values);
    if let Some(bound) = expected["below"].as_f64() {
        assert!(
            got <= bound,
            "{whole}: norm {got:e}, expected below {bound:e}"
        );
        return 0.0;
    }
    let number = |key: &str| expected[key].as_f64().unwrap();
    let (norm, largest) = (number("norm"), number("largest"));
    let dot: f64 = values
        .iter()
        .enumerate()
        .map(|(i, &x)| f64::from(x) * (0.1 * i as f64 + 1.0).cos())
        .sum();
    let first = numbers(&expected["first"]);
    let entries = largest_difference(&values[..first.len()], &first) / largest;
    let difference = worse(
        worse(
            (got - norm).abs() / norm,
            (dot - number("dot")).abs() / norm,
        ),
        entries,
    );
    assert!(
        difference <= tolerance,
        "{whole}: norm {got} instead of {norm}, product {dot} instead of {}, first entries {:?} instead of {first:?}",
        number("dot"),
        &values[..first.len()]
    );
    difference
}

/// A model's parameters in the files' layout, by name.
pub(crate) fn stored<B: ModelBackend>(model: &mut dyn Parameters<B>) -> Vec<HostTensor> {
    let mut tensors = host_tensors(model, &|_| true);
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

pub(crate) fn scores<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let reference = reference(name);
        let rows = rows(&reference);
        let classifier = &reference["sequence_classification"];
        let config = ModelConfig::load(folder(name)).unwrap();
        assert_eq!(
            config.to_json(true)["architectures"][0],
            classifier["architecture"]
        );
        // A file with transformers' names, and ours after loading and saving it.
        let backbone = weights::open(folder(name)).unwrap();
        let names: Vec<String> =
            serde_json::from_value(classifier["tensor_names"].clone()).unwrap();
        let score: Vec<f32> = serde_json::from_value(classifier["score_weight"].clone()).unwrap();
        let tensors: Vec<HostTensor> = names
            .into_iter()
            .map(|tensor| {
                if tensor == "score.weight" {
                    return (tensor, vec![1, score.len()], score.clone());
                }
                let shape = backbone.shape(&tensor).unwrap();
                let values = backbone.read(&tensor).unwrap();
                (tensor, shape, values)
            })
            .collect();
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("model.safetensors");
        write_safetensors(&file, &tensors).unwrap();
        let source = weights::open(&file).unwrap();
        let mut model = ScalarModel::<B>::load(&config, source.as_ref(), &device).unwrap();
        assert_eq!(stored(&mut model), tensors, "{name}");

        let mut difference = 0.0;
        for order in orders(rows.len()) {
            let packed: Vec<Vec<u32>> = order.iter().map(|&row| rows[row].clone()).collect();
            let batch = TokenBatch::from_rows(&packed, &device);
            let last = indices(batch.segments.last_tokens(), &device);
            let scores = model.scores(&batch, Some(last), None).into_data();
            let expected = numbers(&classifier["scores"]);
            let expected: Vec<f64> = order.iter().map(|&row| expected[row]).collect();
            let found = largest_difference(&scores.into_vec::<f32>().unwrap(), &expected);
            difference = worse(difference, found);
        }
        compare::<B>(name, "scores", difference, false);
    }
}

pub(crate) fn generation<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let model = load::<B>(&folder(name), &device);
        let reference = reference(name);
        let prompts = rows(&reference);
        let refs: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let run = |batch_size: usize, temperature: f64, stop_ids: Vec<u32>, max_new_tokens| {
            let options = GenerateOptions {
                max_new_tokens,
                sampling: SamplingConfig {
                    temperature,
                    ..SamplingConfig::default()
                },
                repetition_penalty: 1.0,
                stop_ids,
                truncate: None,
                batch_size,
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
        let ids = |responses: &[Response]| -> Vec<Vec<u32>> {
            responses.iter().map(|r| r.ids.clone()).collect()
        };
        let greedy: Vec<Vec<u32>> = serde_json::from_value(reference["greedy"].clone()).unwrap();
        for batch_size in 1..=prompts.len() {
            let found = run(batch_size, 0.0, Vec::new(), greedy[0].len());
            assert_eq!(ids(&found), greedy, "{name}: batch size {batch_size}");
        }
        let responses = run(2, 1.0, vec![3], 7);
        for (prompt, response) in prompts.iter().zip(&responses) {
            assert_eq!(response.stopped, response.ids.last() == Some(&3), "{name}");
            assert!(response.stopped || response.ids.len() == 7, "{name}");
            // The cache changes nothing: an uncached pass gives the log-probabilities recorded while sampling.
            let row: Vec<u32> = prompt.iter().chain(&response.ids).copied().collect();
            let expected: Vec<f64> = logprobs(&model, &[row], &device)[0][prompt.len() - 1..]
                .iter()
                .map(|&x| f64::from(x))
                .collect();
            let difference = largest_difference(&response.logprobs, &expected);
            assert!(difference <= TOLERANCE, "{name}: {difference:e}");
        }
        for batch_size in [1, 3] {
            let found = run(batch_size, 1.0, vec![3], 7);
            assert_eq!(ids(&found), ids(&responses), "{name}: {batch_size}");
        }
    }
}

/// Log-probabilities by way of the cache: row `i` joins in step `i` and brings `chunk` tokens a step.
pub(crate) fn cached_logprobs<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[Vec<u32>],
    chunk: usize,
    device: &B::Device,
) -> Vec<Vec<f32>> {
    let capacity = rows.iter().map(Vec::len).max().unwrap();
    let layout = model.head_layout();
    let mut cache = KvCache::new(model.num_layers(), rows.len(), capacity, layout, device);
    let mut found = vec![Vec::new(); rows.len()];
    for step in 0..rows.len() + capacity.div_ceil(chunk) {
        let parts: Vec<(usize, Range<usize>)> = rows
            .iter()
            .enumerate()
            .filter_map(|(i, row)| {
                let from = step.checked_sub(i)? * chunk;
                let part = from..row.len().min(from + chunk);
                (!part.is_empty()).then_some((i, part))
            })
            .collect();
        if parts.is_empty() {
            continue;
        }
        let inputs: Vec<&[u32]> = (parts.iter())
            .map(|(i, part)| &rows[*i][part.clone()])
            .collect();
        let batch = TokenBatch::from_rows(&inputs, device);
        // Slots in another order than rows.
        let slots: Vec<usize> = parts.iter().map(|(i, _)| rows.len() - 1 - i).collect();
        cache.select(&slots);
        let hidden = model.hidden_states(&batch, Some(&mut cache), None);
        let (mut positions, mut targets, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for (range, (i, part)) in batch.segments.iter().zip(&parts) {
            for (position, token) in range.zip(part.clone()) {
                if let Some(&next) = rows[*i].get(token + 1) {
                    positions.push(position);
                    targets.push(next);
                    owners.push(*i);
                }
            }
        }
        if targets.is_empty() {
            continue;
        }
        let hidden = hidden.select(0, indices(positions, device));
        let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 1.0);
        let logprobs: Vec<f32> = logprobs.into_data().into_vec().unwrap();
        for (owner, logprob) in owners.into_iter().zip(logprobs) {
            found[owner].push(logprob);
        }
    }
    found
}

pub(crate) fn cached<B: ModelBackend>(device: B::Device) {
    for name in FAMILIES {
        let model = load::<B>(&folder(name), &device);
        let reference = reference(name);
        let rows = rows(&reference);
        let mut difference = 0.0;
        for chunk in [1, 2, 3, 64] {
            let found = cached_logprobs(&model, &rows, chunk, &device);
            for (row, got) in found.iter().enumerate() {
                let expected = numbers(&reference["token_logprobs"][row]);
                difference = worse(difference, largest_difference(got, &expected));
            }
        }
        let what = "log-probabilities by way of the cache";
        compare::<B>(name, what, difference, false);
    }
}

pub(crate) fn lora<B: ModelBackend>(device: B::Device) {
    for (name, base) in LORAS {
        let reference = reference(name);
        let mut plain = load::<B>(&folder(base), &device);
        let config = ModelConfig::load(folder(base)).unwrap();
        let adapter = load_adapter(&mut plain, &config, &folder(name), &device).unwrap();
        let difference = logprob_difference(&plain, &reference, &device);
        compare::<B>(name, "log-probabilities", difference, false);
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(plain.clone());
        model.train_only(&|kind| kind == ParamKind::Adapter);
        compare_gradients(TOLERANCE, name, &mut model, &reference, &device);

        // "all-linear" selects what PEFT selects.
        let linear = config.linear_modules();
        let all = LoraConfig {
            target_modules: vec!["all-linear".into()],
            ..LoraConfig::default()
        };
        let mut selected: Vec<&str> = AdapterSpec::from(&all)
            .targets(&linear)
            .unwrap()
            .into_iter()
            .map(|i| linear[i].name.as_str())
            .collect();
        selected.sort_unstable();
        let TargetModules::List(mut expected) = adapter.config.targets.target_modules.clone()
        else {
            panic!("{name}: PEFT writes a list");
        };
        expected.sort_unstable();
        assert_eq!(selected, expected, "{name}");

        // Saved again, the file is the same.
        let temp = tempfile::tempdir().unwrap();
        save_adapter(&mut plain, &config, &adapter.config.spec, base, temp.path()).unwrap();
        let file = |folder: &Path| {
            let source = weights::open(folder.join("adapter_model.safetensors")).unwrap();
            let names = source.names();
            let tensor = |name: String| (source.shape(&name), source.read(&name).unwrap(), name);
            names.into_iter().map(tensor).collect::<Vec<_>>()
        };
        assert!(file(temp.path()) == file(&folder(name)), "{name}");

        // A merged adapter gives the same numbers, and PEFT's weights in the files' layout.
        plain.merge_adapters().unwrap();
        let difference = logprob_difference(&plain, &reference, &device);
        compare::<B>(name, "log-probabilities, merged", difference, false);
        let merged = reference["merged"].as_object().unwrap();
        let tensors = stored(&mut plain);
        let mut difference = 0.0;
        for (path, expected) in merged {
            let tensor = tensors.iter().find(|(name, ..)| name == path).unwrap();
            difference = worse(
                difference,
                relative_difference(TOLERANCE, name, tensor, expected),
            );
        }
        compare::<B>(name, "merged weights", difference, true);
    }
}
