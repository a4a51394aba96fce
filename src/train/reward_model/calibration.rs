//! Calibration of scores on held-out comparisons.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::data::{Comparisons, GOLD};
use crate::report::{AccuracyGroup, Calibration, GoldAgreement, ReliabilityBin};

/// Bins of the reliability curve, between 0.5 and 1.
const BINS: usize = 10;
/// Most different margins that have a group each; more are divided into as many groups of about equal size.
const MARGINS: usize = 6;

/// A held-out comparison.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScoredPair {
    /// Difference of the scores, chosen minus rejected.
    pub(super) lead: f64,
    /// Probability that the chosen response is the better one.
    pub(super) probability: f64,
    /// What the row says of how much better it is.
    pub(super) margin: f64,
    /// Difference of the lengths in tokens.
    pub(super) longer: i64,
    /// Difference of the known scores, if the row has them.
    pub(super) gold: Option<f64>,
}

/// The comparisons of a prompt with the scores of its responses; with `soft_labels` at the row's probability.
pub(super) fn scored_pairs<'a>(
    item: &'a Comparisons,
    scores: &'a [f32],
    soft_labels: bool,
) -> impl Iterator<Item = ScoredPair> + 'a {
    let number = |name: &str| item.labels.get(name)?.as_f64();
    let gold = (number(GOLD[0]).zip(number(GOLD[1]))).map(|(chosen, rejected)| chosen - rejected);
    let said = (item.judgements.chosen_probability).filter(|_| soft_labels);
    let len = |i: usize| item.responses[i].len() as i64;
    item.pairs.iter().map(move |&(chosen, rejected, margin)| {
        let pair = ScoredPair {
            lead: f64::from(scores[chosen]) - f64::from(scores[rejected]),
            probability: said.map_or(1.0, f64::from),
            margin: f64::from(margin),
            longer: len(chosen) - len(rejected),
            gold,
        };
        match pair.probability < 0.5 {
            true => pair.turned(),
            false => pair,
        }
    })
}

impl ScoredPair {
    /// The same with the rejected response as the chosen one.
    fn turned(self) -> Self {
        Self {
            lead: -self.lead,
            probability: 1.0 - self.probability,
            margin: self.margin,
            longer: -self.longer,
            gold: self.gold.map(|gold| -gold),
        }
    }

    /// Whether one of the responses is the better one.
    pub(super) fn is_decided(&self) -> bool {
        self.probability > 0.5
    }

    /// Whether the chosen response has the higher score.
    pub(super) fn is_right(&self) -> bool {
        self.lead > 0.0
    }
}

/// The calibration of scores on these comparisons.
pub(super) fn calibration(pairs: &[ScoredPair]) -> Calibration {
    let decided: Vec<ScoredPair> = (pairs.iter().copied())
        .filter(ScoredPair::is_decided)
        .collect();
    let leads: Vec<f64> = pairs.iter().map(|pair| pair.lead).collect();
    let longer: Vec<f64> = pairs.iter().map(|pair| pair.longer as f64).collect();
    let lengths = [
        ("chosen is shorter", Ordering::Less),
        ("of the same length", Ordering::Equal),
        ("chosen is longer", Ordering::Greater),
    ];
    Calibration {
        reliability: reliability(pairs),
        by_margin: by_margin(&decided),
        by_length: (lengths.iter())
            .filter_map(|(label, order)| {
                let is_in = |pair: &&ScoredPair| pair.longer.cmp(&0) == *order;
                group(label, decided.iter().filter(is_in))
            })
            .collect(),
        length_correlation: correlation(&leads, &longer),
        gold: gold(pairs),
    }
}

