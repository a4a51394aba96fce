//! The models that stages name: policies and reward models, without their weights.

use super::Surveyor;
use crate::recipe::Stage;
use crate::recipe::known::{Known, open_blank, open_folder, open_reward, reward_folders};
use crate::recipe::uses::uses;
use crate::reward::RewardConfig;
use crate::train::config::{CompareConfig, Init, ValueInit, ValueTrunk};
use crate::train::ppo::OTHER_TOKENS;
use crate::train::reward_folder;

impl Surveyor<'_> {
    /// The model that a stage starts from, or whose tokens its prompts are.
    pub(super) fn model_of(&mut self, stage: &Stage, path: &str) -> Option<Known> {
        let init = match stage {
            Stage::Pretrain(c) => c.init.clone(),
            Stage::Sft(c) => c.init.clone(),
            Stage::Rank(c) => c.init.clone(),
            Stage::RewardModel(c) => c.init.clone(),
            Stage::Dpo(c) => c.init.clone(),
            Stage::Ppo(c) => c.init.clone(),
            Stage::Compare(c) => return self.compared(c, path),
        };
        self.model_at(&init, &format!("{path}.init"))
    }

    fn model_at(&mut self, init: &Init, place: &str) -> Option<Known> {
        match init {
            Init::Base => self.base.clone(),
            Init::Stage(name) => self.by_stage.get(name).cloned(),
            Init::Folder(folder) => {
                let found = open_folder(folder, self.model);
                self.keep(place, found)
            }
            Init::Random(file) => self.keep(place, open_blank(file)),
        }
    }

    /// The model whose tokens a comparison's prompts are, its reference; all policies are looked at.
    fn compared(&mut self, config: &CompareConfig, path: &str) -> Option<Known> {
        let mut inits: Vec<(String, &Init)> = (config.policies.iter().enumerate())
            .map(|(index, init)| (format!("{path}.policies.{index}"), init))
            .collect();
        if let Some(reference) = &config.reference {
            inits.insert(0, (format!("{path}.reference"), reference));
        }
        let mut first: Option<Known> = None;
        for (place, init) in inits {
            let Some(known) = self.model_at(init, &place) else {
                continue;
            };
            match &first {
                Some(first) if !known.tokenizer.reads_ids_of(&first.tokenizer) => {
                    let problem = self.places.problem(
                        &place,
                        "its tokenizer is another one than the reference's; policies are compared on the same tokens",
                    );
                    self.problems.push(problem);
                }
                Some(_) => {}
                None => first = Some(known),
            }
        }
        first
    }

    /// Opens the reward models that a stage names by their folders, and compares the tokens of the one that a value
    /// network starts from.
    pub(super) fn reward_models(&mut self, stage: &Stage, path: &str, policy: Option<&Known>) {
        for (key, reward) in uses(stage).rewards {
            for (key, found) in reward_folders(&format!("{path}.{key}"), reward, self.model) {
                self.keep(&key, found);
            }
        }
        let Stage::Ppo(config) = stage else { return };
        let RewardConfig::Learned { stage: name } = &config.reward else {
            return;
        };
        let starts_there = config.value_trunk == ValueTrunk::Own
            && config.value_init.unwrap_or_default() == ValueInit::Reward;
        let reward = match reward_folder(name) {
            Some(folder) => open_reward(folder, self.model).ok(),
            None => self.by_stage.get(name).cloned(),
        };
        if let (true, Some(reward), Some(policy)) = (starts_there, reward, policy)
            && !reward.tokenizer.reads_ids_of(&policy.tokenizer)
        {
            let problem = (self.places).problem(&format!("{path}.reward"), OTHER_TOKENS);
            self.problems.push(problem);
        }
    }
}
