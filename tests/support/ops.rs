//! Checks of every fused operation, generic over the backend: against plain burn ops under autodiff, central differences,
//! views as inputs, and (in [`parity`]) another backend at sizes that reach the parallel paths.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Int, Tensor, TensorData, TensorPrimitive, activation};

use super::parity::{Comparison, backend_name};
use tempering::model::KvCache;
use tempering::ops::{
    self, AdamWParam, AdamWStep, Attend, CacheWrite, FrozenWeight, Gate, Gelu, Head, HeadLayout,
    LinearInput, LowRankPart, Mask, MatmulPrecision, ModelBackend, Precision, ReducedMatrix,
    ReplacedRows,
};
use tempering::rng::Seed;
use tempering::tokens::Segments;

/// A matrix on the host.
#[derive(Clone)]
struct Matrix {
    values: Vec<f32>,
    dims: [usize; 2],
}

impl Matrix {
    /// Normal numbers of the given spread.
    fn normal(label: &str, dims: [usize; 2], spread: f64) -> Self {
        let seed = Seed::new(11).fork(label);
        let values = (0..(dims[0] * dims[1]) as u64)
            .map(|i| (seed.normal(i) * spread) as f32)
            .collect();
        Self { values, dims }
    }

    fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        self.values.iter_mut().for_each(|x| *x = f(*x));
        self
    }

    fn on<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(self.values.clone(), self.dims), device)
    }

    /// The same numbers as rows in the middle of a larger matrix.
    fn as_rows<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2> {
        let [rows, columns] = self.dims;
        let mut values = vec![7.0; columns * 2];
        values.extend_from_slice(&self.values);
        values.extend(vec![7.0; columns]);
        let dims = [rows + 3, columns];
        Self { values, dims }.on(device).narrow(0, 2, rows)
    }

    /// The same numbers as the transpose of a matrix.
    fn as_transpose<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2> {
        let [rows, columns] = self.dims;
        let values = (0..columns * rows)
            .map(|i| self.values[i % rows * columns + i / rows])
            .collect();
        Self {
            values,
            dims: [columns, rows],
        }
        .on(device)
        .transpose()
    }
}

fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().unwrap()
}

/// Fails at an error above the tolerance, as a fraction of the largest reference value; returns the largest.
#[track_caller]
fn assert_near(what: &str, got: &[f32], expected: &[f32], tolerance: f32) -> f64 {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |best, x| best.max(x.abs()));
    let mut worst = 0.0;
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        // Written so that not-a-number fails.
        assert!(
            (got - expected).abs() <= tolerance * largest,
            "{what}[{i}]: {got} instead of {expected} (of {largest})"
        );
        worst = f64::from((got - expected).abs() / largest.max(f32::MIN_POSITIVE)).max(worst);
    }
    worst
}

/// Notes how far an operation is from plain burn ops.
fn note<B: Backend>(subject: &str, what: &str, difference: f64, tolerance: f64) {
    Comparison {
        reference: "Plain operations under burn's autodiff",
        subject,
        what,
        backend: backend_name::<B>(),
        difference,
        tolerance,
        relative: true,
    }
    .check();
}

/// One operation with its inputs, fused and in plain burn ops.
trait Case: Sync {
    fn name(&self) -> &'static str;
    fn inputs(&self) -> Vec<Matrix>;
    /// Indices of the inputs that have a gradient.
    fn trainable(&self) -> Vec<usize>;
    fn fused<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2>;
    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2>;
    /// Largest relative error of central differences: f32 outputs allow 1e-3 unless they are steep.
    fn difference_tolerance(&self) -> f64 {
        1e-3
    }
}

/// Factors that turn an output into one number, so that every entry's gradient counts.
fn factors(len: usize) -> Vec<f32> {
    Matrix::normal("factors", [1, len], 1.0).values
}

/// Output and gradients (`None` for inputs that are not in `tracked`) of `sum(factors * f(inputs))`.
fn gradients<B: ModelBackend, A: AutodiffBackend<InnerBackend = B>>(
    inputs: Vec<Tensor<A, 2>>,
    tracked: &[usize],
    f: impl Fn(Vec<Tensor<A, 2>>) -> Tensor<A, 2>,
) -> (Vec<f32>, Vec<Option<Vec<f32>>>) {
    let _lock = tempering::guard::lock_gradients();
    let inputs: Vec<Tensor<A, 2>> = inputs
        .into_iter()
        .enumerate()
        .map(|(i, x)| {
            if tracked.contains(&i) {
                x.require_grad()
            } else {
                x
            }
        })
        .collect();
    let output = f(inputs.clone());
    let values = host(output.clone());
    if tracked.is_empty() {
        return (values, vec![None; inputs.len()]);
    }
    let factors = TensorData::new(factors(values.len()), output.dims());
    let factors = Tensor::<A, 2>::from_data(factors, &output.device());
    let grads = (output * factors).sum().backward();
    (
        values,
        inputs.iter().map(|x| x.grad(&grads).map(host)).collect(),
    )
}

fn all_on<B: Backend>(inputs: &[Matrix], device: &B::Device) -> Vec<Tensor<B, 2>> {
    inputs.iter().map(|x| x.on(device)).collect()
}

/// Every subset of the trainable inputs, the empty one included.
fn subsets(of: &[usize]) -> Vec<Vec<usize>> {
    (0..1usize << of.len())
        .map(|bits| {
            of.iter()
                .enumerate()
                .filter(|(i, _)| bits >> i & 1 == 1)
                .map(|(_, &x)| x)
                .collect()
        })
        .collect()
}

/// Forward, gradients for every choice of frozen inputs, views, and central differences.
fn check<B: ModelBackend, C: Case>(case: C, device: &B::Device) {
    let (name, inputs) = (case.name(), case.inputs());
    let trainable = case.trainable();
    let expected = host(case.plain::<B>(all_on(&inputs, device)));
    let kept = all_on::<B>(&inputs, device);
    let worst = assert_near(name, &host(case.fused::<B>(kept.clone())), &expected, 2e-5);
    let subject = format!("{name} {:?}", inputs[0].dims);
    note::<B>(&subject, "output", worst, 2e-5);
    let mut worst = 0.0;
    for (i, (kept, input)) in kept.into_iter().zip(&inputs).enumerate() {
        assert_eq!(
            host(kept),
            input.values,
            "{name} changed input {i}, which others hold"
        );
    }
    let rows = inputs.iter().map(|x| x.as_rows::<B>(device)).collect();
    assert_near(
        &format!("{name} of rows"),
        &host(case.fused::<B>(rows)),
        &expected,
        2e-5,
    );
    let transposes = inputs.iter().map(|x| x.as_transpose::<B>(device)).collect();
    assert_near(
        &format!("{name} of transposes"),
        &host(case.fused::<B>(transposes)),
        &expected,
        2e-5,
    );

    let (_, plain) =
        gradients::<B, Autodiff<B>>(all_on(&inputs, device), &trainable, |x| case.plain(x));
    for tracked in subsets(&trainable) {
        let (output, fused) =
            gradients::<B, Autodiff<B>>(all_on(&inputs, device), &tracked, |x| case.fused(x));
        assert_near(
            &format!("{name}, trained {tracked:?}"),
            &output,
            &expected,
            2e-5,
        );
        for (i, gradient) in fused.iter().enumerate() {
            assert_eq!(
                gradient.is_some(),
                tracked.contains(&i),
                "{name}: gradient of input {i}, trained {tracked:?}"
            );
            if let Some(gradient) = gradient {
                let plain = plain[i]
                    .as_ref()
                    .expect("every trained input has a gradient");
                let difference = assert_near(
                    &format!("{name}: gradient of input {i}, trained {tracked:?}"),
                    gradient,
                    plain,
                    1e-4,
                );
                worst = difference.max(worst);
            }
        }
    }
    if !trainable.is_empty() {
        note::<B>(&subject, "gradients", worst, 1e-4);
    }
    let (_, fused) =
        gradients::<B, Autodiff<B>>(all_on(&inputs, device), &trainable, |x| case.fused(x));
    central_differences::<B, C>(&case, &inputs, &fused, device);
}

