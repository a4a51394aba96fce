//! `report.html`: one self-contained page per stage.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use super::chart::{Line, css_color, line_chart};
use super::findings::{Severity, findings};
use super::metrics::{MetricsRow, read_metrics, series};
use super::progress::format_value;
use super::samples::{Sample, read_samples};
use crate::error::{Error, Result};

/// What the page shows beside the contents of the stage's folder.
#[derive(Debug, Clone, Copy, Default)]
pub struct StageReport<'a> {
    /// Heading: "ppo of recipe quickstart".
    pub title: &'a str,
    /// One sentence on what the stage did.
    pub summary: &'a str,
    /// Backend, seed, commit, wall time and the like, by name.
    pub facts: &'a [(&'a str, String)],
    /// A Markdown table (from [`super::table`]); may be empty.
    pub table: &'a str,
    /// The command to run next; may be empty.
    pub next_command: &'a str,
}

/// A chart: heading, explanation, and the metrics in it with their legends.
struct Panel {
    title: &'static str,
    about: &'static str,
    metrics: &'static [(&'static str, &'static str)],
}

const PANELS: [Panel; 18] = [
    Panel {
        title: "Loss",
        about: "Nats per trained token (reward model and DPO: per comparison). Lower is better.",
        metrics: &[("loss", "training"), ("eval/loss", "held out")],
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
        metrics: &[("eval/scores", "score"), ("eval/gold_scores", "gold")],
    },
    Panel {
        title: "KL to the reference",
        about: "Nats per response: how far the policy has moved. A higher score at the same KL is better.",
        metrics: &[("objective/kl", "KL"), ("eval/kl", "held out")],
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
        title: "Learning rate",
        about: "As set by the schedule.",
        metrics: &[("lr", "learning rate")],
    },
];

/// Most prompts shown.
const MAX_PROMPTS: usize = 12;
/// Most columns of responses shown.
const MAX_COLUMNS: usize = 4;

/// Writes `report.html` into `stage_dir` from the `metrics.jsonl`, `timing.jsonl` and `samples.jsonl` in it.
///
/// # Errors
/// When a file cannot be read, is not a log, or the page cannot be written.
pub fn write_stage_report(stage_dir: impl AsRef<Path>, about: &StageReport<'_>) -> Result<()> {
    let dir = stage_dir.as_ref();
    let metrics = read_metrics(dir.join("metrics.jsonl"))?;
    let timing = read_metrics(dir.join("timing.jsonl"))?;
    let samples = read_samples(dir.join("samples.jsonl"))?;
    let path = dir.join("report.html");
    let page = page(about, &metrics, &timing, &samples)
        .map_err(|e| Error::format(&path, format!("cannot plot a chart: {e}")))?;

    let temporary = dir.join("report.html.tmp");
    let mut file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
    file.write_all(page.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(Error::io("replace", &path))
}

fn page(
    about: &StageReport<'_>,
    metrics: &[MetricsRow],
    timing: &[MetricsRow],
    samples: &[Sample],
) -> Result<String, String> {
    let mut body = format!("<h1>{}</h1>\n", escape(about.title));
    if !about.summary.is_empty() {
        push(
            &mut body,
            format_args!("<p>{}</p>\n", escape(about.summary)),
        );
    }
    body.push_str(&facts(about.facts, timing));
    body.push_str(&what_happened(metrics));
    if !about.table.is_empty() {
        push(
            &mut body,
            format_args!("<pre>{}</pre>\n", escape(about.table)),
        );
    }
    body.push_str(&charts(metrics)?);
    body.push_str(&sample_table(samples));
    if !about.next_command.is_empty() {
        push(
            &mut body,
            format_args!("<h2>Next</h2>\n<pre>{}</pre>\n", escape(about.next_command)),
        );
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>\n<style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n",
        escape(about.title)
    ))
}

fn facts(facts: &[(&str, String)], timing: &[MetricsRow]) -> String {
    let mut all: Vec<(&str, String)> = facts.to_vec();
    let rates = series(timing, "tokens_per_s");
    if !rates.is_empty() {
        let mean = rates.iter().map(|p| p.1).sum::<f64>() / rates.len() as f64;
        all.push(("tokens per second", format_value(mean)));
    }
    if all.is_empty() {
        return String::new();
    }
    let rows: String = all
        .iter()
        .map(|(name, value)| {
            format!(
                "<tr><th>{}</th><td>{}</td></tr>\n",
                escape(name),
                escape(value)
            )
        })
        .collect();
    format!("<table class=\"facts\">\n{rows}</table>\n")
}

