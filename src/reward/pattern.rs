//! A regular expression as a reward.

use regex::Regex;

use super::{Completion, RewardSource};
use crate::error::Result;

/// 1 when the pattern matches anywhere in the response, else 0.
pub(super) struct Pattern {
    pub(super) regex: Regex,
}

impl RewardSource for Pattern {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        Ok(completions
            .iter()
            .map(|completion| f32::from(u8::from(self.regex.is_match(&completion.response))))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_score_one() {
        let mut source = Pattern {
            regex: Regex::new(r"\.$").unwrap(),
        };
        let completions = [" A sentence.", " no end"].map(|response| Completion {
            response: response.into(),
            ..Completion::default()
        });
        assert_eq!(source.score(&completions).unwrap(), [1.0, 0.0]);
    }
}
