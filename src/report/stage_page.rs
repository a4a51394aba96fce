//! `report.html` of a stage: one self-contained page.

use std::path::Path;

use super::metrics::series;
use super::page;
use super::panels;
use super::pictures;
use super::progress::format_value;
use super::record::{StageLogs, StageRecord};
use super::sample_table::sample_table;
use crate::atomic::write_atomic;
use crate::error::{Error, Result};

/// What the page shows.
#[derive(Debug, Clone, Copy)]
pub struct StageReport<'a> {
    /// Heading: "ppo of recipe quickstart".
    pub title: &'a str,
    /// What came of the stage.
    pub record: &'a StageRecord,
    /// Its logs.
    pub logs: &'a StageLogs,
    /// The command to run next; may be empty.
    pub next_command: &'a str,
}

/// Writes `report.html` into `stage_dir`.
///
/// # Errors
/// When the page cannot be written.
pub fn write_stage_report(stage_dir: impl AsRef<Path>, about: &StageReport<'_>) -> Result<()> {
    let path = stage_dir.as_ref().join("report.html");
    let page =
        stage_page(about).map_err(|e| Error::format(&path, format!("cannot plot a chart: {e}")))?;
    write_atomic(&path, page.as_bytes())
}

fn stage_page(about: &StageReport<'_>) -> Result<String, String> {
    let body = stage_body(about)?;
    Ok(page::frame(about.title, &body))
}

/// The content of the page, without its frame.
///
/// # Errors
/// The plotting crate's message.
pub fn stage_body(about: &StageReport<'_>) -> Result<String, String> {
    let StageReport { record, logs, .. } = about;
    let mut body = format!("<h1>{}</h1>\n", page::escape(about.title));
    if !record.summary.is_empty() {
        body.push_str(&format!("<p>{}</p>\n", page::escape(&record.summary)));
    }
    body.push_str(&page::warnings(&record.findings, None));
    body.push_str(&pictures::results(record)?);
    if !pictures::replace_curves(record) {
        let notes = page::notes(&record.findings);
        if !notes.is_empty() {
            body.push_str(&format!("<h2>What happened</h2>\n{notes}"));
        }
        let curves = panels::all(&logs.metrics)?;
        if !curves.is_empty() {
            body.push_str(&format!(
                "<h2>Curves over steps</h2>\n<div class=\"charts\">\n{curves}</div>\n"
            ));
        }
    }
    let samples = sample_table(&logs.samples);
    if !samples.is_empty() {
        body.push_str(&format!("<h2>Samples</h2>\n{samples}"));
    }
    if !about.next_command.is_empty() {
        let next = page::escape(about.next_command);
        body.push_str(&format!(
            "<h2>Next</h2>\n<pre tabindex=\"0\">{next}</pre>\n"
        ));
    }
    // A stage that goes on has none yet.
    let facts = page::facts(&facts(record, logs));
    if !facts.is_empty() {
        body.push_str(&format!("<h2>Figures</h2>\n{facts}"));
    }
    Ok(body)
}

/// Tokens, time and memory of a stage, by name.
pub(super) fn facts(record: &StageRecord, logs: &StageLogs) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
    if record.tokens > 0 {
        fact("tokens", super::grouped(record.tokens));
    }
    if record.seconds > 0.0 {
        fact("time", super::duration(record.seconds));
    }
    let rates = series(&logs.timing, "tokens_per_s");
    if record.tokens > 0 && !rates.is_empty() {
        let mean = rates.iter().map(|p| p.1).sum::<f64>() / rates.len() as f64;
        fact("tokens per second", format_value(mean));
    }
    if logs.left_out > 0 {
        let shown = super::grouped(logs.metrics.len() as u64);
        let all = super::grouped((logs.metrics.len() + logs.left_out) as u64);
        fact(
            "lines of metrics",
            format!("{shown} of {all}, evenly spaced"),
        );
    }
    if let Some(bytes) = record.peak_bytes {
        let gib = bytes as f64 / (1u64 << 30) as f64;
        fact("peak memory of the stage", format!("{gib:.2} GiB"));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::page::testing::assert_sound;
    use crate::report::{Histogram, MetricsLog, Sample, SamplesLog, diverged, findings};
    use std::fs;

    fn write(dir: &Path, title: &str, next_command: &str, record: StageRecord) -> String {
        let logs = StageLogs::read(dir).unwrap();
        let record = StageRecord {
            findings: findings(&logs.metrics),
            diverged: diverged(&logs.metrics),
            ..record
        };
        let about = StageReport {
            title,
            record: &record,
            logs: &logs,
            next_command,
        };
        write_stage_report(dir, &about).unwrap();
        let html = fs::read_to_string(dir.join("report.html")).unwrap();
        assert_sound(&html);
        html
    }

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
        let record = StageRecord {
            tokens: 12_345,
            ..StageRecord::default()
        };
        let html = write(dir.path(), "ppo & more", "temper export --run x", record);
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
        assert!(html.contains("<pre tabindex=\"0\">temper export --run x</pre>"));
        assert!(html.contains("<td>12,345</td>"));
    }

    #[test]
    fn a_stage_without_logs_still_gets_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let html = write(dir.path(), "rank", "", StageRecord::default());
        assert!(html.contains("<h1>rank</h1>") && !html.contains("<svg"));
    }

    #[test]
    fn ranked_scores_are_shown_by_their_distribution() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::create(dir.path().join("metrics.jsonl")).unwrap();
        log.log(1, &[("score", 0.5), ("eos_rate", 1.0)]).unwrap();
        let record = StageRecord {
            scores: Histogram::of_ranked(&[vec![0.0, 2.5], vec![1.0, 4.0]]),
            ..StageRecord::default()
        };
        let html = write(dir.path(), "rank", "", record);
        assert_eq!(html.matches("<svg").count(), 1);
        assert!(html.contains("best to each prompt 3.250"));
    }
}
