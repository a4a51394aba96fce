//! Responses to a prompt with what people, judges or reward models said of them, for ratings.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::pairs::{readable, response_sets};
use super::rows::Row;
use super::{DataConfig, DataContext, DataSource, RowFormat, read_rows};
use crate::error::Result;
use crate::suggest::quoted;

/// The judgement's name where rows have one without a name.
pub const JUDGEMENT: &str = "preference";

/// Columns that name the policy of the chosen and of the rejected response.
const POLICIES: &[(&str, &str)] = &[
    ("chosen_policy", "rejected_policy"),
    ("chosen_model", "rejected_model"),
    ("chosen-model", "rejected-model"),
];

/// The layouts that are read, for messages.
const EXPECTED: &str = "`chosen` and `rejected` (with `chosen_policy` and `rejected_policy`), `responses` with `scores` or `ranks` (and \
                        `policies`), or `model_a`, `model_b` and `winner`";

/// The responses to a prompt that were compared.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ComparedResponses {
    /// The prompt for a reader; empty if the row has none.
    pub prompt: String,
    /// The responses; empty texts if the row has none.
    pub responses: Vec<String>,
    /// The policy of each response; empty if the row does not name them.
    pub policies: Vec<String>,
    /// For each source of judgements the score of each response, higher being better; NaN where there is none.
    pub scores: BTreeMap<String, Vec<f64>>,
    /// Of two responses: the probability that the first is better, where it was given.
    pub probability: Option<f64>,
}

/// The compared responses of a file or folder of rows. `None` for a row without any judgement, such as a skipped one.
///
/// # Errors
/// As [`read_rows`], and at the first row of another layout.
pub fn read_compared(path: &std::path::Path) -> Result<Vec<Option<ComparedResponses>>> {
    let config = DataConfig::of(DataSource::File(path.to_path_buf()));
    let rows = read_rows(&config, &DataContext::default())?;
    rows.iter().map(compared).collect()
}

/// See [`read_compared`].
fn compared(row: &Row) -> Result<Option<ComparedResponses>> {
    let has = |name: &str| row.columns.contains_key(name);
    let found = if has("responses") {
        ranked(row)?
    } else if has("model_a") && has("model_b") {
        battle(row)?
    } else if has("summaries") && has("choice") {
        summaries(row)?
    } else if has("completions") && row.columns["completions"][0]["model"].is_string() {
        completions(row)?
    } else if has("chosen") && has("rejected") {
        pair(row)?
    } else {
        let names = row.columns.keys().map(String::as_str);
        let found = quoted(names);
        return Err(row.error(format!("expected {EXPECTED}; found {found}")));
    };
    let judged = |found: &ComparedResponses| {
        found.probability.is_some()
            || (found.scores.values()).any(|scores| scores.iter().any(|score| !score.is_nan()))
    };
    Ok(Some(found).filter(judged))
}

/// `responses` with `scores`, of one source or by source, or `ranks`, of which 1 is the best.
fn ranked(row: &Row) -> Result<ComparedResponses> {
    let responses = texts(row, "responses")?.unwrap_or_default();
    let numbers = |name: &str, value: &Value| -> Result<Vec<f64>> {
        let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let read: Option<Vec<f64>> = (all.iter())
            .map(|one| match one {
                Value::Null => Some(f64::NAN),
                other => other.as_f64(),
            })
            .collect();
        read.filter(|read| read.len() == responses.len())
            .ok_or_else(|| {
                row.error(format!(
                    "column `{name}`: expected {} numbers, one for each of `responses`",
                    responses.len()
                ))
            })
    };
    let mut scores = BTreeMap::new();
    match (row.columns.get("scores"), row.columns.get("ranks")) {
        (Some(Value::Object(sources)), _) => {
            for (source, values) in sources {
                scores.insert(
                    source.clone(),
                    numbers(&format!("scores.{source}"), values)?,
                );
            }
        }
        // Ranks are what was said of the responses, scores may be given beside them.
        (_, Some(ranks @ Value::Array(_))) => {
            let ranks = numbers("ranks", ranks)?;
            scores.insert(JUDGEMENT.into(), ranks.iter().map(|rank| -rank).collect());
        }
        (Some(values @ Value::Array(_)), _) => {
            scores.insert(JUDGEMENT.into(), numbers("scores", values)?);
        }
        _ => return Err(row.error("expected `scores` or `ranks` beside `responses`")),
    }
    let policies = texts(row, "policies")?.unwrap_or_default();
    if !policies.is_empty() && policies.len() != responses.len() {
        return Err(row.error(format!(
            "column `policies`: expected {} names, one for each of `responses`, found {}",
            responses.len(),
            policies.len()
        )));
    }
    Ok(ComparedResponses {
        prompt: row.columns.get("prompt").map(readable).unwrap_or_default(),
        responses,
        policies,
        scores,
        probability: None,
    })
}

