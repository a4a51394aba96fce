//! The labels of a classifier, and the number that a label gives.

use std::collections::HashMap;
use std::fmt;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::{Result, count};
use crate::model::config::keys::Keys;
use crate::suggest::{did_you_mean, quoted};

/// What a classifier was tuned to predict: `problem_type` in its `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemType {
    /// A number for each label.
    Regression,
    /// One label of several: probabilities are a softmax.
    SingleLabel,
    /// Any labels: each has a probability of its own, a sigmoid.
    MultiLabel,
}

/// The labels of a classifier: `id2label` in its `config.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    names: Vec<String>,
    problem: ProblemType,
}

/// A label by name or index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Label {
    /// Its index.
    Index(usize),
    /// Its name in `id2label`.
    Name(String),
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrIndex;
        impl Visitor<'_> for NameOrIndex {
            type Value = Label;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a label: its name or its index")
            }

            fn visit_u64<E: serde::de::Error>(self, index: u64) -> Result<Label, E> {
                let wrong = |_| E::custom(format!("no label has index {index}"));
                usize::try_from(index).map(Label::Index).map_err(wrong)
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Label, E> {
                Ok(Label::Name(name.to_owned()))
            }
        }
        deserializer.deserialize_any(NameOrIndex)
    }
}

/// The number of a label that is its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
pub enum LabelOutput {
    /// What the head gives.
    #[default]
    Logit,
    /// Logarithm of the probability, in nats; `LogProbability` is the same.
    #[serde(alias = "LogProbability")]
    #[value(alias = "log-probability")]
    LogProb,
    /// Probability, from 0 to 1.
    Probability,
}

impl Labels {
    /// Reads `id2label`, `num_labels` and `problem_type`.
    ///
    /// # Errors
    /// `Error::Format` for an `id2label` that does not name each index once or has a name twice, and an unknown `problem_type`.
    ///
    /// # Source
    /// transformers 5.23: `PreTrainedConfig` (two labels by default, `LABEL_0` ..), and `TextClassificationPipeline` for what a missing
    /// `problem_type` means: a single label among several, and a sigmoid for a lone one.
    pub(super) fn read(keys: &Keys<'_>) -> Result<Self> {
        let names = match keys.get("id2label") {
            Some(map) => named(map).ok_or_else(|| {
                keys.mismatch("id2label", "a map from \"0\", \"1\", .. to names", map)
            })?,
            None => {
                let count = keys.optional_count("num_labels")?.unwrap_or(2);
                (0..count).map(|i| format!("LABEL_{i}")).collect()
            }
        };
        if let Some((first, second)) = same(&names) {
            return Err(keys.error(format!(
                "\"id2label\": the labels {first} and {second} are both {:?}; expected a name of its own for each: which score is meant \
                 could not be told. Rename one of them in this file",
                names[first]
            )));
        }
        let problem = match keys.string("problem_type")? {
            Some("regression") => ProblemType::Regression,
            Some("single_label_classification") => ProblemType::SingleLabel,
            Some("multi_label_classification") => ProblemType::MultiLabel,
            None if names.len() == 1 => ProblemType::MultiLabel,
            None => ProblemType::SingleLabel,
            Some(other) => {
                return Err(keys.error(format!(
                    "\"problem_type\": \"{other}\" is not supported; supported are regression, single_label_classification, \
                     multi_label_classification"
                )));
            }
        };
        Ok(Self { names, problem })
    }

    /// The names, by index.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What the classifier was tuned to predict.
    pub fn problem_type(&self) -> ProblemType {
        self.problem
    }

    /// The index of a label; without one, that of the only label.
    ///
    /// # Errors
    /// A message that lists the labels, if there is no such label, or none is named and there are several.
    pub fn index(&self, label: Option<&Label>) -> Result<usize, String> {
        let names = || self.names.iter().map(String::as_str);
        let all = || {
            let names = names().enumerate();
            let names: Vec<String> = names.map(|(i, name)| format!("{i} = \"{name}\"")).collect();
            format!("it has {}", names.join(", "))
        };
        match label {
            None if self.names.len() == 1 => Ok(0),
            None => Err(format!(
                "the classifier has {}; name the one whose score is meant, e.g. `label: \"{}\"`. There are {}",
                count(self.names.len(), "label"),
                self.names.last().map_or("", String::as_str),
                quoted(names())
            )),
            Some(Label::Index(index)) if *index < self.names.len() => Ok(*index),
            Some(Label::Name(name)) if names().any(|known| known == name) => {
                Ok(names().position(|known| known == name).unwrap_or_default())
            }
            Some(label @ Label::Index(_)) => {
                Err(format!("the classifier has no label {label}; {}", all()))
            }
            Some(label @ Label::Name(name)) => {
                let near =
                    did_you_mean(name, names()).map_or(String::new(), |help| format!("; {help}"));
                Err(format!(
                    "the classifier has no label {label}; {}{near}",
                    all()
                ))
            }
        }
    }

    /// Refuses probabilities of a regression.
    ///
    /// # Errors
    /// A message.
    pub fn check_output(&self, output: LabelOutput) -> Result<(), String> {
        match (self.problem, output) {
            (ProblemType::Regression, LabelOutput::LogProb | LabelOutput::Probability) => Err(
                "the classifier is a regression (\"problem_type\" of its config.json): its numbers are no logits, and have no \
                 probabilities; use `output: Logit`, which is the number itself"
                    .into(),
            ),
            _ => Ok(()),
        }
    }

