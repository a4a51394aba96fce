//! `temper inspect`.

use std::io::IsTerminal;
use std::path::PathBuf;

use super::args::InspectArgs;
use super::output;
use crate::data::inspect::render;
use crate::data::{
    Comparisons, DataConfig, DataContext, EncodeReport, Tokenizer, encode_comparisons,
    encode_completions, encode_prompts, encode_text, read_rows,
};
use crate::error::{Error, Result};
use crate::model::ModelSource;
use crate::recipe::{self, Recipe, Stage};
use crate::train::config::Init;

/// Prints rows of a stage's data as the stage sees them: what is trained on, and what became of all rows.
///
/// # Errors
/// Those of the recipe, the tokenizer and the data.
pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let recipe = recipe::load(&args.recipe, &[])?;
    let stage = match &args.stage {
        Some(name) => find(&recipe, name)?,
        None => recipe.stages.first().ok_or_else(|| {
            Error::Usage(format!(
                "{}: the recipe has no stages",
                args.recipe.display()
            ))
        })?,
    };
    let tokenizer = tokenizer(&recipe, stage)?;
    let run_dir = recipe
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from("runs").join(&recipe.name));
    let rows = read_rows(
        data(stage),
        &DataContext {
            run_dir,
            cache_dir: None,
        },
    )?;
    let view = View {
        tokenizer: &tokenizer,
        color: std::io::stdout().is_terminal(),
        rows: args.rows,
    };
    let mut text = format!("stage {}: {} rows\n\n", stage.name(), rows.len());
    text.push_str(&view.show(stage, &rows)?);
    output::print(&text)
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

fn data(stage: &Stage) -> &DataConfig {
    match stage {
        Stage::Pretrain(c) => &c.data,
        Stage::Sft(c) => &c.data,
        Stage::Rank(c) => &c.data,
        Stage::RewardModel(c) => &c.data,
        Stage::Dpo(c) => &c.data,
        Stage::Ppo(c) => &c.data,
        Stage::Compare(c) => &c.data,
    }
}

/// The tokenizer that a stage uses: that of the model at the start of its chain of stages.
fn tokenizer(recipe: &Recipe, stage: &Stage) -> Result<Tokenizer> {
    let mut init = init(stage);
    // Validation has refused stages that name later ones, so that the chain ends.
    while let Init::Stage(name) = init {
        init = self::init(find(recipe, name)?);
    }
    let model = recipe.model.as_deref();
    match init {
        Init::Folder(path) => ModelSource::at(path, model)?.tokenizer(),
        Init::Random(path) => Ok(ModelSource::blank(path)?.1),
        Init::Base | Init::Stage(_) => {
            let model = model.ok_or_else(|| {
                Error::Usage(format!("stage {}: the recipe names no model", stage.name()))
            })?;
            ModelSource::find(model)?.tokenizer()
        }
    }
}

fn init(stage: &Stage) -> &Init {
    match stage {
        Stage::Pretrain(c) => &c.init,
        Stage::Sft(c) => &c.init,
        Stage::Rank(c) => &c.init,
        Stage::RewardModel(c) => &c.init,
        Stage::Dpo(c) => &c.init,
        Stage::Ppo(c) => &c.init,
        Stage::Compare(c) => c.policies.first().unwrap_or(&Init::Base),
    }
}

/// How rows are shown.
struct View<'a> {
    tokenizer: &'a Tokenizer,
    color: bool,
    rows: usize,
}

impl View<'_> {
    fn show(&self, stage: &Stage, rows: &[crate::data::Row]) -> Result<String> {
        let format = &data(stage).format;
        let (mut text, report) = match stage {
            Stage::Pretrain(c) => {
                let encoded = encode_text(rows, self.tokenizer, format, c.max_length)?;
                (self.examples(&encoded.items), encoded.report)
            }
            Stage::Sft(c) => {
                let encoded = encode_completions(
                    rows,
                    self.tokenizer,
                    format,
                    c.max_length,
                    c.completion_only_loss,
                )?;
                (self.examples(&encoded.items), encoded.report)
            }
            Stage::RewardModel(c) => {
                let encoded = encode_comparisons(rows, self.tokenizer, format, c.max_length)?;
                // The score is read at the last token.
                let text = self.comparisons(&encoded.items, |i, _, len| i + 1 == len);
                (text, encoded.report)
            }
            Stage::Dpo(c) => {
                let encoded = encode_comparisons(rows, self.tokenizer, format, c.max_length)?;
                // Log-probabilities are taken of all tokens after the prompt.
                let text = self.comparisons(&encoded.items, |i, prompt_len, _| i >= prompt_len);
                (text, encoded.report)
            }
            Stage::Rank(c) => self.prompts(rows, format, c.max_prompt_length)?,
            Stage::Ppo(c) => self.prompts(rows, format, c.max_prompt_length)?,
            Stage::Compare(c) => self.prompts(rows, format, c.max_prompt_length)?,
        };
        let report = report.to_string();
        text.push_str(if report.is_empty() {
            "all rows kept"
        } else {
            &report
        });
        text.push('\n');
        Ok(text)
    }

    fn examples(&self, items: &[crate::data::Example]) -> String {
        let shown = items.iter().take(self.rows).enumerate();
        shown
            .map(|(at, item)| {
                format!(
                    "row {}\n{}",
                    at + 1,
                    self.row(&item.ids, &item.trained, item.prompt_len)
                )
            })
            .collect()
    }

    /// Responses by prompt; `counts` says of a token, by position, prompt length and length, whether it is read.
    fn comparisons(
        &self,
        items: &[Comparisons],
        counts: impl Fn(usize, usize, usize) -> bool,
    ) -> String {
        let mut text = String::new();
        for (at, item) in items.iter().take(self.rows).enumerate() {
            text.push_str(&format!("row {}\n", at + 1));
            for (index, ids) in item.responses.iter().enumerate() {
                let marked: Vec<bool> = (0..ids.len())
                    .map(|i| counts(i, item.prompt_len, ids.len()))
                    .collect();
                let better = item.pairs.iter().filter(|pair| pair.0 == index).count();
                let worse = item.pairs.iter().filter(|pair| pair.1 == index).count();
                text.push_str(&format!(
                    "response {}: chosen {better}, rejected {worse} times\n",
                    index + 1
                ));
                text.push_str(&self.row(ids, &marked, item.prompt_len));
            }
        }
        text
    }

    fn prompts(
        &self,
        rows: &[crate::data::Row],
        format: &crate::data::RowFormat,
        max_length: usize,
    ) -> Result<(String, EncodeReport)> {
        let encoded = encode_prompts(rows, self.tokenizer, format, max_length)?;
        let shown = encoded.items.iter().take(self.rows).enumerate();
        let text = shown
            .map(|(at, item)| {
                let trained = vec![false; item.ids.len()];
                format!(
                    "row {}\n{}",
                    at + 1,
                    self.row(&item.ids, &trained, item.ids.len())
                )
            })
            .collect();
        Ok((text, encoded.report))
    }

    fn row(&self, ids: &[u32], trained: &[bool], prompt_len: usize) -> String {
        format!(
            "{}\n",
            render(ids, trained, prompt_len, self.tokenizer, self.color)
        )
    }
}
