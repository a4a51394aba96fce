//! The stage specification of all methods that learn a policy from comparisons or labelled responses.

use super::PreferenceKeys;
use crate::data::{Row, RowKind, Tokenizer, encode_comparisons};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::checks::settings::check_comparisons;
use crate::train::config::Init;
use crate::train::plan::{FLOAT, Lengths, PAIR, Planner, StagePlan};
use crate::train::{MetricNames, Outcome, Preview, Session, StageInputs};

/// How a loss reads the reference's log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::train) enum ReferencePasses {
    /// There is no reference.
    None,
    /// On every step.
    PerStep,
    /// Once over all rows, before training.
    Precomputed,
}

impl ReferencePasses {
    /// Those of a loss with a reference.
    pub(in crate::train) fn of(precompute_ref_log_probs: bool) -> Self {
        match precompute_ref_log_probs {
            true => Self::Precomputed,
            false => Self::PerStep,
        }
    }
}

/// A method of learning from preferences: all that its stage needs beside the common keys.
pub(in crate::train) trait PreferenceMethod {
    /// The kind of rows.
    const KIND: RowKind = RowKind::Preference;
    /// The method in messages.
    const TITLE: &'static str;
    /// Whether the loss reads the log-probabilities of prompts, too.
    const READS_PROMPTS: bool = false;

    /// The keys common to all of them.
    fn keys(&self) -> PreferenceKeys<'_>;

    /// How it reads the reference.
    fn reference(&self) -> ReferencePasses;

    /// Strength of the preference term, above 0.
    fn beta(&self) -> f64;

    /// Names of the metrics that it logs.
    fn metrics(&self) -> MetricNames;

    /// Checks its own settings; `path` is the stage's key path.
    fn check_own(&self, checks: &mut Checks, path: &str);

