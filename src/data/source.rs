//! Where rows come from and how a row becomes text, as a recipe says it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::file::{self, RowReader};
use crate::data::{AssistantTurns, csv};
use crate::error::Result;

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum DataSource {
    /// One JSON object a line, or one JSON array of objects, gzipped or not, or parquet. Relative paths are taken from the working
    /// directory.
    Jsonl(PathBuf),
    /// A CSV file in UTF-8 whose first line names the columns; tabs separate the fields of `.tsv` files. Fields are text, but for
    /// the column `margin`.
    Csv(PathBuf),
    /// A JSONL, JSONL.gz or parquet file of a Hugging Face dataset repository.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Path in the repository.
        file: String,
        /// Branch, tag or commit.
        #[serde(default = "main_branch")]
        revision: String,
    },
    /// The embedded short posts with a planted point; any number of rows, the same ones for the same seed.
    Posts {
        /// Number of rows.
        rows: usize,
        /// Rows of different seeds are independent.
        seed: u64,
    },
    /// The rows that an earlier stage leaves, those for training.
    Stage(String),
    /// The rows that an earlier stage holds out.
    HeldOut(String),
    /// A set of the recipe's `data`, by its name.
    Data(String),
    /// `Stage` or `HeldOut` of a `Rank` stage, as older recipes write them.
    Ranked {
        /// The `Rank` stage.
        stage: String,
        /// Its held-out part instead of its training part.
        #[serde(default)]
        valid: bool,
    },
}

/// The rows that an earlier stage leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageRows<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// The held-out part instead of the training part.
    pub valid: bool,
}

impl StageRows<'_> {
    /// The file of the stage's folder that holds them.
    pub fn file(&self) -> &'static str {
        match self.valid {
            true => "valid.jsonl",
            false => "train.jsonl",
        }
    }
}

impl DataSource {
    /// The rows of an earlier stage, if that is what it names.
    pub fn stage(&self) -> Option<StageRows<'_>> {
        let (stage, valid) = match self {
            Self::Stage(stage) => (stage, false),
            Self::HeldOut(stage) => (stage, true),
            Self::Ranked { stage, valid } => (stage, *valid),
            _ => return None,
        };
        Some(StageRows { stage, valid })
    }

    /// The file on this machine, if it names one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Jsonl(path) | Self::Csv(path) => Some(path),
            _ => None,
        }
    }

    /// The file of this machine that the rows are read from, in a run in the folder `run_dir`: none for posts, and for files
    /// of the hub.
    pub fn local_file(&self, run_dir: &Path) -> Option<PathBuf> {
        let stage = self.stage();
        let of_stage = stage.map(|rows| run_dir.join(rows.stage).join(rows.file()));
        self.file().map(Path::to_path_buf).or(of_stage)
    }

    /// Opens `path`, the source's file.
    ///
    /// # Errors
    /// As [`file::open`] and [`csv::open`].
    pub(crate) fn open(&self, path: &Path) -> Result<RowReader> {
        match self {
            Self::Csv(_) => csv::open(path),
            _ => file::open(path),
        }
    }
}

fn main_branch() -> String {
    "main".into()
}

/// A data set of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Where rows come from.
    pub source: DataSource,
    /// How a row becomes prompt, completion, chosen and rejected text.
    #[serde(default)]
    pub format: RowFormat,
    /// Rows to leave out at the start.
    #[serde(default)]
    pub skip: usize,
    /// Rows to use at most, after `skip`.
    #[serde(default)]
    pub limit: Option<usize>,
}

/// How a row becomes text: jinja templates over its columns, e.g. `prompt: "{{ prompt[:900] }}\n\nTL;DR:"`.
///
/// An absent template takes the column of that name as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RowFormat {
    /// Text of a language-modelling row.
    pub text: Option<String>,
    /// Prompt text.
    pub prompt: Option<String>,
    /// Completion text.
    pub completion: Option<String>,
    /// Preferred response.
    pub chosen: Option<String>,
    /// Other response.
    pub rejected: Option<String>,
    /// Render string prompts as one user message through the tokenizer's chat template (message lists always are).
    pub chat: bool,
    /// System message put before a chat prompt.
    pub system: Option<String>,
    /// End completions with the EOS token (plain text rows; chat templates end their own turns).
    pub append_eos: bool,
    /// Variables for the chat template, e.g. `enable_thinking`; a row's column `chat_template_kwargs` goes before them.
    pub chat_template_kwargs: BTreeMap<String, Value>,
    /// Which of the assistant's turns of a conversation are trained on.
    pub assistant_turns: AssistantTurns,
    /// What is kept of a row that is longer than the stage's `max_length`.
    pub truncation_mode: TruncationMode,
    /// What is taken of the rows of a stage that scored several responses to each prompt.
    pub take: Option<Take>,
    /// Text column that is cut at its last line break, again and again, until a row that is too long fits; where no break
    /// is left, between characters. As the query of openai/summarize-from-feedback, whose column is `post`.
    pub shorten: Option<String>,
}

/// What is kept of a row that is too long, in TRL's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncationMode {
    /// Its first tokens. A row whose prompt fills the limit is left out.
    #[default]
    KeepStart,
    /// Its last tokens (deprecated in TRL 1.16).
    KeepEnd,
}

impl Default for RowFormat {
    fn default() -> Self {
        Self {
            text: None,
            prompt: None,
            completion: None,
            chosen: None,
            rejected: None,
            chat: false,
            system: None,
            append_eos: true,
            chat_template_kwargs: BTreeMap::new(),
            assistant_turns: AssistantTurns::All,
            truncation_mode: TruncationMode::KeepStart,
            shorten: None,
            take: None,
        }
    }
}

/// What is taken of a prompt's scored responses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Take {
    /// All of them: to learn each, or as comparisons every pair whose scores differ (the default of comparisons).
    All,
    /// The response with the highest score, to be learned (the default where responses are learned): best of K, as rejection
    /// sampling (Touvron et al. 2023, arXiv:2307.09288, section 3.2.3).
    Best,
    /// The responses with a score above this one, to be learned: ReST's improve step (Gulcehre et al. 2023, arXiv:2308.08998,
    /// section 3). A prompt may have none.
    Above(f64),
    /// The response with the highest score against the one with the lowest.
    BestAndWorst,
}

impl DataConfig {
    /// The set that this use of `named` stands for: its source and format, and its part of the rows unless the use says another.
    pub fn of_named(&self, named: &Self) -> Self {
        Self {
            source: named.source.clone(),
            format: named.format.clone(),
            skip: match self.skip {
                0 => named.skip,
                skip => skip,
            },
            limit: self.limit.or(named.limit),
        }
    }
}
