//! Metrics of a rollout and of an update, under the names of lm-human-preferences and the N+ code.
//!
//! All means are over real tokens or rows: a packed batch has no pads to count. The N+ code averages over padding too (and
//! counts the placeholder log-probability 1.0 there as negative entropy), so its numbers for short responses differ.

use super::KlTerm;
use super::rollout::{Objective, Samples};
use crate::tokens::Segments;

/// Mean over all values; 0 for none.
pub fn mean(values: &[f32]) -> f64 {
    moments(values).0
}

/// Biased variance over all values; 0 for none.
pub fn variance(values: &[f32]) -> f64 {
    moments(values).1
}

/// Mean and biased variance, in two passes.
pub(super) fn moments(values: &[f32]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares = values.iter().map(|&x| (f64::from(x) - mean).powi(2));
    (mean, squares.sum::<f64>() / n)
}

/// Sum over each row's positions: `[tokens] -> [rows]`.
///
/// # Panics
/// If `values` does not have one entry per token.
pub fn row_sums(values: &[f32], segments: &Segments) -> Vec<f32> {
    assert_eq!(values.len(), segments.num_tokens(), "tokens");
    (segments.iter())
        .map(|row| values[row].iter().map(|&x| f64::from(x)).sum::<f64>() as f32)
        .collect()
}

/// Share of the returns' variance that the values explain, `1 - var(returns - values) / var(returns)`; 0 when the returns
/// do not vary.
///
/// # Panics
/// If the lengths differ.
pub fn explained_variance(values: &[f32], returns: &[f32]) -> f64 {
    assert_eq!(values.len(), returns.len(), "value positions");
    let residuals: Vec<f32> = returns.iter().zip(values).map(|(r, v)| r - v).collect();
    let total = variance(returns);
    if total == 0.0 {
        return 0.0;
    }
    1.0 - variance(&residuals) / total
}

/// A rollout's objective: means over responses of per-response sums.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ObjectiveStats {
    /// `objective/kl`: KL to the reference in nats per response. Persistently negative values indicate an error.
    pub kl: f64,
    /// `objective/scores`: score per response, after the missing-EOS rule.
    pub scores: f64,
    /// `objective/non_score_reward`: the KL term as it enters the rewards, summed over a response.
    pub non_score_reward: f64,
    /// `objective/rlhf_reward`: `scores + non_score_reward`, what PPO maximises.
    pub rlhf_reward: f64,
    /// `val/response_length`: tokens per response, the EOS included.
    pub response_length: f64,
    /// `val/num_eos_tokens`: responses that ended with EOS.
    pub num_eos_tokens: usize,
}

impl ObjectiveStats {
    /// Names and values, as `metrics.jsonl` has them.
    pub fn metrics(&self) -> [(&'static str, f64); 6] {
        [
            ("objective/kl", self.kl),
            ("objective/scores", self.scores),
            ("objective/non_score_reward", self.non_score_reward),
            ("objective/rlhf_reward", self.rlhf_reward),
            ("val/response_length", self.response_length),
            ("val/num_eos_tokens", self.num_eos_tokens as f64),
        ]
    }
}

/// The objective of a rollout. Its `kl` is the plain estimator `logr`, which is reported whatever enters the rewards.
pub fn objective_stats(samples: &Samples, kl: &KlTerm) -> ObjectiveStats {
    let responses = samples.layout.responses();
    let scores = mean(&samples.scores);
    let paid = mean(&row_sums(&samples.kl(kl.estimator), responses));
    let non_score_reward = -kl.reward_coef() * paid;
    ObjectiveStats {
        kl: samples.mean_kl(),
        scores,
        non_score_reward,
        rlhf_reward: scores + non_score_reward,
        response_length: responses.num_tokens() as f64 / responses.num_rows().max(1) as f64,
        num_eos_tokens: samples.has_eos.iter().filter(|&&has| has).count(),
    }
}

/// Running sums over the minibatches of an update; every average is over tokens, so neither the minibatch nor the
/// micro-batch split changes it (the N+ code averages minibatch means).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateStats {
    num_tokens: usize,
    squared_changes: f64,
    clipped: usize,
    ratio_sum: f64,
    ratio_squares: f64,
    ratio_min: f64,
    ratio_max: f64,
    num_values: usize,
    values_clipped: usize,
}

