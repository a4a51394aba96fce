//! Charts of metrics over steps, grouped into panels.

use std::collections::BTreeSet;

use super::chart::{Line, line_chart, named};
use super::frontier;
use super::metrics::{MetricsRow, alarms, series};
use super::page::escape;
use super::progress::format_value;

/// A chart: heading, explanation, and the metrics in it with their legends.
pub(super) struct Panel {
    pub(super) title: &'static str,
    about: &'static str,
    metrics: &'static [(&'static str, &'static str)],
}

const PANELS: [Panel; 21] = [
    Panel {
        title: "Loss",
        about: "Nats per trained token (reward model and DPO: per comparison). Lower is better.",
        metrics: &[
            ("loss", "training"),
            ("eval/loss", "held out"),
            ("nll_loss", "cross-entropy of chosen responses"),
        ],
    },
    Panel {
        title: "Accuracy",
        about: "Fraction of pairs in which the chosen response has the higher score; 0.5 is chance.",
        metrics: &[("accuracy", "training"), ("eval/accuracy", "held out")],
    },
    Panel {
        title: "Accuracy of the implicit reward",
        about: "Fraction of pairs in which the policy raised the chosen response above the rejected one, relative to the reference; 0.5 is chance.",
        metrics: &[
            ("rewards/accuracies", "training"),
            ("eval/rewards/accuracies", "held out"),
        ],
    },
    Panel {
        title: "Implicit rewards",
        about: "beta times the log-ratio of policy to reference, per response. The margin between the two should grow; both often fall.",
        metrics: &[
            ("rewards/chosen", "chosen"),
            ("rewards/rejected", "rejected"),
            ("rewards/margins", "margin"),
            ("eval/rewards/margins", "margin, held out"),
        ],
    },
    Panel {
        title: "Log-probability of the responses",
        about: "Nats per response under the policy.",
        metrics: &[("logps/chosen", "chosen"), ("logps/rejected", "rejected")],
    },
    Panel {
        title: "Score",
        about: "Mean score of the responses: the score that is trained on, and the gold score, which is not.",
        metrics: &[
            ("objective/scores", "score"),
            ("objective/gold_scores", "gold"),
        ],
    },
    Panel {
        title: "Score on held-out prompts",
        about: "The same, on prompts that are never trained on.",
        metrics: &[
            ("eval/scores", "score"),
            ("eval/gold_scores", "gold"),
            ("eval/reward", "reward"),
        ],
    },
    Panel {
        title: "KL to the reference",
        about: "Nats per response: how far the policy has moved. A higher score at the same KL is better.",
        metrics: &[
            ("objective/kl", "KL"),
            ("kl", "KL, estimate of KTO"),
            ("eval/kl", "held out"),
        ],
    },
    Panel {
        title: "Reward after the KL term",
        about: "Score minus the KL penalty: what PPO maximises.",
        metrics: &[
            ("objective/rlhf_reward", "reward"),
            ("objective/non_score_reward", "KL term"),
        ],
    },
    Panel {
        title: "Response length",
        about: "Tokens per response. A steady climb often means that the reward pays for length.",
        metrics: &[("val/response_length", "tokens")],
    },
    Panel {
        title: "Repetition",
        about: "Fraction of the groups of three tokens of a response that occur earlier in it.",
        metrics: &[("val/repetition", "fraction")],
    },
    Panel {
        title: "Groups of equal rewards",
        about: "Fraction of the prompts whose responses all have one score: nothing is learned from these.",
        metrics: &[("rollout/frac_reward_zero_std", "fraction")],
    },
    Panel {
        title: "Responses without EOS",
        about: "Fraction of responses that ran into the length limit.",
        metrics: &[("val/missing_eos_rate", "fraction")],
    },
    Panel {
        title: "Ratio",
        about: "Mean probability ratio of new to old policy in the update; stays close to 1.",
        metrics: &[("val/ratio", "ratio")],
    },
    Panel {
        title: "Clipped",
        about: "Fraction of tokens whose ratio, or value, was clipped.",
        metrics: &[
            ("policy/clipfrac_avg", "policy"),
            ("val/clipfrac_avg", "value"),
        ],
    },
    Panel {
        title: "Step size",
        about: "Half the mean squared change of log-probability within an update.",
        metrics: &[("policy/approxkl_avg", "approximate KL")],
    },
    Panel {
        title: "Entropy",
        about: "Nats per token: how varied the policy's choices are. Near 0 its responses are always the same.",
        metrics: &[("objective/entropy", "entropy")],
    },
    Panel {
        title: "Value loss",
        about: "How far the value network is from the returns it should predict.",
        metrics: &[("loss/value_avg", "value loss")],
    },
    Panel {
        title: "Explained variance of the value network",
        about: "1: the value network predicts the returns exactly; 0: no better than their mean; below 0: worse than the mean.",
        metrics: &[("val/explained_variance", "explained variance")],
    },
    Panel {
        title: "The judge",
        about: "Position bias: pairs in which the same place is preferred in both orders. Agreement: pairs in which the judge prefers what the data do.",
        metrics: &[
            ("judge/position_bias", "position bias"),
            ("judge/agreement", "agreement"),
            ("judge/confidence", "confidence"),
            ("judge/unanswered", "unanswered"),
        ],
    },
    Panel {
        title: "Learning rate",
        about: "As set by the schedule.",
        metrics: &[("lr", "learning rate")],
    },
];

