//! The closing table of a run: policies on the same prompts, with paired differences and their standard errors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::contest::{Contest, ContestRules, Judged};
use super::curves::SampleCurves;
use super::histogram::Histogram;
use super::samples::Sample;
use super::table::Table;
use crate::stats::number;

/// The responses of several policies to the same prompts, scored by the same sources.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The policy that the others are compared with, by name; it need not be among them.
    pub reference: String,
    /// Names of the reward sources, in the order of the columns.
    pub sources: Vec<String>,
    /// The policies, in the order of the recipe.
    pub policies: Vec<ComparedPolicy>,
    /// The distribution of the scores by source, a series for each policy.
    pub distributions: Vec<Option<Histogram>>,
    /// Win rates and ratings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contest: Option<Contest>,
    /// What more samples per prompt give, by policy; empty with one response to each prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<SampleCurves>,
}

/// The results of one policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ComparedPolicy {
    /// Its name: that of its stage, or `base`.
    pub name: String,
    /// The mean score by source.
    pub scores: Vec<Estimate>,
    /// The mean difference from the reference on the same prompt, by source; empty for the reference and without one among the policies.
    pub gains: Vec<Estimate>,
    /// KL from the reference, nats per response.
    #[serde(deserialize_with = "number")]
    pub kl: f64,
    /// Mean length of a response in tokens.
    #[serde(deserialize_with = "number")]
    pub tokens: f64,
    /// Fraction of responses that ended with EOS.
    #[serde(deserialize_with = "number")]
    pub eos_rate: f64,
}

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean; null in a file where it is not finite.
    #[serde(deserialize_with = "number")]
    pub mean: f64,
    /// Its standard error, 0 for a single value.
    #[serde(deserialize_with = "number")]
    pub error: f64,
}

/// A policy's responses: scores by source and prompt, and what is measured of all of them.
#[derive(Debug, Clone, Default)]
pub struct PolicyResponses {
    /// Its name.
    pub name: String,
    /// Responses to each prompt, one after another; 0 is 1.
    pub num_responses: usize,
    /// Scores of each response, by source.
    pub scores: Vec<BTreeMap<String, f64>>,
    /// Length of each response in tokens; may be empty.
    pub lengths: Vec<f64>,
    /// What a judge said of each response against the reference's; absent for the reference.
    pub judged: Option<Judged>,
    /// KL from the reference, nats per response.
    pub kl: f64,
    /// Mean length of a response in tokens.
    pub tokens: f64,
    /// Fraction of responses that ended with EOS.
    pub eos_rate: f64,
}

impl PolicyResponses {
    /// The score of each response by one source; NaN where it has none.
    pub(super) fn scores_of(&self, source: &str) -> Vec<f64> {
        let score = |scores: &BTreeMap<String, f64>| scores.get(source).copied();
        (self.scores.iter())
            .map(|scores| score(scores).unwrap_or(f64::NAN))
            .collect()
    }

    /// The mean of numbers of the responses for each prompt; zeros without numbers.
    pub(super) fn by_prompt(&self, values: &[f64]) -> Vec<f64> {
        if values.is_empty() {
            return vec![0.0; self.num_prompts()];
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        values.chunks(self.num_responses.max(1)).map(mean).collect()
    }

    /// Number of prompts.
    pub(super) fn num_prompts(&self) -> usize {
        self.scores.len() / self.num_responses.max(1)
    }
}

impl Estimate {
    /// The mean, and its standard error `sqrt(variance / n)` with the unbiased variance; 0 for a single value.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        Self {
            mean,
            error: (squares / (n - 1.0).max(1.0) / n).sqrt(),
        }
    }

    /// Whether the mean is more than two standard errors away from zero: what is nearer may be chance.
    pub(super) fn is_clear(&self) -> bool {
        self.mean.abs() > 2.0 * self.error
    }
}

