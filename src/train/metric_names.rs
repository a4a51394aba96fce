//! The names of the metrics that a stage logs at an evaluation, as far as its configuration says: `keep_best` chooses by one of them.

use crate::reward::RewardConfig;
use crate::suggest::{did_you_mean, quoted};

/// What names of metrics of held-out rows begin with.
pub(in crate::train) const HELD_OUT: &str = "eval/";

/// Names of metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MetricNames {
    names: Vec<String>,
    /// Beginnings of names that go on with a value of the rows.
    beginnings: Vec<String>,
}

impl MetricNames {
    /// Those of the optimiser, which every stage with one step at a time has, and `names`.
    pub(in crate::train) fn of_steps(names: &[&str]) -> Self {
        Self::default().with(names).with(&["grad_norm", "lr"])
    }

    /// Those of updates on responses of the policy's own, which `reward` scores.
    pub(in crate::train) fn of_updates(reward: &RewardConfig, has_gold: bool) -> Self {
        let rollout = [
            "episode",
            "lr",
            "objective/entropy",
            "policy/approxkl_avg",
            "policy/clipfrac_avg",
            "policy/grad_norm",
            "loss/policy_avg",
            "val/ratio",
            "val/ratio_var",
            "val/ratio_min",
            "val/ratio_max",
            "val/num_eos_tokens",
            "val/missing_eos_rate",
            "val/response_length",
            "val/repetition",
            "val/advantage_mean",
            "rollout/logprob_max_diff",
        ];
        Self::default().with(&rollout).with_scores(reward, has_gold)
    }

    /// Adds those of the scores of responses that `reward` gives.
    pub(in crate::train) fn with_scores(self, reward: &RewardConfig, has_gold: bool) -> Self {
        self.with(&["objective/scores", "objective/scores_std"])
            .with_parts("objective/scores", reward)
            .with_if(has_gold, &["objective/gold_scores"])
    }

    /// Adds those of held-out responses, which `reward` scores.
    pub(in crate::train) fn with_held_out_responses(
        self,
        reward: &RewardConfig,
        has_gold: bool,
        has_kl: bool,
    ) -> Self {
        self.with(&["eval/scores", "eval/response_length", "eval/eos_rate"])
            .with_if(has_kl, &["eval/kl"])
            .with_parts("eval/scores", reward)
            .with_if(has_gold, &["eval/gold_scores"])
    }

    /// Adds `names`.
    pub(in crate::train) fn with(mut self, names: &[&str]) -> Self {
        self.names.extend(names.iter().map(|&name| name.to_owned()));
        self
    }

    /// Adds `names` if the stage logs them.
    pub(in crate::train) fn with_if(self, logged: bool, names: &[&str]) -> Self {
        match logged {
            true => self.with(names),
            false => self,
        }
    }

    /// Adds `names` of steps, and with the same meaning of held-out rows.
    pub(in crate::train) fn with_both(mut self, names: &[&str]) -> Self {
        let held_out = names.iter().map(|name| format!("{HELD_OUT}{name}"));
        self.names.extend(held_out);
        self.with(names)
    }

    /// Adds all names that begin so.
    pub(in crate::train) fn with_beginning(mut self, beginning: String) -> Self {
        self.beginnings.push(beginning);
        self
    }

    /// Adds a name for each term of a sum.
    fn with_parts(mut self, score: &str, reward: &RewardConfig) -> Self {
        let parts = reward.term_names().into_iter();
        self.names
            .extend(parts.map(|part| format!("{score}/{part}")));
        self
    }

    /// All that are known whole.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether there is a metric of this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
            || self.beginnings.iter().any(|start| name.starts_with(start))
    }

    /// What is wrong with a name that there is no metric of, and what to do; `held_out`: whether the stage has held-out rows.
    pub(in crate::train) fn problem(
        &self,
        name: &str,
        held_out: bool,
    ) -> Option<(String, Option<String>)> {
        if self.has(name) {
            return None;
        }
        let is_logged = |known: &&str| held_out || !known.starts_with(HELD_OUT);
        let known = || self.names().filter(is_logged);
        let open: Vec<String> = self.beginnings.iter().map(|s| format!("{s}..")).collect();
        let all = quoted(known().chain(open.iter().map(String::as_str)));
        let message = format!("the stage has no metric `{name}`; it has {all}");
        Some((message, did_you_mean(name, known())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_answered_with_the_known_ones() {
        let names = MetricNames::of_steps(&["trained_tokens"])
            .with_both(&["loss"])
            .with_if(false, &["eval/kl"])
            .with_beginning("eval/accuracy/by=".to_owned());
        for known in ["loss", "eval/loss", "lr", "eval/accuracy/by=1"] {
            assert_eq!(names.problem(known, true), None, "{known}");
        }
        let (message, help) = names.problem("eval/los", true).unwrap();
        assert_eq!(
            message,
            "the stage has no metric `eval/los`; it has `trained_tokens`, `grad_norm`, `lr`, `eval/loss`, `loss`, `eval/accuracy/by=..`"
        );
        assert_eq!(help.as_deref(), Some("did you mean `eval/loss`?"));
        // Without held-out rows none of theirs is offered.
        let (message, help) = names.problem("accuracy", false).unwrap();
        assert!(message.contains("it has `trained_tokens`, `grad_norm`, `lr`, `loss`, "));
        assert_eq!(help, None);
    }

    #[test]
    fn terms_of_a_sum_have_names() {
        let reward = RewardConfig::Sum(vec![
            (1.0, RewardConfig::Gold),
            (0.1, RewardConfig::Length { target: 9 }),
        ]);
        let names =
            MetricNames::of_updates(&reward, false).with_held_out_responses(&reward, true, false);
        for name in [
            "objective/scores/gold",
            "eval/scores/length(9)",
            "eval/gold_scores",
        ] {
            assert!(names.has(name), "{name}");
        }
        for name in ["objective/gold_scores", "eval/kl", "eval/scores/rougeL"] {
            assert!(!names.has(name), "{name}");
        }
    }
}
