//! The plan of a stage, made before any weight is loaded.

mod lengths;
mod memory;
mod on_policy;
mod optimiser;
mod scored_rows;
mod stage_rows;
mod work;

use std::collections::BTreeMap;

pub use lengths::Lengths;
pub(super) use lengths::RowLength;
use lengths::{of_comparisons, of_example, of_labelled, of_prompt};
pub(super) use memory::FLOAT;
pub use memory::{ModelShape, Workload, estimate};
pub(super) use on_policy::{OnPolicyPlan, UpdateParams};
pub use scored_rows::ScoredRows;
pub(super) use scored_rows::{PAIR, num_pairs, split};
pub(super) use work::num_evaluations;
pub use work::{Pace, Work};

use super::config::{Init, Peft};
use super::{GenerationSettings, Stage, StageOutput, TrainingSettings};
use crate::data::{
    CheckedData, DataCheck, DataConfig, DataSource, Ratings, Row, RowKind, StageRows,
    TextsOrCompletions, Tokenizer, encode_all, encode_comparisons, encode_labelled, encode_prompts,
    encode_text,
};
use crate::error::{Error, Result};
use crate::model::{
    ModelConfig, ModelLayer, TrainedTensor, layers, trained_summary, trained_tensors,
};
use crate::ops::Precision;
use crate::params::{ParamKind, lowest_trained_layer};
use crate::peft::LayerKind;

/// The plan of one stage: sizes, steps and memory.
#[derive(Debug, Clone, PartialEq)]
pub struct StagePlan {
    /// The stage's name.
    pub name: String,
    /// The stage's kind, as the recipe writes it.
    pub kind: String,
    /// Trained parameters of all networks.
    pub trainable_params: u64,
    /// Layers that are trained or have an adapter, on a line; empty if none are, or all.
    pub trained: String,
    /// All parameters in memory.
    pub total_params: u64,
    /// Rows of data that are used.
    pub rows: u64,
    /// Tokens that pass through the model in the whole stage.
    pub tokens: u64,
    /// Optimiser steps, PPO updates, or batches of a stage that does not train.
    pub steps: u64,
    /// Estimated bytes by component at the peak.
    pub memory: Vec<(String, u64)>,
    /// The sizes of its passes, from which the memory is estimated.
    pub workload: Option<Workload>,
    /// How much it computes.
    pub work: Work,
    /// Expected length of the responses of the policy that it trains, in tokens, if it teaches what to say.
    pub response: Option<f64>,
    /// Sizes of the model.
    pub shape: ModelShape,
    /// Rank of the trained low-rank adapters.
    pub rank: Option<usize>,
    /// The scored rows that the stage is expected to write.
    pub leaves: Option<ScoredRows>,
    /// Settings and data without effect, by key below the stage.
    pub warnings: Vec<(&'static str, String)>,
}

impl StagePlan {
    /// Warns of a warm-up that the stage is too short for.
    pub(super) fn warn_of_warmup(&mut self, training: &TrainingSettings<'_>) {
        let warmup = training.optim.schedule.warmup_steps(self.steps as usize);
        if self.steps > 0 && warmup as u64 >= self.steps {
            let message = format!(
                "the warm-up takes {warmup} steps and the stage has {}: the learning rate never reaches its peak",
                self.steps
            );
            self.warnings.push(("optim.schedule", message));
        }
    }

    /// Estimated peak in bytes.
    pub fn peak(&self) -> u64 {
        (self.memory.iter()).fold(0, |peak, (_, bytes)| peak.saturating_add(*bytes))
    }
}

/// What is expected of earlier stages, by stage.
#[derive(Debug, Clone, Default)]
pub struct EarlierStages {
    /// The scored rows that they will write.
    pub rows: BTreeMap<String, ScoredRows>,
    /// Expected lengths of the responses of their policies, in tokens.
    pub responses: BTreeMap<String, f64>,
}

/// The parts of a model that plans need.
#[derive(Debug, Clone, Copy)]
pub struct PlannedModel<'a> {
    /// Its configuration.
    pub config: &'a ModelConfig,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Storage precision of frozen weights.
    pub precision: Precision,
    /// Bytes of all weights where they are kept as the file has them.
    pub stored_bytes: u64,
}

