//! The stage specification of RewardModel.

use super::RewardModelConfig;
use crate::data::{Ratings, Row, RowKind, Tokenizer, encode_all, encode_comparisons};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::checks::settings::check_comparisons;
use crate::train::config::{DataConfig, RewardLoss};
use crate::train::plan::{PAIR, Planner, StagePlan};
use crate::train::{
    MetricNames, Outcome, Preview, Session, StageInputs, StageOutput, StageSpec, TrainingSettings,
};

impl StageSpec for RewardModelConfig {
    const OUTPUT: StageOutput = StageOutput::RewardModel;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::of("init", &self.init)
            .data("data", &self.data, self.row_kind())
            .data("eval_data", self.eval_data.as_ref(), self.row_kind())
            .data("center_on", self.center_on.as_ref(), RowKind::Completion)
    }

    fn data_mut(&mut self) -> Vec<&mut DataConfig> {
        std::iter::once(&mut self.data)
            .chain(&mut self.eval_data)
            .chain(&mut self.center_on)
            .collect()
    }

    fn training(&self) -> Option<TrainingSettings<'_>> {
        Some(self.preference_keys().training())
    }

    fn metrics(&self) -> MetricNames {
        let names = MetricNames::of_steps(&[])
            .with_both(&["loss"])
            .with(&["eval/score_std"]);
        if self.loss_type == RewardLoss::Regression {
            return names.with(&["eval/mae", "eval/correlation"]);
        }
        let of_pairs = [
            "eval/calibration_error",
            "eval/length_correlation",
            "eval/accuracy_shorter",
            "eval/accuracy_longer",
            "eval/gold_agreement",
        ];
        let of_safety = [
            "eval/safety_accuracy",
            "eval/unsafe_precision",
            "eval/unsafe_recall",
        ];
        let names = (names.with_both(&["accuracy"]).with(&of_pairs))
            .with_if(self.safety_coef.is_some(), &of_safety);
        (self.accuracy_by.iter()).fold(names, |names, column| {
            names.with_beginning(format!("eval/accuracy/{column}="))
        })
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        check_comparisons(checks, path, "a reward model", self.inputs());
        self.check_loss(checks, path);
        if self.standardize && self.center_on.is_none() {
            checks.problem(
                format!("{path}.standardize"),
                "needs `center_on`: the responses whose scores are to have variance 1",
            );
        }
        if !self.accuracy_by.is_empty() && self.eval_data.is_none() {
            checks.problem(
                format!("{path}.accuracy_by"),
                "needs `eval_data`: accuracy is reported by group on held-out comparisons",
            );
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let data = planner.lengths("data", &self.data, self.row_kind(), self.max_length);
        self.plan_written(planner);
        self.plan_labels(planner, plan);
        if let Some(training) = self.training() {
            planner.train(plan, &training, &data, usize::MAX, false);
            let kind = self.row_kind();
            planner.held_out(plan, &training, self.eval_data.as_ref(), kind);
            if let Some(references) = &self.center_on {
                let kind = RowKind::Completion;
                let lengths = planner.quietly(references, kind, self.max_length);
                let rows = planner.found(references, kind);
                let rows = rows.and_then(|found| found.num_rows);
                if self.standardize && (rows == Some(1) || references.limit == Some(1)) {
                    planner.problem(
                        "standardize",
                        "divides by the standard deviation of the scores of `center_on`, which is one row",
                    );
                }
                let passes = 1 + u64::from(self.standardize) * 2;
                plan.work.evaluate(passes, lengths.passed_tokens());
            }
        }
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let (format, max_length) = (&self.data.format, self.max_length);
        let encoded = match self.row_kind() {
            RowKind::Rated => encode_all(&Ratings { max_length }, rows, tokenizer, format)?,
            _ => encode_comparisons(rows, tokenizer, format, max_length)?,
        };
        // The loss reads the score at the last token.
        Ok(Preview::comparisons(encoded, |i, _, len| i + 1 == len))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::reward_model(session, self)
    }
}

