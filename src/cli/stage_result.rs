//! What a stage of a run has left: the folder with its model or adapter.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::peft::files::ADAPTER_CONFIG;
use crate::recipe;

/// The folder with a stage's result.
///
/// # Errors
/// `Error::Usage` if there is none.
pub(super) fn result_of(run: &Path, stage: &str) -> Result<PathBuf> {
    let folder = run.join(stage);
    if !folder.is_dir() {
        return Err(Error::Usage(format!(
            "--run {}: there is no stage {stage}{}",
            run.display(),
            expected(run)
        )));
    }
    result_in(&folder).ok_or_else(|| {
        Error::Usage(format!(
            "{}: no adapter/ and no model/; the stage has not finished, or is of a kind that trains nothing{}",
            folder.display(),
            expected(run)
        ))
    })
}

/// The result of the last stage of a run that has one, and the stage's name.
///
/// # Errors
/// `Error::Usage` if there is none.
pub(super) fn last_result_of(run: &Path) -> Result<(String, PathBuf)> {
    let last = stages_with_results(run).pop();
    let Some(stage) = last else {
        return Err(Error::Usage(format!(
            "--run {}: expected a run folder with a finished stage, found none with adapter/ or model/",
            run.display()
        )));
    };
    Ok((stage.clone(), result_of(run, &stage)?))
}

fn result_in(folder: &Path) -> Option<PathBuf> {
    let results = ["adapter", "model"].map(|name| folder.join(name));
    results
        .into_iter()
        .find(|path| path.join(ADAPTER_CONFIG).is_file() || path.join("config.json").is_file())
}

/// Stages with a result, in the order of the recipe, or of their names where the recipe cannot be read.
fn stages_with_results(run: &Path) -> Vec<String> {
    let stages: Vec<String> = match recipe::load(&run.join("recipe.ron"), &[]) {
        Ok(recipe) => recipe
            .stages
            .iter()
            .map(|stage| stage.name().to_owned())
            .collect(),
        Err(_) => {
            let entries = fs::read_dir(run).into_iter().flatten().flatten();
            let mut names: Vec<String> = entries
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        }
    };
    let has_result = |stage: &String| result_in(&run.join(stage)).is_some();
    stages.into_iter().filter(has_result).collect()
}

/// `; expected one of ..`, if any stage has a result.
fn expected(run: &Path) -> String {
    match stages_with_results(run).as_slice() {
        [] => String::new(),
        stages => format!("; expected one of {}", stages.join(", ")),
    }
}
