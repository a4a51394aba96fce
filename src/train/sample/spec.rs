//! The stage specification of Sample.

use super::{SampleConfig, Sampling};
use crate::data::{Row, RowKind, Tokenizer, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::reward::RewardConfig;
use crate::train::checks::Checks;
use crate::train::config::DataConfig;
use crate::train::plan::{Planner, ScoredRows, StagePlan, split};
use crate::train::{
    GenerationSettings, Outcome, Preview, Session, StageInputs, StageOutput, StageSpec,
};

impl StageSpec for SampleConfig {
    const OUTPUT: StageOutput = StageOutput::Rows(RowKind::Scored);

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init)
            .data("data", &self.data, RowKind::Prompt)
            .reward("reward", self.reward.as_ref())
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

    fn leaves_scores(&self) -> bool {
        self.reward.is_some()
    }

    fn valid_fraction(&self) -> Option<f64> {
        Some(self.valid_fraction)
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        checks.positive(path, "num_responses", self.num_responses);
        checks.not_negative(path, "tie_margin", self.tie_margin);
        checks.temperature_or_zero(path, "sampling.temperature", self.sampling.temperature);
        if self.num_responses > 1 && self.sampling.temperature == 0.0 {
            checks.problem(
                format!("{path}.sampling.temperature"),
                format!(
                    "at temperature 0 all {} responses to a prompt are equal",
                    self.num_responses
                ),
            );
            checks.help("set a temperature above 0, or `num_responses: 1`");
            checks.depends_on(format!("{path}.num_responses"));
        }
        if self.tie_margin > 0.0 && self.reward.is_none() {
            checks.problem(
                format!("{path}.tie_margin"),
                "is a difference of scores, and without a `reward` there are none",
            );
            checks.help("leave out `tie_margin`, or add a `reward`");
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let longest = self.max_prompt_length;
        let data = planner.lengths("data", &self.data, RowKind::Prompt, longest);
        let own = usize::from(self.include_completions);
        let count = (self.num_responses + own) as f64;
        plan.rows = data.rows;
        plan.steps = data.rows;
        let tokens = self.num_responses as f64 * (data.mean + self.response_length as f64);
        plan.tokens = (data.rows as f64 * tokens) as u64;
        planner.generate(plan, self.generation(), &data);
        let response = planner.response_of(&self.init, self.response_length);
        let rows = data.rows as f64;
        plan.work.sampled = rows * self.num_responses as f64 * response;
        // Responses to one prompt share its pass.
        plan.work.forward = rows * data.mean;
        let learned = self.reward.as_ref().map_or(0, RewardConfig::num_learned);
        plan.work.forward += learned as f64 * rows * count * (data.mean + response);
        let (prompts, held_out) = split(data.rows, self.valid_fraction);
        plan.leaves = Some(ScoredRows {
            prompts,
            held_out,
            responses: self.num_responses + own,
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
        let work = Sampling {
            name: &self.name,
            init: &self.init,
            data: &self.data,
            num_responses: self.num_responses,
            response_length: self.response_length,
            max_prompt_length: self.max_prompt_length,
            sampling: &self.sampling,
            truncate: self.truncate.as_ref(),
            reward: self.reward.as_ref(),
            include_completions: self.include_completions,
            tie_margin: self.tie_margin,
            batch_size: self.generation_batch_size,
            valid_fraction: self.valid_fraction,
            verb: "sampled",
            with_ranks: true,
        };
        super::sample(session, &work)
    }
}
