//! A target for a response's length.

use super::{Completion, RewardSource};
use crate::error::Result;

/// `-|words - target| / target`: 0 at the target, -1 for an empty response. Words are separated by white space.
pub(super) struct Length {
    pub(super) target: usize,
}

impl RewardSource for Length {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        Ok(completions
            .iter()
            .map(|completion| {
                let words = completion.response.split_whitespace().count();
                -(words.abs_diff(self.target) as f32) / self.target as f32
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_fall_with_the_distance() {
        let responses = ["", "one two", " one two three four ", "1 2 3 4 5 6"];
        let completions = responses.map(|response| Completion {
            response: response.into(),
            ..Completion::default()
        });
        let scores = Length { target: 4 }.score(&completions).unwrap();
        assert_eq!(scores, [-1.0, -0.5, 0.0, -0.5]);
    }
}
