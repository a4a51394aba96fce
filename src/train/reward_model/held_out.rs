//! Evaluates a reward model on held-out comparisons.

use std::collections::BTreeMap;

use super::calibration::{ScoredPair, calibration, correlation, scored_pairs};
use super::micro_batch::MicroBatch;
use crate::data::Comparisons;
use crate::error::Result;
use crate::host::{floats, read};
use crate::loss::RewardLoss;
use crate::model::ScalarModel;
use crate::ops::ModelBackend;
use crate::report::{Calibration, Table};
use crate::rl;
use crate::train::Session;
use crate::train::config::RewardModelConfig;
use crate::train::journal::Journal;

/// Numbers of correct and of all comparisons.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    right: usize,
    all: usize,
}

impl Count {
    fn rate(self) -> f64 {
        self.right as f64 / self.all as f64
    }
}

/// The result of an evaluation.
pub(super) struct HeldOut {
    /// What came of it, in a line.
    pub(super) summary: String,
    /// Accuracy by label of the recipe's `accuracy_by` columns, as a table; `None` without such columns.
    pub(super) table: Option<Table>,
    /// How far the scores can be trusted; `None` for ratings.
    pub(super) calibration: Option<Calibration>,
}

/// Evaluates loss and accuracy on the held-out comparisons, if there are any, and writes the metrics.
pub(super) fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    journal: &mut Journal,
    config: &RewardModelConfig,
    model: &ScalarModel<B>,
    valid: &[Comparisons],
) -> Result<Option<HeldOut>> {
    let Some((metrics, found)) = measure(config, model, valid, &session.device) else {
        return Ok(None);
    };
    let named = metrics.iter().map(|(name, value)| (name.as_str(), *value));
    journal.eval(session, &named.collect::<Vec<_>>())?;
    Ok(Some(found))
}

/// The metrics of the held-out comparisons and the result, if there are any.
pub(super) fn measure<B: ModelBackend>(
    config: &RewardModelConfig,
    model: &ScalarModel<B>,
    valid: &[Comparisons],
    device: &B::Device,
) -> Option<(Vec<(String, f64)>, HeldOut)> {
    if valid.is_empty() {
        return None;
    }
    let micro = MicroBatch::new(valid.iter(), config);
    let tokens = config.micro_batch_tokens;
    let groups = model.group_scores(&micro.groups, tokens, device, &mut |_, _| {});
    let scores = groups.concat();
    let loss = micro.loss(floats::<B>(&scores, device));
    let loss = f64::from(read(loss)[0]) / valid.len() as f64;
    let mut metrics = vec![
        ("eval/loss".to_owned(), loss),
        ("eval/score_std".to_owned(), rl::variance(&scores).sqrt()),
    ];
    let mut add = |name: &str, value: Option<f64>| {
        metrics.extend(value.map(|value| (format!("eval/{name}"), value)));
    };
    if config.loss_type == RewardLoss::Regression {
        let (mut found, mut ratings) = (Vec::new(), Vec::new());
        for (place, rating) in micro.ratings.pairs() {
            found.push(f64::from(scores[place]));
            ratings.push(f64::from(rating));
        }
        let distances = found.iter().zip(&ratings).map(|(x, y)| (x - y).abs());
        let distance = distances.sum::<f64>() / ratings.len() as f64;
        let correlation = correlation(&found, &ratings);
        add("mae", Some(distance));
        add("correlation", correlation);
        let correlation = correlation.map_or(String::new(), |correlation| {
            format!(", correlation {correlation:.3}")
        });
        let found = HeldOut {
            summary: format!("held-out ratings are met to {distance:.3}{correlation}"),
            table: None,
            calibration: None,
        };
        return Some((metrics, found));
    }
    let decided = micro.pairs.num_decided();
    let accuracy = (decided > 0).then(|| micro.pairs.num_correct(&scores) as f64 / decided as f64);
    add("accuracy", accuracy);
    let pairs = valid.iter().zip(&groups);
    let pairs: Vec<ScoredPair> = pairs
        .flat_map(|(item, scores)| scored_pairs(item, scores, config.soft_labels))
        .collect();
    let calibration = calibration(&pairs);
    add("calibration_error", Some(calibration.error()));
    add("length_correlation", calibration.length_correlation);
    for group in &calibration.by_length {
        if let Some(length) = group.label.strip_prefix("chosen is ") {
            add(&format!("accuracy_{length}"), Some(group.accuracy));
        }
    }
    add("gold_agreement", calibration.gold.map(|gold| gold.share));
    if config.safety_coef.is_some() {
        for (name, value) in Safety::of(valid, &groups).rates() {
            add(name, value);
        }
    }
    let by_label = by_label(valid, &groups, config);
    for ((column, value), count) in &by_label {
        add(&format!("accuracy/{column}={value}"), Some(count.rate()));
    }
    let accuracy = accuracy.map_or("held-out pairs are even".to_owned(), |accuracy| {
        format!("held-out accuracy {:.1} %", 100.0 * accuracy)
    });
    let error = 100.0 * calibration.error();
    let found = HeldOut {
        summary: format!("{accuracy}, calibration error {error:.1} %"),
        table: accuracy_table(&by_label),
        calibration: Some(calibration),
    };
    Some((metrics, found))
}

