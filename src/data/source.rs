//! The data keys of a recipe: sources of rows, and the format that maps a row to text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::AssistantTurns;
use crate::data::file::{self, RowReader};
use crate::error::Result;

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum DataSource {
    /// A file, a folder, or a pattern with `*`, `?`, `[..]` and `**`. The format is told by the first bytes, or else by the name: JSONL,
    /// one JSON array of objects, parquet, CSV, TSV or plain text, optionally gzipped. Relative paths start at the working directory.
    File(PathBuf),
    /// JSONL or one JSON array of objects, optionally gzipped, or parquet. Relative paths start at the working directory.
    Jsonl(PathBuf),
    /// A CSV file in UTF-8 whose first line names the columns. Fields are separated by tabs in `.tsv` files, otherwise by the one of
    /// `,`, `;`, `|` and tab that the first line has most of. They are text, except `margin`, `chosen_probability`, `rating`, `chosen_safe` and
    /// `rejected_safe`, which are numbers.
    Csv(PathBuf),
    /// A dataset repository of the Hugging Face hub: the files of a split, or one file. `Hub("owner/name")` is its split `train`.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Path of one file in the repository, instead of a split.
        #[serde(default)]
        file: Option<String>,
        /// The configuration, where the repository has several.
        #[serde(default)]
        config: Option<String>,
        /// The split, `train` if absent, and its rows: `train[:1000]`, `test[10:20]`.
        #[serde(default)]
        split: Option<String>,
        /// Branch, tag or commit.
        #[serde(default = "main_branch")]
        revision: String,
    },
    /// The embedded short posts; any number of rows, determined by the seed.
    Posts {
        /// Number of rows.
        rows: usize,
        /// Rows of different seeds are independent.
        seed: u64,
    },
    /// Several data sets with weights: of each as many rows as its share of all weights, so that the first one to end is used whole.
    /// The rows are spread evenly over their set and over the mixture, which depends on nothing but the sets.
    Mix(Vec<(f64, DataConfig)>),
    /// The training rows that an earlier stage writes.
    Stage(String),
    /// The training rows of several earlier stages, one after the other: the samples of all rounds so far.
    Stages(Vec<String>),
    /// The held-out rows of several earlier stages, one after the other.
    HeldOutStages(Vec<String>),
    /// The held-out rows that an earlier stage writes, or those of a named data set with a `valid_fraction`.
    HeldOut(String),
    /// A named data set of the recipe's `data`.
    Data(String),
    /// Older spelling of `Stage` and `HeldOut`.
    Ranked {
        /// The `Rank` stage.
        stage: String,
        /// Its held-out part instead of its training part.
        #[serde(default)]
        valid: bool,
    },
}

/// Rows that an earlier stage writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageRows<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// The held-out part instead of the training part.
    pub valid: bool,
}

impl StageRows<'_> {
    /// Their file in the stage's folder.
    pub fn file(&self) -> &'static str {
        match self.valid {
            true => "valid.jsonl",
            false => "train.jsonl",
        }
    }
}

