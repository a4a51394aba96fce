//! Checks the models of stages, policies and reward models, without loading weights.

use super::Surveyor;
use crate::data::{RowKind, encode_prompts};
use crate::error::Problem;
use crate::model::{trained_tensors, with_token_ids};
use crate::recipe::known::{
    ResolvedModel, WantedModel, classifiers, judges_of, learned, open_blank, readers,
};
use crate::reward::ReadBy;
use crate::train::config::{Init, Peft};
use crate::train::plan::{ModelShape, StagePlan};
use crate::train::{OTHER_TOKENS, Stage, StageInputs, StageOutput, reward_folder};

impl Surveyor<'_> {
    /// The first model of a stage: the initial one, or the one that determines the tokenizer. Others must have the same tokenizer.
    pub(super) fn models(&mut self, inputs: &StageInputs<'_>, path: &str) -> Option<ResolvedModel> {
        let mut first: Option<(&str, ResolvedModel)> = None;
        for (key, init) in &inputs.models {
            let place = format!("{path}.{key}");
            let Some(known) = self.model(init, &place) else {
                continue;
            };
            let Some((of, other)) = &first else {
                first = Some((key, known));
                continue;
            };
            let (size, expected) = (known.config.vocab_size(), other.config.vocab_size());
            let message = if !known.tokenizer.reads_ids_of(&other.tokenizer) {
                format!(
                    "its tokenizer is another one than that of `{of}`; both must read the same tokens"
                )
            } else if inputs.same_vocabulary && size != expected {
                format!(
                    "its vocabulary has {size} tokens, and that of `{of}` has {expected}: their distributions cannot be compared"
                )
            } else {
                continue;
            };
            let problem = self.places.problem(&place, message);
            self.problems.push(problem);
        }
        first.map(|(_, first)| first)
    }

    /// Adds the memory of models that a stage compares its own with token by token, unless they are adapters on the same frozen base.
    pub(super) fn teachers(
        &mut self,
        stage: &Stage,
        student: &ResolvedModel,
        path: &str,
        plan: &mut StagePlan,
    ) {
        let inputs = stage.inputs();
        if !inputs.same_vocabulary {
            return;
        }
        let trains_base = stage
            .training()
            .is_some_and(|training| training.peft.trains_base());
        for (key, init) in inputs.models.iter().skip(1) {
            let known = self.unchecked.len();
            let found = self.model(init, &format!("{path}.{key}"));
            // They were noted when the stage's models were opened.
            self.unchecked.truncate(known);
            let Some(teacher) = found else { continue };
            let on_base = **init == Init::Base || teacher.adapter.is_some();
            let same = teacher.config == student.config;
            if trains_base || !on_base || !same {
                let shape = ModelShape::of(&teacher.config, self.precision);
                let bytes = shape.frozen_bytes_of(teacher.stored_bytes);
                plan.memory.push((key.clone(), bytes));
            }
        }
    }

    /// Opens the model at the key `place`, or records the problem.
    pub(super) fn open(&mut self, place: &str, wanted: WantedModel) -> Option<ResolvedModel> {
        let found = wanted.open(&self.finder, self.model, self.precision);
        let found = self.keep(place, found)?;
        self.unchecked.extend(wanted.unchecked(place, &found));
        Some(found)
    }

    fn model(&mut self, init: &Init, place: &str) -> Option<ResolvedModel> {
        match init {
            Init::Base => self.base.clone(),
            Init::Stage(name) => self.by_stage.get(name).cloned(),
            Init::Folder(folder) => {
                let found = self.open(place, WantedModel::Folder(folder.clone()))?;
                self.with_tokens(found)
            }
            Init::Random(file) => {
                let found = self.keep(place, open_blank(file))?;
                self.with_tokens(found)
            }
        }
    }

    /// The model with the recipe's new tokens; warns of those that it has. Results of stages have them from their start.
    pub(super) fn with_tokens(&mut self, known: ResolvedModel) -> Option<ResolvedModel> {
        let added = known.config.add_tokens(&known.tokenizer, self.add_tokens);
        let added = self.keep("add_tokens", added)?;
        for (text, id) in &added.present {
            let index = self.add_tokens.iter().position(|added| added == text)?;
            let special = match known.tokenizer.is_special(*id) {
                true => "",
                false => ", not a special one,",
            };
            let warning = self.places.problem(
                &format!("add_tokens.{index}"),
                format!("{text:?} is token {id}{special} of the model already, and not added"),
            );
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        Some(ResolvedModel {
            tokenizer: added.tokenizer,
            config: added.config,
            ..known
        })
    }

    /// Looks up the tokens that the stage trains rows of.
    pub(super) fn tokens(
        &mut self,
        stage: &Stage,
        inputs: &StageInputs<'_>,
        known: &ResolvedModel,
        path: &str,
    ) {
        let scores = stage.output() == StageOutput::RewardModel;
        let own = (stage.training()).map(|training| ("peft", training.peft, scores));
        let value = inputs.value_peft.map(|peft| ("value_peft", peft, true));
        for (key, peft, scores) in own.into_iter().chain(value) {
            let trained = |peft: &Peft| trained_tensors(&known.config, scores, peft);
            match with_token_ids(peft, &known.tokenizer) {
                Err(problems) => {
                    for Problem { place, message, .. } in problems {
                        let place = format!("{path}.{key}.{place}");
                        self.problems.push(self.places.problem(&place, message));
                    }
                }
                // What is wrong without ids, too, is reported with the plan.
                Ok(with_ids) if trained(peft).is_ok() => {
                    drop(self.keep(&format!("{path}.{key}"), trained(&with_ids)));
                }
                Ok(_) => {}
            }
        }
    }

    /// Opens the language models that a stage's rewards take log-probabilities of; returns the bytes of those that are not the recipe's
    /// own model, which is in memory in any case.
    pub(super) fn readers(
        &mut self,
        inputs: &StageInputs<'_>,
        path: &str,
        policy: Option<&ResolvedModel>,
    ) -> u64 {
        let mut bytes = 0;
        for (key, reward) in &inputs.rewards {
            for (key, by) in readers(&format!("{path}.{key}"), reward) {
                let reader = match by {
                    // Reported with the source.
                    ReadBy::Model("") => None,
                    ReadBy::Model(name) => self.open(&key, WantedModel::Base(name.to_owned())),
                    ReadBy::Stage(name) => self.by_stage.get(name).cloned(),
                };
                let Some(reader) = reader else {
                    continue;
                };
                if let Some(policy) = policy
                    && !self.reads_prompts(&reader, policy, inputs)
                {
                    let problem = self.places.problem(
                        &key,
                        "the model has another tokenizer than the policy and no chat template, and prompts are conversations",
                    );
                    self.problems.push(problem.with_help(
                        "give it a chat_template.jinja, or use a model with the policy's tokenizer",
                    ));
                }
                let is_in_memory = match by {
                    ReadBy::Model(name) => Some(name) == self.model,
                    // Adapters are small beside the base, which is shared.
                    ReadBy::Stage(_) => reader.adapter.is_some(),
                };
                if !is_in_memory {
                    bytes += ModelShape::of(&reader.config, self.precision)
                        .frozen_bytes_of(reader.stored_bytes);
                }
            }
        }
        bytes
    }

    /// Opens the classifiers of a stage's rewards; returns the number of their parameters.
    pub(super) fn classifiers(&mut self, inputs: &StageInputs<'_>, path: &str) -> u64 {
        let mut params = 0;
        for (key, reward) in &inputs.rewards {
            for wanted in classifiers(&format!("{path}.{key}"), reward) {
                let found = wanted.open(&self.finder);
                let Some((source, problems)) = self.keep(&format!("{}.model", wanted.place), found)
                else {
                    continue;
                };
                for (key, message) in problems {
                    let place = format!("{}.{key}", wanted.place);
                    self.problems.push(self.places.problem(&place, message));
                }
                self.unchecked.extend(wanted.unchecked(&source));
                params += source.config.num_params() as u64;
            }
        }
        params
    }

    /// Opens the judges of a stage; returns the stage's own, if it is a model of the recipe, and the number of parameters of those that
    /// no other part of the recipe has.
    pub(super) fn judges(
        &mut self,
        inputs: &StageInputs<'_>,
        path: &str,
    ) -> (Option<ResolvedModel>, u64) {
        let (mut own, mut params) = (None, 0);
        let own_place = format!("{path}.judge");
        for judge in judges_of(path, inputs) {
            let Some(init) = judge.model.model() else {
                continue;
            };
            let Some(found) = self.model(init, &judge.place) else {
                continue;
            };
            if matches!(init, Init::Folder(_)) {
                params += found.config.num_params() as u64;
            }
            if judge.chat && !found.tokenizer.has_chat() {
                let problem = self.places.problem(
                    &judge.chat_place,
                    "the judge has no chat template: leave `chat` out, or name a model tuned for chat",
                );
                self.problems.push(problem);
            }
            if judge.place == own_place {
                own = Some(found);
            }
        }
        (own, params)
    }

    /// Opens the reward models of a stage, and checks the tokenizer and adapters of the one that a value network starts from.
    pub(super) fn reward_models(
        &mut self,
        inputs: &StageInputs<'_>,
        path: &str,
        policy: Option<&ResolvedModel>,
    ) {
        for (key, reward) in &inputs.rewards {
            for (key, name) in learned(&format!("{path}.{key}"), reward) {
                let reward = match reward_folder(&name) {
                    Some(folder) => self.open(&key, WantedModel::Reward(folder.to_path_buf())),
                    None => self.by_stage.get(&name).cloned(),
                };
                if let (Some(reward), Some(policy)) = (reward, policy)
                    && !self.reads_prompts(&reward, policy, inputs)
                {
                    let problem = self.places.problem(
                        &key,
                        "the reward model has another tokenizer than the policy and no chat template, and prompts are conversations",
                    );
                    self.problems.push(problem.with_help(
                        "give it a chat_template.jinja, or use a reward model with the policy's tokenizer",
                    ));
                }
            }
        }
        let Some((key, name)) = inputs.value_start else {
            return;
        };
        let reward = match reward_folder(name) {
            // Problems were reported above.
            Some(folder) => (WantedModel::Reward(folder.to_path_buf()))
                .open(&self.finder, self.model, self.precision)
                .ok(),
            None => self.by_stage.get(name).cloned(),
        };
        let (Some(reward), Some(policy)) = (reward, policy) else {
            return;
        };
        let place = format!("{path}.{key}");
        if !reward.tokenizer.reads_ids_of(&policy.tokenizer) {
            let problem = self.places.problem(&place, OTHER_TOKENS);
            self.problems.push(problem);
        }
        if let (Some(peft), Some(present)) = (inputs.value_peft, &reward.adapter) {
            self.keep(&place, peft.check_start(present));
        }
    }

    /// Whether a reward model can read the prompts of a stage: by the policy's ids, as text, or by its own chat template.
    fn reads_prompts(
        &self,
        reward: &ResolvedModel,
        policy: &ResolvedModel,
        inputs: &StageInputs<'_>,
    ) -> bool {
        if reward.tokenizer.has_chat() || reward.tokenizer.reads_ids_of(&policy.tokenizer) {
            return true;
        }
        let prompts = (inputs.data.iter()).filter(|data| data.kind == RowKind::Prompt);
        !prompts.into_iter().any(|data| {
            // Unreadable rows are reported with the data set.
            let found = self.checked.found(data.config, data.kind);
            let first = found.and_then(|found| found.sample.get(..1)).unwrap_or(&[]);
            let encoded = encode_prompts(first, &policy.tokenizer, &data.config.format, usize::MAX);
            encoded
                .is_ok_and(|encoded| encoded.items.iter().any(|item| item.conversation.is_some()))
        })
    }
}
