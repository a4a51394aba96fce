//! What a judge said of pairs, and sums over it.

use serde::{Deserialize, Serialize};

/// The pairs of one prompt: a line of the stage's log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct JudgedRow {
    pub(super) pairs: Vec<JudgedPair>,
}

/// What was said of a pair.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct JudgedPair {
    /// The two responses, by index.
    pub(super) responses: [usize; 2],
    /// The principle, by index.
    pub(super) principle: usize,
    /// How they were shown the first time.
    pub(super) shown: Option<[usize; 2]>,
    /// For each order asked: the probability of the label of the response shown first, if one of the labels was answered.
    pub(super) first: Vec<Option<f64>>,
    /// Probability that the first of `responses` is the better one, if the pair was answered.
    pub(super) probability: Option<f64>,
    /// Probability of both labels among all answers.
    pub(super) mass: f64,
    /// Whether an answer came without probabilities.
    pub(super) hard: bool,
    /// What the row says: above 0 if the first response is better, 0 if it does not say.
    pub(super) known: f64,
    /// Chains of thought, by order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) thoughts: Vec<String>,
    /// What was written in place of a label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
}

/// Sums over pairs.
#[derive(Debug, Default)]
pub(super) struct Tally {
    answered: usize,
    pub(super) unanswered: usize,
    /// Pairs asked in both orders.
    both: usize,
    /// Of these, those in which the same place was preferred in both.
    same_place: usize,
    /// Sum over orders of the probability of the first place.
    first: f64,
    orders: usize,
    confidence: f64,
    mass: f64,
    hard: usize,
    /// Answered pairs of which the row says which response is better, and those in which the judge agrees.
    known: usize,
    agreed: usize,
    /// The first text in place of a label.
    pub(super) odd_text: String,
}

impl Tally {
    pub(super) fn add(&mut self, row: &JudgedRow) {
        for pair in &row.pairs {
            let Some(probability) = pair.probability else {
                if self.unanswered == 0 {
                    self.odd_text = pair.text.clone().unwrap_or_default();
                }
                self.unanswered += 1;
                continue;
            };
            self.answered += 1;
            self.confidence += probability.max(1.0 - probability);
            self.mass += pair.mass;
            self.hard += usize::from(pair.hard);
            for first in pair.first.iter().flatten() {
                self.first += first;
                self.orders += 1;
            }
            if let [Some(one), Some(other)] = pair.first.as_slice() {
                self.both += 1;
                self.same_place += usize::from((*one > 0.5) == (*other > 0.5));
            }
            if pair.known != 0.0 {
                self.known += 1;
                self.agreed += usize::from((pair.known > 0.0) == (probability > 0.5));
            }
        }
    }

    /// The metrics of a step; those of which there is nothing to say are left out.
    pub(super) fn metrics(&self) -> Vec<(&'static str, f64)> {
        let share = |count: usize, of: usize| (of > 0).then(|| count as f64 / of as f64);
        let mean = |sum: f64, of: usize| (of > 0).then(|| sum / of as f64);
        let found = [
            ("judge/position_bias", share(self.same_place, self.both)),
            ("judge/first_share", mean(self.first, self.orders)),
            ("judge/confidence", mean(self.confidence, self.answered)),
            (
                "judge/label_mass",
                mean(self.mass, self.answered - self.hard),
            ),
            ("judge/agreement", share(self.agreed, self.known)),
            (
                "judge/unanswered",
                share(self.unanswered, self.unanswered + self.answered),
            ),
        ];
        let found = found.into_iter();
        found
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    /// What came of the stage, in words.
    pub(super) fn summary(&self, both_orders: bool) -> String {
        let percent = |count: usize, of: usize| 100.0 * count as f64 / of.max(1) as f64;
        let mut parts = Vec::new();
        if both_orders {
            parts.push(format!(
                "position bias {:.1} % of pairs",
                percent(self.same_place, self.both)
            ));
        }
        if self.known > 0 {
            parts.push(format!(
                "agrees with the rows in {:.1} % of {}",
                percent(self.agreed, self.known),
                self.known
            ));
        }
        if self.unanswered > 0 {
            parts.push(format!("{} pairs unanswered and left out", self.unanswered));
        }
        if self.hard > 0 {
            parts.push(format!(
                "{} pairs by the label written, without valid probabilities",
                self.hard
            ));
        }
        if parts.is_empty() {
            parts.push(format!("{} pairs answered", self.answered));
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bias_is_preferring_a_place_whoever_stands_there() {
        let pair = |first: [f64; 2], probability: f64, known: f64| JudgedPair {
            first: first.map(Some).to_vec(),
            probability: Some(probability),
            mass: 0.5,
            known,
            ..JudgedPair::default()
        };
        let mut tally = Tally::default();
        tally.add(&JudgedRow {
            pairs: vec![
                // The first place in both orders.
                pair([0.9, 0.7], 0.6, 1.0),
                // The same response in both orders.
                pair([0.8, 0.2], 0.8, -2.0),
                pair([0.1, 0.6], 0.25, 0.0),
                JudgedPair {
                    text: Some("hm".into()),
                    ..JudgedPair::default()
                },
            ],
        });
        let metrics = tally.metrics();
        let get = |name: &str| metrics.iter().find(|(key, _)| *key == name).unwrap().1;
        assert!((get("judge/position_bias") - 1.0 / 3.0).abs() < 1e-12);
        // (0.9 + 0.7 + 0.8 + 0.2 + 0.1 + 0.6) / 6.
        assert!((get("judge/first_share") - 0.55).abs() < 1e-12);
        // (0.6 + 0.8 + 0.75) / 3.
        assert!((get("judge/confidence") - 2.15 / 3.0).abs() < 1e-12);
        assert_eq!(get("judge/agreement"), 0.5);
        assert_eq!(get("judge/unanswered"), 0.25);
        assert_eq!(tally.odd_text, "hm");
        assert!(
            tally
                .summary(true)
                .starts_with("position bias 33.3 % of pairs; agrees")
        );
    }
}
