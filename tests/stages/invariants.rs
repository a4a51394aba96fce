//! What must hold whatever the numbers are: properties over random rows, splits, seeds and settings, on tiny random models.
//!
//! The random cases are fixed, so that every run of the tests is the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseResult};

use tempering::generate::{
    GenerateOptions, Response, SamplingConfig, Session, generate, generate_with, sample_penalised,
    sample_token,
};
use tempering::loss::cross_entropy;
use tempering::model::{
    CausalLm, LanguageModel, ModelConfig, ScalarModel, attach_adapters, weights,
};
use tempering::ops::ModelBackend;
use tempering::optim::{GradientSum, OptimConfig, Optimiser};
use tempering::params::Parameters;
use tempering::peft::LoraConfig;
use tempering::rl::{self, KlEstimator, Variance};
use tempering::rng::Seed;
use tempering::tokens::{Segments, TokenBatch};
use tempering::train::config::PpoConfig;
use tempering::train::ppo;
use tempering::train::rollout::{
    Episodes, FrozenValue, Models, Networks, Rollout, ValueFunction, minibatch_orders, update,
};
use tempering::train::row_logprobs;

/// Fixed cases, without files of past failures.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(240_317_031),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// The tokens of `tests/reference/ppo/ref`, a llama of two layers.
const VOCAB: u32 = 32;
const EOS: u32 = 2;
const RESPONSE_LENGTH: usize = 6;
/// One model of each family.
const FAMILIES: [&str; 10] = [
    "ppo/ref",
    "llama_untied",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "opt",
    "bloom",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(name)
}

fn config(name: &str) -> ModelConfig {
    ModelConfig::load(folder(name)).unwrap()
}

fn language_model<B: ModelBackend>(name: &str, device: &B::Device) -> LanguageModel<B> {
    let source = weights::open(folder(name)).unwrap();
    LanguageModel::load(&config(name), source.as_ref(), device).unwrap()
}

fn value_model<B: ModelBackend>(device: &B::Device) -> ScalarModel<B> {
    let source = weights::open(folder("ppo/reward")).unwrap();
    ScalarModel::load(&config("ppo/reward"), source.as_ref(), device).unwrap()
}

fn indices<B: ModelBackend>(values: Vec<usize>, device: &B::Device) -> Tensor<B, 1, Int> {
    let values: Vec<i32> = values.into_iter().map(|i| i as i32).collect();
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) -> TestCaseResult {
    prop_assert_eq!(got.len(), expected.len(), "{}", what);
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        // Written so that not-a-number fails.
        prop_assert!(
            (got - expected).abs() <= tolerance,
            "{what}[{i}]: {got} instead of {expected}"
        );
    }
    Ok(())
}

// ---- strategies ----

fn row(max_len: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..VOCAB, 1..=max_len)
}

fn rows(max_rows: usize, max_len: usize) -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(row(max_len), 1..=max_rows)
}

/// Prompts, some of them several times: equal neighbours share their prefill.
fn prompts() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec((row(8), 1..4usize), 1..=4).prop_map(|prompts| {
        let repeat = |(prompt, count)| std::iter::repeat_n(prompt, count);
        prompts.into_iter().flat_map(repeat).collect()
    })
}

/// A response as generation leaves it: ends at its first EOS, or is full.
fn response() -> impl Strategy<Value = Response> {
    let ids = prop::collection::vec(prop_oneof![1 => Just(EOS), 4 => 3..VOCAB], RESPONSE_LENGTH);
    (ids, prop::collection::vec(-6.0f32..-0.5, RESPONSE_LENGTH)).prop_map(
        |(mut ids, mut logprobs)| {
            if let Some(end) = ids.iter().position(|&id| id == EOS) {
                ids.truncate(end + 1);
            }
            logprobs.truncate(ids.len());
            Response {
                stopped: ids.last() == Some(&EOS),
                ids,
                logprobs,
            }
        },
    )
}

