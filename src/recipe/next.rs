//! What to do after a run.

use std::path::Path;

use super::Recipe;
use super::report::DONE;
use crate::error::Result;
use crate::model::ModelSource;
use crate::peft::AdapterConfig;
use crate::report::StageRecord;
use crate::train::Stage;

/// What to do next with the run of `recipe` in `run`, each with a label: commands that work as they stand, or advice where a stage
/// diverged. Empty while a process works on it (`in_use`) and stages are left, and if no stage has left a model.
///
/// # Errors
/// When the record of a stage cannot be read.
pub fn steps_after(recipe: &Recipe, run: &Path, in_use: bool) -> Result<Vec<(String, String)>> {
    let step = |label: &str, text: String| (label.to_owned(), text);
    let folder = shell_word(&run.display().to_string());
    let names: Vec<&str> = recipe.stages.iter().map(Stage::name).collect();
    let mut diverged = Vec::new();
    for &name in &names {
        let record = StageRecord::read(&run.join(name))?;
        diverged.extend(record.filter(|record| record.diverged).map(|_| name));
    }
    if !diverged.is_empty() {
        let text = format!(
            "lower the learning rate of {}, and run again",
            diverged.join(", ")
        );
        return Ok(vec![step("Next", text)]);
    }
    let is_done = |name: &&str| run.join(name).join(DONE).exists();
    let all_done = names.iter().all(is_done);
    if in_use && !all_done {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    if !all_done {
        let file = shell_word(&run.join("recipe.ron").display().to_string());
        let command = format!("temper recipe {file} --output {folder} --resume");
        steps.push(step("Continue", command));
    }
    let left_model = |name: &&str| {
        let left = ["model", "adapter"].map(|kind| run.join(name).join(kind));
        is_done(name) && left.iter().any(|path| path.exists())
    };
    if let Some(name) = names.iter().copied().rev().find(left_model) {
        let from = format!("--run {folder} --stage {name}");
        steps.extend(try_it(recipe, &run.join(name), &from).map(|text| step("Try", text)));
        let merge = match merges(&run.join(name)) {
            true => " --merge",
            false => "",
        };
        let command = format!("temper export {from} --to exported/{name}{merge}");
        steps.push(step("Next", command));
    }
    Ok(steps)
}

/// The command that has the stage's policy say something; none for a reward model.
fn try_it(recipe: &Recipe, stage: &Path, from: &str) -> Option<String> {
    let source = ModelSource::of_stage(stage, recipe.model.as_deref()).ok()??;
    if source.score_head().ok()?.is_some() {
        return None;
    }
    Some(match source.tokenizer().ok()?.has_chat() {
        true => format!("temper chat {from}"),
        false => format!("temper generate {from} --prompt \"..\""),
    })
}

/// Whether the stage in `folder` left an adapter that can be merged.
fn merges(folder: &Path) -> bool {
    AdapterConfig::load(folder.join("adapter"))
        .is_ok_and(|(config, _)| config.spec.check_mergeable().is_ok())
}

/// A word of a command line, in quotes where a shell would take it apart.
pub fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:=+,@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn a_shell_reads_words_as_they_are() {
        let words = ["runs/a-1", "runs/a b", "a&b", "it's", ""].map(shell_word);
        assert_eq!(
            words,
            ["runs/a-1", "'runs/a b'", "'a&b'", r"'it'\''s'", "''"]
        );
    }
}
