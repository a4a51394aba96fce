//! Forward and backward of every fused operation against plain burn ops, on Flex, at the shapes of SmolLM2-135M: eight rows
//! of 100 tokens, 120 trained positions. `cargo bench --bench ops`.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use burn::backend::{Autodiff, Flex};
use burn::tensor::{Bool, Distribution, Int, Tensor, TensorData, activation};
use criterion::{Criterion, criterion_group};
use tempering::ops::{
    self, AdamWParam, AdamWStep, Attend, Gate, Gelu, HeadLayout, LowRankPart, MatmulPrecision,
    ModelBackend, Precision, ReducedMatrix,
};
use tempering::tokens::Segments;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type A = Autodiff<Flex>;

const ROWS: usize = 8;
const LEN: usize = 100;
const TOKENS: usize = ROWS * LEN;
const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const VOCAB: usize = 49_152;
const POSITIONS: usize = 120;
const LAYOUT: HeadLayout = HeadLayout {
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
};
const RANK: usize = 16;

fn random<const D: usize>(dims: [usize; D]) -> Tensor<A, D> {
    Tensor::random(dims, Distribution::Normal(0.0, 0.05), &Default::default())
}

fn trained<const D: usize>(dims: [usize; D]) -> Tensor<A, D> {
    random(dims).require_grad()
}

/// Times `sum(f())` with its backward pass, fused and plain; both first have to agree.
fn compare<const D: usize>(
    criterion: &mut Criterion,
    name: &str,
    fused: impl Fn() -> Tensor<A, D>,
    plain: impl Fn() -> Tensor<A, D>,
) {
    let host = |x: Tensor<A, D>| x.into_data().to_vec::<f32>().expect("f32");
    for (a, b) in host(fused()).iter().zip(host(plain())) {
        assert!(
            (a - b).abs() <= 1e-3 * b.abs().max(1e-2),
            "{name}: {a} and {b}"
        );
    }
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    group.bench_function("fused", |b| b.iter(|| black_box(fused().sum().backward())));
    group.bench_function("plain", |b| b.iter(|| black_box(plain().sum().backward())));
    group.finish();
}

fn rms_norm(c: &mut Criterion) {
    let (x, weight) = (trained([TOKENS, HIDDEN]), random([HIDDEN]));
    compare(
        c,
        "rms_norm",
        || ops::rms_norm(x.clone(), weight.clone(), 1e-5),
        || {
            let rms = x.clone().square().mean_dim(1).add_scalar(1e-5).sqrt();
            x.clone() / rms * weight.clone().unsqueeze::<2>()
        },
    );
}

fn layer_norm(c: &mut Criterion) {
    let (x, weight, bias) = (
        trained([TOKENS, HIDDEN]),
        random([HIDDEN]),
        random([HIDDEN]),
    );
    compare(
        c,
        "layer_norm",
        || ops::layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5),
        || {
            let centred = x.clone() - x.clone().mean_dim(1);
            let variance = centred.clone().square().mean_dim(1);
            centred / variance.add_scalar(1e-5).sqrt() * weight.clone().unsqueeze::<2>()
                + bias.clone().unsqueeze::<2>()
        },
    );
}

fn gelu(c: &mut Criterion) {
    let x = trained([TOKENS, INTERMEDIATE]);
    compare(
        c,
        "gelu",
        || ops::gelu(x.clone(), Gelu::Erf),
        || {
            let erf = x.clone().div_scalar(std::f64::consts::SQRT_2).erf();
            x.clone().mul_scalar(0.5) * erf.add_scalar(1.0)
        },
    );
}

/// Products with a frozen weight full and reduced, forward only: a step of decoding sixteen rows, and a prefill.
fn precisions(c: &mut Criterion) {
    let weight = random([HIDDEN, 2 * INTERMEDIATE]).inner();
    let values = weight.to_data().to_vec::<f32>().expect("f32");
    for rows in [16, TOKENS] {
        let x = random([rows, HIDDEN]).inner();
        let mut group = c.benchmark_group(format!("{rows} rows"));
        group
            .sample_size(20)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2));
        for precision in [MatmulPrecision::F32, MatmulPrecision::Bf16] {
            let name = format!("f32, products in {}", precision.name());
            group.bench_function(name, |b| {
                b.iter(|| black_box(ops::full_linear(x.clone(), weight.clone(), precision)))
            });
        }
        for precision in [Precision::Bf16, Precision::Int8, Precision::Nf4] {
            let reduced = ReducedMatrix::new(&values, HIDDEN, 2 * INTERMEDIATE, precision);
            let reduced = reduced.expect("a reduced precision");
            group.bench_function(precision.name(), |b| {
                b.iter(|| black_box(ops::reduced_linear(x.clone(), &reduced)))
            });
            if precision == Precision::Bf16 {
                let reduced = reduced.with_matmul(MatmulPrecision::Bf16);
                group.bench_function("bf16, products in bf16", |b| {
                    b.iter(|| black_box(ops::reduced_linear(x.clone(), &reduced)))
                });
            }
        }
        group.finish();
    }
}