fn episodes(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Episodes> {
    prop::collection::vec((row(7), response(), -2.0f32..2.0), count).prop_map(|items| Episodes {
        queries: items.iter().map(|item| item.0.clone()).collect(),
        responses: items.iter().map(|item| item.1.clone()).collect(),
        values: None,
        columns: Vec::new(),
        scores: items.iter().map(|item| item.2).collect(),
    })
}

fn ppo_config(micro_batch_tokens: usize, num_mini_batches: usize) -> PpoConfig {
    serde_json::from_value(serde_json::json!({
        "name": "ppo", "init": "Base", "data": {"source": {"Posts": {"rows": 1, "seed": 1}}}, "reward": "Gold",
        "total_episodes": 8, "batch_size": 8, "num_mini_batches": num_mini_batches, "num_ppo_epochs": 2,
        "micro_batch_tokens": micro_batch_tokens, "response_length": RESPONSE_LENGTH, "kl_estimator": "k3",
        "missing_eos": {"Replace": -1.0},
    }))
    .unwrap()
}

fn evaluate<B: ModelBackend>(
    episodes: &Episodes,
    config: &PpoConfig,
    device: &B::Device,
) -> Rollout {
    let reference = language_model::<B>("ppo/ref", device);
    let value = FrozenValue::Network(value_model::<B>(device));
    let models = Models {
        policy: &reference,
        reference: Some(&reference),
        value: Some(&value),
        recompute_logprobs: false,
        frozen_base: false,
    };
    ppo::rollout(episodes, models, config, 0.1, device)
}

// ---- a row does not depend on its company ----

/// Each row's log-probabilities in a batch, and alone.
fn logprobs_alone<B: ModelBackend>(name: &str, rows: &[Vec<u32>]) -> TestCaseResult {
    let device = B::Device::default();
    let model = language_model::<B>(name, &device);
    let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let logprobs = |rows: &[&[u32]], tokens| {
        row_logprobs(&model, rows, &vec![1; rows.len()], 0.7, tokens, &device)
    };
    let together = logprobs(&slices, 4096);
    for (i, row) in slices.iter().enumerate() {
        close(name, &together[i], &logprobs(&[row], 4096)[0], 2e-5)?;
    }
    let reversed: Vec<&[u32]> = slices.iter().rev().copied().collect();
    for (a, b) in logprobs(&reversed, 12).iter().rev().zip(&together) {
        close(name, a, b, 2e-5)?;
    }
    Ok(())
}

/// Arrays of a rollout at one row, before whitening.
type OfRow = fn(&Rollout, usize) -> Vec<f32>;

fn arrays() -> [(&'static str, OfRow); 6] {
    fn tokens(rollout: &Rollout, row: usize, values: &[f32]) -> Vec<f32> {
        values[rollout.samples.layout.responses().range(row)].to_vec()
    }
    fn places(rollout: &Rollout, row: usize, values: &[f32]) -> Vec<f32> {
        values[rollout.samples.layout.values().range(row)].to_vec()
    }
    [
        ("ref_logprobs", |r, row| {
            tokens(r, row, r.samples.ref_logprobs.as_ref().unwrap())
        }),
        ("kl", |r, row| tokens(r, row, &r.samples.kl(r.kl.estimator))),
        ("advantages", |r, row| tokens(r, row, &r.raw_advantages)),
        ("values", |r, row| {
            places(r, row, &r.targets.as_ref().unwrap().values)
        }),
        ("rewards", |r, row| {
            places(r, row, &r.targets.as_ref().unwrap().rewards)
        }),
        ("returns", |r, row| {
            places(r, row, &r.targets.as_ref().unwrap().returns)
        }),
    ]
}

/// Everything that a rollout computes for a row, in a batch, in the reverse order, and alone. Only whitening looks at the others.
fn rollout_alone<B: ModelBackend>(episodes: &Episodes) -> TestCaseResult {
    let device = B::Device::default();
    let config = ppo_config(4096, 1);
    let all = evaluate::<B>(episodes, &config, &device);
    let pick = |rows: Vec<usize>| Episodes {
        queries: rows.iter().map(|&i| episodes.queries[i].clone()).collect(),
        responses: (rows.iter())
            .map(|&i| episodes.responses[i].clone())
            .collect(),
        values: None,
        columns: Vec::new(),
        scores: rows.iter().map(|&i| episodes.scores[i]).collect(),
    };
    let count = episodes.queries.len();
    let reversed = evaluate::<B>(&pick((0..count).rev().collect()), &config, &device);
    for i in 0..count {
        let alone = evaluate::<B>(&pick(vec![i]), &config, &device);
        for (other, at) in [(&reversed, count - 1 - i), (&alone, 0)] {
            for (what, of) in arrays() {
                close(what, &of(other, at), &of(&all, i), 1e-4)?;
            }
        }
    }
    Ok(())
}

// ---- the split into micro-batches changes nothing ----

/// Summed loss and gradients of eight rows in passes of `size` rows.
fn sft_gradients<B: ModelBackend>(
    name: &str,
    rows: &[Vec<u32>],
    size: usize,
) -> (f64, GradientSum<B>) {
    let _lock = tempering::guard::lock_gradients();
    let device = B::Device::default();
    let mut model = LanguageModel::<Autodiff<B>>::from_inner(language_model(name, &device));
    model.train_only(&|_| true);
    let (mut total, mut sum) = (0.0, GradientSum::<B>::default());
    for part in rows.chunks(size) {
        let batch = TokenBatch::<Autodiff<B>>::from_rows(part, &device);
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (range, row) in batch.segments.iter().zip(part) {
            positions.extend(range.start..range.end - 1);
            targets.extend(&row[1..]);
        }
        let hidden = model
            .hidden_states(&batch, None, None)
            .select(0, indices(positions, &device));
        let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 1.0);
        let loss = cross_entropy(logprobs);
        let value: Vec<f32> = loss.clone().inner().into_data().into_vec().unwrap();
        total += f64::from(value[0]);
        sum.add::<Autodiff<B>>(&mut model, &mut loss.backward());
    }
    (total, sum)
}

fn sft_split<B: ModelBackend>(name: &str, rows: &[Vec<u32>]) -> TestCaseResult {
    let (whole_loss, whole) = sft_gradients::<B>(name, rows, 8);
    for size in [1, 2, 4] {
        let (loss, parts) = sft_gradients::<B>(name, rows, size);
        prop_assert!(
            (loss - whole_loss).abs() < 1e-5 * whole_loss,
            "{loss} {whole_loss}"
        );
        prop_assert!((parts.norm() - whole.norm()).abs() < 1e-5 * whole.norm());
        for key in whole.names() {
            let (a, b) = (parts.values(key).unwrap(), whole.values(key).unwrap());
            let norm = b.iter().map(|x| x * x).sum::<f32>().sqrt();
            close(key, &a, &b, 1e-5 * norm.max(1.0))?;
        }
    }
    Ok(())
}

/// Weights after an update, and the largest difference that splitting its minibatches makes.
fn ppo_split<B: ModelBackend>(
    episodes: &Episodes,
    num_mini_batches: usize,
    seed: u64,
) -> TestCaseResult {
    let device = B::Device::default();
    let run = |micro_batch_tokens: usize| {
        let config = ppo_config(micro_batch_tokens, num_mini_batches);
        let mut policy =
            LanguageModel::<Autodiff<B>>::from_inner(language_model("ppo/policy", &device));
        let mut value = ScalarModel::<Autodiff<B>>::from_inner(value_model(&device));
        policy.train_only(&|_| true);
        value.train_only(&|_| true);
        let optim = OptimConfig {
            eps: 1e-5,
            ..OptimConfig::default()
        };
        let mut networks = Networks {
            policy,
            policy_optim: Optimiser::<B>::new(optim.clone()),
            value: Some(ValueFunction::Network {
                model: value,
                optim: Optimiser::<B>::new(optim),
            }),
        };
        let rollout = evaluate::<B>(episodes, &config, &device);
        let orders = minibatch_orders(Seed::new(seed), rollout.samples.rows.len(), 2);
        // At the default rate of both networks, 1e-4.
        let settings = config.update_settings(0, 1, None);
        let report = update(&mut networks, &rollout, &orders, &settings, &device).unwrap();
        let norms: Vec<f32> = (report.minibatches.iter())
            .flat_map(|m| {
                [
                    m.policy_grad_norm,
                    m.value_grad_norm.unwrap(),
                    m.policy_loss,
                    m.value_loss,
                ]
            })
            .map(|x| x as f32)
            .collect();
        (
            norms,
            values(&mut networks.policy),
            values(networks.value.as_mut().unwrap().parameters()),
        )
    };
    let (numbers, policy, value) = run(4096);
    // One row in a pass (the longest has 13 tokens), and two or three.
    for micro_batch_tokens in [13, 26] {
        let (a, b, c) = run(micro_batch_tokens);
        for (a, b) in a.iter().zip(&numbers) {
            prop_assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b}");
        }
        close("policy", &b, &policy, 5e-6)?;
        close("value", &c, &value, 5e-6)?;
    }
    Ok(())
}

