//! The stage specification of Compare.

use super::{CompareConfig, OWN_METRICS};
use crate::data::{Row, RowKind, Tokenizer, encode_prompts};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::reward::RewardConfig;
use crate::train::checks::Checks;
use crate::train::config::{DataConfig, Init};
use crate::train::plan::{Planner, StagePlan};
use crate::train::{
    GenerationSettings, Outcome, Preview, Session, StageInputs, StageOutput, StageSpec,
};

/// Longest title of a reward source in characters: it heads a column.
const LONGEST_TITLE: usize = 80;

/// Why a reward source cannot have this title, which is its name in tables and in `metrics.jsonl`.
fn title_problem(title: &str) -> Option<String> {
    let count = title.chars().count();
    if title.trim().is_empty() {
        return Some("a source has an empty title".into());
    }
    if count > LONGEST_TITLE {
        let begin: String = title.chars().take(20).collect();
        return Some(format!(
            "the title \"{begin}..\" has {count} characters; expected at most {LONGEST_TITLE}"
        ));
    }
    if title.chars().any(char::is_control) {
        return Some(format!("the title {title:?} has control characters"));
    }
    let taken = title == "step" || OWN_METRICS.contains(&title);
    taken.then(|| format!("the title \"{title}\" is the name of a metric of the stage itself"))
}

impl CompareConfig {
    /// Where the policy stands that a judge compares the others with.
    pub(super) fn anchor(&self) -> Option<usize> {
        match &self.reference {
            Some(reference) => self.policies.iter().position(|init| init == reference),
            None => Some(0),
        }
    }

    /// Checks that a judge has pairs to compare.
    fn check_judged(&self, checks: &mut Checks, path: &str) {
        let place = format!("{path}.judge");
        if self.policies.len() < 2 {
            checks.problem(&place, "has nothing to compare: there is one policy");
            checks.help("e.g. `policies: [Stage(\"sft\"), Stage(\"ppo\")]`");
            checks.depends_on(format!("{path}.policies"));
        } else if self.anchor().is_none() {
            checks.problem(
                &place,
                "compares responses with those of the reference, which is not among `policies`",
            );
            checks.help("add it to `policies`, or leave out `reference` for the first of them");
            checks.depends_on(format!("{path}.reference"));
        }
    }
}

impl StageSpec for CompareConfig {
    const OUTPUT: StageOutput = StageOutput::Table;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        // Prompts are encoded by the reference's tokenizer.
        let reference = self.reference.iter();
        let policies = self.policies.iter().enumerate();
        let policies = policies.map(|(index, init)| (format!("policies.{index}"), init));
        let rewards = self.rewards.iter();
        let inputs = StageInputs {
            models: reference
                .map(|init| ("reference".to_owned(), init))
                .chain(policies)
                .collect(),
            rewards: rewards
                .map(|(title, reward)| (format!("rewards.{title}"), reward))
                .collect(),
            pair_judge: (self.judge.as_ref()).map(|by| (&by.judge, by.chat)),
            ..StageInputs::default()
        };
        inputs.data("data", &self.data, RowKind::Prompt)
    }

    fn data_mut(&mut self) -> Vec<&mut DataConfig> {
        vec![&mut self.data]
    }

    fn generation(&self) -> Option<GenerationSettings<'_>> {
        Some(GenerationSettings {
            response_length: self.response_length,
            max_prompt_length: self.max_prompt_length,
            generation_batch_size: self.generation_batch_size,
            sampling: Some(&self.sampling),
            truncate: self.truncate.as_ref(),
        })
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        checks.temperature_or_zero(path, "sampling.temperature", self.sampling.temperature);
        checks.positive(path, "num_responses", self.num_responses);
        checks.not_negative(path, "tie_margin", self.tie_margin);
        if self.num_responses > 1 && self.sampling.temperature == 0.0 {
            checks.problem(
                format!("{path}.num_responses"),
                "greedy responses to one prompt are all the same",
            );
            checks.help("leave out `num_responses`, or sample with `sampling: (temperature: 1.0)`");
            checks.depends_on(format!("{path}.sampling.temperature"));
        }
        if self
            .stop
            .iter()
            .any(|stop| stop.trim_start_matches([' ', '\t']).is_empty())
        {
            checks.problem(
                format!("{path}.stop"),
                "a text of blanks alone, or none, would end responses at their first word",
            );
            checks.help("e.g. `stop: [\"\\n\"]`, the end of the first line");
        }
        for title in self.rewards.keys() {
            if let Some(problem) = title_problem(title) {
                checks.problem(format!("{path}.rewards"), problem);
                checks.help("name the column by what it scores, e.g. `rewards: {\"helpful\": ..}`");
            }
        }
        if let Some(judge) = &self.judge {
            checks.problems_below(&format!("{path}.judge"), judge.problems());
            self.check_judged(checks, path);
        }
        if self.policies.is_empty() {
            checks.problem(format!("{path}.policies"), "at least one policy is needed");
            checks.help("e.g. `policies: [Base, Stage(\"sft\")]`");
        }
        for (key, init) in self.inputs().models {
            if matches!(init, Init::Random(_)) {
                checks.problem(
                    format!("{path}.{key}"),
                    "random weights cannot be compared; use `Base` or `Stage(..)`",
                );
            }
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let longest = self.max_prompt_length;
        let data = planner.lengths("data", &self.data, RowKind::Prompt, longest);
        let policies = self.policies.len();
        plan.rows = data.rows;
        plan.steps = policies as u64;
        let rows = data.rows as f64 * self.num_responses as f64;
        plan.tokens = (rows * policies as f64 * (data.mean + self.response_length as f64)) as u64;
        planner.generate(plan, self.generation(), &data);
        let learned = self.rewards.values().map(RewardConfig::num_learned);
        let learned = learned.sum::<usize>() as f64;
        for init in &self.policies {
            let response = planner.response_of(init, self.response_length);
            plan.work.sampled += rows * response;
            // The prompt, and the response once more by the reference and by each learned reward.
            plan.work.forward += rows * (data.mean + (1.0 + learned) * (data.mean + response));
            if self
                .judge
                .as_ref()
                .is_some_and(|by| by.judge.model().is_some())
            {
                // Two orders, each with both responses.
                plan.work.forward += 2.0 * rows * (data.mean + 2.0 * response);
            }
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let (format, longest) = (&self.data.format, self.max_prompt_length);
        let encoded = encode_prompts(rows, tokenizer, format, longest)?;
        Ok(Preview::prompts(encoded))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::compare(session, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_that_clash_or_do_not_fit_are_named() {
        for title in ["gold", "my score", "eval/gold", &"x".repeat(80)] {
            assert_eq!(title_problem(title), None, "{title}");
        }
        for (title, part) in [
            ("step", "name of a metric"),
            ("eval/kl", "name of a metric"),
            ("eval/eos_rate", "name of a metric"),
            (" ", "empty"),
            ("a\u{1b}[31m", "control characters"),
            (&"x".repeat(81), "has 81 characters"),
        ] {
            let problem = title_problem(title).unwrap();
            assert!(problem.contains(part), "{title}: {problem}");
        }
    }
}
