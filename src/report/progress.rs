//! The progress reports of a stage, and the choice of the reporter that shows them.

use std::io::IsTerminal;

use super::bars::BarsReporter;
use super::interrupt::Interrupt;
use super::plain::PlainReporter;
use crate::error::{Error, Result};

/// Facts about a stage at its start.
#[derive(Debug, Clone, Copy)]
pub struct StageInfo<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Its number in the run, from 1, and the number of stages.
    pub place: Option<(usize, usize)>,
    /// A short description: "SFT, LoRA rank 16 (0.9 M of 135 M parameters)".
    pub summary: &'a str,
    /// Steps done before a resume; 0 for a fresh run.
    pub first_step: usize,
    /// Steps of the whole stage.
    pub total_steps: usize,
    /// Tokens processed before a resume; 0 for a fresh run.
    pub first_tokens: u64,
}

/// One optimiser step (for PPO: one update).
#[derive(Debug, Clone, Copy)]
pub struct StepReport<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Steps done, this one included.
    pub step: usize,
    /// Steps of the whole stage.
    pub total_steps: usize,
    /// Tokens processed by the stage so far.
    pub tokens: u64,
    /// Metrics by name.
    pub metrics: &'a [(&'a str, f64)],
    /// Estimated seconds until the end of the whole run; `None` while too little is known.
    pub run_left_s: Option<f64>,
}

/// Progress within a step: generating responses, scoring, evaluating.
#[derive(Debug, Clone, Copy)]
pub struct RolloutReport<'a> {
    /// Name of the activity: "rollout", "evaluation".
    pub what: &'a str,
    /// Items done.
    pub done: usize,
    /// Items in all; the activity is over when `done` reaches it.
    pub total: usize,
    /// Tokens sampled so far.
    pub tokens: u64,
}

/// The result of an evaluation.
#[derive(Debug, Clone, Copy)]
pub struct EvalReport<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// Steps done.
    pub step: usize,
    /// Steps of the whole stage.
    pub total_steps: usize,
    /// Metrics by name.
    pub metrics: &'a [(&'a str, f64)],
}

