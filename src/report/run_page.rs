//! `report.html` of a run: all stages on one page.

use std::path::Path;

use super::duration;
use super::page::{self, escape};
use super::panels;
use super::pictures;
use super::pipeline::{Arrow, PipelineBox, picture};
use super::record::{StageLogs, StageRecord};
use super::sample_table::sample_table;
use crate::atomic::write_atomic;
use crate::error::{Error, Result};

/// Charts of a stage on the page of the run; its own page has all.
const CHARTS: usize = 2;

/// How far a stage has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageState {
    /// It has not begun.
    Waiting,
    /// It has begun, and its process works on it.
    Running,
    /// It has begun, and no process works on it.
    Stopped,
    /// It is done.
    Done,
}

impl StageState {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Done => "done",
        }
    }
}

/// Where an input of a stage comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowSource {
    /// The recipe's model.
    Base,
    /// The stage of this index.
    Stage(usize),
}

/// An input of a stage: where it comes from, and what it is, such as "policy".
pub type Flow = (FlowSource, &'static str);

/// One stage of a run.
#[derive(Debug, Clone)]
pub struct StageSection {
    /// Its name, which is that of its folder.
    pub name: String,
    /// Its kind, as recipes write it.
    pub kind: String,
    /// How far it has come.
    pub state: StageState,
    /// Its inputs from the model and from earlier stages.
    pub flows: Vec<Flow>,
    /// Its data and settings, by name.
    pub settings: Vec<(String, String)>,
    /// What it is doing or has found.
    pub record: StageRecord,
    /// Its logs.
    pub logs: StageLogs,
}

impl StageSection {
    /// Time taken so far, in seconds.
    pub fn seconds(&self) -> f64 {
        match self.state {
            StageState::Done => self.record.seconds,
            _ => self.logs.seconds(),
        }
    }

    /// Steps done, and all steps where they are known: `3/125`.
    pub fn steps(&self) -> String {
        match (self.state, self.record.total_steps) {
            (StageState::Waiting, _) => String::new(),
            (StageState::Done, 0) => self.logs.steps().to_string(),
            (StageState::Done, total) => format!("{total}/{total}"),
            (_, 0) => self.logs.steps().to_string(),
            (_, total) => format!("{}/{total}", self.logs.steps()),
        }
    }
}

/// What the page shows.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// The recipe's name.
    pub title: String,
    /// How far the run has come: one line.
    pub status: String,
    /// The recipe's model, if it has one.
    pub model: Option<String>,
    /// What was run, by name.
    pub facts: Vec<(String, String)>,
    /// The stages, in order.
    pub stages: Vec<StageSection>,
    /// Commands to run next, each with what it does.
    pub next: Vec<(String, String)>,
    /// The resolved recipe.
    pub recipe: String,
}

/// Writes `report.html` into the run's folder.
///
/// # Errors
/// When the page cannot be written.
pub fn write_run_report(run_dir: impl AsRef<Path>, report: &RunReport) -> Result<()> {
    let path = run_dir.as_ref().join("report.html");
    let page =
        run_page(report).map_err(|e| Error::format(&path, format!("cannot plot a chart: {e}")))?;
    write_atomic(&path, page.as_bytes())
}

fn run_page(report: &RunReport) -> Result<String, String> {
    let body = run_body(report)?;
    Ok(page::frame(&format!("{} · tempering", report.title), &body))
}

/// The content of the page, without its frame.
///
/// # Errors
/// The plotting crate's message.
pub fn run_body(report: &RunReport) -> Result<String, String> {
    let mut body = format!(
        "<h1>{}</h1>\n<p>{}</p>\n",
        escape(&report.title),
        escape(&report.status)
    );
    for stage in &report.stages {
        body.push_str(&page::warnings(&stage.record.findings, Some(&stage.name)));
    }
    body.push_str(&format!(
        "<div class=\"columns\"><div><h2>Pipeline</h2>\n{}</div>\n<div>{}{}</div></div>\n",
        pipeline(report),
        closing(report),
        next(report)
    ));
    // The last stage with policies side by side says most; its samples are not folded away.
    let compares = |stage: &&StageSection| stage.record.comparison.is_some();
    if let Some(last) = report.stages.iter().rev().find(compares) {
        let pictures = pictures::pictures(&last.record)?;
        body.push_str(&format!(
            "<h2>{} <small>{}</small></h2>\n<div class=\"charts\">\n{pictures}</div>\n",
            escape(&last.name),
            escape(&last.record.summary)
        ));
        let samples = sample_table(&last.logs.samples);
        if !samples.is_empty() {
            body.push_str(&format!("<h2>Samples</h2>\n{samples}"));
        }
    }
    for stage in &report.stages {
        body.push_str(&section(stage)?);
    }
    body.push_str(&format!(
        "<h2>What was run</h2>\n{}<details><summary>The recipe with all defaults</summary><pre tabindex=\"0\">{}</pre></details>\n",
        page::facts(&report.facts),
        escape(&report.recipe)
    ));
    Ok(body)
}