/// The inputs of a stage's plan, and the problems found while planning.
pub struct Planner<'a> {
    model: PlannedModel<'a>,
    data: &'a CheckedData,
    earlier: &'a EarlierStages,
    problems: Vec<(String, Error)>,
}

impl Stage {
    /// Plans the stage from the checks of its `data` and what is expected of `earlier` stages; also returns problems by key below the
    /// stage.
    ///
    /// # Errors
    /// `Error::Usage` if `peft` names layers that the model does not have.
    pub fn plan(
        &self,
        model: PlannedModel<'_>,
        data: &CheckedData,
        earlier: &EarlierStages,
    ) -> Result<(StagePlan, Vec<(String, Error)>)> {
        let trained = self.trained_tensors(model.config)?;
        let layers = layers(model.config, self.trains_scores(), &trained);
        let shape = self.shape(model, &trained, &layers)?;
        let mut plan = StagePlan {
            name: self.name().to_owned(),
            kind: self.kind().to_owned(),
            trainable_params: shape.trainable_params,
            trained: self.trained_layers(&layers),
            total_params: shape.total_params,
            rows: 0,
            tokens: 0,
            steps: 0,
            memory: Vec::new(),
            workload: None,
            work: Work::default(),
            response: None,
            shape,
            rank: (self.training()).and_then(|training| training.peft.adapter()?.rank()),
            leaves: None,
            warnings: Vec::new(),
        };
        let mut planner = Planner {
            model,
            data,
            earlier,
            problems: Vec::new(),
        };
        for data in self.inputs().data {
            planner.check_parts(data.key, data.config);
        }
        self.plan_own(&mut planner, &mut plan);
        Ok((plan, planner.problems))
    }

    /// The tensors that the stage trains of its model.
    ///
    /// # Errors
    /// As [`Stage::plan`].
    fn trained_tensors(&self, config: &ModelConfig) -> Result<Vec<TrainedTensor>> {
        match self.training() {
            Some(training) => trained_tensors(config, self.trains_scores(), training.peft),
            None => Ok(Vec::new()),
        }
    }

    /// Whether its model has a score head.
    fn trains_scores(&self) -> bool {
        self.output() == StageOutput::RewardModel
    }

    /// See [`StagePlan::trained`].
    fn trained_layers(&self, layers: &[ModelLayer]) -> String {
        match self.training().map(|training| training.peft) {
            None | Some(Peft::Full) => String::new(),
            Some(_) => trained_summary(layers),
        }
    }

    /// The sizes of the stage's model, adapters and heads that it adds included.
    ///
    /// # Errors
    /// As [`Stage::plan`].
    pub fn plan_shape(&self, model: PlannedModel<'_>) -> Result<ModelShape> {
        let trained = self.trained_tensors(model.config)?;
        let layers = layers(model.config, self.trains_scores(), &trained);
        self.shape(model, &trained, &layers)
    }

    fn shape(
        &self,
        model: PlannedModel<'_>,
        trained: &[TrainedTensor],
        layers: &[ModelLayer],
    ) -> Result<ModelShape> {
        let mut shape = ModelShape::of(model.config, model.precision);
        shape.stored_bytes = model.stored_bytes;
        if let Some(training) = self.training() {
            shape.gradient_checkpointing = training.gradient_checkpointing;
            shape.optimizer_bytes = optimiser::state_bytes(training.optim, trained);
            plan_trained(&mut shape, model.config, training.peft, trained, layers)?;
        }
        Ok(shape)
    }
}

/// Number of entries of some tensors.
fn entries<'a>(tensors: impl Iterator<Item = &'a TrainedTensor>) -> u64 {
    tensors.map(|tensor| tensor.num_entries() as u64).sum()
}

