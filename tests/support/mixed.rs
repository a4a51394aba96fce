//! Products of both sides rounded to bfloat16, generic over the backend.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};

use tempering::ops::{
    self, FrozenWeight, LinearInput, LowRankPart, MatmulPrecision, ModelBackend, Precision,
    ReducedMatrix,
};
use tempering::rng::Seed;

fn numbers(len: usize, name: &str) -> Vec<f32> {
    let seed = Seed::new(22).fork(name);
    (0..len).map(|i| seed.normal(i as u64) as f32).collect()
}

/// A matrix on the host, in f64.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn new(name: &str, [rows, columns]: [usize; 2]) -> Self {
        let values = numbers(rows * columns, name);
        Self {
            rows,
            columns,
            values: values.into_iter().map(f64::from).collect(),
        }
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.columns + j]
    }

    fn of(rows: usize, columns: usize, at: impl Fn(usize, usize) -> f64) -> Self {
        let at = &at;
        let values = (0..rows).flat_map(|i| (0..columns).map(move |j| at(i, j)));
        Self {
            rows,
            columns,
            values: values.collect(),
        }
    }

    fn transposed(&self) -> Self {
        Self::of(self.columns, self.rows, |i, j| self.at(j, i))
    }

    fn times(&self, other: &Self) -> Self {
        Self::of(self.rows, other.columns, |i, j| {
            (0..self.columns)
                .map(|k| self.at(i, k) * other.at(k, j))
                .sum()
        })
    }

    fn plus(&self, other: &Self) -> Self {
        Self::of(self.rows, self.columns, |i, j| {
            self.at(i, j) + other.at(i, j)
        })
    }

    /// In bfloat16.
    fn half(&self) -> Self {
        Self::of(self.rows, self.columns, |i, j| {
            half::bf16::from_f32(self.at(i, j) as f32).to_f64()
        })
    }

    fn numbers(&self) -> Vec<f32> {
        self.values.iter().map(|&x| x as f32).collect()
    }

    fn on<B: ModelBackend>(&self, device: &B::Device) -> Tensor<B, 2> {
        let data = TensorData::new(self.numbers(), [self.rows, self.columns]);
        Tensor::from_data(data, device)
    }

    /// To `tolerance` of the largest number.
    fn assert_is<B: ModelBackend>(&self, got: Tensor<B, 2>, tolerance: f64, what: &str) {
        assert_eq!(got.dims(), [self.rows, self.columns], "{what}");
        let got = got.into_data().convert::<f32>().into_vec::<f32>().unwrap();
        let largest = self.values.iter().fold(0f64, |m, x| m.max(x.abs()));
        for (got, want) in got.iter().zip(&self.values) {
            let off = (f64::from(*got) - want).abs();
            assert!(off < tolerance * largest, "{what}: {got}, expected {want}");
        }
    }
}

/// One row and many, odd depths, widths that fill no panel.
const SIZES: [[usize; 3]; 7] = [
    [1, 64, 64],
    [5, 71, 33],
    [17, 48, 96],
    [70, 131, 90],
    [128, 24, 64],
    [130, 40, 72],
    [200, 328, 136],
];

/// Sums of f32 products; sides are rounded from the same numbers on both sides, so that none falls elsewhere.
const SUMS: f64 = 2e-6;