/// Comparisons by the probability of the preferred response; ties of the scores are left out.
fn reliability(pairs: &[ScoredPair]) -> Vec<ReliabilityBin> {
    let mut sums = [(0.0, 0.0, 0); BINS];
    for pair in pairs.iter().filter(|pair| pair.lead != 0.0) {
        let predicted = 1.0 / (1.0 + (-pair.lead.abs()).exp());
        let bin = (((predicted - 0.5) * 2.0 * BINS as f64) as usize).min(BINS - 1);
        let right = match pair.is_right() {
            true => pair.probability,
            false => 1.0 - pair.probability,
        };
        let (all_predicted, all_right, count) = &mut sums[bin];
        *all_predicted += predicted;
        *all_right += right;
        *count += 1;
    }
    (sums.iter().filter(|(.., count)| *count > 0))
        .map(|&(predicted, right, count)| ReliabilityBin {
            predicted: predicted / f64::from(count),
            right: right / f64::from(count),
            count: count as usize,
        })
        .collect()
}

/// Accuracy by margin; none if all margins are equal.
fn by_margin(pairs: &[ScoredPair]) -> Vec<AccuracyGroup> {
    let mut sorted = pairs.to_vec();
    sorted.sort_by(|a, b| a.margin.total_cmp(&b.margin));
    let mut groups: Vec<Vec<ScoredPair>> = Vec::new();
    for pair in sorted {
        match groups.last_mut() {
            Some(group) if group[0].margin == pair.margin => group.push(pair),
            _ => groups.push(vec![pair]),
        }
    }
    if groups.len() < 2 {
        return Vec::new();
    }
    if groups.len() > MARGINS {
        groups = merged(groups, pairs.len());
    }
    (groups.iter())
        .filter_map(|pairs| {
            let (low, high) = (pairs.first()?.margin, pairs.last()?.margin);
            let label = match low == high {
                true => format!("margin {}", short(low)),
                false => format!("margin {} to {}", short(low), short(high)),
            };
            group(&label, pairs.iter())
        })
        .collect()
}

/// Neighbouring groups of equal margins as [`MARGINS`] groups of about equal size.
fn merged(groups: Vec<Vec<ScoredPair>>, all: usize) -> Vec<Vec<ScoredPair>> {
    let mut merged: BTreeMap<usize, Vec<ScoredPair>> = BTreeMap::new();
    let mut before = 0;
    for group in groups {
        let place = (2 * before + group.len()) * MARGINS / (2 * all.max(1));
        before += group.len();
        merged.entry(place).or_default().extend(group);
    }
    merged.into_values().collect()
}

