//! Tasks: responses to a prompt that are judged together, from rows of data.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::form::Form;
use crate::data::{Row, RowFormat, readable, response_sets};
use crate::error::{Error, Result};
use crate::rng::Seed;

/// What an annotator sees, and what is known of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The prompt as the row has it: a text, or messages.
    pub prompt: Value,
    /// The responses.
    pub responses: Vec<String>,
    /// Who wrote each response, if the row says so. Annotators do not see it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// Scores that the row has for its responses. Annotators do not see them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<f64>,
    /// The turns of a dialogue, in place of `responses`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<Turn>,
}

/// A turn of a dialogue: what the user says, and two answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The user's message.
    pub prompt: String,
    /// The two answers.
    pub responses: [String; 2],
    /// The answer with which the dialogue went on.
    #[serde(default)]
    pub continued: usize,
}

/// A task to store.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTask {
    /// The task.
    pub task: Task,
    /// The right answer to a question whose answer is known: the rank of each response.
    pub gold: Option<Vec<usize>>,
}

/// Rows and pairs that make no task, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unused {
    /// Pairs of equal texts.
    pub equal: usize,
    /// Rows with too few responses to compare.
    pub too_few: usize,
}

impl NewTask {
    /// Identifies the content: a row that is added twice is one task.
    pub(super) fn digest(&self) -> String {
        let Task {
            prompt,
            responses,
            turns,
            ..
        } = &self.task;
        let text = json!([prompt, responses, turns, self.gold]).to_string();
        let hash = Sha256::digest(text.as_bytes());
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The tasks of some rows: responses as stages write them (`prompt`, `responses`), preferences (`chosen`, `rejected`), single completions
/// for forms that rate, or dialogues (`turns`). Columns `policies` and `gold` (the index of the best response, or all ranks) are read.
///
/// Pairwise forms ask about at most `max_pairs` pairs of a prompt's responses, drawn by `seed`.
///
/// # Errors
/// `Error::Data` at the first row that cannot be used; `Error::Usage` if no task is left.
pub fn tasks_of(
    rows: &[Row],
    format: &RowFormat,
    form: &Form,
    max_pairs: Option<usize>,
    seed: Seed,
) -> Result<(Vec<NewTask>, Unused)> {
    let (mut tasks, mut unused) = (Vec::new(), Unused::default());
    let (least, most) = form.responses();
    for (index, row) in rows.iter().enumerate() {
        if matches!(form, Form::Dialogue { .. }) {
            tasks.push(dialogue(row)?);
            continue;
        }
        let whole = match row.columns.get("completion") {
            Some(Value::String(text)) if least == 1 => completion(row, text)?,
            _ => set(row, format)?,
        };
        let count = whole.task.responses.len();
        if count < least {
            unused.too_few += 1;
            continue;
        }
        if matches!(form, Form::Pairwise { .. }) {
            let of_row = seed.fork("pairs").fork_index(index as u64);
            for (a, b) in pairs(count, max_pairs, of_row) {
                match whole.task.responses[a] == whole.task.responses[b] {
                    true => unused.equal += 1,
                    false => tasks.push(whole.only(&[a, b])),
                }
            }
            continue;
        }
        if count > most {
            return Err(row.error(format!(
                "expected at most {most} responses to judge together, found {count}"
            )));
        }
        tasks.push(whole);
    }
    if tasks.is_empty() {
        let why = match unused {
            Unused { equal: 0, too_few } => {
                format!("{too_few} of {} rows have too few responses", rows.len())
            }
            Unused { equal, .. } => format!("{equal} pairs of responses are equal texts"),
        };
        return Err(Error::Usage(format!("nothing to judge: {why}")));
    }
    Ok((tasks, unused))
}

/// At most `most` pairs of `count` responses.
fn pairs(count: usize, most: Option<usize>, seed: Seed) -> Vec<(usize, usize)> {
    let all: Vec<(usize, usize)> = (0..count)
        .flat_map(|a| (a + 1..count).map(move |b| (a, b)))
        .collect();
    match most {
        Some(most) if most < all.len() => seed.permutation(all.len())[..most]
            .iter()
            .map(|&i| all[i])
            .collect(),
        _ => all,
    }
}

impl NewTask {
    /// The task of some of the responses.
    fn only(&self, which: &[usize]) -> Self {
        let policies = match self.task.policies.is_empty() {
            true => Vec::new(),
            false => which
                .iter()
                .map(|&i| self.task.policies[i].clone())
                .collect(),
        };
        let scores = match self.task.scores.is_empty() {
            true => Vec::new(),
            false => which.iter().map(|&i| self.task.scores[i]).collect(),
        };
        Self {
            task: Task {
                prompt: self.task.prompt.clone(),
                responses: which
                    .iter()
                    .map(|&i| self.task.responses[i].clone())
                    .collect(),
                policies,
                scores,
                turns: Vec::new(),
            },
            gold: self
                .gold
                .as_ref()
                .map(|ranks| which.iter().map(|&i| ranks[i]).collect()),
        }
    }
}

/// The responses of a row.
fn set(row: &Row, format: &RowFormat) -> Result<NewTask> {
    let set = response_sets(std::slice::from_ref(row), format)?.remove(0);
    let count = set.responses.len();
    // Of a preference row the scores are which one was chosen. Zeros are those of a row that has none, or not a number for each response.
    let has_all = |scores: &Value| {
        let scores = scores.as_array().map(Vec::as_slice).unwrap_or_default();
        scores.len() == count && scores.iter().all(|score| score.as_f64().is_some())
    };
    let responses = row.columns.get("responses").and_then(Value::as_array);
    let scored = match responses {
        Some(_) => row.columns.get("scores").is_some_and(has_all),
        None => row.columns.contains_key("chosen"),
    };
    let task = Task {
        prompt: set.prompt,
        responses: set.responses,
        policies: policies(row, count)?,
        scores: if scored { set.scores } else { Vec::new() },
        turns: Vec::new(),
    };
    Ok(NewTask {
        gold: gold(row, count)?,
        task,
    })
}

/// A row with one response.
fn completion(row: &Row, text: &str) -> Result<NewTask> {
    let prompt = row.columns.get("prompt").cloned();
    let task = Task {
        prompt: prompt
            .ok_or_else(|| row.error("expected a column `prompt` beside `completion`"))?,
        responses: vec![text.to_owned()],
        policies: policies(row, 1)?,
        ..Task::default()
    };
    Ok(NewTask { task, gold: None })
}

/// A row with a dialogue.
fn dialogue(row: &Row) -> Result<NewTask> {
    let expected = "expected a column `turns`, a list of {\"prompt\": \"..\", \"responses\": [\"..\", \"..\"], \"continued\": 0}";
    let turns = row
        .columns
        .get("turns")
        .cloned()
        .ok_or_else(|| row.error(expected))?;
    let turns: Vec<Turn> =
        serde_json::from_value(turns).map_err(|error| row.error(format!("{expected}: {error}")))?;
    if turns.is_empty() || turns.iter().any(|turn| turn.continued > 1) {
        return Err(row.error(format!("{expected}, at least one turn, `continued` 0 or 1")));
    }
    let task = Task {
        prompt: row.columns.get("prompt").cloned().unwrap_or(Value::Null),
        turns,
        ..Task::default()
    };
    Ok(NewTask { task, gold: None })
}

fn policies(row: &Row, count: usize) -> Result<Vec<String>> {
    let Some(value) = row.columns.get("policies") else {
        return Ok(Vec::new());
    };
    let names: Vec<String> = serde_json::from_value(value.clone()).unwrap_or_default();
    match names.len() == count {
        true => Ok(names),
        false => Err(row.error(format!(
            "column `policies`: expected the names of {count} policies, one for each response"
        ))),
    }
}

/// The ranks that are known to be right.
fn gold(row: &Row, count: usize) -> Result<Option<Vec<usize>>> {
    let Some(value) = row.columns.get("gold").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let ranks = match (value, value.as_u64()) {
        (_, Some(best)) if (best as usize) < count => Some(
            (0..count)
                .map(|i| if i as u64 == best { 1 } else { 2 })
                .collect(),
        ),
        (Value::Array(_), _) => serde_json::from_value::<Vec<usize>>(value.clone()).ok(),
        _ => None,
    };
    match ranks.filter(|ranks: &Vec<usize>| ranks.len() == count && ranks.iter().all(|rank| (1..=count).contains(rank))) {
        Some(ranks) => Ok(Some(ranks)),
        None => Err(row.error(format!(
            "column `gold`: expected the index of the best of {count} responses, or a rank from 1 to {count} for each, found {value}"
        ))),
    }
}

impl Task {
    /// The prompt for a reader: of messages each below its role.
    pub fn prompt_text(&self) -> String {
        match &self.prompt {
            Value::Null => String::new(),
            prompt => readable(prompt),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(values: &[Value]) -> Vec<Row> {
        let row = |(line, value): (usize, &Value)| Row {
            columns: value.as_object().unwrap().clone(),
            path: "rows.jsonl".into(),
            line: line + 1,
        };
        values.iter().enumerate().map(row).collect()
    }

    fn tasks(values: &[Value], form: Form, most: Option<usize>) -> Result<(Vec<NewTask>, Unused)> {
        tasks_of(
            &rows(values),
            &RowFormat::default(),
            &form,
            most,
            Seed::new(1),
        )
    }

    #[test]
    fn responses_become_pairs_or_one_task() {
        let row = json!({"prompt": "p", "responses": ["a", "b", "a"], "policies": ["x", "y", "z"], "scores": [1.0, 2.0, 3.0], "gold": 1});
        let (pairs, unused) = tasks(std::slice::from_ref(&row), Form::default(), None).unwrap();
        assert_eq!(
            (pairs.len(), unused),
            (
                2,
                Unused {
                    equal: 1,
                    too_few: 0
                }
            )
        );
        assert_eq!(
            (pairs[0].task.policies.as_slice(), &pairs[0].gold),
            (&["x".to_owned(), "y".to_owned()][..], &Some(vec![2, 1]))
        );
        assert_eq!(pairs[1].task.scores, [2.0, 3.0]);
        let (whole, _) = tasks(&[row], Form::Rank { ties: true }, None).unwrap();
        assert_eq!((whole.len(), &whole[0].gold), (1, &Some(vec![2, 1, 2])));
        let three = json!({"prompt": "p", "responses": ["a", "b", "c"]});
        let two_rows = tasks(&[three.clone(), three], Form::default(), Some(1));
        assert_eq!(two_rows.unwrap().0.len(), 2);
    }

    #[test]
    fn other_layouts_are_read() {
        let (pair, _) = tasks(
            &[json!({"prompt": "p", "chosen": "a", "rejected": "b"})],
            Form::default(),
            None,
        )
        .unwrap();
        assert_eq!(pair[0].task.responses, ["a", "b"]);
        let (one, _) = tasks(
            &[json!({"prompt": "p", "completion": "a"})],
            Form::InstructGpt,
            None,
        )
        .unwrap();
        assert_eq!(one[0].task.responses, ["a"]);
        let turn = json!({"prompt": "hi", "responses": ["a", "b"], "continued": 1});
        let form = Form::Dialogue {
            grades: 2,
            ties: false,
        };
        let (dialogue, _) = tasks(&[json!({"turns": [turn]})], form.clone(), None).unwrap();
        assert_eq!(dialogue[0].task.turns[0].continued, 1);
        for (row, form, expected) in [
            (
                json!({"prompt": "p", "responses": ["a", "b"], "gold": 2}),
                Form::default(),
                "column `gold`: expected the index",
            ),
            (
                json!({"prompt": "p", "responses": ["a", "b"], "policies": ["x"]}),
                Form::default(),
                "column `policies`",
            ),
            (json!({"turns": []}), form, "expected a column `turns`"),
            (json!({"prompt": "p"}), Form::default(), "chosen"),
            (
                json!({"prompt": "p", "responses": ["a"]}),
                Form::default(),
                "1 of 1 rows have too few responses",
            ),
            (
                json!({"prompt": "p", "responses": ["a", "a"]}),
                Form::default(),
                "1 pairs of responses are equal texts",
            ),
        ] {
            let error = tasks(&[row], form, None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
