//! An annotator's answer to a task.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::form::{Field, Form, RateForm};
use super::task::Task;

/// Longest text of a field in bytes.
const LONGEST_TEXT: usize = 20_000;

/// What was answered. Responses and sides are those of the task, whatever the order in which they were shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// Above 0: the first response is better; below 0: the second one; 0: a tie. The number says how much.
    Grade(i8),
    /// The rank of each response, 1 is the best; equal ranks are ties.
    Ranks(Vec<usize>),
    /// The fields of each response, and ranks if the form asks for them.
    Ratings {
        /// Field values by name, a map for each response.
        fields: Vec<Map<String, Value>>,
        /// As in [`Answer::Ranks`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ranks: Option<Vec<usize>>,
    },
    /// A grade for each turn.
    Turns(Vec<i8>),
}

impl Answer {
    /// The answer in the task's order, given what was answered about responses in the order `shown`, after it was checked against the form.
    ///
    /// # Errors
    /// What does not fit, for the annotator's page.
    pub fn of_shown(self, form: &Form, task: &Task, shown: &[usize]) -> Result<Self, String> {
        let count = task.responses.len();
        let in_order = |ranks: &[usize]| -> Vec<usize> {
            let mut ordered = vec![0; count];
            for (&response, &rank) in shown.iter().zip(ranks) {
                ordered[response] = rank;
            }
            dense(&ordered)
        };
        match (self, form) {
            (Self::Grade(grade), Form::Pairwise { .. }) => {
                check_grade(form, grade)?;
                Ok(Self::Grade(if shown == [0, 1] { grade } else { -grade }))
            }
            (Self::Turns(grades), Form::Dialogue { .. }) => {
                if grades.len() != task.turns.len() {
                    return Err(format!(
                        "expected a grade for each of {} turns, found {}",
                        task.turns.len(),
                        grades.len()
                    ));
                }
                grades
                    .iter()
                    .try_for_each(|&grade| check_grade(form, grade))?;
                let sign = if shown == [0, 1] { 1 } else { -1 };
                Ok(Self::Turns(
                    grades.iter().map(|grade| sign * grade).collect(),
                ))
            }
            (Self::Ranks(ranks), Form::Rank { ties }) => {
                check_ranks(&ranks, count, *ties)?;
                Ok(Self::Ranks(in_order(&ranks)))
            }
            (Self::Ratings { fields, ranks }, Form::Rate(_) | Form::InstructGpt) => {
                let Some(rate) = form.rate() else {
                    return Err("the form has no fields".into());
                };
                if fields.len() != count {
                    return Err(format!(
                        "expected the fields of {count} responses, found {}",
                        fields.len()
                    ));
                }
                let mut ordered = vec![Map::new(); count];
                for (&response, values) in shown.iter().zip(fields) {
                    ordered[response] = checked_fields(&rate, values)?;
                }
                // One response has no order.
                let wanted = rate.rank && count > 1;
                if wanted != ranks.is_some() {
                    return Err(match wanted {
                        true => "order the responses, too".into(),
                        false => "this form has no ranks".into(),
                    });
                }
                if let Some(ranks) = &ranks {
                    check_ranks(ranks, count, true)?;
                }
                Ok(Self::Ratings {
                    fields: ordered,
                    ranks: ranks.map(|ranks| in_order(&ranks)),
                })
            }
            _ => Err("the answer is of another form".into()),
        }
    }

    /// The answer in the order shown, for an annotator who changes it.
    pub fn as_shown(&self, shown: &[usize]) -> Self {
        let sign = if shown == [1, 0] { -1 } else { 1 };
        let ranks_shown = |ranks: &[usize]| shown.iter().map(|&i| ranks[i]).collect();
        match self {
            Self::Grade(grade) => Self::Grade(sign * grade),
            Self::Turns(grades) => Self::Turns(grades.iter().map(|grade| sign * grade).collect()),
            Self::Ranks(ranks) => Self::Ranks(ranks_shown(ranks)),
            Self::Ratings { fields, ranks } => Self::Ratings {
                fields: shown.iter().map(|&i| fields[i].clone()).collect(),
                ranks: ranks.as_deref().map(ranks_shown),
            },
        }
    }
}

fn check_grade(form: &Form, grade: i8) -> Result<(), String> {
    let top = form.top_grade().unwrap_or(0);
    match grade {
        0 if !form.takes_ties() => Err("this form takes no ties".into()),
        // Not `abs`, which overflows for the lowest number.
        grade if !(-top..=top).contains(&grade) => Err(format!(
            "expected a grade from {} to {top}, found {grade}",
            -top
        )),
        _ => Ok(()),
    }
}

fn check_ranks(ranks: &[usize], count: usize, ties: bool) -> Result<(), String> {
    if ranks.len() != count || ranks.iter().any(|rank| !(1..=count).contains(rank)) {
        return Err(format!(
            "expected a rank from 1 to {count} for each of {count} responses, found {ranks:?}"
        ));
    }
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    match ties || sorted.len() == count {
        true => Ok(()),
        false => Err("two responses have the same rank, and this form takes no ties".into()),
    }
}

/// Ranks without gaps: 1, 3, 3 become 1, 2, 2.
fn dense(ranks: &[usize]) -> Vec<usize> {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    ranks
        .iter()
        .map(|rank| 1 + sorted.partition_point(|other| other < rank))
        .collect()
}