fn what_happened(metrics: &[MetricsRow]) -> String {
    let found = findings(metrics);
    if found.is_empty() {
        return String::new();
    }
    let mut html = String::from("<h2>What happened</h2>\n");
    for finding in found.iter().filter(|f| f.severity == Severity::Warning) {
        push(
            &mut html,
            format_args!("<p class=\"warning\">{}</p>\n", escape(&finding.text)),
        );
    }
    html.push_str("<ul>\n");
    for finding in found.iter().filter(|f| f.severity == Severity::Note) {
        push(
            &mut html,
            format_args!("<li>{}</li>\n", escape(&finding.text)),
        );
    }
    html.push_str("</ul>\n");
    html
}

fn charts(metrics: &[MetricsRow]) -> Result<String, String> {
    let mut html = String::new();
    let mut shown = BTreeSet::from(["step"]);
    for panel in &PANELS {
        shown.extend(panel.metrics.iter().map(|(name, _)| *name));
        html.push_str(&figure(metrics, panel.title, panel.about, panel.metrics)?);
    }
    let mut others = BTreeSet::new();
    for row in metrics {
        others.extend(row.values.keys().map(String::as_str));
    }
    let mut rest = String::new();
    for name in others.difference(&shown) {
        rest.push_str(&figure(metrics, name, "", &[(name, name)])?);
    }
    if !rest.is_empty() {
        push(
            &mut html,
            format_args!(
                "<details><summary>All other metrics</summary>\n<div class=\"charts\">\n{rest}</div></details>\n"
            ),
        );
    }
    if html.is_empty() {
        return Ok(html);
    }
    Ok(format!(
        "<h2>Curves over steps</h2>\n<div class=\"charts\">\n{html}</div>\n"
    ))
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
    let legend: String = lines
        .iter()
        .enumerate()
        .map(|(i, line)| {
            let last = line.points[line.points.len() - 1].1;
            format!(
                "<span style=\"color:{}\">{} {}</span> ",
                css_color(i),
                escape(line.label),
                format_value(last)
            )
        })
        .collect();
    Ok(format!(
        "<figure><figcaption><b>{}</b> {legend}<br><small>{}</small></figcaption>\n{}\n</figure>\n",
        escape(title),
        escape(about),
        line_chart(&lines)?
    ))
}

