//! Surveys a recipe before any weight is loaded: checks models, data and reward sources, and plans each stage.

mod models;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use super::known::{ResolvedModel, UncheckedModel, WantedModel};
use super::{Places, Recipe, RunOptions};
use crate::data::{CheckedData, DataContext, RowKind, SourceColumn};
use crate::error::{Problem, Result};
use crate::model::{Fetch, Finder};
use crate::ops::Precision;
use crate::reward::{self, CustomRewards};
use crate::train::config::{Init, Peft};
use crate::train::plan::{EarlierStages, PlannedModel, StagePlan};
use crate::train::{DataUse, Stage};

/// Plans and problems of a recipe.
pub(super) struct Survey {
    pub(super) plans: Vec<StagePlan>,
    pub(super) problems: Vec<Problem>,
    /// Settings and data without effect.
    pub(super) warnings: Vec<Problem>,
    /// What was recognised in data sets.
    pub(super) notices: Vec<String>,
    /// Models whose weights are still to be downloaded.
    pub(super) unchecked: Vec<UncheckedModel>,
}

/// Checks everything that the recipe names. Data files of the hub are checked if they are in the cache or `options.fetch` is set. Of models
/// that are not on this machine configuration and tokenizer are downloaded and checked.
pub(super) fn survey(
    recipe: &Recipe,
    places: &Places,
    output: &Path,
    options: &RunOptions,
) -> Survey {
    let mut surveyor = Surveyor {
        places,
        precision: recipe.base_precision,
        checked: CheckedData::new(DataContext {
            run_dir: output.to_path_buf(),
            fetch: options.fetch,
            ..DataContext::default()
        }),
        finder: Finder::new(match options.fetch {
            true => Fetch::Check,
            false => Fetch::Description,
        }),
        model: recipe.model.as_deref(),
        eos_token: recipe.eos_token.as_deref(),
        add_tokens: &recipe.add_tokens,
        rewards: &options.rewards,
        base: None,
        by_stage: BTreeMap::new(),
        earlier: EarlierStages::default(),
        problems: Vec::new(),
        warnings: Vec::new(),
        notices: Vec::new(),
        unchecked: Vec::new(),
    };
    if let Some(name) = &recipe.model {
        surveyor.base = surveyor.open("model", WantedModel::Base(name.clone()));
        surveyor.base = surveyor
            .base
            .take()
            .and_then(|known| surveyor.with_tokens(known));
    }
    let plans = recipe
        .stages
        .iter()
        .enumerate()
        .filter_map(|(index, stage)| {
            let path = places.stage_path(index, stage.name());
            surveyor.stage(stage, &path)
        })
        .collect();
    Survey {
        plans,
        problems: surveyor.problems,
        warnings: surveyor.warnings,
        notices: surveyor.notices,
        unchecked: surveyor.unchecked,
    }
}

struct Surveyor<'a> {
    places: &'a Places,
    precision: Precision,
    checked: CheckedData,
    finder: Finder,
    /// The recipe's `model`.
    model: Option<&'a str>,
    /// The recipe's `eos_token`.
    eos_token: Option<&'a str>,
    /// The recipe's `add_tokens`.
    add_tokens: &'a [String],
    rewards: &'a CustomRewards,
    base: Option<ResolvedModel>,
    /// Models of stages' results, by stage.
    by_stage: BTreeMap<String, ResolvedModel>,
    earlier: EarlierStages,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    notices: Vec<String>,
    unchecked: Vec<UncheckedModel>,
}