/// Directional derivatives from central differences, summed in f64 on the host.
fn central_differences<B: ModelBackend, C: Case>(
    case: &C,
    inputs: &[Matrix],
    gradients: &[Option<Vec<f32>>],
    device: &B::Device,
) {
    const STEP: f64 = 4e-3;
    for &i in &case.trainable() {
        let gradient = gradients[i].as_ref().expect("checked before");
        let norm = gradient
            .iter()
            .map(|&g| f64::from(g).powi(2))
            .sum::<f64>()
            .sqrt();
        for direction in 0..3 {
            let direction =
                Matrix::normal(&format!("direction {direction}"), inputs[i].dims, 1.0).values;
            let at = |step: f64| -> f64 {
                let mut moved = inputs.to_vec();
                for (x, d) in moved[i].values.iter_mut().zip(&direction) {
                    *x = (f64::from(*x) + step * f64::from(*d)) as f32;
                }
                let output = host(case.fused::<B>(all_on(&moved, device)));
                output
                    .iter()
                    .zip(factors(output.len()))
                    .map(|(&y, f)| f64::from(y) * f64::from(f))
                    .sum()
            };
            let slope = |step: f64| (at(step) - at(-step)) / (2.0 * step);
            // Richardson: the error is of fourth order in the step.
            let numeric = (4.0 * slope(STEP) - slope(2.0 * STEP)) / 3.0;
            let analytic: f64 = gradient
                .iter()
                .zip(&direction)
                .map(|(&g, &d)| f64::from(g) * f64::from(d))
                .sum();
            // A normal direction makes the derivative as large as the gradient's norm.
            let error = (numeric - analytic).abs() / norm.max(analytic.abs());
            let name = case.name();
            assert!(
                error <= case.difference_tolerance(),
                "{name}, input {i}: {analytic} but differences give {numeric}"
            );
        }
    }
}

/// Forward and gradients equal those of the backend `R`, to `tolerance` of the largest entry.
fn parity<B: ModelBackend, R: ModelBackend, C: Case>(
    case: C,
    device: &B::Device,
    reference: &R::Device,
    tolerance: f32,
) {
    let (name, inputs, trainable) = (case.name(), case.inputs(), case.trainable());
    let (output, got) =
        gradients::<B, Autodiff<B>>(all_on(&inputs, device), &trainable, |x| case.fused(x));
    let (expected, plain) =
        gradients::<R, Autodiff<R>>(all_on(&inputs, reference), &trainable, |x| case.fused(x));
    assert_near(name, &output, &expected, tolerance);
    for (i, (got, expected)) in got.iter().zip(&plain).enumerate() {
        if let (Some(got), Some(expected)) = (got, expected) {
            assert_near(
                &format!("{name}: gradient of input {i}"),
                got,
                expected,
                tolerance,
            );
        }
    }
}

struct RmsNorm {
    tokens: usize,
    hidden: usize,
}

impl Case for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn inputs(&self) -> Vec<Matrix> {
        vec![
            Matrix::normal("x", [self.tokens, self.hidden], 2.0),
            Matrix::normal("weight", [1, self.hidden], 0.5).map(|w| 1.0 + w),
        ]
    }

    fn trainable(&self) -> Vec<usize> {
        vec![0, 1]
    }

    fn fused<B: ModelBackend>(&self, mut x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let weight = x.remove(1).reshape([self.hidden]);
        ops::rms_norm(x.remove(0), weight, 1e-3)
    }

    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let mean = x[0].clone().powi_scalar(2).sum_dim(1) / self.hidden as f32;
        x[0].clone() / (mean + 1e-3).sqrt() * x[1].clone()
    }
}

struct LayerNorm {
    tokens: usize,
    hidden: usize,
}

impl Case for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    /// Rows far from zero: a variance from mean squares would lose its digits.
    fn inputs(&self) -> Vec<Matrix> {
        vec![
            Matrix::normal("x", [self.tokens, self.hidden], 2.0).map(|x| x + 5.0),
            Matrix::normal("weight", [1, self.hidden], 0.5).map(|w| 1.0 + w),
            Matrix::normal("bias", [1, self.hidden], 0.5),
        ]
    }

    fn trainable(&self) -> Vec<usize> {
        vec![0, 1, 2]
    }

    fn fused<B: ModelBackend>(&self, mut x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let bias = x.remove(2).reshape([self.hidden]);
        let weight = x.remove(1).reshape([self.hidden]);
        ops::layer_norm(x.remove(0), weight, bias, 1e-3)
    }

    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let centred = x[0].clone() - x[0].clone().sum_dim(1) / self.hidden as f32;
        let variance = centred.clone().powi_scalar(2).sum_dim(1) / self.hidden as f32;
        centred / (variance + 1e-3).sqrt() * x[1].clone() + x[2].clone()
    }
}

/// Both forms, from where they are zero to where they are the identity.
struct GeluOf {
    form: Gelu,
    tokens: usize,
    width: usize,
}

impl Case for GeluOf {
    fn name(&self) -> &'static str {
        match self.form {
            Gelu::Erf => "gelu",
            Gelu::Tanh => "gelu, tanh form",
        }
    }

    fn inputs(&self) -> Vec<Matrix> {
        vec![Matrix::normal("x", [self.tokens, self.width], 3.0)]
    }

    fn trainable(&self) -> Vec<usize> {
        vec![0]
    }

    fn fused<B: ModelBackend>(&self, mut x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        ops::gelu(x.remove(0), self.form)
    }

    fn plain<B: ModelBackend>(&self, mut x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let x = x.remove(0);
        let inner = match self.form {
            Gelu::Erf => (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf(),
            Gelu::Tanh => {
                let factor = (2.0 / std::f64::consts::PI).sqrt();
                ((x.clone() + x.clone().powi_scalar(3) * 0.044715) * factor).tanh()
            }
        };
        x * 0.5 * (inner + 1.0)
    }
}

/// `heads` rotated heads of `2 * half` features, then `rest` columns that stay.
struct Rope {
    tokens: usize,
    heads: usize,
    half: usize,
    rest: usize,
}

impl Case for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn inputs(&self) -> Vec<Matrix> {
        let width = self.heads * 2 * self.half + self.rest;
        let angles = Matrix::normal("angles", [self.tokens, self.half], 2.0);
        vec![
            Matrix::normal("x", [self.tokens, width], 1.0),
            angles.clone().map(f32::cos),
            angles.map(f32::sin),
        ]
    }

    fn trainable(&self) -> Vec<usize> {
        vec![0]
    }

    fn fused<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        ops::rope(x[0].clone(), x[1].clone(), x[2].clone(), self.heads)
    }

    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        // x cos + rotate_half(x) sin, head by head.
        let twice = |angles: &Tensor<B, 2>| Tensor::cat(vec![angles.clone(), angles.clone()], 1);
        let (cos, sin) = (twice(&x[1]), twice(&x[2]));
        let mut columns: Vec<Tensor<B, 2>> = (0..self.heads)
            .map(|head| {
                let x = x[0].clone().narrow(1, head * 2 * self.half, 2 * self.half);
                let (first, second) = (
                    x.clone().narrow(1, 0, self.half),
                    x.clone().narrow(1, self.half, self.half),
                );
                x * cos.clone() + Tensor::cat(vec![second.neg(), first], 1) * sin.clone()
            })
            .collect();
        if self.rest > 0 {
            columns.push(
                x[0].clone()
                    .narrow(1, self.heads * 2 * self.half, self.rest),
            );
        }
        Tensor::cat(columns, 1)
    }
}