/// All trained numbers of a model.
fn values<B: ModelBackend>(model: &mut dyn Parameters<Autodiff<B>>) -> Vec<f32> {
    let mut all = Vec::new();
    model.for_each_parameter(&mut |_, slot| {
        if slot.is_trained() {
            all.extend(slot.values());
        }
    });
    all
}

// ---- an adapter starts as its base ----

/// To the last bit, whatever its rank, scale, targets and seed.
fn adapter_starts_as_base<B: ModelBackend>(
    name: &str,
    rows: &[Vec<u32>],
    lora: &LoraConfig,
    seed: u64,
) -> TestCaseResult {
    let device = B::Device::default();
    let base = language_model::<B>(name, &device);
    let mut adapted = base.clone();
    attach_adapters(&mut adapted, &config(name), lora, Seed::new(seed)).unwrap();
    let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let logprobs = |model: &LanguageModel<B>| {
        row_logprobs(model, &slices, &vec![1; rows.len()], 0.7, 4096, &device).concat()
    };
    prop_assert_eq!(logprobs(&base), logprobs(&adapted));
    let trained = LanguageModel::<Autodiff<B>>::from_inner(adapted.clone());
    let on_autodiff = row_logprobs(&trained, &slices, &vec![1; rows.len()], 0.7, 4096, &device);
    prop_assert_eq!(logprobs(&base), on_autodiff.concat());
    Ok(())
}

