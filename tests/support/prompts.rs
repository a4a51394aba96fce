//! Virtual tokens against what PEFT computes with them (`tests/reference/prompts.py`), generic over the backend.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use serde_json::Value;

use tempering::generate::{GenerateOptions, SamplingConfig, generate};
use tempering::model::{
    CausalLm, KvCache, LanguageModel, ModelConfig, ScalarModel, SharedBaseModels, Tape,
    attach_adapters, load_adapter, save_adapter,
};
use tempering::ops::ModelBackend;
use tempering::optim::GradientSum;
use tempering::params::{ParamKind, Parameters};
use tempering::peft::{Adaptable, AdapterConfig, AdapterSpec};
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

use crate::support::parity::{Comparison, backend_name};
use crate::support::reference::{
    Case, cases_of, distance, folder, indices, load, logprobs, numbers, predicted, read,
    relative_distance, tensors, values, wide,
};

/// Largest difference from PEFT in nats, and in units of the score.
const TOLERANCE: f64 = 2e-5;
/// Largest difference of a gradient, relative to the parameter's largest.
const GRADIENTS: f64 = 1e-4;

/// The cases whose numbers are of a kind.
fn cases(task: &str) -> Vec<Case> {
    cases_of("prompts", task)
}

fn base<B: ModelBackend>(case: &Case, device: &B::Device) -> (ModelConfig, LanguageModel<B>) {
    load(&folder(case.reference["base"].as_str().unwrap()), device)
}

/// The base with PEFT's tokens.
fn adapted<B: ModelBackend>(case: &Case, device: &B::Device) -> (ModelConfig, LanguageModel<B>) {
    let (config, mut model) = base::<B>(case, device);
    let loaded = load_adapter(&mut model, &config, &case.path, device).unwrap();
    assert!(
        loaded.warnings.is_empty(),
        "{}: {:?}",
        case.name,
        loaded.warnings
    );
    (config, model)
}

fn prompts(name: &str) -> PathBuf {
    folder("prompts").join(name)
}

/// Gives an encoder the weights in a file.
pub(crate) fn load_encoder<B: ModelBackend>(
    model: &mut LanguageModel<B>,
    file: &Path,
    device: &B::Device,
) {
    let stored: BTreeMap<_, _> = (tensors(file).into_iter())
        .map(|(name, _, values)| (name, values))
        .collect();
    let mut seen = 0;
    model.for_each_parameter(&mut |meta, mut slot| {
        if meta.kind == ParamKind::Adapter {
            let value = |name: &str| {
                seen += 1;
                stored.get(name).cloned().ok_or(name.to_owned())
            };
            slot.load(meta, device, value).unwrap();
        }
    });
    assert_eq!(seen, stored.len(), "{}", file.display());
}

fn compare<B: ModelBackend>(name: &str, what: &str, difference: f64, tolerance: f64) {
    let backend = backend_name::<B>();
    eprintln!("{name}, {what} on {backend}: {difference:.1e}");
    Comparison {
        reference: "PEFT 0.21",
        subject: &format!("PEFT virtual tokens \"{name}\""),
        what,
        backend,
        difference,
        tolerance,
        relative: what.starts_with("gradient"),
    }
    .check();
}

/// Log-probabilities with the tokens before every row: rows in one batch, one by one, and by way of the cache.
pub(crate) fn forward<B: ModelBackend>(device: B::Device) {
    for case in cases("logprobs") {
        let name = case.name.as_str();
        let (_, plain) = base::<B>(&case, &device);
        let (_, model) = adapted::<B>(&case, &device);
        let rows = case.rows();
        let without = logprobs(&plain, &rows, &device);
        let off = distance(&without, &case.numbers("without_adapter"));
        assert!(off < TOLERANCE, "{name}: {off}");
        let expected = case.numbers("with_adapter");
        let with = logprobs(&model, &rows, &device);
        let change = distance(&with, &wide(&without));
        assert!(change > 1e-2, "{name} changes nothing");
        let off = distance(&with, &expected);
        compare::<B>(name, "log-probabilities", off, TOLERANCE);
        let alone: Vec<f32> = (rows.iter())
            .flat_map(|row| logprobs(&model, std::slice::from_ref(row), &device))
            .collect();
        let off = distance(&alone, &expected);
        assert!(off < TOLERANCE, "{name}, row by row: {off}");
        for chunk in [1, 3] {
            let cached = cached(&model, &rows, chunk, &device);
            let off = distance(&cached, &expected);
            assert!(off < TOLERANCE, "{name}, cached by {chunk}: {off}");
        }
    }
}

