//! Judgements as comparisons of pairs, whatever the form.

use std::collections::BTreeMap;

use serde_json::Value;

use super::answer::Answer;
use super::form::Form;
use super::store::Entry;
use super::task::Task;

/// What an answer says of two responses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The turn, of dialogues; otherwise 0.
    pub turn: usize,
    /// The two responses, by index.
    pub pair: (usize, usize),
    /// How much the first is better, from -1 to 1; 0 is a tie.
    pub strength: f64,
    /// How far they are apart, signed as `strength`, from -1 to 1: Llama 2's small margins for the four grades of a side (1, 2/3,
    /// 1/3, 0), the difference of ratings over their range; 0 for forms that only order.
    pub margin: f64,
}

/// The comparisons in an answer; none in a skip.
pub fn comparisons(form: &Form, answer: &Answer) -> Vec<Comparison> {
    let of_grade = |turn: usize, grade: i8| Comparison {
        turn,
        pair: (0, 1),
        strength: f64::from(grade) / f64::from(form.top_grade().unwrap_or(1)),
        // One grade says nothing of a distance; the smallest of four is the margin 0.
        margin: match form.top_grade() {
            Some(4) => f64::from(grade.signum()) * f64::from((grade.abs() - 1).max(0)) / 3.0,
            _ => 0.0,
        },
    };
    let of_ranks = |ranks: &[usize]| -> Vec<Comparison> {
        let order = |a: usize, b: usize| ranks[b] as f64 - ranks[a] as f64;
        all_pairs(ranks.len())
            .map(|(a, b)| Comparison {
                turn: 0,
                pair: (a, b),
                strength: sign(order(a, b)),
                margin: 0.0,
            })
            .collect()
    };
    match answer {
        Answer::Grade(grade) => vec![of_grade(0, *grade)],
        Answer::Turns(grades) => grades
            .iter()
            .enumerate()
            .map(|(turn, &grade)| of_grade(turn, grade))
            .collect(),
        Answer::Ranks(ranks) => of_ranks(ranks),
        Answer::Ratings { fields, ranks } => {
            let Some(rate) = form.rate() else {
                return Vec::new();
            };
            let scale = rate.rating_scale();
            let rated = |a: usize, b: usize| -> Option<f64> {
                let (name, from, to) = scale?;
                let rating = |i: usize| fields[i].get(name).and_then(Value::as_f64);
                Some((rating(a)? - rating(b)?) / (to - from) as f64)
            };
            let mut found = match ranks {
                Some(ranks) => of_ranks(ranks),
                None => (all_pairs(fields.len()))
                    .filter_map(|(a, b)| {
                        Some(Comparison {
                            turn: 0,
                            pair: (a, b),
                            strength: sign(rated(a, b)?),
                            margin: 0.0,
                        })
                    })
                    .collect(),
            };
            for comparison in &mut found {
                let (a, b) = comparison.pair;
                comparison.margin = rated(a, b).unwrap_or(0.0);
            }
            found
        }
    }
}

fn sign(x: f64) -> f64 {
    match x {
        x if x > 0.0 => 1.0,
        x if x < 0.0 => -1.0,
        _ => 0.0,
    }
}

fn all_pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (a + 1..count).map(move |b| (a, b)))
}

/// What all annotators together say of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Consensus {
    pub(super) turn: usize,
    pub(super) pair: (usize, usize),
    /// Mean of the strengths.
    pub(super) strength: f64,
    /// Mean of the margins.
    pub(super) margin: f64,
    pub(super) annotators: usize,
}

/// The means over annotators of what they say of each pair of one task, in the order of turns and pairs.
pub(super) fn consensus(form: &Form, entries: &[&Entry]) -> Vec<Consensus> {
    let mut by_pair: BTreeMap<(usize, (usize, usize)), Vec<Comparison>> = BTreeMap::new();
    for comparison in entries
        .iter()
        .filter_map(|entry| entry.answer.as_ref())
        .flat_map(|a| comparisons(form, a))
    {
        by_pair
            .entry((comparison.turn, comparison.pair))
            .or_default()
            .push(comparison);
    }
    (by_pair.into_iter())
        .map(|((turn, pair), all)| {
            let n = all.len() as f64;
            Consensus {
                turn,
                pair,
                strength: all.iter().map(|c| c.strength).sum::<f64>() / n,
                margin: all.iter().map(|c| c.margin).sum::<f64>() / n,
                annotators: all.len(),
            }
        })
        .collect()
}

/// The prompt of a comparison: of a dialogue all that was said before the turn.
pub(super) fn prompt_of(task: &Task, turn: usize) -> Value {
    if task.turns.is_empty() {
        return task.prompt.clone();
    }
    let says = |role: &str, text: &str| serde_json::json!({"role": role, "content": text});
    let mut messages = match &task.prompt {
        Value::Array(messages) => messages.clone(),
        Value::String(text) if !text.is_empty() => vec![says("system", text)],
        _ => Vec::new(),
    };
    for earlier in &task.turns[..turn] {
        messages.push(says("user", &earlier.prompt));
        messages.push(says("assistant", &earlier.responses[earlier.continued]));
    }
    messages.push(says("user", &task.turns[turn].prompt));
    Value::Array(messages)
}

/// The text of a response of a comparison.
pub(super) fn response_of(task: &Task, turn: usize, response: usize) -> &str {
    match task.turns.get(turn) {
        Some(turn) => &turn.responses[response],
        None => &task.responses[response],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn grades_have_llama_2s_margins() {
        let four = Form::Pairwise {
            grades: 4,
            ties: true,
        };
        let of = |grade| {
            let found = comparisons(&four, &Answer::Grade(grade));
            (found[0].strength, found[0].margin)
        };
        assert_eq!(of(4), (1.0, 1.0));
        assert_eq!(of(-3), (-0.75, -2.0 / 3.0));
        assert_eq!(of(1), (0.25, 0.0));
        assert_eq!(of(0), (0.0, 0.0));
        let two = comparisons(&Form::default(), &Answer::Grade(-1));
        assert_eq!((two[0].strength, two[0].margin), (-1.0, 0.0));
    }

    #[test]
    fn ranks_and_ratings_are_pairs() {
        let ranked = comparisons(&Form::Rank { ties: true }, &Answer::Ranks(vec![2, 1, 2]));
        let strengths: Vec<f64> = ranked.iter().map(|c| c.strength).collect();
        // Pairs 0-1, 0-2, 1-2.
        assert_eq!(strengths, [-1.0, 0.0, 1.0]);
        let fields = |overall: i64| json!({"overall": overall}).as_object().unwrap().clone();
        let answer = Answer::Ratings {
            fields: vec![fields(7), fields(4)],
            ranks: Some(vec![1, 1]),
        };
        let found = comparisons(&Form::InstructGpt, &answer);
        // A tie of ranks is a tie, whatever the ratings are.
        assert_eq!((found[0].strength, found[0].margin), (0.0, 0.5));
    }

    #[test]
    fn a_turn_has_what_was_said_before() {
        let turn = |prompt: &str, continued| super::super::task::Turn {
            prompt: prompt.into(),
            responses: ["a".into(), "b".into()],
            continued,
        };
        let task = Task {
            turns: vec![turn("one", 1), turn("two", 0)],
            ..Task::default()
        };
        let expected = json!([
            {"role": "user", "content": "one"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "two"}
        ]);
        assert_eq!(prompt_of(&task, 1), expected);
        assert_eq!(response_of(&task, 1, 1), "b");
    }
}
