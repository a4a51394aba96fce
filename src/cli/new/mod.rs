//! `temper new`: a recipe for a model and a data set, with values that fit both and this machine.

mod lengths;
mod text;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use self::lengths::{Lengths, measure};
use self::text::{Fit, Layout, Wish, recipe_text};
use super::args::ComputeArgs;
use super::output;
use crate::atomic::write_atomic;
use crate::backend;
use crate::data::{DataConfig, DataContext, DataSource, Row, Tokenizer, read_rows};
use crate::device::DeviceMemory;
use crate::error::{Error, Result};
use crate::model::{Fetch, Finder};
use crate::recipe::{self, RunOptions};
use crate::terminal;

/// Rows that lengths are taken from.
const SAMPLE: usize = 2_000;

/// Different prompts that a set has at least if some are held out: of fewer, a twentieth may be none.
const FEWEST_PROMPTS: usize = 100;

/// What the recipe is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NewKind {
    /// Supervised fine-tuning on prompts with completions, or on conversations
    Sft,
    /// Direct preference optimisation on chosen and rejected responses
    Dpo,
    /// Kahneman-Tversky optimisation on completions with a label, true or false
    Kto,
    /// A reward model from chosen and rejected responses
    Reward,
    /// SFT, a reward model on --preferences, PPO against it, and a comparison of both policies
    Pipeline,
}

/// `temper new`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper new sft --model smollm2-135m --data support.csv --output support.ron
  temper new dpo --model runs/support/sft/model --data preferences.jsonl
  temper new kto --model runs/support/sft/model --data thumbs.jsonl
  temper new pipeline --model smollm2-135m --data support.csv --preferences judged.jsonl

The recipe is checked as `temper recipe .. --dry-run` does before it is written.")]
pub struct NewArgs {
    /// What to train
    #[arg(value_name = "KIND", value_enum)]
    pub kind: NewKind,
    /// The model, as `--model` of other commands
    #[arg(long, value_name = "DIR|NAME")]
    pub model: String,
    /// A file, folder or pattern: CSV, TSV, JSONL, JSON, parquet or text
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Of a pipeline: chosen and rejected responses for the reward model
    #[arg(long, value_name = "FILE", required_if_eq("kind", "pipeline"))]
    pub preferences: Option<PathBuf>,
    /// The recipe to write [default: the data's name and the kind, with `.ron`]
    #[arg(long, value_name = "FILE.ron")]
    pub output: Option<PathBuf>,
    /// Memory that the run may take, e.g. 24GiB, instead of the device's free memory
    #[arg(long, value_name = "SIZE", value_parser = super::size::bytes)]
    pub device_memory: Option<u64>,
}

/// Writes the recipe and says what to do with it.
///
/// # Errors
/// `Error::Usage` if the file exists or nothing fits into memory; those of the model and of the rows.
pub(super) fn run(args: &NewArgs, compute: &ComputeArgs) -> Result<()> {
    let name = name_of(args);
    let file = args
        .output
        .clone()
        .unwrap_or_else(|| format!("{name}.ron").into());
    if file.exists() {
        return Err(Error::Usage(format!(
            "--output {}: exists already; name another file",
            file.display()
        )));
    }
    output::check(&file)?;
    let source = Finder::new(Fetch::Check).find(&args.model)?;
    for note in &source.notes {
        terminal::say(&format!("note: {note}"));
    }
    let tokenizer = source.tokenizer()?;
    let most = source.max_row_tokens()?;
    let layout = |path: &Path, kind: NewKind| -> Result<Layout> {
        let rows = sample(path)?;
        let chat = tokenizer.has_chat() && has_plain_text(&rows);
        let lengths = lengths_of(&rows, kind, chat, &tokenizer, most)?;
        Ok(Layout {
            path: path.to_path_buf(),
            chat,
            lengths,
            holds_out: prompts(&rows) >= FEWEST_PROMPTS,
        })
    };
    let first = match args.kind {
        NewKind::Pipeline => NewKind::Sft,
        kind => kind,
    };
    let wish = Wish {
        kind: args.kind,
        name: &name,
        model: &args.model,
        data: layout(&args.data, first)?,
        preferences: (args.preferences.as_deref())
            .map(|path| layout(path, NewKind::Reward))
            .transpose()?,
        file: &file,
    };
    let memory = match args.device_memory {
        Some(bytes) => DeviceMemory::Override(bytes),
        None => backend::memory(compute.backend, compute.device),
    };
    let (text, plan) = fitted(&wish, &memory)?;
    write_atomic(&file, text.as_bytes())?;
    let shown = file.display();
    output::print(&format!(
        "{shown}: checked\n\n{plan}\nNext: temper inspect {shown}               the first rows as the model sees them\n      \
         temper recipe {shown}                run it; --resume goes on after a stop\n"
    ))
}

