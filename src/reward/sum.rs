//! Several sources as one.

use super::{Completion, RewardConfig, RewardSource, name};
use crate::error::Result;

/// `sum_i weight_i * score_i`.
pub(super) struct Sum {
    pub(super) terms: Vec<Term>,
}

/// A term of a sum.
pub(super) struct Term {
    name: String,
    weight: f64,
    source: Box<dyn RewardSource>,
    /// Its scores of the last call, before the weight.
    scores: Vec<f32>,
}

impl Term {
    /// A term with this name in metrics.
    pub(super) fn new(name: String, weight: f64, source: Box<dyn RewardSource>) -> Self {
        Self {
            name,
            weight,
            source,
            scores: Vec::new(),
        }
    }
}

impl RewardSource for Sum {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let mut total = vec![0.0f64; completions.len()];
        for term in &mut self.terms {
            let scores = term.source.score(completions)?;
            for (sum, &score) in total.iter_mut().zip(&scores) {
                *sum += term.weight * f64::from(score);
            }
            term.scores = scores;
        }
        Ok(total.into_iter().map(|score| score as f32).collect())
    }

    fn parts(&self) -> Vec<(String, Vec<f32>)> {
        (self.terms.iter())
            .map(|term| (term.name.clone(), term.scores.clone()))
            .collect()
    }

    fn warnings(&self) -> Vec<String> {
        let terms = self.terms.iter();
        terms.flat_map(|term| term.source.warnings()).collect()
    }

    fn take_messages(&mut self) -> Vec<String> {
        let terms = self.terms.iter_mut();
        terms.flat_map(|term| term.source.take_messages()).collect()
    }

    fn notes(&self) -> Vec<String> {
        let terms = self.terms.iter();
        terms.flat_map(|term| term.source.notes()).collect()
    }
}

/// Names of the terms of a sum in metrics: those of their sources, with a number from the second of a name on.
pub(super) fn part_names(terms: &[(f64, RewardConfig)]) -> Vec<String> {
    let names: Vec<String> = terms.iter().map(|(_, term)| name(term)).collect();
    (names.iter().enumerate())
        .map(|(at, name)| {
            match names[..at]
                .iter()
                .filter(|earlier| *earlier == name)
                .count()
            {
                0 => name.clone(),
                earlier => format!("{name}#{}", earlier + 1),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::length::Length;
    use super::*;

    #[test]
    fn scores_are_weighted() {
        let completions = ["a b", "a b c d"].map(|response| Completion {
            response: response.into(),
            ..Completion::default()
        });
        let term = |weight, target| {
            let name = format!("length({target})");
            Term::new(name, weight, Box::new(Length { target }))
        };
        let mut sum = Sum {
            terms: vec![term(2.0, 4), term(-0.5, 2)],
        };
        // 2 * -0.5 - 0.5 * 0 and 2 * 0 - 0.5 * -1.
        assert_eq!(sum.score(&completions).unwrap(), [-1.0, 0.5]);
        let parts = [
            ("length(4)".to_owned(), vec![-0.5, 0.0]),
            ("length(2)".to_owned(), vec![0.0, -1.0]),
        ];
        assert_eq!(sum.parts(), parts);
    }
}
