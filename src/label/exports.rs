//! Judgements as rows that stages train on.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::comparison::{comparisons, consensus, prompt_of, response_of};
use super::form::{Field, Form};
use super::store::{Entry, Store, StoredTask};
use super::task::Task;
use crate::atomic::write_atomic;
use crate::error::{Error, Result};

/// What was exported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    /// Rows of preferences.
    pub preferences: usize,
    /// Pairs that are a tie, which make no row.
    pub ties: usize,
    /// Rows of rated responses.
    pub ratings: usize,
    /// Rows of labelled responses.
    pub labels: usize,
    /// Responses that are as good as bad, which make no labelled row.
    pub neutral: usize,
    /// Comparisons of responses of two policies.
    pub compared: usize,
    /// Judgements.
    pub judgements: usize,
}

/// Writes `preferences.jsonl`, `labels.jsonl` (for Kto), for forms with a scale `ratings.jsonl`, for tasks with policies
/// `comparisons.jsonl` (for `temper elo`), and every single judgement to `judgements.jsonl`.
///
/// # Errors
/// `Error::Format` if the store cannot be read; `Error::Io` if `dir` cannot be written.
pub fn export(store: &Store, dir: &Path) -> Result<Exported> {
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let form = &store.terms().form;
    let all = Judged::read(store)?;
    let mut done = Exported::default();
    let (mut preferences, mut labels, mut ratings) = (Vec::new(), Vec::new(), Vec::new());
    for (id, task, entries) in all.of_tasks() {
        let (rows, ties) = preferences_of(form, id, task, &entries);
        preferences.extend(rows);
        done.ties += ties;
        let rated = ratings_of(form, id, task, &entries);
        let (rows, neutral) = labels_of(form, task, &entries, &rated);
        labels.extend(rows);
        done.neutral += neutral;
        ratings.extend(rated);
    }
    (done.preferences, done.ratings, done.labels) =
        (preferences.len(), ratings.len(), labels.len());
    let judgements = all.judgements(store)?;
    done.judgements = judgements.len();
    write(dir, "preferences.jsonl", &preferences)?;
    write(dir, "labels.jsonl", &labels)?;
    write(dir, "judgements.jsonl", &judgements)?;
    let between = all.between_policies(form, store)?;
    done.compared = between.len();
    // Files of an earlier export would be taken for this one's.
    for (name, rows) in [("ratings.jsonl", &ratings), ("comparisons.jsonl", &between)] {
        match rows.is_empty() {
            false => write(dir, name, rows)?,
            true => remove(&dir.join(name))?,
        }
    }
    Ok(done)
}

/// The preferences of each task, in the order of tasks, and the number of ties. Questions with a known answer are left out.
///
/// # Errors
/// `Error::Format` if the store cannot be read.
pub fn preference_rows(store: &Store) -> Result<(Vec<Vec<Value>>, usize)> {
    let all = Judged::read(store)?;
    let form = &store.terms().form;
    let mut ties = 0;
    let rows = all.of_tasks().into_iter().map(|(id, task, entries)| {
        let (rows, tied) = preferences_of(form, id, task, &entries);
        ties += tied;
        rows
    });
    Ok((rows.collect(), ties))
}

/// The rated responses of each task, in the order of tasks; empty for forms without a scale.
///
/// # Errors
/// `Error::Format` if the store cannot be read.
pub(crate) fn rating_rows(store: &Store) -> Result<Vec<Value>> {
    let all = Judged::read(store)?;
    let form = &store.terms().form;
    let tasks = all.of_tasks().into_iter();
    Ok(tasks
        .flat_map(|(id, task, entries)| ratings_of(form, id, task, &entries))
        .collect())
}

/// Tasks and judgements of a store.
pub(super) struct Judged {
    pub(super) tasks: Vec<StoredTask>,
    pub(super) entries: Vec<Entry>,
}

impl Judged {
    pub(super) fn read(store: &Store) -> Result<Self> {
        Ok(Self {
            tasks: store.tasks()?,
            entries: store.entries()?,
        })
    }

    /// Tasks that are no questions with a known answer, with their judgements.
    fn of_tasks(&self) -> Vec<(i64, &Task, Vec<&Entry>)> {
        let mut by_task: BTreeMap<i64, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.entries {
            by_task.entry(entry.task).or_default().push(entry);
        }
        let plain = self.tasks.iter().filter(|task| task.gold.is_none());
        plain
            .map(|stored| {
                let entries = by_task.remove(&stored.id).unwrap_or_default();
                (stored.id, &stored.task, entries)
            })
            .collect()
    }