/// Sets in `shape` what follows from `trained`, what `peft` trains, and the model's `layers`.
fn plan_trained(
    shape: &mut ModelShape,
    config: &ModelConfig,
    peft: &Peft,
    trained: &[TrainedTensor],
    layers: &[ModelLayer],
) -> Result<()> {
    // What the model has beside the base's parameters: tensors of the base that are trained beside adapters are copies.
    let whole = peft.trains_base();
    let is_added = |tensor: &&TrainedTensor| {
        !whole || matches!(tensor.kind, ParamKind::Adapter | ParamKind::Score)
    };
    shape.trains_base = peft.trains_base();
    shape.trainable_params = entries(trained.iter());
    shape.total_params += entries(trained.iter().filter(is_added));
    let mut reached = layers.iter().map(|layer| {
        let params = layer.trained_params + layer.adapter_params;
        (layer.path.as_str(), params > 0)
    });
    shape.first_trained_layer = lowest_trained_layer(&mut reached, config.num_layers()) as u64;
    let Some(adapter) = peft.adapter() else {
        return Ok(());
    };
    shape.virtual_tokens = adapter.num_virtual_tokens() as u64;
    let linear = config.adaptable_modules(&adapter);
    let targets = adapter.targets(&linear)?;
    let targets = targets.iter().map(|&i| &linear[i]);
    let head = (targets.clone()).find(|layer| layer.kind == LayerKind::Head);
    shape.adapted_head = head.map_or(0, |head| (head.in_features * head.out_features) as u64);
    let kept = targets.map(|layer| adapter.kept_floats(layer));
    // What a trained norm gives is stored; that of a frozen one is computed again.
    let norms = trained
        .iter()
        .filter(|tensor| tensor.kind == ParamKind::Vector && tensor.name.ends_with(".weight"));
    let kept = kept.sum::<usize>() + norms.count() * config.hidden_size();
    shape.adapter_floats = (kept / config.num_layers()) as u64;
    Ok(())
}

