//! How far a project has come, how far its annotators agree, and how long they take.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::agreement::{Scale, cohens_kappa, krippendorffs_alpha, raw_agreement};
use super::answer::Answer;
use super::comparison::comparisons;
use super::exports::Judged;
use super::form::Form;
use super::store::{Entry, Store};
use crate::error::Result;

/// A report on a project.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Tasks.
    pub tasks: usize,
    /// Tasks with at least one judgement.
    pub judged: usize,
    /// Judgements, skips aside.
    pub judgements: usize,
    /// Skips.
    pub skips: usize,
    /// Comparisons that two annotators have answered both, as pairs of annotators.
    pub shared: usize,
    /// Share of those with the same preference (or tie).
    pub agreement: Option<f64>,
    /// Krippendorff's alpha of preferences, nominal.
    pub alpha: Option<f64>,
    /// Krippendorff's alpha of grades (of forms with grades) or ratings (of forms with a scale), ordinal.
    pub alpha_ordinal: Option<f64>,
    /// Seconds for a task: the median over all judgements.
    pub seconds: Option<f64>,
    /// Each annotator, in the order in which they were added.
    pub annotators: Vec<AnnotatorReport>,
    /// Each two annotators with tasks in common.
    pub pairs: Vec<PairReport>,
}

/// A report on an annotator.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AnnotatorReport {
    /// Name.
    pub name: String,
    /// Judgements.
    pub judgements: usize,
    /// Skips.
    pub skips: usize,
    /// Median of the seconds for a task.
    pub seconds: Option<f64>,
    /// Share of comparisons with a preference in which the response shown first is preferred: far from 1/2 is a habit.
    pub first: Option<f64>,
    /// Share of comparisons that are ties.
    pub ties: Option<f64>,
    /// Share of comparisons in common with others that are answered the same.
    pub agreement: Option<f64>,
    /// Share of comparisons with a known answer that are answered right, and their number.
    pub gold: Option<(f64, usize)>,
}

/// A report on two annotators.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairReport {
    /// Their names.
    pub names: [String; 2],
    /// Comparisons in common.
    pub shared: usize,
    /// Share answered the same.
    pub agreement: f64,
    /// Cohen's kappa.
    pub kappa: Option<f64>,
}

/// A comparison that was asked: task, turn, two responses.
type Question = (i64, usize, (usize, usize));

impl Report {
    /// The report on a project.
    ///
    /// # Errors
    /// `Error::Format` if the store cannot be read.
    pub fn new(store: &Store) -> Result<Self> {
        let all = Judged::read(store)?;
        let form = &store.terms().form;
        let annotators = store.annotators()?;
        let mut preferences: BTreeMap<Question, BTreeMap<i64, i64>> = BTreeMap::new();
        let mut ordinal: BTreeMap<Question, Vec<f64>> = BTreeMap::new();
        let judged: Vec<(&Entry, &Answer)> = all
            .entries
            .iter()
            .filter_map(|e| Some((e, e.answer.as_ref()?)))
            .collect();
        for (entry, answer) in &judged {
            for comparison in comparisons(form, answer) {
                let question = (entry.task, comparison.turn, comparison.pair);
                let sign = sign(comparison.strength);
                preferences
                    .entry(question)
                    .or_default()
                    .insert(entry.annotator, sign);
                if form.top_grade().is_some() {
                    ordinal
                        .entry(question)
                        .or_default()
                        .push(comparison.strength);
                }
            }
            for (response, rating) in ratings(form, answer).into_iter().enumerate() {
                ordinal
                    .entry((entry.task, 0, (response, response)))
                    .or_default()
                    .push(rating);
            }
        }
        let units: Vec<Vec<f64>> = preferences
            .values()
            .map(|of| of.values().map(|&sign| sign as f64).collect())
            .collect();
        let in_common = |a: i64, b: i64| -> Vec<(i64, i64)> {
            preferences
                .values()
                .filter_map(|of| Some((*of.get(&a)?, *of.get(&b)?)))
                .collect()
        };
        let (mut pairs, mut everything) = (Vec::new(), Vec::new());
        let mut of_annotator: BTreeMap<i64, Vec<(i64, i64)>> = BTreeMap::new();
        for (at, one) in annotators.iter().enumerate() {
            for other in &annotators[at + 1..] {
                let common = in_common(one.id, other.id);
                for id in [one.id, other.id] {
                    of_annotator.entry(id).or_default().extend(&common);
                }
                if let Some(agreement) = raw_agreement(&common) {
                    pairs.push(PairReport {
                        names: [one.name.clone(), other.name.clone()],
                        shared: common.len(),
                        agreement,
                        kappa: cohens_kappa(&common),
                    });
                }
                everything.extend(common);
            }
        }
        let gold: BTreeMap<i64, &Vec<usize>> = (all.tasks.iter())
            .filter_map(|stored| Some((stored.id, stored.gold.as_ref()?)))
            .collect();
        let reports = annotators.iter().map(|annotator| {
            let own: Vec<&(&Entry, &Answer)> = judged
                .iter()
                .filter(|(entry, _)| entry.annotator == annotator.id)
                .collect();
            let mut tally = Tally::default();
            for (entry, answer) in &own {
                tally.add(
                    form,
                    entry,
                    answer,
                    gold.get(&entry.task).map(|ranks| ranks.as_slice()),
                );
            }
            let skips = all
                .entries
                .iter()
                .filter(|e| e.annotator == annotator.id && e.answer.is_none());
            AnnotatorReport {
                name: annotator.name.clone(),
                judgements: own.len(),
                skips: skips.count(),
                seconds: median(own.iter().map(|(entry, _)| entry.seconds).collect()),
                first: share(tally.first, tally.preferred),
                ties: share(tally.ties, tally.preferred + tally.ties),
                agreement: of_annotator
                    .get(&annotator.id)
                    .and_then(|common| raw_agreement(common)),
                gold: share(tally.right, tally.known).map(|right| (right, tally.known)),
            }
        });
        Ok(Self {
            tasks: all.tasks.len(),
            judged: store.judged()?.0,
            judgements: judged.len(),
            skips: all.entries.len() - judged.len(),
            shared: everything.len(),
            agreement: raw_agreement(&everything),
            alpha: krippendorffs_alpha(&units, Scale::Nominal),
            alpha_ordinal: krippendorffs_alpha(
                &ordinal.into_values().collect::<Vec<_>>(),
                Scale::Ordinal,
            ),
            seconds: median(judged.iter().map(|(entry, _)| entry.seconds).collect()),
            annotators: reports.collect(),
            pairs,
        })
    }
}

