//! The stage specification of Label.

use super::config::{loopback, one_annotator};
use super::{LabelConfig, Labeller};
use crate::data::{Row, RowKind, Tokenizer, encode_comparisons};
use crate::error::Result;
use crate::label::{Form, check_names};
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::checks::settings::check_comparisons;
use crate::train::config::DataConfig;
use crate::train::plan::{Planner, ScoredRows, StagePlan, num_pairs};
use crate::train::{Outcome, Preview, Session, StageInputs, StageOutput, StageSpec};

impl StageSpec for LabelConfig {
    const OUTPUT: StageOutput = StageOutput::Rows(RowKind::Preference);

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> StageInputs<'_> {
        StageInputs::default().data("data", &self.data, RowKind::Responses)
    }

    fn data_mut(&mut self) -> Vec<&mut DataConfig> {
        vec![&mut self.data]
    }

    fn compares_by_scores(&self) -> bool {
        self.by == Labeller::Scores
    }

    fn valid_fraction(&self) -> Option<f64> {
        Some(self.valid_fraction)
    }

    fn check(&self, checks: &mut Checks, path: &str) {
        checks.fraction(path, "overlap", self.overlap);
        for (key, count) in [("max_pairs", self.max_pairs), ("enough", self.enough)] {
            checks.must(
                format!("{path}.{key}"),
                count != Some(0),
                "at least 1, or `None` for all",
                0,
            );
        }
        if let Err(problem) = check_names(&self.annotators) {
            checks.problem(format!("{path}.annotators"), problem);
        }
        if let Some(problem) = self.form.problem() {
            checks.problem(format!("{path}.form"), problem);
        }
        if matches!(self.form, Form::Dialogue { .. }) {
            checks.problem(
                format!("{path}.form"),
                "stages write no dialogues of several turns",
            );
            checks.help("`temper label --form dialogue` judges those of a file");
        }
        if self.by == Labeller::Scores {
            for (key, is_set) in [
                ("form", self.form != Form::default()),
                ("annotators", self.annotators != one_annotator()),
                ("overlap", self.overlap != 0.0),
                ("host", self.host != loopback()),
                ("port", self.port != 0),
            ] {
                if is_set {
                    checks.problem(
                        format!("{path}.{key}"),
                        "has no effect: nobody is asked with `by: Scores`",
                    );
                    checks.help(format!("leave out `{key}`, or `by`"));
                    checks.depends_on(format!("{path}.by"));
                }
            }
        }
        if self.by == Labeller::People && !self.host.is_loopback() {
            checks.problem(
                format!("{path}.host"),
                format!(
                    "{} is reached by other machines, without encryption",
                    self.host
                ),
            );
            checks.help("leave out `host`, and let annotators come through a tunnel: `ssh -L PORT:127.0.0.1:PORT HOST`");
        }
        if self.data.format.take.is_some() {
            checks.problem(
                format!("{path}.data.format.take"),
                "has no effect: people are asked about all pairs of responses",
            );
            checks.help("`max_pairs` limits their number");
        }
        check_comparisons(checks, path, "a Label stage", self.inputs());
    }

    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan) {
        let data = planner.lengths("data", &self.data, RowKind::Responses, usize::MAX);
        let (least, most) = self.form.responses();
        let is_pairwise = matches!(self.form, Form::Pairwise { .. });
        let most = if is_pairwise { usize::MAX } else { most };
        planner.check_responses(&self.data, (least, most));
        let responses = planner.responses_of(&self.data).unwrap_or(2);
        let pairs = num_pairs(responses, self.max_pairs);
        plan.rows = data.rows;
        plan.steps = 1;
        let len = data.mean / responses.max(2) as f64;
        let held_out = self.valid_fraction;
        plan.leaves = Some(ScoredRows::of_pairs(data.rows, held_out, pairs, len));
    }

    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let encoded = encode_comparisons(rows, tokenizer, &self.data.format, usize::MAX)?;
        Ok(Preview::comparisons(encoded, |i, prompt, _| i >= prompt))
    }

    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        super::label(session, self)
    }
}
