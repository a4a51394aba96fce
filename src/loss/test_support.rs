//! Support for tests of losses: backends, literals and gradient checks.

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData, backend::Backend};

/// Declares a test that runs `$check::<B>()` on each CPU backend.
macro_rules! on_each_backend {
    ($($check:ident),+ $(,)?) => {
        mod on_flex {
            $(#[test]
            fn $check() {
                super::$check::<burn::backend::Flex>();
            })+
        }
        mod on_ndarray {
            $(#[test]
            fn $check() {
                super::$check::<burn::backend::NdArray>();
            })+
        }
    };
}
pub(super) use on_each_backend;

/// `values` on the default device.
pub(super) fn tensor<B: Backend>(values: &[f32]) -> Tensor<B, 1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, &B::Device::default())
}

/// All numbers of a tensor.
pub(super) fn values<B: Backend>(tensor: Tensor<B, 1>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().unwrap()
}

/// The one number of a loss.
pub(super) fn value<B: Backend>(tensor: Tensor<B, 1>) -> f32 {
    let [one] = values(tensor)[..] else {
        panic!("a loss is one number")
    };
    one
}

/// The gradient of `loss` at `at`.
pub(super) fn gradient<B: Backend>(
    at: &[f32],
    loss: impl Fn(Tensor<Autodiff<B>, 1>) -> Tensor<Autodiff<B>, 1>,
) -> Vec<f32> {
    let _lock = crate::guard::lock_gradients();
    let input = tensor::<Autodiff<B>>(at).require_grad();
    let grads = loss(input.clone()).backward();
    values(input.grad(&grads).unwrap())
}

/// Compares the gradient of `loss` at `at` with central differences.
///
/// The step 2^-7 leaves an error of about 1e-4 in f32 for losses of size 10; `at` must keep that far from a kink.
pub(super) fn check_gradient<B: Backend>(
    at: &[f32],
    loss: impl Fn(Tensor<Autodiff<B>, 1>) -> Tensor<Autodiff<B>, 1>,
) {
    let step = 0.0078125;
    for (i, got) in gradient::<B>(at, &loss).into_iter().enumerate() {
        let moved = |by: f32| {
            let mut at = at.to_vec();
            at[i] += by;
            value(loss(tensor(&at)))
        };
        let want = (moved(step) - moved(-step)) / (2.0 * step);
        assert!(
            (got - want).abs() < 5e-4 * want.abs().max(1.0),
            "input {i}: gradient {got}, central difference {want}"
        );
    }
}
