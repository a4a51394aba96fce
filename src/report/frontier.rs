//! Scores against the KL from the reference: how much is gained for how far a policy has moved, and where the gold score turns.
//!
//! # Source
//! Gao, Schulman and Hilton 2022, arXiv:2210.10760, figure 1; Stiennon et al. 2020, arXiv:2009.01325, figure 5.

use super::comparison::Comparison;
use super::metrics::MetricsRow;
use super::page::escape;
use super::panels::captioned;
use super::points::{Point, Series, point_chart};
use super::progress::format_value;

/// Evaluations below which there is no curve.
const MIN_EVALUATIONS: usize = 3;

/// Index of the largest finite number; the first of equal ones.
fn largest(values: impl Iterator<Item = f64>) -> Option<usize> {
    (values.enumerate())
        .filter(|(_, value)| value.is_finite())
        .fold(None, |best: Option<(usize, f64)>, (i, value)| match best {
            Some((_, most)) if most >= value => best,
            _ => Some((i, value)),
        })
        .map(|(i, _)| i)
}

/// One figure for each source: the policies by their KL, and the best-of-n curve of the reference beside them. Empty for fewer than three
/// policies, which tables show as well.
pub(super) fn of_policies(comparison: &Comparison) -> Result<String, String> {
    let mut html = String::new();
    if comparison.policies.len() < MIN_EVALUATIONS {
        return Ok(html);
    }
    for (source, name) in comparison.sources.iter().enumerate() {
        let score = |of: &super::ComparedPolicy| of.scores.get(source).copied().unwrap_or_default();
        let Some(best) = largest(comparison.policies.iter().map(|policy| score(policy).mean))
        else {
            continue;
        };
        let points = (comparison.policies.iter().enumerate()).map(|(i, policy)| Point {
            x: policy.kl,
            y: score(policy).mean,
            error: score(policy).error,
            name: policy.name.clone(),
            marked: i == best,
        });
        let mut series = vec![Series {
            points: points.collect(),
            joined: false,
        }];
        let mut legend = "<span class=\"c0\">policies</span> ".to_owned();
        let reference = (comparison.policies.iter())
            .position(|policy| policy.name == comparison.reference)
            .and_then(|place| comparison.curves.get(place));
        for (proxy, by) in comparison.sources.iter().enumerate() {
            let Some(curves) = reference else { break };
            let points =
                (curves.kl.iter().zip(&curves.best_of_n[proxy])).map(|(&kl, scores)| Point {
                    x: kl,
                    y: scores[source].mean,
                    error: scores[source].error,
                    name: String::new(),
                    marked: false,
                });
            series.push(Series {
                points: points.collect(),
                joined: true,
            });
            legend.push_str(&format!(
                "<span class=\"c{}\">best of n of {} by {}</span> ",
                (proxy + 1) % 4,
                escape(&comparison.reference),
                escape(by)
            ));
        }
        let best = &comparison.policies[best];
        let about = format!(
            "Mean {name} by KL from {} in nats per response, with standard errors. It is highest for {}, at KL {:.2}.",
            comparison.reference, best.name, best.kl
        );
        let title = format!("{name} against KL");
        html.push_str(&captioned(&title, &legend, &about, &point_chart(&series)?));
    }
    Ok(html)
}

/// The evaluations of a stage by their KL: the score that is trained on and the gold score beside it, and where the latter is highest. Empty
/// without three evaluations that have both.
pub(super) fn of_evaluations(metrics: &[MetricsRow]) -> Result<String, String> {
    let of = |name: &str| -> Vec<(usize, f64, f64)> {
        (metrics.iter())
            .filter_map(|row| Some((row.step, row.get("eval/kl")?, row.get(name)?)))
            .filter(|(_, kl, score)| kl.is_finite() && score.is_finite())
            .collect()
    };
    let (scores, gold) = (of("eval/scores"), of("eval/gold_scores"));
    if scores.len() < MIN_EVALUATIONS {
        return Ok(String::new());
    }
    let line = |points: &[(usize, f64, f64)], marked: Option<usize>| Series {
        points: (points.iter().enumerate())
            .map(|(i, &(step, kl, score))| Point {
                x: kl,
                y: score,
                error: 0.0,
                name: match marked == Some(i) {
                    true => format!("step {step}"),
                    false => String::new(),
                },
                marked: marked == Some(i),
            })
            .collect(),
        joined: true,
    };
    let last = |points: &[(usize, f64, f64)]| format_value(points[points.len() - 1].2);
    let mut legend = format!("<span class=\"c0\">score {}</span> ", last(&scores));
    let mut series = vec![line(&scores, None)];
    let mut about =
        "Held-out score by KL from the reference in nats per response, one point for each evaluation.".to_owned();
    if let Some(best) = largest(gold.iter().map(|point| point.2)) {
        legend.push_str(&format!("<span class=\"c1\">gold {}</span> ", last(&gold)));
        series.push(line(&gold, Some(best)));
        let (step, kl, score) = gold[best];
        about.push_str(&format!(
            " Gold is highest after step {step}, {} at KL {kl:.2}{}",
            format_value(score),
            match best + 1 == gold.len() {
                true => ", the last one: it has not turned yet.",
                false => ": training was best stopped there.",
            }
        ));
    }
    Ok(captioned(
        "Score against KL",
        &legend,
        &about,
        &point_chart(&series)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::comparison::testing::responses;
    use serde_json::Map;

    #[test]
    fn the_gold_score_turns_and_the_step_is_named() {
        let row = |step: usize, kl: f64, score: f64, gold: f64| MetricsRow {
            step,
            values: Map::from_iter([
                ("eval/kl".to_owned(), kl.into()),
                ("eval/scores".to_owned(), score.into()),
                ("eval/gold_scores".to_owned(), gold.into()),
            ]),
        };
        let mut rows = vec![row(0, 0.0, 0.1, 0.1), row(5, 2.0, 0.4, 0.3)];
        assert_eq!(of_evaluations(&rows).unwrap(), "");
        rows.push(row(10, 5.0, 0.8, 0.2));
        let html = of_evaluations(&rows).unwrap();
        assert!(
            html.contains(
                "highest after step 5, 0.3000 at KL 2.00: training was best stopped there"
            ),
            "{html}"
        );
        assert!(html.contains("step 5"), "{html}");
        rows.push(row(15, 6.0, 0.9, 0.35));
        assert!(
            of_evaluations(&rows)
                .unwrap()
                .contains("it has not turned yet")
        );
    }

    #[test]
    fn policies_are_points_and_the_best_is_named() {
        let mut all = ["base", "sft", "ppo"].map(|name| responses(name, &[0.25, 0.5]));
        all[2] = responses("ppo", &[0.75, 0.5]);
        all[2].kl = 3.5;
        let comparison = Comparison::new("base", vec!["gold".into()], &all);
        let html = of_policies(&comparison).unwrap();
        assert!(html.contains("highest for ppo, at KL 3.50"), "{html}");
        assert_eq!(html.matches("<circle").count(), 3, "{html}");
        let two = Comparison::new("base", vec!["gold".into()], &all[..2]);
        assert_eq!(of_policies(&two).unwrap(), "");
    }
}
