//! What a recipe's files hold: models, data and reward sources are looked at, and each stage is planned, before any
//! weight is loaded.

mod models;

use std::collections::BTreeMap;
use std::path::Path;

use super::known::{Known, open_model};
use super::{Places, Recipe};
use crate::data::{DataContext, check_source};
use crate::error::{Problem, Result};
use crate::model::ModelConfig;
use crate::ops::Precision;
use crate::reward;
use crate::train::plan::{PlannedModel, ScoredRows, StagePlan};
use crate::train::{DataUse, Stage};

/// Plans and problems of a recipe.
pub(super) struct Survey {
    pub(super) plans: Vec<StagePlan>,
    pub(super) problems: Vec<Problem>,
}

/// Looks at everything that the recipe names.
pub(super) fn survey(recipe: &Recipe, places: &Places, output: &Path) -> Survey {
    let mut surveyor = Surveyor {
        places,
        precision: recipe.base_precision,
        context: DataContext {
            run_dir: output.to_path_buf(),
            cache_dir: None,
        },
        model: recipe.model.as_deref(),
        eos_token: recipe.eos_token.as_deref(),
        base: None,
        by_stage: BTreeMap::new(),
        rows: BTreeMap::new(),
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
            surveyor.stage(stage, &path)
        })
        .collect();
    Survey {
        plans,
        problems: surveyor.problems,
    }
}

struct Surveyor<'a> {
    places: &'a Places,
    precision: Precision,
    context: DataContext,
    /// The recipe's `model`.
    model: Option<&'a str>,
    /// The recipe's `eos_token`.
    eos_token: Option<&'a str>,
    base: Option<Known>,
    /// Models that stages train, by stage.
    by_stage: BTreeMap<String, Known>,
    /// Rows that stages will leave, by stage.
    rows: BTreeMap<String, ScoredRows>,
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

    fn stage(&mut self, stage: &Stage, path: &str) -> Option<StagePlan> {
        let reads = stage.reads();
        let known = self.models(&reads, path);
        let known = known.and_then(|known| self.with_eos(known));
        let trains = stage.training().is_some();
        if let (true, Some(known)) = (trains, &known) {
            self.by_stage.insert(stage.name().to_owned(), known.clone());
        }
        let before = self.problems.len();
        for data in &reads.data {
            self.data(&format!("{path}.{}", data.key), data);
        }
        for (key, reward) in &reads.rewards {
            let place = format!("{path}.{key}");
            for problem in reward::check(reward, &place) {
                self.problems.push(Problem {
                    place: self.places.problem(&place, "").place,
                    ..problem
                });
            }
        }
        self.reward_models(&reads, path, known.as_ref());
        let known = known?;
        self.positions(&known.config, stage, path);
        if let Some(truncate) = stage.generation().and_then(|g| g.truncate) {
            let token = known.tokenizer.single_token(&truncate.token);
            self.keep(&format!("{path}.truncate.token"), token);
        }
        let model = PlannedModel {
            config: &known.config,
            tokenizer: &known.tokenizer,
            precision: self.precision,
        };
        // What names parameters or layers that the model does not have.
        let trains_base = (stage.training()).is_some_and(|training| training.peft.trains_base());
        let names = match trains_base {
            true => format!("{path}.peft"),
            false => format!("{path}.peft.target_modules"),
        };
        // Rows that are wrong in themselves were named above; they cannot be counted.
        if self.problems.len() > before {
            let shape = stage.plan_shape(model);
            self.keep(&names, shape);
            return None;
        }
        let planned = stage.plan(model, &self.context, &self.rows);
        let (plan, problems) = self.keep(&names, planned)?;
        for (key, error) in problems {
            self.keep::<()>(&format!("{path}.{key}"), Err(error));
        }
        let leaves = plan.leaves;
        (self.rows).extend(leaves.map(|rows| (stage.name().to_owned(), rows)));
        Some(plan)
    }

    /// The model with the recipe's EOS; `None` if its tokenizer has no such token, which is noted once.
    fn with_eos(&mut self, known: Known) -> Option<Known> {
        let Some(text) = self.eos_token else {
            return Some(known);
        };
        match known.tokenizer.with_eos_token(text) {
            Ok(tokenizer) => Some(Known { tokenizer, ..known }),
            Err(error) => {
                let problem = self.places.problem("eos_token", error.to_string());
                if !self.problems.contains(&problem) {
                    self.problems.push(problem);
                }
                None
            }
        }
    }

    /// Notes a stage whose rows may outgrow a table of learned positions.
    fn positions(&mut self, config: &ModelConfig, stage: &Stage, path: &str) {
        let most = config.max_positions();
        for (key, longest) in stage.longest_rows() {
            if config.has_learned_positions() && longest > most {
                let message = format!(
                    "rows may have {longest} tokens, prompt and response together; the model's table of positions takes at most {most}"
                );
                let problem = self.places.problem(&format!("{path}.{key}"), message);
                self.problems.push(problem);
            }
        }
    }

    fn data(&mut self, place: &str, data: &DataUse<'_>) {
        if data.config.source.stage().is_some() {
            return;
        }
        for problem in check_source(data.config, &self.context, data.rows) {
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
}