/// What is wrong with the numbers of responses labelled as safe and as unsafe.
pub(super) fn safety_problem([safe, unsafe_]: [usize; 2]) -> Option<String> {
    match (safe, unsafe_) {
        (0, 0) => Some(
            "no row of the data has a column `chosen_safe` or `rejected_safe` (true or false): leave it out, or add the columns"
                .to_owned(),
        ),
        (all, 0) => Some(format!(
            "all {all} labels say safe: a classification needs responses of both classes"
        )),
        (0, all) => Some(format!(
            "all {all} labels say unsafe: a classification needs responses of both classes"
        )),
        _ => None,
    }
}

impl RewardModelConfig {
    /// The kind of rows that the loss needs.
    fn row_kind(&self) -> RowKind {
        match self.loss_type {
            RewardLoss::Regression => RowKind::Rated,
            RewardLoss::BradleyTerry | RewardLoss::BestOfK => RowKind::Preference,
        }
    }

    /// Checks that settings go with the loss.
    fn check_loss(&self, checks: &mut Checks, path: &str) {
        let is_pairwise = self.loss_type == RewardLoss::BradleyTerry;
        for (key, is_set, what) in [
            ("use_margin", self.use_margin, "margins"),
            ("soft_labels", self.soft_labels, "probabilities of pairs"),
        ] {
            if is_set && !is_pairwise {
                checks.problem(
                    format!("{path}.{key}"),
                    format!("only the loss `bradley_terry` knows {what}"),
                );
                checks.depends_on(format!("{path}.loss_type"));
            }
        }
        self.check_grades(checks, path);
        if self.use_margin && self.soft_labels {
            checks.problem(
                format!("{path}.soft_labels"),
                "a pair has a margin or a probability, not both: leave out `use_margin` or `soft_labels`",
            );
            checks.depends_on(format!("{path}.use_margin"));
        }
        for (key, coef) in [
            (
                "center_rewards_coefficient",
                self.center_rewards_coefficient,
            ),
            ("safety_coef", self.safety_coef),
        ] {
            let Some(coef) = coef else { continue };
            checks.above_zero(path, key, coef);
            if self.loss_type == RewardLoss::Regression {
                checks.problem(
                    format!("{path}.{key}"),
                    "is of comparisons, and `loss_type: regression` has none",
                );
                checks.depends_on(format!("{path}.loss_type"));
            }
        }
        let Some(_) = self.center_on else { return };
        if self.loss_type == RewardLoss::Regression {
            checks.problem(
                format!("{path}.center_on"),
                "shifts the scores, which `loss_type: regression` trains to equal the ratings",
            );
            checks.depends_on(format!("{path}.loss_type"));
        }
        if self.safety_coef.is_some() {
            checks.problem(
                format!("{path}.center_on"),
                "shifts the scores, which `safety_coef` trains to be logits of the probability of being safe",
            );
            checks.depends_on(format!("{path}.safety_coef"));
        }
    }

    /// Reports what the rows that earlier stages write lack.
    fn plan_written(&self, planner: &mut Planner<'_>) {
        let written = planner.written(&self.data);
        if written.is_empty() || self.row_kind() == RowKind::Rated {
            return;
        }
        planner.check_responses(&self.data, PAIR);
        if self.soft_labels && !written.iter().any(|rows| rows.judged) {
            planner.problem(
                "soft_labels",
                "the rows of `data` have scores and no `chosen_probability`, which the stages Judge and Label write: leave out `soft_labels`",
            );
        }
        if self.safety_coef.is_some() {
            planner.problem(
                "safety_coef",
                "no stage writes rows with `chosen_safe` or `rejected_safe`: leave it out, or read a file that has these columns",
            );
        }
    }

