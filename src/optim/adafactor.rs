//! Adafactor: second moments by row and column.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::pieces::{matrix, mean, parameter, piece, side_by_side};
use super::rule::arithmetic::scale;
use super::rule::{ParamForm, ParamUpdate, UpdateRule, UpdateStep, Updated};
use super::state::{StateSpec, StateTensor};
use crate::ops::{ModelBackend, unwrap, wrap};
use crate::settings::Settings;

/// Adafactor at the schedule's learning rate. Of a matrix it keeps a number for each row and for each column.
///
/// With `b = 1 - step^decay_rate` and `s = g^2 + eps1`, by tensor: `R <- b R + (1 - b) mean of s by row`, `C` likewise by column,
/// `u = g / sqrt(R C / mean(R))`; of a vector `V <- b V + (1 - b) s`, `u = g / sqrt(V)`. Then `u <- u / max(1, rms(u) / clip_threshold)`,
/// and `w <- (1 - lr decay) w - lr u`. With `scale_parameter` the rate is `lr max(eps2, rms(w))`; with `beta1` the step is a moving
/// average of `lr u`.
///
/// # Source
/// Shazeer and Stern 2018, arXiv:1804.04235, as `Adafactor` of transformers computes it without `relative_step`, whose rate is a
/// schedule: `optim="adafactor"` of its `Trainer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Adafactor {
    /// Root mean square of a step, before the learning rate, above which it is scaled down.
    pub clip_threshold: f64,
    /// Power of the step that is the share of the present in the second moment.
    pub decay_rate: f64,
    /// Decay of a first moment; `None` keeps none, which saves 4 bytes for each parameter.
    pub beta1: Option<f64>,
    /// Multiply the learning rate by the root mean square of the tensor.
    pub scale_parameter: bool,
    /// Added to the square of gradients, and the least scale of a tensor.
    pub eps: (f64, f64),
}

impl Default for Adafactor {
    fn default() -> Self {
        Self {
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            scale_parameter: false,
            eps: (1e-30, 1e-3),
        }
    }
}

/// A tensor in an update: matrices `[rows, columns]`, a vector as one row.
struct Part<B: ModelBackend> {
    value: Tensor<B, 2>,
    grad: Tensor<B, 2>,
    second: Second<B>,
    first: Option<Tensor<B, 2>>,
}

/// The second moment.
enum Second<B: ModelBackend> {
    /// Means by row, `[rows, 1]`, and by column, `[1, columns]`.
    Factored(Tensor<B, 2>, Tensor<B, 2>),
    /// Of each entry.
    Full(Tensor<B, 2>),
}

/// The scalars of an update.
struct Scalars {
    /// Share of the past in the second moment.
    past: f64,
    lr: f64,
    decay: f64,
}

impl Adafactor {
    fn step<B: ModelBackend>(
        &self,
        part: Part<B>,
        scalars: &Scalars,
    ) -> (Tensor<B, 2>, Second<B>, Option<Tensor<B, 2>>) {
        let Part {
            value,
            grad,
            second,
            first,
        } = part;
        let &Scalars { past, lr, decay } = scalars;
        let squares = grad.clone().square().add_scalar(self.eps.0);
        let moved = |old: Tensor<B, 2>, new: Tensor<B, 2>| {
            old.mul_scalar(past) + new.mul_scalar(1.0 - past)
        };
        let (update, second) = match second {
            Second::Factored(rows, columns) => {
                let rows = moved(rows, squares.clone().mean_dim(1));
                let columns = moved(columns, squares.mean_dim(0));
                let by_row = (rows.clone() / rows.clone().mean_dim(0)).sqrt().recip();
                let by_column = columns.clone().sqrt().recip();
                (grad * by_row * by_column, Second::Factored(rows, columns))
            }
            Second::Full(moment) => {
                let moment = moved(moment, squares);
                (grad * moment.clone().sqrt().recip(), Second::Full(moment))
            }
        };
        let rms = |x: Tensor<B, 2>| mean(x.square()).sqrt();
        let clip = rms(update.clone()).div_scalar(self.clip_threshold);
        // The rate of this tensor, `[1, 1]`.
        let mut rate = clip.clamp_min(1.0).recip().mul_scalar(lr);
        let mut keep = None;
        if self.scale_parameter {
            let size = rms(value.clone()).clamp_min(self.eps.1);
            keep = Some(size.clone().mul_scalar(-lr * decay).add_scalar(1.0));
            rate = rate * size;
        }
        let mut update = update * rate;
        let first = match (first, self.beta1) {
            (Some(old), Some(beta1)) => {
                update = old.mul_scalar(beta1) + update.mul_scalar(1.0 - beta1);
                Some(update.clone())
            }
            _ => None,
        };
        let kept = match keep {
            _ if decay == 0.0 => value,
            Some(keep) => value * keep,
            None => value.mul_scalar(1.0 - lr * decay),
        };
        (kept - update, second, first)
    }
}

