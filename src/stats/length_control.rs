//! Win rates without the share that is due to length.

use super::logistic::{Observation, PRIOR, fit, sigmoid};
use super::mean;

/// The win rate that a policy would have with responses as long as those it is compared with: `sigmoid(a)` of the logistic regression
/// `P(win) = sigmoid(a + b tanh(d / sd))`, with `d` the differences in length and `sd` their standard deviation. A tie is half a win.
///
/// Without differences in length it is the win rate. Both slices have an entry for each prompt.
///
/// # Source
/// Dubois et al. 2024, arXiv:2404.04475, section 3: AlpacaEval 2's regression without its term for the difficulty of an instruction, which
/// is fitted to the results of many models.
pub fn length_controlled(outcomes: &[f64], differences: &[f64]) -> f64 {
    assert_eq!(
        outcomes.len(),
        differences.len(),
        "a difference for each prompt"
    );
    let centre = mean(differences);
    let squares: Vec<f64> = differences.iter().map(|d| (d - centre).powi(2)).collect();
    let deviation = mean(&squares).sqrt();
    // With one length of difference throughout, its part cannot be told from the quality's.
    if outcomes.is_empty() || deviation <= f64::EPSILON * centre.abs() {
        return mean(outcomes);
    }
    let observations: Vec<Observation> = (outcomes.iter().zip(differences))
        .map(|(&outcome, d)| Observation {
            features: vec![(0, 1.0), (1, (d / deviation).tanh())],
            outcome,
            weight: 1.0,
        })
        .collect();
    sigmoid(fit(&observations, 2, PRIOR)[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longer response wins always, and each side is longer as often: without length nothing is left.
    #[test]
    fn wins_by_length_alone_are_taken_out() {
        let differences: Vec<f64> = (0..40).map(|i| if i < 20 { 5.0 } else { -5.0 }).collect();
        let outcomes: Vec<f64> = differences
            .iter()
            .map(|&d| f64::from(u8::from(d > 0.0)))
            .collect();
        let controlled = length_controlled(&outcomes, &differences);
        assert!((controlled - 0.5).abs() < 1e-6, "{controlled}");
        // As often as not at every length: nothing to take out.
        let outcomes: Vec<f64> = (0..40).map(|i| f64::from(i % 2)).collect();
        assert!((length_controlled(&outcomes, &differences) - 0.5).abs() < 1e-6);
        let same = vec![3.0; 4];
        assert_eq!(length_controlled(&[1.0, 1.0, 1.0, 0.0], &same), 0.75);
    }

    /// Two groups of 100, lengths +1 and -1 (standard deviation 1): win rates 0.8 and 0.6 have the logits 1.386294 and 0.405465, with the
    /// mean 0.895880, of which the logistic function is 0.710102.
    #[test]
    fn the_intercept_is_between_the_groups() {
        let mut outcomes = vec![1.0; 80];
        outcomes.extend([0.0; 20]);
        outcomes.extend([1.0; 60]);
        outcomes.extend([0.0; 40]);
        let differences: Vec<f64> = (0..200).map(|i| if i < 100 { 1.0 } else { -1.0 }).collect();
        let controlled = length_controlled(&outcomes, &differences);
        assert!((controlled - 0.710_102).abs() < 1e-5, "{controlled}");
    }
}
