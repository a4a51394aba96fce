//! Evaluates a reward model on held-out comparisons.

use std::collections::BTreeMap;

use super::micro_batch::MicroBatch;
use crate::data::Comparisons;
use crate::error::Result;
use crate::host::{floats, read};
use crate::model::ScalarModel;
use crate::ops::ModelBackend;
use crate::report::Table;
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
    /// Fraction of comparisons in which the chosen response has the higher score.
    pub(super) accuracy: f64,
    /// Accuracy by label of the recipe's `accuracy_by` columns, as a table; `None` without such columns.
    pub(super) table: Option<Table>,
}

/// Evaluates loss and accuracy on the held-out comparisons, if there are any.
pub(super) fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    journal: &mut Journal,
    config: &RewardModelConfig,
    model: &ScalarModel<B>,
    valid: &[Comparisons],
) -> Result<Option<HeldOut>> {
    if valid.is_empty() {
        return Ok(None);
    }
    let device = session.device.clone();
    let micro = MicroBatch::new(valid.iter(), config);
    let tokens = config.micro_batch_tokens;
    let groups = model.group_scores(&micro.groups, tokens, &device, &mut |_, _| {});
    let by_label = by_label(valid, &groups, &config.accuracy_by);
    let scores = groups.concat();
    let accuracy = micro.pairs.num_correct(&scores) as f64 / micro.pairs.num_pairs() as f64;
    let loss = micro.loss(floats::<B>(&scores, &device));
    let loss = f64::from(read(loss)[0]) / valid.len() as f64;
    let named: Vec<(String, f64)> = by_label
        .iter()
        .map(|((column, value), count)| (format!("eval/accuracy/{column}={value}"), count.rate()))
        .collect();
    let mut metrics = vec![
        ("eval/loss", loss),
        ("eval/accuracy", accuracy),
        ("eval/score_std", rl::variance(&scores).sqrt()),
    ];
    metrics.extend(named.iter().map(|(name, rate)| (name.as_str(), *rate)));
    journal.eval(session, &metrics)?;
    Ok(Some(HeldOut {
        accuracy,
        table: accuracy_table(&by_label),
    }))
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

fn by_label(items: &[Comparisons], scores: &[Vec<f32>], columns: &[String]) -> ByLabel {
    let mut counts = ByLabel::new();
    for (item, scores) in items.iter().zip(scores) {
        let right = |pair: &&(usize, usize, f32)| scores[pair.0] > scores[pair.1];
        for column in columns {
            let label = item.label(column).unwrap_or_else(|| "none".into());
            let count = counts.entry((column.clone(), Label(label))).or_default();
            count.right += item.pairs.iter().filter(right).count();
            count.all += item.pairs.len();
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
        let counts = by_label(&items, &scores, &["confidence".into()]);
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
}