struct Residual;

impl Case for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn inputs(&self) -> Vec<Matrix> {
        vec![
            Matrix::normal("x", [5, 21], 2.0),
            Matrix::normal("y", [5, 21], 1.0),
        ]
    }

    fn trainable(&self) -> Vec<usize> {
        vec![0, 1]
    }

    fn fused<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        // The stream is also the input of the layer: an addition in place must not change either.
        let [x, y] = [x[0].clone(), x[1].clone()];
        let sum = ops::residual(x.clone(), y.clone());
        ops::residual(sum, x * y)
    }

    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let [x, y] = [x[0].clone(), x[1].clone()];
        x.clone() + y.clone() + x * y
    }
}

struct GatedUnit {
    gate: Gate,
    tokens: usize,
    width: usize,
}

const GATES: [Gate; 3] = [Gate::Silu, Gate::Gelu(Gelu::Erf), Gate::Gelu(Gelu::Tanh)];

impl Case for GatedUnit {
    fn name(&self) -> &'static str {
        match self.gate {
            Gate::Silu => "swiglu",
            Gate::Gelu(Gelu::Erf) => "geglu",
            Gate::Gelu(Gelu::Tanh) => "geglu, tanh form",
        }
    }

    fn inputs(&self) -> Vec<Matrix> {
        vec![Matrix::normal("x", [self.tokens, 2 * self.width], 2.0)]
    }

    fn trainable(&self) -> Vec<usize> {
        vec![0]
    }

    fn fused<B: ModelBackend>(&self, mut x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        ops::gated_unit(x.remove(0), self.gate)
    }

    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let (gate, up) = (
            x[0].clone().narrow(1, 0, self.width),
            x[0].clone().narrow(1, self.width, self.width),
        );
        let (tokens, width) = (self.tokens, self.width);
        match self.gate {
            Gate::Silu => gate.clone() / (gate.neg().exp() + 1.0) * up,
            Gate::Gelu(form) => {
                let gelu = GeluOf {
                    form,
                    tokens,
                    width,
                };
                gelu.plain(vec![gate]) * up
            }
        }
    }
}

struct Attention {
    layout: HeadLayout,
    /// Length of each row, and the row that it continues.
    rows: Vec<(usize, Option<usize>)>,
    mask: Mask,
    /// Of the usual scale.
    scale: f32,
    softcap: Option<f32>,
    /// Whether scores have ALiBi's bias, with a slope of its own for each head.
    alibi: bool,
}

impl Attention {
    /// Causal, at the usual scale.
    fn of_rows(layout: HeadLayout, rows: Vec<(usize, Option<usize>)>) -> Self {
        Self {
            layout,
            rows,
            mask: Mask::Causal,
            scale: 1.0,
            softcap: None,
            alibi: false,
        }
    }

    fn of_lens(layout: HeadLayout, lens: &[usize]) -> Self {
        Self::of_rows(layout, lens.iter().map(|&len| (len, None)).collect())
    }

    fn segments(&self) -> Segments {
        Segments::continuing(&self.rows)
    }

    fn slopes(&self) -> Option<Arc<[f32]>> {
        self.alibi.then(|| slopes(self.layout))
    }
}

/// A slope for each head: 0.5, 0.25 and so on.
fn slopes(layout: HeadLayout) -> Arc<[f32]> {
    (1..=layout.heads as i32).map(|i| 0.5f32.powi(i)).collect()
}

/// Every mask, with and without a bound on the scores and ALiBi's bias, at another scale than the usual: a window shorter than the
/// rows, one of a token, and one that is longer than some rows and shorter than others.
fn attentions(
    layout: HeadLayout,
    rows: &[(usize, Option<usize>)],
    windows: &[usize],
) -> Vec<Attention> {
    let masks = [Mask::Causal, Mask::Full].into_iter();
    let masks = masks.chain(windows.iter().map(|&n| Mask::Window(n)));
    masks
        .flat_map(|mask| {
            // Scores have a spread of about 3: a bound of 2 bends them all, one of 50 hardly any.
            let scores = [
                (None, false),
                (Some(2.0), false),
                (Some(50.0), false),
                (None, true),
                (Some(2.0), true),
            ];
            // Long rows take seconds on a software driver, so one case of ALiBi is enough for them. With a full mask its bias makes scores
            // of hundreds there, whose last bits are 1e-5: no model has that.
            let short = rows.iter().all(|&(len, _)| len < 100);
            let scores = scores.into_iter().filter(move |&(softcap, alibi)| {
                !alibi || short || (mask == Mask::Causal && softcap.is_none())
            });
            scores.map(move |(softcap, alibi)| Attention {
                mask,
                softcap,
                alibi,
                scale: 1.3,
                ..Attention::of_rows(layout, rows.to_vec())
            })
        })
        .collect()
}

impl Case for Attention {
    fn name(&self) -> &'static str {
        match (self.mask, self.softcap.is_some(), self.alibi) {
            (Mask::Causal, false, false) => "attention",
            (Mask::Causal, true, false) => "attention, capped",
            (Mask::Causal, false, true) => "attention, ALiBi",
            (Mask::Causal, true, true) => "attention, capped, ALiBi",
            (Mask::Full, false, false) => "attention, full",
            (Mask::Full, true, false) => "attention, full and capped",
            (Mask::Full, false, true) => "attention, full, ALiBi",
            (Mask::Full, true, true) => "attention, full and capped, ALiBi",
            (Mask::Window(_), false, false) => "attention, windowed",
            (Mask::Window(_), true, false) => "attention, windowed and capped",
            (Mask::Window(_), false, true) => "attention, windowed, ALiBi",
            (Mask::Window(_), true, true) => "attention, windowed and capped, ALiBi",
        }
    }

    fn inputs(&self) -> Vec<Matrix> {
        vec![Matrix::normal(
            "qkv",
            [self.segments().num_tokens(), self.layout.joint_width()],
            1.0,
        )]
    }

    fn trainable(&self) -> Vec<usize> {
        vec![0]
    }

    fn fused<B: ModelBackend>(&self, mut x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let causal = Attend::causal(self.layout, &self.segments());
        let attend = Attend {
            mask: self.mask,
            scale: self.scale * causal.scale,
            softcap: self.softcap,
            alibi: self.slopes(),
            ..causal
        };
        ops::attention(x.remove(0), &attend)
    }

    /// One mask over all tokens, one head at a time.
    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let HeadLayout {
            heads,
            kv_heads,
            head_dim,
        } = self.layout;
        let segments = self.segments();
        let tokens = segments.num_tokens();
        let row_of: Vec<usize> = segments
            .iter()
            .enumerate()
            .flat_map(|(row, range)| range.map(move |_| row))
            .collect();
        let positions = segments.positions();
        let hidden: Vec<bool> = (0..tokens * tokens)
            .map(|i| {
                let (query, key) = (i / tokens, i % tokens);
                let parent = self.rows[row_of[query]].1;
                let other_row = row_of[key] != row_of[query] && Some(row_of[key]) != parent;
                let (i, j) = (positions[query], positions[key]);
                other_row
                    || match self.mask {
                        Mask::Causal => j > i,
                        Mask::Full => false,
                        Mask::Window(n) => j > i || j + n <= i,
                    }
            })
            .collect();
        let hidden = Tensor::<B, 2, Bool>::from_data(
            TensorData::new(hidden, [tokens, tokens]),
            &x[0].device(),
        );
        let places: Vec<f32> = positions.iter().map(|&position| position as f32).collect();
        let places =
            Tensor::<B, 2>::from_data(TensorData::new(places, [1, tokens]), &x[0].device());
        let columns = |head: usize| x[0].clone().narrow(1, head * head_dim, head_dim);
        let outputs = (0..heads).map(|head| {
            let kv_head = head / (heads / kv_heads);
            let (q, k, v) = (
                columns(head),
                columns(heads + kv_head),
                columns(heads + kv_heads + kv_head),
            );
            let mut scores =
                ops::f32_matmul(q, k.transpose()) * self.scale / (head_dim as f32).sqrt();
            if let Some(cap) = self.softcap {
                scores = (scores / cap).tanh() * cap;
            }
            if let Some(slopes) = self.slopes() {
                // Added by the key alone, as transformers' BLOOM has it: the softmax is the same.
                scores = scores + places.clone() * slopes[head];
            }
            ops::f32_matmul(
                activation::softmax(scores.mask_fill(hidden.clone(), -1e9), 1),
                v,
            )
        });
        Tensor::cat(outputs.collect(), 1)
    }
}

