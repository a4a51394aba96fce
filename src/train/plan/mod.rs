//! What a stage will do and need, before any weight is loaded.

mod lengths;
mod memory;

use std::collections::BTreeMap;

pub use lengths::Lengths;
pub(super) use lengths::RowLength;
pub(super) use memory::FLOAT;
pub use memory::{ModelShape, Work, estimate};

use super::config::Peft;
use super::{GenerationSettings, Gives, Stage, TrainingSettings};
use crate::data::{
    CheckedData, Comparisons, DataCheck, DataConfig, Example, Prompt, Row, RowKind, Tokenizer,
    encode_comparisons, encode_completions, encode_prompts, encode_text, is_plain_text,
};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, trained_tensors};
use crate::ops::Precision;
use crate::params::lowest_trained_layer;

/// What one stage will do and need.
#[derive(Debug, Clone, PartialEq)]
pub struct StagePlan {
    /// The stage's name.
    pub name: String,
    /// The stage's kind, as the recipe writes it.
    pub kind: String,
    /// Parameters that are trained, over all trained networks.
    pub trainable_params: u64,
    /// Parameters held in all.
    pub total_params: u64,
    /// Rows of data in use.
    pub rows: u64,
    /// Tokens that pass through the model in the whole stage.
    pub tokens: u64,
    /// Optimiser steps, PPO updates, or batches of a stage that does not train.
    pub steps: u64,
    /// Estimated bytes by component at the peak.
    pub memory: Vec<(String, u64)>,
    /// Sizes of its model.
    pub shape: ModelShape,
    /// Rank of the low-rank products that it trains.
    pub rank: Option<usize>,
    /// The rows that the stage is expected to leave.
    pub leaves: Option<ScoredRows>,
    /// What has no effect though it looks as if it had, by key below the stage.
    pub warnings: Vec<(&'static str, String)>,
}

impl StagePlan {
    /// Estimated peak in bytes.
    pub fn peak(&self) -> u64 {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Scored responses that a stage is expected to leave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredRows {
    /// Rows.
    pub prompts: u64,
    /// Responses of each.
    pub responses: usize,
    /// Mean length of prompt and response, in tokens.
    pub len: f64,
}

impl ScoredRows {
    /// As rows of this kind: all responses of a prompt together where they are compared, else one of them.
    fn lengths(&self, kind: RowKind) -> Lengths {
        let responses = match kind {
            RowKind::Preference => self.responses,
            _ => 1,
        };
        Lengths::unseen(self.prompts, responses as f64 * self.len)
    }
}

/// A model as far as plans need it.
#[derive(Debug, Clone, Copy)]
pub struct PlannedModel<'a> {
    /// Its configuration.
    pub config: &'a ModelConfig,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// How frozen weights are stored.
    pub precision: Precision,
}

/// What the plan of a stage is made from, and what is found wrong on the way.
pub struct Planner<'a> {
    model: PlannedModel<'a>,
    data: &'a CheckedData,
    /// Rows that earlier stages will leave, by stage.
    rows_of_stages: &'a BTreeMap<String, ScoredRows>,
    problems: Vec<(String, Error)>,
}

impl Stage {
    /// Its plan, and problems by key below the stage, from what was found of its `data`; `rows_of_stages` says what rows earlier stages will leave.
    ///
    /// # Errors
    /// `Error::Usage` if `peft` names layers that the model does not have.
    pub fn plan(
        &self,
        model: PlannedModel<'_>,
        data: &CheckedData,
        rows_of_stages: &BTreeMap<String, ScoredRows>,
    ) -> Result<(StagePlan, Vec<(String, Error)>)> {
        let shape = self.plan_shape(model)?;
        let mut plan = StagePlan {
            name: self.name().to_owned(),
            kind: self.kind().to_owned(),
            trainable_params: shape.trainable_params,
            total_params: shape.total_params,
            rows: 0,
            tokens: 0,
            steps: 0,
            memory: Vec::new(),
            shape,
            rank: (self.training()).and_then(|training| training.peft.adapter()?.rank()),
            leaves: None,
            warnings: Vec::new(),
        };
        let mut planner = Planner {
            model,
            data,
            rows_of_stages,
            problems: Vec::new(),
        };
        self.plan_own(&mut planner, &mut plan);
        Ok((plan, planner.problems))
    }

