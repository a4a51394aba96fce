//! Parity of each fused operation, forward and backward.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};

use super::Case;
use crate::host::{indices, read};
use crate::ops::{
    self, AdamWParam, AdamWStep, Attend, CacheWrite, Gate, Gelu, HeadLayout, LowRankPart,
    MatmulPrecision, ModelBackend, Precision, ReducedMatrix, unwrap, wrap,
};
use crate::rng::Seed;
use crate::tokens::Segments;

/// Normal random numbers determined by the label.
pub(super) fn numbers(label: &str, len: usize, std: f64) -> Vec<f32> {
    let seed = Seed::new(7).fork(label);
    (0..len as u64)
        .map(|i| (std * seed.normal(i)) as f32)
        .collect()
}

pub(super) fn input<B: ModelBackend, const D: usize>(
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

pub(super) fn leaf<B: ModelBackend, const D: usize>(
    label: &str,
    shape: [usize; D],
    std: f64,
    device: &B::Device,
) -> Tensor<Autodiff<B>, D> {
    Tensor::from_inner(input::<B, D>(label, shape, std, device)).require_grad()
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
        let mut results = vec![("output".to_owned(), read(output.inner()))];
        $(results.push((
            concat!("gradient of ", stringify!($leaf)).to_owned(),
            $leaf.grad(&grads).map(read).unwrap_or_default(),
        ));)+
        Case { name: $name, results }
    }};
}

pub(super) fn rms_norm<B: ModelBackend>(tokens: usize, hidden: usize, device: &B::Device) -> Case {
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

pub(super) fn layer_norm<B: ModelBackend>(
    tokens: usize,
    hidden: usize,
    device: &B::Device,
) -> Case {
    let x = leaf::<B, 2>("x", [tokens, hidden], 1.0, device);
    let (weight, bias) = (
        leaf::<B, 1>("weight", [hidden], 1.0, device),
        leaf::<B, 1>("bias", [hidden], 1.0, device),
    );
    case!(
        format!("layer_norm {tokens} x {hidden}"),
        ops::layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5),
        x,
        weight,
        bias
    )
}

pub(super) fn gelu<B: ModelBackend>(
    tokens: usize,
    width: usize,
    form: Gelu,
    device: &B::Device,
) -> Case {
    let x = leaf::<B, 2>("x", [tokens, width], 2.0, device);
    case!(
        format!("gelu ({form:?}) {tokens} x {width}"),
        ops::gelu(x.clone(), form),
        x
    )
}