fn rope(c: &mut Criterion) {
    let (heads, half) = (LAYOUT.heads + LAYOUT.kv_heads, LAYOUT.head_dim / 2);
    let (x, angles) = (
        trained([TOKENS, LAYOUT.joint_width()]),
        random([TOKENS, half]),
    );
    let (cos, sin) = (angles.clone().cos(), angles.sin());
    compare(
        c,
        "rope",
        || ops::rope(x.clone(), cos.clone(), sin.clone(), heads),
        || {
            let twice =
                |x: &Tensor<A, 2>| Tensor::cat(vec![x.clone(), x.clone()], 1).unsqueeze_dim::<3>(1);
            let rotated = heads * 2 * half;
            let heads = x
                .clone()
                .narrow(1, 0, rotated)
                .reshape([TOKENS, heads, 2 * half]);
            let (first, second) = (
                heads.clone().narrow(2, 0, half),
                heads.clone().narrow(2, half, half),
            );
            let heads =
                heads * twice(&cos) + Tensor::cat(vec![second.neg(), first], 2) * twice(&sin);
            let rest = x.clone().narrow(1, rotated, LAYOUT.joint_width() - rotated);
            Tensor::cat(vec![heads.reshape([TOKENS, rotated]), rest], 1)
        },
    );
}

fn swiglu(c: &mut Criterion) {
    let x = trained([TOKENS, 2 * INTERMEDIATE]);
    compare(
        c,
        "swiglu",
        || ops::gated_unit(x.clone(), Gate::Silu),
        || {
            activation::silu(x.clone().narrow(1, 0, INTERMEDIATE))
                * x.clone().narrow(1, INTERMEDIATE, INTERMEDIATE)
        },
    );
}

fn attention(c: &mut Criterion) {
    let x = trained([TOKENS, LAYOUT.joint_width()]);
    let attend = Attend::causal(LAYOUT, &Segments::from_lens([LEN; ROWS]));
    let hidden =
        Tensor::<A, 2, Bool>::tril_mask([LEN, LEN], 0, &Default::default()).unsqueeze::<4>();
    compare(
        c,
        "attention",
        || ops::attention(x.clone(), &attend),
        || {
            // Rows of one length: the best case of a padded batch.
            let HeadLayout {
                heads,
                kv_heads,
                head_dim,
            } = LAYOUT;
            let part = |column: usize, n: usize| {
                x.clone()
                    .narrow(1, column, n * head_dim)
                    .reshape([ROWS, LEN, n, head_dim])
                    .swap_dims(1, 2)
            };
            let repeat = |x: Tensor<A, 4>| {
                x.unsqueeze_dim::<5>(2)
                    .repeat_dim(2, heads / kv_heads)
                    .reshape([ROWS, heads, LEN, head_dim])
            };
            let (q_width, kv_width) = (LAYOUT.q_width(), LAYOUT.kv_width());
            let (q, k, v) = (
                part(0, heads),
                repeat(part(q_width, kv_heads)),
                repeat(part(q_width + kv_width, kv_heads)),
            );
            let scores = q.matmul(k.swap_dims(2, 3)) * LAYOUT.scale();
            let dims = scores.dims();
            let p = activation::softmax(scores.mask_fill(hidden.clone().expand(dims), -1e9), 3);
            p.matmul(v).swap_dims(1, 2).reshape([TOKENS, q_width])
        },
    );
}

fn token_logprob(c: &mut Criterion) {
    let (hidden, head) = (trained([POSITIONS, HIDDEN]), random([VOCAB, HIDDEN]));
    let ids: Vec<i32> = (0..POSITIONS as i32).map(|i| i * 401).collect();
    let targets = Arc::new(ids.iter().map(|&i| i as u32).collect::<Vec<_>>());
    let ids =
        Tensor::<A, 2, Int>::from_data(TensorData::new(ids, [POSITIONS, 1]), &Default::default());
    compare(
        c,
        "token_logprob",
        || {
            ops::token_logprob(
                hidden.clone(),
                head.clone(),
                &targets,
                1.0,
                MatmulPrecision::F32,
            )
            .0
        },
        || {
            let logits = hidden.clone().matmul(head.clone().transpose());
            activation::log_softmax(logits, 1)
                .gather(1, ids.clone())
                .squeeze_dim::<1>(1)
        },
    );
}

