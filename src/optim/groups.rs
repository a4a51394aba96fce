//! Parameters with a learning rate or weight decay of their own.

use std::ops::Range;

use burn::tensor::backend::Backend;
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::rule::ParamForm;
use crate::error::Problem;
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::settings::Settings;

/// What holds for parameters with a name of a kind, in place of the optimiser's own settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamGroup {
    /// A regular expression that is searched in the names of tensors: `layers\.0\.`, `^lm_head`, `lora_B`.
    pub pattern: String,
    /// Peak learning rate; the schedule moves it as it does the optimiser's.
    #[serde(default)]
    pub lr: Option<f64>,
    /// Weight decay of what decays: norms and biases do not, whatever matches them.
    #[serde(default)]
    pub weight_decay: Option<f64>,
}

impl ParamGroup {
    /// Settings that cannot be, as far as they show without a model; `place` is the key below the group.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut settings = Settings::default();
        if let Err(error) = Regex::new(&self.pattern) {
            // The crate's message spans lines and ends with the cause.
            let cause = error.to_string();
            let cause = cause.lines().last().unwrap_or_default();
            let cause = cause.trim_start_matches("error: ");
            let message = format!("{:?} is not a regular expression: {cause}", self.pattern);
            settings.note(Problem::new("pattern", message));
        }
        if self.lr.is_none() && self.weight_decay.is_none() {
            let problem = Problem::new(
                "",
                "changes nothing: it has neither `lr` nor `weight_decay`",
            );
            settings.note(problem.with_help(r#"e.g. `(pattern: "embed_tokens", lr: 1e-5)`"#));
        }
        if let Some(lr) = self.lr.filter(|lr| !(*lr > 0.0 && lr.is_finite())) {
            let message = format!("must be above 0 and finite, found {lr:?}");
            let help = "`peft: Only([..])` trains some parameters and not others";
            settings.note(Problem::new("lr", message).with_help(help));
        }
        if let Some(decay) = self.weight_decay {
            settings.not_negative("weight_decay", decay);
        }
        settings.into_problems()
    }

    /// Whether it matches none of the names.
    pub fn is_unused<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> bool {
        Regex::new(&self.pattern).is_ok_and(|regex| !names.any(|name| regex.is_match(name)))
    }
}

/// Learning rate and decay of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rates {
    /// Factor on the optimiser's learning rate.
    pub(super) lr_factor: f64,
    /// Weight decay, if the parameter is one that decays.
    pub(super) weight_decay: f64,
}

/// The groups of an optimiser, ready to be matched.
#[derive(Debug)]
pub(super) struct Groups {
    groups: Vec<(Regex, Rates)>,
    others: Rates,
    /// Factor on the learning rate of biases and norms.
    pub(super) vector_lr_factor: f64,
}

impl Groups {
    /// Groups with patterns that are no regular expressions match nothing; see [`ParamGroup::problems`].
    pub(super) fn new(groups: &[ParamGroup], lr: f64, weight_decay: f64) -> Self {
        let group = |group: &ParamGroup| {
            let rates = Rates {
                lr_factor: group.lr.map_or(1.0, |own| own / lr),
                weight_decay: group.weight_decay.unwrap_or(weight_decay),
            };
            Some((Regex::new(&group.pattern).ok()?, rates))
        };
        Self {
            groups: groups.iter().filter_map(group).collect(),
            others: Rates {
                lr_factor: 1.0,
                weight_decay,
            },
            vector_lr_factor: 1.0,
        }
    }

    /// Learning rate and decay of the tensor `name`.
    pub(super) fn rates(&self, name: &str) -> Rates {
        let mut groups = self.groups.iter();
        let group = groups.find(|(pattern, _)| pattern.is_match(name));
        group.map_or(self.others, |(_, rates)| *rates)
    }