/// A margin with at most three decimals.
fn short(margin: f64) -> String {
    let text = format!("{margin:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn group<'a>(label: &str, pairs: impl Iterator<Item = &'a ScoredPair>) -> Option<AccuracyGroup> {
    let (mut right, mut count) = (0, 0);
    for pair in pairs {
        right += usize::from(pair.is_right());
        count += 1;
    }
    (count > 0).then(|| AccuracyGroup {
        label: label.to_owned(),
        accuracy: right as f64 / count as f64,
        count,
    })
}

fn gold(pairs: &[ScoredPair]) -> Option<GoldAgreement> {
    let known = pairs
        .iter()
        .filter_map(|pair| Some((pair.lead, pair.gold?)));
    let known: Vec<(f64, f64)> = known.filter(|(_, gold)| *gold != 0.0).collect();
    if known.is_empty() {
        return None;
    }
    let alike = known
        .iter()
        .filter(|(lead, gold)| lead * gold > 0.0)
        .count();
    let (leads, golds): (Vec<f64>, Vec<f64>) = known.iter().copied().unzip();
    Some(GoldAgreement {
        share: alike as f64 / known.len() as f64,
        correlation: correlation(&leads, &golds),
        count: known.len(),
    })
}

/// Pearson's correlation; `None` if either does not vary.
pub(super) fn correlation(xs: &[f64], ys: &[f64]) -> Option<f64> {
    let n = xs.len() as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
    let (x_mean, y_mean) = (mean(xs), mean(ys));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in xs.iter().zip(ys) {
        let (x, y) = (x - x_mean, y - y_mean);
        xx += x * x;
        yy += y * y;
        xy += x * y;
    }
    let scale = (xx * yy).sqrt();
    (scale > 0.0 && scale.is_finite()).then(|| xy / scale)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::Judgements;

    fn pair(lead: f64, margin: f64, longer: i64) -> ScoredPair {
        ScoredPair {
            lead,
            probability: 1.0,
            margin,
            longer,
            gold: None,
        }
    }

    #[test]
    fn the_curve_is_of_the_preferred_response() {
        // sigmoid(ln 3) = 0.75 and sigmoid(ln 9) = 0.9, in bins 5 and 8 of 0.05 each.
        let (some, much) = (3f64.ln() + 1e-9, 9f64.ln() + 1e-9);
        let pairs = [some, -some, some, much, 0.0].map(|lead| pair(lead, 0.0, 0));
        let got = reliability(&pairs);
        let found: Vec<(f64, f64, usize)> = (got.iter())
            .map(|bin| ((bin.predicted * 1e6).round() / 1e6, bin.right, bin.count))
            .collect();
        assert_eq!(found, [(0.75, 2.0 / 3.0, 3), (0.9, 1.0, 1)]);
        let soft = ScoredPair {
            probability: 0.7,
            ..pair(-some, 0.0, 0)
        };
        assert!((reliability(&[soft])[0].right - 0.3).abs() < 1e-12);
    }

    #[test]
    fn accuracy_is_grouped_by_margin_and_length() {
        let pairs = [
            pair(1.0, 2.0, 3),
            pair(-1.0, 0.25, -1),
            pair(0.5, 0.25, -2),
            pair(0.5, 2.0, 0),
            pair(-2.0, 2.0, 5),
        ];
        let got = calibration(&pairs);
        let of = |groups: &[AccuracyGroup]| -> Vec<(String, f64, usize)> {
            let groups = groups.iter();
            groups
                .map(|g| (g.label.clone(), g.accuracy, g.count))
                .collect()
        };
        assert_eq!(
            of(&got.by_margin),
            [
                ("margin 0.25".to_owned(), 0.5, 2),
                ("margin 2".to_owned(), 2.0 / 3.0, 3)
            ]
        );
        assert_eq!(
            of(&got.by_length),
            [
                ("chosen is shorter".to_owned(), 0.5, 2),
                ("of the same length".to_owned(), 1.0, 1),
                ("chosen is longer".to_owned(), 0.5, 2)
            ]
        );
        // Leads around -0.2: 1.2, -0.8, 0.7, 0.7, -1.8; lengths around 1: 2, -2, -3, -1, 4.
        // (2.4 + 1.6 - 2.1 - 0.7 - 7.2) / sqrt(6.3 * 34) = -6 / 14.635573.
        let length = got.length_correlation.unwrap();
        assert!((length + 0.409_960).abs() < 1e-5, "{length}");
        // A dozen margins make six groups.
        let many: Vec<ScoredPair> = (0..12).map(|i| pair(1.0, f64::from(i), 0)).collect();
        let groups = by_margin(&many);
        assert_eq!(groups.len(), MARGINS);
        assert_eq!(
            (groups[0].label.as_str(), groups[0].count),
            ("margin 0 to 1", 2)
        );
        assert!(by_margin(&many[..1]).is_empty());
    }

    #[test]
    fn soft_labels_turn_pairs_and_gold_is_read_from_labels() {
        let item = Comparisons {
            responses: vec![vec![1, 2, 3], vec![1]],
            prompt_len: 1,
            pairs: vec![(0, 1, 0.0)],
            labels: json!({"gold_chosen": 1, "gold_rejected": 3.5})
                .as_object()
                .unwrap()
                .clone(),
            judgements: Judgements {
                chosen_probability: Some(0.25),
                ..Judgements::default()
            },
        };
        let scores = [2.0, 1.0];
        let of = |soft| scored_pairs(&item, &scores, soft).next().unwrap();
        let (hard, soft) = (of(false), of(true));
        assert_eq!((hard.lead, hard.probability, hard.longer), (1.0, 1.0, 2));
        assert_eq!((soft.lead, soft.probability, soft.longer), (-1.0, 0.75, -2));
        assert_eq!((hard.gold, soft.gold), (Some(-2.5), Some(2.5)));
        let got = gold(&[hard, ScoredPair { lead: -1.0, ..hard }]).unwrap();
        assert_eq!((got.share, got.correlation, got.count), (0.5, None, 2));
        assert_eq!(gold(&[pair(1.0, 0.0, 0)]), None);
    }
}