fn lora_linear(c: &mut Criterion) {
    // Gate and up of one layer, an adapter on each.
    let outputs = 2 * INTERMEDIATE;
    let part = |column| LowRankPart {
        rank: RANK,
        scale: 2.0,
        column,
        width: INTERMEDIATE,
    };
    let parts = [part(0), part(INTERMEDIATE)];
    let (x, weight) = (trained([TOKENS, HIDDEN]), random([HIDDEN, outputs]));
    let (a, b) = (
        trained([HIDDEN, 2 * RANK]),
        trained([2 * RANK * INTERMEDIATE]),
    );
    compare(
        c,
        "lora_linear",
        || ops::lora_linear(x.clone(), weight.clone(), a.clone(), b.clone(), &parts),
        || {
            let deltas = (0..2).map(|i| {
                let b = b
                    .clone()
                    .narrow(0, i * RANK * INTERMEDIATE, RANK * INTERMEDIATE)
                    .reshape([RANK, INTERMEDIATE]);
                x.clone()
                    .matmul(a.clone().narrow(1, i * RANK, RANK))
                    .matmul(b)
                    * 2.0
            });
            x.clone().matmul(weight.clone()) + Tensor::cat(deltas.collect(), 1)
        },
    );
}

/// The adapters of SmolLM2-135M on all linear layers, rank 16: 420 matrices.
fn adamw(c: &mut Criterion) {
    let device = Default::default();
    let random = |len| Tensor::<Flex, 1>::random([len], Distribution::Normal(0.0, 1.0), &device);
    let layer = [
        576, 576, 576, 192, 576, 192, 576, 576, 576, 1536, 576, 1536, 1536, 576,
    ];
    let lens: Vec<usize> = (0..30)
        .flat_map(|_| layer.map(|width| 16 * width))
        .collect();
    let mut group = c.benchmark_group("adamw");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    let step = AdamWStep {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        grad_scale: 1.0,
        bias_correction1: 0.1,
        bias_correction2: 0.001,
    };
    let primitive = |x: Tensor<Flex, 1>| x.into_primitive().tensor();
    let start: Vec<[Tensor<Flex, 1>; 4]> = (lens.iter())
        .map(|&len| [random(len), random(len), random(len), random(len).abs()])
        .collect();
    let mut state: Vec<_> = (start.iter().cloned())
        .map(|[w, _, m, v]| (primitive(w), [primitive(m), primitive(v)]))
        .collect();
    group.bench_function("fused", |b| {
        b.iter(|| {
            let params = state.drain(..).zip(&start);
            let params = params.map(|((value, moments), [_, grad, ..])| AdamWParam {
                value,
                grad: primitive(grad.clone()),
                moments,
                decays: true,
            });
            let params = params.collect();
            state = Flex::adamw(params, step);
        });
    });
    let mut state: Vec<_> = (start.iter().cloned())
        .map(|[w, _, m, v]| (w, m, v))
        .collect();
    group.bench_function("plain", |b| {
        b.iter(|| {
            let params = state.drain(..).zip(&start);
            state = params
                .map(|((w, m, v), [_, g, ..])| {
                    let m = m * 0.9 + g.clone() * 0.1;
                    let v = v * 0.999 + g.clone().square() * 0.001;
                    let update = (m.clone() / 0.1) / ((v.clone() / 0.001).sqrt() + 1e-8);
                    (w * (1.0 - 1e-6) - update * 1e-4, m, v)
                })
                .collect();
        });
    });
    group.finish();
    let mut group = c.benchmark_group("global_norm");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(2));
    let grads: Vec<_> = start.iter().map(|[_, grad, ..]| grad.clone()).collect();
    group.bench_function("fused", |b| {
        b.iter(|| Flex::sum_of_squares(grads.iter().cloned().map(primitive).collect()));
    });
    group.bench_function("plain", |b| {
        b.iter(|| -> f64 {
            let sums = grads.iter().map(|g| g.clone().square().sum().into_scalar());
            sums.map(f64::from).sum()
        });
    });
    group.finish();
}

criterion_group!(
    benches,
    rms_norm,
    layer_norm,
    rope,
    swiglu,
    gelu,
    attention,
    token_logprob,
    lora_linear,
    precisions,
    adamw
);

fn main() {
    // As the shipped program does: else the memory of results is cleared again in every call.
    tempering::start::keep_freed_memory();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
