//! How long the rows of a data set are, and how many tokens meet in a batch of them.

/// A data set's rows, and what is known of their lengths from a sample.
#[derive(Debug, Clone, Default)]
pub(super) struct Lengths {
    /// Rows in all.
    pub(super) rows: u64,
    /// Mean length in tokens; zero for data that are not there yet.
    pub(super) mean: f64,
    /// What passes through a model of each row in the sample: responses to one prompt pass with the prompt once.
    passed: Vec<usize>,
}

impl Lengths {
    /// Of `rows` rows, some of which are so long and so long in a pass.
    pub(super) fn new(rows: u64, lens: &[usize], passed: Vec<usize>) -> Self {
        Self {
            rows,
            mean: mean(lens),
            passed,
        }
    }

    /// Of rows that are not there yet.
    pub(super) fn unseen(rows: u64, mean: f64) -> Self {
        Self {
            rows,
            mean,
            passed: Vec::new(),
        }
    }

    /// The tokens that the largest of `draws` batches of `size` rows is expected to have, `None` if no row was seen: as many
    /// standard deviations above the mean as the largest of so many normal numbers is, `sqrt(2 ln draws)`, but not more than
    /// the longest rows together, where all were seen.
    pub(super) fn largest(&self, size: usize, draws: u64) -> Option<usize> {
        if self.passed.is_empty() {
            return None;
        }
        let (n, mean) = (self.passed.len(), mean(&self.passed));
        let size = size.min(self.rows as usize);
        let squares = self.passed.iter().map(|&len| (len as f64 - mean).powi(2));
        let deviation = (squares.sum::<f64>() / n as f64).sqrt();
        let far = (2.0 * (draws.max(1) as f64).ln()).sqrt();
        let expected = size as f64 * mean + far * deviation * (size as f64).sqrt();
        let mut most = usize::MAX;
        if n as u64 == self.rows {
            let mut longest = self.passed.clone();
            longest.sort_unstable_by(|a, b| b.cmp(a));
            most = longest.iter().take(size).sum();
        }
        Some((expected as usize).min(most))
    }
}

fn mean(lens: &[usize]) -> f64 {
    lens.iter().sum::<usize>() as f64 / lens.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_batch_is_above_the_mean() {
        let lens = vec![10, 20, 30, 40];
        let of = |rows| Lengths::new(rows, &lens, lens.clone());
        assert_eq!(of(100).mean, 25.0);
        // One batch: the mean. Of eight: 25 * 4 + sqrt(2 ln 8) * sqrt(125) * 2 = 145.6.
        assert_eq!(of(100).largest(4, 1), Some(100));
        assert_eq!(of(100).largest(4, 8), Some(145));
        // All rows were seen: no two are longer than 70.
        assert_eq!(of(4).largest(2, 1000), Some(70));
        assert_eq!(of(4).largest(9, 2), Some(100));
        assert_eq!(Lengths::unseen(7, 3.0).largest(4, 8), None);
    }
}
