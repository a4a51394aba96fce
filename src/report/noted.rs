//! A reporter that remembers how far a stage came, for the message of a stage that fails.

use std::sync::{Arc, Mutex, PoisonError};

use super::progress::{EvalReport, Reporter, RolloutReport, StageInfo, StepReport};

/// How far a stage came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Steps done.
    pub step: usize,
    /// What began after the last step and is not over: "rollout", "evaluation".
    pub activity: Option<String>,
    /// Whether the stage has begun its steps.
    pub has_begun: bool,
}

impl Position {
    /// In words: `at step 12 of training`.
    pub fn words(&self) -> String {
        match (&self.activity, self.has_begun) {
            (Some(activity), true) => format!("after step {}, during {activity}", self.step),
            (Some(activity), false) => format!("before its first step, during {activity}"),
            (None, true) => format!("after step {}, in the step that follows", self.step),
            (None, false) => "before its first step, while data and models were read".to_owned(),
        }
    }
}

/// Passes everything on to another reporter, and remembers the position.
pub struct NotedReporter<'a> {
    inner: &'a mut dyn Reporter,
    position: Arc<Mutex<Position>>,
}

impl<'a> NotedReporter<'a> {
    /// A reporter in front of `inner`.
    pub fn new(inner: &'a mut dyn Reporter) -> Self {
        Self {
            inner,
            position: Arc::default(),
        }
    }

    /// The position, to be read while the reporter is in use.
    pub fn position(&self) -> Arc<Mutex<Position>> {
        Arc::clone(&self.position)
    }

    fn note(&self, change: impl FnOnce(&mut Position)) {
        change(&mut self.position.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Reporter for NotedReporter<'_> {
    fn stage_start(&mut self, info: &StageInfo<'_>) {
        self.note(|position| {
            *position = Position {
                step: info.first_step,
                activity: None,
                has_begun: true,
            };
        });
        self.inner.stage_start(info);
    }

    fn step(&mut self, step: &StepReport<'_>) {
        self.note(|position| {
            position.step = step.step;
            position.activity = None;
        });
        self.inner.step(step);
    }

    fn rollout(&mut self, rollout: &RolloutReport<'_>) {
        self.note(|position| {
            let is_over = rollout.done >= rollout.total;
            position.activity = (!is_over).then(|| rollout.what.to_owned());
        });
        self.inner.rollout(rollout);
    }

    fn eval(&mut self, eval: &EvalReport<'_>) {
        self.inner.eval(eval);
    }

    fn message(&mut self, text: &str) {
        self.inner.message(text);
    }

    fn stage_end(&mut self, summary: &str) {
        self.note(|position| *position = Position::default());
        self.inner.stage_end(summary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::SilentReporter;

    #[test]
    fn the_position_follows_the_stage() {
        let mut silent = SilentReporter;
        let mut noted = NotedReporter::new(&mut silent);
        let position = noted.position();
        let words = || position.lock().unwrap().words();
        assert_eq!(
            words(),
            "before its first step, while data and models were read"
        );
        noted.stage_start(&StageInfo {
            stage: "sft",
            place: None,
            summary: "",
            first_step: 3,
            total_steps: 9,
            first_tokens: 0,
        });
        assert_eq!(words(), "after step 3, in the step that follows");
        let mut rollout = RolloutReport {
            what: "rollout",
            done: 1,
            total: 2,
            tokens: 0,
        };
        noted.rollout(&rollout);
        assert_eq!(words(), "after step 3, during rollout");
        rollout.done = 2;
        noted.rollout(&rollout);
        noted.step(&StepReport {
            stage: "sft",
            step: 4,
            total_steps: 9,
            tokens: 0,
            metrics: &[],
            run_left_s: None,
        });
        assert_eq!(words(), "after step 4, in the step that follows");
    }
}
