//! AdamW with moments in 8 bits.

use super::adamw::{AdamW, adamw_step, by_rates};
use super::rule::{ParamForm, ParamUpdate, UpdateRule, UpdateStep, Updated, update_apart};
use super::state::{StateSpec, StateTensor};
use crate::ops::{AdamW8bitParam, BLOCK, ByteMoment, ModelBackend};

/// Parameters with fewer entries keep their moments in f32: they are few, and norms and biases among them.
const SMALLEST: usize = 4096;

/// AdamW with both moments in 8 bits, rounded by blocks of 256 entries; the update itself is computed in f32. Its settings are
/// [`OptimConfig`](super::OptimConfig)'s own.
///
/// # Source
/// Dettmers et al. 2022, arXiv:2110.02861; `AdamW8bit` of bitsandbytes with `min_8bit_size=4096`. Blocks run along the parameter as it
/// is held here, `[in, out]` for a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdamW8bit;

impl AdamW8bit {
    fn is_small(form: &ParamForm) -> bool {
        form.num_entries() < SMALLEST
    }
}

/// A moment of the two tensors that hold it.
fn moment<B: ModelBackend>(state: &mut impl Iterator<Item = StateTensor<B>>) -> ByteMoment<B> {
    let mut next = || state.next().expect("two tensors for each moment");
    ByteMoment {
        words: next().words(),
        absmax: next().floats(),
    }
}

impl UpdateRule for AdamW8bit {
    fn state(&self, form: &ParamForm) -> Vec<StateSpec> {
        if Self::is_small(form) {
            return AdamW.state(form);
        }
        let blocks = form.num_entries().div_ceil(BLOCK);
        vec![
            StateSpec::bytes("m.codes", blocks),
            StateSpec::floats("m.absmax", &[blocks]),
            StateSpec::bytes("v.codes", blocks),
            StateSpec::floats("v.absmax", &[blocks]),
        ]
    }

    fn update<B: ModelBackend>(
        &self,
        params: Vec<ParamUpdate<B>>,
        step: &UpdateStep<'_>,
    ) -> Vec<Updated<B>> {
        let few = |params| AdamW.update(params, step);
        let many = |params| {
            by_rates(params, |params, rates| {
                let params = params.into_iter().map(|param| {
                    let mut state = param.state.into_iter();
                    AdamW8bitParam {
                        value: param.value,
                        grad: param.grad,
                        moments: [moment(&mut state), moment(&mut state)],
                        decays: param.decays,
                    }
                });
                let updated = B::adamw_8bit(params.collect(), adamw_step(step, rates));
                let tensors = |moment: ByteMoment<B>| {
                    [
                        StateTensor::Bytes(moment.words),
                        StateTensor::Floats(moment.absmax),
                    ]
                };
                let state = |moments: [_; 2]| moments.into_iter().flat_map(tensors).collect();
                (updated.into_iter())
                    .map(|(value, moments)| (value, state(moments)))
                    .collect()
            })
        };
        update_apart(params, Self::is_small, few, many)
    }
}