    /// The score of label `index`, given the logits of all labels. Probabilities of a regression are those of a sigmoid.
    pub fn score(&self, logits: &[f32], index: usize, output: LabelOutput) -> f32 {
        let own = f64::from(logits[index]);
        let log_prob = || match self.problem {
            ProblemType::SingleLabel => own - log_sum_exp(logits),
            // log sigmoid(x) = -log(1 + exp(-x)), without overflow.
            _ => own.min(0.0) - (-own.abs()).exp().ln_1p(),
        };
        (match output {
            LabelOutput::Logit => own,
            LabelOutput::LogProb => log_prob(),
            LabelOutput::Probability => log_prob().exp(),
        }) as f32
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => write!(f, "\"{name}\""),
        }
    }
}

/// The names in `id2label`, if it has one for each index from 0.
fn named(map: &Value) -> Option<Vec<String>> {
    let map = map.as_object().filter(|map| !map.is_empty())?;
    (0..map.len())
        .map(|i| Some(map.get(&i.to_string())?.as_str()?.to_owned()))
        .collect()
}

/// The first two indices of the same name.
fn same(names: &[String]) -> Option<(usize, usize)> {
    let mut indices = HashMap::new();
    (names.iter().enumerate()).find_map(|(i, name)| Some((indices.insert(name, i)?, i)))
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let logits = logits.iter().map(|&x| f64::from(x));
    let max = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    max + logits.map(|x| (x - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn labels(config: Value) -> Labels {
        let raw = config.as_object().unwrap();
        let path = Path::new("config.json");
        Labels::read(&Keys { path, raw }).unwrap()
    }

    fn sst2() -> Labels {
        labels(json!({"id2label": {"1": "POSITIVE", "0": "NEGATIVE"}}))
    }

    #[test]
    fn labels_are_named_or_counted() {
        assert_eq!(sst2().names(), ["NEGATIVE", "POSITIVE"]);
        assert_eq!(labels(json!({})).names(), ["LABEL_0", "LABEL_1"]);
        assert_eq!(labels(json!({"num_labels": 1})).names(), ["LABEL_0"]);
        let raw = json!({"id2label": {"0": "a", "2": "b"}});
        let keys = Keys {
            path: Path::new("config.json"),
            raw: raw.as_object().unwrap(),
        };
        assert!(Labels::read(&keys).is_err());
    }

    #[test]
    fn two_labels_of_one_name_are_refused() {
        let raw = json!({"id2label": {"0": "a", "1": "b", "2": "b"}});
        let keys = Keys {
            path: Path::new("config.json"),
            raw: raw.as_object().unwrap(),
        };
        let message = Labels::read(&keys).unwrap_err().to_string();
        assert!(
            message.contains("the labels 1 and 2 are both \"b\""),
            "{message}"
        );
    }

    #[test]
    fn a_label_is_found_or_the_error_lists_them() {
        let name = |text: &str| Label::Name(text.into());
        assert_eq!(sst2().index(Some(&name("POSITIVE"))), Ok(1));
        assert_eq!(sst2().index(Some(&Label::Index(0))), Ok(0));
        assert_eq!(labels(json!({"num_labels": 1})).index(None), Ok(0));
        let message = |label: Option<Label>| sst2().index(label.as_ref()).unwrap_err();
        assert_eq!(
            message(None),
            "the classifier has 2 labels; name the one whose score is meant, e.g. `label: \"POSITIVE\"`. There are `NEGATIVE`, `POSITIVE`"
        );
        assert_eq!(
            message(Some(name("positive"))),
            "the classifier has no label \"positive\"; it has 0 = \"NEGATIVE\", 1 = \"POSITIVE\"; did you mean `POSITIVE`?"
        );
        assert_eq!(
            message(Some(Label::Index(2))),
            "the classifier has no label 2; it has 0 = \"NEGATIVE\", 1 = \"POSITIVE\""
        );
    }

    #[test]
    fn probabilities_are_a_softmax_or_a_sigmoid() {
        let near =
            |got: f32, expected: f64| assert!((f64::from(got) - expected).abs() < 1e-7, "{got}");
        // e^1 / (e^1 + e^-1) = 1 / (1 + e^-2) = 0.880797078; its logarithm is -0.126928011.
        let one = sst2();
        near(one.score(&[-1.0, 1.0], 1, LabelOutput::Logit), 1.0);
        near(
            one.score(&[-1.0, 1.0], 1, LabelOutput::Probability),
            0.880797078,
        );
        near(
            one.score(&[-1.0, 1.0], 1, LabelOutput::LogProb),
            -0.126928011,
        );
        // Without overflow: e^-200 is 0 beside 1.
        near(one.score(&[100.0, -100.0], 1, LabelOutput::LogProb), -200.0);
        // 1 / (1 + e) = 0.268941421; its logarithm is -1.313261688.
        let many = labels(json!({"problem_type": "multi_label_classification"}));
        near(
            many.score(&[-1.0, 7.0], 0, LabelOutput::Probability),
            0.268941421,
        );
        near(
            many.score(&[-1.0, 7.0], 0, LabelOutput::LogProb),
            -1.313261688,
        );
        near(many.score(&[-300.0, 7.0], 0, LabelOutput::LogProb), -300.0);
        let regression = labels(json!({"problem_type": "regression", "num_labels": 1}));
        assert!(regression.check_output(LabelOutput::Probability).is_err());
        assert!(regression.check_output(LabelOutput::Logit).is_ok());
        assert!(many.check_output(LabelOutput::LogProb).is_ok());
    }
}
