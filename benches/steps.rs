//! Whole steps of training and sampling: four layers of SmolLM2-135M with random weights, eight rows (pairs) of 110 tokens whose last ten are the response.
//! `cargo bench --bench steps`.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use burn::backend::{Autodiff, Flex, NdArray};
use burn::module::AutodiffModule;
use criterion::{Criterion, criterion_group};
use tempering::generate::{GenerateOptions, SamplingConfig, generate};
use tempering::host::indices;
use tempering::loss::{Comparisons, bradley_terry, cross_entropy};
use tempering::model::weights::RandomSource;
use tempering::model::{CausalLm, LanguageModel, ModelConfig, ScalarModel, Tape, attach_adapters};
use tempering::ops::{MatmulPrecision, ModelBackend, Numerics, Precision};
use tempering::optim::{GradientSum, OptimConfig, Optimiser};
use tempering::params::{ParamKind, Parameters};
use tempering::peft::LoraConfig;
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VOCAB: usize = 49_152;
const HIDDEN: usize = 576;
const ROWS: usize = 8;
const LEN: usize = 110;
const RESPONSE: usize = 10;
const NEW_TOKENS: usize = 16;

const F32: Numerics = Numerics {
    storage: Precision::F32,
    matmul: MatmulPrecision::F32,
};

fn config() -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 1536,
        "num_hidden_layers": 4, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": true,
    });
    ModelConfig::from_value(json).expect("a valid configuration")
}

fn model<B: ModelBackend>(numerics: Numerics, lora: bool) -> LanguageModel<B> {
    let (config, device) = (config(), B::Device::default());
    let source = RandomSource::new(&config, Seed::new(1));
    let mut model = LanguageModel::load_as(&config, &source, numerics, &device).expect("weights");
    if lora {
        let adapters = LoraConfig {
            rank: 16,
            target_modules: vec!["all-linear".into()],
            ..LoraConfig::default()
        };
        attach_adapters(&mut model, &config, &adapters, Seed::new(2)).expect("linear layers");
    }
    model
}

fn rows(seed: u64) -> Vec<Vec<u32>> {
    let row = |row: usize| {
        let seed = Seed::new(seed).fork_index(row as u64);
        (0..LEN)
            .map(|i| seed.below(i as u64, VOCAB) as u32)
            .collect()
    };
    (0..ROWS).map(row).collect()
}

/// A step of supervised fine-tuning, all of it: forward, backward, norm and AdamW.
fn sft<B: ModelBackend>(numerics: Numerics, lora: bool, checkpointing: bool) -> impl FnMut() {
    let device = B::Device::default();
    let mut model = LanguageModel::<Autodiff<B>>::from_inner(model(numerics, lora));
    model.train_only(&|kind| !lora || kind == ParamKind::Adapter);
    let mut optim = Optimiser::<B>::new(OptimConfig::default());
    let rows = rows(3);
    move || {
        let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let batch = TokenBatch::<Autodiff<B>>::from_rows(&slices, &device);
        let (mut at, mut targets) = (Vec::new(), Vec::new());
        for (row, range) in rows.iter().zip(batch.segments.iter()) {
            at.extend(range.end - RESPONSE - 1..range.end - 1);
            targets.extend_from_slice(&row[LEN - RESPONSE..]);
        }
        let mut sum = GradientSum::<B>::default();
        let at = Some(indices(&at, &device));
        let (states, tape) = Tape::states_at(&model, batch, at, None, checkpointing);
        let (logprobs, _) = model.logprobs(states, &Arc::new(targets), 1.0);
        tape.backward(&cross_entropy(logprobs), &mut model, &mut sum);
        black_box(optim.update(&mut model, sum, (ROWS * RESPONSE) as f64, 1e-5));
    }
}