    /// Reports labels that are missing where they are used, and those that are there and not used.
    fn plan_labels(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let Some(found) = planner.found(&self.data, self.row_kind()) else {
            return;
        };
        let Some(rows) = found.num_rows else { return };
        if self.row_kind() == RowKind::Rated {
            if let Some((low, high)) = found.ratings
                && low == high
                && found.num_scored == 0
            {
                planner.problem(
                    "data",
                    format!("all {rows} ratings are {low}: nothing can be learned from them"),
                );
            }
            return;
        }
        let (num_safe, scored) = (found.num_safe, found.num_scored);
        let labels = num_safe[0] + num_safe[1];
        let responses = 2 * (rows - scored);
        self.plan_probabilities(planner, plan);
        match self.safety_coef {
            Some(_) => match safety_problem(num_safe) {
                Some(message) => planner.problem("safety_coef", message),
                None if labels < responses => plan.warnings.push((
                    "safety_coef",
                    format!(
                        "{} of {responses} responses have no safety label and are left out of the classification",
                        responses - labels
                    ),
                )),
                None => {}
            },
            None if labels > 0 => plan.warnings.push((
                "data",
                format!("{labels} responses have a safety label, which is not used without `safety_coef`"),
            )),
            None => {}
        }
        self.plan_margins(planner, plan);
    }

    /// Reports missing probabilities if they are used, and unused ones if there are any.
    fn plan_probabilities(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let Some(found) = planner.found(&self.data, RowKind::Preference) else {
            return;
        };
        let Some(rows) = found.num_rows else { return };
        let with = found.num_probabilities;
        if !self.soft_labels {
            if with > 0 {
                let message = format!(
                    "{with} of {rows} rows have a `chosen_probability`, which is not used without `soft_labels: true`"
                );
                plan.warnings.push(("data", message));
            }
        } else if with == 0 {
            planner.problem(
                "soft_labels",
                "no row of the data has a column `chosen_probability`: leave out `soft_labels`, or name the column by `format: (chosen_probability: \"{{ .. }}\")`",
            );
        } else if with < rows {
            let message = format!(
                "{} of {rows} rows have no `chosen_probability`; theirs is taken as 1",
                rows - with
            );
            plan.warnings.push(("soft_labels", message));
        }
    }

    /// Checks that grades of margins are a rising step function.
    fn check_grades(&self, checks: &mut Checks, path: &str) {
        let place = format!("{path}.margin_grades");
        let grades = &self.margin_grades;
        if !grades.is_empty() && !self.use_margin {
            checks.problem(&place, "only has an effect with `use_margin: true`");
            checks.depends_on(format!("{path}.use_margin"));
        }
        let are_known = (grades.iter()).all(|(from, grade)| {
            *from >= 0.0 && *grade >= 0.0 && from.is_finite() && grade.is_finite()
        });
        let rise = grades
            .windows(2)
            .all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1);
        checks.must(
            &place,
            are_known && rise,
            "pairs of a margin and its grade, both of at least 0 and rising, such as [(0.1, 1.0), (0.5, 2.0)]",
            grades,
        );
    }

    /// Reports missing margins if they are used, and unused margins if there are any.
    fn plan_margins(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let Some(found) = planner.found(&self.data, RowKind::Preference) else {
            return;
        };
        let Some(rows) = found.num_rows else { return };
        let (margins, with) = (found.num_margins, found.num_margins + found.num_scored);
        if !self.use_margin {
            if margins > 0 {
                let message = format!(
                    "{margins} of {rows} rows have a `margin`, which is not used without `use_margin: true`"
                );
                plan.warnings.push(("data", message));
            }
        } else if with == 0 {
            planner.problem(
                "use_margin",
                "no row of the data has a column `margin`: leave out `use_margin`, or add the column",
            );
        } else if with < rows {
            let message = format!(
                "{} of {rows} rows have no `margin`; theirs is taken as 0",
                rows - with
            );
            plan.warnings.push(("use_margin", message));
        }
    }
}
