//! What a server answers, and the labels in it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::reward::judge::LabelAnswer;

/// By how much rounding may lift a log-probability above 0, nats. What is higher is no log-probability.
const ROUNDING: f64 = 1e-2;

/// An answer, as far as it is needed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// The text.
    pub(super) text: String,
    /// For each token of the text the tokens that could stand there, with their log-probabilities; the one that does is the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tokens: Vec<Vec<(String, f64)>>,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

impl Answer {
    /// The answer in the JSON of a chat completion.
    ///
    /// # Errors
    /// What it lacks, in words.
    pub(super) fn of(response: &Value) -> Result<Self, String> {
        let choice = &response["choices"][0];
        let message = (choice.get("message").and_then(Value::as_object))
            .ok_or("expected an object `choices[0].message` of a chat completion")?;
        let tokens = match choice["logprobs"]["content"].as_array() {
            Some(tokens) => tokens.iter().map(alternatives).collect(),
            None => Vec::new(),
        };
        let count = |name: &str| response["usage"][name].as_u64().unwrap_or(0);
        Ok(Self {
            text: text_of(message)?,
            tokens,
            prompt_tokens: count("prompt_tokens"),
            completion_tokens: count("completion_tokens"),
        })
    }

    /// The log-probability of each label: of the tokens at the first place where they tell the labels apart. Without log-probabilities
    /// the label that the text begins with is certain. White space around labels does not count: a server trims its answer.
    pub(super) fn of_labels(&self, labels: &[String]) -> LabelAnswer {
        let labels: &[&str] = &labels.iter().map(|label| label.trim()).collect::<Vec<_>>();
        let listed = self.probabilities(labels);
        let logprobs = match &listed {
            Some(probabilities) => Some(probabilities.iter().map(|p| p.ln()).collect()),
            None => self.written(labels).map(|written| {
                let certain = |i| if i == written { 0.0 } else { f64::NEG_INFINITY };
                (0..labels.len()).map(certain).collect()
            }),
        };
        LabelAnswer {
            without_probabilities: listed.is_none() && logprobs.is_some(),
            logprobs,
            text: self.text.clone(),
        }
    }

    /// Probabilities of the labels among the listed tokens; `None` if the log-probabilities are none.
    fn probabilities(&self, labels: &[&str]) -> Option<Vec<f64>> {
        let mut listed = self.tokens.iter().flatten();
        if listed.any(|(_, logprob)| *logprob > ROUNDING) {
            return None;
        }
        let mut before = String::new();
        for (index, alternatives) in self.tokens.iter().enumerate() {
            let mut sums = vec![0.0; labels.len()];
            for (token, logprob) in alternatives {
                let text = format!("{before}{token}");
                if let Some(i) = told(text.trim(), labels) {
                    sums[i] += logprob.min(0.0).exp();
                }
            }
            if sums.iter().any(|&sum| sum > 0.0) {
                self.go_on(index, &before, labels, &mut sums);
                return Some(sums);
            }
            before += alternatives.first().map_or("", |(token, _)| token);
            // What stands before the labels may be white space, or what all of them begin with.
            let so_far = before.trim_start();
            if !labels.iter().any(|label| label.starts_with(so_far)) {
                return None;
            }
        }
        None
    }

    /// Where the written token is a whole label and begins another one, as `1` does `10`, moves the probability that it goes on.
    fn go_on(&self, index: usize, before: &str, labels: &[&str], sums: &mut [f64]) {
        let Some((token, logprob)) = self.tokens[index].first() else {
            return;
        };
        let begun = format!("{before}{token}");
        let begun = begun.trim();
        let (Some(short), Some(next)) = (
            labels.iter().position(|&label| label == begun),
            self.tokens.get(index + 1),
        ) else {
            return;
        };
        for (long, label) in labels.iter().enumerate() {
            let Some(rest) = label.strip_prefix(begun).filter(|rest| !rest.is_empty()) else {
                continue;
            };
            let goes_on = next.iter().filter(|(token, _)| token.starts_with(rest));
            let share: f64 = goes_on.map(|(_, logprob)| logprob.min(0.0).exp()).sum();
            let moved = (logprob.min(0.0).exp() * share).min(sums[short]);
            sums[long] += moved;
            sums[short] -= moved;
        }
    }

