//! Parity of a whole small model in training and decoding.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};
use serde_json::json;

use super::Case;
use super::ops::numbers;
use crate::error::Result;
use crate::generate::{GenerateOptions, SamplingConfig, generate};
use crate::host::read;
use crate::model::weights::RandomSource;
use crate::model::{CausalLm, LanguageModel, ModelConfig, attach_adapters};
use crate::ops::ModelBackend;
use crate::optim::GradientSum;
use crate::params::{ParamKind, Parameters};
use crate::peft::LoraConfig;
use crate::rng::Seed;
use crate::tokens::TokenBatch;

/// A small llama: log-probabilities, gradients of trained parameters, and cached greedy decoding.
pub(super) fn model<B: ModelBackend>(
    tied: bool,
    rank: Option<usize>,
    device: &B::Device,
) -> Result<Case> {
    // Large initial weights: with transformers' 0.02 all probabilities would be nearly equal.
    let config = ModelConfig::from_value(json!({
        "model_type": "llama", "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 128,
        "initializer_range": 0.2, "tie_word_embeddings": tied
    }))?;
    let source = RandomSource::new(&config, Seed::new(11));
    let mut plain = LanguageModel::<B>::load(&config, &source, device)?;
    if let Some(rank) = rank {
        let lora = LoraConfig {
            rank,
            alpha: rank as f64,
            ..LoraConfig::default()
        };
        attach_adapters(&mut plain, &config, &lora, Seed::new(5))?;
        plain.for_each_parameter(&mut |meta, mut slot| {
            if meta.kind == ParamKind::Adapter {
                // With B at zero the values of A would have no effect.
                let shape = slot.shape();
                slot.assign(
                    numbers(meta.key(), shape.iter().product(), 0.1),
                    &shape,
                    device,
                );
            }
        });
    }
    let rows: Vec<Vec<u32>> = [9usize, 1, 33, 6]
        .iter()
        .enumerate()
        .map(|(row, &len)| {
            (0..len as u64)
                .map(|i| Seed::new(row as u64).below(i, 97) as u32)
                .collect()
        })
        .collect();
    let mut results = forward_and_backward(&plain, rank.is_some(), &rows, device);
    results.push(("cached decoding".into(), decode(&plain, &rows, device)));
    let head = if tied { "tied" } else { "untied" };
    let adapter = rank.map_or_else(
        || "full gradients".into(),
        |rank| format!("LoRA rank {rank}"),
    );
    Ok(Case {
        name: format!("llama, {head} head, {adapter}"),
        results,
    })
}

fn forward_and_backward<B: ModelBackend>(
    plain: &LanguageModel<B>,
    adapters_only: bool,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> Vec<(String, Vec<f32>)> {
    let mut model = LanguageModel::<Autodiff<B>>::from_inner(plain.clone());
    model.train_only(&|kind| !adapters_only || kind == ParamKind::Adapter);
    let batch = TokenBatch::<Autodiff<B>>::from_rows(rows, device);
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for (range, row) in batch.segments.iter().zip(rows) {
        positions.extend((range.start..range.end - 1).map(|i| i as i32));
        targets.extend(&row[1..]);
    }
    let count = positions.len();
    let positions =
        Tensor::<Autodiff<B>, 1, Int>::from_data(TensorData::new(positions, [count]), device);
    let hidden = model.states_at(&batch, Some(positions), None, None);
    let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 1.0);
    let mut results = vec![(
        "log-probabilities".to_owned(),
        read(logprobs.clone().inner()),
    )];
    let mut grads = logprobs.sum().backward();
    let mut sum = GradientSum::<B>::default();
    sum.add::<Autodiff<B>>(&mut model, &mut grads);
    model.for_each_parameter(&mut |meta, _| {
        if let Some(values) = sum.values(meta.key()) {
            results.push((format!("gradient of {}", meta.key()), values));
        }
    });
    results
}

/// Tokens and log-probabilities of greedy responses, two rows at a time.
fn decode<B: ModelBackend>(
    model: &LanguageModel<B>,
    rows: &[Vec<u32>],
    device: &B::Device,
) -> Vec<f32> {
    let options = GenerateOptions {
        max_new_tokens: 5,
        sampling: SamplingConfig {
            temperature: 0.0,
            ..SamplingConfig::default()
        },
        repetition_penalty: 1.0,
        stop_ids: Vec::new(),
        truncate: None,
        batch_size: 2,
    };
    let prompts: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let responses = generate(
        model,
        &prompts,
        &options,
        Seed::new(1),
        device,
        &mut |_, _| {},
    );
    responses
        .iter()
        .flat_map(|r| {
            r.ids
                .iter()
                .map(|&id| id as f32)
                .chain(r.logprobs.iter().copied())
        })
        .collect()
}