/// Log-probabilities by way of the cache; row `i` joins in step `i` and brings `chunk` tokens a step.
fn cached<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[Vec<u32>],
    chunk: usize,
    device: &B::Device,
) -> Vec<f32> {
    let longest = rows.iter().map(Vec::len).max().unwrap();
    let capacity = model.num_virtual_tokens() + longest;
    let layout = model.head_layout();
    let mut cache = KvCache::new(model.num_layers(), rows.len(), capacity, layout, device);
    let mut found = vec![Vec::new(); rows.len()];
    for step in 0..rows.len() + longest.div_ceil(chunk) {
        let parts: Vec<(usize, std::ops::Range<usize>)> = (rows.iter().enumerate())
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
        cache.select(
            &parts
                .iter()
                .map(|(i, _)| rows.len() - 1 - i)
                .collect::<Vec<_>>(),
        );
        let hidden = model.hidden_states(&batch, Some(&mut cache), None);
        for (range, (i, part)) in batch.segments.iter().zip(&parts) {
            for (place, token) in range.zip(part.clone()) {
                let Some(&next) = rows[*i].get(token + 1) else {
                    continue;
                };
                let state = hidden.clone().narrow(0, place, 1);
                let (logprob, _) = model.logprobs(state, &Arc::new(vec![next]), 1.0);
                found[*i].extend(values(logprob));
            }
        }
    }
    found.concat()
}

/// Scores of classifiers, whose head the adapter brings.
pub(crate) fn classifiers<B: ModelBackend>(device: B::Device) {
    for case in cases("scores") {
        let (config, model) = base::<B>(&case, &device);
        let mut model =
            ScalarModel::with_zero_head(model.into_backbone(), config.hidden_size(), &device);
        let loaded = load_adapter(&mut model, &config, &case.path, &device).unwrap();
        model.set_score(loaded.score.unwrap(), &device);
        let rows = case.rows();
        let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let scores = model.row_scores(&slices, 1024, &device, &mut |_, _| {});
        let off = distance(&scores, &case.numbers("with_adapter"));
        compare::<B>(&case.name, "scores", off, TOLERANCE);
        written(&case.name, &mut model, &config, &loaded.config.spec);
    }
}

/// Written again, the files have PEFT's tensors bit by bit, and its configuration but for what says how it came about.
fn written<B: ModelBackend, M: Adaptable<B> + Parameters<B>>(
    name: &str,
    model: &mut M,
    config: &ModelConfig,
    spec: &AdapterSpec,
) {
    let ours = tempfile::tempdir().unwrap();
    let theirs = read(&prompts(name).join("adapter_config.json"));
    let base = theirs["base_model_name_or_path"].as_str().unwrap();
    save_adapter(model, config, spec, base, ours.path()).unwrap();
    let file = "adapter_model.safetensors";
    assert!(
        tensors(&ours.path().join(file)) == tensors(&prompts(name).join(file)),
        "{name}: other tensors"
    );
    let ours = read(&ours.path().join("adapter_config.json"));
    for (key, value) in theirs.as_object().unwrap() {
        assert_eq!(&ours[key], value, "{name}: {key}");
    }
    assert_eq!(
        ours.as_object().unwrap().len(),
        theirs.as_object().unwrap().len(),
        "{name}"
    );
}

/// Read and written again.
pub(crate) fn files<B: ModelBackend>(device: B::Device) {
    for case in cases("logprobs") {
        let (config, mut model) = adapted::<B>(&case, &device);
        let (peft, _) = AdapterConfig::load(&case.path).unwrap();
        written(&case.name, &mut model, &config, &peft.spec);
    }
}

