//! A penalty for length on another source's score.

use super::{Completion, LengthUnit, RewardSource};
use crate::error::Result;

/// `score - coef * max(0, length - beyond)`.
///
/// Reward models often prefer longer responses of the same quality; with `beyond: 0` each word costs the same, and with a limit only those
/// beyond it do.
///
/// # Source
/// Singhal et al. 2023, arXiv:2310.03716, study how length and reward go together, and penalties for length among the remedies.
pub(super) struct LengthPenalty {
    pub(super) source: Box<dyn RewardSource>,
    pub(super) unit: LengthUnit,
    pub(super) beyond: usize,
    pub(super) coef: f64,
}

impl RewardSource for LengthPenalty {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let scores = self.source.score(completions)?;
        let penalised = |(completion, score): (&Completion, f32)| {
            let excess = self.unit.length(completion).saturating_sub(self.beyond);
            (f64::from(score) - self.coef * excess as f64) as f32
        };
        Ok(completions.iter().zip(scores).map(penalised).collect())
    }

    fn warnings(&self) -> Vec<String> {
        self.source.warnings()
    }

    fn take_messages(&mut self) -> Vec<String> {
        self.source.take_messages()
    }

    fn notes(&self) -> Vec<String> {
        self.source.notes()
    }
}

impl LengthUnit {
    /// The length of a response.
    fn length(self, completion: &Completion) -> usize {
        match self {
            Self::Words => completion.response.split_whitespace().count(),
            Self::Tokens => completion.response_ids.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::completions;
    use super::*;

    #[test]
    fn words_or_tokens_beyond_the_limit_cost() {
        let mut source = LengthPenalty {
            source: Box::new(|all: &[Completion]| Ok(vec![1.0; all.len()])),
            unit: LengthUnit::Words,
            beyond: 2,
            coef: 0.25,
        };
        let mut completions = completions(&["", "one two", " one  two three four "]);
        completions[1].response_ids = vec![7; 4];
        assert_eq!(source.score(&completions).unwrap(), [1.0, 1.0, 0.5]);
        source.unit = LengthUnit::Tokens;
        assert_eq!(source.score(&completions).unwrap(), [1.0, 0.5, 1.0]);
        source.beyond = 0;
        assert_eq!(source.score(&completions).unwrap(), [1.0, 0.0, 1.0]);
    }
}
