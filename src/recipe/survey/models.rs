//! The models that stages name: policies and reward models, without their weights.

use super::Surveyor;
use crate::data::{RowKind, encode_prompts};
use crate::recipe::known::{Known, learned, open_blank, open_folder, open_reward};
use crate::train::config::Init;
use crate::train::{OTHER_TOKENS, Reads, reward_folder};

impl Surveyor<'_> {
    /// The model that a stage starts from, or whose tokens its prompts are: its first. The others must have the same tokens.
    pub(super) fn models(&mut self, reads: &Reads<'_>, path: &str) -> Option<Known> {
        let mut first: Option<Known> = None;
        for (key, init) in &reads.models {
            let place = format!("{path}.{key}");
            let Some(known) = self.model(init, &place) else {
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

    fn model(&mut self, init: &Init, place: &str) -> Option<Known> {
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

    /// Opens the reward models that a stage names, and compares the tokens of the one that a value network starts from.
    pub(super) fn reward_models(&mut self, reads: &Reads<'_>, path: &str, policy: Option<&Known>) {
        for (key, reward) in &reads.rewards {
            for (key, name) in learned(&format!("{path}.{key}"), reward) {
                let reward = match reward_folder(&name) {
                    Some(folder) => {
                        let found = open_reward(folder, self.model);
                        self.keep(&key, found)
                    }
                    None => self.by_stage.get(&name).cloned(),
                };
                if let (Some(reward), Some(policy)) = (reward, policy)
                    && !self.reads_prompts(&reward, policy, reads)
                {
                    let problem = self.places.problem(
                        &key,
                        "the reward model has another tokenizer than the policy and no chat template, and prompts are conversations",
                    );
                    self.problems.push(problem.with_help(
                        "give it a chat_template.jinja, or take a reward model with the policy's tokenizer",
                    ));
                }
            }
        }
        let Some((key, name)) = reads.value_start else {
            return;
        };
        let reward = match reward_folder(name) {
            Some(folder) => open_reward(folder, self.model).ok(),
            None => self.by_stage.get(name).cloned(),
        };
        if let (Some(reward), Some(policy)) = (reward, policy)
            && !reward.tokenizer.reads_ids_of(&policy.tokenizer)
        {
            let problem = (self.places).problem(&format!("{path}.{key}"), OTHER_TOKENS);
            self.problems.push(problem);
        }
    }
    /// Whether a reward model can read the prompts of a stage: by the policy's ids, as text, or by a chat template of its own.
    fn reads_prompts(&self, reward: &Known, policy: &Known, reads: &Reads<'_>) -> bool {
        if reward.tokenizer.has_chat() || reward.tokenizer.reads_ids_of(&policy.tokenizer) {
            return true;
        }
        let prompts = (reads.data.iter()).filter(|data| data.rows == RowKind::Prompt);
        !prompts.into_iter().any(|data| {
            // Rows that cannot be read are reported as data.
            let found = self.checked.found(data.config, data.rows);
            let first = found.and_then(|found| found.sample.get(..1)).unwrap_or(&[]);
            let encoded = encode_prompts(first, &policy.tokenizer, &data.config.format, usize::MAX);
            encoded
                .is_ok_and(|encoded| encoded.items.iter().any(|item| item.conversation.is_some()))
        })
    }
}