impl DataSource {
    /// The rows of earlier stages, for a source that names one or several; empty for another one.
    pub fn stages(&self) -> Vec<StageRows<'_>> {
        let (stages, valid) = match self {
            Self::Stage(stage) => (std::slice::from_ref(stage), false),
            Self::HeldOut(stage) => (std::slice::from_ref(stage), true),
            Self::Ranked { stage, valid } => (std::slice::from_ref(stage), *valid),
            Self::Stages(stages) => (stages.as_slice(), false),
            Self::HeldOutStages(stages) => (stages.as_slice(), true),
            Self::Mix(parts) => {
                let of_parts = parts.iter().flat_map(|(_, part)| part.source.stages());
                return of_parts.collect();
            }
            _ => (&[][..], false),
        };
        let rows = |stage| StageRows { stage, valid };
        stages.iter().map(|stage| rows(stage.as_str())).collect()
    }

    /// Whether the rows are those of earlier stages.
    pub fn is_of_stages(&self) -> bool {
        matches!(
            self,
            Self::Stage(_)
                | Self::HeldOut(_)
                | Self::Ranked { .. }
                | Self::Stages(_)
                | Self::HeldOutStages(_)
        )
    }

    /// The source in a few words: a path, a repository with its split, "4000 made-up posts".
    pub fn words(&self) -> String {
        match self {
            Self::File(path) | Self::Jsonl(path) | Self::Csv(path) => path.display().to_string(),
            Self::Hub {
                repo, file, split, ..
            } => {
                let part = file.as_deref().or(split.as_deref()).unwrap_or("train");
                format!("{repo}, {part}")
            }
            Self::Posts { rows, .. } => format!("{rows} made-up posts"),
            Self::Mix(parts) => {
                let parts: Vec<String> = (parts.iter())
                    .map(|(weight, part)| format!("{weight} of {}", part.source.words()))
                    .collect();
                parts.join(" + ")
            }
            Self::Stage(stage)
            | Self::Ranked {
                stage,
                valid: false,
            } => {
                format!("rows of {stage}")
            }
            Self::HeldOut(name) | Self::Ranked { stage: name, .. } => {
                format!("held-out rows of {name}")
            }
            Self::Stages(stages) => format!("rows of {}", stages.join(", ")),
            Self::HeldOutStages(stages) => format!("held-out rows of {}", stages.join(", ")),
            Self::Data(name) => name.clone(),
        }
    }

    /// The local file, folder or pattern, for a source that names one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Jsonl(path) | Self::Csv(path) => Some(path),
            _ => None,
        }
    }

    /// The local files, folder or pattern that a run in `run_dir` reads; empty for posts and for files of the hub.
    pub fn local_files(&self, run_dir: &Path) -> Vec<PathBuf> {
        let stages = self.stages();
        let of_stages = stages
            .iter()
            .map(|rows| run_dir.join(rows.stage).join(rows.file()));
        let own = self.file().map(Path::to_path_buf);
        own.into_iter().chain(of_stages).collect()
    }

    /// The files of `path`, the source's file, folder or pattern, in the order in which they are read.
    ///
    /// # Errors
    /// As [`file::files`].
    pub(crate) fn files(&self, path: &Path) -> Result<Vec<PathBuf>> {
        match self {
            Self::File(_) => file::files(path),
            _ => Ok(vec![path.to_path_buf()]),
        }
    }

    /// Opens one of the source's files.
    ///
    /// # Errors
    /// As [`file::open`].
    pub(crate) fn open(&self, path: &Path, format: &RowFormat) -> Result<RowReader> {
        match self {
            Self::File(_) | Self::Hub { .. } => file::open(path, format),
            Self::Csv(_) => file::open_csv(path),
            _ => file::open_json(path),
        }
    }
}

fn main_branch() -> String {
    "main".into()
}

/// A part of a data set that is divided by its `valid_fraction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Part {
    /// The rows to train on.
    #[default]
    Train,
    /// The rows that are held out.
    HeldOut,
}

/// A data set of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The source of the rows.
    pub source: DataSource,
    /// How a row becomes prompt, completion, chosen and rejected text.
    #[serde(default)]
    pub format: RowFormat,
    /// Share of the rows that is held out. Which rows these are depends on their contents alone; rows with the same `prompt` stay
    /// together.
    #[serde(default)]
    pub valid_fraction: f64,
    /// Which rows are used, if some are held out.
    #[serde(default)]
    pub part: Part,
    /// Number of rows to skip at the start.
    #[serde(default)]
    pub skip: usize,
    /// Most rows to use, after `skip`.
    #[serde(default)]
    pub limit: Option<usize>,
}

impl DataConfig {
    /// All rows of `source`, with the default format.
    pub fn of(source: DataSource) -> Self {
        Self {
            source,
            format: RowFormat::default(),
            valid_fraction: 0.0,
            part: Part::Train,
            skip: 0,
            limit: None,
        }
    }
}

