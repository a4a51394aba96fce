//! Language-modelling loss.

use burn::tensor::{Tensor, backend::Backend};

/// Negative log-likelihood, `-sum(logprobs)`, in nats, summed over the trained positions.
///
/// Divide by the number of trained positions of the whole minibatch for the mean; its exponential is the perplexity.
///
/// # Shapes
/// - `logprobs`: `[trained positions]`, log-probability of each trained token
/// - returns: `[1]`
pub fn cross_entropy<B: Backend>(logprobs: Tensor<B, 1>) -> Tensor<B, 1> {
    logprobs.sum().neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{check_gradient, on_each_backend, tensor, value};

    fn sums_over_positions<B: Backend>() {
        let loss = |logprobs: &[f32]| value(cross_entropy(tensor::<B>(logprobs)));
        assert_eq!(loss(&[-0.5, -1.25, -2.0]), 3.75);
        // A certain token costs nothing, an impossible-looking one a lot, and both stay finite.
        assert_eq!(loss(&[0.0, -200.0]), 200.0);
        check_gradient::<B>(&[-0.5, -1.25], cross_entropy);
    }
    on_each_backend!(sums_over_positions);
}