/// A step of a reward model with adapters: pairs of responses to one prompt, which passes once.
fn reward<B: ModelBackend>() -> impl FnMut() {
    let device = B::Device::default();
    let backbone = model::<B>(F32, true).into_backbone();
    let head = ScalarModel::with_random_head(backbone, HIDDEN, Seed::new(4), &device);
    let mut model = ScalarModel::<Autodiff<B>>::from_inner(head);
    model.train_only(&|kind| matches!(kind, ParamKind::Adapter | ParamKind::Score));
    let mut optim = Optimiser::<B>::new(OptimConfig::default());
    let (chosen, others) = (rows(3), rows(5));
    let rejected: Vec<Vec<u32>> = (chosen.iter().zip(&others))
        .map(|(row, other)| [&row[..LEN - RESPONSE], &other[LEN - RESPONSE..]].concat())
        .collect();
    move || {
        let pairs = chosen.iter().zip(&rejected);
        let groups: Vec<Vec<&[u32]>> = pairs
            .map(|(chosen, rejected)| vec![chosen.as_slice(), rejected.as_slice()])
            .collect();
        let (batch, spans) = TokenBatch::<Autodiff<B>>::from_groups(&groups, &device);
        let last: Vec<usize> = (spans.iter())
            .map(|span| span.token(span.len() - 1))
            .collect();
        let mut comparisons = Comparisons::new();
        (0..ROWS).for_each(|i| comparisons.push_prompt([(2 * i, 2 * i + 1, 0.0)]));
        let mut sum = GradientSum::<B>::default();
        let last = Some(indices(&last, &device));
        let (states, tape) = Tape::states_at(&model, batch, last, None, false);
        let loss = bradley_terry(model.scores_of(states), &comparisons);
        tape.backward(&loss, &mut model, &mut sum);
        black_box(optim.update(&mut model, sum, ROWS as f64, 1e-5));
    }
}

/// Responses to eight prompts, prefill included.
fn sampling<B: ModelBackend>(numerics: Numerics) -> impl FnMut() {
    let device = B::Device::default();
    let model = model::<B>(numerics, false);
    let options = GenerateOptions {
        max_new_tokens: NEW_TOKENS,
        sampling: SamplingConfig::default(),
        repetition_penalty: 1.0,
        stop_ids: Vec::new(),
        truncate: None,
        batch_size: ROWS,
    };
    let prompts = rows(3);
    move || {
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let seed = Seed::new(6);
        black_box(generate(
            &model,
            &prompts,
            &options,
            seed,
            &device,
            &mut |_, _| {},
        ));
    }
}

/// Times a step after a first one, in which memory and moments come to be.
fn time(c: &mut Criterion, group: &str, name: &str, mut step: impl FnMut()) {
    step();
    c.benchmark_group(group)
        .bench_function(name, |b| b.iter(&mut step));
}

fn training(c: &mut Criterion) {
    let mixed = Numerics {
        matmul: MatmulPrecision::Bf16,
        ..F32
    };
    let again = "flex, gradient_checkpointing";
    time(c, "sft_lora", "flex", sft::<Flex>(F32, true, false));
    time(c, "sft_lora", again, sft::<Flex>(F32, true, true));
    time(
        c,
        "sft_lora",
        "flex, products in bf16",
        sft::<Flex>(mixed, true, false),
    );
    time(c, "sft_lora", "ndarray", sft::<NdArray>(F32, true, false));
    time(c, "sft_full", "flex", sft::<Flex>(F32, false, false));
    time(c, "sft_full", "ndarray", sft::<NdArray>(F32, false, false));
    time(c, "reward_model", "flex", reward::<Flex>());
    time(c, "reward_model", "ndarray", reward::<NdArray>());
}

fn generation(c: &mut Criterion) {
    let stored = |storage| Numerics { storage, ..F32 };
    let (bf16, int8) = (stored(Precision::Bf16), stored(Precision::Int8));
    time(c, "generate", "flex", sampling::<Flex>(F32));
    time(c, "generate", "flex, base in bf16", sampling::<Flex>(bf16));
    time(
        c,
        "generate",
        "flex, base in 8 bits",
        sampling::<Flex>(int8),
    );
    time(c, "generate", "ndarray", sampling::<NdArray>(F32));
}

criterion_group!(
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(5));
    targets = training, generation
);

fn main() {
    // As the shipped program does: else the memory of results is cleared again in every call.
    tempering::start::keep_freed_memory();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