/// Gradients of the log-probabilities' sum by parameter, with every layer computed again or not.
fn gradients_of<B: ModelBackend>(
    model: &mut LanguageModel<Autodiff<B>>,
    rows: &[Vec<u32>],
    checkpointing: bool,
    device: &B::Device,
) -> BTreeMap<String, Vec<f32>> {
    let batch = TokenBatch::from_rows(rows, device);
    let (places, targets) = predicted(&batch, rows, device);
    let (states, tape) = Tape::states_at(model, batch, Some(places), None, checkpointing);
    let (logprobs, _) = model.logprobs(states, &targets, 1.0);
    let mut sum = GradientSum::<B>::default();
    tape.backward(&logprobs.sum(), model, &mut sum);
    let names: Vec<String> = sum.names().map(str::to_owned).collect();
    let values = |name: String| (name.clone(), sum.values(&name).unwrap());
    names.into_iter().map(values).collect()
}

/// Gradients as PEFT's file has the tensor: of a prefix, those of its layers side by side.
fn as_stored(ours: &BTreeMap<String, Vec<f32>>, count: usize) -> Vec<f32> {
    let of_layer = |layer: usize| ours.get(&format!("prefix.{layer}.keys_values"));
    if of_layer(0).is_none() {
        return ours["prompt_embeddings"].clone();
    }
    let layers: Vec<&Vec<f32>> = (0..).map_while(of_layer).collect();
    (0..count)
        .flat_map(|row| {
            (layers.iter()).flat_map(move |layer| {
                let width = layer.len() / count;
                layer[row * width..][..width].iter().copied()
            })
        })
        .collect()
}

/// Gradients, and what encoders compute, whose weights PEFT's files leave out.
pub(crate) fn gradients<B: ModelBackend>(device: B::Device) {
    let _turn = tempering::guard::lock_gradients();
    for case in cases("logprobs") {
        let name = case.name.as_str();
        let encoder = case.path.join("encoder.safetensors");
        let (config, mut model) = adapted::<B>(&case, &device);
        let rows = case.rows();
        if encoder.is_file() {
            let (peft, _) = AdapterConfig::load(&case.path).unwrap();
            attach_adapters(&mut model, &config, peft.spec, Seed::new(1)).unwrap();
            load_encoder(&mut model, &encoder, &device);
            let with = logprobs(&model, &rows, &device);
            let off = distance(&with, &case.numbers("with_adapter"));
            let what = "log-probabilities through the encoder";
            compare::<B>(name, what, off, TOLERANCE);
        }
        let mut model = LanguageModel::<Autodiff<B>>::from_inner(model);
        model.train_only(&|kind| kind == ParamKind::Adapter);
        let count = model.num_virtual_tokens();
        for checkpointing in [false, true] {
            let ours = gradients_of(&mut model, &rows, checkpointing, &device);
            let mut worst = 0f64;
            for (key, expected) in case.reference["gradients"].as_object().unwrap() {
                let found = match key.as_str() {
                    // A family with keys in another order than files has gradients in it, too.
                    "prompt_embeddings" if name == "prefix_gpt_neox" => continue,
                    "prompt_embeddings" => as_stored(&ours, count),
                    key => transposed(&ours[key], key, &case.path),
                };
                worst = worst.max(relative_distance(&found, &numbers(expected)));
            }
            let what = match checkpointing {
                true => "gradients, layers computed again",
                false => "gradients",
            };
            compare::<B>(name, what, worst, GRADIENTS);
        }
    }
}

/// The gradient of a weight as files hold it, `[out, in]`.
fn transposed(gradient: &[f32], key: &str, folder: &Path) -> Vec<f32> {
    let stored = tensors(&folder.join("encoder.safetensors"));
    let (_, shape, _) = stored.iter().find(|(name, ..)| name == key).unwrap();
    let [outputs, inputs] = shape[..] else {
        return gradient.to_vec();
    };
    if key.ends_with("embedding") {
        return gradient.to_vec();
    }
    (0..outputs)
        .flat_map(|row| (0..inputs).map(move |column| gradient[column * outputs + row]))
        .collect()
}