impl Comparison {
    /// Compares responses to the same prompts in the same order. `sources`: names of the reward sources.
    pub fn new(reference: &str, sources: Vec<String>, policies: &[PolicyResponses]) -> Self {
        // The unit of every error is the prompt: responses to one prompt are alike.
        let of = |policy: &PolicyResponses, source: &str| -> Vec<f64> {
            policy.by_prompt(&policy.scores_of(source))
        };
        let base = policies.iter().find(|policy| policy.name == reference);
        let compared = |policy: &PolicyResponses| {
            let gain = |base: &PolicyResponses, source: &String| {
                let (own, other) = (of(policy, source), of(base, source));
                let differences: Vec<f64> = own.iter().zip(&other).map(|(a, b)| a - b).collect();
                Estimate::of(&differences)
            };
            let base = base.filter(|base| base.name != policy.name);
            ComparedPolicy {
                name: policy.name.clone(),
                scores: (sources.iter())
                    .map(|source| Estimate::of(&of(policy, source)))
                    .collect(),
                gains: base.map_or_else(Vec::new, |base| {
                    sources.iter().map(|source| gain(base, source)).collect()
                }),
                kl: policy.kl,
                tokens: policy.tokens,
                eos_rate: policy.eos_rate,
            }
        };
        let distribution = |source: &String| {
            let scores: Vec<Vec<f64>> = (policies.iter())
                .map(|policy| policy.scores_of(source))
                .collect();
            let series: Vec<(&str, &[f64])> = (policies.iter().zip(&scores))
                .map(|(policy, scores)| (policy.name.as_str(), scores.as_slice()))
                .collect();
            Histogram::of(&series)
        };
        Self {
            reference: reference.to_owned(),
            policies: policies.iter().map(compared).collect(),
            distributions: sources.iter().map(distribution).collect(),
            contest: None,
            curves: (policies.iter())
                .filter_map(|policy| SampleCurves::of(policy, &sources))
                .collect(),
            sources,
        }
    }

    /// The same with win rates and ratings of these policies.
    pub fn with_contest(mut self, policies: &[PolicyResponses], rules: ContestRules) -> Self {
        self.contest = Contest::of(&self.reference, &self.sources, policies, rules);
        self
    }

    /// Further tables with their headings: win rates, ratings, and what more samples give.
    pub(super) fn further_tables(&self) -> Vec<(String, Table)> {
        let names: Vec<&str> = (self.policies.iter())
            .map(|policy| policy.name.as_str())
            .collect();
        let mut tables = (self.contest.as_ref())
            .map_or_else(Vec::new, |contest| contest.tables(&self.sources, &names));
        for (name, curves) in names.iter().zip(&self.curves) {
            let heading = format!("best of n responses of {name}, without bias; KL in nats");
            tables.push((heading, curves.table(&self.sources)));
        }
        tables
    }

    /// The table, differences prompt by prompt, and the further tables, for a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}{}", self.table(), self.gains());
        for (heading, table) in self.further_tables() {
            text.push_str(&format!("\n{heading}:\n{table}"));
        }
        text
    }

    /// The mean scores, KL and lengths by policy.
    pub fn table(&self) -> Table {
        let mut header: Vec<String> = vec!["policy".into()];
        header.extend(self.sources.iter().cloned());
        header.extend(["KL", "tokens", "EOS"].map(String::from));
        let row = |policy: &ComparedPolicy| {
            let mut cells = vec![policy.name.clone()];
            cells.extend((policy.scores.iter()).map(|score| format!("{:.3}", score.mean)));
            cells.extend(policy.measures());
            cells
        };
        let rows: Vec<Vec<String>> = self.policies.iter().map(row).collect();
        Table::new(&header, &rows)
    }

    /// A line for each policy with its differences from the reference, prompt by prompt; empty if there are none.
    pub fn gains(&self) -> String {
        let mut text = String::new();
        for policy in self
            .policies
            .iter()
            .filter(|policy| !policy.gains.is_empty())
        {
            let gains = self.sources.iter().zip(&policy.gains);
            let parts: Vec<String> = gains
                .map(|(source, gain)| format!("{source} {:+.3} ± {:.3}", gain.mean, gain.error))
                .collect();
            text.push_str(&format!(
                "\n{} against {}, prompt by prompt: {}",
                policy.name,
                self.reference,
                parts.join(", ")
            ));
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }
}

impl ComparedPolicy {
    /// KL, tokens and the share of responses with EOS, as the table has them.
    pub(super) fn measures(&self) -> [String; 3] {
        [
            unsigned_zero(format!("{:.2}", self.kl)),
            format!("{:.1}", self.tokens),
            format!("{:.0} %", 100.0 * self.eos_rate),
        ]
    }
}