impl UpdateRule for Adafactor {
    fn problems(&self, settings: &mut Settings) {
        settings.above_zero("clip_threshold", self.clip_threshold);
        let rate = self.decay_rate;
        let falls = (-1.0..0.0).contains(&rate);
        settings.must("decay_rate", falls, "at least -1 and below 0", rate);
        if let Some(beta1) = self.beta1 {
            let holds = (0.0..1.0).contains(&beta1);
            settings.must("beta1", holds, "at least 0 and below 1, or `None`", beta1);
        }
        settings.above_zero("eps.0", self.eps.0);
        settings.above_zero("eps.1", self.eps.1);
    }

    fn state(&self, form: &ParamForm) -> Vec<StateSpec> {
        let mut specs = match form.shape.as_slice() {
            [rows, columns] => vec![
                StateSpec::floats("row", &[form.pieces.len(), *rows]),
                StateSpec::floats("col", &[*columns]),
            ],
            shape => vec![StateSpec::floats("v", shape)],
        };
        if self.beta1.is_some() {
            specs.push(StateSpec::floats("m", &form.shape));
        }
        specs
    }

    fn update<B: ModelBackend>(
        &self,
        params: Vec<ParamUpdate<B>>,
        step: &UpdateStep<'_>,
    ) -> Vec<Updated<B>> {
        let past = 1.0 - (step.number as f64).powf(self.decay_rate);
        let update = |param| self.update_one::<B>(param, step.grad_scale, past);
        params.into_iter().map(update).collect()
    }
}

impl Adafactor {
    fn update_one<B: ModelBackend>(
        &self,
        param: ParamUpdate<B>,
        grad_scale: f64,
        past: f64,
    ) -> Updated<B> {
        let form = param.form.clone();
        let scalars = Scalars {
            past,
            lr: param.lr,
            decay: param.decay(),
        };
        let value = matrix::<B>(param.value, &form);
        let grad = matrix::<B>(scale::<B>(param.grad, grad_scale), &form);
        let [rows, columns] = value.dims();
        let mut state = param.state.into_iter().map(StateTensor::floats);
        let mut next = || state.next().expect("as many tensors as the rule asks for");
        let factored = form.shape.len() == 2;
        let second = match factored {
            true => [wrap::<B, 2>(next()), wrap::<B, 1>(next()).unsqueeze::<2>()],
            false => {
                let moment = matrix::<B>(next(), &form);
                [moment.clone(), moment]
            }
        };
        let first = self.beta1.map(|_| matrix::<B>(next(), &form));
        let (mut values, mut firsts) = (Vec::new(), Vec::new());
        let (mut by_row, mut by_column) = (Vec::new(), Vec::new());
        for (index, range) in form.pieces.iter().enumerate() {
            let [rows_of_all, moment] = &second;
            let part = Part {
                value: piece(&value, range),
                grad: piece(&grad, range),
                second: match factored {
                    true => {
                        let own = rows_of_all.clone().slice([index..index + 1, 0..rows]);
                        Second::Factored(own.reshape([rows, 1]), piece(moment, range))
                    }
                    false => Second::Full(piece(moment, range)),
                },
                first: first.as_ref().map(|first| piece(first, range)),
            };
            let (value, second, first) = self.step(part, &scalars);
            values.push(value);
            firsts.extend(first);
            match second {
                Second::Factored(rows_of_one, columns) => {
                    by_row.push(rows_of_one);
                    by_column.push(columns);
                }
                Second::Full(moment) => by_column.push(moment),
            }
        }
        let moment = side_by_side(by_column);
        let mut state = match factored {
            true => vec![
                unwrap(side_by_side(by_row).transpose()),
                unwrap(moment.reshape([columns])),
            ],
            false => vec![parameter(moment, &form)],
        };
        if !firsts.is_empty() {
            state.push(parameter(side_by_side(firsts), &form));
        }
        let state = state.into_iter().map(StateTensor::Floats).collect();
        (parameter(side_by_side(values), &form), state)
    }
}
