//! The models of a recipe, resolved without loading weights.

use std::path::{Path, PathBuf};

use crate::data::Tokenizer;
use crate::error::Result;
use crate::model::{
    AbsentWeights, ClassifierSource, Fetch, Finder, Label, LabelOutput, ModelConfig, ModelSource,
};
use crate::ops::Precision;
use crate::peft::AdapterSpec;
use crate::reward::judge::JudgeModel;
use crate::reward::{ReadBy, RewardConfig};
use crate::train::StageInputs;

/// Configuration and tokenizer of a model.
#[derive(Clone)]
pub(super) struct ResolvedModel {
    pub(super) config: ModelConfig,
    pub(super) tokenizer: Tokenizer,
    /// Settings of the adapters on it, if there are any.
    pub(super) adapter: Option<AdapterSpec>,
    /// Bytes of the base's weights where they are kept as the file has them.
    pub(super) stored_bytes: u64,
    /// Weights that are still to be downloaded, and are not checked.
    pub(super) absent: Vec<AbsentWeights>,
}

/// A model whose weights are downloaded and checked when the rest of the recipe is sound.
pub(super) struct UncheckedModel {
    /// Its key in the recipe.
    pub(super) place: String,
    /// What is to be downloaded.
    pub(super) absent: Vec<AbsentWeights>,
    kind: UncheckedKind,
}

enum UncheckedKind {
    LanguageModel(WantedModel),
    Classifier(String),
}

/// A model of a recipe by the user's words.
#[derive(Debug, Clone)]
pub(super) enum WantedModel {
    /// The recipe's `model`, or another one by a known name, its folder or `owner/name`.
    Base(String),
    /// A policy's folder.
    Folder(PathBuf),
    /// A reward model's folder.
    Reward(PathBuf),
}

impl WantedModel {
    /// Finds and checks the model, its base kept in the recipe's precision; `model`, the recipe's, is used if an adapter's base is
    /// missing.
    pub(super) fn open(
        &self,
        finder: &Finder,
        model: Option<&str>,
        precision: Precision,
    ) -> Result<ResolvedModel> {
        match self {
            Self::Base(name) => ResolvedModel::of(finder.find(name)?, precision, false),
            Self::Folder(path) => ResolvedModel::of(finder.at(path, model)?, precision, false),
            Self::Reward(path) => ResolvedModel::of(finder.at(path, model)?, precision, true),
        }
    }

    /// What is left to do for it at the key `place`, if anything is.
    pub(super) fn unchecked(self, place: &str, found: &ResolvedModel) -> Option<UncheckedModel> {
        (!found.absent.is_empty()).then(|| UncheckedModel {
            place: place.to_owned(),
            absent: found.absent.clone(),
            kind: UncheckedKind::LanguageModel(self),
        })
    }
}

impl UncheckedModel {
    /// Downloads and checks it.
    pub(super) fn complete(&self, model: Option<&str>, precision: Precision) -> Result<()> {
        let finder = Finder::new(Fetch::All);
        match &self.kind {
            UncheckedKind::LanguageModel(wanted) => {
                wanted.open(&finder, model, precision).map(drop)
            }
            UncheckedKind::Classifier(name) => ClassifierSource::find(&finder, name)?.check(),
        }
    }
}

impl ResolvedModel {
    /// Reads configuration and tokenizer of a policy or `reward` model and checks its tensors' names and shapes; reads no tensor.
    fn of(source: ModelSource, precision: Precision, reward: bool) -> Result<Self> {
        let stored_bytes = match source.is_whole() {
            true => {
                match reward {
                    true => drop(source.check_reward()?),
                    false => source.check()?,
                }
                source.check_precision(precision)?;
                source.stored_bytes()?
            }
            false => source.absent.iter().map(|weights| weights.bytes).sum(),
        };
        Ok(Self {
            tokenizer: source.tokenizer()?,
            adapter: source.adapter()?,
            stored_bytes,
            absent: source.absent,
            config: source.config,
        })
    }
}

/// The configuration and tokenizer of a model with random weights.
pub(super) fn open_blank(path: &Path) -> Result<ResolvedModel> {
    let (config, tokenizer) = ModelSource::blank(path)?;
    Ok(ResolvedModel {
        adapter: None,
        stored_bytes: 4 * config.num_params() as u64,
        absent: Vec::new(),
        config,
        tokenizer,
    })
}

/// A classifier of a reward source.
pub(super) struct WantedClassifier<'a> {
    /// The source's key in the recipe.
    pub(super) place: String,
    name: &'a str,
    label: Option<&'a Label>,
    output: LabelOutput,
}

