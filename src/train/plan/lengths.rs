//! Lengths of the rows of a data set, and the expected size of its largest batch.

use crate::data::{Comparisons, Example, Labelled, Prompt};

/// Lengths of one row, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::train) struct RowLength {
    /// All tokens.
    pub(in crate::train) tokens: usize,
    /// Tokens that pass through a model: responses to one prompt share the prompt.
    pub(in crate::train) passed: usize,
    /// Tokens whose log-probability is computed.
    pub(in crate::train) targets: usize,
}

impl RowLength {
    /// A row that shares no tokens with others.
    pub(in crate::train) fn alone(tokens: usize, targets: usize) -> Self {
        Self {
            tokens,
            passed: tokens,
            targets,
        }
    }
}

/// The lengths of a row to train on.
pub(super) fn of_example(item: &Example) -> RowLength {
    let targets = item.trained.iter().filter(|&&trained| trained).count();
    RowLength::alone(item.ids.len(), targets)
}

/// The lengths of a prompt.
pub(super) fn of_prompt(item: &Prompt) -> RowLength {
    RowLength::alone(item.ids.len(), 0)
}

/// The lengths of a labelled response.
pub(super) fn of_labelled(item: &Labelled) -> RowLength {
    RowLength::alone(item.ids.len(), item.ids.len() - item.prompt_len)
}

/// The lengths of the responses to a prompt.
pub(super) fn of_comparisons(item: &Comparisons) -> RowLength {
    let tokens: usize = item.responses.iter().map(Vec::len).sum();
    RowLength {
        tokens,
        passed: item.packed_len(),
        targets: tokens - item.responses.len() * item.prompt_len,
    }
}

/// The number of rows of a data set, and their lengths in a sample.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lengths {
    /// Number of rows.
    pub rows: u64,
    /// Mean length in tokens; zero for data that does not exist yet.
    pub mean: f64,
    /// Mean number of tokens of a row that pass through a model.
    pub(in crate::train) passed_mean: f64,
    /// For each row of the sample, the tokens that pass through a model.
    passed: Vec<usize>,
    /// Targets in the sample.
    targets: usize,
}

impl Lengths {
    /// Lengths of `rows` rows, given those of a sample.
    pub(in crate::train) fn new(rows: u64, sample: &[RowLength]) -> Self {
        let tokens: Vec<usize> = sample.iter().map(|row| row.tokens).collect();
        Self {
            rows,
            mean: mean(&tokens),
            passed_mean: mean(&sample.iter().map(|row| row.passed).collect::<Vec<_>>()),
            passed: sample.iter().map(|row| row.passed).collect(),
            targets: sample.iter().map(|row| row.targets).sum(),
        }
    }

    /// Lengths of rows that do not exist yet.
    pub(in crate::train) fn unseen(rows: u64, mean: f64) -> Self {
        Self {
            rows,
            mean,
            passed_mean: mean,
            ..Self::default()
        }
    }

    /// These rows and others, none of which exist yet.
    pub(in crate::train) fn with(self, others: Self) -> Self {
        let rows = self.rows + others.rows;
        let share = self.rows as f64 / rows.max(1) as f64;
        let mean = |a: f64, b: f64| a * share + b * (1.0 - share);
        Self {
            passed_mean: mean(self.passed_mean, others.passed_mean),
            ..Self::unseen(rows, mean(self.mean, others.mean))
        }
    }

    /// The same where rows are expected to be shorter than they may be at most: `passed` tokens of them pass through a model.
    pub(in crate::train) fn expecting(self, passed: f64) -> Self {
        Self {
            passed_mean: passed,
            ..self
        }
    }

    /// Tokens of all rows that pass through a model.
    pub(in crate::train) fn passed_tokens(&self) -> f64 {
        self.rows as f64 * self.passed_mean
    }

    /// Mean number of targets of a row; `None` if no row is known.
    pub(in crate::train) fn targets_mean(&self) -> Option<f64> {
        (!self.passed.is_empty()).then(|| self.targets as f64 / self.passed.len() as f64)
    }

