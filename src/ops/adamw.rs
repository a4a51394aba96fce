//! The AdamW update of all parameters.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

/// Scalars of one AdamW update, bias corrections included.
///
/// # Source
/// Loshchilov and Hutter 2019, arXiv:1711.05101; `eps` as in PyTorch: `m_hat / (sqrt(v_hat) + eps)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment. In f64, so that `1 - beta` keeps its digits.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the corrected second moment.
    pub eps: f32,
    /// Decoupled weight decay of the parameters that decay.
    pub weight_decay: f32,
    /// Factor on the gradient (clipping and loss normalisation).
    pub grad_scale: f32,
    /// `1 - beta1^t`.
    pub bias_correction1: f32,
    /// `1 - beta2^t`.
    pub bias_correction2: f32,
}

/// A parameter with gradient and moments; all four tensors have one shape.
#[derive(Debug, Clone)]
pub struct AdamWParam<B: Backend> {
    /// Its values. Like the moments, updated in place if there is no other owner.
    pub value: FloatTensor<B>,
    /// Gradient, before [`AdamWStep::grad_scale`].
    pub grad: FloatTensor<B>,
    /// First and second moment.
    pub moments: [FloatTensor<B>; 2],
    /// Whether weight decay applies.
    pub decays: bool,
}

/// An updated parameter: its values and both moments.
pub type AdamWResult<B> = (FloatTensor<B>, [FloatTensor<B>; 2]);

impl AdamWStep {
    /// Decay factor on a parameter's values before the update.
    pub(super) fn keep(&self, decays: bool) -> f32 {
        match decays {
            true => 1.0 - self.lr * self.weight_decay,
            false => 1.0,
        }
    }

    /// Factors on old and new values, `(beta, 1 - beta)`, of both moments.
    pub(super) fn moment_factors(&self) -> [(f32, f32); 2] {
        [self.beta1, self.beta2].map(|beta| (beta as f32, (1.0 - beta) as f32))
    }
}

pub(super) fn portable<B: Backend>(param: AdamWParam<B>, s: AdamWStep) -> AdamWResult<B> {
    let AdamWParam {
        value,
        grad,
        moments: [m, v],
        decays,
    } = param;
    let scale = |t, factor: f32| B::float_mul_scalar(t, factor.into());
    let grad = scale(grad, s.grad_scale);
    let [(decay1, share1), (decay2, share2)] = s.moment_factors();
    let m = B::float_add(scale(m, decay1), scale(grad.clone(), share1));
    let v = B::float_add(
        scale(v, decay2),
        scale(B::float_mul(grad.clone(), grad), share2),
    );
    let root = B::float_sqrt(scale(v.clone(), 1.0 / s.bias_correction2));
    let update = B::float_div(
        scale(m.clone(), 1.0 / s.bias_correction1),
        B::float_add_scalar(root, s.eps.into()),
    );
    let value = scale(value, s.keep(decays));
    (B::float_sub(value, scale(update, s.lr)), [m, v])
}
