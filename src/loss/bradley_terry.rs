//! Pairwise reward-model loss, two or K responses to a prompt.

use crate::host::{floats, indices};
use serde::{Deserialize, Serialize};

use burn::tensor::{Tensor, activation::log_sigmoid, backend::Backend};

/// Losses of reward models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardLoss {
    /// [`bradley_terry`]: every pair of a prompt's responses.
    #[default]
    BradleyTerry,
    /// [`best_of_k`](super::best_of_k): the best of a prompt's responses against all others at once.
    BestOfK,
    /// [`squared_error`](super::squared_error): the score of each response against its rating.
    Regression,
}

/// The comparisons among the responses of a micro-batch, prompt by prompt.
///
/// A response may be in many pairs but is scored once. All pairs of a prompt are in one batch element, as InstructGPT recommends
/// against over-fitting.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Comparisons {
    /// Index of each pair's preferred response.
    chosen: Vec<usize>,
    /// Index of each pair's rejected response.
    rejected: Vec<usize>,
    /// Margin of each pair.
    margins: Vec<f32>,
    /// Probability of each pair that the preferred response is the better one.
    probabilities: Vec<f32>,
    /// Number of pairs of each prompt, in order.
    group_sizes: Vec<usize>,
}

impl Comparisons {
    /// No comparisons.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a prompt with its pairs `(chosen, rejected, margin)`; the indices are into the scores of the micro-batch. A margin of
    /// 0 is the plain loss.
    ///
    /// # Panics
    /// If there is no pair, or a response is compared with itself.
    pub fn push_prompt(&mut self, pairs: impl IntoIterator<Item = (usize, usize, f32)>) {
        self.push_pairs(pairs, 1.0);
    }

    /// Adds a prompt with one pair of which `first` is the better response with this probability. The likelier one counts as
    /// preferred; at 1/2 neither does.
    ///
    /// # Panics
    /// If a response is compared with itself.
    pub fn push_soft_pair(&mut self, first: usize, second: usize, probability: f32) {
        match probability < 0.5 {
            true => self.push_pairs([(second, first, 0.0)], 1.0 - probability),
            false => self.push_pairs([(first, second, 0.0)], probability),
        }
    }

    fn push_pairs(
        &mut self,
        pairs: impl IntoIterator<Item = (usize, usize, f32)>,
        probability: f32,
    ) {
        let before = self.num_pairs();
        for (chosen, rejected, margin) in pairs {
            assert_ne!(
                chosen, rejected,
                "a response cannot be compared with itself"
            );
            self.chosen.push(chosen);
            self.rejected.push(rejected);
            self.margins.push(margin);
            self.probabilities.push(probability);
        }
        let size = self.num_pairs() - before;
        assert!(size > 0, "a prompt needs a comparison");
        self.group_sizes.push(size);
    }

    /// Adds the prompts of `other`, whose scores follow the first `first` of this.
    pub fn extend(&mut self, other: &Self, first: usize) {
        let moved = |places: &[usize]| -> Vec<usize> { places.iter().map(|i| first + i).collect() };
        self.chosen.extend(moved(&other.chosen));
        self.rejected.extend(moved(&other.rejected));
        self.margins.extend(&other.margins);
        self.probabilities.extend(&other.probabilities);
        self.group_sizes.extend(&other.group_sizes);
    }

    /// Number of prompts, the divisor of the summed loss.
    pub fn num_prompts(&self) -> usize {
        self.group_sizes.len()
    }

    /// Number of pairs.
    pub fn num_pairs(&self) -> usize {
        self.chosen.len()
    }

    /// Number of pairs of which one response is preferred: all but those with a probability of 1/2.
    pub fn num_decided(&self) -> usize {
        self.probabilities.iter().filter(|p| **p > 0.5).count()
    }