/// Shows the progress of a run. Showing never fails a run: what cannot be written is dropped.
pub trait Reporter: Send {
    /// A stage begins or continues.
    fn stage_start(&mut self, info: &StageInfo<'_>);
    /// A step is done.
    fn step(&mut self, step: &StepReport<'_>);
    /// An activity within a step has progressed.
    fn rollout(&mut self, rollout: &RolloutReport<'_>);
    /// An evaluation is done.
    fn eval(&mut self, eval: &EvalReport<'_>);
    /// Something the user should read.
    fn message(&mut self, text: &str);
    /// The stage is over; `summary` is one or a few lines.
    fn stage_end(&mut self, summary: &str);
}

/// Which reporter shows progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReporterKind {
    /// Bars if stderr is a terminal, else plain lines.
    #[default]
    Auto,
    /// One line every few seconds.
    Plain,
    /// burn-train's full-screen view; needs the cargo feature `tui`.
    Tui,
    /// None.
    Silent,
}

/// Makes a reporter on stderr. A view with a key to stop sets `interrupt`.
///
/// # Errors
/// When the full-screen view is requested but not compiled in, or stdout is not a terminal.
pub fn reporter(kind: ReporterKind, interrupt: &Interrupt) -> Result<Box<dyn Reporter>> {
    match kind {
        ReporterKind::Auto if std::io::stderr().is_terminal() => Ok(Box::new(BarsReporter::new())),
        ReporterKind::Auto | ReporterKind::Plain => Ok(Box::new(PlainReporter::stderr())),
        ReporterKind::Tui => tui_reporter(interrupt),
        ReporterKind::Silent => Ok(Box::new(SilentReporter)),
    }
}

#[cfg(feature = "tui")]
fn tui_reporter(interrupt: &Interrupt) -> Result<Box<dyn Reporter>> {
    if !std::io::stdout().is_terminal() {
        return Err(Error::Usage(
            "--tui needs a terminal on stdout, and there is none; leave it out".into(),
        ));
    }
    Ok(Box::new(super::tui::TuiReporter::new(interrupt.clone())))
}

#[cfg(not(feature = "tui"))]
fn tui_reporter(_: &Interrupt) -> Result<Box<dyn Reporter>> {
    Err(Error::Usage(
        "--tui is not compiled in; build with `--features tui`, or leave it out for progress bars"
            .into(),
    ))
}

/// Shows nothing; for tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct SilentReporter;

impl Reporter for SilentReporter {
    fn stage_start(&mut self, _: &StageInfo<'_>) {}
    fn step(&mut self, _: &StepReport<'_>) {}
    fn rollout(&mut self, _: &RolloutReport<'_>) {}
    fn eval(&mut self, _: &EvalReport<'_>) {}
    fn message(&mut self, _: &str) {}
    fn stage_end(&mut self, _: &str) {}
}

/// Formats a number with four significant digits, with an exponent where that is shorter.
pub fn format_value(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let exponent = value.abs().log10().floor() as i32;
    if value.fract() == 0.0 && value.abs() < 1e9 {
        format!("{value:.0}")
    } else if (-3..6).contains(&exponent) {
        let decimals = usize::try_from(3 - exponent).unwrap_or(0);
        format!("{value:.decimals$}")
    } else {
        format!("{value:.2e}")
    }
}

/// "stage 2/5 ", or nothing where a run has one stage.
pub(super) fn place_text(place: Option<(usize, usize)>) -> String {
    match place {
        Some((number, total)) if total > 1 => format!("stage {number}/{total} "),
        _ => String::new(),
    }
}

/// The metrics shown on a bar, with their short names.
const HEADLINES: [(&str, &str); 9] = [
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("objective/scores", "score"),
    ("objective/gold_scores", "gold"),
    ("objective/kl", "kl"),
    ("val/response_length", "length"),
    ("eval/loss", "eval loss"),
    ("eval/accuracy", "eval accuracy"),
    ("lr", "lr"),
];

/// The text of the metrics shown on a bar.
pub(super) fn headline(metrics: &[(&str, f64)], tokens_per_s: f64) -> String {
    let mut parts: Vec<String> = HEADLINES
        .iter()
        .filter_map(|(name, short)| {
            let (_, value) = metrics.iter().find(|(n, _)| n == name)?;
            Some(format!("{short} {}", format_value(*value)))
        })
        .collect();
    if tokens_per_s > 0.0 {
        parts.push(format!("{tokens_per_s:.0} tokens/s"));
    }
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits() {
        for (value, text) in [
            (0.0, "0"),
            (2.713_44, "2.713"),
            (0.051_23, "0.05123"),
            (-12.345_6, "-12.35"),
            (2e-5, "2.00e-5"),
            (0.002, "0.002000"),
            (123_456.7, "123457"),
            (3.0, "3"),
            (1.5e12, "1.50e12"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(format_value(value), text);
        }
    }

    #[test]
    fn a_bar_shows_the_headlines_in_a_fixed_order() {
        let metrics = [
            ("lr", 2e-4),
            ("policy/clipfrac_avg", 0.1),
            ("objective/kl", 3.25),
            ("objective/scores", -0.5),
        ];
        assert_eq!(
            headline(&metrics, 91.7),
            "score -0.5000  kl 3.250  lr 2.00e-4  92 tokens/s"
        );
        assert_eq!(headline(&[], 0.0), "");
    }

    #[cfg(not(feature = "tui"))]
    #[test]
    fn the_missing_view_is_named_with_its_feature() {
        let error = reporter(ReporterKind::Tui, &Interrupt::default())
            .map(|_| ())
            .unwrap_err();
        assert!(error.to_string().contains("--features tui"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