    /// The label that the text begins with; of several the longest.
    fn written(&self, labels: &[&str]) -> Option<usize> {
        let text = self
            .text
            .trim_start_matches(|c: char| c.is_whitespace() || "*\"'`".contains(c));
        let begins = labels.iter().enumerate().filter(|(_, label)| {
            // `1` is not the beginning of 15, nor A that of All.
            let rest = text.strip_prefix(**label);
            rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
        });
        begins.max_by_key(|(_, label)| label.len()).map(|(i, _)| i)
    }
}

/// The text of a message: its content, or that of its parts of the type `text`. Empty if the model refuses, which is a content of null.
fn text_of(message: &Map<String, Value>) -> Result<String, String> {
    const EXPECTED: &str = "expected `choices[0].message.content` to be a string, a list of parts of the type `text`, or null";
    let part = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("refusal"), _) => Ok(String::new()),
        _ => Err(EXPECTED.to_owned()),
    };
    match message.get("content") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Null) => Ok(String::new()),
        // Left out by some servers beside the words of a refusal.
        None if message.get("refusal").is_some_and(Value::is_string) => Ok(String::new()),
        Some(Value::Array(parts)) if !parts.is_empty() => parts.iter().map(part).collect(),
        _ => Err(EXPECTED.to_owned()),
    }
}

/// The label that `text` can be the beginning of alone, or that it is.
fn told(text: &str, labels: &[&str]) -> Option<usize> {
    if text.is_empty() {
        return None;
    }
    if let Some(i) = labels.iter().position(|&label| label == text) {
        return Some(i);
    }
    let mut begun = labels
        .iter()
        .enumerate()
        .filter(|(_, label)| label.starts_with(text));
    match (begun.next(), begun.next()) {
        (Some((i, _)), None) => Some(i),
        _ => None,
    }
}