/// The tables of the last stage that has one.
fn closing(report: &RunReport) -> String {
    for stage in report.stages.iter().rev() {
        if let Some(comparison) = &stage.record.comparison {
            return format!(
                "<h2>Result</h2>\n{}",
                pictures::comparison_table(comparison)
            );
        }
    }
    let done = report
        .stages
        .iter()
        .filter(|stage| stage.state == StageState::Done);
    let results: String = done
        .map(|stage| {
            let (name, summary) = (escape(&stage.name), escape(&stage.record.summary));
            format!("<tr><th>{name}</th><td>{summary}</td></tr>\n")
        })
        .collect();
    match results.is_empty() {
        true => String::new(),
        false => {
            format!(
                "<h2>Result</h2>\n<div class=\"scroll\" tabindex=\"0\"><table>\n{results}</table></div>\n"
            )
        }
    }
}

fn next(report: &RunReport) -> String {
    match report.next.is_empty() {
        true => String::new(),
        false => format!("<h2>Next</h2>\n{}", page::commands(&report.next)),
    }
}

fn pipeline(report: &RunReport) -> String {
    let mut boxes = Vec::new();
    let mut arrows = Vec::new();
    // The model has a box of its own only if a stage starts from it.
    let uses_base = |stage: &StageSection| {
        stage
            .flows
            .iter()
            .any(|(from, _)| *from == FlowSource::Base)
    };
    let base = (report.model.as_ref()).filter(|_| report.stages.iter().any(uses_base));
    if let Some(model) = base {
        boxes.push(PipelineBox {
            title: model.clone(),
            kind: "model".into(),
            note: "where the stages start from".into(),
            state: "done",
        });
    }
    let first = boxes.len();
    for (index, stage) in report.stages.iter().enumerate() {
        boxes.push(PipelineBox {
            title: stage.name.clone(),
            kind: stage.kind.clone(),
            note: note(stage),
            state: stage.state.word(),
        });
        for &(from, what) in &stage.flows {
            let from = match from {
                FlowSource::Base if base.is_none() => continue,
                FlowSource::Base => 0,
                FlowSource::Stage(from) => first + from,
            };
            arrows.push(Arrow {
                from,
                to: first + index,
                what,
            });
        }
    }
    picture(&boxes, &arrows)
}

/// One line on a stage for its box.
fn note(stage: &StageSection) -> String {
    match stage.state {
        StageState::Waiting => "not begun".into(),
        StageState::Done => format!("{} · {}", duration(stage.seconds()), stage.record.summary),
        state => format!(
            "{}: step {} · {}",
            state.word(),
            stage.steps(),
            duration(stage.seconds())
        ),
    }
}

