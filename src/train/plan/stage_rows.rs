//! What a stage's plan knows of the rows that earlier stages will write.

use super::{Planner, ScoredRows};
use crate::data::{DataConfig, DataSource, StageRows};
use crate::error::count;
use crate::suggest::quoted;

impl Planner<'_> {
    /// Responses to each prompt of a data set that a stage will write; `None` for other data sets.
    pub(in crate::train) fn responses_of(&self, data: &DataConfig) -> Option<usize> {
        let stages = data.source.stages();
        let responses = |of: &StageRows<'_>| Some(self.earlier.rows.get(of.stage)?.responses);
        stages.iter().filter_map(responses).max()
    }

    /// What earlier stages will write of a data set that consists of their rows alone; empty for other data sets.
    pub(in crate::train) fn written(&self, data: &DataConfig) -> Vec<ScoredRows> {
        let only_stages = match &data.source {
            DataSource::Mix(parts) => parts.iter().all(|(_, part)| part.source.is_of_stages()),
            source => source.is_of_stages(),
        };
        let stages = data.source.stages();
        let rows = |of: &StageRows<'_>| self.earlier.rows.get(of.stage).copied();
        let rows: Option<Vec<ScoredRows>> = stages.iter().map(rows).collect();
        rows.filter(|_| only_stages).unwrap_or_default()
    }

    /// Reports a part of an earlier stage's rows that will be empty. What is planned is the most that there can be.
    pub(super) fn check_parts(&mut self, key: &str, data: &DataConfig) {
        for of in data.source.stages() {
            let Some(rows) = self.earlier.rows.get(of.stage) else {
                continue;
            };
            let message = match (of.valid, rows.prompts, rows.held_out) {
                (true, 1.., 0) => {
                    "holds out no rows, as its `valid_fraction` of them is less than half a row: raise it"
                }
                (false, 0, 1..) => {
                    "holds out all rows, as the rest is less than half a row: lower its `valid_fraction`"
                }
                _ => continue,
            };
            self.problem(
                &format!("{key}.source"),
                format!("the stage `{}` {message}, or give it more rows", of.stage),
            );
        }
    }

    /// Reports rows of earlier stages that have fewer responses to each prompt than are compared, or more.
    pub(in crate::train) fn check_responses(
        &mut self,
        data: &DataConfig,
        (least, most): (usize, usize),
    ) {
        let written = self.written(data);
        let Some(largest) = written.iter().map(|rows| rows.responses).max() else {
            return;
        };
        let (stages, count) = (data.source.stages(), count(largest, "response"));
        let names = quoted(stages.iter().map(|rows| rows.stage));
        let (wanted, change) = match (largest < least, largest > most) {
            (true, _) => (format!("at least {least} are compared"), "raise"),
            (_, true) => (format!("at most {most} are judged together"), "lower"),
            _ => return,
        };
        let message = format!(
            "the rows of {names} have {count} to each prompt, and {wanted}: {change} `num_responses` there"
        );
        self.problem("data.source", message);
    }
}