/// A token of `logprobs.content`, and the others that could stand there.
fn alternatives(token: &Value) -> Vec<(String, f64)> {
    let pair = |value: &Value| {
        let logprob = value["logprob"].as_f64()?;
        Some((value["token"].as_str()?.to_owned(), logprob))
    };
    let mut all: Vec<(String, f64)> = pair(token).into_iter().collect();
    for other in token["top_logprobs"].as_array().into_iter().flatten() {
        if let Some(other) = pair(other)
            && all.first().is_none_or(|first| first.0 != other.0)
        {
            all.push(other);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    /// An answer of these tokens, each with probabilities.
    fn answer(text: &str, tokens: &[&[(&str, f64)]]) -> Answer {
        let tokens = tokens.iter().map(|alternatives| {
            let listed = alternatives
                .iter()
                .map(|(token, p)| json!({"token": token, "logprob": p.ln()}));
            let (token, p) = alternatives[0];
            json!({"token": token, "logprob": p.ln(), "top_logprobs": listed.collect::<Vec<_>>()})
        });
        let response = json!({
            "choices": [{"message": {"content": text}, "logprobs": {"content": tokens.collect::<Vec<_>>()}}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 1},
        });
        Answer::of(&response).unwrap()
    }

    fn probabilities(answer: &Answer, of: &[&str]) -> Vec<f64> {
        let found = answer.of_labels(&labels(of));
        assert!(!found.without_probabilities);
        let rounded = |x: f64| (x.exp() * 1e9).round() / 1e9;
        found.logprobs.unwrap().into_iter().map(rounded).collect()
    }

    #[test]
    fn labels_are_found_among_the_alternatives() {
        let got = answer(
            "1",
            &[&[("1", 0.6), ("2", 0.3), (" 2", 0.05), ("The", 0.05)]],
        );
        assert_eq!(probabilities(&got, &["1", "2"]), [0.6, 0.35]);
        assert_eq!((got.prompt_tokens, got.completion_tokens), (12, 1));
    }

    #[test]
    fn what_labels_have_in_common_is_passed_over() {
        let got = answer(
            "(A)",
            &[&[("(", 0.99)], &[("A", 0.7), ("B", 0.2)], &[(")", 1.0)]],
        );
        assert_eq!(probabilities(&got, &["(A)", "(B)"]), [0.7, 0.2]);
        let got = answer(" (B)", &[&[(" ", 1.0)], &[("(B", 0.9), ("(A", 0.1)]]);
        assert_eq!(probabilities(&got, &["(A)", "(B)"]), [0.1, 0.9]);
    }

    #[test]
    fn ten_is_one_token_or_two() {
        let one = answer("10", &[&[("10", 0.5), ("1", 0.25), ("9", 0.25)]]);
        assert_eq!(probabilities(&one, &["1", "9", "10"]), [0.25, 0.25, 0.5]);
        let two = answer(
            "10",
            &[&[("1", 0.5), ("9", 0.5)], &[("0", 0.8), (".", 0.2)]],
        );
        assert_eq!(probabilities(&two, &["1", "9", "10"]), [0.1, 0.5, 0.4]);
    }

    #[test]
    fn without_probabilities_the_written_label_counts() {
        let of = |text: &str| {
            let found = answer(text, &[]).of_labels(&labels(&["1", "2", "10"]));
            assert_eq!(found.without_probabilities, found.logprobs.is_some());
            found
                .logprobs
                .map(|logprobs| logprobs.iter().position(|&x| x == 0.0).unwrap())
        };
        assert_eq!(of(" **2** is better"), Some(1));
        assert_eq!(of("10"), Some(2));
        assert_eq!(of("15"), None);
        assert_eq!(of("Neither."), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn white_space_around_labels_does_not_count() {
        let listed = answer("A", &[&[("A", 0.6), (" B", 0.3)]]);
        assert_eq!(probabilities(&listed, &[" A", "B\n"]), [0.6, 0.3]);
        let found = answer("B", &[]).of_labels(&labels(&["A ", " B "]));
        assert_eq!(found.logprobs, Some(vec![f64::NEG_INFINITY, 0.0]));
    }

    #[test]
    fn log_probabilities_above_0_leave_the_text() {
        let of = |first: f64, second: f64| {
            let top = json!([{"token": "1", "logprob": first}, {"token": "2", "logprob": second}]);
            let token = json!({"token": "1", "logprob": first, "top_logprobs": top});
            let choice = json!({"message": {"content": "1"}, "logprobs": {"content": [token]}});
            let answer = Answer::of(&json!({"choices": [choice]})).unwrap();
            answer.of_labels(&labels(&["1", "2"]))
        };
        for (first, second) in [(1e6, 5e5), (3.0, 2.0), (-0.1, 0.5)] {
            let found = of(first, second);
            assert_eq!(found.logprobs, Some(vec![0.0, f64::NEG_INFINITY]));
            assert!(found.without_probabilities);
        }
        // Rounding of a certain token.
        let found = of(1e-6, -20.0);
        assert!(!found.without_probabilities);
        let logprobs = found.logprobs.unwrap();
        assert_eq!(logprobs[0], 0.0);
        assert!((logprobs[1] + 20.0).abs() < 1e-9, "{logprobs:?}");
    }

    #[test]
    fn the_text_is_a_string_or_parts_and_nothing_else() {
        let of = |message: Value| {
            Answer::of(&json!({"choices": [{"message": message}]})).map(|answer| answer.text)
        };
        let parts =
            json!({"content": [{"type": "text", "text": "1"}, {"type": "text", "text": "0"}]});
        assert_eq!(of(parts).unwrap(), "10");
        for refusal in [
            json!({"content": null}),
            json!({"refusal": "no"}),
            json!({"content": [{"type": "refusal", "refusal": "no"}]}),
        ] {
            assert_eq!(of(refusal).unwrap(), "");
        }
        for malformed in [
            json!(null),
            json!("1"),
            json!({}),
            json!({"content": 1}),
            json!({"content": []}),
            json!({"content": {"text": "1"}}),
            json!({"content": [{"type": "image_url"}]}),
            json!({"content": [{"type": "text", "text": 1}]}),
            json!({"content": ["1"]}),
        ] {
            let message = of(malformed.clone()).unwrap_err();
            assert!(
                message.contains("choices[0].message"),
                "{malformed}: {message}"
            );
        }
    }

    #[test]
    fn an_answer_with_no_label_among_its_tokens_is_none() {
        let found =
            answer("Both", &[&[("Both", 0.9), ("Each", 0.1)]]).of_labels(&labels(&["1", "2"]));
        assert_eq!((found.logprobs, found.text.as_str()), (None, "Both"));
        let refusal = json!({"choices": [{"message": {"content": null, "refusal": "no"}}]});
        assert_eq!(Answer::of(&refusal).unwrap(), Answer::default());
        assert!(
            Answer::of(&json!({"object": "list"}))
                .unwrap_err()
                .contains("choices[0].message")
        );
    }
}
