//! Progress as plain lines, for pipes and log files.

use std::io::{Stderr, Write};
use std::time::{Duration, Instant};

use super::memory::Timer;
use super::number::duration;
use super::progress::{
    EvalReport, Reporter, RolloutReport, StageInfo, StepReport, format_value, place_text,
};
use crate::terminal::escaped;

/// Seconds between two lines of one stage.
const INTERVAL: Duration = Duration::from_secs(10);

/// Writes `stage step/total key=value ..` lines: for the first and the last step, every evaluation, and otherwise at most
/// one every few seconds.
#[derive(Debug)]
pub struct PlainReporter<W: Write + Send> {
    out: W,
    interval: Duration,
    last: Option<Instant>,
    timer: Timer,
    stage: String,
}

impl PlainReporter<Stderr> {
    /// Writes to stderr, a step line every ten seconds at most.
    pub fn stderr() -> Self {
        Self::new(std::io::stderr(), INTERVAL)
    }
}

impl<W: Write + Send> PlainReporter<W> {
    /// Writes to `out`, at least `interval` apart; zero writes every step.
    pub fn new(out: W, interval: Duration) -> Self {
        Self {
            out,
            interval,
            last: None,
            timer: Timer::start(0),
            stage: String::new(),
        }
    }

    fn line(&mut self, text: &str) {
        // A closed pipe must not end a training run.
        let _ = writeln!(self.out, "{}", escaped(text));
        let _ = self.out.flush();
    }
}

impl<W: Write + Send> Reporter for PlainReporter<W> {
    fn stage_start(&mut self, info: &StageInfo<'_>) {
        self.timer = Timer::start(info.first_tokens);
        self.last = None;
        self.stage = info.stage.into();
        let steps = match info.first_step {
            0 => format!("{} steps", info.total_steps),
            done => format!("continues at step {done} of {}", info.total_steps),
        };
        let place = place_text(info.place);
        self.line(&format!(
            "{place}{}: {} ({steps})",
            info.stage, info.summary
        ));
    }

    fn step(&mut self, step: &StepReport<'_>) {
        let due = self.last.is_none_or(|t| t.elapsed() >= self.interval);
        if !due && step.step < step.total_steps {
            return;
        }
        self.last = Some(Instant::now());
        let mut text = prefix(step.stage, step.step, step.total_steps, step.metrics);
        text.push_str(&format!(" tokens={}", step.tokens));
        let rate = self.timer.tokens_per_s(step.tokens);
        if rate > 0.0 {
            text.push_str(&format!(" tokens_per_s={rate:.0}"));
        }
        text.push_str(&format!(" elapsed_s={:.0}", self.timer.elapsed_s()));
        if let Some(seconds) = step.run_left_s {
            let left = duration(seconds).replace(' ', "");
            text.push_str(&format!(" run_left=~{left}"));
        }
        self.line(&text);
    }

    fn rollout(&mut self, _: &RolloutReport<'_>) {}

    fn eval(&mut self, eval: &EvalReport<'_>) {
        let text = prefix(eval.stage, eval.step, eval.total_steps, eval.metrics);
        self.line(&text);
    }

    fn message(&mut self, text: &str) {
        self.line(text);
    }

    fn stage_end(&mut self, summary: &str) {
        let text = format!("{}: {summary}", self.stage);
        self.line(&text);
    }
}

fn prefix(stage: &str, step: usize, total: usize, metrics: &[(&str, f64)]) -> String {
    let mut text = format!("{stage} {step}/{total}");
    for (name, value) in metrics {
        text.push_str(&format!(" {name}={}", format_value(*value)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(interval: Duration) -> String {
        let mut reporter = PlainReporter::new(Vec::new(), interval);
        reporter.stage_start(&StageInfo {
            stage: "sft",
            place: Some((1, 2)),
            summary: "SFT, full",
            first_step: 0,
            total_steps: 3,
            first_tokens: 0,
        });
        for step in 1..=3 {
            reporter.step(&StepReport {
                stage: "sft",
                step,
                total_steps: 3,
                tokens: 0,
                metrics: &[("loss", 2.5 / step as f64), ("lr", 2e-4)],
                run_left_s: (step == 2).then_some(95.0),
            });
        }
        reporter.eval(&EvalReport {
            stage: "sft",
            step: 3,
            total_steps: 3,
            metrics: &[("eval/loss", 0.75)],
        });
        reporter.stage_end("loss 2.5 -> 0.83");
        String::from_utf8(reporter.out).unwrap()
    }

    #[test]
    fn lines_have_a_stable_form() {
        assert_eq!(
            run(Duration::ZERO),
            "stage 1/2 sft: SFT, full (3 steps)\n\
             sft 1/3 loss=2.500 lr=2.00e-4 tokens=0 elapsed_s=0\n\
             sft 2/3 loss=1.250 lr=2.00e-4 tokens=0 elapsed_s=0 run_left=~1min35s\n\
             sft 3/3 loss=0.8333 lr=2.00e-4 tokens=0 elapsed_s=0\n\
             sft 3/3 eval/loss=0.7500\n\
             sft: loss 2.5 -> 0.83\n"
        );
    }

    #[test]
    fn the_first_and_the_last_step_are_always_shown() {
        let text = run(Duration::from_secs(3600));
        let steps: Vec<&str> = text.lines().filter(|l| l.contains("lr=")).collect();
        assert_eq!(steps.len(), 2);
        assert!(steps[0].starts_with("sft 1/3 ") && steps[1].starts_with("sft 3/3 "));
    }

    #[test]
    fn control_characters_of_data_are_not_sent() {
        let mut reporter = PlainReporter::new(Vec::new(), Duration::ZERO);
        reporter.message("the row says \u{1b}]0;mine\u{7}");
        let text = String::from_utf8(reporter.out).unwrap();
        assert_eq!(text, "the row says \\u{1b}]0;mine\\u{7}\n");
    }

    #[test]
    fn a_closed_pipe_is_ignored() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
        }
        PlainReporter::new(Closed, Duration::ZERO).message("nobody hears this");
    }
}