struct TokenLogprob {
    tokens: usize,
    hidden: usize,
    vocab: usize,
    temperature: f64,
    /// Largest logit, about.
    largest: f64,
}

impl TokenLogprob {
    /// Every target twice in a row, among few tokens, so that rows of the head are met repeatedly.
    fn targets(&self) -> Arc<Vec<u32>> {
        Arc::new(
            (0..self.tokens)
                .map(|i| (i / 2 * 7 % self.vocab.min(11)) as u32)
                .collect(),
        )
    }

    /// Logits at the temperature.
    fn logits<B: ModelBackend>(&self, x: &[Tensor<B, 2>]) -> Tensor<B, 2> {
        ops::f32_matmul(x[0].clone(), x[1].clone().transpose()) / self.temperature as f32
    }
}

impl Case for TokenLogprob {
    fn name(&self) -> &'static str {
        "token_logprob"
    }

    fn inputs(&self) -> Vec<Matrix> {
        // Sums of `hidden` products have the spread largest / 4, so that the largest of some hundred reach `largest`.
        let spread = (self.largest / 4.0 / (self.hidden as f64).sqrt()).sqrt();
        vec![
            Matrix::normal("hidden", [self.tokens, self.hidden], spread),
            Matrix::normal("head", [self.vocab, self.hidden], spread),
        ]
    }

    fn trainable(&self) -> Vec<usize> {
        vec![0, 1]
    }

    fn fused<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let (logprobs, _) = ops::token_logprob(
            x[0].clone(),
            x[1].clone(),
            &self.targets(),
            self.temperature,
            MatmulPrecision::F32,
        );
        logprobs.reshape([self.tokens, 1])
    }

    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let ids: Vec<i32> = self.targets().iter().map(|&t| t as i32).collect();
        let ids =
            Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [self.tokens, 1]), &x[0].device());
        activation::log_softmax(self.logits(&x), 1).gather(1, ids)
    }
}

/// The entropies, which have no gradient.
struct Entropy(TokenLogprob);

impl Case for Entropy {
    fn name(&self) -> &'static str {
        "entropy"
    }

    fn inputs(&self) -> Vec<Matrix> {
        self.0.inputs()
    }

    fn trainable(&self) -> Vec<usize> {
        Vec::new()
    }

    fn fused<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let (_, entropy) = ops::token_logprob(
            x[0].clone(),
            x[1].clone(),
            &self.0.targets(),
            self.0.temperature,
            MatmulPrecision::F32,
        );
        entropy.reshape([self.0.tokens, 1])
    }

    /// In f64 on the host.
    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let logits = host(self.0.logits(&x));
        let entropies = logits.chunks(self.0.vocab).map(|row| {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let shifted = row.iter().map(|&l| f64::from(l) - f64::from(top));
            let z: f64 = shifted.clone().map(f64::exp).sum();
            (z.ln() - shifted.map(|l| l.exp() * l).sum::<f64>() / z) as f32
        });
        Tensor::from_data(
            TensorData::new(entropies.collect(), [self.0.tokens, 1]),
            &x[0].device(),
        )
    }
}

/// The same with three of the head's rows replaced, two of which are targets; the head is frozen, in f32 or reduced.
struct ReplacedLogprob(TokenLogprob, Precision);

impl ReplacedLogprob {
    const AT: [u32; 3] = [7, 20, 3];

    fn head(&self) -> Matrix {
        self.0.inputs().remove(1)
    }

    fn reduced(&self) -> Option<ReducedMatrix> {
        let (head, [vocab, hidden]) = (self.head().values, [self.0.vocab, self.0.hidden]);
        ReducedMatrix::of_transpose(&head, hidden, vocab, self.1)
    }

    fn replaced<B: ModelBackend>(&self, x: &[Tensor<B, 2>]) -> Head<B> {
        let device = x[0].device();
        let head = match self.reduced() {
            Some(reduced) => FrozenWeight::Reduced(reduced),
            None => {
                let head = self.head().on(&device).transpose();
                FrozenWeight::full(head, MatmulPrecision::F32)
            }
        };
        let at = Arc::new(Self::AT.to_vec());
        let order = ops::replaced_order::<B>(&at, self.0.vocab, &device);
        Head::Replaced(head, x[1].clone(), ReplacedRows::new(at, order))
    }

    /// Logits of the head as a whole, before the temperature.
    fn logits<B: ModelBackend>(&self, x: &[Tensor<B, 2>]) -> Tensor<B, 2> {
        let device = x[0].device();
        let logits = match self.reduced() {
            Some(reduced) => ops::reduced_linear(x[0].clone(), &reduced),
            None => ops::f32_matmul(x[0].clone(), self.head().on(&device).transpose()),
        };
        let columns = (0..self.0.vocab).map(|column| {
            let other = Self::AT.iter().position(|&at| at as usize == column);
            match other {
                Some(other) => {
                    let row = x[1].clone().narrow(0, other, 1);
                    ops::f32_matmul(x[0].clone(), row.transpose())
                }
                None => logits.clone().narrow(1, column, 1),
            }
        });
        Tensor::cat(columns.collect(), 1)
    }
}

impl Case for ReplacedLogprob {
    fn name(&self) -> &'static str {
        "replaced_token_logprob"
    }

    fn inputs(&self) -> Vec<Matrix> {
        let inputs = self.0.inputs();
        let others = Matrix::normal("others", [3, self.0.hidden], 0.6);
        vec![inputs[0].clone(), others]
    }

    fn trainable(&self) -> Vec<usize> {
        vec![0, 1]
    }

    fn fused<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let (head, targets) = (self.replaced(&x), self.0.targets());
        let (logprobs, _) = ops::head_logprob(x[0].clone(), head, &targets, self.0.temperature);
        logprobs.reshape([self.0.tokens, 1])
    }

    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let ids: Vec<i32> = self.0.targets().iter().map(|&t| t as i32).collect();
        let ids = TensorData::new(ids, [self.0.tokens, 1]);
        let ids = Tensor::<B, 2, Int>::from_data(ids, &x[0].device());
        activation::log_softmax(self.logits(&x) / self.0.temperature as f32, 1).gather(1, ids)
    }
}

struct LoraLinear {
    tokens: usize,
    inputs: usize,
    outputs: usize,
    parts: Vec<LowRankPart>,
}

impl LoraLinear {
    fn ranks(&self) -> usize {
        self.parts.iter().map(|part| part.rank).sum()
    }
}

