//! The same small computations on any backend, forward and backward, to compare two backends.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};
use serde_json::json;

use crate::backend::Task;
use crate::error::Result;
use crate::generate::{GenerateOptions, SamplingConfig, generate};
use crate::model::weights::RandomSource;
use crate::model::{CausalLm, LanguageModel, ModelConfig, attach_lora};
use crate::ops::{self, AdamWStep, HeadLayout, LowRankPart, ModelBackend, unwrap, wrap};
use crate::optim::GradientSum;
use crate::params::{ParamKind, Parameters};
use crate::peft::LoraConfig;
use crate::rng::Seed;
use crate::tokens::{Segments, TokenBatch};

/// Largest difference allowed, as a part of the reference's largest value.
pub(super) const TOLERANCE: f64 = 1e-3;

/// What one computation gave.
#[derive(Debug, Clone)]
pub(super) struct Case {
    name: String,
    /// Each result (output or gradient) by name, on the host.
    results: Vec<(String, Vec<f32>)>,
}

/// How far two backends are apart in one computation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Difference {
    /// The computation.
    pub(super) case: String,
    /// Largest difference of all its results, each as a part of the reference's largest value.
    pub(super) largest: f64,
    /// The result that it belongs to.
    pub(super) worst: String,
}

impl Difference {
    pub(super) fn is_wrong(&self) -> bool {
        self.largest > TOLERANCE
    }
}

/// Compares the same computations of two backends.
pub(super) fn compare(found: &[Case], reference: &[Case]) -> Vec<Difference> {
    found
        .iter()
        .zip(reference)
        .map(|(found, reference)| {
            let mut difference = Difference {
                case: found.name.clone(),
                largest: 0.0,
                worst: String::new(),
            };
            for ((name, values), (_, expected)) in found.results.iter().zip(&reference.results) {
                let relative = relative_difference(values, expected);
                if relative > difference.largest || difference.worst.is_empty() {
                    (difference.largest, difference.worst) = (relative, name.clone());
                }
            }
            difference
        })
        .collect()
}

fn relative_difference(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let largest = expected
        .iter()
        .fold(0f64, |largest, &x| largest.max(f64::from(x).abs()))
        .max(1e-6);
    let differences = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs() / largest);
    // `f64::max` drops what is not a number.
    differences.fold(0.0, |worst: f64, x| {
        if x.is_nan() {
            f64::INFINITY
        } else {
            worst.max(x)
        }
    })
}

/// All computations on one backend, with the backend's name.
pub(super) struct Parity;

impl Task for Parity {
    type Output = (&'static str, Vec<Case>);

    fn run<B: ModelBackend>(self, device: B::Device, name: &'static str) -> Result<Self::Output> {
        let mut cases = Vec::new();
        for (tokens, hidden) in [(1, 48), (7, 33), (130, 576)] {
            cases.push(rms_norm::<B>(tokens, hidden, &device));
        }
        for (tokens, heads, head_dim) in [(1, 3, 16), (37, 4, 12)] {
            cases.push(rope::<B>(tokens, heads, head_dim, &device));
        }
        for (tokens, intermediate) in [(1, 64), (37, 101)] {
            cases.push(swiglu::<B>(tokens, intermediate, &device));
        }
        let grouped = HeadLayout {
            heads: 6,
            kv_heads: 2,
            head_dim: 16,
        };
        let odd = HeadLayout {
            heads: 3,
            kv_heads: 3,
            head_dim: 12,
        };
        let wide = HeadLayout {
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
        };
        for (layout, lens) in [
            (grouped, vec![1, 17, 5]),
            (odd, vec![33]),
            (wide, vec![65, 3, 130]),
        ] {
            cases.push(attention::<B>(layout, &lens, &device));
        }
        for (tokens, hidden, vocab) in [(1, 32, 97), (37, 48, 1000), (300, 64, 257)] {
            cases.push(token_logprob::<B>(tokens, hidden, vocab, &device));
        }
        for rank in [4, 8, 16, 24] {
            cases.push(lora_linear::<B>(37, 48, &[40, 24], rank, &device));
        }
        cases.push(adamw::<B>(1001, &device));
        for (tied, rank) in [
            (true, None),
            (false, None),
            (true, Some(8)),
            (false, Some(24)),
        ] {
            cases.push(model::<B>(tied, rank, &device)?);
        }
        Ok((name, cases))
    }
}

/// Normal numbers that depend on the label only.
fn numbers(label: &str, len: usize, std: f64) -> Vec<f32> {
    let seed = Seed::new(7).fork(label);
    (0..len as u64)
        .map(|i| (std * seed.normal(i)) as f32)
        .collect()
}

fn input<B: ModelBackend, const D: usize>(
    label: &str,
    shape: [usize; D],
    std: f64,
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(
        TensorData::new(numbers(label, shape.iter().product(), std), shape),
        device,
    )
}

fn leaf<B: ModelBackend, const D: usize>(
    label: &str,
    shape: [usize; D],
    std: f64,
    device: &B::Device,
) -> Tensor<Autodiff<B>, D> {
    Tensor::from_inner(input::<B, D>(label, shape, std, device)).require_grad()
}

fn host<B: ModelBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor
        .into_data()
        .convert::<f32>()
        .into_vec()
        .expect("converted to f32")
}