/// Sums over an annotator's comparisons.
#[derive(Debug, Default)]
struct Tally {
    preferred: usize,
    first: usize,
    ties: usize,
    known: usize,
    right: usize,
}

impl Tally {
    fn add(&mut self, form: &Form, entry: &Entry, answer: &Answer, gold: Option<&[usize]>) {
        for comparison in comparisons(form, answer) {
            let (a, b) = comparison.pair;
            let place = |response: usize| entry.shown.iter().position(|&shown| shown == response);
            let preferred = sign(comparison.strength);
            match preferred {
                0 => self.ties += 1,
                sign => {
                    self.preferred += 1;
                    self.first += usize::from((place(a) < place(b)) == (sign > 0));
                }
            }
            // Of two that are equally good by what is known, nothing is right or wrong.
            if let Some(ranks) = gold.filter(|ranks| ranks[a] != ranks[b]) {
                self.known += 1;
                self.right += usize::from(preferred == if ranks[a] < ranks[b] { 1 } else { -1 });
            }
        }
    }
}

fn ratings(form: &Form, answer: &Answer) -> Vec<f64> {
    let (Answer::Ratings { fields, .. }, Some(rate)) = (answer, form.rate()) else {
        return Vec::new();
    };
    let Some((name, ..)) = rate.rating_scale() else {
        return Vec::new();
    };
    fields
        .iter()
        .filter_map(|fields| fields.get(name).and_then(Value::as_f64))
        .collect()
}

fn sign(x: f64) -> i64 {
    i64::from(x > 0.0) - i64::from(x < 0.0)
}

fn share(count: usize, of: usize) -> Option<f64> {
    (of > 0).then(|| count as f64 / of as f64)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{:.1} %", 100.0 * x));
        let number = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.3}"));
        let seconds = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.1} s"));
        writeln!(
            f,
            "{} of {} tasks judged, {} judgements, {} skips; {} a task",
            self.judged,
            self.tasks,
            self.judgements,
            self.skips,
            seconds(self.seconds)
        )?;
        writeln!(
            f,
            "agreement {} of {} comparisons answered by two; Krippendorff's alpha {} (preferences), {} (grades or ratings, ordinal)\n",
            percent(self.agreement),
            self.shared,
            number(self.alpha),
            number(self.alpha_ordinal)
        )?;
        writeln!(
            f,
            "{:<20} {:>6} {:>6} {:>9} {:>8} {:>8} {:>9} {:>15}",
            "annotator", "judged", "skips", "median", "first", "ties", "agrees", "gold"
        )?;
        for of in &self.annotators {
            let gold = of.gold.map_or("-".to_owned(), |(right, of)| {
                format!("{} of {of}", percent(Some(right)))
            });
            writeln!(
                f,
                "{:<20} {:>6} {:>6} {:>9} {:>8} {:>8} {:>9} {:>15}",
                of.name,
                of.judgements,
                of.skips,
                seconds(of.seconds),
                percent(of.first),
                percent(of.ties),
                percent(of.agreement),
                gold
            )?;
        }
        for pair in &self.pairs {
            writeln!(
                f,
                "\n{} and {}: {} comparisons in common, {} the same, Cohen's kappa {}",
                pair.names[0],
                pair.names[1],
                pair.shared,
                percent(Some(pair.agreement)),
                number(pair.kappa)
            )?;
        }
        Ok(())
    }
}
