//! `temper eval --run R --stages a,b`: policies of a run side by side on the same prompts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use super::args::{ComputeArgs, EvalArgs, ModelArgs, positive};
use super::eval::{TEMPERATURE, judge, reward_sources};
use super::model::{UnloadedModel, warn};
use super::output;
use super::respond::{self, MAX_NEW_TOKENS, Request, Show, TextResponse};
use super::rows::{self, BATCH_TOKENS};
use super::stage_result::result_of;
use crate::backend::{Task, dispatch};
use crate::data::{Prompt, Tokenizer};
use crate::error::{Error, Result};
use crate::model::{Init, LanguageModel};
use crate::ops::ModelBackend;
use crate::recipe;
use crate::report::{Comparison, ContestRules, PolicyResponses};
use crate::reward::judge::{JudgeModel, JudgedPair, Pairwise, PairwiseConfig};
use crate::reward::{Completion, RewardSource};
use crate::rng::Seed;
use crate::train::row_logprobs;

/// The recipe's own model among `--stages`.
const BASE: &str = "base";

/// Options of a comparison of stages.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Comparison of stages")]
pub struct StagesArgs {
    /// Stages of --run to compare with the first of them, separated by commas; `base` is the recipe's model
    #[arg(long, value_name = "A,B", requires = "run", requires = "reward", conflicts_with_all = ["stage", "adapter", "model"], value_delimiter = ',')]
    pub stages: Vec<String>,
    /// Scores that differ by this or less are a tie
    #[arg(long, value_name = "X", default_value_t = 0.0, requires = "stages", value_parser = margin)]
    pub tie_margin: f64,
    /// Let this model compare each stage's responses with the first one's, in both orders: a folder, a known name or owner/name
    #[arg(long, value_name = "DIR|NAME", requires = "stages")]
    pub judge: Option<PathBuf>,
    /// Ask the judge by its chat template
    #[arg(long, requires = "judge")]
    pub judge_chat: bool,
    /// Responses of each stage to each prompt; with more than one also best of n and pass@k
    #[arg(long, value_name = "K", default_value_t = 1, requires = "stages", value_parser = positive)]
    pub num_responses: usize,
}

fn margin(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x >= 0.0 && x.is_finite() => Ok(x),
        _ => Err("expected a number of at least 0".into()),
    }
}

/// Prints or writes scores, win rates and ratings of the stages' responses.
///
/// # Errors
/// `Error::Usage` for stages without a policy, or of other tokens; those of rows, loading, reward sources and the backend.
pub(super) fn run(args: &EvalArgs, compute: &ComputeArgs) -> Result<()> {
    let names = &args.stages.stages;
    if names.len() < 2 {
        return Err(Error::Usage(format!(
            "--stages {}: expected at least two, e.g. `--stages sft,ppo`",
            names.join(",")
        )));
    }
    let models = names
        .iter()
        .map(|name| find_policy(&args.model, name, "--stages"))
        .collect::<Result<Vec<UnloadedModel>>>()?;
    let data = rows::read(&args.data)?;
    let tokenizer = rows::tokenizer_for(&data, &models[0])?;
    if let Some(tokenizer) = &tokenizer {
        for (name, model) in names.iter().zip(&models) {
            if !model.tokenizer()?.reads_ids_of(tokenizer) {
                return Err(Error::Usage(format!(
                    "--stages: {name} has another tokenizer than {}; policies are compared on the same tokens",
                    names[0]
                )));
            }
        }
    }
    let longest = args.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
    let prompts = rows::prompts(&data, tokenizer.as_ref(), &models[0], longest)?;
    let temperature = args.sampling.temperature.unwrap_or(TEMPERATURE);
    if args.stages.num_responses > 1 && temperature == 0.0 {
        return Err(Error::Usage(
            "--num-responses: greedy responses to one prompt are all the same; add e.g. `--temperature 1`".into(),
        ));
    }
    let repeated = |prompt: &Prompt| std::iter::repeat_n(prompt.clone(), args.stages.num_responses);
    let task = StagesTask {
        args,
        models: &models,
        tokenizer: tokenizer.as_ref(),
        prompts: &prompts.iter().flat_map(repeated).collect::<Vec<_>>(),
        temperature,
    };
    let comparison = dispatch(compute.backend, compute.device, task)?;
    match &args.output {
        Some(path) => output::write_object(path, &comparison),
        None => output::print(&comparison.text()),
    }
}

/// The policy of a stage of `model`'s run, or the recipe's model. `option` names where the user said so.
///
/// # Errors
/// `Error::Usage` for stages without a policy.
pub(super) fn find_policy(model: &ModelArgs, name: &str, option: &str) -> Result<UnloadedModel> {
    let run = (model.run.as_ref()).ok_or_else(|| Error::Usage(format!("{option} needs --run")))?;
    let of_stage = |stage: Option<String>, base: Option<String>| ModelArgs {
        run: base.is_none().then(|| run.clone()),
        model: base,
        stage,
        ..model.clone()
    };
    let found = match name {
        BASE if !run.join(BASE).exists() => {
            let recipe = recipe::load(&run.join("recipe.ron"), &[])?;
            let model = recipe.model.ok_or_else(|| {
                Error::Usage(format!("{option} base: the run's recipe has no `model`"))
            })?;
            UnloadedModel::find(&of_stage(None, Some(model)))?
        }
        stage => {
            result_of(run, stage)?;
            UnloadedModel::find(&of_stage(Some(stage.to_owned()), None))?
        }
    };
    if found.is_reward_model()? {
        return Err(Error::Usage(format!(
            "{option}: {name} is a reward model and writes no responses; `--reward learned:{}` scores by it",
            result_of(run, name)?.display()
        )));
    }
    Ok(found)
}