impl Case for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn inputs(&self) -> Vec<Matrix> {
        let spread = 1.0 / (self.inputs as f64).sqrt();
        let entries: usize = self.parts.iter().map(|part| part.rank * part.width).sum();
        vec![
            Matrix::normal("x", [self.tokens, self.inputs], 1.0),
            Matrix::normal("weight", [self.inputs, self.outputs], spread),
            Matrix::normal("a", [self.inputs, self.ranks()], spread),
            Matrix::normal("b", [1, entries], 1.0),
        ]
    }

    /// The weight is frozen.
    fn trainable(&self) -> Vec<usize> {
        vec![0, 2, 3]
    }

    fn fused<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let [_, entries] = x[3].dims();
        ops::lora_linear(
            x[0].clone(),
            x[1].clone(),
            x[2].clone(),
            x[3].clone().reshape([entries]),
            &self.parts,
        )
    }

    /// The updated weight, column block by column block.
    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let (mut columns, mut end, mut rank, mut entry) = (Vec::new(), 0, 0, 0);
        for part in &self.parts {
            if part.column > end {
                columns.push(x[1].clone().narrow(1, end, part.column - end));
            }
            let entries = part.rank * part.width;
            let b = x[3]
                .clone()
                .narrow(1, entry, entries)
                .reshape([part.rank, part.width]);
            let delta = ops::f32_matmul(x[2].clone().narrow(1, rank, part.rank), b) * part.scale;
            columns.push(x[1].clone().narrow(1, part.column, part.width) + delta);
            (end, rank, entry) = (part.column + part.width, rank + part.rank, entry + entries);
        }
        if end < self.outputs {
            columns.push(x[1].clone().narrow(1, end, self.outputs - end));
        }
        ops::f32_matmul(x[0].clone(), Tensor::cat(columns, 1))
    }
}

/// A [`LoraLinear`] whose rows' ranks are given, not computed from its input.
struct LowRankLinear(LoraLinear);

impl Case for LowRankLinear {
    fn name(&self) -> &'static str {
        "low_rank_linear"
    }

    fn inputs(&self) -> Vec<Matrix> {
        let mut inputs = self.0.inputs();
        inputs[2] = Matrix::normal("t", [self.0.tokens, self.0.ranks()], 1.0);
        inputs
    }

    /// The weight is frozen.
    fn trainable(&self) -> Vec<usize> {
        vec![0, 2, 3]
    }

    fn fused<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let [_, entries] = x[3].dims();
        ops::low_rank_linear(
            x[0].clone(),
            &FrozenWeight::full(x[1].clone(), MatmulPrecision::F32),
            x[2].clone(),
            x[3].clone().reshape([entries]),
            &self.0.parts,
        )
    }

    /// The parts' products side by side, zeros between them.
    fn plain<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let zeros = |width| Tensor::zeros([self.0.tokens, width], &x[0].device());
        let (mut columns, mut end, mut rank, mut entry) = (Vec::new(), 0, 0, 0);
        for part in &self.0.parts {
            if part.column > end {
                columns.push(zeros(part.column - end));
            }
            let entries = part.rank * part.width;
            let b = x[3].clone().narrow(1, entry, entries);
            let t = x[2].clone().narrow(1, rank, part.rank);
            columns.push(ops::f32_matmul(t, b.reshape([part.rank, part.width])) * part.scale);
            (end, rank, entry) = (part.column + part.width, rank + part.rank, entry + entries);
        }
        if end < self.0.outputs {
            columns.push(zeros(self.0.outputs - end));
        }
        ops::f32_matmul(x[0].clone(), x[1].clone()) + Tensor::cat(columns, 1)
    }
}

/// A [`LoraLinear`] whose input is computed from a source.
enum LoraLinearOf {
    RmsNorm(LoraLinear),
    GatedUnit(LoraLinear),
}

impl LoraLinearOf {
    fn linear(&self) -> &LoraLinear {
        match self {
            Self::RmsNorm(linear) | Self::GatedUnit(linear) => linear,
        }
    }
}

impl Case for LoraLinearOf {
    fn name(&self) -> &'static str {
        match self {
            Self::RmsNorm(_) => "lora_linear of rms_norm",
            Self::GatedUnit(_) => "lora_linear of geglu",
        }
    }

    /// The linear layer's, with the source in the input's place; last the norm's weight.
    fn inputs(&self) -> Vec<Matrix> {
        let linear = self.linear();
        let width = match self {
            Self::RmsNorm(_) => linear.inputs,
            Self::GatedUnit(_) => 2 * linear.inputs,
        };
        let mut inputs = linear.inputs();
        inputs[0] = Matrix::normal("x", [linear.tokens, width], 1.0);
        inputs.push(Matrix::normal("norm", [1, linear.inputs], 0.5).map(|w| 1.0 + w));
        inputs
    }

    fn trainable(&self) -> Vec<usize> {
        match self {
            Self::RmsNorm(_) => vec![0, 2, 3, 4],
            Self::GatedUnit(_) => vec![0, 2, 3],
        }
    }

    fn fused<B: ModelBackend>(&self, x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let [_, entries] = x[3].dims();
        let norm = x[4].clone().reshape([self.linear().inputs]);
        let input = match self {
            Self::RmsNorm(_) => LinearInput::RmsNorm {
                weight: norm.into_primitive().tensor(),
                eps: 1e-3,
            },
            Self::GatedUnit(_) => LinearInput::Gated(GATES[1]),
        };
        ops::lora_linear_of(
            x[0].clone(),
            input,
            &FrozenWeight::full(x[1].clone(), MatmulPrecision::F32),
            x[2].clone(),
            x[3].clone().reshape([entries]),
            &self.linear().parts,
        )
    }

    fn plain<B: ModelBackend>(&self, mut x: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let linear = self.linear();
        let (tokens, width) = (linear.tokens, linear.inputs);
        x[0] = match self {
            Self::RmsNorm(_) => RmsNorm {
                tokens,
                hidden: width,
            }
            .plain(vec![x[0].clone(), x[4].clone()]),
            Self::GatedUnit(_) => GatedUnit {
                gate: GATES[1],
                tokens,
                width,
            }
            .plain(vec![x[0].clone()]),
        };
        linear.plain(x)
    }
}

/// Ranks 3, 8 and 1 with gaps before, between and behind; no width is a multiple of 16.
fn parts(scale: usize) -> Vec<LowRankPart> {
    vec![
        LowRankPart {
            rank: 3,
            scale: 0.5,
            column: 2 * scale,
            width: 5 * scale,
        },
        LowRankPart {
            rank: 8,
            scale: 2.0,
            column: 7 * scale,
            width: 19 * scale,
        },
        LowRankPart {
            rank: 1,
            scale: -1.5,
            column: 29 * scale,
            width: 3 * scale,
        },
    ]
}

const GROUPED: HeadLayout = HeadLayout {
    heads: 6,
    kv_heads: 2,
    head_dim: 6,
};

pub(crate) fn rms_norm<B: ModelBackend>(device: B::Device) {
    check::<B, _>(
        RmsNorm {
            tokens: 5,
            hidden: 19,
        },
        &device,
    );
    check::<B, _>(
        RmsNorm {
            tokens: 1,
            hidden: 1,
        },
        &device,
    );
}

pub(crate) fn layer_norm<B: ModelBackend>(device: B::Device) {
    for (tokens, hidden) in [(5, 19), (1, 3)] {
        check::<B, _>(LayerNorm { tokens, hidden }, &device);
    }
}

pub(crate) fn gelu<B: ModelBackend>(device: B::Device) {
    for form in [Gelu::Erf, Gelu::Tanh] {
        let (tokens, width) = (7, 23);
        let case = GeluOf {
            form,
            tokens,
            width,
        };
        check::<B, _>(case, &device);
    }
}

