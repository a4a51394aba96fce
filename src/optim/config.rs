//! The optimiser as a recipe names it.

use serde::{Deserialize, Serialize};

use super::rule::UpdateRule;
use super::{Algorithm, ParamGroup, Schedule};
use crate::error::Problem;
use crate::settings::Settings;

/// The optimiser and its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// The update rule.
    pub algorithm: Algorithm,
    /// Peak learning rate.
    pub lr: f64,
    /// How the learning rate moves over the steps of the stage.
    pub schedule: Schedule,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// Added to the root of AdamW's second moment, after bias correction (PyTorch's placement).
    pub eps: f64,
    /// Weight decay of everything but norms and biases.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down; `None` never clips.
    pub max_grad_norm: Option<f64>,
    /// Parameters with a learning rate or weight decay of their own; the first that matches a parameter counts.
    pub groups: Vec<ParamGroup>,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            lr: 1e-4,
            schedule: Schedule::default(),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: Some(1.0),
            groups: Vec::new(),
        }
    }
}

/// Most groups: the pattern of each is compiled, and matched with every parameter.
const MAX_GROUPS: usize = 1000;

impl OptimConfig {
    /// Settings of the update rule, the schedule and the groups that cannot be; `place` is the key below the optimiser.
    pub fn problems(&self) -> Vec<Problem> {
        let below = |key: &'static str| {
            move |mut problem: Problem| {
                problem.place = match problem.place.as_str() {
                    "" => key.to_owned(),
                    place => format!("{key}.{place}"),
                };
                problem
            }
        };
        let schedule = self.schedule.problems().into_iter().map(below("schedule"));
        let mut of_rule = Settings::default();
        self.algorithm.problems(&mut of_rule);
        let algorithm = of_rule.into_problems().into_iter();
        let count = self.groups.len();
        let too_many = (count > MAX_GROUPS).then(|| {
            let message = format!("{count} groups; at most {MAX_GROUPS} are possible");
            Problem::new("groups", message)
        });
        let checked = self.groups.iter().enumerate().take(MAX_GROUPS);
        let groups = checked.flat_map(|(index, group)| {
            let problems = group.problems().into_iter();
            problems.map(move |mut problem| {
                problem.place = match problem.place.as_str() {
                    "" => format!("groups.{index}"),
                    place => format!("groups.{index}.{place}"),
                };
                problem
            })
        });
        (schedule.chain(algorithm.map(below("algorithm"))))
            .chain(self.unused())
            .chain(too_many)
            .chain(groups)
            .collect()
    }

    /// Settings of AdamW that the update rule does not have.
    fn unused(&self) -> Vec<Problem> {
        if self.algorithm.has_moments() {
            return Vec::new();
        }
        let default = Self::default();
        let given = [
            ("beta1", self.beta1 != default.beta1),
            ("beta2", self.beta2 != default.beta2),
            ("eps", self.eps != default.eps),
        ];
        let name = self.algorithm.name();
        let unused = given.into_iter().filter(|(_, given)| *given);
        unused
            .map(|(key, _)| {
                let message = format!("is AdamW's, and `{name}` has no use for it");
                let help =
                    format!("leave it out; the settings of `{name}` stand in its parentheses");
                Problem::new(key, message).with_help(help)
            })
            .collect()
    }
}