/// How a row becomes text: jinja templates over its columns, e.g. `prompt: "{{ prompt[:900] }}\n\nTL;DR:"`.
///
/// Without a template, the column of that name is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RowFormat {
    /// The layout of the rows, such as `sharegpt`, instead of the one that their columns show; `columns` takes the columns as they are
    /// named.
    pub shape: Option<String>,
    /// How plain text is divided into rows.
    pub sample_by: SampleBy,
    /// Text of a language-modelling row.
    pub text: Option<String>,
    /// Prompt text.
    pub prompt: Option<String>,
    /// Completion text.
    pub completion: Option<String>,
    /// Chosen response.
    pub chosen: Option<String>,
    /// Rejected response.
    pub rejected: Option<String>,
    /// Probability that the chosen response is the better one, from 0 to 1.
    pub chosen_probability: Option<String>,
    /// Rating of a completion, a number.
    pub rating: Option<String>,
    /// Render text prompts as one user message by the chat template (message lists always are).
    pub chat: bool,
    /// System message prepended to chat prompts.
    pub system: Option<String>,
    /// Append the EOS token to completions (plain text rows; chat templates end their own turns).
    pub append_eos: bool,
    /// Variables for the chat template, e.g. `enable_thinking`; a row's column `chat_template_kwargs` overrides them.
    pub chat_template_kwargs: BTreeMap<String, Value>,
    /// Which of the assistant's turns of a conversation are trained on.
    pub assistant_turns: AssistantTurns,
    /// Which tokens of a row longer than the stage's `max_length` are kept.
    pub truncation_mode: TruncationMode,
    /// Selection among the scored responses to a prompt.
    pub take: Option<Take>,
    /// Text column of rows that are too long: it is cut at its last line break until the row fits, and between characters where no
    /// break is left. As in openai/summarize-from-feedback, whose column is `post`.
    pub shorten: Option<String>,
}

/// Rows of plain text files, by the names of Hugging Face datasets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SampleBy {
    /// A row for each line that is not blank.
    #[default]
    Line,
    /// A row for each block of lines between blank lines.
    Paragraph,
    /// One row for the whole file.
    Document,
}

/// Truncation of rows that are too long, by TRL's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncationMode {
    /// Keep the first tokens. A row whose prompt fills the limit is left out.
    #[default]
    KeepStart,
    /// Keep the last tokens (deprecated in TRL 1.16).
    KeepEnd,
}

impl Default for RowFormat {
    fn default() -> Self {
        Self {
            shape: None,
            sample_by: SampleBy::Line,
            text: None,
            prompt: None,
            completion: None,
            chosen: None,
            rejected: None,
            chosen_probability: None,
            rating: None,
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

/// Selection among the scored responses to a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Take {
    /// All: each is trained on, or as comparisons every pair whose scores differ (the default for comparisons).
    All,
    /// Train on the response with the highest score (the default for fine-tuning): best of K, as in rejection sampling (Touvron et
    /// al. 2023, arXiv:2307.09288, section 3.2.3).
    Best,
    /// Train on the responses with a score above this one: ReST's improve step (Gulcehre et al. 2023, arXiv:2308.08998, section 3). A
    /// prompt may have none.
    Above(f64),
    /// Train on this share of a prompt's responses, those with the highest scores, and on one at least: ReST's percentile per source
    /// (appendix A.7).
    TopFraction(f64),
    /// The response with the highest score against the one with the lowest.
    BestAndWorst,
}

impl RowFormat {
    /// The template of each column that has one.
    pub fn templates(&self) -> [(&'static str, Option<&String>); 7] {
        [
            ("text", self.text.as_ref()),
            ("prompt", self.prompt.as_ref()),
            ("completion", self.completion.as_ref()),
            ("chosen", self.chosen.as_ref()),
            ("rejected", self.rejected.as_ref()),
            ("chosen_probability", self.chosen_probability.as_ref()),
            ("rating", self.rating.as_ref()),
        ]
    }

    /// The format with the keys alone that say which column is which.
    pub fn columns_only(&self) -> Self {
        Self {
            shape: self.shape.clone(),
            sample_by: self.sample_by,
            text: self.text.clone(),
            prompt: self.prompt.clone(),
            completion: self.completion.clone(),
            chosen: self.chosen.clone(),
            rejected: self.rejected.clone(),
            chosen_probability: self.chosen_probability.clone(),
            rating: self.rating.clone(),
            ..Self::default()
        }
    }

    /// Whether a column has a template.
    pub fn has_templates(&self) -> bool {
        (self.templates().iter()).any(|(_, template)| template.is_some())
    }
}

impl DataConfig {
    /// Resolves a use of the data set `named`: its source and format, with this use's `skip`, `limit` and `valid_fraction` where given.
    /// A use as `HeldOut` is of the held-out part.
    pub fn of_named(&self, named: &Self) -> Self {
        Self {
            source: named.source.clone(),
            format: named.format.clone(),
            valid_fraction: match self.valid_fraction {
                0.0 => named.valid_fraction,
                fraction => fraction,
            },
            part: match self.source {
                DataSource::HeldOut(_) => Part::HeldOut,
                _ => self.part,
            },
            skip: match self.skip {
                0 => named.skip,
                skip => skip,
            },
            limit: self.limit.or(named.limit),
        }
    }
}