    /// The sizes of its model, what it adds to it included.
    ///
    /// # Errors
    /// As [`Stage::plan`].
    pub fn plan_shape(&self, model: PlannedModel<'_>) -> Result<ModelShape> {
        let mut shape = ModelShape::of(model.config, model.precision);
        if let Some(training) = self.training() {
            shape.gradient_checkpointing = training.gradient_checkpointing;
            let scores = self.gives() == Gives::RewardModel;
            plan_trained(&mut shape, model.config, training.peft, scores)?;
        }
        Ok(shape)
    }
}

/// Notes in `shape` the parameters that `peft` trains, and how far down gradients reach; `scores`: the head is a score head.
fn plan_trained(
    shape: &mut ModelShape,
    config: &ModelConfig,
    peft: &Peft,
    scores: bool,
) -> Result<()> {
    let lowest = |parameters: &mut dyn Iterator<Item = (&str, bool)>| {
        lowest_trained_layer(parameters, config.num_layers()) as u64
    };
    shape.trains_base = peft.trains_base();
    let Some(adapter) = peft.adapter() else {
        let tensors = match scores {
            true => config.classifier_tensors(),
            false => config.tensors(),
        };
        let trained = trained_tensors(peft, &tensors)?;
        let params = trained.iter().map(|t| t.shape.iter().product::<usize>());
        shape.trainable_params = (params.sum::<usize>() as u64).min(shape.total_params);
        let mut all = (tensors.iter()).map(|t| (t.name.as_str(), trained.contains(&t)));
        shape.first_trained_layer = lowest(&mut all);
        return Ok(());
    };
    let linear = config.linear_modules();
    let targets = adapter.targets(&linear)?;
    let params = targets.iter().map(|&i| adapter.num_params(&linear[i]));
    shape.trainable_params = params.sum::<usize>() as u64;
    shape.total_params += shape.trainable_params;
    let mut adapted = targets.iter().map(|&i| (linear[i].name.as_str(), true));
    shape.first_trained_layer = lowest(&mut adapted);
    Ok(())
}

impl Planner<'_> {
    /// What was found of a data set.
    pub(super) fn found(&self, data: &DataConfig, kind: RowKind) -> Option<&DataCheck> {
        self.data.found(data, kind)
    }

    /// Notes a problem with the value of `key`.
    pub(super) fn problem(&mut self, key: &str, message: impl Into<String>) {
        let error = Error::Usage(message.into());
        self.problems.push((key.to_owned(), error));
    }