/// One row per prompt, one column per policy (or, with one policy, per step).
fn sample_table(samples: &[Sample]) -> String {
    let title = |s: &Sample| match &s.policy {
        Some(policy) => policy.clone(),
        None => format!("step {}", s.step),
    };
    let mut columns: Vec<String> = Vec::new();
    let mut prompts: Vec<&Sample> = Vec::new();
    for sample in samples {
        if !columns.contains(&title(sample)) {
            columns.push(title(sample));
        }
        if prompts.len() < MAX_PROMPTS && prompts.iter().all(|p| p.prompt != sample.prompt) {
            prompts.push(sample);
        }
    }
    if prompts.is_empty() {
        return String::new();
    }
    if columns.len() > MAX_COLUMNS {
        // The first step and the last ones: before training and its outcome.
        columns.drain(1..columns.len() - (MAX_COLUMNS - 1));
    }
    let has_reference = prompts.iter().any(|p| p.reference.is_some());

    let mut html = String::from("<h2>Samples</h2>\n<table class=\"samples\">\n<tr><th>prompt</th>");
    for column in &columns {
        push(&mut html, format_args!("<th>{}</th>", escape(column)));
    }
    html.push_str(if has_reference {
        "<th>reference</th></tr>\n"
    } else {
        "</tr>\n"
    });
    for prompt in prompts {
        push(
            &mut html,
            format_args!("<tr><td>{}</td>", escape(&prompt.prompt)),
        );
        for column in &columns {
            let found = samples
                .iter()
                .find(|s| s.prompt == prompt.prompt && title(s) == *column);
            push(
                &mut html,
                format_args!("<td>{}</td>", found.map(response).unwrap_or_default()),
            );
        }
        if has_reference {
            let reference = prompt.reference.as_deref().unwrap_or_default();
            push(&mut html, format_args!("<td>{}</td>", escape(reference)));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table>\n");
    html
}

fn response(sample: &Sample) -> String {
    let mut notes: Vec<String> = sample
        .scores
        .iter()
        .map(|(name, score)| format!("{} {}", escape(name), format_value(*score)))
        .collect();
    if sample.ended == Some(false) {
        notes.push("no EOS".into());
    }
    if notes.is_empty() {
        return escape(&sample.response);
    }
    format!(
        "{}<br><small>{}</small>",
        escape(&sample.response),
        notes.join(", ")
    )
}

/// Escapes text for HTML: no output of a model and no data may become markup.
fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}

fn push(html: &mut String, part: std::fmt::Arguments<'_>) {
    html.write_fmt(part).expect("a String takes any text");
}

const STYLE: &str = "
body{font:15px/1.5 system-ui,sans-serif;max-width:1400px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
pre{background:#f4f4f2;padding:.8em;overflow-x:auto}
.warning{background:#fff3dc;border-left:4px solid #d08a00;padding:.5em .8em}
.charts{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;width:440px}figcaption{min-height:3.6em}
table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:.35em .7em;border-bottom:1px solid #ddd}
.samples td{white-space:pre-wrap;overflow-wrap:anywhere;min-width:12em}small{color:#666}details{width:100%}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{MetricsLog, SamplesLog};

    #[test]
    fn a_page_shows_curves_warnings_samples_and_the_next_command() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::create(dir.path().join("metrics.jsonl")).unwrap();
        for step in 1..=30 {
            let x = step as f64;
            log.log(
                step,
                &[
                    ("objective/scores", x),
                    ("objective/gold_scores", 10.0 - (x - 12.0).abs()),
                    ("objective/kl", x / 3.0),
                    ("my/own", x.sin()),
                ],
            )
            .unwrap();
            log.log_timing(step, &[("tokens_per_s", 100.0)]).unwrap();
        }
        let mut samples = SamplesLog::create(dir.path().join("samples.jsonl")).unwrap();
        for step in [0, 10, 20, 30, 40] {
            samples
                .log(&Sample {
                    step,
                    prompt: "<b>Sum up</b>".into(),
                    response: format!("answer {step}"),
                    reference: Some("the truth".into()),
                    ended: Some(step == 0),
                    ..Sample::default()
                })
                .unwrap();
        }
        write_stage_report(
            dir.path(),
            &StageReport {
                title: "ppo & more",
                next_command: "temper export --run x",
                ..StageReport::default()
            },
        )
        .unwrap();
        let html = fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert!(html.contains("<h1>ppo &amp; more</h1>"));
        assert!(html.contains("<p class=\"warning\">Reward hacking:"));
        assert!(html.contains("Score of the responses rose from 2 to 29."));
        // Score and KL, and the metric without a panel of its own.
        assert_eq!(html.matches("<svg").count(), 3);
        assert!(html.contains("<summary>All other metrics</summary>"));
        assert!(html.contains("<b>my/own</b>"));
        assert!(html.contains("<td>&lt;b&gt;Sum up&lt;/b&gt;</td>") && !html.contains("<b>Sum up"));
        assert!(html.contains(
            "<th>step 0</th><th>step 20</th><th>step 30</th><th>step 40</th><th>reference</th>"
        ));
        assert!(html.contains("answer 40<br><small>no EOS</small>"));
        assert!(html.contains("<th>tokens per second</th><td>100</td>"));
        assert!(html.contains("<pre>temper export --run x</pre>"));
        for network in ["<script", "<link", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(network), "{network}");
        }
        assert!(!dir.path().join("report.html.tmp").exists());
    }

    #[test]
    fn a_stage_without_logs_still_gets_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let about = StageReport {
            title: "rank",
            ..StageReport::default()
        };
        write_stage_report(dir.path(), &about).unwrap();
        let html = fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert!(html.contains("<h1>rank</h1>") && !html.contains("<svg"));
    }
}