    /// Number of pairs whose preferred response has the higher score; a tie counts as wrong, and so does a pair of which none is
    /// preferred.
    ///
    /// # Panics
    /// If an index is not in `scores`.
    pub fn num_correct(&self, scores: &[f32]) -> usize {
        (self.pairs().zip(&self.probabilities))
            .filter(|((chosen, rejected), p)| **p > 0.5 && scores[*chosen] > scores[*rejected])
            .count()
    }

    /// Chosen and rejected response of each pair, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.chosen
            .iter()
            .copied()
            .zip(self.rejected.iter().copied())
    }

    /// The values of each pair's chosen and rejected response, both `[pairs]`.
    pub(super) fn sides<B: Backend>(&self, values: Tensor<B, 1>) -> (Tensor<B, 1>, Tensor<B, 1>) {
        let device = values.device();
        let pick = |places: &[usize]| values.clone().select(0, indices(places, &device));
        (pick(&self.chosen), pick(&self.rejected))
    }

    /// The share of each pair in its prompt's mean.
    pub fn pair_weights(&self) -> impl Iterator<Item = f32> + '_ {
        let sizes = self.group_sizes.iter();
        sizes.flat_map(|&size| std::iter::repeat_n(1.0 / size as f32, size))
    }

    /// The mean of `losses`, `[pairs]`, over each prompt's pairs, summed over prompts.
    pub(super) fn mean_per_prompt<B: Backend>(&self, losses: Tensor<B, 1>) -> Tensor<B, 1> {
        let weights: Vec<f32> = self.pair_weights().collect();
        let weights = floats(&weights, &losses.device());
        (losses * weights).sum()
    }
}

/// Bradley-Terry negative log-likelihood in nats: the mean over each prompt's pairs, summed over prompts.
///
/// `sum over prompts of 1/pairs * sum over pairs of -log sigmoid(score_chosen - score_rejected - margin)`.
/// With all pairs of K ranked responses, `pairs` is `C(K, 2)`. Each prompt weighs the same, however many pairs it has.
/// Equals `num_prompts * ln 2` when the model cannot tell responses apart.
///
/// A pair with a probability `p` below 1 costs the cross-entropy `-(p log sigmoid(lead) + (1 - p) log sigmoid(-lead))`, of which the lead's
/// best value is `logit(p)`.
///
/// # Shapes
/// - `scores`: `[responses]`
/// - returns: `[1]`
///
/// # Source
/// Soft labels: Bai et al. 2022, arXiv:2212.08073, section 4.1; Lee et al. 2023, arXiv:2309.00267, section 2.2.1. Stiennon et al. 2020, arXiv:2009.01325; K-wise: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al.
/// 2023, arXiv:2307.09288, eq. 2.
pub fn bradley_terry<B: Backend>(scores: Tensor<B, 1>, comparisons: &Comparisons) -> Tensor<B, 1> {
    let device = scores.device();
    let (chosen, rejected) = comparisons.sides(scores);
    let lead = chosen - rejected - floats(&comparisons.margins, &device);
    // log_sigmoid, not sigmoid().log(): the latter is -inf for leads below about -88.
    let losses = log_sigmoid(lead.clone()).neg();
    let doubts: Vec<f32> = comparisons.probabilities.iter().map(|p| 1.0 - p).collect();
    // log sigmoid(-x) = log sigmoid(x) - x: a second logarithm is not needed.
    let losses = match doubts.iter().any(|&doubt| doubt > 0.0) {
        true => losses + floats(&doubts, &device) * lead,
        false => losses,
    };
    comparisons.mean_per_prompt(losses)
}

