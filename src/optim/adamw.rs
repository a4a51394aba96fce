//! AdamW: decoupled weight decay, two moments.

use burn::tensor::ops::FloatTensor;

use super::rule::{ParamForm, ParamUpdate, UpdateRule, UpdateStep, Updated};
use super::state::{StateSpec, StateTensor};
use crate::ops::{AdamWParam, AdamWStep, ModelBackend};

/// AdamW with moments in f32. Its settings are [`OptimConfig`](super::OptimConfig)'s own.
///
/// # Source
/// Loshchilov and Hutter 2019, arXiv:1711.05101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdamW;

impl UpdateRule for AdamW {
    fn state(&self, form: &ParamForm) -> Vec<StateSpec> {
        ["m", "v"]
            .map(|name| StateSpec::floats(name, &form.shape))
            .into()
    }

    fn update<B: ModelBackend>(
        &self,
        params: Vec<ParamUpdate<B>>,
        step: &UpdateStep<'_>,
    ) -> Vec<Updated<B>> {
        by_rates(params, |params, rates| {
            let params = params.into_iter().map(|param| AdamWParam {
                value: param.value,
                grad: param.grad,
                moments: pair(param.state),
                decays: param.decays,
            });
            let updated = B::adamw(params.collect(), adamw_step(step, rates));
            let state = |moments: [_; 2]| moments.map(StateTensor::Floats).into();
            (updated.into_iter())
                .map(|(value, moments)| (value, state(moments)))
                .collect()
        })
    }
}

/// Both moments.
///
/// # Panics
/// Unless the state is two tensors of floats.
pub(super) fn pair<B: ModelBackend>(state: Vec<StateTensor<B>>) -> [FloatTensor<B>; 2] {
    let moments: Vec<_> = state.into_iter().map(StateTensor::floats).collect();
    moments.try_into().expect("two moments")
}

/// Learning rate and weight decay of parameters that share them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SharedRates {
    lr: f64,
    weight_decay: f64,
}

/// The scalars of an update at these rates.
pub(super) fn adamw_step(step: &UpdateStep<'_>, rates: SharedRates) -> AdamWStep {
    let config = step.config;
    let (beta1, beta2) = (config.beta1, config.beta2);
    let power = step.number as i32;
    AdamWStep {
        lr: rates.lr as f32,
        beta1,
        beta2,
        eps: config.eps as f32,
        weight_decay: rates.weight_decay as f32,
        grad_scale: step.grad_scale as f32,
        bias_correction1: (1.0 - beta1.powi(power)) as f32,
        bias_correction2: (1.0 - beta2.powi(power)) as f32,
    }
}

/// Calls `update` once for all parameters that share their rates: for all of them, if there are no groups. The results stand in
/// the order of `params`.
pub(super) fn by_rates<B: ModelBackend>(
    params: Vec<ParamUpdate<B>>,
    mut update: impl FnMut(Vec<ParamUpdate<B>>, SharedRates) -> Vec<Updated<B>>,
) -> Vec<Updated<B>> {
    let mut shares: Vec<(SharedRates, Vec<usize>, Vec<ParamUpdate<B>>)> = Vec::new();
    for (place, param) in params.into_iter().enumerate() {
        let rates = SharedRates {
            lr: param.lr,
            weight_decay: param.weight_decay,
        };
        match shares.iter_mut().find(|(shared, ..)| *shared == rates) {
            Some((_, places, share)) => {
                places.push(place);
                share.push(param);
            }
            None => shares.push((rates, vec![place], vec![param])),
        }
    }
    let mut updated = Vec::new();
    for (rates, places, share) in shares {
        updated.extend(places.into_iter().zip(update(share, rates)));
    }
    updated.sort_by_key(|(place, _)| *place);
    updated.into_iter().map(|(_, updated)| updated).collect()
}