    /// The parts of a parameter that are updated alike: all that is trained of it as one, unless groups tell apart tensors that
    /// are stored in it side by side.
    pub(super) fn units<B: Backend>(&self, meta: &ParamMeta, slot: &ParamSlot<'_, B>) -> Vec<Unit> {
        let trained = trained_pieces(meta);
        let mut units: Vec<Unit> = Vec::new();
        for (name, columns, gradient) in trained {
            let mut rates = self.rates(name);
            rates.lr_factor *= meta.lr_factor;
            if meta.kind == ParamKind::Vector {
                rates.lr_factor *= self.vector_lr_factor;
            }
            let unit = match units.iter_mut().find(|unit| unit.rates == rates) {
                Some(unit) => unit,
                None => {
                    units.push(Unit::new(name, rates, meta, slot.shape()));
                    let last = units.len() - 1;
                    &mut units[last]
                }
            };
            unit.push(columns, gradient);
        }
        if let [unit] = units.as_mut_slice() {
            unit.key = meta.key().to_owned();
            unit.gradient = None;
            unit.columns = meta.trained_columns.as_ref().map(|ranges| ranges.to_vec());
        }
        units
    }
}

/// The tensors of a parameter that are trained: name, columns of the parameter, and of its gradient.
fn trained_pieces(meta: &ParamMeta) -> Vec<(&str, Range<usize>, Range<usize>)> {
    let total: usize = meta.pieces.iter().map(|(_, columns)| columns).sum();
    // Columns in another order than the file's do not stand by tensors.
    if meta.order.is_some() && meta.pieces.len() > 1 {
        return vec![(meta.key(), 0..total, 0..total)];
    }
    let (mut first, mut trained) = (0, Vec::new());
    for (name, width) in &meta.pieces {
        let columns = first..first + width;
        first = columns.end;
        let Some(ranges) = &meta.trained_columns else {
            trained.push((name.as_str(), columns.clone(), columns));
            continue;
        };
        let mut before = 0;
        for range in ranges.iter() {
            if range.start <= columns.start && columns.end <= range.end {
                let start = before + columns.start - range.start;
                trained.push((name.as_str(), columns.clone(), start..start + width));
            }
            before += range.len();
        }
    }
    trained
}

/// Columns of a parameter (entries of a vector) that are updated as one, with one state.
#[derive(Debug)]
pub(super) struct Unit {
    /// Name in checkpoints: the parameter's, or its own first tensor's where the parameter is more than one unit.
    pub(super) key: String,
    /// `None` for all.
    pub(super) columns: Option<Vec<Range<usize>>>,
    /// Its columns of the parameter's gradient; `None` for all.
    pub(super) gradient: Option<Vec<Range<usize>>>,
    pub(super) form: ParamForm,
    pub(super) rates: Rates,
    /// Whether it decays.
    pub(super) decays: bool,
}

impl Unit {
    fn new(name: &str, rates: Rates, meta: &ParamMeta, mut shape: Vec<usize>) -> Self {
        if let Some(columns) = shape.last_mut() {
            *columns = 0;
        }
        Self {
            key: name.to_owned(),
            columns: Some(Vec::new()),
            gradient: Some(Vec::new()),
            form: ParamForm {
                kind: meta.kind,
                shape,
                pieces: Vec::new(),
                transposed: meta.transposed,
            },
            rates,
            decays: meta.decays(),
        }
    }