// ---- the cache changes nothing ----

/// Generation without a cache: a whole forward pass for every token.
fn generate_uncached<B: ModelBackend>(
    model: &LanguageModel<B>,
    prompt: &[u32],
    index: u64,
    options: &GenerateOptions,
    seed: Seed,
    device: &B::Device,
) -> Response {
    let mut response = Response::default();
    while response.ids.len() < options.max_new_tokens && !response.stopped {
        let row = [prompt, &response.ids].concat();
        let last = row.len() - 1;
        let batch = TokenBatch::from_rows(&[row], device);
        let hidden = model.hidden_states(&batch, None, None).narrow(0, last, 1);
        let logits: Vec<f32> = model.logits(hidden).into_data().into_vec().unwrap();
        let u = seed.fork_index(index).uniform(response.ids.len() as u64);
        let seen = prompt.iter().chain(&response.ids).copied();
        let penalty = options.repetition_penalty as f32;
        let sampled = sample_penalised(&logits, seen, penalty, &options.sampling, u);
        response.ids.push(sampled.id);
        response.logprobs.push(sampled.logprob);
        response.stopped = options.stop_ids.contains(&sampled.id);
    }
    response
}

fn cached_equals_uncached<B: ModelBackend>(
    name: &str,
    prompts: &[Vec<u32>],
    sampling: SamplingConfig,
    batch_size: usize,
    seed: u64,
) -> TestCaseResult {
    let device = B::Device::default();
    let model = language_model::<B>(name, &device);
    let options = GenerateOptions {
        max_new_tokens: 8,
        repetition_penalty: if sampling.temperature > 0.0 { 1.2 } else { 1.0 },
        sampling,
        // Some rows stop early, so that waiting prompts take their places.
        stop_ids: (0..VOCAB).step_by(4).collect(),
        truncate: None,
        batch_size,
    };
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let seed = Seed::new(seed);
    let cached = generate(&model, &slices, &options, seed, &device, &mut |_, _| {});
    for (i, prompt) in slices.iter().enumerate() {
        let expected = generate_uncached(&model, prompt, i as u64, &options, seed, &device);
        prop_assert_eq!(&cached[i].ids, &expected.ids, "{} row {}", name, i);
        prop_assert_eq!(cached[i].stopped, expected.stopped);
        close(name, &cached[i].logprobs, &expected.logprobs, 2e-5)?;
    }
    // Reading the states on the way changes nothing, and they are those of a pass over the whole row.
    let read_out = |states: Tensor<B, 2>| -> Tensor<B, 1> { states.narrow(1, 0, 1).squeeze_dim(1) };
    let (responses, readings) = generate_with(
        &model,
        &read_out,
        &slices,
        &options,
        seed,
        &device,
        &mut |_, _| {},
    );
    for (i, (prompt, read)) in slices.iter().zip(readings).enumerate() {
        let response = &responses[i];
        prop_assert_eq!(&response.ids, &cached[i].ids, "{} row {}", name, i);
        prop_assert_eq!(response.stopped, cached[i].stopped);
        close(name, &response.logprobs, &cached[i].logprobs, 2e-5)?;
        let row = [prompt, response.ids.as_slice()].concat();
        let batch = TokenBatch::from_rows(&[row], &device);
        let states = model.hidden_states(&batch, None, None);
        // After a response that ended before its time there is one more.
        let count = (response.ids.len() + 1).min(options.max_new_tokens);
        let expected = read_out(states.narrow(0, prompt.len() - 1, count));
        let expected: Vec<f32> = expected.into_data().into_vec().unwrap();
        close(name, &read, &expected, 2e-5)?;
    }
    // A session reads only what differs from the turn before, and says the same.
    let mut session = Session::default();
    let mut conversation = Vec::new();
    for prompt in prompts {
        for turn in [prompt.clone(), [conversation.as_slice(), prompt].concat()] {
            let expected = generate_uncached(&model, &turn, 0, &options, seed, &device);
            let mut seen = Vec::new();
            let mut watch = |ids: &[u32]| {
                seen = ids.to_vec();
                false
            };
            let response = session.respond(&model, &turn, &options, seed, &device, &mut watch);
            prop_assert_eq!(&response.ids, &expected.ids, "{} in a session", name);
            prop_assert_eq!(response.stopped, expected.stopped);
            prop_assert_eq!(&seen, &response.ids);
            close(name, &response.logprobs, &expected.logprobs, 2e-5)?;
            conversation = [turn, response.ids].concat();
            conversation.truncate(20);
        }
    }
    Ok(())
}

