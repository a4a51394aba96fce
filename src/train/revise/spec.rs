//! The stage specification of Revise.

use super::{Keep, ReviseConfig};
use crate::data::{Row, RowKind, Tokenizer, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::config::DataConfig;
use crate::train::plan::{Planner, ScoredRows, StagePlan, split};
use crate::train::{
    GenerationSettings, Outcome, Preview, Session, StageInputs, StageOutput, StageSpec,
};

impl StageSpec for ReviseConfig {
    const OUTPUT: StageOutput = StageOutput::Rows(RowKind::Completion);

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init).data("data", &self.data, RowKind::Prompt)
    }

    fn data_mut(&mut self) -> Vec<&mut DataConfig> {
        vec![&mut self.data]
    }

    fn generation(&self) -> Option<GenerationSettings<'_>> {
        Some(GenerationSettings {
            response_length: self.response_length,
            max_prompt_length: self.max_prompt_length,
            generation_batch_size: self.generation_batch_size,
            sampling: Some(&self.sampling),
            truncate: None,
        })
    }

    fn valid_fraction(&self) -> Option<f64> {
        Some(self.valid_fraction)
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        checks.positive(path, "num_revisions", self.num_revisions);
        if let Some(length) = self.critique_length {
            checks.positive(path, "critique_length", length);
        }
        checks.temperature_or_zero(path, "sampling.temperature", self.sampling.temperature);
        checks.must(
            format!("{path}.stop"),
            self.stop.iter().all(|stop| !stop.is_empty()),
            "texts of at least a character",
            &self.stop,
        );
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        // Small files, read here so that a run does not end at them hours later.
        if let Err(error) = self.principles() {
            planner.problem("principles", error.to_string());
        }
        if let Err(error) = self.examples() {
            planner.problem("examples", error.to_string());
        }
        let longest = self.max_prompt_length;
        let data = planner.lengths("data", &self.data, RowKind::Prompt, longest);
        planner.generate(plan, self.generation(), &data);
        let rows = data.rows as f64;
        let response = planner.response_of(&self.init, self.response_length);
        let critique = match self.critique {
            true => self.critique_length.unwrap_or(self.response_length) as f64,
            false => 0.0,
        };
        let rounds = self.num_revisions as f64;
        plan.rows = data.rows;
        plan.steps = data.rows;
        plan.work.sampled = rows * (response + rounds * (critique + response));
        // Requests hold the prompt, the newest response and the critique; those of examples are not counted.
        let requests = if self.critique { 2.0 } else { 1.0 };
        let request = data.mean + response + critique;
        plan.work.forward = rows * (data.mean + rounds * requests * request);
        plan.tokens = (plan.work.sampled + plan.work.forward) as u64;
        let kept = match self.keep {
            Keep::All => self.num_revisions as u64,
            Keep::Last => 1,
        };
        let (prompts, held_out) = split(data.rows, self.valid_fraction);
        plan.leaves = Some(ScoredRows {
            prompts: prompts * kept,
            held_out: held_out * kept,
            responses: 1,
            len: data.mean + self.response_length as f64,
            expected: (data.mean, response),
            judged: false,
        });
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let (format, longest) = (&self.data.format, self.max_prompt_length);
        let encoded = encode_prompts(rows, tokenizer, format, longest)?;
        Ok(Preview::prompts(encoded))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::revise(session, self)
    }
}
