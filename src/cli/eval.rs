//! `temper eval`.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::{ComputeArgs, EvalArgs, ModelArgs, RewardArg};
use super::eval_stages;
use super::logprobs::measure;
use super::model::{UnloadedModel, warn};
use super::output;
use super::respond::{self, MAX_NEW_TOKENS, Request, Show, TextResponse};
use super::rows::{self, BATCH_TOKENS, IdsRow, TextRows};
use crate::backend::{Task, dispatch};
use crate::data::{Prompt, Row, Tokenizer};
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use crate::model::{ClassifierSource, Fetch, Finder, Init, LanguageModel};
use crate::ops::ModelBackend;
use crate::report::{format_value, table};
use crate::reward::judge::{Graded, Judge, JudgeModel, LocalJudge};
use crate::reward::{
    self, Classifier, ClassifierSettings, Completion, CompletionEncoder, CustomRewards, Learned,
    LogProbability, ModelReward, ReadBy, RewardSource,
};
use crate::terminal;

/// Texts that a judge writes at once.
const JUDGE_TEXTS: usize = 32;
/// Default temperature of generated responses: greedy, so that everyone gets the same responses from the same model.
pub(super) const TEMPERATURE: f64 = 0.0;

/// The measurements; absent parts were not measured.
#[derive(Default, Serialize)]
struct Measurements {
    rows: usize,
    /// Number of measured tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<usize>,
    /// Mean negative log-likelihood over those tokens, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<f64>,
    /// Mean number of tokens of a response, EOS included.
    #[serde(skip_serializing_if = "Option::is_none")]
    response_length: Option<f64>,
    /// Fraction of responses that end with EOS.
    #[serde(skip_serializing_if = "Option::is_none")]
    eos_rate: Option<f64>,
    /// Mean score of each source.
    #[serde(skip_serializing_if = "Map::is_empty")]
    rewards: Map<String, Value>,
}

/// Prints or writes loss, perplexity, and scores of generated responses.
///
/// # Errors
/// Those of the rows, of loading, of the reward sources and of the backend.
pub(super) fn run(args: &EvalArgs, compute: &ComputeArgs) -> Result<()> {
    if let Some(path) = &args.output {
        output::check(path)?;
    }
    if !args.stages.stages.is_empty() {
        return eval_stages::run(args, compute);
    }
    let model = UnloadedModel::find(&args.model)?;
    let data = rows::read(&args.data)?;
    let tokenizer = rows::tokenizer_for(&data, &model)?;
    let with_text: Vec<Row> = data.iter().filter(|row| has_target(row)).cloned().collect();
    if with_text.is_empty() && args.reward.is_empty() {
        return Err(data[0].error(
            "nothing to measure: no row has `text`, `messages` or a `completion`, and no --reward is asked for",
        ));
    }
    let measured = rows::encode(&with_text, tokenizer.as_ref(), &model, TextRows::WithEos)?;
    let prompts = if args.reward.is_empty() {
        Vec::new()
    } else {
        rows::prompts(
            &data,
            tokenizer.as_ref(),
            &model,
            args.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
        )?
    };
    let task = EvalTask {
        args,
        options: respond::options(
            &args.sampling,
            (MAX_NEW_TOKENS, TEMPERATURE),
            &prompts,
            tokenizer.as_ref(),
            &model.config,
        ),
        model: &model,
        tokenizer: tokenizer.as_ref(),
        data: &with_text,
        measured: &measured,
        prompts: &prompts,
    };
    let mut measurements = dispatch(compute.backend, compute.device, task)?;
    measurements.rows = data.len();
    match &args.output {
        Some(path) => output::write_object(path, &measurements),
        None => output::print(&measurements.table()),
    }
}

/// Whether a row has tokens to measure.
fn has_target(row: &Row) -> bool {
    ["input_ids", "text", "completion", "messages"]
        .iter()
        .any(|name| row.columns.contains_key(*name))
}