macro_rules! on_backend {
    ($module:ident, $feature:literal, $backend:ty) => {
        #[cfg(feature = $feature)]
        mod $module {
            use super::*;
            type B = $backend;

            proptest! {
                #![proptest_config(cases(16))]

                #[test]
                fn logprobs_do_not_depend_on_the_company(family in 0..FAMILIES.len(), rows in rows(6, 12)) {
                    logprobs_alone::<B>(FAMILIES[family], &rows)?;
                }

                #[test]
                fn a_rows_rollout_does_not_depend_on_the_company(episodes in episodes(1..=5)) {
                    rollout_alone::<B>(&episodes)?;
                }

                #[test]
                fn sft_gradients_do_not_depend_on_the_split(
                    family in 0..FAMILIES.len(),
                    rows in prop::collection::vec(prop::collection::vec(0..VOCAB, 2..=9), 8),
                ) {
                    sft_split::<B>(FAMILIES[family], &rows)?;
                }

                #[test]
                fn the_ppo_update_does_not_depend_on_the_split(
                    episodes in episodes(8..=8), log2 in 0..3u32, seed in 0..100u64,
                ) {
                    ppo_split::<B>(&episodes, 1 << log2, seed)?;
                }

                #[test]
                fn an_adapter_starts_as_its_base(
                    family in 0..FAMILIES.len(), rows in rows(4, 12), rank in 1..9usize, alpha in 0.5..64.0f64,
                    use_rslora in any::<bool>(), target in 0..3usize, seed in 0..100u64,
                ) {
                    let name = FAMILIES[family];
                    let attention = match name {
                        "gpt2" => "c_attn",
                        "gpt_neox" | "bloom" => "query_key_value",
                        _ => "v_proj",
                    };
                    let target_modules = [vec!["all-linear".to_owned()], vec![attention.to_owned()], vec![".*(mlp|fc).*".to_owned()]];
                    let lora = LoraConfig {
                        rank, alpha, use_rslora, target_modules: target_modules[target].clone(), ..LoraConfig::default()
                    };
                    adapter_starts_as_base::<B>(name, &rows, &lora, seed)?;
                }

                #[test]
                fn greedy_generation_with_a_cache_equals_none(
                    family in 0..FAMILIES.len(), prompts in prompts(), batch_size in 1..7usize,
                ) {
                    let greedy = SamplingConfig { temperature: 0.0, ..SamplingConfig::default() };
                    cached_equals_uncached::<B>(FAMILIES[family], &prompts, greedy, batch_size, 1)?;
                }

                #[test]
                fn sampled_generation_with_a_cache_equals_none(
                    family in 0..FAMILIES.len(), prompts in prompts(), batch_size in 1..7usize,
                    temperature in 0.3..1.5f64, top_k in 0..9usize, top_p in 0.5..1.2f64, min_p in -0.1..0.3f64, seed in 0..100u64,
                ) {
                    let sampling = SamplingConfig { temperature, top_k, top_p: top_p.min(1.0), min_p: min_p.max(0.0) };
                    cached_equals_uncached::<B>(FAMILIES[family], &prompts, sampling, batch_size, seed)?;
                }
            }
        }
    };
}