impl Planner<'_> {
    /// The check of a data set.
    pub(super) fn found(&self, data: &DataConfig, kind: RowKind) -> Option<&DataCheck> {
        self.data.found(data, kind)
    }

    /// Adds a problem with the value of `key`.
    pub(super) fn problem(&mut self, key: &str, message: impl Into<String>) {
        let error = Error::Usage(message.into());
        self.problems.push((key.to_owned(), error));
    }

    /// Rows of the data set at `key` and their lengths, from a sample. A data set without usable rows is a problem.
    pub(super) fn lengths(
        &mut self,
        key: &str,
        data: &DataConfig,
        kind: RowKind,
        max_length: usize,
    ) -> Lengths {
        let stages = data.source.stages();
        let earlier = |of: &StageRows<'_>| {
            let rows = self.earlier.rows.get(of.stage)?;
            Some(rows.lengths(kind, of.valid, data.format.take))
        };
        let earlier: Option<Vec<Lengths>> = stages.iter().map(earlier).collect();
        if let DataSource::Mix(parts) = &data.source
            && !stages.is_empty()
        {
            // Of the other sets so many rows are taken as the weights say, if they have them.
            let known = earlier.and_then(|all| all.into_iter().reduce(Lengths::with));
            let weight = |of_stages: bool| -> f64 {
                (parts.iter())
                    .filter(|(_, part)| !of_stages || part.source.is_of_stages())
                    .map(|(weight, _)| weight)
                    .sum()
            };
            let share = weight(true) / weight(false);
            return known.map_or_else(
                || Lengths::unseen(0, 0.0),
                |of| Lengths::unseen((of.rows as f64 / share) as u64, of.mean),
            );
        }
        if let Some(earlier) = earlier
            && let Some(all) = earlier.into_iter().reduce(Lengths::with)
        {
            return all;
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
            let examples = match kind {
                RowKind::Text => encode_text(rows, tokenizer, format, max_length)?,
                RowKind::Completion | RowKind::TextOrCompletion => {
                    let encoding = TextsOrCompletions {
                        max_length,
                        completion_only: true,
                        texts: kind == RowKind::TextOrCompletion,
                    };
                    encode_all(&encoding, rows, tokenizer, format)?
                }
                // The file is not on this machine.
                RowKind::Scored => return Ok(Vec::new()),
                RowKind::Rated => {
                    let encoded = encode_all(&Ratings { max_length }, rows, tokenizer, format)?;
                    return Ok(encoded.items.iter().map(of_comparisons).collect());
                }
                RowKind::Preference | RowKind::Responses => {
                    let encoded = encode_comparisons(rows, tokenizer, format, max_length)?;
                    return Ok(encoded.items.iter().map(of_comparisons).collect());
                }
                RowKind::Labelled => {
                    let encoded = encode_labelled(rows, tokenizer, format, max_length)?;
                    return Ok(encoded.items.iter().map(of_labelled).collect());
                }
                RowKind::Prompt => {
                    let encoded = encode_prompts(rows, tokenizer, format, max_length)?;
                    return Ok(encoded.items.iter().map(of_prompt).collect());
                }
            };
            Ok(examples.items.iter().map(of_example).collect())
        };
        // If all rows of the sample are left out, nothing is known of the rest.
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

    /// Parameters that `peft`, the value of `key`, trains of a value network on the stage's model; its head is not counted.
    pub(super) fn num_value_params(&mut self, key: &str, peft: &Peft) -> u64 {
        match trained_tensors(self.model.config, true, peft) {
            Ok(trained) => {
                entries((trained.iter()).filter(|tensor| tensor.kind != ParamKind::Score))
            }
            Err(error) => {
                self.problems.push((key.to_owned(), error));
                0
            }
        }
    }

    /// Plans training by epochs over `data`; `longest` is the longest row in tokens. `targets`: whether log-probabilities are
    /// computed; a reward model has scores instead of logits.
    pub(super) fn train(
        &mut self,
        plan: &mut StagePlan,
        training: &TrainingSettings<'_>,
        data: &Lengths,
        longest: usize,
        targets: bool,
    ) {
        let (epochs, batch_size) = (training.epochs.unwrap_or(1) as u64, training.batch_size);
        plan.rows = data.rows;
        plan.tokens = ((data.rows as f64 * data.mean) as u64).saturating_mul(epochs);
        plan.steps = (data.rows.div_ceil(batch_size as u64)).saturating_mul(epochs);
        if let Some(steps) = training.max_steps {
            let share = steps as f64 / plan.steps.max(1) as f64;
            plan.tokens = (plan.tokens as f64 * share) as u64;
            plan.steps = steps as u64;
        }
        if data.mean > 0.0 && data.rows < batch_size as u64 {
            let message = format!(
                "the data have {} rows, fewer than a batch: an epoch is one step",
                data.rows
            );
            plan.warnings.push(("batch_size", message));
        }
        // A step may have fewer tokens than fit in one pass.
        let most = batch_size.saturating_mul(longest);
        let step = data.largest(batch_size, plan.steps);
        let step = step.map_or(most, |step| step.min(most));
        let micro_tokens = training.micro_batch_tokens.min(step) as u64;
        let scores = !targets;
        let targets = match targets {
            true => data.targets_of(micro_tokens),
            false => 0,
        };
        let row = data.mean.max(1.0);
        let work = Workload::Train {
            micro_tokens,
            rows: (micro_tokens as f64 / row).ceil() as u64,
            targets,
        };
        plan.memory = estimate(work, &plan.shape);
        plan.workload = Some(work);
        let steps_of_epoch = data.rows.div_ceil(batch_size as u64).max(1);
        plan.work.trained += data.passed_tokens() * plan.steps as f64 / steps_of_epoch as f64;
        plan.work.updates += plan.steps as f64;
        plan.warn_of_warmup(training);
        self.check_groups("optim", training.optim, training.peft, scores);
    }

    /// Plans generation of responses to `data`.
    pub(super) fn generate(
        &self,
        plan: &mut StagePlan,
        generation: Option<GenerationSettings<'_>>,
        data: &Lengths,
    ) {
        let Some(generation) = generation else { return };
        let work = Workload::Generate {
            batch: generation.generation_batch_size as u64,
            prompt: longest(data, generation.max_prompt_length),
            response: generation.response_length as u64,
        };
        plan.memory = estimate(work, &plan.shape);
        plan.workload = Some(work);
    }

    /// Expected length of a response of the policy that `init` names, in tokens: that of what its stage was taught, and
    /// `response_length` at most.
    pub(super) fn response_of(&self, init: &Init, response_length: usize) -> f64 {
        let taught = match init {
            Init::Stage(stage) => self.earlier.responses.get(stage).copied(),
            _ => None,
        };
        let most = response_length as f64;
        taught.map_or(most, |taught| taught.min(most))
    }
}

/// Expected longest row of a data set in tokens; at most `most`.
pub(super) fn longest(data: &Lengths, most: usize) -> u64 {
    (data.largest(1, data.rows)).map_or(most, |len| len.min(most)) as u64
}