/// How far scores are from averaging zero: `(score_chosen + score_rejected)^2`, the mean over each prompt's pairs, summed over
/// prompts.
///
/// # Shapes
/// - `scores`: `[responses]`
/// - returns: `[1]`
///
/// # Source
/// Eisenstein et al. 2023, arXiv:2312.09244, as TRL's `center_rewards_coefficient` weights it.
pub fn centring<B: Backend>(scores: Tensor<B, 1>, comparisons: &Comparisons) -> Tensor<B, 1> {
    let (chosen, rejected) = comparisons.sides(scores);
    comparisons.mean_per_prompt((chosen + rejected).powi_scalar(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::test_support::{check_gradient, gradient, on_each_backend, tensor, value};
    use burn::backend::Autodiff;
    use std::f32::consts::LN_2;

    fn one_pair(margin: f32) -> Comparisons {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, margin)]);
        comparisons
    }

    /// Responses 0..3 of one prompt, best first, and 3, 4 of another where 4 wins.
    fn kwise() -> Comparisons {
        let mut comparisons = Comparisons::new();
        comparisons.push_prompt([(0, 1, 0.0), (0, 2, 0.0), (1, 2, 0.0)]);
        comparisons.push_prompt([(4, 3, 0.0)]);
        comparisons
    }

    fn loss<B: Backend>(scores: &[f32], comparisons: &Comparisons) -> f32 {
        value(bradley_terry(tensor::<B>(scores), comparisons))
    }

    fn assert_close(got: f32, want: f32) {
        assert!((got - want).abs() < 1e-5, "{got}, expected {want}");
    }

    fn equal_scores_cost_ln_2_per_prompt<B: Backend>() {
        assert_close(loss::<B>(&[1.5, 1.5], &one_pair(0.0)), LN_2);
        assert_close(loss::<B>(&[0.25; 5], &kwise()), 2.0 * LN_2);
    }

    fn known_leads<B: Backend>() {
        // -log sigmoid(1) = ln(1 + e^-1); -log sigmoid(-2) = ln(1 + e^2)
        assert_close(loss::<B>(&[2.0, 1.0], &one_pair(0.0)), 0.313_262);
        assert_close(loss::<B>(&[0.0, 2.0], &one_pair(0.0)), 2.126_928);
    }

    fn a_margin_is_taken_off_the_lead<B: Backend>() {
        assert_close(loss::<B>(&[4.0, 1.0], &one_pair(2.0)), 0.313_262);
    }

    fn kwise_is_the_mean_over_a_prompts_pairs<B: Backend>() {
        // Leads 1, 2, 1 in the first prompt: (2 * .313262 + .126928) / 3 = .251151; lead -2 in the second: 2.126928.
        assert_close(loss::<B>(&[3.0, 2.0, 1.0, 2.0, 0.0], &kwise()), 2.378_079);
    }

    fn splitting_prompts_over_micro_batches_changes_nothing<B: Backend>() {
        let mut first = Comparisons::new();
        first.push_prompt([(0, 1, 0.0), (0, 2, 0.0), (1, 2, 0.0)]);
        let mut second = Comparisons::new();
        second.push_prompt([(1, 0, 0.0)]);
        let scores = [0.5, -1.0, 0.25, 2.0, 1.0];
        let split = loss::<B>(&scores[..3], &first) + loss::<B>(&scores[3..], &second);
        assert_close(loss::<B>(&scores, &kwise()), split);
    }

    fn soft_labels_cost_their_cross_entropy<B: Backend>() {
        // p = 0.75, lead 1: 0.75 * 0.313262 + 0.25 * 1.313262 = 0.563262; at logit(0.75) = ln 3 the entropy 0.562335.
        let soft = |probability| {
            let mut comparisons = Comparisons::new();
            comparisons.push_soft_pair(0, 1, probability);
            comparisons
        };
        assert_close(loss::<B>(&[2.0, 1.0], &soft(0.75)), 0.563_262);
        assert_close(loss::<B>(&[1.0, 2.0], &soft(0.25)), 0.563_262);
        assert_close(loss::<B>(&[3f32.ln(), 0.0], &soft(0.75)), 0.562_335);
        assert_close(loss::<B>(&[5.0, 1.0], &soft(0.5)), 2.018_15);
        // torch: BCEWithLogits(2 - 300, 0.875) = 260.75; hard labels are the plain loss.
        assert_close(loss::<B>(&[2.0, 300.0], &soft(0.875)), 260.75);
        assert_eq!(
            loss::<B>(&[0.3, 0.7], &soft(1.0)).to_bits(),
            loss::<B>(&[0.3, 0.7], &one_pair(0.0)).to_bits()
        );
        check_gradient::<B>(&[0.5, -0.25], |scores: Tensor<Autodiff<B>, 1>| {
            bradley_terry(scores, &soft(0.3))
        });
    }

    fn centring_is_the_squared_sum_of_a_pair<B: Backend>() {
        // Prompt 0: sums 5, 4, 3: (25 + 16 + 9) / 3; prompt 1: 2.
        let scores = [3.0, 2.0, 1.0, 2.0, 0.0];
        let got = value(centring(tensor::<B>(&scores), &kwise()));
        assert_close(got, 50.0 / 3.0 + 4.0);
        check_gradient::<B>(&[0.5, -1.0, 0.25, 2.0, 1.0], |scores| {
            centring(scores, &kwise())
        });
    }

    fn leads_of_hundreds_stay_finite<B: Backend>() {
        for lead in [80.0, 90.0, 200.0] {
            assert_close(loss::<B>(&[lead, 0.0], &one_pair(0.0)), 0.0);
            assert_close(loss::<B>(&[0.0, lead], &one_pair(0.0)), lead);
            // d/d chosen of -log sigmoid(-lead) = -1, and the mirror for the other.
            let at = [0.0, lead];
            let got = gradient::<B>(&at, |scores| bradley_terry(scores, &one_pair(0.0)));
            assert_eq!(got, [-1.0, 1.0]);
        }
    }

    fn gradients_match_central_differences<B: Backend>() {
        let scores = [0.5, -1.0, 0.25, 2.0, 1.0];
        check_gradient::<B>(&scores, |scores| bradley_terry(scores, &kwise()));
        check_gradient::<B>(&[0.5, -0.25], |scores: Tensor<Autodiff<B>, 1>| {
            bradley_terry(scores, &one_pair(0.75))
        });
    }

    on_each_backend!(
        equal_scores_cost_ln_2_per_prompt,
        known_leads,
        a_margin_is_taken_off_the_lead,
        soft_labels_cost_their_cross_entropy,
        centring_is_the_squared_sum_of_a_pair,
        kwise_is_the_mean_over_a_prompts_pairs,
        splitting_prompts_over_micro_batches_changes_nothing,
        leads_of_hundreds_stay_finite,
        gradients_match_central_differences,
    );

    #[test]
    fn accuracy_counts_strictly_higher_scores() {
        // Pairs (0,1) right, (0,2) tie, (1,2) wrong, (4,3) right.
        assert_eq!(kwise().num_correct(&[1.0, 0.0, 1.0, 0.0, 1.0]), 2);
        assert_eq!((kwise().num_pairs(), kwise().num_prompts()), (4, 2));
    }

    #[test]
    fn a_pair_of_equal_chances_is_neither_right_nor_wrong() {
        let mut comparisons = Comparisons::new();
        for (pair, probability) in [0.5, 0.25, 1.0].into_iter().enumerate() {
            comparisons.push_soft_pair(2 * pair, 2 * pair + 1, probability);
        }
        assert_eq!((comparisons.num_pairs(), comparisons.num_decided()), (3, 2));
        // The second response of the second pair is the likelier one.
        assert_eq!(comparisons.num_correct(&[1.0, 0.0, 1.0, 2.0, 0.0, 1.0]), 1);
    }

    #[test]
    #[should_panic(expected = "a prompt needs a comparison")]
    fn a_prompt_without_pairs_is_a_mistake() {
        Comparisons::new().push_prompt([]);
    }
}
