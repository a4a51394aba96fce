//! The stage specification of Pretrain.

use super::PretrainConfig;
use crate::data::{Row, RowKind, Tokenizer, encode_text};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::config::DataConfig;
use crate::train::plan::{Planner, StagePlan};
use crate::train::{
    MetricNames, Outcome, Preview, Session, StageInputs, StageOutput, StageSpec, TrainingSettings,
    supervised,
};

impl StageSpec for PretrainConfig {
    const OUTPUT: StageOutput = StageOutput::Policy;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init)
            .data("data", &self.data, RowKind::Text)
            .data("eval_data", self.eval_data.as_ref(), RowKind::Text)
    }

    fn data_mut(&mut self) -> Vec<&mut DataConfig> {
        std::iter::once(&mut self.data)
            .chain(&mut self.eval_data)
            .collect()
    }

    fn training(&self) -> Option<TrainingSettings<'_>> {
        Some(TrainingSettings {
            init: &self.init,
            peft: &self.peft,
            optim: &self.optim,
            epochs: Some(self.epochs),
            max_steps: self.max_steps,
            batch_size: self.batch_size,
            micro_batch_tokens: self.micro_batch_tokens,
            max_length: Some(self.max_length),
            gradient_checkpointing: self.gradient_checkpointing,
            cadence: &self.cadence,
        })
    }

    fn metrics(&self) -> MetricNames {
        supervised::metric_names()
    }

    fn check(&self, _: &mut Checks, _: &str) {}

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let data = planner.lengths("data", &self.data, RowKind::Text, self.max_length);
        if let Some(training) = self.training() {
            planner.train(plan, &training, &data, self.max_length, true);
            planner.held_out(plan, &training, self.eval_data.as_ref(), RowKind::Text);
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let encoded = encode_text(rows, tokenizer, &self.data.format, self.max_length)?;
        Ok(Preview::examples(encoded))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::pretrain(session, self)
    }
}
