//! Muon: momentum, made orthogonal.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::adamw::AdamW;
use super::pieces::{matrix, mean, parameter, piece, side_by_side};
use super::rule::arithmetic::scale;
use super::rule::{ParamForm, ParamUpdate, UpdateRule, UpdateStep, Updated, update_apart};
use super::state::{StateSpec, StateTensor};
use crate::ops::{ModelBackend, unwrap, wrap};
use crate::params::ParamKind;
use crate::settings::Settings;

/// Coefficients of the quintic whose iteration moves all singular values towards 1.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Least norm that a momentum is divided by.
const EPS: f64 = 1e-7;

/// Muon for hidden matrices; AdamW, with [`OptimConfig`](super::OptimConfig)'s own settings, for embeddings, heads, norms and
/// biases. Weight decay is decoupled.
///
/// By tensor: `m <- momentum m + (1 - momentum) g`, `u = m` (with Nesterov's momentum `momentum m + (1 - momentum) g`), then `X = u / |u|` and
/// `ns_steps` times `X <- a X + (b A + c A A) X` with `A = X X^T`, and `w <- (1 - lr decay) w - lr adjust X`.
///
/// # Source
/// Jordan et al. 2024, kellerjordan.github.io/posts/muon; `torch.optim.Muon`, which multiplies in bfloat16 where this does in f32;
/// [`AdjustLr::MatchRmsAdamw`]: Liu et al. 2025, arXiv:2502.16982.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Muon {
    /// Decay of the momentum.
    pub momentum: f64,
    /// Take the gradient as it will be after the momentum.
    pub nesterov: bool,
    /// Newton-Schulz iterations.
    pub ns_steps: usize,
    /// How the learning rate of a matrix follows from its shape.
    pub adjust_lr: AdjustLr,
}

/// Factor on the learning rate of a matrix `[out, in]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AdjustLr {
    /// `0.2 sqrt(max(out, in))`: steps as long as AdamW's, so that one learning rate serves both.
    #[default]
    MatchRmsAdamw,
    /// `sqrt(max(1, out / in))`: PyTorch's default, whose learning rate is some 0.02.
    Original,
}

impl Default for Muon {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            nesterov: true,
            ns_steps: 5,
            adjust_lr: AdjustLr::default(),
        }
    }
}

impl AdjustLr {
    fn factor(self, [outputs, inputs]: [usize; 2]) -> f64 {
        let (outputs, inputs) = (outputs as f64, inputs as f64);
        match self {
            Self::MatchRmsAdamw => 0.2 * outputs.max(inputs).sqrt(),
            Self::Original => (outputs / inputs).max(1.0).sqrt(),
        }
    }
}

/// A matrix with the singular vectors of `x` and singular values near 1, of either orientation.
fn orthogonal<B: ModelBackend>(x: Tensor<B, 2>, steps: usize) -> Tensor<B, 2> {
    let [rows, columns] = x.dims();
    let upright = rows > columns;
    let x = if upright { x.transpose() } else { x };
    let entries = (rows * columns) as f64;
    let norm = mean(x.clone().square()).mul_scalar(entries).sqrt();
    let mut x = x / norm.clamp_min(EPS);
    let [a, b, c] = COEFFICIENTS;
    let product = |left: Tensor<B, 2>, right: Tensor<B, 2>| -> Tensor<B, 2> {
        wrap(B::f32_matmul(unwrap(left), unwrap(right)))
    };
    for _ in 0..steps {
        let gram = product(x.clone(), x.clone().transpose());
        let square = product(gram.clone(), gram.clone());
        let factor = gram.mul_scalar(b) + square.mul_scalar(c);
        x = x.clone().mul_scalar(a) + product(factor, x);
    }
    if upright { x.transpose() } else { x }
}

impl Muon {
    /// Whether a parameter is one that it makes orthogonal steps of.
    fn is_hidden(form: &ParamForm) -> bool {
        form.kind == ParamKind::Matrix
    }