impl Measurements {
    fn table(&self) -> String {
        let numbers = [
            ("rows", Some(self.rows as f64)),
            ("tokens", self.tokens.map(|n| n as f64)),
            ("loss", self.loss),
            ("perplexity", self.perplexity),
            ("response length", self.response_length),
            ("EOS rate", self.eos_rate),
        ];
        let rewards = self
            .rewards
            .iter()
            .map(|(title, value)| (title.as_str(), value.as_f64()));
        let rows: Vec<Vec<String>> = numbers
            .into_iter()
            .chain(rewards)
            .filter_map(|(name, value)| Some(vec![name.to_owned(), format_value(value?)]))
            .collect();
        table(&["measure", "value"], &rows)
    }
}

/// An evaluation on a backend.
struct EvalTask<'a> {
    args: &'a EvalArgs,
    options: GenerateOptions,
    model: &'a UnloadedModel,
    tokenizer: Option<&'a Tokenizer>,
    data: &'a [Row],
    measured: &'a [IdsRow],
    prompts: &'a [Prompt],
}

impl Task for EvalTask<'_> {
    type Output = Measurements;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<Measurements> {
        // Sources are built first: an invalid one should not cost a whole generation.
        let mut sources =
            reward_sources::<B>(&self.args.reward, self.model, self.tokenizer, &device)?;
        let model = self.model.language_model::<B>(&device)?;
        let mut found = Measurements::default();
        let logprobs = measure(&model, self.data, self.measured, &device)?;
        let tokens = logprobs.iter().map(Vec::len).sum::<usize>();
        if tokens > 0 {
            let sum: f64 = logprobs.iter().flatten().map(|&x| f64::from(x)).sum();
            let loss = -sum / tokens as f64;
            found.tokens = Some(tokens);
            found.loss = Some(loss);
            found.perplexity = Some(loss.exp());
        }
        if !self.prompts.is_empty() {
            self.answer(&model, &mut sources, &mut found, &device)?;
        }
        Ok(found)
    }
}

impl EvalTask<'_> {
    fn answer<B: ModelBackend>(
        &self,
        model: &LanguageModel<B>,
        sources: &mut [(String, Box<dyn RewardSource>)],
        found: &mut Measurements,
        device: &B::Device,
    ) -> Result<()> {
        let request = Request {
            prompts: self.prompts,
            options: &self.options,
            tokenizer: self.tokenizer,
            stops: &self.args.sampling.stop,
            seed: self.args.sampling.seed,
            show: Show::Progress,
        };
        let responses = request.run(model, device)?;
        let mut completions = Vec::with_capacity(responses.len());
        let (mut tokens, mut stopped) = (0, 0);
        for (prompt, TextResponse { response, text }) in self.prompts.iter().zip(responses) {
            tokens += response.ids.len();
            stopped += usize::from(response.stopped);
            completions.push(Completion {
                prompt: prompt.text.clone(),
                response: text,
                prompt_ids: prompt.ids.clone(),
                response_ids: response.ids,
                conversation: prompt.conversation.clone(),
                row: prompt.row.clone(),
            });
        }
        let count = completions.len() as f64;
        found.response_length = Some(tokens as f64 / count);
        found.eos_rate = Some(stopped as f64 / count);
        for (title, source) in sources {
            let scores = source.score(&completions);
            warn(&source.take_messages());
            let scores = scores?;
            let mean = scores.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
            found.rewards.insert(title.clone(), json!(mean));
            warn(&source.warnings());
        }
        Ok(())
    }
}