    /// Every judgement with what was shown.
    fn judgements(&self, store: &Store) -> Result<Vec<Value>> {
        let names: BTreeMap<i64, String> = store
            .annotators()?
            .into_iter()
            .map(|a| (a.id, a.name))
            .collect();
        let tasks: BTreeMap<i64, &StoredTask> =
            self.tasks.iter().map(|task| (task.id, task)).collect();
        let row = |entry: &Entry| -> Option<Value> {
            let StoredTask {
                task, gold, shared, ..
            } = tasks.get(&entry.task)?;
            Some(json!({
                "task": entry.task,
                "annotator": names.get(&entry.annotator),
                "answer": entry.answer,
                "skipped": entry.skipped,
                "shown": entry.shown,
                "seconds": entry.seconds,
                "unix_ms": entry.created,
                "shared": shared,
                "gold": gold,
                "prompt": task.prompt,
                "responses": task.responses,
                "turns": task.turns,
                "policies": task.policies,
                "scores": task.scores,
            }))
        };
        Ok(self.entries.iter().filter_map(row).collect())
    }

    /// Each annotator's comparisons of responses of different policies, ties among them, for ratings of the policies.
    fn between_policies(&self, form: &Form, store: &Store) -> Result<Vec<Value>> {
        let names: BTreeMap<i64, String> = store
            .annotators()?
            .into_iter()
            .map(|a| (a.id, a.name))
            .collect();
        let tasks: BTreeMap<i64, &Task> = self
            .tasks
            .iter()
            .filter(|stored| stored.gold.is_none())
            .map(|stored| (stored.id, &stored.task))
            .collect();
        let mut rows = Vec::new();
        for entry in &self.entries {
            let (Some(answer), Some(task)) = (&entry.answer, tasks.get(&entry.task)) else {
                continue;
            };
            for comparison in comparisons(form, answer) {
                let (a, b) = comparison.pair;
                let (Some(of_a), Some(of_b)) = (task.policies.get(a), task.policies.get(b)) else {
                    continue;
                };
                if of_a == of_b {
                    continue;
                }
                let swap = comparison.strength < 0.0;
                let (chosen, rejected) = if swap { (b, a) } else { (a, b) };
                rows.push(json!({
                    "prompt": prompt_of(task, comparison.turn),
                    "chosen": response_of(task, comparison.turn, chosen),
                    "rejected": response_of(task, comparison.turn, rejected),
                    "chosen_policy": if swap { of_b } else { of_a },
                    "rejected_policy": if swap { of_a } else { of_b },
                    "tie": comparison.strength == 0.0,
                    "annotator": names.get(&entry.annotator),
                    "task": entry.task,
                }));
            }
        }
        Ok(rows)
    }
}

/// The preferences of a task and the number of ties. `chosen_probability` is 1/2 + 1/2 of the mean strength: of answers without grades,
/// the share of annotators who prefer the chosen response, ties counting one half.
fn preferences_of(form: &Form, id: i64, task: &Task, entries: &[&Entry]) -> (Vec<Value>, usize) {
    let (mut rows, mut ties) = (Vec::new(), 0);
    for agreed in consensus(form, entries) {
        let (a, b) = agreed.pair;
        let (chosen, rejected) = match agreed.strength {
            s if s > 0.0 => (a, b),
            s if s < 0.0 => (b, a),
            _ => {
                ties += 1;
                continue;
            }
        };
        let confidence = agreed.strength.abs();
        let mut row = Map::new();
        let mut put = |name: &str, value: Value| row.insert(name.to_owned(), value);
        put("prompt", prompt_of(task, agreed.turn));
        put("chosen", json!(response_of(task, agreed.turn, chosen)));
        put("rejected", json!(response_of(task, agreed.turn, rejected)));
        if let Some(top) = form.top_grade() {
            put("grade", json!(confidence * f64::from(top)));
        }
        put("confidence", json!(confidence));
        put("chosen_probability", json!(0.5 + 0.5 * confidence));
        // Where the ratings contradict the order, there is no distance.
        put(
            "margin",
            json!((agreed.margin * agreed.strength.signum()).max(0.0)),
        );
        put("annotators", json!(agreed.annotators));
        put("task", json!(id));
        if !task.policies.is_empty() {
            put("chosen_policy", json!(task.policies[chosen]));
            put("rejected_policy", json!(task.policies[rejected]));
        }
        rows.push(Value::Object(row));
    }
    (rows, ties)
}