impl Default for UpdateStats {
    fn default() -> Self {
        Self {
            num_tokens: 0,
            squared_changes: 0.0,
            clipped: 0,
            ratio_sum: 0.0,
            ratio_squares: 0.0,
            ratio_min: f64::INFINITY,
            ratio_max: f64::NEG_INFINITY,
            num_values: 0,
            values_clipped: 0,
        }
    }
}

impl UpdateStats {
    /// Adds the policy tokens of a micro-batch.
    ///
    /// # Shapes
    /// - `logprobs` (now), `old_logprobs` (of the rollout), `advantages`: `[response tokens]`
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_policy(
        &mut self,
        logprobs: &[f32],
        old_logprobs: &[f32],
        advantages: &[f32],
        objective: Objective,
    ) {
        assert_eq!(logprobs.len(), old_logprobs.len(), "response tokens");
        let changes = logprobs.iter().zip(old_logprobs);
        let changes: Vec<f64> = changes
            .map(|(&new, &old)| f64::from(new) - f64::from(old))
            .collect();
        self.add_ratios(&changes, &changes, advantages, objective);
    }

    /// The same with log ratios of another level than tokens ([`RatioLevel`](super::rollout::RatioLevel)).
    ///
    /// # Shapes
    /// - `changes` (of log-probabilities, nats), `log_ratios`, `advantages`: `[response tokens]`
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_ratios(
        &mut self,
        changes: &[f64],
        log_ratios: &[f64],
        advantages: &[f32],
        objective: Objective,
    ) {
        assert_eq!(changes.len(), log_ratios.len(), "response tokens");
        assert_eq!(changes.len(), advantages.len(), "response tokens");
        for ((&change, &log_ratio), &advantage) in changes.iter().zip(log_ratios).zip(advantages) {
            let ratio = log_ratio.exp();
            self.num_tokens += 1;
            self.squared_changes += change * change;
            // The clipped term is the larger loss: only then does it hold the policy back.
            let held = objective.is_clipped(ratio, f64::from(advantage));
            self.clipped += usize::from(held);
            // Sums are taken of ratio - 1, which keeps the variance exact near ratio 1.
            self.ratio_sum += ratio - 1.0;
            self.ratio_squares += (ratio - 1.0).powi(2);
            self.ratio_min = self.ratio_min.min(ratio);
            self.ratio_max = self.ratio_max.max(ratio);
        }
    }

    /// Adds the value positions of a micro-batch.
    ///
    /// # Shapes
    /// - `values` (now), `old_values` (of the rollout), `returns`: `[value positions]`
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_value(
        &mut self,
        values: &[f32],
        old_values: &[f32],
        returns: &[f32],
        cliprange_value: f64,
    ) {
        assert_eq!(values.len(), old_values.len(), "value positions");
        assert_eq!(values.len(), returns.len(), "value positions");
        for ((&value, &old), &target) in values.iter().zip(old_values).zip(returns) {
            let (value, old, target) = (f64::from(value), f64::from(old), f64::from(target));
            let clipped = value.clamp(old - cliprange_value, old + cliprange_value);
            self.num_values += 1;
            self.values_clipped += usize::from((clipped - target).abs() > (value - target).abs());
        }
    }

    /// Adds the sums of other tokens and value positions.
    pub fn merge(&mut self, other: &Self) {
        self.num_tokens += other.num_tokens;
        self.squared_changes += other.squared_changes;
        self.clipped += other.clipped;
        self.ratio_sum += other.ratio_sum;
        self.ratio_squares += other.ratio_squares;
        self.ratio_min = self.ratio_min.min(other.ratio_min);
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.num_values += other.num_values;
        self.values_clipped += other.values_clipped;
    }

    /// `policy/approxkl_avg`: `0.5 mean(change of logprob ^2)`, KL from the rollout's policy in nats per token.
    pub fn approxkl(&self) -> f64 {
        0.5 * self.squared_changes / self.num_tokens.max(1) as f64
    }

    /// `policy/clipfrac_avg`: share of tokens whose clipped term is the larger loss.
    pub fn clipfrac(&self) -> f64 {
        self.clipped as f64 / self.num_tokens.max(1) as f64
    }

    /// `val/ratio`: mean over tokens of new over old probability.
    pub fn ratio_mean(&self) -> f64 {
        1.0 + self.ratio_sum / self.num_tokens.max(1) as f64
    }