pub(crate) fn rope<B: ModelBackend>(device: B::Device) {
    check::<B, _>(
        Rope {
            tokens: 4,
            heads: 3,
            half: 5,
            rest: 7,
        },
        &device,
    );
    check::<B, _>(
        Rope {
            tokens: 3,
            heads: 2,
            half: 1,
            rest: 0,
        },
        &device,
    );
}

pub(crate) fn residual<B: ModelBackend>(device: B::Device) {
    check::<B, _>(Residual, &device);
}

pub(crate) fn gated_unit<B: ModelBackend>(device: B::Device) {
    for gate in GATES {
        let (tokens, width) = (5, 21);
        let case = GatedUnit {
            gate,
            tokens,
            width,
        };
        check::<B, _>(case, &device);
        saturated_gates::<B>(gate, &device);
    }
}

/// Where exp overflows, the limits hold: 0 for a closed gate, gate * up for an open one.
fn saturated_gates<B: ModelBackend>(gate: Gate, device: &B::Device) {
    let x = Tensor::<B, 2>::from_data([[-200.0, 200.0, -90.0, 2.0, 3.0, 4.0]], device);
    assert_near(
        &format!("{gate:?}, saturated"),
        &host(ops::gated_unit(x.clone(), gate)),
        &[0.0, 600.0, 0.0],
        1e-6,
    );
    let _lock = tempering::guard::lock_gradients();
    let x = Tensor::<Autodiff<B>, 2>::from_inner(x).require_grad();
    let grads = ops::gated_unit(x.clone(), gate).sum().backward();
    let expected = [0.0, 3.0, 0.0, 0.0, 200.0, 0.0];
    assert_near(
        &format!("{gate:?}, saturated gradient"),
        &host(x.grad(&grads).unwrap()),
        &expected,
        1e-6,
    );
}

pub(crate) fn attention<B: ModelBackend>(device: B::Device) {
    check::<B, _>(Attention::of_lens(GROUPED, &[3, 1, 0, 7, 1]), &device);
    let single = HeadLayout {
        heads: 2,
        kv_heads: 2,
        head_dim: 3,
    };
    check::<B, _>(Attention::of_lens(single, &[5]), &device);
    let shared = HeadLayout {
        heads: 3,
        kv_heads: 1,
        head_dim: 16,
    };
    check::<B, _>(Attention::of_lens(shared, &[1, 18, 2]), &device);
    // Rows that continue another, one that continues an empty row, and a beginning that nobody continues.
    let rows = vec![
        (4, None),
        (3, Some(0)),
        (0, None),
        (2, None),
        (1, Some(0)),
        (0, Some(0)),
        (2, Some(2)),
    ];
    check::<B, _>(Attention::of_rows(GROUPED, rows), &device);
}

/// Scale, mask and bound on the scores.
pub(crate) fn masked_attention<B: ModelBackend>(device: B::Device) {
    let rows = [
        (5, None),
        (3, Some(0)),
        (0, None),
        (1, None),
        (2, Some(0)),
        (7, None),
    ];
    for case in attentions(GROUPED, &rows, &[1, 3, 6]) {
        check::<B, _>(case, &device);
    }
}

pub(crate) fn token_logprob<B: ModelBackend>(device: B::Device) {
    let small = || TokenLogprob {
        tokens: 9,
        hidden: 7,
        vocab: 37,
        temperature: 0.7,
        largest: 3.0,
    };
    check::<B, _>(small(), &device);
    check::<B, _>(Entropy(small()), &device);
    check::<B, _>(
        TokenLogprob {
            temperature: 1.0,
            ..small()
        },
        &device,
    );
    // More rows than are formed at once.
    let chunked = || TokenLogprob {
        tokens: 300,
        hidden: 5,
        vocab: 23,
        temperature: 1.3,
        largest: 4.0,
    };
    check::<B, _>(chunked(), &device);
    check::<B, _>(Entropy(chunked()), &device);
}

/// A head of which some rows are others: log-probabilities and gradients, logits, entropies and capped logits.
pub(crate) fn replaced_token_logprob<B: ModelBackend>(device: B::Device) {
    let base = |tokens| TokenLogprob {
        tokens,
        hidden: 32,
        vocab: 37,
        temperature: 0.7,
        largest: 3.0,
    };
    // More rows than are formed at once, too.
    for (tokens, precision) in [
        (9, Precision::F32),
        (300, Precision::F32),
        (9, Precision::Bf16),
    ] {
        check::<B, _>(ReplacedLogprob(base(tokens), precision), &device);
    }
    // In 8 bits inputs are rounded, too, so that differences of outputs are steps.
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let case = ReplacedLogprob(base(9), precision);
        let x = all_on::<B>(&case.inputs(), &device);
        let (head, expected) = (case.replaced(&x), case.logits(&x));
        let name = format!("replaced logits, {}", precision.name());
        let logits = ops::logits(x[0].clone(), &head);
        assert_near(&name, &host(logits), &host(expected.clone()), 2e-5);
        let targets = case.0.targets();
        let (logprobs, entropy) = ops::head_logprob(x[0].clone(), head.clone(), &targets, 1.0);
        let log_p = activation::log_softmax(expected.clone(), 1);
        let of_targets: Vec<f32> = host(log_p.clone())
            .chunks(case.0.vocab)
            .zip(targets.iter())
            .map(|(row, &target)| row[target as usize])
            .collect();
        assert_near(&name, &host(logprobs), &of_targets, 2e-5);
        let entropies = (log_p.clone().exp() * log_p).sum_dim(1).neg();
        assert_near(&name, &host(entropy), &host(entropies), 2e-5);
        // Under a bound, as in Gemma 2.
        let capped = Head::Capped(Box::new(head), 2.0);
        let expected = expected.div_scalar(2.0).tanh().mul_scalar(2.0);
        let (logprobs, _) = ops::head_logprob(x[0].clone(), capped, &targets, 1.0);
        let of_targets: Vec<f32> = host(activation::log_softmax(expected, 1))
            .chunks(case.0.vocab)
            .zip(targets.iter())
            .map(|(row, &target)| row[target as usize])
            .collect();
        assert_near(&name, &host(logprobs), &of_targets, 2e-5);
    }
    // No targets: a row of one token has none.
    let case = ReplacedLogprob(base(1), Precision::F32);
    let x = all_on::<B>(&case.inputs(), &device);
    let nothing = Tensor::zeros([0, 32], &device);
    let (none, _) = ops::head_logprob(nothing, case.replaced(&x), &Arc::new(Vec::new()), 1.0);
    assert_eq!(none.dims(), [0]);
}