/// The reward sources by title; `model`, the first policy, has the tokenizer that they read.
///
/// # Errors
/// Those of the sources.
pub(super) fn reward_sources<B: ModelBackend>(
    rewards: &[RewardArg],
    model: &UnloadedModel,
    tokenizer: Option<&Tokenizer>,
    device: &B::Device,
) -> Result<Vec<(String, Box<dyn RewardSource>)>> {
    let (policy, numerics) = (tokenizer.cloned().map(Arc::new), model.numerics);
    let classifier = |name: &str, settings: ClassifierSettings<'_>| {
        let source = ClassifierSource::find(&Finder::new(Fetch::All), name)?;
        Classifier::<B>::load(&source, settings, numerics, BATCH_TOKENS, device)
    };
    let learned = |folder: &str| -> Result<Box<dyn RewardSource>> {
        let model = UnloadedModel::find(&ModelArgs::of(folder.to_owned()))?;
        // Rows of ids need no tokenizer.
        let own = match &policy {
            Some(_) => Some(Arc::new(model.tokenizer()?)),
            None => None,
        };
        let before = (model.config.max_positions()).saturating_sub(model.max_row_tokens);
        let encoder =
            CompletionEncoder::new(folder, &model.config, own, policy.clone()).after(before);
        if let Some(note) = encoder.note() {
            terminal::say(&note);
        }
        let learned = Learned::<B>::new(model.reward_model(device)?, BATCH_TOKENS, device.clone());
        Ok(Box::new(learned.with_encoder(encoder)))
    };
    let log_probability = |name: &str, reduction| -> Result<Box<dyn RewardSource>> {
        let model = UnloadedModel::find(&ModelArgs::of(name.to_owned()))?;
        let own = match &policy {
            Some(_) => Some(Arc::new(model.tokenizer()?)),
            None => None,
        };
        let before = (model.config.max_positions()).saturating_sub(model.max_row_tokens);
        let encoder =
            CompletionEncoder::new(name, &model.config, own, policy.clone()).after(before);
        if let Some(note) = encoder.note() {
            terminal::say(&note);
        }
        let model = model.language_model::<B>(device)?;
        let device = device.clone();
        let source = LogProbability::new(model, reduction, BATCH_TOKENS, device, encoder);
        Ok(Box::new(source))
    };
    let mut with_model = |source: ModelReward<'_>| -> Result<Box<dyn RewardSource>> {
        match source {
            ModelReward::Learned(folder) => learned(folder),
            ModelReward::LogProbability(ReadBy::Model(name), reduction) => {
                log_probability(name, reduction)
            }
            ModelReward::LogProbability(ReadBy::Stage(_), _) => Err(Error::Usage(
                "stages are named in recipes; here `logprob:DIR` names a folder or a model of the hub"
                    .into(),
            )),
            ModelReward::Classifier(name, settings) => Ok(Box::new(classifier(name, settings)?)),
            ModelReward::Graded(graded) => {
                let judge = judge::<B>(&graded.judge, device)?;
                let name = format!("graded({})", graded.judge.name());
                Ok(Box::new(Graded::new(name, judge, graded)?))
            }
        }
    };
    rewards
        .iter()
        .map(|reward| {
            Ok((
                reward.title.clone(),
                reward::build(&reward.config, &CustomRewards::default(), &mut with_model)?,
            ))
        })
        .collect()
}

/// The judge of `graded:DIR` or `--judge DIR`.
pub(super) fn judge<B: ModelBackend>(
    judge: &JudgeModel,
    device: &B::Device,
) -> Result<Box<dyn Judge>> {
    let JudgeModel::Model(Init::Folder(folder)) = judge else {
        return Err(Error::Usage(
            "here a judge is a folder or a model of the hub; other judges are named in recipes"
                .into(),
        ));
    };
    let model = UnloadedModel::find(&ModelArgs::of(folder.to_string_lossy().into_owned()))?;
    let positions = (model.config.has_learned_positions()).then_some(model.max_row_tokens);
    Ok(Box::new(LocalJudge::new(
        judge.name(),
        model.language_model::<B>(device)?,
        Arc::new(model.tokenizer()?),
        positions,
        BATCH_TOKENS,
        JUDGE_TEXTS,
        device.clone(),
    )))
}