impl Surveyor<'_> {
    /// Returns the value, or records the error at `key_path` and returns `None`.
    fn keep<T>(&mut self, key_path: &str, result: Result<T>) -> Option<T> {
        result
            .map_err(|error| {
                self.problems
                    .push(self.places.problem(key_path, error.to_string()))
            })
            .ok()
    }

    /// As [`Surveyor::keep`] for an error about the layers at `names`, or about rows of tokens, which begins with its own key.
    fn keep_below_peft<T>(&mut self, path: &str, names: &str, result: Result<T>) -> Option<T> {
        let Err(error) = &result else {
            return result.ok();
        };
        let message = error.to_string();
        let of_tokens = ["token_indices", "trainable_token_indices"];
        let own = of_tokens.iter().find_map(|key| {
            let prefix = format!("{key}: ");
            let rest = message.strip_prefix(&prefix)?;
            Some((format!("{path}.peft.{key}"), rest.replace(&prefix, "")))
        });
        match own {
            Some((key, message)) => {
                self.problems.push(self.places.problem(&key, message));
                None
            }
            None => self.keep(names, result),
        }
    }

    fn stage(&mut self, stage: &Stage, path: &str) -> Option<StagePlan> {
        let inputs = stage.inputs();
        let (judge, judges) = self.judges(&inputs, path);
        let known = self.models(&inputs, path).or(judge).or_else(|| {
            // Whoever asks people, or a server alone, has no model; its rows are measured by one of the recipe.
            let has_model = inputs
                .judge
                .map_or(!inputs.models.is_empty(), |(judge, _)| {
                    judge.model().is_some()
                });
            let any = || {
                self.base
                    .clone()
                    .or_else(|| self.by_stage.values().next().cloned())
            };
            (!has_model).then(any).flatten()
        });
        let known = known.and_then(|known| self.with_eos(known));
        if let (Some(training), Some(known)) = (stage.training(), &known) {
            let trained = ResolvedModel {
                adapter: training.peft.adapter(),
                ..known.clone()
            };
            self.by_stage.insert(stage.name().to_owned(), trained);
            if let Some(present) = &known.adapter {
                let fits = training.peft.check_start(present);
                self.keep(&format!("{path}.peft"), fits);
            }
        }
        if let Some(known) = &known {
            self.tokens(stage, &inputs, known, path);
        }
        let before = self.problems.len();
        // Reward sources read columns of the rows with the prompts.
        for data in &inputs.data {
            let rewards = inputs.rewards.iter().filter(|(key, _)| {
                let scored = inputs.scored_by(key).map(|scored| scored.key);
                data.kind == RowKind::Prompt
                    || (key.starts_with("eval_") && scored == Some(data.key))
            });
            let read = rewards.flat_map(|(key, reward)| {
                let columns = reward.columns().into_iter();
                columns.map(move |column| (format!("{path}.{key}"), column))
            });
            self.data(&format!("{path}.{}", data.key), data, read.collect());
        }
        for (key, reward) in &inputs.rewards {
            let place = format!("{path}.{key}");
            for problem in reward::check(reward, self.rewards, &place) {
                self.problems.push(Problem {
                    place: self.places.problem(&problem.place, "").place,
                    ..problem
                });
            }
        }
        self.reward_models(&inputs, path, known.as_ref());
        let readers = self.readers(&inputs, path, known.as_ref());
        let classifiers = self.classifiers(&inputs, path);
        let known = known?;
        self.positions(&known, stage, path);
        if let Some(truncate) = stage.generation().and_then(|g| g.truncate) {
            let token = known.tokenizer.single_token(&truncate.token);
            self.keep(&format!("{path}.truncate.token"), token);
        }
        let model = PlannedModel {
            config: &known.config,
            tokenizer: &known.tokenizer,
            precision: self.precision,
            stored_bytes: known.stored_bytes,
        };
        // Errors about parameters or layers that the model does not have.
        let trains_base = (stage.training()).is_some_and(|training| training.peft.trains_base());
        let adapter = (stage.training()).and_then(|training| training.peft.adapter());
        let on_layers = adapter.is_none_or(|adapter| adapter.on_layers());
        let names = match trains_base {
            true => format!("{path}.peft"),
            false if on_layers => format!("{path}.peft.target_modules"),
            false => format!("{path}.peft.num_virtual_tokens"),
        };
        // Invalid rows were reported above; they cannot be planned.
        if self.problems.len() > before {
            let shape = stage.plan_shape(model);
            self.keep_below_peft(path, &names, shape);
            return None;
        }
        let planned = stage.plan(model, &self.checked, &self.earlier);
        let (mut plan, problems) = self.keep_below_peft(path, &names, planned)?;
        if classifiers > 0 {
            plan.total_params += classifiers;
            let bytes = size_of::<f32>() as u64 * classifiers;
            plan.memory.push(("classifiers".into(), bytes));
        }
        if readers > 0 {
            plan.memory.push(("models of rewards".into(), readers));
        }
        if judges > 0 {
            plan.total_params += judges;
            let bytes = size_of::<f32>() as u64 * judges;
            plan.memory.push(("judges".into(), bytes));
        }
        self.teachers(stage, &known, path, &mut plan);
        for (key, error) in problems {
            self.keep::<()>(&format!("{path}.{key}"), Err(error));
        }
        for (key, message) in &plan.warnings {
            let warning = self.places.problem(&format!("{path}.{key}"), message);
            self.warnings.push(warning);
        }
        let (name, leaves) = (stage.name(), plan.leaves);
        (self.earlier.rows).extend(leaves.map(|rows| (name.to_owned(), rows)));
        // A stage that teaches no responses of its own keeps the lengths of what it starts from.
        let start = stage.training().map(|training| training.init);
        let inherited = start.and_then(|init| match init {
            Init::Stage(earlier) => self.earlier.responses.get(earlier).copied(),
            _ => None,
        });
        let response = plan.response.or(inherited);
        (self.earlier.responses).extend(response.map(|response| (name.to_owned(), response)));
        Some(plan)
    }

    /// The model with the recipe's EOS; `None` if its tokenizer has no such token, which is reported once.
    fn with_eos(&mut self, known: ResolvedModel) -> Option<ResolvedModel> {
        let Some(text) = self.eos_token else {
            return Some(known);
        };
        match known.tokenizer.with_eos_token(text) {
            Ok(tokenizer) => Some(ResolvedModel { tokenizer, ..known }),
            Err(error) => {
                let message = error.to_string();
                let message = message.trim_start_matches("eos_token: ");
                let help = match text.is_empty() {
                    true => "leave it out for the model's own".to_owned(),
                    false => {
                        format!("name a token of the model, or add it by `add_tokens: [{text:?}]`")
                    }
                };
                let problem = self.places.problem("eos_token", message).with_help(help);
                if !self.problems.contains(&problem) {
                    self.problems.push(problem);
                }
                None
            }
        }
    }

    /// Reports a stage whose rows may be longer than a table of learned positions.
    fn positions(&mut self, known: &ResolvedModel, stage: &Stage, path: &str) {
        let config = &known.config;
        let most = config.max_positions();
        let virtual_tokens = match stage.training() {
            Some(training) => {
                let value = stage
                    .inputs()
                    .value_peft
                    .map_or(0, Peft::num_virtual_tokens);
                training.peft.num_virtual_tokens().max(value)
            }
            None => (known.adapter.as_ref()).map_or(0, |adapter| adapter.num_virtual_tokens()),
        };
        for (key, longest) in stage.longest_rows() {
            if config.has_learned_positions() && longest.saturating_add(virtual_tokens) > most {
                let before = match virtual_tokens {
                    0 => String::new(),
                    count => format!(" after {count} virtual ones"),
                };
                let message = format!(
                    "rows may have {longest} tokens{before}, prompt and response together; the model's table of positions takes at most {most}"
                );
                let problem = self.places.problem(&format!("{path}.{key}"), message);
                self.problems.push(problem);
            }
        }
    }

    /// Checks all rows of a data set, which have to have the columns that `read` names, each with the key of the reward source, and
    /// records the problems.
    fn data(&mut self, place: &str, data: &DataUse<'_>, read: Vec<(String, SourceColumn)>) {
        if data.config.source.is_of_stages() {
            return;
        }
        let places = self.places;
        let columns: Vec<SourceColumn> = read.iter().map(|(_, column)| column.clone()).collect();
        let Some(found) = self.checked.check(data.config, data.kind, &columns) else {
            return;
        };
        // Problems of rows have places in their file; problems of the recipe's keys get line and column.
        let at_key = |(key, problem): &(&str, Problem)| Problem {
            help: problem.help.clone(),
            ..places.problem(&format!("{place}{key}"), problem.message.clone())
        };
        self.problems.extend(found.key_problems.iter().map(at_key));
        self.warnings.extend(found.key_warnings.iter().map(at_key));
        for notice in &found.notices {
            if !self.notices.contains(notice) {
                self.notices.push(notice.clone());
            }
        }
        for problem in &found.problems {
            let mut problem = problem.clone();
            let reader = read
                .iter()
                .find(|(_, column)| column.is_missed(&problem.message));
            if let Some((key, _)) = reader {
                problem.help = Some(format!("it is read at {}", places.problem(key, "").place));
            }
            // Problems of a shared file are reported once.
            if !self.problems.contains(&problem) {
                self.problems.push(problem);
            }
        }
    }
}