/// `model_a`, `model_b` and `winner`, as Chatbot Arena publishes them.
fn battle(row: &Row) -> Result<ComparedResponses> {
    let text = |name: &str| -> Result<String> {
        let value = row.columns.get(name).and_then(Value::as_str);
        let value = value.ok_or_else(|| row.error(format!("column `{name}`: expected a text")))?;
        Ok(value.to_owned())
    };
    let winner = text("winner")?;
    let scores = match winner.as_str() {
        "model_a" | "a" | "A" => [1.0, 0.0],
        "model_b" | "b" | "B" => [0.0, 1.0],
        tie if tie.starts_with("tie") => [0.0, 0.0],
        other => {
            return Err(row.error(format!(
                "column `winner`: expected `model_a`, `model_b` or `tie`, found `{other}`"
            )));
        }
    };
    let given = |name: &str| row.columns.get(name).map(readable).unwrap_or_default();
    Ok(ComparedResponses {
        prompt: given("prompt"),
        responses: vec![given("response_a"), given("response_b")],
        policies: vec![text("model_a")?, text("model_b")?],
        scores: BTreeMap::from([(JUDGEMENT.into(), scores.to_vec())]),
        probability: None,
    })
}

/// `chosen` and `rejected`, with `tie` or `chosen_probability`.
fn pair(row: &Row) -> Result<ComparedResponses> {
    let set = response_sets(std::slice::from_ref(row), &RowFormat::default())?.remove(0);
    let name = |column: &str| row.columns.get(column).and_then(Value::as_str);
    let policies = (POLICIES.iter())
        .find_map(|(chosen, rejected)| Some([name(chosen)?, name(rejected)?].map(str::to_owned)));
    let tie = row.columns.get("tie").and_then(Value::as_bool) == Some(true);
    let scores = match tie {
        true => vec![0.0, 0.0],
        false => vec![1.0, 0.0],
    };
    let probability = row
        .columns
        .get("chosen_probability")
        .and_then(Value::as_f64);
    if let Some(p) = probability.filter(|p| !(0.0..=1.0).contains(p)) {
        return Err(row.error(format!(
            "column `chosen_probability`: expected a number from 0 to 1, found {p}"
        )));
    }
    Ok(ComparedResponses {
        prompt: set.text,
        responses: set.responses,
        policies: policies.map(Vec::from).unwrap_or_default(),
        scores: BTreeMap::from([(JUDGEMENT.into(), scores)]),
        probability: probability.filter(|_| !tie),
    })
}

/// Two `summaries` with their `policy`, and the `choice` among them, as OpenAI publishes its comparisons of summaries.
///
/// # Source
/// Stiennon et al. 2020, arXiv:2009.01325.
fn summaries(row: &Row) -> Result<ComparedResponses> {
    let wrong = || row.error("expected two `summaries` with `text`, and a `choice` of 0 or 1");
    let summaries = row.columns["summaries"].as_array().ok_or_else(wrong)?;
    let choice = row.columns["choice"].as_u64().ok_or_else(wrong)? as usize;
    let of = |name: &str| -> Option<Vec<String>> {
        let texts = summaries.iter().map(|one| one[name].as_str());
        texts.map(|text| text.map(str::to_owned)).collect()
    };
    let responses = of("text").ok_or_else(wrong)?;
    if responses.len() != 2 || choice > 1 {
        return Err(wrong());
    }
    let scores = (0..2).map(|i| f64::from(u8::from(i == choice))).collect();
    let prompt = row.columns.get("prompt").map(readable);
    let post = row
        .columns
        .get("info")
        .and_then(|info| info["post"].as_str());
    Ok(ComparedResponses {
        prompt: prompt.or(post.map(str::to_owned)).unwrap_or_default(),
        responses,
        policies: of("policy").unwrap_or_default(),
        scores: BTreeMap::from([(JUDGEMENT.into(), scores)]),
        probability: None,
    })
}

