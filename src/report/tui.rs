//! burn-train's full-screen view (`--tui`): charts of every metric on stdout's terminal.
//!
//! The view reads the keyboard: `q` offers to stop the run, which then writes a checkpoint as after Ctrl-C.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::data::dataloader::Progress;
use burn::train::Interrupter;
use burn::train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry,
    SerializedEntry,
};
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::renderer::{
    MetricState, MetricsRenderer, MetricsRendererTraining, ProgressType, TrainingProgress,
};

use super::interrupt::Interrupt;
use super::memory::Timer;
use super::progress::{EvalReport, Reporter, RolloutReport, StageInfo, StepReport, format_value};

/// One view per stage; messages are printed when the view closes.
pub(crate) struct TuiReporter {
    view: Option<TuiMetricsRendererWrapper>,
    /// The view's own request to stop, and the run's.
    interrupter: Interrupter,
    interrupt: Interrupt,
    known: BTreeSet<String>,
    timer: Timer,
    stage: String,
    said: Vec<String>,
}

impl TuiReporter {
    /// A reporter whose view opens with the first stage.
    pub(crate) fn new(interrupt: Interrupt) -> Self {
        Self {
            view: None,
            interrupter: Interrupter::new(),
            interrupt,
            known: BTreeSet::new(),
            timer: Timer::start(0),
            stage: String::new(),
            said: Vec::new(),
        }
    }

    /// The metrics as burn-train's states; non-finite values are left out, as charts cannot show them.
    fn states(&mut self, metrics: &[(&str, f64)]) -> Vec<MetricState> {
        let Some(view) = &mut self.view else {
            return Vec::new();
        };
        let mut states = Vec::new();
        for &(name, value) in metrics.iter().filter(|(_, value)| value.is_finite()) {
            // Training and evaluation share a chart.
            let name = name.strip_prefix("eval/").unwrap_or(name);
            let id = MetricId::new(Arc::new(name.to_string()));
            if self.known.insert(name.to_string()) {
                view.register_metric(MetricDefinition {
                    metric_id: id.clone(),
                    name: name.to_string(),
                    description: None,
                    attributes: MetricAttributes::Numeric(NumericAttributes {
                        unit: None,
                        higher_is_better: !name.contains("loss"),
                    }),
                });
            }
            let text = SerializedEntry::new(format_value(value), value.to_string());
            states.push(MetricState::Numeric(
                MetricEntry::new(id, text),
                NumericEntry::Value(value),
            ));
        }
        states
    }

    fn close(&mut self) {
        self.view = None; // dropping it gives the terminal back
        for line in self.said.drain(..) {
            crate::terminal::say(&line);
        }
    }
}

impl Reporter for TuiReporter {
    fn stage_start(&mut self, info: &StageInfo<'_>) {
        self.close();
        self.interrupter = Interrupter::new();
        self.known.clear();
        self.timer = Timer::start(info.first_tokens);
        self.stage = info.stage.into();
        self.said.push(format!("{}: {}", info.stage, info.summary));
        self.view = Some(TuiMetricsRendererWrapper::new(
            self.interrupter.clone(),
            None,
        ));
    }

    fn step(&mut self, step: &StepReport<'_>) {
        let rate = self.timer.tokens_per_s(step.tokens);
        let mut metrics = step.metrics.to_vec();
        metrics.push(("tokens_per_s", rate));
        let states = self.states(&metrics);
        if let Some(view) = &mut self.view {
            for state in states {
                view.update_train(state);
            }
            let progress = Progress::new(step.step, step.total_steps.max(1));
            view.render_train(
                TrainingProgress {
                    progress: Some(progress.clone()),
                    global_progress: progress.clone(),
                    iteration: Some(step.step),
                },
                vec![ProgressType::Detailed {
                    tag: step.stage.into(),
                    progress,
                }],
            );
        }
        if self.interrupter.should_stop() {
            self.interrupt.request();
        }
    }

    fn rollout(&mut self, rollout: &RolloutReport<'_>) {
        if let Some(view) = &mut self.view {
            let progress = Progress::new(rollout.done, rollout.total.max(1));
            view.render_valid(
                TrainingProgress {
                    progress: Some(progress.clone()),
                    global_progress: progress.clone(),
                    iteration: None,
                },
                vec![ProgressType::Detailed {
                    tag: rollout.what.into(),
                    progress,
                }],
            );
        }
        if self.interrupter.should_stop() {
            self.interrupt.request();
        }
    }

    fn eval(&mut self, eval: &EvalReport<'_>) {
        let states = self.states(eval.metrics);
        if let Some(view) = &mut self.view {
            for state in states {
                view.update_valid(state);
            }
        }
    }

    fn message(&mut self, text: &str) {
        self.said.push(text.into());
        if self.view.is_none() {
            self.close();
        }
    }

    fn stage_end(&mut self, summary: &str) {
        self.said.push(format!("{}: {summary}", self.stage));
        self.close();
    }
}

impl Drop for TuiReporter {
    fn drop(&mut self) {
        self.close();
    }
}