    fn push(&mut self, columns: Range<usize>, gradient: Range<usize>) {
        let width = columns.len();
        if let Some(last) = self.form.shape.last_mut() {
            self.form.pieces.push(*last..*last + width);
            *last += width;
        }
        self.columns.get_or_insert_default().push(columns);
        self.gradient.get_or_insert_default().push(gradient);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn::backend::NdArray;
    use burn::module::{Param, ParamId};
    use burn::tensor::Tensor;

    use super::*;

    /// Key, columns of the parameter and of its gradient, and widths of the tensors.
    type UnitParts = (String, [Option<Vec<Range<usize>>>; 2], Vec<usize>);

    /// The units of a `[2, 9]` parameter of three layers.
    fn units(groups: &[(&str, f64)], trained: Option<Vec<Range<usize>>>) -> Vec<UnitParts> {
        let group = |&(pattern, lr): &(&str, f64)| ParamGroup {
            pattern: pattern.into(),
            lr: Some(lr),
            weight_decay: None,
        };
        let groups: Vec<ParamGroup> = groups.iter().map(group).collect();
        let mut param = Param::initialized(
            ParamId::new(),
            Tensor::<NdArray, 2>::zeros([2, 9], &Default::default()),
        );
        let meta = ParamMeta {
            kind: ParamKind::Matrix,
            pieces: vec![("q".into(), 4), ("k".into(), 2), ("v".into(), 3)],
            transposed: true,
            order: None,
            trained_columns: trained.map(Arc::new),
            lr_factor: 1.0,
        };
        let groups = Groups::new(&groups, 2.0, 0.1);
        let units = groups.units(&meta, &ParamSlot::Matrix(&mut param));
        (units.into_iter())
            .map(|unit| {
                let widths = unit.form.pieces.iter().map(ExactSizeIterator::len);
                assert_eq!(unit.form.shape, [2, widths.clone().sum()]);
                (unit.key, [unit.columns, unit.gradient], widths.collect())
            })
            .collect()
    }

    #[test]
    fn a_parameter_is_one_unit_unless_groups_part_it() {
        let whole = vec![("q".to_owned(), [None, None], vec![4, 2, 3])];
        assert_eq!(units(&[], None), whole);
        // All tensors in one group, or a group with the optimiser's own rate: nothing to part.
        assert_eq!(units(&[("[qkv]", 1.0)], None), whole);
        assert_eq!(units(&[("k", 2.0)], None), whole);
        #[allow(clippy::single_range_in_vec_init, reason = "a list of ranges")]
        let parted = vec![
            (
                "q".to_owned(),
                [Some(vec![0..4, 6..9]), Some(vec![0..4, 6..9])],
                vec![4, 3],
            ),
            (
                "k".to_owned(),
                [Some(vec![4..6]), Some(vec![4..6])],
                vec![2],
            ),
        ];
        assert_eq!(units(&[("k", 1.0)], None), parted);
    }

    #[test]
    fn columns_of_the_gradient_are_those_that_are_trained() {
        #[allow(clippy::single_range_in_vec_init, reason = "a list of ranges")]
        let trained = Some(vec![4..9]);
        let one = vec![("q".to_owned(), [trained.clone(), None], vec![2, 3])];
        assert_eq!(units(&[], trained.clone()), one);
        #[allow(clippy::single_range_in_vec_init, reason = "a list of ranges")]
        let parted = vec![
            (
                "k".to_owned(),
                [Some(vec![4..6]), Some(vec![0..2])],
                vec![2],
            ),
            (
                "v".to_owned(),
                [Some(vec![6..9]), Some(vec![2..5])],
                vec![3],
            ),
        ];
        assert_eq!(units(&[("v", 1.0)], trained), parted);
    }

    #[test]
    fn the_first_group_that_matches_counts() {
        let group = |pattern: &str, lr, weight_decay| ParamGroup {
            pattern: pattern.into(),
            lr,
            weight_decay,
        };
        let list = [
            group(r"layers\.0\.", Some(1e-5), Some(0.0)),
            group("layers", None, Some(0.5)),
        ];
        let groups = Groups::new(&list, 1e-4, 0.1);
        let rates = |name: &str| {
            let rates = groups.rates(name);
            ((rates.lr_factor * 1e6).round() / 1e6, rates.weight_decay)
        };
        assert_eq!(rates("model.layers.0.q.weight"), (0.1, 0.0));
        assert_eq!(rates("model.layers.10.q.weight"), (1.0, 0.5));
        assert_eq!(rates("norm.weight"), (1.0, 0.1));
        assert!(list[0].is_unused(["a", "layers.1"].into_iter()));
        assert!(!list[1].is_unused(["a", "layers.1"].into_iter()));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let group = |pattern: &str, lr, weight_decay| {
            let group = ParamGroup {
                pattern: pattern.into(),
                lr,
                weight_decay,
            };
            let problems = group.problems().into_iter();
            problems
                .map(|p| format!("{}: {}", p.place, p.message))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            group("layers", None, None),
            [": changes nothing: it has neither `lr` nor `weight_decay`"]
        );
        assert_eq!(
            group("layers", Some(0.0), Some(f64::NAN)),
            [
                "lr: must be above 0 and finite, found 0.0",
                "weight_decay: must be at least 0 and finite, found NaN"
            ]
        );
        let problems = group("layers.(", Some(1.0), None);
        assert!(
            problems[0].starts_with("pattern: \"layers.(\" is not a regular expression: "),
            "{problems:?}"
        );
    }
}
