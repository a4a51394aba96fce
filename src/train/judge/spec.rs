//! The stage specification of Judge.

use super::JudgeConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_comparisons};
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::reward::judge::PairForm;
use crate::train::checks::Checks;
use crate::train::checks::settings::check_comparisons;
use crate::train::config::DataConfig;
use crate::train::plan::{
    PAIR, Planner, ScoredRows, StagePlan, Workload, estimate, longest, num_pairs,
};
use crate::train::{Outcome, Preview, Session, StageInputs, StageOutput, StageSpec};

/// Tokens of a question beside its prompt and responses, roughly.
const OF_QUESTION: f64 = 60.0;
/// Tokens of a pass over questions.
const PASS_TOKENS: u64 = 4096;
/// Questions of a pass, for the estimate of its time.
const PASS_QUESTIONS: u64 = 16;
/// Chains of thought written at once.
const TEXTS_AT_ONCE: u64 = 32;

impl StageSpec for JudgeConfig {
    const OUTPUT: StageOutput = StageOutput::Rows(RowKind::Preference);

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs {
            judge: Some((&self.judge, self.chat)),
            ..StageInputs::default()
        }
        .data("data", &self.data, RowKind::Responses)
    }

    fn data_mut(&mut self) -> Vec<&mut DataConfig> {
        vec![&mut self.data]
    }

    fn valid_fraction(&self) -> Option<f64> {
        Some(self.valid_fraction)
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        checks.problems_below(&format!("{path}.judge"), self.judge.problems());
        checks.fraction(path, "max_unanswered", self.max_unanswered);
        checks.must(
            format!("{path}.max_pairs"),
            self.max_pairs != Some(0),
            "at least 1, or `None` for all",
            0,
        );
        if self.data.format.take.is_some() {
            checks.problem(
                format!("{path}.data.format.take"),
                "has no effect: a judge is asked about all pairs of responses",
            );
            checks.help("`max_pairs` limits their number");
        }
        check_comparisons(checks, path, "a judge", self.inputs());
        if let Some(reasoning) = &self.chain_of_thought {
            let path = format!("{path}.chain_of_thought");
            checks.positive(&path, "max_tokens", reasoning.max_tokens);
            if let Some((low, high)) = reasoning.clamp {
                checks.must(
                    format!("{path}.clamp"),
                    (0.0..=0.5).contains(&low) && (0.5..=1.0).contains(&high),
                    "two probabilities around 0.5, such as (0.4, 0.6)",
                    (low, high),
                );
            }
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        // Small files, read here so that a run does not end at them hours later.
        let mut keep = |key: &str, outcome: Result<()>| {
            if let Err(error) = outcome {
                planner.problem(key, error.to_string());
            }
        };
        keep("principles", self.principles().map(drop));
        match self.pair_settings() {
            Err(error) => keep("examples", Err(error)),
            Ok(settings) => {
                let form = PairForm::new(settings).map(drop);
                let message = form
                    .as_ref()
                    .err()
                    .map(Error::to_string)
                    .unwrap_or_default();
                let keys = ["labels", "examples", "template"];
                let key = keys.into_iter().find(|key| message.starts_with(key));
                keep(key.unwrap_or("template"), form);
            }
        }
        let data = planner.lengths("data", &self.data, RowKind::Responses, usize::MAX);
        planner.check_responses(&self.data, PAIR);
        let responses = planner.responses_of(&self.data).unwrap_or(2);
        let pairs = num_pairs(responses, self.max_pairs);
        let orders = if self.both_orders { 2.0 } else { 1.0 };
        let questions = (data.rows * pairs) as f64 * orders;
        // Of a row with K responses a question holds two.
        let of_row = data.mean * 2.0 / responses.max(2) as f64 + OF_QUESTION;
        plan.rows = data.rows;
        plan.steps = data.rows;
        plan.tokens = (questions * of_row) as u64;
        if self.judge.model().is_some() {
            plan.work.forward = questions * of_row;
            let thought = self.chain_of_thought.as_ref().map_or(0, |r| r.max_tokens);
            plan.work.sampled = questions * thought as f64;
        }
        if self.judge.model().is_some() {
            // One pass over packed questions, or chains of thought for several at once.
            let work = match &self.chain_of_thought {
                None => Workload::Generate {
                    batch: PASS_QUESTIONS,
                    prompt: PASS_TOKENS / PASS_QUESTIONS - 1,
                    response: 1,
                },
                Some(reasoning) => Workload::Generate {
                    batch: TEXTS_AT_ONCE,
                    prompt: longest(&data, PASS_TOKENS as usize).max(1),
                    response: reasoning.max_tokens as u64,
                },
            };
            plan.memory = estimate(work, &plan.shape);
            plan.workload = Some(work);
        }
        let len = data.mean / responses.max(2) as f64;
        let held_out = self.valid_fraction;
        plan.leaves = Some(ScoredRows::of_pairs(data.rows, held_out, pairs, len));
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let encoded = encode_comparisons(rows, tokenizer, &self.data.format, usize::MAX)?;
        Ok(Preview::comparisons(encoded, |i, prompt, _| i >= prompt))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::judge(session, self)
    }
}
