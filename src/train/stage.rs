//! Stage specifications: all that recipes, plans, `inspect`, reports and exports need to know of a stage.

use super::checks::Checks;
use super::checks::settings::{check_data, check_generation, check_reward, check_training};
use super::config::{Cadence, DataConfig, Init, OptimConfig, Peft, SamplingConfig, Truncate};
use super::metric_names::{HELD_OUT, MetricNames};
use super::plan::{Planner, StagePlan};
use super::preview::Preview;
use super::session::{Outcome, Session};
use crate::data::{Row, RowKind, Tokenizer};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::reward::RewardConfig;
use crate::reward::judge::JudgeModel;
use crate::sizes;

/// The result of a stage that later stages can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageOutput {
    /// A language model: a whole one or adapters.
    Policy,
    /// A model with a score head.
    RewardModel,
    /// Rows of this kind, in `train.jsonl` and `valid.jsonl`.
    Rows(RowKind),
    /// A table for people to read.
    Table,
}

impl StageOutput {
    /// Its name with article, for messages.
    pub fn words(self) -> &'static str {
        match self {
            Self::Policy => "a policy",
            Self::RewardModel => "a reward model",
            Self::Rows(_) => "rows of data",
            Self::Table => "a table",
        }
    }
}

/// A data set that a stage reads.
#[derive(Debug, Clone, Copy)]
pub struct DataUse<'a> {
    /// Key below the stage.
    pub key: &'static str,
    /// Its configuration.
    pub config: &'a DataConfig,
    /// The kind of rows that the stage needs.
    pub kind: RowKind,
}

/// Models, data sets and reward sources that a stage reads.
#[derive(Debug, Clone, Default)]
pub struct StageInputs<'a> {
    /// Models by key; the first one decides the tokenizer.
    pub models: Vec<(String, &'a Init)>,
    /// Data sets; the stage iterates over the first one.
    pub data: Vec<DataUse<'a>>,
    /// Reward sources by key, for responses to the first data set; those whose key begins with `eval_`, to `eval_data`.
    pub rewards: Vec<(String, &'a RewardConfig)>,
    /// The stage's own judge, the value of `judge`, and whether it is asked by its chat template.
    pub judge: Option<(&'a JudgeModel, bool)>,
    /// A judge of pairs beside the stage's policies, the value of `judge.judge`, and whether it is asked by its chat template.
    pub pair_judge: Option<(&'a JudgeModel, bool)>,
    /// The learned reward that a value network starts from, with its key: its model must have the tokenizer of the first model.
    pub value_start: Option<(&'static str, &'a str)>,
    /// Whether all models must have the vocabulary of the first one, besides its tokenizer.
    pub same_vocabulary: bool,
    /// What a value network of its own trains.
    pub value_peft: Option<&'a Peft>,
}

impl<'a> StageInputs<'a> {
    /// Inputs with one model.
    pub(super) fn of(key: &str, init: &'a Init) -> Self {
        Self {
            models: vec![(key.to_owned(), init)],
            ..Self::default()
        }
    }

    /// Adds a data set, if there is one.
    pub(super) fn data(
        mut self,
        key: &'static str,
        config: impl Into<Option<&'a DataConfig>>,
        kind: RowKind,
    ) -> Self {
        let of = |config| DataUse { key, config, kind };
        self.data.extend(config.into().map(of));
        self
    }

    /// The data set to whose prompts the reward source at `key` scores responses.
    pub fn scored_by(&self, key: &str) -> Option<&DataUse<'a>> {
        let held_out = self.data.iter().find(|data| data.key == "eval_data");
        held_out
            .filter(|_| key.starts_with("eval_"))
            .or(self.data.first())
    }

    /// Adds a reward source, if there is one.
    pub(super) fn reward(mut self, key: &str, config: impl Into<Option<&'a RewardConfig>>) -> Self {
        let reward = config.into().map(|config| (key.to_owned(), config));
        self.rewards.extend(reward);
        self
    }
}

/// Settings of stages with an optimiser.
#[derive(Debug, Clone, Copy)]
pub struct TrainingSettings<'a> {
    /// Where the trained model comes from.
    pub init: &'a Init,
    /// Which weights are trained.
    pub peft: &'a Peft,
    /// The optimiser.
    pub optim: &'a OptimConfig,
    /// Passes over the data, for stages with epochs.
    pub epochs: Option<usize>,
    /// Steps in place of epochs.
    pub max_steps: Option<usize>,
    /// Rows per step.
    pub batch_size: usize,
    /// Most tokens of a forward pass.
    pub micro_batch_tokens: usize,
    /// Limit on whole rows in tokens, if there is one.
    pub max_length: Option<usize>,
    /// Whether the backward pass recomputes layers.
    pub gradient_checkpointing: bool,
    /// Evaluation and checkpoints.
    pub cadence: &'a Cadence,
}

/// Settings of stages that generate responses.
#[derive(Debug, Clone, Copy)]
pub struct GenerationSettings<'a> {
    /// Most tokens of a response.
    pub response_length: usize,
    /// Longest prompt in tokens.
    pub max_prompt_length: usize,
    /// Responses generated at once.
    pub generation_batch_size: usize,
    /// Sampling settings, where the stage has them.
    pub sampling: Option<&'a SamplingConfig>,
    /// A further token that ends a response.
    pub truncate: Option<&'a Truncate>,
}

