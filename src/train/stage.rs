//! What a stage says of itself: everything that recipes, plans, `inspect`, reports and exports ask of it.

use super::checks::Checks;
use super::checks::settings::{check_data, check_generation, check_reward, check_training};
use super::config::{Cadence, DataConfig, Init, OptimConfig, Peft, SamplingConfig, Truncate};
use super::plan::{Planner, StagePlan};
use super::preview::Preview;
use super::session::{Outcome, Session};
use crate::data::{Row, RowKind, Tokenizer};
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::reward::RewardConfig;

/// What a stage leaves for later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gives {
    /// A language model: a whole one or adapters.
    Policy,
    /// A model with a score head.
    RewardModel,
    /// Rows of a kind, in `train.jsonl` and `valid.jsonl`.
    Rows(RowKind),
    /// Figures for people.
    Table,
}

impl Gives {
    /// With its article, as messages name it.
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
    /// What the recipe says of it.
    pub config: &'a DataConfig,
    /// What the stage needs of a row.
    pub rows: RowKind,
}

/// What a stage reads.
#[derive(Debug, Clone, Default)]
pub struct Reads<'a> {
    /// Models by key, the one that decides the tokenizer first.
    pub models: Vec<(String, &'a Init)>,
    /// Data sets, the one that the stage runs over first.
    pub data: Vec<DataUse<'a>>,
    /// Reward sources by key. They score responses to the first data set.
    pub rewards: Vec<(String, &'a RewardConfig)>,
    /// The learned reward that a value network starts from, by key: its model must have the first model's tokens.
    pub value_start: Option<(&'static str, &'a str)>,
}

impl<'a> Reads<'a> {
    /// A model and what is computed with it.
    pub(super) fn of(key: &str, init: &'a Init) -> Self {
        Self {
            models: vec![(key.to_owned(), init)],
            ..Self::default()
        }
    }

    /// And a data set, if there is one.
    pub(super) fn data(
        mut self,
        key: &'static str,
        config: impl Into<Option<&'a DataConfig>>,
        rows: RowKind,
    ) -> Self {
        let of = |config| DataUse { key, config, rows };
        self.data.extend(config.into().map(of));
        self
    }

    /// And a reward source, if there is one.
    pub(super) fn reward(mut self, key: &str, config: impl Into<Option<&'a RewardConfig>>) -> Self {
        let reward = config.into().map(|config| (key.to_owned(), config));
        self.rewards.extend(reward);
        self
    }
}

/// The settings that every stage with an optimiser has.
#[derive(Debug, Clone, Copy)]
pub struct TrainingSettings<'a> {
    /// Where the trained model comes from.
    pub init: &'a Init,
    /// Which weights are trained.
    pub peft: &'a Peft,
    /// The optimiser.
    pub optim: &'a OptimConfig,
    /// Passes over the data, if the stage goes by them.
    pub epochs: Option<usize>,
    /// Rows of a step.
    pub batch_size: usize,
    /// Tokens of a forward pass at most.
    pub micro_batch_tokens: usize,
    /// Longest row in tokens, if the stage has one limit for whole rows.
    pub max_length: Option<usize>,
    /// Whether the backward pass computes layers again.
    pub gradient_checkpointing: bool,
    /// Evaluation and checkpoints.
    pub cadence: &'a Cadence,
}

/// The settings that every stage which generates responses has.
#[derive(Debug, Clone, Copy)]
pub struct GenerationSettings<'a> {
    /// Tokens of a response at most.
    pub response_length: usize,
    /// Longest prompt in tokens.
    pub max_prompt_length: usize,
    /// Responses generated at once.
    pub generation_batch_size: usize,
    /// How they are sampled, where the recipe says so.
    pub sampling: Option<&'a SamplingConfig>,
    /// A token that ends a response beside EOS.
    pub truncate: Option<&'a Truncate>,
}

/// A stage's configuration, with all that others ask of it. What is common to stages is asked by [`Stage`](super::Stage) once; an
/// implementation says what is its own.
pub trait StageSpec {
    /// What it leaves.
    const GIVES: Gives;

    /// The stage's name, unique in the recipe.
    fn name(&self) -> &str;