/// The responses of a task with the mean of their ratings, and of each field what was said: the mean of scales, the share of flags.
fn ratings_of(form: &Form, id: i64, task: &Task, entries: &[&Entry]) -> Vec<Value> {
    let Some(rate) = form.rate() else {
        return Vec::new();
    };
    let Some((rating, ..)) = rate.rating_scale() else {
        return Vec::new();
    };
    let answers: Vec<&Vec<Map<String, Value>>> = (entries.iter())
        .filter_map(|entry| match &entry.answer {
            Some(Answer::Ratings { fields, .. }) => Some(fields),
            _ => None,
        })
        .collect();
    if answers.is_empty() {
        return Vec::new();
    }
    let n = answers.len() as f64;
    (task.responses.iter().enumerate())
        .map(|(i, response)| {
            let mean = |name: &str| {
                let number = |fields: &&Vec<Map<String, Value>>| match &fields[i][name] {
                    Value::Bool(flag) => f64::from(u8::from(*flag)),
                    value => value.as_f64().unwrap_or(0.0),
                };
                answers.iter().map(number).sum::<f64>() / n
            };
            let mut row = Map::new();
            row.insert("prompt".into(), task.prompt.clone());
            row.insert("completion".into(), json!(response));
            row.insert("rating".into(), json!(mean(rating)));
            for field in &rate.fields {
                let value = match field {
                    Field::Scale { name, .. } | Field::Flag { name, .. } => json!(mean(name)),
                    Field::Choice { name, .. } | Field::Text { name, .. } => {
                        let texts = answers.iter().filter_map(|fields| fields[i][name].as_str());
                        json!(texts.filter(|text| !text.is_empty()).collect::<Vec<_>>())
                    }
                };
                row.insert(field.name().to_owned(), value);
            }
            row.insert("annotators".into(), json!(answers.len()));
            row.insert("task".into(), json!(id));
            if let Some(policy) = task.policies.get(i) {
                row.insert("policy".into(), json!(policy));
            }
            Value::Object(row)
        })
        .collect()
}

/// Labelled responses for Kto, and the number of neutral ones: by the middle of the rating's scale where there is one, otherwise
/// those are desirable that are better than more of the others than they are worse than.
fn labels_of(form: &Form, task: &Task, entries: &[&Entry], rated: &[Value]) -> (Vec<Value>, usize) {
    let label = |prompt: Value, completion: &str, sign: f64| -> Option<Value> {
        (sign != 0.0)
            .then(|| json!({"prompt": prompt, "completion": completion, "label": sign > 0.0}))
    };
    let mut all: Vec<Option<Value>> = Vec::new();
    let scale = form.rate().and_then(|rate| {
        rate.rating_scale()
            .map(|(_, from, to)| (from + to) as f64 / 2.0)
    });
    if let Some(middle) = scale {
        for row in rated {
            let sign = row["rating"].as_f64().unwrap_or(middle) - middle;
            all.push(label(
                row["prompt"].clone(),
                row["completion"].as_str().unwrap_or_default(),
                sign,
            ));
        }
    } else {
        let mut sums: BTreeMap<(usize, usize), f64> = BTreeMap::new();
        for agreed in consensus(form, entries) {
            let (a, b) = agreed.pair;
            let won = if agreed.strength == 0.0 {
                0.0
            } else {
                agreed.strength.signum()
            };
            *sums.entry((agreed.turn, a)).or_default() += won;
            *sums.entry((agreed.turn, b)).or_default() -= won;
        }
        for ((turn, response), sum) in sums {
            all.push(label(
                prompt_of(task, turn),
                response_of(task, turn, response),
                sum,
            ));
        }
    }
    let neutral = all.iter().filter(|row| row.is_none()).count();
    (all.into_iter().flatten().collect(), neutral)
}