/// Logits of +80 and -80: exp overflows unless the largest is taken off first.
pub(crate) fn extreme_logits<B: ModelBackend>(device: B::Device) {
    // Two features: logits are (80, -80, 79, 0) and the reverse.
    let hidden = Tensor::<B, 2>::from_data([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], &device);
    let head = Tensor::<B, 2>::from_data(
        [[80.0, -80.0], [-80.0, 80.0], [79.0, -79.0], [0.0, 0.0]],
        &device,
    );
    let targets = Arc::new(vec![0, 1, 1]);
    // Row 0: z = 1 + e^-1 (+ e^-160 + e^-80), ln z = 0.3132617; entropy = ln z + e^-1 / z = 0.3132617 + 0.2689414.
    // Row 1: z = 1 + e^-80 + .. = 1. Row 2: -160 - ln z.
    let (logprobs, entropy) = ops::token_logprob(
        hidden.clone(),
        head.clone(),
        &targets,
        1.0,
        MatmulPrecision::F32,
    );
    for (got, expected) in host(logprobs).iter().zip([-0.313_261_7, 0.0, -160.313_26]) {
        assert!(
            (got - expected).abs() <= 2e-5,
            "{got} instead of {expected}"
        );
    }
    for (got, expected) in host(entropy).iter().zip([0.582_203_1, 0.0, 0.582_203_1]) {
        assert!(
            (got - expected).abs() <= 2e-6,
            "{got} instead of {expected}"
        );
    }
    // d logprob / d hidden = head[target] - E[head]; E = (80 + 79 e^-1) / z = 79.731059 in the first feature.
    let _lock = tempering::guard::lock_gradients();
    for head_is_trained in [false, true] {
        let hidden = Tensor::<Autodiff<B>, 2>::from_inner(hidden.clone()).require_grad();
        let head = Tensor::<Autodiff<B>, 2>::from_inner(head.clone());
        let head = if head_is_trained {
            head.require_grad()
        } else {
            head
        };
        let (logprobs, _) =
            ops::token_logprob(hidden.clone(), head, &targets, 1.0, MatmulPrecision::F32);
        let got = host(hidden.grad(&logprobs.sum().backward()).unwrap());
        for (got, expected) in
            got.iter()
                .zip([0.268_941_4, -0.268_941_4, 0.0, 0.0, -159.731_06, 159.731_06])
        {
            assert!(
                (got - expected).abs() <= 5e-5,
                "{got} instead of {expected}"
            );
        }
    }
    let steep = TokenLogprob {
        tokens: 12,
        hidden: 33,
        vocab: 301,
        temperature: 0.5,
        largest: 40.0,
    };
    check::<B, _>(steep, &device);
}

pub(crate) fn lora_linear<B: ModelBackend>(device: B::Device) {
    check::<B, _>(
        LoraLinear {
            tokens: 6,
            inputs: 13,
            outputs: 35,
            parts: parts(1),
        },
        &device,
    );
    let whole = vec![LowRankPart {
        rank: 4,
        scale: 0.25,
        column: 0,
        width: 70,
    }];
    check::<B, _>(
        LoraLinear {
            tokens: 5,
            inputs: 8,
            outputs: 70,
            parts: whole,
        },
        &device,
    );
}

pub(crate) fn lora_linear_of<B: ModelBackend>(device: B::Device) {
    let linear = || LoraLinear {
        tokens: 6,
        inputs: 13,
        outputs: 35,
        parts: parts(1),
    };
    check::<B, _>(LoraLinearOf::RmsNorm(linear()), &device);
    check::<B, _>(LoraLinearOf::GatedUnit(linear()), &device);
}

pub(crate) fn low_rank_linear<B: ModelBackend>(device: B::Device) {
    let linear = |tokens| LoraLinear {
        tokens,
        inputs: 13,
        outputs: 35,
        parts: parts(1),
    };
    for tokens in [6, 67] {
        check::<B, _>(LowRankLinear(linear(tokens)), &device);
    }
}

/// Three updates against the formula in f64.
pub(crate) fn adamw<B: ModelBackend>(device: B::Device) {
    // 40,001 entries: more than one task of the parallel kernel, and no whole vector at the end.
    let entries = 40_001;
    let start = Matrix::normal("param", [1, entries], 1.0);
    let (lr, beta1, beta2, eps, decay, factor) = (1e-2, 0.9, 0.999, 1e-8, 0.1, 0.5);
    let mut expected: Vec<[f64; 3]> = start
        .values
        .iter()
        .map(|&w| [f64::from(w), 0.0, 0.0])
        .collect();
    let mut undecayed = expected.clone();
    let primitive = |x: Tensor<B, 2>| x.into_primitive().tensor();
    let tensor = |x| host(Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(x)));
    let kept = start.on::<B>(&device);
    // Beside it, in the same call, many small ones of other shapes, every other without decay: those fall like it, or without.
    let zeros = |dims| primitive(Tensor::zeros(dims, &device));
    let mut state = vec![(
        primitive(kept.clone()),
        [zeros([1, entries]), zeros([1, entries])],
    )];
    state.extend((1..=70).map(|len| {
        let value = start.on::<B>(&device).slice([0..1, 0..len]);
        (primitive(value), [zeros([1, len]), zeros([1, len])])
    }));
    for t in 1..=3 {
        let gradient = Matrix::normal(&format!("gradient {t}"), [1, entries], 1.0);
        let (c1, c2) = (1.0 - f64::powi(beta1, t), 1.0 - f64::powi(beta2, t));
        for (rows, decay) in [(&mut expected, decay), (&mut undecayed, 0.0)] {
            for ([w, m, v], g) in rows.iter_mut().zip(&gradient.values) {
                let g = f64::from(*g) * factor;
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *w = *w * (1.0 - lr * decay) - lr * (*m / c1) / ((*v / c2).sqrt() + eps);
            }
        }
        let step = AdamWStep {
            lr: lr as f32,
            beta1,
            beta2,
            eps: eps as f32,
            weight_decay: decay as f32,
            grad_scale: factor as f32,
            bias_correction1: c1 as f32,
            bias_correction2: c2 as f32,
        };
        // The gradient as a view, the parameter shared: neither may change what others hold.
        let whole: Tensor<B, 2> = gradient.as_rows(&device);
        let params = state.into_iter().enumerate();
        let params = params.map(|(i, (value, moments))| AdamWParam {
            value,
            grad: primitive(match i {
                0 => whole.clone(),
                len => whole.clone().slice([0..1, 0..len]),
            }),
            moments,
            decays: i % 2 == 0,
        });
        let params = params.collect();
        state = B::adamw(params, step);
    }
    let mut state = state.into_iter();
    let first = state.next().unwrap();
    for (len, (value, [m, _])) in (1..).zip(state) {
        let mut rows = expected[..len].to_vec();
        if len % 2 == 1 {
            // Undecayed, entry by entry, from the same gradients.
            rows = undecayed[..len].to_vec();
        }
        let of = |i: usize| rows.iter().map(|x| x[i] as f32).collect::<Vec<_>>();
        assert_near("a small parameter", &tensor(value), &of(0), 1e-6);
        assert_near("its first moment", &tensor(m), &of(1), 1e-6);
    }
    let column = |i: usize| expected.iter().map(|x| x[i] as f32).collect::<Vec<_>>();
    let (value, [m, v]) = first;
    assert_near("first moment", &tensor(m), &column(1), 1e-6);
    assert_near("second moment", &tensor(v), &column(2), 1e-6);
    assert_near("parameter", &tensor(value), &column(0), 1e-6);
    assert_eq!(
        host(kept),
        start.values,
        "the old parameter is someone else's"
    );
}

/// A parameter that is a view into a larger tensor is updated alone.
pub(crate) fn adamw_of_a_view<B: ModelBackend>(device: B::Device) {
    let whole = Matrix::normal("whole", [9, 5], 1.0);
    let (rows, ones) = (
        whole.as_rows::<B>(&device),
        Tensor::<B, 2>::ones([9, 5], &device),
    );
    // Plain gradient descent in sign: m / c1 = g, sqrt(v / c2) = |g|, so every entry falls by lr.
    let step = AdamWStep {
        lr: 0.5,
        beta1: 0.0,
        beta2: 0.0,
        eps: 0.0,
        weight_decay: 0.0,
        grad_scale: 1.0,
        bias_correction1: 1.0,
        bias_correction2: 1.0,
    };
    let primitive = |x: Tensor<B, 2>| x.into_primitive().tensor();
    let zeros = || {
        primitive(
            Matrix {
                values: vec![0.0; 45],
                dims: [9, 5],
            }
            .as_rows::<B>(&device),
        )
    };
    let param = AdamWParam {
        value: primitive(rows.clone()),
        grad: primitive(ones),
        moments: [zeros(), zeros()],
        decays: true,
    };
    let (updated, _) = B::adamw(vec![param], step).remove(0);
    let expected: Vec<f32> = whole.values.iter().map(|w| w - 0.5).collect();
    let updated = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(updated));
    assert_near("updated view", &host(updated), &expected, 1e-6);
    assert_eq!(host(rows), whole.values);
}