/// Names of [`PANELS`] that tell most about a stage, in order of weight.
const HEADLINES: [&str; 6] = [
    "Loss",
    "Accuracy",
    "Accuracy of the implicit reward",
    "Score on held-out prompts",
    "Score",
    "KL to the reference",
];

/// Whether a metric is a fraction, which axes show in percent.
fn is_fraction(name: &str) -> bool {
    let last = name.split('/').next_back().unwrap_or(name);
    name.starts_with("eval/accuracy/")
        || matches!(
            last,
            "accuracy"
                | "accuracies"
                | "clipfrac_avg"
                | "position_bias"
                | "agreement"
                | "confidence"
                | "unanswered"
        )
        || last.ends_with("_rate")
}

/// Most charts of metrics without a panel: no stage has as many, but a file can.
const MOST_OTHERS: usize = 200;

/// All charts of a stage's metrics, those without a panel behind a fold; empty without metrics.
pub(super) fn all(metrics: &[MetricsRow]) -> Result<String, String> {
    let mut html = String::new();
    let mut shown = BTreeSet::from(["step"]);
    for panel in &PANELS {
        shown.extend(panel.metrics.iter().map(|(name, _)| *name));
        html.push_str(&figure(metrics, panel.title, panel.about, panel.metrics)?);
    }
    html.push_str(&frontier::of_evaluations(metrics)?);
    let mut others = BTreeSet::new();
    for row in metrics {
        others.extend(row.values.keys().map(String::as_str));
    }
    let others: Vec<&str> = others.difference(&shown).copied().collect();
    let mut rest = String::new();
    for name in others.iter().take(MOST_OTHERS) {
        rest.push_str(&figure(metrics, name, "", &[(name, name)])?);
    }
    if let Some(more) = others.len().checked_sub(MOST_OTHERS + 1) {
        let more = more + 1;
        rest.push_str(&format!("<p>{more} more are in metrics.jsonl only.</p>\n"));
    }
    if !rest.is_empty() {
        html.push_str(&format!(
            "<details><summary>All other metrics</summary>\n<div class=\"charts\">\n{rest}</div></details>\n"
        ));
    }
    Ok(html)
}

/// The charts that tell most about a stage, `most` at most, and the score against the KL.
pub(super) fn headlines(metrics: &[MetricsRow], most: usize) -> Result<String, String> {
    let mut figures = Vec::new();
    for title in HEADLINES {
        for panel in PANELS.iter().filter(|panel| panel.title == title) {
            figures.push(figure(metrics, panel.title, panel.about, panel.metrics)?);
        }
    }
    let figures = figures.into_iter().filter(|figure| !figure.is_empty());
    let figures: String = figures.take(most).collect();
    Ok(figures + &frontier::of_evaluations(metrics)?)
}

/// A chart with its heading and legend; empty if none of its metrics has a point.
fn figure(
    metrics: &[MetricsRow],
    title: &str,
    about: &str,
    names: &[(&str, &str)],
) -> Result<String, String> {
    let lines: Vec<Line<'_>> = names
        .iter()
        .map(|(name, label)| Line {
            label,
            points: series(metrics, name),
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    if lines.is_empty() {
        return Ok(String::new());
    }
    let percent = names.iter().all(|(name, _)| is_fraction(name));
    let marks: Vec<usize> = alarms(metrics).map(|(step, _)| step).collect();
    let legend: String = lines
        .iter()
        .enumerate()
        .map(|(i, line)| {
            let last = line.points[line.points.len() - 1].1;
            let last = match percent {
                true => format!("{:.1} %", 100.0 * last),
                false => format_value(last),
            };
            let label = escape(line.label);
            format!("<span class=\"c{}\">{label} {last}</span> ", i % 4)
        })
        .collect();
    Ok(captioned(
        title,
        &legend,
        about,
        &line_chart(&lines, &marks, percent)?,
    ))
}

/// A figure: heading, legend (HTML), explanation and the picture (SVG).
pub(super) fn captioned(title: &str, legend: &str, about: &str, picture: &str) -> String {
    let about = match about.is_empty() {
        true => String::new(),
        false => format!("<br><small>{}</small>", escape(about)),
    };
    format!(
        "<figure><figcaption><b>{}</b> {legend}{about}</figcaption>\n{}\n</figure>\n",
        escape(title),
        named(picture, title),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_beyond_those_of_any_stage_are_counted() {
        let row = |step| MetricsRow {
            step,
            values: (0..250).map(|i| (format!("m{i:03}"), 0.5.into())).collect(),
        };
        let html = all(&[row(1), row(2)]).unwrap();
        assert_eq!(html.matches("<svg").count(), MOST_OTHERS);
        assert!(html.contains("<p>50 more are in metrics.jsonl only.</p>"));
        assert!(html.contains("m199") && !html.contains("m200"));
    }

    #[test]
    fn fractions_are_known_by_name() {
        for (name, expected) in [
            ("eval/accuracy", true),
            ("eval/rewards/accuracies", true),
            ("eval/accuracy/batch=7", true),
            ("val/missing_eos_rate", true),
            ("policy/clipfrac_avg", true),
            ("lr", false),
            ("objective/kl", false),
            ("val/ratio", false),
        ] {
            assert_eq!(is_fraction(name), expected, "{name}");
        }
    }

    #[test]
    fn every_headline_is_a_panel() {
        for title in HEADLINES {
            assert!(PANELS.iter().any(|panel| panel.title == title), "{title}");
        }
    }
}
