//! Loads models so that those of one base share its weights.

use std::path::PathBuf;

use super::Named;
use crate::cli::model::{UnloadedModel, warn};
use crate::error::{Error, Result};
use crate::model::{LanguageModel, ScalarModel};
use crate::ops::{ModelBackend, Numerics};
use crate::serve::{Place, PolicyPlace, Served};

/// Models on one base. The base is the model below the outermost adapter of each.
pub(super) struct Group {
    base: Base,
    policies: Vec<UnloadedModel>,
    rewards: Vec<UnloadedModel>,
}

/// What two models have in common that can share weights.
#[derive(Debug, PartialEq)]
struct Base {
    weights: PathBuf,
    /// Adapters that are merged.
    inner: Vec<PathBuf>,
    numerics: Numerics,
    /// As JSON: an adapter may have other embeddings than its base's files.
    config: String,
}

/// The loaded models of a group.
pub(super) struct Loaded<B: ModelBackend> {
    pub(super) policies: Vec<LanguageModel<B>>,
    pub(super) rewards: Vec<ScalarModel<B>>,
}

impl Base {
    fn of(model: &UnloadedModel) -> Self {
        let adapters = &model.source.adapters;
        let inner = adapters.split_last().map_or(&[][..], |(_, inner)| inner);
        Self {
            weights: model.source.weights.clone(),
            inner: inner.to_vec(),
            numerics: model.numerics,
            config: model.config.to_json(false).to_string(),
        }
    }
}

/// Models by their bases, and how each of them is served. Nothing is loaded.
///
/// # Errors
/// For a model without a tokenizer; those of reading the files' headers.
pub(super) fn groups(named: Vec<Named>, max_length: usize) -> Result<(Vec<Group>, Vec<Served>)> {
    let mut groups: Vec<Group> = Vec::new();
    // By model: its group, and whether it is a reward model, with its number among those of the group.
    let mut places = Vec::new();
    let mut served = Vec::new();
    for Named { name, model } in named {
        let tokenizer = model.tokenizer()?;
        let max = model.max_row_tokens.min(max_length);
        if max < 2 {
            return Err(Error::Usage(format!(
                "--max-length {max_length}: model {name} needs 2 tokens at least, a prompt's and a response's"
            )));
        }
        served.push(Served {
            root: model.source.dir.file_name().map_or_else(
                || model.source.name.clone(),
                |name| name.to_string_lossy().into_owned(),
            ),
            name,
            // Set below.
            place: Place::Reward(0),
            vocab_size: model.config.vocab_size(),
            max_length: max,
            tokenizer,
        });
        let is_reward = model.is_reward_model()?;
        match is_reward {
            true => drop(model.source.check_reward()?),
            false => model.source.check()?,
        }
        let base = Base::of(&model);
        let at = match groups.iter().position(|group| group.base == base) {
            Some(at) => at,
            None => {
                groups.push(Group {
                    base,
                    policies: Vec::new(),
                    rewards: Vec::new(),
                });
                groups.len() - 1
            }
        };
        let group = &mut groups[at];
        let list = match is_reward {
            true => &mut group.rewards,
            false => &mut group.policies,
        };
        places.push((at, is_reward, list.len()));
        list.push(model);
    }
    for (model, (group, is_reward, number)) in served.iter_mut().zip(places) {
        let before = &groups[..group];
        model.place = match is_reward {
            true => {
                let earlier: usize = before.iter().map(|group| group.rewards.len()).sum();
                Place::Reward(earlier + number)
            }
            false => Place::Policy(PolicyPlace {
                // Bases with reward models alone have no scheduler.
                base: before
                    .iter()
                    .filter(|group| !group.policies.is_empty())
                    .count(),
                model: number,
            }),
        };
    }
    Ok((groups, served))
}

impl Group {
    /// Loads the base once, and puts the outermost adapters on copies that share its weights.
    ///
    /// # Errors
    /// Those of loading.
    pub(super) fn load<B: ModelBackend>(self, device: &B::Device) -> Result<Loaded<B>> {
        let Some(first) = self.policies.first().or(self.rewards.first()) else {
            return Ok(Loaded {
                policies: Vec::new(),
                rewards: Vec::new(),
            });
        };
        let base: LanguageModel<B> = match self.policies.is_empty() {
            false => first.source.load_base(first.numerics, device)?,
            true => first.source.load_backbone(first.numerics, device)?,
        };
        let mut loaded = Loaded {
            policies: Vec::new(),
            rewards: Vec::new(),
        };
        for model in &self.policies {
            let mut policy = base.clone();
            let adapter = model.source.attach_outermost(&mut policy, device)?;
            warn(adapter.as_ref().map_or(&[], |adapter| &adapter.warnings));
            loaded.policies.push(policy);
        }
        for model in &self.rewards {
            let (reward, adapter) = model.source.reward_model(base.clone(), device)?;
            warn(adapter.as_ref().map_or(&[], |adapter| &adapter.warnings));
            loaded.rewards.push(reward);
        }
        Ok(loaded)
    }
}
