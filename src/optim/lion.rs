//! Lion: the sign of a moment that is mixed with the gradient.

use serde::{Deserialize, Serialize};

use super::rule::arithmetic::{combine, scale};
use super::rule::{ParamForm, ParamUpdate, UpdateRule, UpdateStep, Updated};
use super::state::{StateSpec, StateTensor};
use crate::ops::ModelBackend;
use crate::settings::Settings;

/// Lion with decoupled weight decay. Every entry moves by the learning rate, which is therefore set 3 to 10 times lower than
/// AdamW's, and the decay as many times higher.
///
/// `w <- (1 - lr decay) w - lr sign(beta1 m + (1 - beta1) g)`, then `m <- beta2 m + (1 - beta2) g`.
///
/// # Source
/// Chen et al. 2023, arXiv:2302.06675, algorithm 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lion {
    /// Share of the moment in the direction of the step.
    pub beta1: f64,
    /// Decay of the moment.
    pub beta2: f64,
}

impl Default for Lion {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.99,
        }
    }
}

impl UpdateRule for Lion {
    fn problems(&self, settings: &mut Settings) {
        settings.below_one("beta1", self.beta1);
        settings.below_one("beta2", self.beta2);
    }

    fn state(&self, form: &ParamForm) -> Vec<StateSpec> {
        vec![StateSpec::floats("m", &form.shape)]
    }

    fn update<B: ModelBackend>(
        &self,
        params: Vec<ParamUpdate<B>>,
        step: &UpdateStep<'_>,
    ) -> Vec<Updated<B>> {
        let update = |mut param: ParamUpdate<B>| {
            let (keep, lr) = (param.keep(), param.lr);
            let m = param.state.remove(0).floats();
            let grad = scale::<B>(param.grad, step.grad_scale);
            let mixed = combine::<B>((self.beta1, m.clone()), (1.0 - self.beta1, grad.clone()));
            let m = combine::<B>((self.beta2, m), (1.0 - self.beta2, grad));
            let value = combine::<B>((keep, param.value), (-lr, B::float_sign(mixed)));
            (value, vec![StateTensor::Floats(m)])
        };
        params.into_iter().map(update).collect()
    }
}
