//! `temper inspect`.

use std::io::IsTerminal;
use std::path::PathBuf;

use super::args::InspectArgs;
use super::{layers, output};
use crate::data::inspect::render;
use crate::data::{DataConfig, DataContext, Tokenizer, read_rows};
use crate::error::{Error, Result};
use crate::model::{Fetch, Finder, ModelSource};
use crate::recipe::{self, Recipe};
use crate::terminal::escaped;
use crate::train::config::Init;
use crate::train::{Preview, Stage};

/// Rows of a data set that are encoded at most: of a large one the first.
const MOST_ROWS: usize = 10_000;

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