fn write(dir: &Path, name: &str, rows: &[Value]) -> Result<()> {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    write_atomic(dir.join(name), text.as_bytes())
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::store::{Next, Terms};
    use crate::label::task::NewTask;

    /// A project whose annotators all answer `answers` about its tasks: of each annotator, what is said of responses "a" and "b".
    fn project(folder: &Path, form: Form, answer: impl Fn(usize, [usize; 2]) -> Answer) -> Store {
        let terms = Terms {
            form,
            seed: 3,
            overlap: 1.0,
        };
        let store = Store::begin(&folder.join("labels.db"), &terms).unwrap();
        let task = Task {
            prompt: json!("p"),
            responses: vec!["a".into(), "b".into()],
            policies: vec!["one".into(), "two".into()],
            ..Task::default()
        };
        let known = Task {
            prompt: json!("known"),
            ..task.clone()
        };
        let tasks = [
            NewTask { task, gold: None },
            NewTask {
                task: known,
                gold: Some(vec![1, 2]),
            },
        ];
        store.add(&tasks).unwrap();
        for who in 0..2 {
            let annotator = store.annotator(&format!("annotator {who}"), 0).unwrap().0;
            while let Next::Task(held) = store.next(&annotator, 0).unwrap() {
                let shown = [held.shown[0], held.shown[1]];
                let judged = store.judge(&annotator, held.nonce, answer(who, shown), 1.0, 9000);
                assert_eq!(judged.unwrap(), Ok(()));
            }
        }
        store
    }

    #[test]
    fn ratings_are_means_and_questions_with_known_answers_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        // "a" is rated 6 and 5, once with hallucinations; "b" 4 and 4, the middle of the scale. Both rank "a" first.
        let answer = |who: usize, shown: [usize; 2]| {
            let of = |response: usize| match (response, who) {
                (0, 0) => json!({"overall": 6}),
                (0, _) => json!({"overall": 5, "hallucination": true, "notes": "sure?"}),
                _ => json!({"overall": 4}),
            };
            Answer::Ratings {
                fields: shown.map(|i| of(i).as_object().unwrap().clone()).to_vec(),
                ranks: Some(shown.map(|i| i + 1).to_vec()),
            }
        };
        let store = project(folder.path(), Form::InstructGpt, answer);
        let done = export(&store, &folder.path().join("out")).unwrap();
        let expected = Exported {
            preferences: 1,
            ratings: 2,
            labels: 1,
            neutral: 1,
            compared: 2,
            judgements: 4,
            ties: 0,
        };
        assert_eq!(done, expected);
        let ratings = rating_rows(&store).unwrap();
        assert_eq!(
            (
                &ratings[0]["rating"],
                &ratings[0]["hallucination"],
                &ratings[0]["notes"]
            ),
            (&json!(5.5), &json!(0.5), &json!(["sure?"]))
        );
        let (rows, ties) = preference_rows(&store).unwrap();
        let row = &rows[0][0];
        assert_eq!(
            (ties, &row["chosen"], &row["chosen_policy"]),
            (0, &json!("a"), &json!("one"))
        );
        // (5.5 - 4) / (7 - 1).
        assert_eq!(
            (&row["margin"], &row["annotators"]),
            (&json!(0.25), &json!(2))
        );
    }

    #[test]
    fn two_who_disagree_make_a_tie() {
        let folder = tempfile::tempdir().unwrap();
        // The first prefers "a", the second "b".
        let answer =
            |who: usize, shown: [usize; 2]| Answer::Grade(if shown[0] == who { 1 } else { -1 });
        let store = project(folder.path(), Form::default(), answer);
        let done = export(&store, &folder.path().join("out")).unwrap();
        assert_eq!(
            (
                done.preferences,
                done.ties,
                done.labels,
                done.neutral,
                done.compared
            ),
            (0, 1, 0, 2, 2)
        );
        let report = crate::label::Report::new(&store).unwrap();
        assert_eq!((report.shared, report.agreement), (2, Some(0.0)));
        // The known answer is "a": the first is right, the second wrong.
        let gold: Vec<_> = report.annotators.iter().map(|of| of.gold).collect();
        assert_eq!(gold, [Some((1.0, 1)), Some((0.0, 1))]);
        // Alpha of two opposite answers twice: D_o = 1, D_e = 2 * 2 * 2 / (4 * 3) = 2/3, alpha = -1/2.
        assert!((report.alpha.unwrap() + 0.5).abs() < 1e-12);
    }
}