/// Trained and frozen weights, kept in f32 and in bfloat16, with and without adapters: outputs and all gradients.
pub(crate) fn mixed_products<B: ModelBackend>(device: B::Device) {
    type A<B> = Autodiff<B>;
    let _lock = tempering::guard::lock_gradients();
    for [rows, inputs, outputs] in SIZES {
        let x = Matrix::new("x", [rows, inputs]);
        let w = Matrix::new("w", [inputs, outputs]);
        let factors = Matrix::new("factors", [rows, outputs]);
        let y = x.half().times(&w.half());
        let dx = factors.half().times(&w.half().transposed());
        let dw = x.half().transposed().times(&factors.half());
        let weights = factors.on::<A<B>>(&device);
        let what = format!("{rows} x {inputs} x {outputs}");

        let input = x.on::<A<B>>(&device).require_grad();
        let weight = w.on::<A<B>>(&device).require_grad();
        let bf16 = MatmulPrecision::Bf16;
        let out = ops::full_linear(input.clone(), weight.clone(), bf16);
        y.assert_is(out.clone().inner(), SUMS, &what);
        let grads = (out * weights.clone()).sum().backward();
        dx.assert_is(input.grad(&grads).unwrap(), SUMS, &what);
        dw.assert_is(weight.grad(&grads).unwrap(), SUMS, &what);

        // A frozen weight, as it is and as a transposed view.
        let frozen = w.transposed().on::<A<B>>(&device).transpose();
        let out = ops::full_linear(input.clone(), frozen.clone(), bf16);
        y.assert_is(out.clone().inner(), SUMS, &what);
        let grads = (out * weights.clone()).sum().backward();
        dx.assert_is(input.grad(&grads).unwrap(), SUMS, &what);

        let kept = ReducedMatrix::new(&w.numbers(), inputs, outputs, Precision::Bf16);
        let kept = kept.unwrap().with_matmul(bf16);
        let out = ops::reduced_linear(input.clone(), &kept);
        y.assert_is(out.clone().inner(), SUMS, &what);
        let grads = (out * weights.clone()).sum().backward();
        dx.assert_is(input.grad(&grads).unwrap(), SUMS, &what);

        // Of 8 bits only the gradient is in bfloat16.
        let eight = ReducedMatrix::new(&w.numbers(), inputs, outputs, Precision::Int8).unwrap();
        let rounded = eight.values();
        let rounded = Matrix::of(inputs, outputs, |k, j| rounded[k * outputs + j].into());
        let plain = ops::reduced_linear(x.on::<B>(&device), &eight);
        let out = ops::reduced_linear(input.clone(), &eight.with_matmul(bf16));
        out.clone()
            .inner()
            .into_data()
            .assert_eq(&plain.into_data(), true);
        let grads = (out * weights.clone()).sum().backward();
        let through = factors.half().times(&rounded.half().transposed());
        through.assert_is(input.grad(&grads).unwrap(), SUMS, &what);

        // Adapters read and give f32.
        let part = LowRankPart {
            rank: 3,
            scale: 0.5,
            column: 2,
            width: 20,
        };
        let (a, b) = (
            Matrix::new("a", [inputs, 3]),
            Matrix::new("b", [3, part.width]),
        );
        let placed = Matrix::of(3, outputs, |q, j| {
            match (part.column..part.column + part.width).contains(&j) {
                true => 0.5 * b.at(q, j - part.column),
                false => 0.0,
            }
        });
        let low = x.times(&a).times(&placed);
        let through = factors.times(&placed.transposed());
        let da = x.transposed().times(&through);
        let db = x.times(&a).transposed().times(&factors);
        let db = Matrix::of(3, part.width, |q, j| 0.5 * db.at(q, j + part.column));
        for weight in [
            FrozenWeight::full(w.on::<A<B>>(&device), bf16),
            FrozenWeight::Reduced(kept),
        ] {
            let [low_a, low_b] = [&a, &b].map(|m| m.on::<A<B>>(&device).require_grad());
            let flat = low_b.clone().reshape([3 * part.width]);
            let out = ops::lora_linear_of(
                input.clone(),
                LinearInput::Plain,
                &weight,
                low_a.clone(),
                flat,
                &[part],
            );
            let what = format!("{what} with adapters");
            y.plus(&low).assert_is(out.clone().inner(), SUMS, &what);
            let grads = (out * weights.clone()).sum().backward();
            let want = dx.plus(&through.times(&a.transposed()));
            want.assert_is(input.grad(&grads).unwrap(), SUMS, &what);
            da.assert_is(low_a.grad(&grads).unwrap(), SUMS, &what);
            db.assert_is(low_b.grad(&grads).unwrap(), SUMS, &what);
        }
    }
}

/// Log-probabilities of rounded logits, and gradients of head and states through rounded gradients of the logits.
pub(crate) fn mixed_logprobs<B: ModelBackend>(device: B::Device) {
    let _lock = tempering::guard::lock_gradients();
    let [tokens, width, vocab] = [12, 33, 301];
    let hidden = Matrix::new("hidden", [tokens, width]);
    let head = Matrix::new("head", [vocab, width]);
    let targets: Vec<u32> = (0..tokens as u32).map(|i| i * 7 % 11).collect();
    let factors = Matrix::new("factors", [tokens, 1]);
    let logits = hidden.half().times(&head.half().transposed());
    let log_sums: Vec<f64> = (0..tokens)
        .map(|i| (0..vocab).map(|j| logits.at(i, j).exp()).sum::<f64>().ln())
        .collect();
    let want = Matrix::of(tokens, 1, |i, _| {
        logits.at(i, targets[i] as usize) - log_sums[i]
    });
    let dlogits = Matrix::of(tokens, vocab, |i, j| {
        let hit = f64::from(u8::from(targets[i] as usize == j));
        (hit - (logits.at(i, j) - log_sums[i]).exp()) * factors.at(i, 0)
    });
    let targets = Arc::new(targets);
    for trained in [true, false] {
        let [h, w] = [&hidden, &head].map(|m| m.on::<Autodiff<B>>(&device));
        let h = h.require_grad();
        let w = w.set_require_grad(trained);
        let bf16 = MatmulPrecision::Bf16;
        let (logprobs, _) = ops::token_logprob(h.clone(), w.clone(), &targets, 1.0, bf16);
        let logprobs = logprobs.reshape([tokens, 1]);
        want.assert_is(logprobs.clone().inner(), SUMS, "logprobs");
        let weights = factors.on::<Autodiff<B>>(&device);
        let grads = (logprobs * weights).sum().backward();
        if trained {
            // f32 and f64 may round a gradient of a logit to neighbours: a part in 256 of one of some hundred terms.
            let want = dlogits.half().transposed().times(&hidden.half());
            want.assert_is(w.grad(&grads).unwrap(), 1e-4, "head");
        }
        // Of a frozen head the gradient is formed without its factor, and backends round different parts of it.
        let tolerance = if trained { 1e-4 } else { 1.0 / 256.0 };
        let want = dlogits.half().times(&head.half());
        want.assert_is(h.grad(&grads).unwrap(), tolerance, "states");
    }
}