    /// The models, data sets and reward sources that it reads.
    fn reads(&self) -> Reads<'_>;

    /// Its data sets, to be changed where they stand.
    fn data_mut(&mut self) -> Vec<&mut DataConfig>;

    /// What it trains, if it trains.
    fn training(&self) -> Option<TrainingSettings<'_>> {
        None
    }

    /// How it generates responses, if it does.
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

    /// Checks the settings that are its own; `path` is the stage's key path.
    fn check(&self, checks: &mut Checks, path: &str);

    /// Counts rows, steps and tokens, and estimates memory.
    fn plan(&self, planner: &mut Planner<'_>, plan: &mut StagePlan);

    /// The rows of its first data set as it reads them.
    ///
    /// # Errors
    /// Those of encoding.
    fn preview(&self, rows: &[Row], tokenizer: &Tokenizer) -> Result<Preview>;

    /// Runs it.
    ///
    /// # Errors
    /// Those of data, models and reward sources; `Error::NonFinite`; `Error::Interrupted`.
    fn run<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome>;
}

/// Defines [`Stage`](super::Stage) from the list of stages: a variant each, which a recipe names, and the calls of its
/// [`StageSpec`]. These are the only `match`es over stages.
macro_rules! stages {
    ($($(#[$doc:meta])* $kind:ident($config:ty),)*) => {
        /// One stage of a recipe.
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub enum Stage {
            $($(#[$doc])* $kind(Box<$config>),)*
        }

        impl Stage {
            /// Every kind of stage, as a recipe writes it, and what it leaves.
            pub const KINDS: &'static [(&'static str, Gives)] =
                &[$((stringify!($kind), <$config as StageSpec>::GIVES),)*];

            /// The kind's name, as a recipe writes it.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$kind(_) => stringify!($kind),)* }
            }

            /// What it leaves for later stages.
            pub fn gives(&self) -> Gives {
                match self { $(Self::$kind(_) => <$config as StageSpec>::GIVES,)* }
            }

            /// The stage's name.
            pub fn name(&self) -> &str {
                match self { $(Self::$kind(stage) => stage.name(),)* }
            }

            /// The models, data sets and reward sources that it reads.
            pub fn reads(&self) -> Reads<'_> {
                match self { $(Self::$kind(stage) => stage.reads(),)* }
            }

            /// Its data sets, to be changed where they stand.
            pub fn data_mut(&mut self) -> Vec<&mut config::DataConfig> {
                match self { $(Self::$kind(stage) => stage.data_mut(),)* }
            }

            /// What it trains, if it trains.
            pub fn training(&self) -> Option<TrainingSettings<'_>> {
                match self { $(Self::$kind(stage) => stage.training(),)* }
            }

            /// How it generates responses, if it does.
            pub fn generation(&self) -> Option<GenerationSettings<'_>> {
                match self { $(Self::$kind(stage) => stage.generation(),)* }
            }

            /// Longest rows in tokens by key, for models with a table of positions.
            pub fn longest_rows(&self) -> Vec<(&'static str, usize)> {
                match self { $(Self::$kind(stage) => stage.longest_rows(),)* }
            }

            /// The rows of its first data set as it reads them.
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

            /// Runs it.
            ///
            /// # Errors
            /// Those of data, models and reward sources; `Error::NonFinite`; `Error::Interrupted`.
            pub fn run<B: crate::ops::ModelBackend>(
                &self,
                session: &mut Session<'_, B>,
            ) -> crate::error::Result<Outcome> {
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
    /// Checks all settings that show a mistake without another file being looked at; `path` is the stage's key path.
    pub fn check(&self, checks: &mut Checks, path: &str) {
        if let Some(training) = self.training() {
            check_training(checks, path, &training);
        }
        if let Some(generation) = self.generation() {
            check_generation(checks, path, &generation);
        }
        let reads = self.reads();
        for data in &reads.data {
            check_data(checks, &format!("{path}.{}", data.key), data);
        }
        if let Some(scored) = reads.data.first() {
            for (key, reward) in &reads.rewards {
                check_reward(checks, &format!("{path}.{key}"), reward, scored.config);
            }
        }
        self.check_own(checks, path);
    }
}
