//! Progress bars for a terminal.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::memory::Timer;
use super::number::duration;
use super::progress::{
    EvalReport, Reporter, RolloutReport, StageInfo, StepReport, headline, place_text,
};
use crate::terminal::escaped;

const STAGE_BAR: &str = "{prefix:.bold} {bar:24.cyan} {pos}/{len} {elapsed} eta {eta}  {wide_msg}";
const PART_BAR: &str = "  {prefix} {bar:16.dim} {pos}/{len}  {wide_msg}";

/// One bar per stage, with a second one under it while responses are generated or an evaluation runs.
pub(crate) struct BarsReporter {
    bars: MultiProgress,
    stage: Option<ProgressBar>,
    part: Option<(String, ProgressBar, Timer)>,
    timer: Timer,
    name: String,
    eval: Vec<(String, f64)>,
}

impl BarsReporter {
    /// Bars on stderr.
    pub(crate) fn new() -> Self {
        Self::on(ProgressDrawTarget::stderr())
    }

    fn on(target: ProgressDrawTarget) -> Self {
        Self {
            bars: MultiProgress::with_draw_target(target),
            stage: None,
            part: None,
            timer: Timer::start(0),
            name: String::new(),
            eval: Vec::new(),
        }
    }

    fn println(&self, text: &str) {
        // A terminal that went away must not end a training run.
        let _ = self.bars.println(escaped(text));
    }

    fn end_part(&mut self) {
        if let Some((_, bar, _)) = self.part.take() {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }
}

impl Reporter for BarsReporter {
    fn stage_start(&mut self, info: &StageInfo<'_>) {
        self.end_part();
        self.timer = Timer::start(info.first_tokens);
        self.name = info.stage.into();
        self.eval.clear();
        let place = place_text(info.place);
        self.println(&format!("{place}{}: {}", info.stage, info.summary));
        let bar = self.bars.add(ProgressBar::new(info.total_steps as u64));
        bar.set_style(style(STAGE_BAR));
        bar.set_prefix(format!("{place}{}", info.stage));
        bar.set_position(info.first_step as u64);
        bar.reset_eta();
        // PPO's steps take long: the clock must move between them.
        bar.enable_steady_tick(Duration::from_millis(500));
        self.stage = Some(bar);
    }

    fn step(&mut self, step: &StepReport<'_>) {
        self.end_part();
        let Some(bar) = &self.stage else { return };
        let mut metrics = step.metrics.to_vec();
        metrics.extend(
            self.eval
                .iter()
                .map(|(name, value)| (name.as_str(), *value)),
        );
        let rate = self.timer.tokens_per_s(step.tokens);
        let left = step.run_left_s.map_or(String::new(), |seconds| {
            format!("~{} left in all  ", duration(seconds))
        });
        bar.set_message(format!("{left}{}", headline(&metrics, rate)));
        bar.set_position(step.step as u64);
    }

    fn rollout(&mut self, rollout: &RolloutReport<'_>) {
        if rollout.done >= rollout.total {
            return self.end_part();
        }
        if self
            .part
            .as_ref()
            .is_none_or(|(what, ..)| what != rollout.what)
        {
            self.end_part();
            let bar = self.bars.add(ProgressBar::new(rollout.total as u64));
            bar.set_style(style(PART_BAR));
            bar.set_prefix(rollout.what.to_string());
            self.part = Some((rollout.what.into(), bar, Timer::start(rollout.tokens)));
        }
        if let Some((_, bar, timer)) = &self.part {
            bar.set_length(rollout.total as u64);
            bar.set_position(rollout.done as u64);
            bar.set_message(headline(&[], timer.tokens_per_s(rollout.tokens)));
        }
    }

    fn eval(&mut self, eval: &EvalReport<'_>) {
        self.end_part();
        self.eval = eval
            .metrics
            .iter()
            .map(|(name, value)| (name.to_string(), *value))
            .collect();
        let text = headline(eval.metrics, 0.0);
        self.println(&format!(
            "{} {}/{}: {text}",
            eval.stage, eval.step, eval.total_steps
        ));
    }

    fn message(&mut self, text: &str) {
        self.println(text);
    }

    fn stage_end(&mut self, summary: &str) {
        self.end_part();
        if let Some(bar) = self.stage.take() {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
        self.println(&format!("{}: {summary}", self.name));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates above are well-formed")
        .progress_chars("━╸─")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_stage_moves_its_bars() {
        let mut reporter = BarsReporter::on(ProgressDrawTarget::hidden());
        reporter.stage_start(&StageInfo {
            stage: "ppo",
            place: Some((2, 5)),
            summary: "PPO",
            first_step: 1,
            total_steps: 3,
            first_tokens: 0,
        });
        reporter.eval(&EvalReport {
            stage: "ppo",
            step: 1,
            total_steps: 3,
            metrics: &[("eval/loss", 0.5)],
        });
        for done in 0..4 {
            reporter.rollout(&RolloutReport {
                what: "rollout",
                done,
                total: 4,
                tokens: 0,
            });
        }
        assert_eq!(reporter.part.as_ref().unwrap().1.position(), 3);
        reporter.step(&StepReport {
            stage: "ppo",
            step: 2,
            total_steps: 3,
            tokens: 0,
            metrics: &[("objective/kl", 1.5)],
            run_left_s: Some(725.0),
        });
        assert!(reporter.part.is_none());
        let bar = reporter.stage.clone().unwrap();
        assert_eq!((bar.position(), bar.length()), (2, Some(3)));
        assert_eq!(bar.prefix(), "stage 2/5 ppo");
        assert_eq!(
            bar.message(),
            "~12 min left in all  kl 1.500  eval loss 0.5000"
        );
        reporter.stage_end("done");
        assert!(reporter.stage.is_none());
        assert!(bar.is_finished());
    }
}