    /// Rows of a data set and their lengths, from a sample; `key` is where the stage holds it. A data set of which nothing is
    /// left to use is a problem.
    pub(super) fn lengths(
        &mut self,
        key: &str,
        data: &DataConfig,
        kind: RowKind,
        max_length: usize,
    ) -> Lengths {
        let source = &data.source;
        if let Some(rows) = source
            .stage()
            .and_then(|of| self.rows_of_stages.get(of.stage))
        {
            return rows.lengths(kind);
        }
        let is_sound = |found: &&DataCheck| found.problems.is_empty();
        let found = (self.data.found(data, kind))
            .filter(is_sound)
            .and_then(|found| Some((found.num_rows?, found.sample.as_slice())));
        let Some((num_rows, sample)) = found else {
            return Lengths::unseen(data.limit.unwrap_or(0) as u64, 0.0);
        };
        let lens = |rows: &[Row]| -> Result<Vec<RowLength>> {
            let (tokenizer, format) = (self.model.tokenizer, &data.format);
            let text = || encode_text(rows, tokenizer, format, max_length);
            let examples = match kind {
                RowKind::Text => text()?,
                RowKind::TextOrCompletion if rows.first().is_some_and(is_plain_text) => text()?,
                RowKind::Completion | RowKind::TextOrCompletion => {
                    encode_completions(rows, tokenizer, format, max_length, true)?
                }
                // No file that is here holds them.
                RowKind::Scored => return Ok(Vec::new()),
                RowKind::Preference => {
                    let encoded = encode_comparisons(rows, tokenizer, format, max_length)?;
                    return Ok(encoded.items.iter().map(of_comparisons).collect());
                }
                RowKind::Prompt => {
                    let encoded = encode_prompts(rows, tokenizer, format, max_length)?;
                    return Ok(encoded.items.iter().map(of_prompt).collect());
                }
            };
            Ok(examples.items.iter().map(of_example).collect())
        };
        // A sample that is wholly left out says nothing of the rest.
        let sample = lens(sample).or_else(|error| match num_rows > sample.len() {
            true => lens(&self.data.rows(data)?),
            false => Err(error),
        });
        let sample = sample.unwrap_or_else(|error| {
            self.problems.push((key.to_owned(), error));
            Vec::new()
        });
        Lengths::new(num_rows as u64, &sample)
    }

    /// Plans training by passes over `data`; `longest` is the most tokens of a row. With `targets`, log-probabilities are taken;
    /// a reward model has a score where a language model has logits.
    pub(super) fn train(
        &self,
        plan: &mut StagePlan,
        training: &TrainingSettings<'_>,
        data: &Lengths,
        longest: usize,
        targets: bool,
    ) {
        let (epochs, batch_size) = (training.epochs.unwrap_or(1) as u64, training.batch_size);
        plan.rows = data.rows;
        plan.tokens = (data.rows as f64 * data.mean) as u64 * epochs;
        plan.steps = data.rows.div_ceil(batch_size as u64) * epochs;
        // A step may have fewer tokens than fit into a pass.
        let most = batch_size.saturating_mul(longest);
        let step = data.largest(batch_size, plan.steps);
        let step = step.map_or(most, |step| step.min(most));
        let micro_tokens = training.micro_batch_tokens.min(step) as u64;
        let targets = match targets {
            true => data.targets_of(micro_tokens),
            false => 0,
        };
        let work = Work::Train {
            micro_tokens,
            targets,
        };
        plan.memory = estimate(work, &plan.shape);
    }

    /// Estimates the memory of generating responses to `data`.
    pub(super) fn generate(
        &self,
        plan: &mut StagePlan,
        generation: Option<GenerationSettings<'_>>,
        data: &Lengths,
    ) {
        let Some(generation) = generation else { return };
        let work = Work::Generate {
            batch: generation.generation_batch_size as u64,
            prompt: longest(data, generation.max_prompt_length),
            response: generation.response_length as u64,
        };
        plan.memory = estimate(work, &plan.shape);
    }
}

/// The longest of a data set's rows that is expected, in tokens; at most `most`.
pub(super) fn longest(data: &Lengths, most: usize) -> u64 {
    (data.largest(1, data.rows)).map_or(most, |len| len.min(most)) as u64
}

fn of_example(item: &Example) -> RowLength {
    let targets = item.trained.iter().filter(|&&trained| trained).count();
    RowLength::alone(item.ids.len(), targets)
}

fn of_prompt(item: &Prompt) -> RowLength {
    RowLength::alone(item.ids.len(), 0)
}

fn of_comparisons(item: &Comparisons) -> RowLength {
    let tokens: usize = item.responses.iter().map(Vec::len).sum();
    RowLength {
        tokens,
        passed: item.packed_len(),
        targets: tokens - item.responses.len() * item.prompt_len,
    }
}