/// Labelled responses by their label and by whether the model takes them for safe, `sigmoid(score) >= 1/2`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Safety {
    safe_as_safe: usize,
    safe_as_unsafe: usize,
    unsafe_as_safe: usize,
    unsafe_as_unsafe: usize,
}

impl Safety {
    fn of(items: &[Comparisons], scores: &[Vec<f32>]) -> Self {
        let mut counts = Self::default();
        for (item, scores) in items.iter().zip(scores) {
            for (safe, score) in item.judgements.safe.iter().zip(scores) {
                let count = match (safe, *score >= 0.0) {
                    (None, _) => continue,
                    (Some(true), true) => &mut counts.safe_as_safe,
                    (Some(true), false) => &mut counts.safe_as_unsafe,
                    (Some(false), true) => &mut counts.unsafe_as_safe,
                    (Some(false), false) => &mut counts.unsafe_as_unsafe,
                };
                *count += 1;
            }
        }
        counts
    }

    /// Accuracy, and precision and recall of what is unsafe; `None` for those of no response.
    fn rates(self) -> [(&'static str, Option<f64>); 3] {
        let rate = |part: usize, others: usize| {
            let all = part + others;
            (all > 0).then(|| part as f64 / all as f64)
        };
        let right = self.safe_as_safe + self.unsafe_as_unsafe;
        let wrong = self.safe_as_unsafe + self.unsafe_as_safe;
        [
            ("safety_accuracy", rate(right, wrong)),
            (
                "unsafe_precision",
                rate(self.unsafe_as_unsafe, self.safe_as_unsafe),
            ),
            (
                "unsafe_recall",
                rate(self.unsafe_as_unsafe, self.unsafe_as_safe),
            ),
        ]
    }
}

/// Counts by column and label; columns in the order of their names, numeric labels in numeric order.
type ByLabel = BTreeMap<(String, Label), Count>;

/// A label that sorts as a number if it is numeric.
#[derive(Debug, Clone, PartialEq)]
struct Label(String);

impl Eq for Label {}

impl PartialOrd for Label {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Label {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Numbers come before other labels.
        let number = |label: &Self| label.0.parse::<f64>().unwrap_or(f64::INFINITY);
        number(self)
            .total_cmp(&number(other))
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn by_label(items: &[Comparisons], scores: &[Vec<f32>], config: &RewardModelConfig) -> ByLabel {
    let mut counts = ByLabel::new();
    for (item, scores) in items.iter().zip(scores) {
        let decided = scored_pairs(item, scores, config.soft_labels).filter(ScoredPair::is_decided);
        let right: Vec<bool> = decided.map(|pair| pair.is_right()).collect();
        if right.is_empty() {
            continue;
        }
        for column in &config.accuracy_by {
            let label = item.label(column).unwrap_or_else(|| "none".into());
            let count = counts.entry((column.clone(), Label(label))).or_default();
            count.right += right.iter().filter(|&&right| right).count();
            count.all += right.len();
        }
    }
    counts
}

fn accuracy_table(counts: &ByLabel) -> Option<Table> {
    if counts.is_empty() {
        return None;
    }
    let header = ["column", "value", "comparisons", "accuracy"].map(String::from);
    let lines: Vec<Vec<String>> = counts
        .iter()
        .map(|((column, value), count)| {
            vec![
                column.clone(),
                value.to_string(),
                count.all.to_string(),
                format!("{:.1} %", 100.0 * count.rate()),
            ]
        })
        .collect();
    Some(Table::new(&header, &lines))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::Judgements;

    #[test]
    fn comparisons_are_counted_by_label() {
        let item = |confidence: serde_json::Value, pairs: &[(usize, usize)]| Comparisons {
            responses: vec![vec![1]; 3],
            prompt_len: 0,
            pairs: pairs.iter().map(|&(c, r)| (c, r, 0.0)).collect(),
            labels: json!({ "confidence": confidence })
                .as_object()
                .unwrap()
                .clone(),
            ..Comparisons::default()
        };
        let items = [
            item(json!(9), &[(0, 1), (0, 2)]),
            item(json!(-2), &[(0, 1)]),
            item(json!(9), &[(1, 0)]),
            item(json!(10), &[(0, 1)]),
            item(json!(null), &[(0, 1)]),
        ];
        let scores = vec![
            vec![2.0, 1.0, 3.0],
            vec![1.0, 0.0, 0.0],
            vec![1.0, 2.0, 0.0],
            vec![1.0, 1.0, 0.0],
            vec![1.0, 0.0, 0.0],
        ];
        let config: RewardModelConfig = ron::from_str(
            "(name: \"rm\", init: Base, data: (source: Posts(rows: 1, seed: 1)), batch_size: 1, accuracy_by: [\"confidence\"])",
        )
        .unwrap();
        let counts = by_label(&items, &scores, &config);
        let found: Vec<(String, usize, usize)> = counts
            .iter()
            .map(|((_, value), count)| (value.to_string(), count.right, count.all))
            .collect();
        let want = [("-2", 1, 1), ("9", 2, 3), ("10", 0, 1), ("none", 1, 1)];
        assert_eq!(found, want.map(|(v, r, a)| (v.to_owned(), r, a)));
        let text = accuracy_table(&counts).unwrap().to_string();
        assert!(text.contains("66.7 %"), "{text}");
        assert_eq!(accuracy_table(&ByLabel::new()), None);
    }

    #[test]
    fn safety_is_read_at_a_probability_of_one_half() {
        let item = |safe: [Option<bool>; 2]| Comparisons {
            judgements: Judgements {
                safe: safe.to_vec(),
                ..Judgements::default()
            },
            ..Comparisons::default()
        };
        let items = [
            item([Some(true), Some(false)]),
            item([Some(false), None]),
            item([Some(true), Some(false)]),
        ];
        let scores = vec![vec![1.0, -0.5], vec![0.0, 3.0], vec![-2.0, -1.0]];
        let found = Safety::of(&items, &scores);
        let rates = found.rates().map(|(_, rate)| rate.unwrap());
        // Right: the first safe one and two of three unsafe ones; three are taken for unsafe.
        assert_eq!(rates, [0.6, 2.0 / 3.0, 2.0 / 3.0]);
        assert_eq!(Safety::default().rates()[0].1, None);
    }
}