/// A comparison on a backend.
struct StagesTask<'a> {
    args: &'a EvalArgs,
    models: &'a [UnloadedModel],
    tokenizer: Option<&'a Tokenizer>,
    prompts: &'a [Prompt],
    temperature: f64,
}

impl Task for StagesTask<'_> {
    type Output = Comparison;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<Comparison> {
        let Self { args, .. } = self;
        let rewards = &args.reward;
        let mut sources = reward_sources::<B>(rewards, &self.models[0], self.tokenizer, &device)?;
        let reference = self.models[0].language_model::<B>(&device)?;
        let (mut policies, mut texts) = (Vec::new(), Vec::new());
        for (place, (name, unloaded)) in args.stages.stages.iter().zip(self.models).enumerate() {
            let model = match place {
                0 => reference.clone(),
                _ => unloaded.language_model::<B>(&device)?,
            };
            let request = Request {
                prompts: self.prompts,
                options: &respond::options(
                    &args.sampling,
                    (MAX_NEW_TOKENS, TEMPERATURE),
                    self.prompts,
                    self.tokenizer,
                    &unloaded.config,
                ),
                tokenizer: self.tokenizer,
                stops: &args.sampling.stop,
                seed: args.sampling.seed,
                show: Show::Progress,
            };
            let responses = request.run(&model, &device)?;
            texts.push(
                responses
                    .iter()
                    .map(|of| of.text.clone())
                    .collect::<Vec<_>>(),
            );
            let mut policy = self.scored(name, &responses, &mut sources)?;
            policy.kl = self.kl(&reference, &responses, &device);
            policies.push(policy);
        }
        for (_, source) in &sources {
            warn(&source.warnings());
        }
        if let Some(folder) = &args.stages.judge {
            self.judge::<B>(folder, &texts, &mut policies, &device)?;
        }
        let rules = ContestRules {
            tie_margin: args.stages.tie_margin,
            seed: Seed::new(args.sampling.seed).fork("bootstrap"),
        };
        let titles = rewards.iter().map(|reward| reward.title.clone()).collect();
        let comparison = Comparison::new(&args.stages.stages[0], titles, &policies);
        Ok(comparison.with_contest(&policies, rules))
    }
}

impl StagesTask<'_> {
    fn scored(
        &self,
        name: &str,
        responses: &[TextResponse],
        sources: &mut [(String, Box<dyn RewardSource>)],
    ) -> Result<PolicyResponses> {
        let completions: Vec<Completion> = (self.prompts.iter().zip(responses))
            .map(|(prompt, TextResponse { response, text })| Completion {
                prompt: prompt.text.clone(),
                response: text.clone(),
                prompt_ids: prompt.ids.clone(),
                response_ids: response.ids.clone(),
                conversation: prompt.conversation.clone(),
                row: prompt.row.clone(),
            })
            .collect();
        let mut scores = vec![BTreeMap::new(); completions.len()];
        for (title, source) in sources {
            let found = source.score(&completions);
            warn(&source.take_messages());
            let found = found?;
            for (scores, score) in scores.iter_mut().zip(found) {
                scores.insert(title.clone(), f64::from(score));
            }
        }
        let lengths: Vec<f64> = responses
            .iter()
            .map(|r| r.response.ids.len() as f64)
            .collect();
        let count = lengths.len().max(1) as f64;
        let stopped = responses.iter().filter(|r| r.response.stopped).count();
        Ok(PolicyResponses {
            name: name.to_owned(),
            num_responses: self.args.stages.num_responses,
            scores,
            tokens: lengths.iter().sum::<f64>() / count,
            lengths,
            eos_rate: stopped as f64 / count,
            ..PolicyResponses::default()
        })
    }

    /// Lets the judge in `folder` compare the texts of each policy with those of the first.
    fn judge<B: ModelBackend>(
        &self,
        folder: &Path,
        texts: &[Vec<String>],
        policies: &mut [PolicyResponses],
        device: &B::Device,
    ) -> Result<()> {
        let config = PairwiseConfig {
            chat: self.args.stages.judge_chat,
            ..PairwiseConfig::by(JudgeModel::Model(Init::Folder(folder.to_path_buf())))
        };
        let pairwise = Pairwise::new(&config)?;
        let mut judge = judge::<B>(&config.judge, device)?;
        for (own, policy) in texts.iter().zip(policies).skip(1) {
            let pairs: Vec<JudgedPair<'_>> = (self.prompts.iter().zip(own).zip(&texts[0]))
                .map(|((prompt, own), other)| JudgedPair {
                    prompt: &prompt.text,
                    own,
                    other,
                })
                .collect();
            policy.judged = pairwise.preferences(judge.as_mut(), &pairs, &mut |_, _| true)?;
        }
        Ok(())
    }

    /// KL from the reference, nats per response.
    fn kl<B: ModelBackend>(
        &self,
        reference: &LanguageModel<B>,
        responses: &[TextResponse],
        device: &B::Device,
    ) -> f64 {
        let rows: Vec<Vec<u32>> = (self.prompts.iter().zip(responses))
            .map(|(prompt, of)| [prompt.ids.as_slice(), &of.response.ids].concat())
            .collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let lens: Vec<usize> = self.prompts.iter().map(|prompt| prompt.ids.len()).collect();
        // Greedy responses have log-probabilities at temperature 1.
        let temperature = if self.temperature == 0.0 {
            1.0
        } else {
            self.temperature
        };
        let of_reference = row_logprobs(reference, &rows, &lens, temperature, BATCH_TOKENS, device);
        let differences = (responses.iter().zip(&of_reference))
            .flat_map(|(of, reference)| of.response.logprobs.iter().zip(reference))
            .map(|(own, other)| f64::from(own - other));
        differences.sum::<f64>() / responses.len().max(1) as f64
    }
}
