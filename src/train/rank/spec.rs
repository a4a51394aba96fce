//! The stage specification of Rank.

use super::RankConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::config::DataConfig;
use crate::train::plan::{Planner, ScoredRows, StagePlan, split};
use crate::train::{
    GenerationSettings, Outcome, Preview, Session, StageInputs, StageOutput, StageSpec,
};

impl StageSpec for RankConfig {
    const OUTPUT: StageOutput = StageOutput::Rows(RowKind::Scored);

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init)
            .data("data", &self.data, RowKind::Prompt)
            .reward("reward", &self.reward)
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
            truncate: self.truncate.as_ref(),
        })
    }

    fn valid_fraction(&self) -> Option<f64> {
        Some(self.valid_fraction)
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        checks.must(
            format!("{path}.num_responses"),
            self.num_responses >= 2,
            "at least 2: comparisons need two responses",
            self.num_responses,
        );
        checks.not_negative(path, "tie_margin", self.tie_margin);
        // At temperature 0 all responses to a prompt are equal.
        checks.temperature(path, "sampling.temperature", self.sampling.temperature);
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let longest = self.max_prompt_length;
        let data = planner.lengths("data", &self.data, RowKind::Prompt, longest);
        let responses = self.num_responses as f64 * (data.mean + self.response_length as f64);
        plan.rows = data.rows;
        plan.steps = data.rows;
        plan.tokens = (data.rows as f64 * responses) as u64;
        planner.generate(plan, self.generation(), &data);
        let response = planner.response_of(&self.init, self.response_length);
        let rows = data.rows as f64;
        let responses = rows * self.num_responses as f64;
        plan.work.sampled = responses * response;
        // Responses to one prompt share its pass.
        plan.work.forward = rows * data.mean;
        plan.work.forward += self.reward.num_learned() as f64 * responses * (data.mean + response);
        let (prompts, held_out) = split(data.rows, self.valid_fraction);
        plan.leaves = Some(ScoredRows {
            prompts,
            held_out,
            responses: self.num_responses,
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
        super::rank(session, self)
    }
}