/// The responses of all policies to each prompt, one below the other. Every policy has as many samples, in the order of the prompts.
pub fn responses_text(samples: &[Sample]) -> String {
    let name = |sample: &Sample| sample.policy.clone().unwrap_or_default();
    let mut policies: Vec<(String, Vec<&Sample>)> = Vec::new();
    for sample in samples {
        match policies
            .iter_mut()
            .find(|(policy, _)| *policy == name(sample))
        {
            Some((_, of_policy)) => of_policy.push(sample),
            None => policies.push((name(sample), vec![sample])),
        }
    }
    let Some((_, first)) = policies.first() else {
        return String::new();
    };
    let of_prompt = |(place, first): (usize, &&Sample)| {
        let mut text = first.prompt.trim().to_owned();
        if let Some(reference) = &first.reference {
            text.push_str(&format!("\n    {:<10} {reference}", "(human)"));
        }
        for (policy, samples) in &policies {
            let response = samples
                .get(place)
                .map_or("", |sample| sample.response.trim());
            text.push_str(&format!(
                "\n    {policy:<10} {}",
                response.replace('\n', " / ")
            ));
        }
        text
    };
    let prompts: Vec<String> = first.iter().enumerate().map(of_prompt).collect();
    prompts.join("\n\n")
}

/// Drops the sign of a rounded zero: a policy's KL to itself is zero up to rounding.
fn unsigned_zero(text: String) -> String {
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| matches!(c, '0' | '.')) => rest.to_owned(),
        _ => text,
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Responses with these gold scores.
    pub(in crate::report) fn responses(name: &str, gold: &[f64]) -> PolicyResponses {
        let one = |&score| BTreeMap::from([("gold".to_owned(), score)]);
        PolicyResponses {
            name: name.into(),
            num_responses: 1,
            scores: gold.iter().map(one).collect(),
            lengths: Vec::new(),
            judged: None,
            kl: -0.001,
            tokens: 12.25,
            eos_rate: 0.5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::responses;
    use super::*;

    fn compared(reference: &str) -> Comparison {
        let all = [
            responses("sft", &[0.0, 1.0, 0.5, 0.25]),
            responses("ppo", &[0.5, 1.0, 1.5, 0.75]),
        ];
        Comparison::new(reference, vec!["gold".into()], &all)
    }

    #[test]
    fn gains_are_paired_by_prompt() {
        // Differences 0.5, 0, 1, 0.5: mean 0.5, variance 0.5 / 3, error sqrt(0.5 / 3 / 4) = 0.204.
        assert_eq!(
            compared("sft").gains(),
            "\nppo against sft, prompt by prompt: gold +0.500 ± 0.204\n"
        );
        assert!(compared("sft").policies[1].gains[0].is_clear());
        assert_eq!(compared("base").gains(), "");
    }

    #[test]
    fn the_table_has_a_row_for_each_policy() {
        assert_eq!(
            compared("sft").table().to_string(),
            "| policy |  gold |   KL | tokens | EOS  |\n\
             |--------|------:|-----:|-------:|------|\n\
             | sft    | 0.438 | 0.00 |   12.2 | 50 % |\n\
             | ppo    | 0.938 | 0.00 |   12.2 | 50 % |\n"
        );
    }

    #[test]
    fn a_comparison_survives_its_file() {
        let mut all = compared("sft");
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Comparison>(&text).unwrap(), all);
        all.policies[0].scores[0].mean = f64::NAN;
        let text = serde_json::to_string(&all).unwrap();
        let read: Comparison = serde_json::from_str(&text).unwrap();
        assert!(read.policies[0].scores[0].mean.is_nan());
    }

    #[test]
    fn responses_stand_below_their_prompt() {
        let sample = |policy: &str, prompt: &str, response: &str| Sample {
            policy: Some(policy.into()),
            prompt: prompt.into(),
            response: response.into(),
            reference: (prompt == "b").then(|| "truth".into()),
            ..Sample::default()
        };
        let samples = [
            sample("sft", "a\n", "x"),
            sample("sft", "b", "y"),
            sample("ppo", "a\n", "z\nz"),
            sample("ppo", "b", "w"),
        ];
        assert_eq!(
            responses_text(&samples),
            "a\n    sft        x\n    ppo        z / z\n\nb\n    (human)    truth\n    sft        y\n    ppo        w"
        );
        assert_eq!(responses_text(&[]), "");
    }

    #[test]
    fn zero_has_no_sign() {
        assert_eq!(unsigned_zero("-0.00".into()), "0.00");
        assert_eq!(unsigned_zero("-0.01".into()), "-0.01");
        assert_eq!(unsigned_zero("0.00".into()), "0.00");
    }
}