    /// Looks at the rows of the plan's data, and may correct their number.
    fn plan_rows(&self, _planner: &mut Planner<'_>, _plan: &mut StagePlan, _data: &mut Lengths) {}

    /// Forward passes beside those of policy and reference, as a multiple of the trained tokens.
    fn further_passes(&self) -> f64 {
        0.0
    }

    /// Numbers of the reference that are stored beside one for each token of the data.
    fn further_numbers(&self, _plan: &StagePlan) -> u64 {
        0
    }

    /// What `inspect` shows of its rows.
    ///
    /// # Errors
    /// Those of the rows.
    fn preview_rows(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview> {
        let keys = self.keys();
        let encoded = encode_comparisons(rows, tokenizer, &keys.data.format, keys.max_length)?;
        Ok(Preview::comparisons(
            encoded,
            |i, prompt_len, _| match Self::READS_PROMPTS {
                true => i > 0,
                false => i >= prompt_len,
            },
        ))
    }

    /// Trains.
    ///
    /// # Errors
    /// Those of its loop.
    fn train<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome>;
}

/// Models and data that a method reads.
pub(in crate::train) fn inputs<M: PreferenceMethod>(method: &M) -> StageInputs<'_> {
    let keys = method.keys();
    StageInputs::of("init", keys.init)
        .data("data", keys.data, M::KIND)
        .data("eval_data", keys.eval_data, M::KIND)
}

/// Checks the settings of a method; `path` is the stage's key path.
pub(in crate::train) fn check<M: PreferenceMethod>(method: &M, checks: &mut Checks, path: &str) {
    let keys = method.keys();
    check_comparisons(checks, path, M::TITLE, inputs(method));
    let has_reference = method.reference() != ReferencePasses::None;
    if has_reference {
        check_reference(checks, path, keys.init);
    }
    checks.must(
        format!("{path}.peft.dropout"),
        keys.peft.dropout() == 0.0,
        match has_reference {
            true => "0: policy and reference would differ before the first step",
            false => "0: the margins of the loss are taken without dropout",
        },
        keys.peft.dropout(),
    );
    checks.above_zero(path, "beta", method.beta());
    method.check_own(checks, path);
}

/// Checks that the policy before training can be a reference.
pub(in crate::train) fn check_reference(checks: &mut Checks, path: &str, init: &Init) {
    if matches!(init, Init::Random(_)) {
        checks.problem(
            format!("{path}.init"),
            "a randomly initialised policy cannot be a reference",
        );
        checks.help("start from an `Sft` stage, e.g. `init: Stage(\"sft\")`");
    }
}

/// Fills in the plan of a method.
pub(in crate::train) fn plan<M: PreferenceMethod>(
    method: &M,
    planner: &mut Planner<'_>,
    plan: &mut StagePlan,
) {
    let (keys, passes) = (method.keys(), method.reference());
    planner.check_responses(keys.data, PAIR);
    let mut data = planner.lengths("data", keys.data, M::KIND, keys.max_length);
    method.plan_rows(planner, plan, &mut data);
    let training = keys.training();
    planner.train(plan, &training, &data, usize::MAX, true);
    plan.work.forward += match passes {
        ReferencePasses::None => 0.0,
        ReferencePasses::PerStep => plan.work.trained,
        ReferencePasses::Precomputed => data.passed_tokens(),
    };
    plan.work.forward += method.further_passes() * plan.work.trained;
    let models = 1 + usize::from(passes != ReferencePasses::None);
    for _ in 0..models {
        planner.held_out(plan, &training, keys.eval_data, M::KIND);
    }
    let reference = match (keys.peft.trains_base(), passes) {
        (_, ReferencePasses::None) => 0,
        // One number per token of the data.
        (_, ReferencePasses::Precomputed) => {
            (data.rows as f64 * data.mean) as u64 + method.further_numbers(plan)
        }
        // The base is shared; adapters of `init` are not.
        (false, ReferencePasses::PerStep) if *keys.init == Init::Base => 0,
        (_, ReferencePasses::PerStep) => plan.shape.trainable_params,
    };
    if reference > 0 {
        plan.memory.push(("reference".into(), FLOAT * reference));
    }
}

/// Implements [`StageSpec`](crate::train::StageSpec) for the configuration of a [`PreferenceMethod`].
macro_rules! preference_stage {
    ($name:ty) => {
        impl $crate::train::StageSpec for $name {
            const OUTPUT: $crate::train::StageOutput = $crate::train::StageOutput::Policy;

            fn name(&self) -> &str {
                &self.name
            }

            fn inputs(&self) -> $crate::train::StageInputs<'_> {
                $crate::train::preference::inputs(self)
            }

            fn data_mut(&mut self) -> Vec<&mut $crate::train::config::DataConfig> {
                std::iter::once(&mut self.data)
                    .chain(&mut self.eval_data)
                    .collect()
            }

            fn training(&self) -> Option<$crate::train::TrainingSettings<'_>> {
                Some(self.preference_keys().training())
            }

            fn metrics(&self) -> $crate::train::MetricNames {
                $crate::train::preference::PreferenceMethod::metrics(self)
            }

            fn check(&self, checks: &mut $crate::train::checks::Checks, path: &str) {
                $crate::train::preference::check(self, checks, path);
            }

            fn plan(
                &self,
                planner: &mut $crate::train::plan::Planner<'_>,
                plan: &mut $crate::train::plan::StagePlan,
            ) {
                $crate::train::preference::plan(self, planner, plan);
            }

            fn preview(
                &self,
                rows: &[$crate::data::Row],
                tokenizer: &$crate::data::Tokenizer,
            ) -> $crate::error::Result<$crate::train::Preview> {
                $crate::train::preference::PreferenceMethod::preview_rows(self, rows, tokenizer)
            }

            fn run<B: $crate::ops::ModelBackend>(
                &self,
                session: &mut $crate::train::Session<'_, B>,
            ) -> $crate::error::Result<$crate::train::Outcome> {
                $crate::train::preference::PreferenceMethod::train(self, session)
            }
        }
    };
}
pub(in crate::train) use preference_stage;
