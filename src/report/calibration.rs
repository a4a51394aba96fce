//! How far a reward model's scores can be trusted, on held-out comparisons.

use serde::{Deserialize, Serialize};

use super::chart::{Bar, bar_chart, reliability_chart};
use super::page::escape;
use super::panels::captioned;

/// Calibration of a reward model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Comparisons in bins of the probability that the model gives the response it prefers, `sigmoid(|difference of the scores|)`, from 0.5
    /// to 1; bins without comparisons are left out.
    pub reliability: Vec<ReliabilityBin>,
    /// Accuracy by the margin of the comparisons, lowest first; empty without margins.
    pub by_margin: Vec<AccuracyGroup>,
    /// Accuracy where the chosen response is shorter, of the same length, and longer, as far as there are such comparisons.
    pub by_length: Vec<AccuracyGroup>,
    /// Correlation of the difference of the scores with that of the lengths in tokens, chosen minus rejected.
    pub length_correlation: Option<f64>,
    /// Agreement with the known scores, where the rows have them.
    pub gold: Option<GoldAgreement>,
}

/// Comparisons of which the model is about equally sure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// Mean probability of the preferred response.
    pub predicted: f64,
    /// Share in which it is the chosen one.
    pub right: f64,
    /// Number of comparisons.
    pub count: usize,
}

/// Accuracy over some comparisons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccuracyGroup {
    /// What they have in common.
    pub label: String,
    /// Share in which the chosen response has the higher score.
    pub accuracy: f64,
    /// Number of comparisons.
    pub count: usize,
}

/// Agreement of scores with known ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GoldAgreement {
    /// Share of the comparisons that both order alike; pairs of equal gold scores are left out.
    pub share: f64,
    /// Correlation of the differences of both, chosen minus rejected; `None` if either does not vary.
    pub correlation: Option<f64>,
    /// Number of comparisons.
    pub count: usize,
}

impl Calibration {
    /// Mean distance of predicted probability and share, weighted by the comparisons ("expected calibration error"); 0 without any.
    pub fn error(&self) -> f64 {
        let all: usize = self.reliability.iter().map(|bin| bin.count).sum();
        let distance = |bin: &ReliabilityBin| bin.count as f64 * (bin.predicted - bin.right).abs();
        self.reliability.iter().map(distance).sum::<f64>() / all.max(1) as f64
    }

    /// The pictures, without a frame.
    pub(super) fn pictures(&self) -> Result<String, String> {
        let mut html = String::new();
        if !self.reliability.is_empty() {
            let points = self.reliability.iter();
            let points: Vec<(f64, f64, usize)> = points
                .map(|bin| (bin.predicted, bin.right, bin.count))
                .collect();
            let legend = format!("calibration error {:.1} %", 100.0 * self.error());
            html.push_str(&captioned(
                "Reliability",
                &format!("<span class=\"c0\">{legend}</span>"),
                "How often the response with the higher score is the chosen one, by the probability that the scores give it; larger points are more \
                 comparisons. Below the line the model is surer than it should be.",
                &reliability_chart(&points)?,
            ));
        }
        html.push_str(&groups(
            "Accuracy by margin",
            "Share of the held-out comparisons in which the chosen response has the higher score, by how much better it was said to be.",
            &self.by_margin,
            "",
        )?);
        let correlation = self
            .length_correlation
            .map_or(String::new(), |correlation| {
                format!("<span class=\"soft\">correlation {correlation:+.2}</span> ")
            });
        html.push_str(&groups(
            "Accuracy by length",
            "The same, by which response is the longer one. A model that pays for length is right where the chosen one is longer; the correlation is \
             that of the differences of scores and lengths.",
            &self.by_length,
            &correlation,
        )?);
        Ok(html)
    }

    /// What there is to say in a line.
    pub(super) fn notes(&self) -> Vec<String> {
        let Some(gold) = self.gold else {
            return Vec::new();
        };
        let correlation = gold.correlation.map_or(String::new(), |correlation| {
            format!(", and the differences correlate by {correlation:+.2}")
        });
        vec![format!(
            "The scores order {:.1} % of {} held-out comparisons as the gold scores do{correlation}.",
            100.0 * gold.share,
            gold.count
        )]
    }
}

/// Bars of accuracies with their standard errors; nothing for no groups.
fn groups(
    title: &str,
    about: &str,
    groups: &[AccuracyGroup],
    more: &str,
) -> Result<String, String> {
    if groups.is_empty() {
        return Ok(String::new());
    }
    let bars: Vec<Bar<'_>> = (groups.iter())
        .map(|group| Bar {
            label: &group.label,
            value: group.accuracy,
            error: (group.accuracy * (1.0 - group.accuracy) / group.count.max(1) as f64).sqrt(),
        })
        .collect();
    let entry = |(i, group): (usize, &AccuracyGroup)| {
        format!(
            "<span class=\"c{}\">{} {:.1} % of {}</span> ",
            i % 4,
            escape(&group.label),
            100.0 * group.accuracy,
            group.count
        )
    };
    let legend: String = groups.iter().enumerate().map(entry).collect();
    let legend = format!("{more}{legend}");
    Ok(captioned(title, &legend, about, &bar_chart(&bars)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_weighted_by_comparisons() {
        let bin = |predicted, right, count| ReliabilityBin {
            predicted,
            right,
            count,
        };
        let group = |label: &str, accuracy, count| AccuracyGroup {
            label: label.into(),
            accuracy,
            count,
        };
        let calibration = Calibration {
            reliability: vec![bin(0.6, 0.5, 30), bin(0.9, 1.0, 10)],
            by_margin: vec![group("0", 0.5, 4), group("1 < 2", 1.0, 4)],
            by_length: vec![group("chosen shorter", 0.25, 8)],
            length_correlation: Some(0.5),
            gold: Some(GoldAgreement {
                share: 0.75,
                correlation: None,
                count: 8,
            }),
        };
        assert!((calibration.error() - 0.1).abs() < 1e-12);
        assert_eq!(Calibration::default().error(), 0.0);
        let html = calibration.pictures().unwrap();
        assert_eq!(html.matches("<svg").count(), 3);
        for part in [
            "calibration error 10.0 %",
            "1 &lt; 2 100.0 % of 4",
            "correlation +0.50",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert_eq!(
            calibration.notes(),
            ["The scores order 75.0 % of 8 held-out comparisons as the gold scores do."]
        );
        assert_eq!(Calibration::default().pictures().unwrap(), "");
    }
}
