//! Losses of single scores: against ratings, and against labels.

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, backend::Backend};

use crate::host::{floats, indices};

/// Numbers that single responses are to reach, prompt by prompt.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Targets {
    /// Index of each response that has one.
    places: Vec<usize>,
    values: Vec<f32>,
    /// The share of each in its prompt's mean.
    weights: Vec<f32>,
}

impl Targets {
    /// Adds a prompt with `(index, target)` of its responses that have a target; the indices are into the scores of the micro-batch.
    pub fn push_prompt(&mut self, targets: &[(usize, f32)]) {
        for &(place, value) in targets {
            self.places.push(place);
            self.values.push(value);
            self.weights.push(1.0 / targets.len() as f32);
        }
    }

    /// Whether no response has one.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Responses with their targets.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, f32)> + '_ {
        (self.places.iter().copied()).zip(self.values.iter().copied())
    }

    /// The scores of the responses with a target, the targets and the weights, all `[targets]`.
    fn of<B: Backend>(&self, scores: Tensor<B, 1>) -> [Tensor<B, 1>; 3] {
        let device = scores.device();
        [
            scores.select(0, indices(&self.places, &device)),
            floats(&self.values, &device),
            floats(&self.weights, &device),
        ]
    }
}

/// Squared error of scores: the mean over each prompt's responses of `(score - rating)^2`, summed over prompts.
///
/// # Shapes
/// - `scores`: `[responses]`
/// - returns: `[1]`
pub fn squared_error<B: Backend>(scores: Tensor<B, 1>, ratings: &Targets) -> Tensor<B, 1> {
    let [scores, ratings, weights] = ratings.of(scores);
    ((scores - ratings).powi_scalar(2) * weights).sum()
}

/// Binary cross-entropy in nats of labels in 0..1 with the scores as logits: the mean over each prompt's labelled responses, summed over
/// prompts; prompts without labels add nothing.
///
/// The auxiliary loss of a safety reward model, whose score is then the logit of the probability that a response is safe.
///
/// # Shapes
/// - `scores`: `[responses]`
/// - returns: `[1]`
///
/// # Source
/// Touvron et al. 2023, arXiv:2307.09288, appendix A.3.4, which gives neither formula nor weight: this is the classification that its threshold on
/// the reward's sigmoid reads.
pub fn classification<B: Backend>(scores: Tensor<B, 1>, labels: &Targets) -> Tensor<B, 1> {
    let [logits, labels, weights] = labels.of(scores);
    // -(y log s(x) + (1 - y) log s(-x)) with log s(-x) = log s(x) - x.
    let losses = log_sigmoid(logits.clone()).neg() + (labels.neg() + 1.0) * logits;
    (losses * weights).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{check_gradient, on_each_backend, tensor, value};

    fn targets() -> Targets {
        let mut targets = Targets::default();
        targets.push_prompt(&[(0, 1.0), (2, 0.0)]);
        targets.push_prompt(&[]);
        targets.push_prompt(&[(3, 1.0)]);
        targets
    }

    fn assert_close(got: f32, want: f32) {
        assert!((got - want).abs() < 1e-5, "{got}, expected {want}");
    }

    fn ratings_are_met_by_squares<B: Backend>() {
        let scores = [3.0, 9.0, -1.0, 0.5];
        // (4 + 1) / 2 + 0.25; the response without a rating does not count.
        assert_close(value(squared_error(tensor::<B>(&scores), &targets())), 2.75);
        check_gradient::<B>(&scores, |scores| squared_error(scores, &targets()));
    }

    fn labels_cost_their_cross_entropy<B: Backend>() {
        let scores = [2.0, 9.0, -1.0, -0.5];
        // torch.nn.functional.binary_cross_entropy_with_logits: 0.126928 and 0.313262, mean 0.220095; 0.974077.
        assert_close(
            value(classification(tensor::<B>(&scores), &targets())),
            1.194_172,
        );
        // A certain mistake costs its logit.
        let mut wrong = Targets::default();
        wrong.push_prompt(&[(0, 0.0)]);
        assert_close(value(classification(tensor::<B>(&[200.0]), &wrong)), 200.0);
        wrong.push_prompt(&[(1, 1.0)]);
        assert_close(
            value(classification(tensor::<B>(&[-200.0, -200.0]), &wrong)),
            200.0,
        );
        check_gradient::<B>(&scores, |scores| classification(scores, &targets()));
    }

    on_each_backend!(ratings_are_met_by_squares, labels_cost_their_cross_entropy);
}