/// A stage's configuration as a specification. Checks common to all stages are in [`Stage`](super::Stage); implementations add
/// their own.
pub trait StageSpec {
    /// Its output.
    const OUTPUT: StageOutput;

    /// The stage's name, unique in the recipe.
    fn name(&self) -> &str;

    /// The models, data sets and reward sources that it reads.
    fn inputs(&self) -> StageInputs<'_>;

    /// Its data sets, mutable.
    fn data_mut(&mut self) -> Vec<&mut DataConfig>;

    /// Training settings, for stages that train.
    fn training(&self) -> Option<TrainingSettings<'_>> {
        None
    }

    /// Names of the metrics that it logs with an evaluation, for stages that train.
    fn metrics(&self) -> MetricNames {
        MetricNames::default()
    }

    /// Generation settings, for stages that generate responses.
    fn generation(&self) -> Option<GenerationSettings<'_>> {
        None
    }

    /// Longest rows in tokens by key, for models with a table of positions.
    fn longest_rows(&self) -> Vec<(&'static str, usize)> {
        let training = self.training().and_then(|training| training.max_length);
        let training = training.map(|max_length| ("max_length", max_length));
        let generated = self.generation().map(|generation| {
            let response = generation.response_length;
            let longest = generation.max_prompt_length.saturating_add(response);
            ("response_length", longest)
        });
        training.into_iter().chain(generated).collect()
    }

    /// Whether the rows that it writes have scores, for stages that write rows.
    fn leaves_scores(&self) -> bool {
        true
    }

    /// Whether it compares responses by the scores that their rows have, where it could do so otherwise.
    fn compares_by_scores(&self) -> bool {
        false
    }

    /// The share of its rows that is held out, for stages that write rows.
    fn valid_fraction(&self) -> Option<f64> {
        None
    }

    /// Checks settings specific to the stage; `path` is the stage's key path.
    fn check(&self, checks: &mut Checks, path: &str);

    /// Counts rows, steps and tokens, and estimates memory.
    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan);

    /// Encodes rows of its first data set.
    ///
    /// # Errors
    /// Those of encoding.
    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview>;

    /// Runs the stage.
    ///
    /// # Errors
    /// Those of data, models and reward sources; `Error::NonFinite`; `Error::Interrupted`.
    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome>;
}