on_backend!(flex, "flex", burn::backend::Flex);
on_backend!(ndarray, "ndarray", burn::backend::NdArray);

// ---- pure functions on the host ----

/// Rewards and values in rows of the given lengths.
fn rewards_and_values() -> impl Strategy<Value = (Vec<usize>, Vec<f32>, Vec<f32>)> {
    prop::collection::vec(0..12usize, 1..6).prop_flat_map(|lens| {
        let total: usize = lens.iter().sum();
        let numbers = || prop::collection::vec(-3.0f32..3.0, total);
        (Just(lens), numbers(), numbers())
    })
}

/// The tokens that top-k and top-p leave, by the definition: rank by probability (ties by id), keep k, then the shortest
/// prefix whose share of what was kept reaches p. `None` where the share comes so close to p that rounding decides.
fn kept_tokens(logits: &[f32], config: &SamplingConfig) -> Option<Vec<u32>> {
    let weight = |id: usize| (f64::from(logits[id]) / config.temperature).exp();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)).then(a.cmp(&b)));
    if config.top_k > 0 {
        order.truncate(config.top_k);
    }
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut share = 0.0;
    let mut kept = Vec::new();
    for id in order {
        kept.push(id as u32);
        share += weight(id) / total;
        if config.top_p < 1.0 {
            if (share - config.top_p).abs() < 1e-5 {
                return None;
            }
            if share > config.top_p {
                break;
            }
        }
    }
    let best = weight(kept[0] as usize);
    let relative = |id: &u32| weight(*id as usize) / best;
    if kept
        .iter()
        .any(|id| (relative(id) - config.min_p).abs() < 1e-5)
    {
        return None;
    }
    kept.retain(|id| relative(id) > config.min_p);
    kept.sort_unstable();
    Some(kept)
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn gae_is_the_sum_of_discounted_errors(
        (lens, rewards, values) in rewards_and_values(), gamma in 0.0..=1.0f64, lam in 0.0..=1.0f64,
    ) {
        let segments = Segments::from_lens(lens);
        let got = rl::gae(&rewards, &values, &segments, gamma, lam);
        for row in segments.iter() {
            for t in row.clone() {
                // A_t = sum over k of (gamma lam)^k delta_{t + k}.
                let delta = |s: usize| {
                    let next = if s + 1 < row.end { f64::from(values[s + 1]) } else { 0.0 };
                    f64::from(rewards[s]) + gamma * next - f64::from(values[s])
                };
                let direct: f64 = (t..row.end).map(|s| (gamma * lam).powi((s - t) as i32) * delta(s)).sum();
                prop_assert!((f64::from(got.advantages[t]) - direct).abs() < 1e-5);
                prop_assert!((f64::from(got.returns[t]) - direct - f64::from(values[t])).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn whitening_gives_its_moments(
        values in prop::collection::vec(-10.0f32..10.0, 2..200), shift_mean in any::<bool>(), unbiased in any::<bool>(),
    ) {
        let n = values.len() as f64;
        let moments = |x: &[f32]| {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            (mean, x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (n - f64::from(u8::from(unbiased))))
        };
        let (mean, var) = moments(&values);
        prop_assume!(var > 1e-2);
        let variance = if unbiased { Variance::Unbiased } else { Variance::Biased };
        let got = moments(&rl::whiten(&values, shift_mean, variance));
        prop_assert!((got.0 - if shift_mean { 0.0 } else { mean }).abs() < 1e-5, "mean {}", got.0);
        prop_assert!((got.1 - 1.0).abs() < 1e-4, "variance {}", got.1);
    }

    #[test]
    fn kl_estimators_agree_in_sign_and_size(pairs in prop::collection::vec((-30.0f32..0.0, -30.0f32..0.0), 1..40)) {
        let (logprobs, refs): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
        let kl = |estimator| rl::kl_per_token(estimator, &logprobs, &refs);
        let (k1, k2, k3) = (kl(KlEstimator::K1), kl(KlEstimator::K2), kl(KlEstimator::K3));
        for i in 0..logprobs.len() {
            prop_assert_eq!(k1[i], (f64::from(logprobs[i]) - f64::from(refs[i])) as f32);
            prop_assert!(k2[i] >= 0.0 && k3[i] >= 0.0 && k3[i].is_finite());
            // exp(-x) - 1 + x is above x - 1, but for the rounding to f32.
            prop_assert!(k3[i] >= k1[i].min(20.0) - 1.0 - 1e-5);
        }
    }

    #[test]
    fn sampling_keeps_the_right_tokens(
        logits in prop::collection::vec(-4.0f32..4.0, 2..24), temperature in 0.2..2.0f64, top_k in 0..12usize,
        top_p in 0.05..1.3f64, min_p in -0.2..0.9f64,
    ) {
        let config = SamplingConfig { temperature, top_k, top_p: top_p.min(1.0), min_p: min_p.max(0.0) };
        let kept = kept_tokens(&logits, &config);
        prop_assume!(kept.is_some());
        // A grid fine enough for tokens of a probability above 1/4000.
        let mut sampled: Vec<u32> = (0..4000).map(|i| sample_token(&logits, &config, f64::from(i) / 4000.0).id).collect();
        sampled.sort_unstable();
        sampled.dedup();
        let kept = kept.unwrap();
        for id in &sampled {
            prop_assert!(kept.contains(id), "{id} is not in {kept:?}");
        }
        let weight = |id: u32| (f64::from(logits[id as usize]) / temperature).exp();
        let total: f64 = kept.iter().map(|&id| weight(id)).sum();
        for id in kept {
            prop_assert!(sampled.contains(&id) || weight(id) / total < 5e-4, "{id} is never sampled");
        }
    }
}
