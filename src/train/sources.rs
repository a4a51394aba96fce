//! The reward sources of a stage.

use std::path::Path;
use std::sync::Arc;

use super::Session;
use super::config::Init;
use crate::checkpoint::ModelRole;
use crate::collective;
use crate::data::Tokenizer;
use crate::error::Result;
use crate::model::{CausalLm, ClassifierSource, Fetch, Finder, LanguageModel};
use crate::ops::ModelBackend;
use crate::reward::judge::{Endpoint, Graded, Judge, JudgeModel, LocalJudge, OfFirst};
use crate::reward::{
    Classifier, Completion, CompletionEncoder, Learned, LogProbability, ModelReward, ReadBy,
    RewardConfig, RewardSource, TokenReduction,
};

/// Most tokens in one forward pass of a reward with a model.
const SCORE_TOKENS: usize = 4096;
/// Texts that a judge writes at once.
const JUDGE_TEXTS: usize = 32;
/// The file in a run's folder with the answers of servers.
const ANSWERS: &str = "answers.jsonl";

impl<B: ModelBackend> Session<'_, B> {
    /// The reward source of a recipe, for completions of a policy with this tokenizer.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) fn reward_source(
        &mut self,
        config: &RewardConfig,
        policy: &Arc<Tokenizer>,
    ) -> Result<Box<dyn RewardSource>>
    where
        B: 'static,
    {
        let custom = self.rewards.clone();
        crate::reward::build(config, &custom, &mut |source| match source {
            ModelReward::Learned(stage) => self.learned(stage, policy),
            ModelReward::LogProbability(ReadBy::Model(name), reduction) => {
                self.log_probability(name, reduction, policy)
            }
            ModelReward::LogProbability(ReadBy::Stage(name), reduction) => {
                self.log_probability_of_stage(name, reduction, policy)
            }
            ModelReward::Classifier(model, settings) => {
                let source = ClassifierSource::find(&Finder::new(Fetch::All), model)?;
                self.record_model(ModelRole::Reward, model.to_owned(), source.files()?)?;
                let (numerics, device) = (self.numerics, &self.device);
                let source =
                    Classifier::<B>::load(&source, settings, numerics, SCORE_TOKENS, device)?;
                Ok(Box::new(source))
            }
            ModelReward::Graded(graded) => {
                let judge = self.judge(&graded.judge)?;
                let name = format!("graded({})", graded.judge.name());
                Ok(Box::new(Graded::new(name, judge, graded)?))
            }
        })
    }

    /// The judge that a recipe names. Answers of a server are kept in the run's folder.
    ///
    /// # Errors
    /// As [`Session::policy`] and [`Endpoint::new`].
    pub(super) fn judge(&mut self, model: &JudgeModel) -> Result<Box<dyn Judge>>
    where
        B: 'static,
    {
        let init = match model {
            JudgeModel::Model(init) => init,
            JudgeModel::Endpoint(endpoint) => {
                self.record_model(ModelRole::Judge, endpoint.model.clone(), Vec::new())?;
                let answers = self.run.path().join(ANSWERS);
                let make = || {
                    Ok(
                        Box::new(Endpoint::new(endpoint, &answers, &self.interrupt)?)
                            as Box<dyn Judge>,
                    )
                };
                let judge = match collective::ranks().is_alone() {
                    true => make()?,
                    false => Box::new(OfFirst::new(make)?),
                };
                return Ok(judge);
            }
        };
        let policy = self.policy_as(ModelRole::Judge, init)?;
        let before = (policy.adapter.as_ref()).map_or(0, |adapter| adapter.num_virtual_tokens());
        let positions = (policy.config.has_learned_positions())
            .then(|| policy.config.max_positions().saturating_sub(before));
        let judge = LocalJudge::new(
            model.name(),
            policy.model,
            policy.tokenizer,
            positions,
            SCORE_TOKENS,
            JUDGE_TEXTS,
            self.device.clone(),
        );
        Ok(Box::new(judge))
    }

    /// A reward model as a source.
    fn learned(&mut self, stage: &str, policy: &Arc<Tokenizer>) -> Result<Box<dyn RewardSource>>
    where
        B: 'static,
    {
        let reward = self.reward_model(stage)?;
        let own = Some(reward.tokenizer);
        let before = (reward.adapter.as_ref()).map_or(0, |adapter| adapter.num_virtual_tokens());
        let encoder =
            CompletionEncoder::new(stage, &reward.config, own, Some(policy.clone())).after(before);
        if let Some(note) = encoder.note() {
            self.reporter.message(&note);
        }
        let learned = Learned::new(reward.model, SCORE_TOKENS, self.device.clone());
        Ok(Box::new(learned.with_encoder(encoder)))
    }

    /// The log-probability of another model, or of the recipe's own, as a source.
    fn log_probability(
        &mut self,
        name: &str,
        reduction: TokenReduction,
        policy: &Arc<Tokenizer>,
    ) -> Result<Box<dyn RewardSource>>
    where
        B: 'static,
    {
        let finder = Finder::new(Fetch::All);
        let source = finder.find_on(name, self.model.as_deref())?;
        self.record_model(ModelRole::Reward, name.to_owned(), source.files()?)?;
        self.warn(&source.notes);
        let own = Some(Arc::new(source.tokenizer()?));
        let mut model = self.shared_base(&source)?;
        let adapter = source.attach_outermost(&mut model, &self.device)?;
        if let Some(adapter) = &adapter {
            self.warn(&adapter.warnings);
        }
        let encoder = CompletionEncoder::new(name, &source.config, own, Some(policy.clone()));
        Ok(self.reading(model, reduction, encoder))
    }

    /// The log-probability of the policy of an earlier stage as a source.
    fn log_probability_of_stage(
        &mut self,
        name: &str,
        reduction: TokenReduction,
        policy: &Arc<Tokenizer>,
    ) -> Result<Box<dyn RewardSource>>
    where
        B: 'static,
    {
        let reader = self.policy_as(ModelRole::Reward, &Init::Stage(name.to_owned()))?;
        let own = Some(reader.tokenizer);
        let encoder = CompletionEncoder::new(name, &reader.config, own, Some(policy.clone()));
        Ok(self.reading(reader.model, reduction, encoder))
    }

    fn reading(
        &mut self,
        model: LanguageModel<B>,
        reduction: TokenReduction,
        encoder: CompletionEncoder,
    ) -> Box<dyn RewardSource>
    where
        B: 'static,
    {
        let encoder = encoder.after(model.num_virtual_tokens());
        if let Some(note) = encoder.note() {
            self.reporter.message(&note);
        }
        let device = self.device.clone();
        Box::new(LogProbability::new(
            model,
            reduction,
            SCORE_TOKENS,
            device,
            encoder,
        ))
    }

    /// The scores of `completions`. Reports at once what happened to the source meanwhile.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) fn score(
        &mut self,
        source: &mut dyn RewardSource,
        completions: &[Completion],
    ) -> Result<Vec<f32>> {
        let scores = source.score(completions);
        for message in source.take_messages() {
            self.reporter.message(&message);
        }
        scores
    }

    /// Reports what happened to reward sources since they were last asked this.
    pub(super) fn say_of<'s>(
        &mut self,
        sources: impl IntoIterator<Item = &'s mut Box<dyn RewardSource>>,
    ) {
        for source in sources {
            for message in source.take_messages() {
                self.reporter.message(&message);
            }
        }
    }

    /// Reports what reward sources have to say about the completions that they scored.
    pub(super) fn warn_of_sources<'s>(
        &mut self,
        sources: impl IntoIterator<Item = &'s Box<dyn RewardSource>>,
    ) {
        for source in sources {
            self.warn(&source.warnings());
            for note in source.notes() {
                self.reporter.message(&note);
            }
        }
    }
}

/// The folder of a learned reward given by path: a name with a separator.
pub fn reward_folder(stage: &str) -> Option<&Path> {
    stage.contains(['/', '\\']).then(|| Path::new(stage))
}