/// `completions` with `response`, `model` and `overall_score`, as UltraFeedback has them.
fn completions(row: &Row) -> Result<ComparedResponses> {
    let all = row.columns["completions"].as_array();
    let all = all.map(Vec::as_slice).unwrap_or_default();
    let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
    let score = |one: &Value| one["overall_score"].as_f64().unwrap_or(f64::NAN);
    Ok(ComparedResponses {
        prompt: (row.columns.get("instruction"))
            .map(readable)
            .unwrap_or_default(),
        responses: all.iter().map(|one| text(one, "response")).collect(),
        policies: all.iter().map(|one| text(one, "model")).collect(),
        scores: BTreeMap::from([(JUDGEMENT.into(), all.iter().map(score).collect())]),
        probability: None,
    })
}

/// A column of texts; messages become their contents. `None` if there is no such column.
fn texts(row: &Row, name: &str) -> Result<Option<Vec<String>>> {
    let columns: &Map<String, Value> = &row.columns;
    match columns.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(all)) => Ok(Some(all.iter().map(readable).collect())),
        Some(_) => Err(row.error(format!("column `{name}`: expected a list"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(columns: Value) -> Result<Option<ComparedResponses>> {
        let Value::Object(columns) = columns else {
            panic!("a row is an object")
        };
        compared(&Row {
            columns,
            path: "rows.jsonl".into(),
            line: 2,
        })
    }

    #[test]
    fn every_layout_gives_responses_with_policies_and_scores() {
        let of = |columns| read(columns).unwrap().unwrap();
        let found = of(json!({"prompt": "p", "chosen": "a", "rejected": "b",
            "chosen_policy": "ppo", "rejected_policy": "sft", "chosen_probability": 0.75}));
        assert_eq!(found.policies, ["ppo", "sft"]);
        assert_eq!(
            (found.scores[JUDGEMENT].as_slice(), found.probability),
            (&[1.0, 0.0][..], Some(0.75))
        );
        let tie = of(json!({"prompt": "p", "chosen": "a", "rejected": "b", "tie": true}));
        assert_eq!(
            (tie.scores[JUDGEMENT].as_slice(), tie.policies.len()),
            (&[0.0, 0.0][..], 0)
        );
        let found = of(
            json!({"prompt": "p", "responses": ["a", "b", "c"], "policies": ["x", "y", "z"],
            "ranks": [1, 2, 2], "scores": [9, 8, 7]}),
        );
        assert_eq!(found.scores[JUDGEMENT], [-1.0, -2.0, -2.0]);
        let found = of(
            json!({"prompt": "p", "responses": ["a", "b"], "scores": {"gold": [0.5, null], "rm": [1, 2]}}),
        );
        assert!(found.scores["gold"][1].is_nan() && found.scores["rm"] == [1.0, 2.0]);
        let found = of(json!({"model_a": "x", "model_b": "y", "winner": "tie (bothbad)"}));
        assert_eq!(
            (
                found.scores[JUDGEMENT].as_slice(),
                found.policies[1].as_str()
            ),
            (&[0.0, 0.0][..], "y")
        );
        let found = of(json!({"info": {"post": "q"}, "choice": 1,
            "summaries": [{"text": "a", "policy": "ref"}, {"text": "b", "policy": "sup4"}]}));
        assert_eq!(
            (found.prompt.as_str(), found.scores[JUDGEMENT].as_slice()),
            ("q", &[0.0, 1.0][..])
        );
        let found = of(json!({"instruction": "i", "completions": [
            {"response": "a", "model": "m", "overall_score": 3}, {"response": "b", "model": "n", "overall_score": 4}]}));
        assert_eq!(found.policies, ["m", "n"]);
        // Skipped by the annotator.
        assert_eq!(
            read(json!({"responses": ["a"], "ranks": [null]})).unwrap(),
            None
        );
    }

    #[test]
    fn rows_of_other_layouts_are_named() {
        let message = |columns| read(columns).unwrap_err().to_string();
        let found = message(json!({"text": "x"}));
        assert!(
            found.starts_with("rows.jsonl:2: expected `chosen` and `rejected`"),
            "{found}"
        );
        assert!(found.ends_with("found `text`"), "{found}");
        let found = message(json!({"model_a": "x", "model_b": "y", "winner": "x"}));
        assert!(found.contains("found `x`"), "{found}");
        let found = message(json!({"responses": ["a", "b"], "scores": [1]}));
        assert!(found.contains("expected 2 numbers"), "{found}");
        let found = message(json!({"responses": ["a", "b"], "scores": [1, 2], "policies": ["x"]}));
        assert!(found.contains("expected 2 names"), "{found}");
        let found = message(
            json!({"prompt": "p", "chosen": "a", "rejected": "b", "chosen_probability": 2}),
        );
        assert!(found.contains("from 0 to 1, found 2"), "{found}");
    }
}