/// Defines [`Stage`](super::Stage) from the list of stages: one variant each, named as in recipes, and forwarding of the
/// [`StageSpec`] methods. These are the only `match`es over stages.
macro_rules! stages {
    ($($(#[$doc:meta])* $kind:ident($config:ty),)*) => {
        /// One stage of a recipe.
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub enum Stage {
            $($(#[$doc])* $kind(Box<$config>),)*
        }

        impl Stage {
            /// Every kind of stage, named as in recipes, with its output.
            pub const KINDS: &'static [(&'static str, StageOutput)] =
                &[$((stringify!($kind), <$config as StageSpec>::OUTPUT),)*];

            /// The name of the kind in recipes.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$kind(_) => stringify!($kind),)* }
            }

            /// Its output, for later stages.
            pub fn output(&self) -> StageOutput {
                match self { $(Self::$kind(_) => <$config as StageSpec>::OUTPUT,)* }
            }

            /// The stage's name.
            pub fn name(&self) -> &str {
                match self { $(Self::$kind(stage) => stage.name(),)* }
            }

            /// The models, data sets and reward sources that it reads.
            pub fn inputs(&self) -> StageInputs<'_> {
                match self { $(Self::$kind(stage) => stage.inputs(),)* }
            }

            /// Its data sets, mutable.
            pub fn data_mut(&mut self) -> Vec<&mut config::DataConfig> {
                match self { $(Self::$kind(stage) => stage.data_mut(),)* }
            }

            /// Training settings, for stages that train.
            pub fn training(&self) -> Option<TrainingSettings<'_>> {
                match self { $(Self::$kind(stage) => stage.training(),)* }
            }

            /// Names of the metrics that it logs with an evaluation, for stages that train.
            pub fn metrics(&self) -> MetricNames {
                match self { $(Self::$kind(stage) => stage.metrics(),)* }
            }

            /// Generation settings, for stages that generate responses.
            pub fn generation(&self) -> Option<GenerationSettings<'_>> {
                match self { $(Self::$kind(stage) => stage.generation(),)* }
            }

            /// Longest rows in tokens by key, for models with a table of positions.
            pub fn longest_rows(&self) -> Vec<(&'static str, usize)> {
                match self { $(Self::$kind(stage) => stage.longest_rows(),)* }
            }

            /// Whether the rows that it writes have scores, for stages that write rows.
            pub fn leaves_scores(&self) -> bool {
                match self { $(Self::$kind(stage) => stage.leaves_scores(),)* }
            }

            /// Whether it compares responses by the scores that their rows have, where it could do so otherwise.
            pub fn compares_by_scores(&self) -> bool {
                match self { $(Self::$kind(stage) => stage.compares_by_scores(),)* }
            }

            /// The share of its rows that is held out, for stages that write rows.
            pub fn valid_fraction(&self) -> Option<f64> {
                match self { $(Self::$kind(stage) => stage.valid_fraction(),)* }
            }

            /// Encodes rows of its first data set.
            ///
            /// # Errors
            /// Those of encoding.
            pub fn preview(
                &self,
                rows: &[crate::data::Row],
                tokenizer: &crate::data::Tokenizer,
            ) -> crate::error::Result<Preview> {
                match self { $(Self::$kind(stage) => stage.preview(rows, tokenizer),)* }
            }

            /// Runs the stage.
            ///
            /// # Errors
            /// Those of data, models and reward sources; `Error::NonFinite`; `Error::Interrupted`.
            pub fn run<B: crate::ops::ModelBackend>(
                &self,
                session: &mut Session<'_, B>,
            ) -> crate::error::Result<Outcome> {
                session.begin_lineage();
                match self { $(Self::$kind(stage) => stage.run(session),)* }
            }

            fn check_own(&self, checks: &mut checks::Checks, path: &str) {
                match self { $(Self::$kind(stage) => stage.check(checks, path),)* }
            }

            fn plan_own(&self, planner: &mut plan::Planner<'_>, plan: &mut plan::StagePlan) {
                match self { $(Self::$kind(stage) => stage.plan(planner, plan),)* }
            }
        }
    };
}
pub(super) use stages;

impl super::Stage {
    /// Checks all settings as far as possible without reading other files; `path` is the stage's key path.
    pub fn check(&self, checks: &mut Checks, path: &str) {
        let absurd = sizes::problems(self);
        if !absurd.is_empty() {
            // The other checks compute with these numbers.
            return checks.problems_below(path, absurd);
        }
        if let Some(training) = self.training() {
            check_training(checks, path, &training);
        }
        if let Some(generation) = self.generation() {
            check_generation(checks, path, &generation);
        }
        if let Some(fraction) = self.valid_fraction() {
            checks.below_one(path, "valid_fraction", fraction);
        }
        let inputs = self.inputs();
        self.check_keep_best(checks, path, &inputs);
        for data in &inputs.data {
            check_data(checks, &format!("{path}.{}", data.key), data);
        }
        for (key, reward) in &inputs.rewards {
            if let Some(scored) = inputs.scored_by(key) {
                check_reward(checks, &format!("{path}.{key}"), reward, scored.config);
            }
        }
        self.check_own(checks, path);
    }
    /// Checks that the stage has the metric by which it is to choose a checkpoint.
    fn check_keep_best(&self, checks: &mut Checks, path: &str, inputs: &StageInputs<'_>) {
        let training = self.training();
        let Some(keep) = training.and_then(|training| training.cadence.keep_best.as_ref()) else {
            return;
        };
        let (key, by) = (format!("{path}.cadence.keep_best.by"), &keep.by);
        let held_out = inputs.data.iter().any(|data| data.key == "eval_data");
        if by.starts_with(HELD_OUT) && !held_out {
            checks.problem(
                key,
                format!("`{by}` is of held-out rows, and the stage has no `eval_data`"),
            );
        } else if let Some((message, help)) = self.metrics().problem(by, held_out)
            && !by.is_empty()
        {
            checks.problem(key, message);
            if let Some(help) = help {
                checks.help(help);
            }
        }
    }
}