/// The values of a response's fields: every one that the form has, and no other. Flags that are not set are false, texts are empty.
fn checked_fields(
    form: &RateForm,
    mut values: Map<String, Value>,
) -> Result<Map<String, Value>, String> {
    let mut checked = Map::new();
    for field in &form.fields {
        let value = values.remove(field.name()).unwrap_or(Value::Null);
        let fits = match (field, &value) {
            (Field::Scale { from, to, .. }, value) => {
                value.as_i64().is_some_and(|n| (*from..=*to).contains(&n))
            }
            (Field::Flag { .. } | Field::Text { .. }, Value::Null)
            | (Field::Flag { .. }, Value::Bool(_)) => true,
            (Field::Choice { options, .. }, Value::String(text)) => options.contains(text),
            (Field::Text { .. }, Value::String(text)) => text.len() <= LONGEST_TEXT,
            _ => false,
        };
        if !fits {
            let expected = match field {
                Field::Scale {
                    label, from, to, ..
                } => format!("{label}: choose a number from {from} to {to}"),
                Field::Flag { label, .. } => format!("{label}: expected yes or no"),
                Field::Choice { label, .. } => format!("{label}: choose one of the options"),
                Field::Text { label, .. } => {
                    format!("{label}: expected a text of at most {LONGEST_TEXT} bytes")
                }
            };
            return Err(expected);
        }
        let value = match (field, value) {
            (Field::Flag { .. }, Value::Null) => Value::Bool(false),
            (Field::Text { .. }, Value::Null) => Value::String(String::new()),
            (_, value) => value,
        };
        checked.insert(field.name().to_owned(), value);
    }
    match values.keys().next() {
        Some(name) => Err(format!("the form has no field {name:?}")),
        None => Ok(checked),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(count: usize) -> Task {
        Task {
            responses: (0..count).map(|i| i.to_string()).collect(),
            ..Task::default()
        }
    }

    #[test]
    fn answers_are_stored_in_the_tasks_order() {
        let pairwise = Form::Pairwise {
            grades: 9,
            ties: true,
        };
        let stored = |grade, shown: &[usize]| {
            Answer::Grade(grade)
                .of_shown(&pairwise, &task(2), shown)
                .unwrap()
        };
        assert_eq!(stored(3, &[0, 1]), Answer::Grade(3));
        assert_eq!(stored(3, &[1, 0]), Answer::Grade(-3));
        let rank = Form::Rank { ties: true };
        // Shown as third, first, second response; ranks 1, 4, 1 without the gap are 1, 2, 1.
        let shown = [2, 0, 1];
        let given = Answer::Ranks(vec![1, 3, 1]);
        let got = given.of_shown(&rank, &task(3), &shown).unwrap();
        assert_eq!(got, Answer::Ranks(vec![2, 1, 1]));
        assert_eq!(got.as_shown(&shown), Answer::Ranks(vec![1, 2, 1]));
    }

    #[test]
    fn answers_that_do_not_fit_are_refused() {
        let refused = |answer: Answer, form: Form, count| {
            answer
                .of_shown(&form, &task(count), &[0, 1, 2][..count])
                .unwrap_err()
        };
        let no_ties = Form::Pairwise {
            grades: 2,
            ties: false,
        };
        assert_eq!(
            refused(Answer::Grade(0), no_ties.clone(), 2),
            "this form takes no ties"
        );
        for grade in [2, -128] {
            let error = refused(Answer::Grade(grade), no_ties.clone(), 2);
            assert!(
                error.starts_with("expected a grade from -1 to 1"),
                "{error}"
            );
        }
        let rank = Form::Rank { ties: false };
        assert!(refused(Answer::Ranks(vec![1, 1]), rank.clone(), 2).contains("takes no ties"));
        assert!(refused(Answer::Ranks(vec![0, 1]), rank.clone(), 2).contains("from 1 to 2"));
        assert!(refused(Answer::Ranks(vec![1]), rank.clone(), 2).contains("each of 2"));
        assert_eq!(
            refused(Answer::Grade(1), rank, 2),
            "the answer is of another form"
        );
    }

    #[test]
    fn fields_are_those_of_the_form() {
        let rate = |values: Value, ranks| {
            let Value::Object(values) = values else {
                panic!("an object")
            };
            let answer = Answer::Ratings {
                fields: vec![values],
                ranks,
            };
            answer.of_shown(&Form::InstructGpt, &task(1), &[0])
        };
        let Ok(Answer::Ratings {
            fields,
            ranks: None,
        }) = rate(json!({"overall": 5, "hallucination": true}), None)
        else {
            panic!("ratings")
        };
        assert_eq!(
            (fields[0].len(), &fields[0]["violent"], &fields[0]["notes"]),
            (13, &json!(false), &json!(""))
        );
        for (values, expected) in [
            (json!({}), "Overall quality: choose a number from 1 to 7"),
            (
                json!({"overall": 8}),
                "Overall quality: choose a number from 1 to 7",
            ),
            (
                json!({"overall": 1, "violent": 1}),
                "Violent content: expected yes or no",
            ),
            (json!({"overall": 1, "x": 1}), "the form has no field \"x\""),
        ] {
            assert_eq!(rate(values, None).unwrap_err(), expected);
        }
        assert_eq!(
            rate(json!({"overall": 1}), Some(vec![1])).unwrap_err(),
            "this form has no ranks"
        );
    }
}