    /// `val/ratio_var`: its biased variance over tokens.
    pub fn ratio_var(&self) -> f64 {
        let n = self.num_tokens.max(1) as f64;
        (self.ratio_squares / n - (self.ratio_sum / n).powi(2)).max(0.0)
    }

    /// Smallest and largest ratio of a token; `None` before the first token.
    pub fn ratio_range(&self) -> Option<(f64, f64)> {
        (self.num_tokens > 0).then_some((self.ratio_min, self.ratio_max))
    }

    /// `val/clipfrac_avg`: share of value positions whose clipped term is the larger loss.
    pub fn value_clipfrac(&self) -> f64 {
        self.values_clipped as f64 / self.num_values.max(1) as f64
    }

    /// Names and values, as `metrics.jsonl` has them; `val/clipfrac_avg` only if there is a value function.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let (ratio_min, ratio_max) = self.ratio_range().unwrap_or((1.0, 1.0));
        let mut metrics = vec![
            ("policy/approxkl_avg", self.approxkl()),
            ("policy/clipfrac_avg", self.clipfrac()),
            ("val/ratio", self.ratio_mean()),
            ("val/ratio_var", self.ratio_var()),
            ("val/ratio_min", ratio_min),
            ("val/ratio_max", ratio_max),
        ];
        if self.num_values > 0 {
            metrics.push(("val/clipfrac_avg", self.value_clipfrac()));
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::{KlEstimator, KlIn, ResponseLayout};

    const CLIP: Objective = Objective::Clip {
        low: 0.2,
        high: 0.2,
    };

    fn assert_close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-6, "{got}, expected {want}");
    }

    #[test]
    fn moments_and_row_sums() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        // (4 + 1 + 9) / 3
        assert_close(variance(&[1.0, 2.0, 6.0]), 14.0 / 3.0);
        assert_eq!((mean(&[]), variance(&[])), (0.0, 0.0));
        let sums = row_sums(&[1.0, 2.0, 4.0], &Segments::from_lens([2, 0, 1]));
        assert_eq!(sums, [3.0, 0.0, 4.0]);
    }

    #[test]
    fn explained_variance_of_perfect_useless_and_harmful_values() {
        let returns = [1.0, 2.0, 3.0];
        assert_eq!(explained_variance(&returns, &returns), 1.0);
        assert_eq!(explained_variance(&[5.0; 3], &returns), 0.0);
        // Residuals -2, 0, 2: variance 8/3 against 2/3.
        assert_close(explained_variance(&[3.0, 2.0, 1.0], &returns), -3.0);
        assert_eq!(explained_variance(&[1.0, 2.0], &[4.0, 4.0]), 0.0);
    }

    /// Two responses of 2 and 1 tokens, `logr` 0.5, -0.2 and 1.5.
    fn samples() -> Samples {
        Samples {
            rows: vec![vec![3, 4, 5], vec![3, 4]],
            query_lens: vec![1, 1],
            layout: ResponseLayout::on_last_token(Segments::from_lens([2, 1])),
            has_eos: vec![true, false],
            scores: vec![2.0, -1.0],
            logprobs: vec![0.5, -0.2, 1.5],
            ref_logprobs: Some(vec![0.0; 3]),
        }
    }

    fn kl_term(coef: f64, estimator: KlEstimator) -> KlTerm {
        KlTerm {
            coef,
            estimator,
            place: KlIn::Reward,
        }
    }

    #[test]
    fn objective_sums_kl_over_each_response() {
        // Row KLs 0.3 and 1.5: mean 0.9; -0.05 * 0.9 = -0.045; scores mean 0.5.
        let got = objective_stats(&samples(), &kl_term(0.05, KlEstimator::K1));
        assert_close(got.kl, 0.9);
        assert_close(got.scores, 0.5);
        assert_close(got.non_score_reward, -0.045);
        assert_close(got.rlhf_reward, 0.455);
        assert_eq!((got.response_length, got.num_eos_tokens), (1.5, 1));
    }

    #[test]
    fn the_kl_term_is_that_of_the_estimator_in_the_rewards() {
        // k2 of the same tokens: 0.125 + 0.02 and 1.125, mean 0.635.
        let got = objective_stats(&samples(), &kl_term(0.1, KlEstimator::K2));
        assert_close(got.kl, 0.9);
        assert_close(got.non_score_reward, -0.0635);
        assert_close(got.rlhf_reward, 0.4365);
    }

    #[test]
    fn parts_that_are_merged_are_the_whole() {
        let (new, old) = ([-1.0, -2.0, -0.5, -3.0], [-1.5, -1.75, -0.6, -2.0]);
        let advantages = [1.0, -1.0, 0.5, -2.0];
        let of = |range: std::ops::Range<usize>| {
            let mut stats = UpdateStats::default();
            let part = |x: &[f32; 4]| x[range.clone()].to_vec();
            stats.add_policy(&part(&new), &part(&old), &part(&advantages), CLIP);
            stats.add_value(&part(&new), &part(&old), &part(&advantages), 0.2);
            stats
        };
        let (mut merged, whole) = (of(0..1), of(0..4));
        merged.merge(&of(1..4));
        assert!(whole.clipfrac() > 0.0 && whole.approxkl() > 0.0);
        for ((name, got), (_, want)) in merged.metrics().iter().zip(whole.metrics()) {
            assert!((got - want).abs() < 1e-12, "{name}: {got}, expected {want}");
        }
    }

    #[test]
    fn a_token_without_advantage_is_not_held_back() {
        let mut stats = UpdateStats::default();
        stats.add_policy(&[-0.1, -3.0], &[-3.0, -0.1], &[0.0, 0.0], CLIP);
        assert_eq!(stats.clipfrac(), 0.0);
    }

    #[test]
    fn before_the_first_update_ratio_is_one_and_approxkl_zero() {
        let logprobs = [-0.1, -3.0, -7.25];
        let mut stats = UpdateStats::default();
        stats.add_policy(&logprobs, &logprobs, &[1.0, -1.0, 2.0], CLIP);
        assert_eq!((stats.approxkl(), stats.clipfrac()), (0.0, 0.0));
        assert_eq!((stats.ratio_mean(), stats.ratio_var()), (1.0, 0.0));
        assert_eq!(stats.ratio_range(), Some((1.0, 1.0)));
    }

    #[test]
    fn policy_stats_at_ratios_with_a_closed_form() {
        // Ratios 1.5, 0.5, 1.5, 0.5 with advantages +, +, +, -: all but the second are held back.
        let (up, down) = (1.5f32.ln(), 0.5f32.ln());
        let mut stats = UpdateStats::default();
        stats.add_policy(
            &[up, down, up, down],
            &[0.0; 4],
            &[1.0, 1.0, 1.0, -1.0],
            CLIP,
        );
        assert_eq!(stats.clipfrac(), 0.75);
        assert_close(stats.ratio_mean(), 1.0);
        assert_close(stats.ratio_var(), 0.25);
        // 0.25 * (ln 1.5 ^2 + ln 0.5 ^2) = 0.25 * (0.164402 + 0.480453)
        assert_close(stats.approxkl(), 0.161_214);
        let (min, max) = stats.ratio_range().unwrap();
        assert_close(min, 0.5);
        assert_close(max, 1.5);
    }

    #[test]
    fn value_clipfrac_counts_where_the_clipped_square_is_larger() {
        let mut stats = UpdateStats::default();
        // Old 0, clip 0.2. V = 1: clipped to .2; target 1: (.8)^2 > 0, counts; target 0: .04 < 1, does not; V = .1: no clip;
        // V = -1, target -1 counts again.
        stats.add_value(
            &[1.0, 1.0, 0.1, -1.0],
            &[0.0; 4],
            &[1.0, 0.0, 5.0, -1.0],
            0.2,
        );
        assert_close(stats.value_clipfrac(), 0.5);
    }

    #[test]
    fn update_stats_do_not_depend_on_the_split() {
        let (new, old) = ([-1.0, -2.0, -0.5], [-1.5, -1.75, -0.5]);
        let (advantages, values) = ([1.0, -1.0, 0.5], [1.0, 0.5, -2.0]);
        let mut whole = UpdateStats::default();
        whole.add_policy(&new, &old, &advantages, CLIP);
        whole.add_value(&values, &old, &advantages, 0.2);
        let mut split = UpdateStats::default();
        for part in [0..2, 2..3] {
            split.add_policy(
                &new[part.clone()],
                &old[part.clone()],
                &advantages[part.clone()],
                CLIP,
            );
            split.add_value(
                &values[part.clone()],
                &old[part.clone()],
                &advantages[part],
                0.2,
            );
        }
        assert_eq!(whole, split);
    }
}
