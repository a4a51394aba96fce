//! What a recipe's files hold: models, data and reward sources are looked at, and each stage is planned, before any
//! weight is loaded.

mod models;

use std::collections::BTreeMap;
use std::path::Path;

use super::known::{Known, open_model};
use super::lengths::{Lengths, RowLength};
use super::memory::{FLOAT, ModelShape, Work, estimate};
use super::uses::{sft_rows, uses};
use super::{Places, Recipe, Stage, StagePlan};
use crate::data::{
    Comparisons, DataConfig, DataContext, DataSource, Example, Prompt, Row, RowKind, Tokenizer,
    check_source, encode_comparisons, encode_completions, encode_prompts, encode_text,
    is_plain_text, read_rows,
};
use crate::error::{Problem, Result};
use crate::model::ModelConfig;
use crate::ops::Precision;
use crate::reward::{self, RewardConfig};
use crate::train::config::{Init, Peft, ValueTrunk};

/// Rows that are tokenised to estimate a data set's tokens.
const SAMPLE_ROWS: usize = 128;

/// Plans and problems of a recipe.
pub(super) struct Survey {
    pub(super) plans: Vec<StagePlan>,
    pub(super) problems: Vec<Problem>,
}

/// Looks at everything that the recipe names.
pub(super) fn survey(recipe: &Recipe, places: &Places, output: &Path) -> Survey {
    let mut surveyor = Surveyor {
        places,
        context: DataContext {
            run_dir: output.to_path_buf(),
            cache_dir: None,
        },
        model: recipe.model.as_deref(),
        base: None,
        by_stage: BTreeMap::new(),
        problems: Vec::new(),
    };
    if let Some(name) = &recipe.model {
        let found = open_model(name);
        surveyor.base = surveyor.keep("model", found);
    }
    let plans = recipe
        .stages
        .iter()
        .enumerate()
        .filter_map(|(index, stage)| {
            let path = places.stage_path(index, stage.name());
            surveyor.stage(stage, &path, recipe)
        })
        .collect();
    Survey {
        plans,
        problems: surveyor.problems,
    }
}

struct Surveyor<'a> {
    places: &'a Places,
    context: DataContext,
    /// The recipe's `model`.
    model: Option<&'a str>,
    base: Option<Known>,
    by_stage: BTreeMap<String, Known>,
    problems: Vec<Problem>,
}

