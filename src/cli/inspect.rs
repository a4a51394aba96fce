//! `temper inspect`.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;

use super::args::positive;
use super::{layers, output};
use crate::data::inspect::render;
use crate::data::{DataConfig, DataContext, Tokenizer, read_rows};
use crate::error::{Error, Result};
use crate::model::{Fetch, Finder, ModelSource};
use crate::peft::Peft;
use crate::recipe::{self, Recipe};
use crate::terminal::escaped;
use crate::train::config::Init;
use crate::train::{Preview, Stage};

/// Rows of a data set that are encoded at most: of a large one the first.
const MOST_ROWS: usize = 10_000;

/// `temper inspect`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper inspect --model smollm2-135m                                    the tree of its layers
  temper inspect --model smollm2-135m --peft 'Only([\"layers.-1\", \"norm\"])'   and what that would train
  temper inspect recipes/quickstart.ron --stage sft
  temper inspect recipes/smollm2.ron --stage rm --rows 10")]
pub struct InspectArgs {
    /// The recipe
    #[arg(value_name = "RECIPE", required_unless_present = "model")]
    pub recipe: Option<PathBuf>,
    /// A model whose layers are shown in place of a recipe's rows
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["recipe", "stage", "rows"])]
    pub model: Option<String>,
    /// What would be trained of the model, as a recipe's `peft` says it, e.g. `Lora(rank: 16)`
    #[arg(long, value_name = "PEFT", requires = "model", value_parser = recipe::read_peft)]
    pub peft: Option<Peft>,
    /// The stage whose rows are shown [default: the first one with data]
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
    /// Rows to show
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = positive)]
    pub rows: usize,
}

/// Prints the layers of a model, or encoded rows of a stage's data with their trained tokens, and counts of the
/// first ten thousand.
///
/// # Errors
/// Those of the recipe, the tokenizer and the data.
pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let path = match (&args.model, &args.recipe) {
        (Some(model), _) => return layers::run(model, args.peft.as_ref()),
        (None, Some(path)) => path,
        (None, None) => return Err(Error::Usage("expected a recipe or --model".into())),
    };
    let recipe = recipe::load(path, &[])?;
    let stage = match &args.stage {
        Some(name) => find(&recipe, name)?,
        None => recipe
            .stages
            .first()
            .ok_or_else(|| Error::Usage(format!("{}: the recipe has no stages", path.display())))?,
    };
    let mut tokenizer = tokenizer(&recipe, stage)?;
    (tokenizer, _) = tokenizer.with_added_tokens(&recipe.add_tokens)?;
    if let Some(text) = &recipe.eos_token {
        tokenizer = tokenizer.with_eos_token(text)?;
    }
    let run_dir = recipe
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from("runs").join(&recipe.name));
    let data = (stage.inputs().data.first().map(|data| data.config))
        .ok_or_else(|| Error::Usage(format!("stage {}: it reads no data", stage.name())))?;
    let context = DataContext {
        run_dir,
        ..DataContext::default()
    };
    let most = MOST_ROWS.max(args.rows);
    let first = DataConfig {
        limit: Some(data.limit.map_or(most, |limit| limit.min(most))),
        ..data.clone()
    };
    let rows = read_rows(&first, &context)?;
    let preview = stage.preview(&rows, &tokenizer)?;
    let color = std::io::stdout().is_terminal();
    // Tokens are shown without control characters.
    output::print_coloured(&format!(
        "stage {}: {}{} rows\n\n{}",
        escaped(stage.name()),
        if rows.len() == most { "the first " } else { "" },
        rows.len(),
        show(&preview, args.rows, &tokenizer, color)
    ))
}

fn find<'a>(recipe: &'a Recipe, name: &str) -> Result<&'a Stage> {
    recipe
        .stages
        .iter()
        .find(|stage| stage.name() == name)
        .ok_or_else(|| {
            let names: Vec<&str> = recipe.stages.iter().map(Stage::name).collect();
            Error::Usage(format!(
                "--stage {name}: expected one of {}",
                names.join(", ")
            ))
        })
}

/// The tokenizer of a stage: that of the model at the start of its chain of stages.
fn tokenizer(recipe: &Recipe, stage: &Stage) -> Result<Tokenizer> {
    let mut init = init(stage);
    // The chain ends, since validation refuses references to later stages.
    while let Init::Stage(name) = init {
        init = self::init(find(recipe, name)?);
    }
    let model = recipe.model.as_deref();
    let finder = Finder::new(Fetch::Check);
    match init {
        Init::Folder(path) => finder.at(path, model)?.tokenizer(),
        Init::Random(path) => Ok(ModelSource::blank(path)?.1),
        Init::Base | Init::Stage(_) => {
            let model = model.ok_or_else(|| {
                Error::Usage(format!("stage {}: the recipe names no model", stage.name()))
            })?;
            finder.find(model)?.tokenizer()
        }
    }
}

/// The model that determines the stage's tokenizer.
fn init(stage: &Stage) -> &Init {
    let inputs = stage.inputs();
    let judge = inputs.judge.and_then(|(judge, _)| judge.model());
    let first = inputs.models.first().map(|(_, init)| *init);
    first.or(judge).unwrap_or(&Init::Base)
}

/// The first rows of a stage's data, token by token.
fn show(preview: &Preview, rows: usize, tokenizer: &Tokenizer, color: bool) -> String {
    let mut text = String::new();
    for (at, row) in preview.rows.iter().take(rows).enumerate() {
        text.push_str(&format!("row {}\n", at + 1));
        for sequence in row {
            if let Some(title) = &sequence.title {
                text.push_str(&format!("{title}\n"));
            }
            let (ids, marked) = (&sequence.ids, &sequence.marked);
            text.push_str(&render(ids, marked, sequence.prompt_len, tokenizer, color));
            text.push('\n');
        }
    }
    let report = preview.report.to_string();
    text.push_str(match report.is_empty() {
        true => "all rows kept",
        false => &report,
    });
    for warning in preview.report.warnings() {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    text.push('\n');
    text
}