/// Rows that begin alike share their beginning and the virtual tokens before it; responses are drawn alike whatever the batch;
/// a pass of several models leaves models with tokens out.
pub(crate) fn shared<B: ModelBackend>(device: B::Device) {
    for name in [
        "prompt",
        "prefix",
        "prompt_gpt2",
        "prefix_gpt2",
        "p_lstm",
        "prefix_gemma2",
        "prefix_bloom",
    ] {
        let case = Case::at(prompts(name));
        let (_, plain) = base::<B>(&case, &device);
        let (_, model) = adapted::<B>(&case, &device);
        let groups = vec![
            vec![
                vec![5, 17, 40, 3, 3],
                vec![5, 17, 40, 3, 8, 45],
                vec![5, 17, 40, 9],
            ],
            vec![vec![12, 2]],
        ];
        let (batch, spans) = TokenBatch::from_groups(&groups, &device);
        let places = spans
            .iter()
            .flat_map(|span| (0..span.len()).map(|i| span.token(i)));
        let at = Some(indices(places, &device));
        let grouped = model.states_at(&batch, at, None, None);
        let flat: Vec<Vec<u32>> = groups.concat();
        let alone = model.hidden_states(&TokenBatch::from_rows(&flat, &device), None, None);
        let off = values((grouped - alone).abs().max())[0];
        assert!(off < 1e-5, "{name}: {off}");

        let equal = vec![5, 17, 40];
        let queries: Vec<&[u32]> = vec![&equal, &equal, &[12, 7], &[33], &[33]];
        let draw = |batch_size: usize| {
            let options = GenerateOptions {
                max_new_tokens: 4,
                sampling: SamplingConfig::default(),
                repetition_penalty: 1.0,
                stop_ids: vec![3],
                truncate: None,
                batch_size,
            };
            generate(
                &model,
                &queries,
                &options,
                Seed::new(2),
                &device,
                &mut |_, _| {},
            )
        };
        let (one, three) = (draw(1), draw(3));
        for ((a, b), query) in one.iter().zip(&three).zip(&queries) {
            assert_eq!(a.ids, b.ids, "{name}");
            let row = [query, a.ids.as_slice()].concat();
            let expected = logprobs(&model, &[row], &device);
            let off = distance(&a.logprobs, &wide(&expected[query.len() - 1..]));
            assert!(off < TOLERANCE, "{name}: {off}");
        }
        assert!(SharedBaseModels::new(&[&plain, &model]).is_none(), "{name}");
    }
}

/// What cannot be read or merged is named.
pub(crate) fn misfits<B: ModelBackend>(device: B::Device) {
    let refused = |name: &str, key: &str, value: Value, expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = read(&prompts(name).join("adapter_config.json"));
        config[key] = value;
        std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        let file = "adapter_model.safetensors";
        std::fs::copy(prompts(name).join(file), dir.path().join(file)).unwrap();
        let (config, mut model) = base::<B>(&Case::at(prompts(name)), &device);
        let error = load_adapter(&mut model, &config, dir.path(), &device).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected), "{key}: {error}");
    };
    let count = "num_virtual_tokens";
    refused(
        "prompt",
        count,
        6.into(),
        "prompt_embeddings: expected shape [6, 16], found [5, 16]",
    );
    refused("prompt", count, 31.into(), "at most 30 can be");
    refused(
        "prompt_gpt2",
        count,
        15.into(),
        "15 of the model's 16 positions leave no room for a row; at most 14 can be",
    );
    refused("prompt", count, Value::Null, "no \"num_virtual_tokens\"");
    refused(
        "prompt",
        "num_transformer_submodules",
        2.into(),
        "num_transformer_submodules",
    );
    refused(
        "prompt",
        "prompt_tuning_init",
        "SOMETHING".into(),
        "prompt_tuning_init",
    );
    refused(
        "prompt",
        "peft_type",
        "PREFIX_TUNING".into(),
        "expected shape [5, 48], found [5, 16]",
    );
    refused(
        "prompt",
        "task_type",
        "SEQ_CLS".into(),
        "score.weight: missing",
    );
    refused("prefix", "new_switch", true.into(), "new_switch");
    let case = Case::at(prompts("prefix"));
    let (_, mut model) = adapted::<B>(&case, &device);
    let error = model.merge_adapters().unwrap_err().to_string();
    assert!(
        error.contains("5 virtual tokens stand before every row"),
        "{error}"
    );
    model.detach_adapters();
    let without = logprobs(&model, &case.rows(), &device);
    let off = distance(&without, &case.numbers("without_adapter"));
    assert!(off < TOLERANCE, "{off}");
}
