//! Several sources as one.

use super::{Completion, RewardSource};
use crate::error::{Error, Result};

/// `sum_i weight_i * score_i`.
pub(super) struct Sum {
    pub(super) terms: Vec<(f64, Box<dyn RewardSource>)>,
}

impl RewardSource for Sum {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let mut total = vec![0.0f64; completions.len()];
        for (at, (weight, source)) in self.terms.iter_mut().enumerate() {
            let scores = source.score(completions)?;
            if scores.len() != total.len() {
                return Err(Error::Reward {
                    name: format!("sum, term {}", at + 1),
                    message: format!("gave {} scores for {} responses", scores.len(), total.len()),
                });
            }
            for (sum, score) in total.iter_mut().zip(scores) {
                *sum += *weight * f64::from(score);
            }
        }
        Ok(total.into_iter().map(|score| score as f32).collect())
    }

    fn warnings(&self) -> Vec<String> {
        let terms = self.terms.iter();
        terms.flat_map(|(_, source)| source.warnings()).collect()
    }

    fn notes(&self) -> Vec<String> {
        let terms = self.terms.iter();
        terms.flat_map(|(_, source)| source.notes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::length::Length;
    use super::*;

    struct Broken;
    impl RewardSource for Broken {
        fn score(&mut self, _: &[Completion]) -> Result<Vec<f32>> {
            Ok(vec![1.0])
        }
    }

    #[test]
    fn weights_scores_and_checks_their_number() {
        let completions = ["a b", "a b c d"].map(|response| Completion {
            response: response.into(),
            ..Completion::default()
        });
        let length = |target| Box::new(Length { target }) as Box<dyn RewardSource>;
        let mut sum = Sum {
            terms: vec![(2.0, length(4)), (-0.5, length(2))],
        };
        // 2 * -0.5 - 0.5 * 0 and 2 * 0 - 0.5 * -1.
        assert_eq!(sum.score(&completions).unwrap(), [-1.0, 0.5]);
        sum.terms.push((1.0, Box::new(Broken)));
        let message = sum.score(&completions).unwrap_err().to_string();
        assert_eq!(
            message,
            "reward source sum, term 3: gave 1 scores for 2 responses"
        );
    }
}