/// The text of the first fit that memory allows, and its plan.
fn fitted(wish: &Wish<'_>, memory: &DeviceMemory) -> Result<(String, String)> {
    let options = RunOptions {
        fetch: false,
        // Whether a plan fits is asked below, for one text after the other.
        memory: DeviceMemory::Override(u64::MAX),
        ..RunOptions::default()
    };
    let mut problems = Vec::new();
    for fit in Fit::in_order() {
        let text = recipe_text(wish, fit);
        let checked = recipe::check(recipe::load_text(wish.file, &text, &[])?, &options)?;
        problems = recipe::check_fits(&checked.plans, memory);
        if problems.is_empty() {
            for notice in &checked.notices {
                terminal::say(notice);
            }
            for warning in &checked.warnings {
                terminal::say(&format!("warning: {warning}"));
            }
            return Ok((text, recipe::table(&checked.plans, None)));
        }
    }
    Err(Error::Invalid {
        path: wish.file.to_path_buf(),
        problems,
    })
}

fn name_of(args: &NewArgs) -> String {
    let stem = args
        .data
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let stem = stem.unwrap_or_default();
    let stem = stem.split('.').next().unwrap_or_default();
    let plain: String = (stem.chars())
        .map(|c| {
            if c.is_alphanumeric() || c == '-' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let plain = plain.trim_matches('-');
    let kind = args.kind.to_possible_value();
    let kind = kind.as_ref().map_or("run", |kind| kind.get_name());
    match plain {
        "" => kind.to_owned(),
        plain => format!("{plain}-{kind}"),
    }
}

/// The first rows of a data set.
fn sample(path: &Path) -> Result<Vec<Row>> {
    let config = DataConfig {
        limit: Some(SAMPLE),
        ..DataConfig::of(DataSource::File(path.to_path_buf()))
    };
    read_rows(&config, &DataContext::default())
}

/// Different prompts of rows, which stay together when some are held out.
fn prompts(rows: &[Row]) -> usize {
    let prompt = |row: &Row| match row.columns.get("prompt") {
        Some(prompt) => prompt.to_string(),
        None => serde_json::Value::from(row.columns.clone()).to_string(),
    };
    rows.iter().map(prompt).collect::<HashSet<String>>().len()
}

/// Whether rows hold texts in place of messages.
fn has_plain_text(rows: &[Row]) -> bool {
    let is_text = |name: &str| {
        rows[0]
            .columns
            .get(name)
            .is_some_and(serde_json::Value::is_string)
    };
    is_text("prompt") || is_text("chosen")
}

fn lengths_of(
    rows: &[Row],
    kind: NewKind,
    chat: bool,
    tokenizer: &Tokenizer,
    most: usize,
) -> Result<Lengths> {
    // Rows of another kind than was asked for are a mistake in the command.
    let lengths = measure(rows, kind, chat, tokenizer)
        .map_err(|error| Error::Usage(format!("--data {error}")))?;
    Ok(lengths.capped(most))
}