    fn update_hidden<B: ModelBackend>(&self, param: ParamUpdate<B>, grad_scale: f64) -> Updated<B> {
        let form = param.form.clone();
        let (keep, lr) = (param.keep(), param.lr);
        let state = param.state.into_iter().next();
        let old = wrap::<B, 2>(state.expect("a momentum").floats());
        let grad = matrix::<B>(scale::<B>(param.grad, grad_scale), &form);
        let share = 1.0 - self.momentum;
        let momentum = old.mul_scalar(self.momentum) + grad.clone().mul_scalar(share);
        let direction = match self.nesterov {
            true => grad.mul_scalar(share) + momentum.clone().mul_scalar(self.momentum),
            false => momentum.clone(),
        };
        let steps = form.pieces.iter().map(|range| {
            let direction = piece(&direction, range);
            let [rows, columns] = direction.dims();
            let shape = match form.transposed {
                true => [columns, rows],
                false => [rows, columns],
            };
            orthogonal(direction, self.ns_steps).mul_scalar(lr * self.adjust_lr.factor(shape))
        });
        let steps = side_by_side(steps.collect());
        let value = matrix::<B>(scale::<B>(param.value, keep), &form) - steps;
        let state = vec![StateTensor::Floats(unwrap(momentum))];
        (parameter(value, &form), state)
    }
}

impl UpdateRule for Muon {
    fn problems(&self, settings: &mut Settings) {
        settings.below_one("momentum", self.momentum);
        let steps = self.ns_steps;
        settings.must("ns_steps", (1..100).contains(&steps), "from 1 to 99", steps);
    }

    fn state(&self, form: &ParamForm) -> Vec<StateSpec> {
        match Self::is_hidden(form) {
            true => vec![StateSpec::floats("momentum", &form.shape)],
            false => AdamW.state(form),
        }
    }

    fn update<B: ModelBackend>(
        &self,
        params: Vec<ParamUpdate<B>>,
        step: &UpdateStep<'_>,
    ) -> Vec<Updated<B>> {
        let hidden = |params: Vec<ParamUpdate<B>>| {
            let update = |param| self.update_hidden(param, step.grad_scale);
            params.into_iter().map(update).collect()
        };
        let others = |params| AdamW.update(params, step);
        update_apart(params, Self::is_hidden, hidden, others)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::NdArray;

    use super::*;

    /// After five iterations singular values lie between 0.68 and 1.13, whatever they were.
    #[test]
    fn singular_values_come_near_one() {
        let device = Default::default();
        // Rows at right angles of lengths 5 and 0.05: singular values are lengths.
        let x = Tensor::<NdArray, 2>::from_floats([[3.0, 4.0, 0.0], [0.04, -0.03, 0.0]], &device);
        for x in [x.clone(), x.transpose()] {
            let upright = x.dims()[0] == 3;
            let y = orthogonal(x, 5);
            let y = if upright { y.transpose() } else { y };
            let y: Vec<f32> = y.into_data().into_vec().unwrap();
            let dot: f32 = (0..3).map(|i| y[i] * y[i + 3]).sum();
            let lens = [0, 3].map(|r| (0..3).map(|i| y[r + i].powi(2)).sum::<f32>().sqrt());
            assert!(dot.abs() < 1e-5, "{y:?}");
            assert!(
                lens.iter().all(|len| (0.68..1.13).contains(len)),
                "{lens:?}"
            );
            assert!(
                (y[0] / y[1] - 0.75).abs() < 1e-4 && y[2].abs() < 1e-6,
                "{y:?}"
            );
        }
    }

    #[test]
    fn the_learning_rate_follows_from_the_shape() {
        let factor = |adjust: AdjustLr, shape| adjust.factor(shape);
        assert_eq!(factor(AdjustLr::MatchRmsAdamw, [100, 25]), 2.0);
        assert_eq!(factor(AdjustLr::MatchRmsAdamw, [25, 100]), 2.0);
        assert_eq!(factor(AdjustLr::Original, [100, 25]), 2.0);
        assert_eq!(factor(AdjustLr::Original, [25, 100]), 1.0);
    }
}
