//! The check of the scores of every source, in one place for all that ask sources.

use super::{Completion, RewardConfig, RewardSource, name};
use crate::error::{Error, Result};

/// Longest part of a response that a message shows, in characters.
const MOST_SHOWN: usize = 80;

/// A source whose scores are one finite number for each response, or an error that names the source and the response.
///
/// Sources of sources are made of checked ones: the smaller of a number and NaN is the number, so that an ensemble would not show what
/// one of its members gave.
pub(super) struct Checked {
    name: String,
    advice: &'static str,
    source: Box<dyn RewardSource>,
}

impl Checked {
    pub(super) fn new(config: &RewardConfig, source: Box<dyn RewardSource>) -> Self {
        Self {
            name: name(config),
            advice: advice(config),
            source,
        }
    }

    fn error(&self, message: String) -> Error {
        Error::Reward {
            name: self.name.clone(),
            message,
        }
    }
}

impl RewardSource for Checked {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let scores = self.source.score(completions)?;
        if scores.len() != completions.len() {
            return Err(self.error(format!(
                "gave {} scores for {} responses",
                scores.len(),
                completions.len()
            )));
        }
        let broken = completions
            .iter()
            .zip(&scores)
            .find(|(_, score)| !score.is_finite());
        let Some((completion, score)) = broken else {
            return Ok(scores);
        };
        Err(self.error(format!(
            "a score is not finite: the response {} has {score}. {}",
            shown(&completion.response),
            self.advice
        )))
    }

    fn parts(&self) -> Vec<(String, Vec<f32>)> {
        self.source.parts()
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

/// What to do about a source whose score is not finite.
fn advice(config: &RewardConfig) -> &'static str {
    match config {
        RewardConfig::Learned { .. }
        | RewardConfig::LogProbability { .. }
        | RewardConfig::Classifier { .. } => {
            "Its model computes that: its weights may hold numbers that are not finite, or too large ones"
        }
        RewardConfig::Sum(_)
        | RewardConfig::Ensemble { .. }
        | RewardConfig::Safest { .. }
        | RewardConfig::LengthPenalty { .. } => {
            "The scores that it is made of are finite: lower its weights and coefficients, as a score has 32 bits"
        }
        _ => "Mend the source: it has to give a number that fits in 32 bits",
    }
}

/// A response in quotes, shortened.
fn shown(response: &str) -> String {
    let start: String = response.chars().take(MOST_SHOWN).collect();
    match start.len() < response.len() {
        true => format!("{start:?}.."),
        false => format!("{start:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::completions;
    use super::super::{CustomRewards, ModelReward, build};
    use super::*;

    struct Fixed(Vec<f32>);
    impl RewardSource for Fixed {
        fn score(&mut self, _: &[Completion]) -> Result<Vec<f32>> {
            Ok(self.0.clone())
        }
    }

    /// The error of a source in which the reward models `a` and `b` give these scores to two responses.
    fn error(config: &str, a: [f32; 2], b: &[f32]) -> String {
        let config: RewardConfig = ron::from_str(config).unwrap();
        let mut with_model = |source: ModelReward<'_>| -> Result<Box<dyn RewardSource>> {
            Ok(Box::new(Fixed(match source {
                ModelReward::Learned("a") => a.to_vec(),
                _ => b.to_vec(),
            })))
        };
        let mut source = build(&config, &CustomRewards::default(), &mut with_model).unwrap();
        let found = source.score(&completions(&["hi there", &"x".repeat(81)]));
        found.unwrap_err().to_string()
    }

    #[test]
    fn a_member_that_gives_no_number_is_named() {
        let (a, b) = ("Learned(stage: \"a\")", "Learned(stage: \"b\")");
        let expected = "reward source learned(b): a score is not finite: the response \"hi there\" has NaN. Its model computes that: its \
                        weights may hold numbers that are not finite, or too large ones";
        for config in [
            format!("Ensemble(sources: [{a}, {b}], combine: Worst)"),
            format!("Safest(helpful: {a}, safety: {b})"),
            format!("Safest(helpful: {b}, safety: {a})"),
            format!("Sum([(1.0, {a}), (0.0, {b})])"),
            format!("LengthPenalty(source: {b}, coef: 0.5)"),
            b.to_owned(),
        ] {
            assert_eq!(
                error(&config, [1.0, 2.0], &[f32::NAN, 2.0]),
                expected,
                "{config}"
            );
        }
        let long = error(b, [0.0; 2], &[0.0, f32::NEG_INFINITY]);
        let response = format!("the response \"{}\".. has -inf. Its model", "x".repeat(80));
        assert!(long.contains(&response), "{long}");
    }

    #[test]
    fn what_overflows_by_its_coefficients_is_named_itself() {
        let found = error(
            "Sum([(1e38, Learned(stage: \"a\"))])",
            [1.0, 1e38],
            &[0.0; 2],
        );
        assert!(
            found.contains("*learned(a): a score is not finite"),
            "{found}"
        );
        assert!(
            found.contains("lower its weights and coefficients"),
            "{found}"
        );
    }

    #[test]
    fn each_response_has_a_score() {
        let found = error("Learned(stage: \"b\")", [0.0; 2], &[1.0]);
        assert_eq!(
            found,
            "reward source learned(b): gave 1 scores for 2 responses"
        );
    }
}