impl WantedClassifier<'_> {
    /// Finds the classifier and checks its configuration, tokenizer, label and, if they are on this machine, the names and shapes of its
    /// tensors. Problems are named by their key below the source.
    pub(super) fn open(
        &self,
        finder: &Finder,
    ) -> Result<(ClassifierSource, Vec<(&'static str, String)>)> {
        let source = ClassifierSource::find(finder, self.name)?;
        source.tokenizer()?;
        if source.absent.is_none() {
            source.check()?;
        }
        let labels = source.config.labels();
        let label = labels.index(self.label).err();
        let output = labels.check_output(self.output).err();
        let problems = [("label", label), ("output", output)].into_iter();
        let problems = problems.filter_map(|(key, problem)| Some((key, problem?)));
        let problems = problems.collect();
        Ok((source, problems))
    }

    /// What is left to do for it, if anything is.
    pub(super) fn unchecked(&self, found: &ClassifierSource) -> Option<UncheckedModel> {
        found.absent.as_ref().map(|absent| UncheckedModel {
            place: format!("{}.model", self.place),
            absent: vec![absent.clone()],
            kind: UncheckedKind::Classifier(self.name.to_owned()),
        })
    }
}

/// The classifiers of the source at `key`.
pub(super) fn classifiers<'a>(key: &str, reward: &'a RewardConfig) -> Vec<WantedClassifier<'a>> {
    match reward {
        RewardConfig::Classifier {
            model,
            label,
            output,
            ..
        } => vec![WantedClassifier {
            place: key.to_owned(),
            name: model,
            label: label.as_ref(),
            output: *output,
        }],
        composed => (composed.parts().into_iter())
            .flat_map(|(part, reward)| classifiers(&format!("{key}.{part}"), reward))
            .collect(),
    }
}

/// The reward models (folders or stages) of the source at `key`, each with its own key.
pub(super) fn learned(key: &str, reward: &RewardConfig) -> Vec<(String, String)> {
    match reward {
        RewardConfig::Learned { stage } => vec![(format!("{key}.stage"), stage.clone())],
        composed => (composed.parts().into_iter())
            .flat_map(|(part, reward)| learned(&format!("{key}.{part}"), reward))
            .collect(),
    }
}

/// The language models that the source at `key` takes log-probabilities of, each with its own key.
pub(super) fn readers<'a>(key: &str, reward: &'a RewardConfig) -> Vec<(String, ReadBy<'a>)> {
    match reward.language_model() {
        Some(by @ ReadBy::Model(_)) => vec![(format!("{key}.model"), by)],
        Some(by @ ReadBy::Stage(_)) => vec![(format!("{key}.stage"), by)],
        None => (reward.parts().into_iter())
            .flat_map(|(part, reward)| readers(&format!("{key}.{part}"), reward))
            .collect(),
    }
}

/// A judge of a recipe.
pub(super) struct WantedJudge<'a> {
    /// Its key in the recipe, and that of `chat`.
    pub(super) place: String,
    pub(super) chat_place: String,
    pub(super) model: &'a JudgeModel,
    /// Whether it is asked by its chat template.
    pub(super) chat: bool,
}

/// The judges of the source at `key`.
pub(super) fn judges<'a>(key: &str, reward: &'a RewardConfig) -> Vec<WantedJudge<'a>> {
    match reward {
        RewardConfig::Graded(graded) => vec![WantedJudge {
            place: format!("{key}.judge"),
            chat_place: format!("{key}.chat"),
            model: &graded.judge,
            chat: graded.chat,
        }],
        composed => (composed.parts().into_iter())
            .flat_map(|(part, reward)| judges(&format!("{key}.{part}"), reward))
            .collect(),
    }
}

/// All judges of a stage, its own first.
pub(super) fn judges_of<'a>(path: &str, inputs: &StageInputs<'a>) -> Vec<WantedJudge<'a>> {
    let key = |key: &str| match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    let own = inputs.judge.map(|(model, chat)| WantedJudge {
        place: key("judge"),
        chat_place: key("chat"),
        model,
        chat,
    });
    let of_pairs = inputs.pair_judge.map(|(model, chat)| WantedJudge {
        place: key("judge.judge"),
        chat_place: key("judge.chat"),
        model,
        chat,
    });
    let rewards = inputs.rewards.iter();
    let of_rewards = rewards.flat_map(|(name, reward)| judges(&key(name), reward));
    own.into_iter().chain(of_pairs).chain(of_rewards).collect()
}