/// Backward from the sum of the output times fixed numbers.
fn gradients<B: ModelBackend, const D: usize>(
    output: &Tensor<Autodiff<B>, D>,
) -> <Autodiff<B> as burn::tensor::backend::AutodiffBackend>::Gradients {
    let device = output.device();
    let weights = input::<B, D>("output gradient", output.dims(), 1.0, &device);
    (output.clone() * Tensor::from_inner(weights))
        .sum()
        .backward()
}

macro_rules! case {
    ($name:expr, $output:expr, $($leaf:ident),+) => {{
        let output = $output;
        let grads = gradients(&output);
        let mut results = vec![("output".to_owned(), host(output.inner()))];
        $(results.push((
            concat!("gradient of ", stringify!($leaf)).to_owned(),
            $leaf.grad(&grads).map(host).unwrap_or_default(),
        ));)+
        Case { name: $name, results }
    }};
}

fn rms_norm<B: ModelBackend>(tokens: usize, hidden: usize, device: &B::Device) -> Case {
    let (x, weight) = (
        leaf::<B, 2>("x", [tokens, hidden], 1.0, device),
        leaf::<B, 1>("weight", [hidden], 1.0, device),
    );
    case!(
        format!("rms_norm {tokens} x {hidden}"),
        ops::rms_norm(x.clone(), weight.clone(), 1e-5),
        x,
        weight
    )
}

fn rope<B: ModelBackend>(tokens: usize, heads: usize, head_dim: usize, device: &B::Device) -> Case {
    let width = (heads + 1) * head_dim; // the last head is not rotated
    let x = leaf::<B, 2>("x", [tokens, width], 1.0, device);
    let angles = input::<B, 2>("angles", [tokens, head_dim / 2], 3.0, device);
    let (cos, sin) = (
        Tensor::from_inner(angles.clone().cos()),
        Tensor::from_inner(angles.sin()),
    );
    case!(
        format!("rope {tokens} x {heads} heads of {head_dim}"),
        ops::rope(x.clone(), cos, sin, heads),
        x
    )
}

fn swiglu<B: ModelBackend>(tokens: usize, intermediate: usize, device: &B::Device) -> Case {
    let gate_up = leaf::<B, 2>("gate_up", [tokens, 2 * intermediate], 2.0, device);
    case!(
        format!("swiglu {tokens} x {intermediate}"),
        ops::swiglu(gate_up.clone()),
        gate_up
    )
}

fn attention<B: ModelBackend>(layout: HeadLayout, lens: &[usize], device: &B::Device) -> Case {
    let segments = Segments::from_lens(lens.iter().copied());
    let qkv = leaf::<B, 2>(
        "qkv",
        [segments.num_tokens(), layout.joint_width()],
        1.0,
        device,
    );
    let HeadLayout {
        heads,
        kv_heads,
        head_dim,
    } = layout;
    let name = format!("attention rows {lens:?}, {heads}/{kv_heads} heads of {head_dim}");
    case!(name, ops::attention(qkv.clone(), layout, &segments), qkv)
}

