//! Stochastic gradient descent with momentum.

use serde::{Deserialize, Serialize};

use super::rule::arithmetic::{combine, scale};
use super::rule::{ParamForm, ParamUpdate, UpdateRule, UpdateStep, Updated};
use super::state::{StateSpec, StateTensor};
use crate::error::Problem;
use crate::ops::ModelBackend;
use crate::settings::Settings;

/// Gradient descent with momentum. Weight decay is added to the gradient, as in PyTorch.
///
/// With `d = g + decay w`: `m <- momentum m + d`, `w <- w - lr m`; with Nesterov's momentum `w <- w - lr (d + momentum m)`.
///
/// # Source
/// `torch.optim.SGD` without dampening; Sutskever et al. 2013.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sgd {
    /// Share of the last step in the next; 0 keeps no state.
    pub momentum: f64,
    /// Take the gradient as it will be after the momentum.
    pub nesterov: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self {
            momentum: 0.9,
            nesterov: false,
        }
    }
}

impl UpdateRule for Sgd {
    fn problems(&self, settings: &mut Settings) {
        settings.below_one("momentum", self.momentum);
        if self.nesterov && self.momentum == 0.0 {
            let problem = Problem::new("nesterov", "has no effect without momentum");
            settings.note(problem.with_help("e.g. `Sgd(momentum: 0.9, nesterov: true)`"));
        }
    }

    fn state(&self, form: &ParamForm) -> Vec<StateSpec> {
        match self.momentum > 0.0 {
            true => vec![StateSpec::floats("momentum", &form.shape)],
            false => Vec::new(),
        }
    }

    fn update<B: ModelBackend>(
        &self,
        params: Vec<ParamUpdate<B>>,
        step: &UpdateStep<'_>,
    ) -> Vec<Updated<B>> {
        let update = |mut param: ParamUpdate<B>| {
            let (decay, lr) = (param.decay(), param.lr);
            let mut direction = scale::<B>(param.grad, step.grad_scale);
            if decay > 0.0 {
                direction = combine::<B>((1.0, direction), (decay, param.value.clone()));
            }
            let mut state = Vec::new();
            if let Some(momentum) = param.state.pop() {
                let old = momentum.floats();
                let momentum = combine::<B>((self.momentum, old), (1.0, direction.clone()));
                direction = match self.nesterov {
                    true => combine::<B>((1.0, direction), (self.momentum, momentum.clone())),
                    false => momentum.clone(),
                };
                state.push(StateTensor::Floats(momentum));
            }
            (combine::<B>((1.0, param.value), (-lr, direction)), state)
        };
        params.into_iter().map(update).collect()
    }
}
