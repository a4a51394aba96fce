//! Several sources of one kind as one score.

use super::{Combine, Completion, RewardConfig, RewardSource};
use crate::error::{Problem, Result};

/// The mean or the worst of several scores, or their mean less a penalty for disagreement.
///
/// A policy that is optimised against one reward model finds its errors. Models that differ in seed or data seldom share them: where they
/// disagree, the score is less to be trusted.
///
/// # Source
/// Coste et al. 2023, arXiv:2310.02743: mean, worst-case, and uncertainty-weighted optimisation, which takes the variance where this takes the
/// standard deviation, so that the coefficient has no unit.
pub(super) struct Ensemble {
    pub(super) sources: Vec<Box<dyn RewardSource>>,
    pub(super) combine: Combine,
}

impl RewardSource for Ensemble {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let mut members = Vec::with_capacity(self.sources.len());
        for source in &mut self.sources {
            members.push(source.score(completions)?);
        }
        let of_one = |i: usize| {
            let scores: Vec<f64> = members.iter().map(|scores| f64::from(scores[i])).collect();
            self.combine.of(&scores) as f32
        };
        Ok((0..completions.len()).map(of_one).collect())
    }

    fn warnings(&self) -> Vec<String> {
        let sources = self.sources.iter();
        sources.flat_map(|source| source.warnings()).collect()
    }

    fn take_messages(&mut self) -> Vec<String> {
        let sources = self.sources.iter_mut();
        sources.flat_map(|source| source.take_messages()).collect()
    }

    fn notes(&self) -> Vec<String> {
        let sources = self.sources.iter();
        sources.flat_map(|source| source.notes()).collect()
    }
}

/// Problems of an ensemble, without those of its sources.
pub(super) fn problems(sources: &[RewardConfig], combine: Combine, place: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    if sources.len() < 2 {
        let count = match sources.len() {
            0 => "no sources",
            _ => "one source",
        };
        problems.push(
            Problem::new(
                format!("{place}.sources"),
                format!("an ensemble of {count}; expected at least two"),
            )
            .with_help("e.g. sources: [Learned(stage: \"rm1\"), Learned(stage: \"rm2\")]"),
        );
    }
    if let Combine::MeanMinusStd(coef) = combine
        && !(coef.is_finite() && coef > 0.0)
    {
        let message = format!("MeanMinusStd({coef}): expected a coefficient above 0");
        let problem = Problem::new(format!("{place}.combine"), message);
        problems.push(problem.with_help("for example MeanMinusStd(1.0)"));
    }
    problems
}

impl Combine {
    /// One score of several. The standard deviation is that of these scores, divided by their number.
    pub(super) fn of(self, scores: &[f64]) -> f64 {
        let count = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / count;
        match self {
            Self::Mean => mean,
            Self::Worst => scores.iter().copied().fold(f64::INFINITY, f64::min),
            Self::MeanMinusStd(coef) => {
                let squares = scores.iter().map(|score| (score - mean).powi(2));
                mean - coef * (squares.sum::<f64>() / count).sqrt()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::length::Length;
    use super::super::testing::completions;
    use super::*;

    #[test]
    fn disagreement_is_a_penalty() {
        // Mean 2, variance (1 + 0 + 1) / 3.
        let scores = [1.0, 2.0, 3.0];
        assert_eq!(Combine::Mean.of(&scores), 2.0);
        assert_eq!(Combine::Worst.of(&scores), 1.0);
        let got = Combine::MeanMinusStd(0.5).of(&scores);
        assert!((got - (2.0 - 0.5 * 0.816_496_580_9)).abs() < 1e-9, "{got}");
        assert_eq!(Combine::MeanMinusStd(3.0).of(&[1.5, 1.5]), 1.5);
    }

    #[test]
    fn members_score_the_same_responses() {
        let length = |target| Box::new(Length { target }) as Box<dyn RewardSource>;
        let mut ensemble = Ensemble {
            sources: vec![length(2), length(4)],
            combine: Combine::Worst,
        };
        let completions = completions(&["a b", "a b c d"]);
        // Of two words 0 and -1/2; of four -1 and 0.
        assert_eq!(ensemble.score(&completions).unwrap(), [-0.5, -1.0]);
        ensemble.combine = Combine::Mean;
        assert_eq!(ensemble.score(&completions).unwrap(), [-0.25, -0.5]);
        // Both deviate by 1/4 and by 1/2.
        ensemble.combine = Combine::MeanMinusStd(2.0);
        assert_eq!(ensemble.score(&completions).unwrap(), [-0.75, -1.5]);
    }
}
