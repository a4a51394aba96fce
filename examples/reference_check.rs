//! Compares a model with numbers of transformers on a few prompts: log-probabilities, loss, logits, the greedy
//! continuation and the norm of the whole gradient. Exits 1 if one is off.
//!
//! `cargo run --release --example reference_check MODEL REF.json`, where `REF.json` holds `cases`, each with
//! `input_ids`, `token_logprobs`, `loss`, `top10_ids_per_position`, `top10_logits_per_position`, `greedy_new_ids` and
//! `grad_total_l2` (of the mean loss over all parameters).

#![allow(clippy::print_stdout, reason = "the results go to stdout")]

use std::error::Error;
use std::sync::Arc;

use burn::backend::{Autodiff, Flex};
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};
use serde::Deserialize;

use tempering::generate::{GenerateOptions, SamplingConfig, generate};
use tempering::model::{CausalLm, Fetch, Finder, LanguageModel, ModelConfig, weights};
use tempering::optim::GradientSum;
use tempering::params::Parameters;
use tempering::rng::Seed;
use tempering::tokens::TokenBatch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    input_ids: Vec<u32>,
    token_logprobs: Vec<f64>,
    loss: f64,
    top10_ids_per_position: Vec<Vec<usize>>,
    top10_logits_per_position: Vec<Vec<f64>>,
    greedy_new_ids: Vec<u32>,
    grad_total_l2: f64,
}

/// Largest absolute difference.
fn largest(pairs: impl Iterator<Item = (f32, f64)>) -> f64 {
    pairs.fold(0.0, |most, (a, b)| (f64::from(a) - b).abs().max(most))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(name), Some(path)) = (args.next(), args.next()) else {
        return Err("usage: reference_check MODEL REF.json".into());
    };
    let reference: Reference = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let device = Default::default();
    let files = Finder::new(Fetch::All).files(&name)?;
    let config = ModelConfig::load(&files.weights)?;
    let source = weights::open(&files.weights)?;
    let plain = LanguageModel::<Flex>::load(&config, source.as_ref(), &device)?;
    let mut model = LanguageModel::<Autodiff<Flex>>::from_inner(plain.clone());
    model.train_only(&|_| true);
    let mut failed = false;
    for case in &reference.cases {
        let mut check = |what: &str, off: f64, allowed: f64| {
            let good = off <= allowed;
            failed |= !good;
            let verdict = if good { "ok" } else { "OFF" };
            println!(
                "{:<12} {what:<28} off by {off:.2e}, allowed {allowed:.0e}: {verdict}",
                case.name
            );
        };
        let len = case.input_ids.len();
        let batch = TokenBatch::from_rows(std::slice::from_ref(&case.input_ids), &device);
        let hidden = plain.hidden_states(&batch, None, None);
        let logits: Vec<f32> = plain
            .logits(hidden)
            .into_data()
            .into_vec()
            .map_err(|e| format!("{e:?}"))?;
        let vocab = logits.len() / len;
        let top = (case
            .top10_ids_per_position
            .iter()
            .zip(&case.top10_logits_per_position))
        .enumerate()
        .flat_map(|(at, (ids, values))| {
            ids.iter()
                .zip(values)
                .map(move |(&id, &value)| (at * vocab + id, value))
        });
        check(
            "top-10 logits",
            largest(top.map(|(at, value)| (logits[at], value))),
            2e-3,
        );

        let hidden = model.hidden_states(
            &TokenBatch::from_rows(std::slice::from_ref(&case.input_ids), &device),
            None,
            None,
        );
        let positions: Vec<i32> = (0..len as i32 - 1).collect();
        let positions = Tensor::<Autodiff<Flex>, 1, Int>::from_data(
            TensorData::new(positions, [len - 1]),
            &device,
        );
        let targets = Arc::new(case.input_ids[1..].to_vec());
        let (logprobs, _) = model.logprobs(hidden.select(0, positions), &targets, 1.0);
        let values: Vec<f32> = logprobs
            .clone()
            .into_data()
            .into_vec()
            .map_err(|e| format!("{e:?}"))?;
        check(
            "log-probabilities",
            largest(
                values
                    .iter()
                    .copied()
                    .zip(case.token_logprobs.iter().copied()),
            ),
            1e-3,
        );
        let loss = -values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
        check("loss", (loss - case.loss).abs(), 1e-3);

        let mut grads = logprobs.mean().neg().backward();
        let mut sum = GradientSum::<Flex>::default();
        sum.add::<Autodiff<Flex>>(&mut model, &mut grads);
        let mut squares = 0.0;
        model.for_each_parameter(&mut |meta, _| {
            let values = sum.values(meta.key()).unwrap_or_default();
            squares += values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        });
        check(
            "gradient norm (relative)",
            (squares.sqrt() / case.grad_total_l2 - 1.0).abs(),
            1e-3,
        );

        let options = GenerateOptions {
            max_new_tokens: case.greedy_new_ids.len(),
            sampling: SamplingConfig {
                temperature: 0.0,
                ..SamplingConfig::default()
            },
            repetition_penalty: 1.0,
            stop_ids: Vec::new(),
            truncate: None,
            batch_size: 1,
        };
        let prompt: [&[u32]; 1] = [&case.input_ids];
        let responses = generate(
            &plain,
            &prompt,
            &options,
            Seed::new(0),
            &device,
            &mut |_, _| {},
        );
        let wrong = (responses[0].ids.iter().zip(&case.greedy_new_ids))
            .filter(|(a, b)| a != b)
            .count();
        check("greedy tokens that differ", wrong as f64, 0.0);
    }
    if failed {
        Err("the model differs from its reference".into())
    } else {
        Ok(())
    }
}
