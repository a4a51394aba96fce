//! From the log-probabilities of labels to preferences and grades.

/// Probabilities of some labels among themselves, given the log-probability of each, nats: a softmax. `None` if no label has any
/// probability.
///
/// # Source
/// Lee et al. 2023, arXiv:2309.00267, section 2.1.
pub fn label_probabilities(logprobs: &[f64]) -> Option<Vec<f64>> {
    let best = logprobs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !best.is_finite() {
        return None;
    }
    let weights: Vec<f64> = logprobs.iter().map(|x| (x - best).exp()).collect();
    let sum: f64 = weights.iter().sum();
    Some(weights.into_iter().map(|weight| weight / sum).collect())
}

/// Log-probability of label `i` alone, given that of each label as the beginning of an answer: the labels `longer`, whose tokens begin
/// with those of `i` (`1` and `10` where each digit is a token), have their probability in that of `i`.
pub(super) fn own_logprob(begins: &[f64], i: usize, longer: impl Iterator<Item = usize>) -> f64 {
    let shares: f64 = longer.map(|j| (begins[j] - begins[i]).exp()).sum();
    // Rounding may make the rest negative.
    begins[i] + (1.0 - shares).max(0.0).ln()
}

/// Probability that response A is the better one: the mean of that with A shown first and that with A shown second.
///
/// `first`: probability of the first place when A is shown first; `second`: of the first place when B is.
///
/// # Source
/// Lee et al. 2023, arXiv:2309.00267, section 2.1.1.
pub fn preference(first: f64, second: f64) -> f64 {
    0.5 * (first + (1.0 - second))
}

/// `probability` within `bounds`.
///
/// # Source
/// Bai et al. 2022, arXiv:2212.08073, section 4.1: after a chain of thought probabilities are near 0 or 1, and are clamped to 0.4 to 0.6.
pub fn clamped(probability: f64, bounds: Option<(f64, f64)>) -> f64 {
    match bounds {
        Some((low, high)) => probability.clamp(low, high),
        None => probability,
    }
}

/// The expected grade among 1 to `probabilities.len()`, scaled to -1 to 1.
///
/// # Source
/// Lee et al. 2023, arXiv:2309.00267, section 2.2.2.
pub fn expected_grade(probabilities: &[f64]) -> f64 {
    let grades = probabilities.iter().enumerate();
    let expected: f64 = grades.map(|(i, p)| (i + 1) as f64 * p).sum();
    let span = probabilities.len() as f64 - 1.0;
    2.0 * (expected - 1.0) / span - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f64], want: &[f64]) {
        let near = got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(
            got.len() == want.len() && near,
            "{got:?}, expected {want:?}"
        );
    }

    #[test]
    fn two_labels_are_a_softmax() {
        // 0.3 and 0.1 of all answers: 0.75 and 0.25 among the two.
        let got = label_probabilities(&[0.3f64.ln(), 0.1f64.ln()]);
        close(&got.unwrap(), &[0.75, 0.25]);
        let got = label_probabilities(&[f64::NEG_INFINITY, -3.0]);
        close(&got.unwrap(), &[0.0, 1.0]);
        assert_eq!(label_probabilities(&[f64::NEG_INFINITY; 2]), None);
        // Both far below what f64 can hold as a probability.
        let got = label_probabilities(&[-2000.0, -2000.0 - 3f64.ln()]);
        close(&got.unwrap(), &[0.75, 0.25]);
    }

    #[test]
    fn a_grade_of_ten_is_not_one_too() {
        // Of the answers that begin with 1 (0.5), 0.2 go on with 0: 0.3 are 1.
        let begins = [0.5, 0.1, 0.2].map(f64::ln);
        let own = own_logprob(&begins, 0, [2].into_iter());
        close(&[own.exp()], &[0.3]);
        close(&[own_logprob(&begins, 1, std::iter::empty()).exp()], &[0.1]);
        // All of them do, but for rounding.
        assert_eq!(
            own_logprob(&[-1.0, -0.9999], 0, [1].into_iter()),
            f64::NEG_INFINITY
        );
    }

    #[test]
    fn orders_are_averaged_and_bias_cancels() {
        // A judge that always takes the first place says nothing about the responses.
        assert_eq!(preference(1.0, 1.0), 0.5);
        assert_eq!(preference(0.8, 0.4), 0.7);
        assert_eq!(clamped(0.93, Some((0.4, 0.6))), 0.6);
        assert_eq!(clamped(0.5, Some((0.4, 0.6))), 0.5);
        assert_eq!(clamped(0.93, None), 0.93);
    }

    #[test]
    fn grades_are_scaled_to_minus_one_to_one() {
        let at = |grade: usize| {
            let mut probabilities = [0.0; 10];
            probabilities[grade - 1] = 1.0;
            expected_grade(&probabilities)
        };
        close(&[at(1), at(10)], &[-1.0, 1.0]);
        // The mean of 1 to 10 is 5.5, the middle.
        close(&[expected_grade(&[0.1; 10])], &[0.0]);
        // 0.25 * 7 + 0.75 * 8 = 7.75: 2 * 6.75 / 9 - 1.
        let mut probabilities = [0.0; 10];
        (probabilities[6], probabilities[7]) = (0.25, 0.75);
        close(&[expected_grade(&probabilities)], &[0.5]);
    }
}