pub(super) fn rope<B: ModelBackend>(
    tokens: usize,
    heads: usize,
    head_dim: usize,
    device: &B::Device,
) -> Case {
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

pub(super) fn gated_unit<B: ModelBackend>(
    tokens: usize,
    intermediate: usize,
    gate: Gate,
    device: &B::Device,
) -> Case {
    let gate_up = leaf::<B, 2>("gate_up", [tokens, 2 * intermediate], 2.0, device);
    case!(
        format!("gated unit {gate:?} {tokens} x {intermediate}"),
        ops::gated_unit(gate_up.clone(), gate),
        gate_up
    )
}

pub(super) fn attention<B: ModelBackend>(
    layout: HeadLayout,
    rows: &[(usize, Option<usize>)],
    device: &B::Device,
) -> Case {
    let segments = Segments::continuing(rows);
    let lens: Vec<usize> = rows.iter().map(|row| row.0).collect();
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
    let attend = Attend::causal(layout, &segments);
    case!(name, ops::attention(qkv.clone(), &attend), qkv)
}

pub(super) fn token_logprob<B: ModelBackend>(
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
    let (logprobs, entropy) = ops::token_logprob(
        states.clone(),
        head.clone(),
        &targets,
        0.7,
        MatmulPrecision::F32,
    );
    let mut case = case!(
        format!("token_logprob {tokens} x {hidden}, vocabulary {vocab}"),
        logprobs,
        states,
        head
    );
    case.results.push(("entropy".into(), read(entropy.inner())));
    case
}

pub(super) fn lora_linear<B: ModelBackend>(
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

/// A product with a reduced weight.
pub(super) fn reduced_linear<B: ModelBackend>(
    [tokens, inputs, outputs]: [usize; 3],
    precision: Precision,
    device: &B::Device,
) -> Option<Case> {
    let weight = numbers("weight", inputs * outputs, 0.2);
    let weight = ReducedMatrix::new(&weight, inputs, outputs, precision)?;
    let x = leaf::<B, 2>("x", [tokens, inputs], 1.0, device);
    let mut case = case!(
        format!(
            "{} product {tokens} x {inputs} to {outputs}",
            precision.name()
        ),
        ops::reduced_linear(x.clone(), &weight),
        x
    );
    let ids = indices(&[0, outputs - 1], device);
    let rows = ops::reduced_columns::<B>(&weight, ids);
    case.results.push(("rows of the table".into(), read(rows)));
    Some(case)
}

/// Products in bfloat16, with a trained weight in f32 and with a frozen one stored in bfloat16.
pub(super) fn bf16_products<B: ModelBackend>(
    [tokens, inputs, outputs]: [usize; 3],
    device: &B::Device,
) -> Vec<Case> {
    let x = leaf::<B, 2>("x", [tokens, inputs], 1.0, device);
    let weight = leaf::<B, 2>("weight", [inputs, outputs], 0.2, device);
    let kept = numbers("weight", inputs * outputs, 0.2);
    let kept = ReducedMatrix::new(&kept, inputs, outputs, Precision::Bf16);
    let shape = format!("{tokens} x {inputs} to {outputs}, in bf16");
    let mut cases = vec![case!(
        format!("product {shape}"),
        ops::full_linear(x.clone(), weight.clone(), MatmulPrecision::Bf16),
        x,
        weight
    )];
    if let Some(kept) = kept.map(|kept| kept.with_matmul(MatmulPrecision::Bf16)) {
        cases.push(case!(
            format!("product of a bf16 weight {shape}"),
            ops::reduced_linear(x.clone(), &kept),
            x
        ));
    }
    cases
}

/// Three rows of a cache, one query each.
pub(super) fn decoding<B: ModelBackend>(layout: HeadLayout, device: &B::Device) -> Case {
    let (slots, lens, capacity) = ([2, 0, 1], [1, 33, 17], 40);
    let packed = |label| {
        let tokens = lens.iter().sum();
        unwrap(input::<B, 2>(
            label,
            [tokens, layout.kv_width()],
            1.0,
            device,
        ))
    };
    let mut token = 0;
    let writes: Vec<CacheWrite> = (slots.iter().zip(lens))
        .map(|(&slot, len)| {
            token += len;
            CacheWrite {
                tokens: token - len..token,
                slot,
                start: 0,
            }
        })
        .collect();
    let filled = |label| {
        let empty = Tensor::<B, 3>::zeros([3, capacity, layout.kv_width()], device);
        B::cache_write(unwrap(empty), packed(label), &writes)
    };
    let (keys, values) = (filled("keys"), filled("values"));
    let q = unwrap(input::<B, 2>("q", [3, layout.q_width()], 1.0, device));
    let attend = Attend::causal(layout, &Segments::from_lens([1; 3]));
    let held = lens.map(|len| len - 1);
    let output = B::decode_attention(q, keys.clone(), values, &slots, &held, &attend);
    let HeadLayout {
        heads,
        kv_heads,
        head_dim,
    } = layout;
    Case {
        name: format!("decoding {lens:?}, {heads}/{kv_heads} heads of {head_dim}"),
        results: vec![
            ("output".into(), read(wrap::<B, 2>(output))),
            ("keys".into(), read(wrap::<B, 3>(keys))),
        ],
    }
}

/// A reward model's head, as [`crate::model::ScalarModel`] computes it.
pub(super) fn scalar_head<B: ModelBackend>(
    tokens: usize,
    hidden: usize,
    device: &B::Device,
) -> Case {
    let states = leaf::<B, 2>("states", [tokens, hidden], 1.0, device);
    let weight = leaf::<B, 1>("score", [hidden], 0.1, device);
    case!(
        format!("scalar head {tokens} x {hidden}"),
        crate::model::scalar_head(states.clone(), weight.clone()),
        states,
        weight
    )
}

pub(super) fn adamw<B: ModelBackend>(len: usize, device: &B::Device) -> Case {
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
    let squares = B::sum_of_squares(vec![vector("grad", 1.0), vector("m", 0.1)]);
    let param = AdamWParam {
        value: vector("param", 1.0),
        grad: vector("grad", 1.0),
        moments: [vector("m", 0.1), second],
        decays: true,
    };
    let updated = B::adamw(vec![param], step).into_iter().next();
    let (param, [m, v]) = updated.expect("a result for each parameter");
    let results = [
        ("parameter", param),
        ("first moment", m),
        ("second moment", v),
    ];
    let mut results: Vec<(String, Vec<f32>)> = results
        .into_iter()
        .map(|(name, x)| (name.to_owned(), read(wrap::<B, 1>(x))))
        .collect();
    results.push(("sum of squares".into(), vec![squares as f32]));
    Case {
        name: format!("adamw {len}"),
        results,
    }
}