fn section(stage: &StageSection) -> Result<String, String> {
    let mut html = format!(
        "<section><h2>{} <small>{}, {}</small></h2>\n",
        escape(&stage.name),
        escape(&stage.kind),
        stage.state.word()
    );
    if !stage.record.summary.is_empty() && stage.state != StageState::Waiting {
        html.push_str(&format!("<p>{}</p>\n", escape(&stage.record.summary)));
    }
    if stage.record.comparison.is_none() {
        let pictures = match pictures::replace_curves(&stage.record) {
            true => pictures::pictures(&stage.record)?,
            false => panels::headlines(&stage.logs.metrics, CHARTS)?,
        };
        if !pictures.is_empty() {
            html.push_str(&format!("<div class=\"charts\">\n{pictures}</div>\n"));
        }
        if let Some(table) = &stage.record.table {
            html.push_str(&page::table(table));
        }
        let samples = sample_table(&stage.logs.samples);
        if !samples.is_empty() {
            html.push_str(&format!(
                "<details><summary>Samples</summary>\n{samples}</details>\n"
            ));
        }
    }
    let mut facts = super::stage_page::facts(&stage.record, &stage.logs);
    facts.extend(stage.settings.iter().cloned());
    html.push_str(&format!(
        "<details><summary>Data, settings, time</summary>\n{}</details>\n",
        page::facts(&facts)
    ));
    if stage.state == StageState::Done {
        html.push_str(&format!(
            "<p><a href=\"{}/report.html\">All curves and samples of {}</a></p>\n",
            escape(&stage.name),
            escape(&stage.name)
        ));
    }
    html.push_str("</section>\n");
    Ok(html)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::page::testing::assert_sound;
    use crate::report::{
        Comparison, Finding, Histogram, MetricsRow, PolicyResponses, Sample, Severity,
    };
    use serde_json::json;
    use std::collections::BTreeMap;

    fn stage(name: &str, kind: &str, state: StageState, flows: &[Flow]) -> StageSection {
        StageSection {
            name: name.into(),
            kind: kind.into(),
            state,
            flows: flows.to_vec(),
            settings: vec![("batch_size".into(), "32".into())],
            record: StageRecord::default(),
            logs: StageLogs::default(),
        }
    }

    fn run() -> RunReport {
        let base = (FlowSource::Base, "policy");
        let mut sft = stage("sft", "Sft", StageState::Done, &[base]);
        let row = |step: usize| MetricsRow {
            step,
            values: json!({"loss": 3.0 / step as f64})
                .as_object()
                .unwrap()
                .clone(),
        };
        sft.logs.metrics = (1..=12).map(row).collect();
        sft.record.summary = "loss <3>".into();
        sft.record.findings = vec![Finding {
            severity: Severity::Warning,
            text: "too hot".into(),
        }];
        let mut rank = stage(
            "rank",
            "Rank",
            StageState::Running,
            &[(FlowSource::Stage(0), "policy")],
        );
        rank.record.total_steps = 4;
        rank.record.scores = Histogram::of_ranked(&[vec![0.0, 1.0]]);
        rank.logs.timing = vec![MetricsRow {
            step: 3,
            values: json!({"elapsed_s": 7.0}).as_object().unwrap().clone(),
        }];
        let mut compare = stage(
            "compare",
            "Compare",
            StageState::Done,
            &[base, (FlowSource::Stage(0), "policy")],
        );
        let scored = |name: &str, score: f64| PolicyResponses {
            name: name.into(),
            scores: vec![BTreeMap::from([("gold".into(), score)]); 3],
            tokens: 4.0,
            eos_rate: 1.0,
            ..PolicyResponses::default()
        };
        compare.record.comparison = Some(Comparison::new(
            "base",
            vec!["gold".into()],
            &[scored("base", 0.25), scored("sft", 0.5)],
        ));
        compare.logs.samples = vec![Sample {
            policy: Some("sft".into()),
            prompt: "<p>".into(),
            response: "r".into(),
            ..Sample::default()
        }];
        RunReport {
            title: "quick".into(),
            status: "stage 2 of 4 is running".into(),
            model: Some("tiny".into()),
            facts: vec![("backend".into(), "flex".into())],
            stages: vec![
                sft,
                rank,
                compare,
                stage("ppo", "Ppo", StageState::Waiting, &[]),
            ],
            next: vec![("Continue".into(), "temper recipe x".into())],
            recipe: "(name: \"quick\")".into(),
        }
    }

    #[test]
    fn a_run_is_on_one_page() {
        let html = run_page(&run()).unwrap();
        assert_sound(&html);
        let at = |text: &str| html.find(text).unwrap_or_else(|| panic!("{text}"));
        assert!(at("<b>sft</b>: too hot") < at("<h2>Pipeline</h2>"));
        assert!(at("<h2>Pipeline</h2>") < at("<h2>Result</h2>"));
        // The gain of sft over base on each prompt, without spread.
        assert!(
            html.contains("<span class=\"up\">+0.250 ± 0.000</span>"),
            "{html}"
        );
        assert!(html.contains("running: step 3/4 · 7.0 s"));
        assert!(html.contains("loss &lt;3&gt;") && html.contains("&lt;p&gt;"));
        assert!(html.contains("<a href=\"sft/report.html\">"));
        assert!(!html.contains("<a href=\"ppo/report.html\">"));
        assert!(html.contains("temper recipe x"));
        // The pipeline, the loss, the scores of rank, means and distribution of compare.
        assert_eq!(html.matches("<svg").count(), 5);
    }
}