fn token_logprob<B: ModelBackend>(
    tokens: usize,
    hidden: usize,
    vocab: usize,
    device: &B::Device,
) -> Case {
    let states = leaf::<B, 2>("states", [tokens, hidden], 1.0, device);
    let head = leaf::<B, 2>("head", [vocab, hidden], 0.3, device);
    let targets = Arc::new(
        (0..tokens)
            .map(|i| Seed::new(3).below(i as u64, vocab) as u32)
            .collect(),
    );
    let (logprobs, entropy) = ops::token_logprob(states.clone(), head.clone(), &targets, 0.7);
    let mut case = case!(
        format!("token_logprob {tokens} x {hidden}, vocabulary {vocab}"),
        logprobs,
        states,
        head
    );
    case.results.push(("entropy".into(), host(entropy.inner())));
    case
}

fn lora_linear<B: ModelBackend>(
    tokens: usize,
    inputs: usize,
    widths: &[usize],
    rank: usize,
    device: &B::Device,
) -> Case {
    let outputs = widths.iter().sum();
    let x = leaf::<B, 2>("x", [tokens, inputs], 1.0, device);
    let weight = Tensor::from_inner(input::<B, 2>("weight", [inputs, outputs], 0.2, device));
    let a = leaf::<B, 2>("a", [inputs, rank * widths.len()], 0.2, device);
    let b = leaf::<B, 1>("b", [rank * outputs], 0.2, device);
    let mut parts = Vec::new();
    let mut column = 0;
    for &width in widths {
        parts.push(LowRankPart {
            rank,
            scale: 2.0,
            column,
            width,
        });
        column += width;
    }
    let output = ops::lora_linear(x.clone(), weight, a.clone(), b.clone(), &parts);
    case!(
        format!("lora_linear {tokens} x {inputs} to {widths:?}, rank {rank}"),
        output,
        x,
        a,
        b
    )
}

fn adamw<B: ModelBackend>(len: usize, device: &B::Device) -> Case {
    let vector = |label, std| unwrap(input::<B, 1>(label, [len], std, device));
    let second = unwrap(input::<B, 1>("v", [len], 0.1, device).square());
    let step = AdamWStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.5,
        bias_correction1: 0.271,
        bias_correction2: 0.142_625,
    };
    let (param, m, v) = B::adamw(
        vector("param", 1.0),
        vector("grad", 1.0),
        vector("m", 0.1),
        second,
        step,
    );
    let results = [
        ("parameter", param),
        ("first moment", m),
        ("second moment", v),
    ];
    Case {
        name: format!("adamw {len}"),
        results: results
            .into_iter()
            .map(|(name, x)| (name.to_owned(), host(wrap::<B, 1>(x))))
            .collect(),
    }
}

/// A whole small llama: log-probabilities, gradients of what is trained, and cached greedy decoding.
fn model<B: ModelBackend>(tied: bool, rank: Option<usize>, device: &B::Device) -> Result<Case> {
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
        attach_lora(&mut plain, &config, &lora, Seed::new(5))?;
        plain.for_each_parameter(&mut |meta, mut slot| {
            if meta.kind == ParamKind::Adapter {
                // Zero at the start, B would hide what A does.
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
    let hidden = model.hidden_states(&batch, None, None).select(0, positions);
    let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 1.0);
    let mut results = vec![(
        "log-probabilities".to_owned(),
        host(logprobs.clone().inner()),
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
        stop_ids: Vec::new(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn case(values: &[f32]) -> Vec<Case> {
        vec![Case {
            name: "c".into(),
            results: vec![("output".into(), values.to_vec())],
        }]
    }

    #[test]
    fn differences_are_parts_of_the_largest_value() {
        let found = compare(&case(&[1.0, -4.0, 0.002]), &case(&[1.0, -4.0, 0.0]));
        assert_eq!(found.len(), 1);
        // 0.002 / 4
        assert!((found[0].largest - 0.0005).abs() < 1e-9, "{found:?}");
        assert!(!found[0].is_wrong());
        assert!(compare(&case(&[1.0, -4.1]), &case(&[1.0, -4.0]))[0].is_wrong());
    }

    #[test]
    fn what_is_no_number_or_missing_is_wrong() {
        assert!(compare(&case(&[f32::NAN, 1.0]), &case(&[1.0, 1.0]))[0].is_wrong());
        assert!(compare(&case(&[]), &case(&[1.0]))[0].is_wrong());
    }
}