impl Surveyor<'_> {
    /// The value, or `None` with the error noted at `key_path`.
    fn keep<T>(&mut self, key_path: &str, result: Result<T>) -> Option<T> {
        result
            .map_err(|error| {
                self.problems
                    .push(self.places.problem(key_path, error.to_string()))
            })
            .ok()
    }

    fn stage(&mut self, stage: &Stage, path: &str, recipe: &Recipe) -> Option<StagePlan> {
        let known = self.model_of(stage, path);
        let trains = matches!(
            stage,
            Stage::Pretrain(_)
                | Stage::Sft(_)
                | Stage::Dpo(_)
                | Stage::Ppo(_)
                | Stage::RewardModel(_)
        );
        if let (true, Some(known)) = (trains, &known) {
            self.by_stage.insert(stage.name().to_owned(), known.clone());
        }
        let uses = uses(stage);
        let before = self.problems.len();
        for (key, data, kind) in &uses.data {
            self.data(&format!("{path}.{key}"), data, *kind);
        }
        for (key, reward) in &uses.rewards {
            let place = format!("{path}.{key}");
            for problem in reward::check(reward, &place) {
                self.problems.push(Problem {
                    place: self.places.problem(&place, "").place,
                    ..problem
                });
            }
        }
        self.reward_models(stage, path, known.as_ref());
        let known = known?;
        self.positions(&known.config, stage, path);
        self.truncate(&known.tokenizer, stage, path);
        let shape = self.shape(&known, stage, path, recipe.base_precision)?;
        // Rows that are wrong in themselves were named above; they cannot be counted.
        if self.problems.len() > before {
            return None;
        }
        let plan = self.plan(stage, path, &known, shape, recipe);
        Some(plan)
    }

    /// Notes a stage whose rows may outgrow a table of learned positions.
    fn positions(&mut self, config: &ModelConfig, stage: &Stage, path: &str) {
        let (key, longest) = match stage {
            Stage::Pretrain(c) => ("max_length", c.max_length),
            Stage::Sft(c) => ("max_length", c.max_length),
            Stage::RewardModel(c) => ("max_length", c.max_length),
            Stage::Dpo(c) => ("max_length", c.max_length),
            Stage::Rank(c) => (
                "response_length",
                c.max_prompt_length.saturating_add(c.response_length),
            ),
            Stage::Ppo(c) => (
                "response_length",
                c.max_prompt_length.saturating_add(c.response_length),
            ),
            Stage::Compare(c) => (
                "response_length",
                c.max_prompt_length.saturating_add(c.response_length),
            ),
        };
        let mut lengths = vec![(key, longest)];
        if let Stage::Ppo(c) = stage
            && let Some(ptx) = &c.ptx
        {
            lengths.push(("ptx.max_length", ptx.max_length));
        }
        let most = config.max_positions();
        for (key, longest) in lengths {
            if config.has_learned_positions() && longest > most {
                let message = format!(
                    "rows may have {longest} tokens, prompt and response together; the model's table of positions takes at most {most}"
                );
                let problem = self.places.problem(&format!("{path}.{key}"), message);
                self.problems.push(problem);
            }
        }
    }

    /// Notes a text to truncate at that is not one token.
    fn truncate(&mut self, tokenizer: &Tokenizer, stage: &Stage, path: &str) {
        let truncate = match stage {
            Stage::Rank(c) => c.truncate.as_ref(),
            Stage::Ppo(c) => c.truncate.as_ref(),
            Stage::Compare(c) => c.truncate.as_ref(),
            _ => None,
        };
        if let Some(truncate) = truncate {
            let token = tokenizer.single_token(&truncate.token);
            self.keep(&format!("{path}.truncate.token"), token);
        }
    }

    fn data(&mut self, place: &str, data: &DataConfig, kind: RowKind) {
        if let DataSource::Ranked { .. } = data.source {
            return;
        }
        for problem in check_source(data, &self.context, kind) {
            // Problems of the file say where in the file; those of the recipe's own keys get their line.
            let problem = match problem.place.strip_prefix("data") {
                Some(rest) => {
                    let key = format!("{place}{rest}");
                    Problem {
                        help: problem.help,
                        ..self.places.problem(&key, problem.message)
                    }
                }
                None => problem,
            };
            self.problems.push(problem);
        }
    }

    fn shape(
        &mut self,
        known: &Known,
        stage: &Stage,
        path: &str,
        precision: Precision,
    ) -> Option<ModelShape> {
        let mut shape = ModelShape::of(&known.config, precision);
        shape.gradient_checkpointing = stage.gradient_checkpointing();
        match stage.peft() {
            None => {}
            Some(Peft::Full) => shape.trainable_params = shape.total_params,
            Some(Peft::Lora(lora)) => {
                let linear = known.config.linear_modules();
                let targets = lora.targets(&linear);
                let targets = self.keep(&format!("{path}.peft.target_modules"), targets)?;
                let entries: usize = targets
                    .iter()
                    .map(|&i| {
                        let layer = &linear[i];
                        lora.rank_of(&layer.name) * (layer.in_features + layer.out_features)
                    })
                    .sum();
                shape.trainable_params = entries as u64;
                shape.total_params += entries as u64;
            }
        }
        Some(shape)
    }

    /// Rows of a data set and their lengths, from a sample. A data set of which nothing is left to use is a problem at `place`.
    fn rows(
        &mut self,
        place: &str,
        data: &DataConfig,
        kind: RowKind,
        known: &Known,
        max_length: usize,
    ) -> Lengths {
        let unseen = matches!(
            data.source,
            DataSource::Hub { .. } | DataSource::Ranked { .. }
        );
        let rows = if unseen {
            None
        } else {
            read_rows(data, &self.context).ok()
        };
        let Some(rows) = rows else {
            return Lengths::unseen(data.limit.unwrap_or(0) as u64, 0.0);
        };
        let lens = |rows: &[Row]| -> Result<Vec<RowLength>> {
            let (tokenizer, format) = (&known.tokenizer, &data.format);
            let text = || encode_text(rows, tokenizer, format, max_length);
            let examples = match kind {
                RowKind::Text => text()?,
                RowKind::TextOrCompletion if rows.first().is_some_and(is_plain_text) => text()?,
                RowKind::Completion | RowKind::TextOrCompletion => {
                    encode_completions(rows, tokenizer, format, max_length, true)?
                }
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
        let lens = lens(&rows[..rows.len().min(SAMPLE_ROWS)]).or_else(|_| lens(&rows));
        let lens = self.keep(place, lens).unwrap_or_default();
        Lengths::new(rows.len() as u64, &lens)
    }

    /// Prompts with comparisons, and their tokens, all responses together.
    fn comparisons(
        &mut self,
        place: &str,
        data: &DataConfig,
        known: &Known,
        max_length: usize,
        recipe: &Recipe,
    ) -> Lengths {
        if let DataSource::Ranked { stage, .. } = &data.source
            && let Some(Stage::Rank(rank)) = recipe.stages.iter().find(|s| s.name() == stage)
        {
            let longest = rank.max_prompt_length;
            let prompts = self.rows(place, &rank.data, RowKind::Prompt, known, longest);
            let rows = (prompts.rows as f64 * (1.0 - rank.valid_fraction)) as u64;
            let len = rank.num_responses as f64 * (prompts.mean + rank.response_length as f64);
            return Lengths::unseen(rows, len);
        }
        self.rows(place, data, RowKind::Preference, known, max_length)
    }

    fn plan(
        &mut self,
        stage: &Stage,
        path: &str,
        known: &Known,
        shape: ModelShape,
        recipe: &Recipe,
    ) -> StagePlan {
        let place = format!("{path}.data");
        let mut plan = StagePlan {
            name: stage.name().to_owned(),
            kind: stage.kind().to_owned(),
            trainable_params: shape.trainable_params,
            total_params: shape.total_params,
            rows: 0,
            tokens: 0,
            steps: 0,
            memory: Vec::new(),
            shape,
            rank: match stage.peft() {
                Some(Peft::Lora(lora)) => Some(lora.rank),
                Some(Peft::Full) | None => None,
            },
        };
        // A step may have fewer tokens than fit into a pass.
        let train =
            |micro: usize, batch: usize, longest: usize, plan: &StagePlan, data: &Lengths| {
                let most = batch.saturating_mul(longest);
                let step = (data.largest(batch, plan.steps)).map_or(most, |step| step.min(most));
                let micro_tokens = micro.min(step) as u64;
                // A reward model has a score where a language model has logits.
                let targets = match stage {
                    Stage::RewardModel(_) => 0,
                    _ => data.targets_of(micro_tokens),
                };
                let work = Work::Train {
                    micro_tokens,
                    targets,
                };
                estimate(work, &shape)
            };
        let longest = |data: &Lengths, most: usize| {
            (data.largest(1, data.rows)).map_or(most, |len| len.min(most)) as u64
        };
        match stage {
            Stage::Pretrain(c) => {
                let data = self.rows(&place, &c.data, RowKind::Text, known, c.max_length);
                supervised(&mut plan, &data, c.epochs, c.batch_size);
                let (micro, batch) = (c.micro_batch_tokens, c.batch_size);
                plan.memory = train(micro, batch, c.max_length, &plan, &data);
            }
            Stage::Sft(c) => {
                let kind = sft_rows(c);
                let data = self.rows(&place, &c.data, kind, known, c.max_length);
                supervised(&mut plan, &data, c.epochs, c.batch_size);
                let (micro, batch) = (c.micro_batch_tokens, c.batch_size);
                plan.memory = train(micro, batch, c.max_length, &plan, &data);
            }
            Stage::Rank(c) => {
                let data = self.rows(&place, &c.data, RowKind::Prompt, known, c.max_prompt_length);
                plan.rows = data.rows;
                plan.steps = data.rows;
                plan.tokens = (data.rows as f64
                    * c.num_responses as f64
                    * (data.mean + c.response_length as f64)) as u64;
                let work = Work::Generate {
                    batch: c.generation_batch_size as u64,
                    prompt: longest(&data, c.max_prompt_length),
                    response: c.response_length as u64,
                };
                plan.memory = estimate(work, &shape);
            }
            Stage::RewardModel(c) => {
                let data = self.comparisons(&place, &c.data, known, c.max_length, recipe);
                supervised(&mut plan, &data, c.epochs, c.batch_size);
                let (micro, batch) = (c.micro_batch_tokens, c.batch_size);
                plan.memory = train(micro, batch, usize::MAX, &plan, &data);
            }
            Stage::Dpo(c) => {
                let data = self.comparisons(&place, &c.data, known, c.max_length, recipe);
                supervised(&mut plan, &data, c.epochs, c.batch_size);
                let (micro, batch) = (c.micro_batch_tokens, c.batch_size);
                plan.memory = train(micro, batch, usize::MAX, &plan, &data);
                let reference = match (&c.peft, c.precompute_ref_log_probs) {
                    // One number per token of the data.
                    (_, true) => (data.rows as f64 * data.mean) as u64,
                    (Peft::Full, false) => shape.total_params,
                    // The base is shared; what `init` has of adapters is not.
                    (Peft::Lora(_), false) if c.init == Init::Base => 0,
                    (Peft::Lora(_), false) => shape.trainable_params,
                };
                if reference > 0 {
                    plan.memory.push(("reference".into(), FLOAT * reference));
                }
            }
            Stage::Ppo(c) => {
                let data = self.rows(&place, &c.data, RowKind::Prompt, known, c.max_prompt_length);
                plan.rows = data.rows;
                plan.steps = (c.total_episodes / c.batch_size) as u64;
                plan.tokens =
                    (c.total_episodes as f64 * (data.mean + c.response_length as f64)) as u64;
                let trained = match c.value_trunk {
                    ValueTrunk::Own => 2,
                    ValueTrunk::Policy => 1,
                };
                plan.trainable_params *= trained;
                let learned = matches!(c.reward, RewardConfig::Learned { .. });
                let full = matches!(c.peft, Peft::Full);
                let networks = trained + u64::from(learned) + u64::from(full);
                let minibatch = c.batch_size / c.num_mini_batches.max(1);
                let draws = plan.steps * (c.num_ppo_epochs * c.num_mini_batches) as u64;
                let prompts = data.largest(minibatch, draws).unwrap_or(usize::MAX);
                let work = Work::Ppo {
                    micro_tokens: c.micro_batch_tokens.min(
                        prompts.min(minibatch.saturating_mul(c.max_prompt_length))
                            + minibatch.saturating_mul(c.response_length),
                    ) as u64,
                    targets: minibatch.saturating_mul(c.response_length) as u64,
                    batch: c.generation_batch_size as u64,
                    prompt: longest(&data, c.max_prompt_length),
                    response: c.response_length as u64,
                    networks,
                    trained,
                };
                plan.memory = estimate(work, &shape);
            }
            Stage::Compare(c) => {
                let data = self.rows(&place, &c.data, RowKind::Prompt, known, c.max_prompt_length);
                plan.rows = data.rows;
                plan.steps = c.policies.len() as u64;
                plan.tokens = (data.rows as f64
                    * c.policies.len() as f64
                    * (data.mean + c.response_length as f64)) as u64;
                let work = Work::Generate {
                    batch: c.generation_batch_size as u64,
                    prompt: longest(&data, c.max_prompt_length),
                    response: c.response_length as u64,
                };
                plan.memory = estimate(work, &shape);
            }
        }
        plan
    }
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

fn supervised(plan: &mut StagePlan, data: &Lengths, epochs: usize, batch_size: usize) {
    plan.rows = data.rows;
    plan.tokens = (data.rows as f64 * data.mean) as u64 * epochs as u64;
    plan.steps = data.rows.div_ceil(batch_size as u64) * epochs as u64;
}