/// Rows in slots of a cache, out of order, refilled and longer than before: every step equals attention over whole rows.
pub(crate) fn cache<B: ModelBackend>(device: B::Device) {
    for (mask, softcap, alibi) in [
        (Mask::Causal, None, false),
        (Mask::Causal, Some(1.5), false),
        (Mask::Causal, None, true),
        (Mask::Window(1), None, false),
        (Mask::Window(4), None, false),
        (Mask::Window(4), Some(1.5), false),
        (Mask::Window(4), Some(1.5), true),
    ] {
        cached_attention::<B>(mask, softcap, alibi, &device);
    }
}

fn cached_attention<B: ModelBackend>(
    mask: Mask,
    softcap: Option<f32>,
    alibi: bool,
    device: &B::Device,
) {
    let layout = GROUPED;
    let attend = |segments: &Segments| Attend {
        mask,
        softcap,
        alibi: alibi.then(|| slopes(layout)),
        ..Attend::causal(layout, segments)
    };
    let capacity = 9;
    let mut cache = KvCache::<B>::new(1, 3, capacity, layout, device);
    // The tokens of each slot so far, one joint row each.
    let mut seen: Vec<Vec<f32>> = vec![Vec::new(); 3];
    let width = layout.joint_width();
    let mut batch = 0;
    let mut feed = |cache: &mut KvCache<B>, slots: &[usize], lens: &[usize]| {
        batch += 1;
        let segments = Segments::from_lens(lens.iter().copied());
        let joint = Matrix::normal(
            &format!("batch {batch}"),
            [segments.num_tokens(), width],
            1.0,
        );
        let mut expected = Vec::new();
        for (range, &slot) in segments.iter().zip(slots) {
            let len = range.len();
            seen[slot].extend_from_slice(&joint.values[range.start * width..range.end * width]);
            let tokens = seen[slot].len() / width;
            let whole = Matrix {
                values: seen[slot].clone(),
                dims: [tokens, width],
            }
            .on::<B>(device);
            let output = host(ops::attention(
                whole,
                &attend(&Segments::from_lens([tokens])),
            ));
            expected.extend_from_slice(&output[(tokens - len) * layout.q_width()..]);
        }
        cache.select(slots);
        let output = cache.attend(0, joint.on(device), &attend(&segments));
        cache.advance(&segments);
        assert_near(
            &format!("{mask:?}, batch {batch}"),
            &host(output),
            &expected,
            1e-5,
        );
        if batch == 6 {
            seen[2].clear();
        }
    };
    feed(&mut cache, &[2, 0], &[6, 3]);
    feed(&mut cache, &[0, 2], &[1, 1]);
    feed(&mut cache, &[2], &[1]);
    feed(&mut cache, &[1], &[1]);
    feed(&mut cache, &[1, 2, 0], &[1, 1, 1]);
    feed(&mut cache, &[1], &[1]);
    // Slot 2 held nine positions; its next row is shorter, so that old keys stay behind it.
    cache.clear(2);
    feed(&mut cache, &[2], &[2]);
    feed(&mut cache, &[2, 1], &[1, 1]);
}

/// Copies land where they belong, and a cache that someone else holds stays as it was.
pub(crate) fn cache_write<B: ModelBackend>(device: B::Device) {
    let cache = Tensor::<B, 3>::zeros([2, 3, 2], &device);
    let rows = Tensor::<B, 2>::from_data([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device)
        .narrow(0, 1, 3);
    let written = B::cache_write(
        cache.clone().into_primitive().tensor(),
        rows.into_primitive().tensor(),
        &[
            CacheWrite {
                tokens: 0..2,
                slot: 1,
                start: 1,
            },
            CacheWrite {
                tokens: 2..3,
                slot: 0,
                start: 0,
            },
        ],
    );
    let written = Tensor::<B, 3>::from_primitive(TensorPrimitive::Float(written));
    assert_eq!(
        host(written),
        [5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    );
    assert_eq!(host(cache), [0.0; 12]);
}

/// Every operation at sizes that reach the parallel paths (more than 16,384 floats), in odd widths.
pub(crate) fn large<B: ModelBackend, R: ModelBackend>(
    device: &B::Device,
    reference: &R::Device,
    tolerance: f32,
) {
    parity::<B, R, _>(
        RmsNorm {
            tokens: 201,
            hidden: 333,
        },
        device,
        reference,
        tolerance,
    );
    parity::<B, R, _>(
        LayerNorm {
            tokens: 201,
            hidden: 333,
        },
        device,
        reference,
        tolerance,
    );
    for form in [Gelu::Erf, Gelu::Tanh] {
        let (tokens, width) = (149, 331);
        let case = GeluOf {
            form,
            tokens,
            width,
        };
        parity::<B, R, _>(case, device, reference, tolerance);
    }
    parity::<B, R, _>(
        Rope {
            tokens: 203,
            heads: 5,
            half: 13,
            rest: 29,
        },
        device,
        reference,
        tolerance,
    );
    for gate in GATES {
        let (tokens, width) = (149, 331);
        let case = GatedUnit {
            gate,
            tokens,
            width,
        };
        parity::<B, R, _>(case, device, reference, tolerance);
    }
    let layout = HeadLayout {
        heads: 6,
        kv_heads: 2,
        head_dim: 23,
    };
    parity::<B, R, _>(
        Attention::of_lens(layout, &[70, 1, 33, 101]),
        device,
        reference,
        tolerance,
    );
    // Rows of several query blocks, with and without a context.
    let rows = vec![
        (150, None),
        (131, Some(0)),
        (1, Some(0)),
        (270, None),
        (128, Some(0)),
    ];
    for case in attentions(layout, &rows, &[7, 64, 100, 200]) {
        parity::<B, R, _>(case, device, reference, tolerance);
    }
    parity::<B, R, _>(
        Attention::of_rows(layout, rows),
        device,
        reference,
        tolerance,
    );
    // Rows of several blocks of keys: 512 and more before the first query, and just one fewer.
    let narrow = HeadLayout {
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
    };
    let rows = vec![
        (511, None),
        (130, Some(0)),
        (512, None),
        (600, Some(2)),
        (1200, None),
    ];
    // Windows of a part of a block of keys, and of more than one.
    for case in attentions(narrow, &rows, &[40, 513, 700]) {
        parity::<B, R, _>(case, device, reference, tolerance);
    }
    parity::<B, R, _>(
        Attention::of_rows(narrow, rows),
        device,
        reference,
        tolerance,
    );
    let logprob = |tokens, vocab| TokenLogprob {
        tokens,
        hidden: 67,
        vocab,
        temperature: 0.9,
        largest: 9.0,
    };
    parity::<B, R, _>(logprob(301, 1013), device, reference, tolerance);
    parity::<B, R, _>(Entropy(logprob(301, 1013)), device, reference, tolerance);
    // And of more rows than one cube of a GPU's kernel adds up.
    for (tokens, inputs, groups) in [(107, 75, 9), (1100, 21, 2)] {
        let lora = LoraLinear {
            tokens,
            inputs,
            outputs: 35 * groups,
            parts: parts(groups),
        };
        parity::<B, R, _>(lora, device, reference, tolerance);
    }
}
