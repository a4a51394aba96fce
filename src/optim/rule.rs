//! What an update rule is: the state that it keeps of a parameter, and one step of it.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::OptimConfig;
use super::state::{StateSpec, StateTensor};
use crate::ops::ModelBackend;
use crate::params::ParamKind;
use crate::settings::Settings;

/// What a parameter is, as far as its update depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamForm {
    /// What it is for.
    pub kind: ParamKind,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Columns (entries, for a vector) of each tensor of a file that it holds.
    pub pieces: Vec<Range<usize>>,
    /// Whether files hold `[out, in]` where it is `[in, out]`.
    pub transposed: bool,
}

impl ParamForm {
    /// A parameter that is one tensor of `shape`, as files hold it.
    pub fn of_file(kind: ParamKind, shape: &[usize]) -> Self {
        let columns = shape.last().copied().unwrap_or(1);
        Self {
            kind,
            shape: shape.to_vec(),
            pieces: std::iter::once(0..columns).collect(),
            transposed: false,
        }
    }

    /// Number of entries.
    pub fn num_entries(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A parameter to be updated.
#[derive(Debug)]
pub struct ParamUpdate<B: Backend> {
    /// Its numbers.
    pub value: FloatTensor<B>,
    /// Its gradient, before [`UpdateStep::grad_scale`].
    pub grad: FloatTensor<B>,
    /// What [`UpdateRule::state`] asks for, zeros at first.
    pub state: Vec<StateTensor<B>>,
    /// What it is.
    pub form: ParamForm,
    /// Learning rate.
    pub lr: f64,
    /// Weight decay, if it decays.
    pub weight_decay: f64,
    /// Whether it decays.
    pub decays: bool,
}

impl<B: ModelBackend> ParamUpdate<B> {
    /// Weight decay, 0 of what does not decay.
    pub(super) fn decay(&self) -> f64 {
        match self.decays {
            true => self.weight_decay,
            false => 0.0,
        }
    }

    /// Factor on its numbers before the update, by decoupled decay.
    pub(super) fn keep(&self) -> f64 {
        1.0 - self.lr * self.decay()
    }
}

/// What all parameters of an update share.
#[derive(Debug)]
pub struct UpdateStep<'a> {
    /// Number of the update, from 1 on.
    pub number: usize,
    /// Factor on gradients: clipping and loss normalisation.
    pub grad_scale: f64,
    /// For AdamW's settings, which several rules use.
    pub config: &'a OptimConfig,
}

/// An updated parameter: its numbers, and its state.
pub type Updated<B> = (FloatTensor<B>, Vec<StateTensor<B>>);

/// An update rule: its settings, as a recipe gives them.
pub trait UpdateRule {
    /// Notes settings that cannot be.
    fn problems(&self, settings: &mut Settings) {
        let _ = settings;
    }

    /// What it keeps of a parameter from one update to the next.
    fn state(&self, form: &ParamForm) -> Vec<StateSpec>;

    /// One update of all `params`; the results stand in their order.
    fn update<B: ModelBackend>(
        &self,
        params: Vec<ParamUpdate<B>>,
        step: &UpdateStep<'_>,
    ) -> Vec<Updated<B>>;
}

/// One update where `is_first` says which parameters one rule updates and not the other: each gets its own in one call, and results
/// stand in the order of `params`.
pub(super) fn update_apart<B: ModelBackend>(
    params: Vec<ParamUpdate<B>>,
    is_first: impl Fn(&ParamForm) -> bool,
    first: impl FnOnce(Vec<ParamUpdate<B>>) -> Vec<Updated<B>>,
    other: impl FnOnce(Vec<ParamUpdate<B>>) -> Vec<Updated<B>>,
) -> Vec<Updated<B>> {
    let of_first: Vec<bool> = params.iter().map(|param| is_first(&param.form)).collect();
    let (firsts, others): (Vec<_>, Vec<_>) =
        (params.into_iter()).partition(|param| is_first(&param.form));
    let (mut firsts, mut others) = (first(firsts).into_iter(), other(others).into_iter());
    let next = |of_first: bool| {
        if of_first {
            firsts.next()
        } else {
            others.next()
        }
    };
    of_first.into_iter().filter_map(next).collect()
}

/// Arithmetic on tensors of any rank.
pub(super) mod arithmetic {
    use burn::tensor::backend::Backend;
    use burn::tensor::ops::FloatTensor;

    /// `factor * x`.
    pub(in crate::optim) fn scale<B: Backend>(x: FloatTensor<B>, factor: f64) -> FloatTensor<B> {
        match factor == 1.0 {
            true => x,
            false => B::float_mul_scalar(x, (factor as f32).into()),
        }
    }

    /// `a x + b y`.
    pub(in crate::optim) fn combine<B: Backend>(
        (a, x): (f64, FloatTensor<B>),
        (b, y): (f64, FloatTensor<B>),
    ) -> FloatTensor<B> {
        B::float_add(scale::<B>(x, a), scale::<B>(y, b))
    }
}
