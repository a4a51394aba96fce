//! Reward-model loss for the choice of the best among K responses.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

/// Masks the logits of absent responses: its `exp` is zero beside any score, and being finite it avoids infinity minus infinity.
const ABSENT: f32 = -1e30;

/// The best response to each prompt, and the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choices {
    /// Indices into the scores of the micro-batch, by prompt; the best response is first.
    prompts: Vec<Vec<usize>>,
}

impl Choices {
    /// No choices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a prompt.
    ///
    /// # Panics
    /// If there are no other responses.
    pub fn push_prompt(&mut self, best: usize, others: impl IntoIterator<Item = usize>) {
        let responses: Vec<usize> = std::iter::once(best).chain(others).collect();
        assert!(responses.len() > 1, "a choice needs two responses");
        self.prompts.push(responses);
    }
}

/// Negative log-likelihood in nats of choosing the best response with probabilities `softmax(scores of the prompt)`, summed
/// over prompts. Equals the sum of `ln K` when the model cannot tell responses apart; with K = 2 it is the pairwise loss.
///
/// # Shapes
/// - `scores`: `[responses]`
/// - returns: `[1]`
///
/// # Source
/// Ziegler et al. 2019, arXiv:1909.08593, eq. 1, for K = 4.
pub fn best_of_k<B: Backend>(scores: Tensor<B, 1>, choices: &Choices) -> Tensor<B, 1> {
    let device = scores.device();
    let (prompts, most) = (
        choices.prompts.len(),
        choices.prompts.iter().map(Vec::len).max().unwrap_or(1),
    );
    let (mut at, mut mask) = (Vec::new(), Vec::new());
    for responses in &choices.prompts {
        let absent = most - responses.len();
        at.extend(responses.iter().map(|&index| index as i32));
        at.extend(std::iter::repeat_n(responses[0] as i32, absent));
        mask.extend(std::iter::repeat_n(0.0, responses.len()));
        mask.extend(std::iter::repeat_n(ABSENT, absent));
    }
    let shape = [prompts, most];
    let at = Tensor::<B, 1, Int>::from_data(TensorData::new(at, [prompts * most]), &device);
    let mask = Tensor::<B, 2>::from_data(TensorData::new(mask, shape), &device);
    let logits = scores.select(0, at).reshape(shape) + mask;
    log_softmax(logits, 1).narrow(1, 0, 1).sum().neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{check_gradient, gradient, on_each_backend, tensor, value};
    use crate::loss::{Comparisons, bradley_terry};
    use std::f32::consts::LN_2;

    /// Four responses of which 2 is the best, and two of which 4 is.
    fn choices() -> Choices {
        let mut choices = Choices::new();
        choices.push_prompt(2, [0, 1, 3]);
        choices.push_prompt(4, [5]);
        choices
    }

    fn loss<B: Backend>(scores: &[f32]) -> f32 {
        value(best_of_k(tensor::<B>(scores), &choices()))
    }

    fn assert_close(got: f32, want: f32) {
        assert!((got - want).abs() < 1e-5, "{got}, expected {want}");
    }

    fn equal_scores_cost_ln_k<B: Backend>() {
        assert_close(loss::<B>(&[1.5; 6]), 4f32.ln() + LN_2);
    }

    fn the_best_is_a_class_of_the_softmax<B: Backend>() {
        // ln(e^0 + e^1 + e^2 + e^-1) - 2 = 0.440190; a lead of -1: ln(1 + e) = 1.313262.
        assert_close(loss::<B>(&[0.0, 1.0, 2.0, -1.0, 0.5, 1.5]), 1.753_452);
    }

    fn of_two_it_is_the_pairwise_loss<B: Backend>() {
        let mut pair = Comparisons::new();
        pair.push_prompt([(1, 0, 0.0)]);
        let mut choice = Choices::new();
        choice.push_prompt(1, [0]);
        for scores in [[0.3, -0.8], [-2.0, 5.0], [80.0, -80.0]] {
            let want = value(bradley_terry(tensor::<B>(&scores), &pair));
            assert_close(value(best_of_k(tensor::<B>(&scores), &choice)), want);
        }
    }

    fn gradients_match_central_differences<B: Backend>() {
        let at = [0.5, -1.0, 0.25, 2.0, 1.0, -0.5];
        check_gradient::<B>(&at, |scores| best_of_k(scores, &choices()));
        // The softmax, minus one for the best: exact for any distance of scores.
        let got = gradient::<B>(&[-80.0, 80.0, -80.0, -80.0, 80.0, -80.0], |scores| {
            best_of_k(scores, &choices())
        });
        assert_eq!(got, [0.0, 1.0, -1.0, 0.0, 0.0, 0.0]);
    }

    on_each_backend!(
        equal_scores_cost_ln_k,
        the_best_is_a_class_of_the_softmax,
        of_two_it_is_the_pairwise_loss,
        gradients_match_central_differences,
    );
}