    /// Expected number of targets among `passed` tokens; all of them if there is no sample.
    pub(in crate::train) fn targets_of(&self, passed: u64) -> u64 {
        match self.passed.iter().sum::<usize>() {
            0 => passed,
            seen => (passed as f64 * self.targets as f64 / seen as f64).ceil() as u64,
        }
    }

    /// Expected number of tokens of the largest of `batches` batches of `size` rows; `None` without a sample.
    ///
    /// The mean plus as many standard deviations as the expected maximum of that many normal numbers; at most the sum of the
    /// longest rows, if the sample holds all rows. The deviation is that of sampling without replacement.
    pub(in crate::train) fn largest(&self, size: usize, batches: u64) -> Option<usize> {
        if self.passed.is_empty() {
            return None;
        }
        let (n, mean) = (self.passed.len(), mean(&self.passed));
        let size = size.min(self.rows as usize);
        let squares = self.passed.iter().map(|&len| (len as f64 - mean).powi(2));
        let deviation = (squares.sum::<f64>() / n as f64).sqrt();
        let left = (self.rows as f64 - size as f64) / (self.rows as f64 - 1.0).max(1.0);
        let batch_deviation = deviation * (size as f64 * left).sqrt();
        let expected = size as f64 * mean + normal_maximum(batches) * batch_deviation;
        let mut most = usize::MAX;
        if n as u64 == self.rows {
            let mut longest = self.passed.clone();
            longest.sort_unstable_by(|a, b| b.cmp(a));
            most = longest.iter().take(size).sum();
        }
        Some((expected.round() as usize).min(most))
    }
}

/// Expected maximum of `count` standard normal numbers, within 0.03.
///
/// # Source
/// Blom 1958, the quantile at `(n - 3/8) / (n + 1/4)`; Abramowitz and Stegun 1964, 26.2.23, for the quantile (within 4.5e-4).
fn normal_maximum(count: u64) -> f64 {
    let n = count.max(1) as f64;
    let above = 0.625 / (n + 0.25);
    let t = (-2.0 * above.ln()).sqrt();
    let fraction = (2.515517 + t * (0.802853 + t * 0.010328))
        / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
    t - fraction
}

fn mean(lens: &[usize]) -> f64 {
    lens.iter().sum::<usize>() as f64 / lens.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tokens: usize) -> RowLength {
        RowLength::alone(tokens, tokens / 10)
    }

    #[test]
    fn the_largest_batch_is_above_the_mean() {
        let sample = [10, 20, 30, 40].map(row);
        let of = |rows| Lengths::new(rows, &sample);
        assert_eq!(of(100).mean, 25.0);
        // One batch: the mean. Of eight: 25 * 4 + 1.434 * sqrt(125) * sqrt(4 * 96 / 99) = 131.57.
        assert_eq!(of(100).largest(4, 1), Some(100));
        assert_eq!(of(100).largest(4, 8), Some(132));
        // All rows were seen: no two are longer than 70, and there is one batch of four.
        assert_eq!(of(4).largest(2, 1000), Some(70));
        assert_eq!(of(4).largest(4, 1000), Some(100));
        assert_eq!(of(4).largest(9, 2), Some(100));
        assert_eq!(Lengths::unseen(7, 3.0).largest(4, 8), None);
    }

    #[test]
    fn targets_are_a_share_of_what_passes() {
        let lengths = Lengths::new(100, &[10, 20, 30, 40].map(row));
        assert_eq!(lengths.targets_of(250), 25);
        assert_eq!(Lengths::unseen(7, 3.0).targets_of(250), 250);
    }

    /// Expected maxima of 2, 8, 100 and 1,000 normal numbers: 1 / sqrt(pi), and integrals of `n x pdf cdf^(n - 1)`.
    #[test]
    fn normal_maxima_are_the_known_ones() {
        for (count, expected) in [(2, 0.5642), (8, 1.4236), (100, 2.5076), (1000, 3.2414)] {
            let maximum = normal_maximum(count);
            assert!((maximum - expected).abs() < 0.03, "{count}: {maximum}");
        }
        assert!(normal_maximum(1).abs() < 1e-3);
    }
}
