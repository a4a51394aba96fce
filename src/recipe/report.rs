//! The report of a run, from its folder and its recipe.

use std::path::{Path, PathBuf};

use super::references::flows;
use super::write::dialect;
use super::{Recipe, load, steps_after, to_ron};
use crate::checkpoint::run_dir::read_info;
use crate::checkpoint::{FileHash, ModelRole, RunInfo};
use crate::error::{Error, Result};
use crate::report::{
    FlowSource, RunReport, StageLogs, StageRecord, StageSection, StageState, duration, grouped,
};
use crate::train::Stage;

/// Marker file of a finished stage; holds the stage's summary.
pub(super) const DONE: &str = "DONE";

/// The recipe of the run in `folder`.
///
/// # Errors
/// `Error::Usage` if it holds no run; those of [`load`].
pub fn find_run(folder: &Path) -> Result<Recipe> {
    let name = folder.display();
    let file = |folder: &Path| folder.join("recipe.ron");
    if file(folder).is_file() {
        return load(&file(folder), &[]);
    }
    let found = match folder.parent() {
        _ if !folder.exists() => "there is no such folder".to_owned(),
        _ if !folder.is_dir() => "this is a file".to_owned(),
        Some(run) if file(run).is_file() => {
            let run = match run.as_os_str().is_empty() {
                true => Path::new("."),
                false => run,
            };
            format!(
                "this is the folder of a stage; its run is {}",
                run.display()
            )
        }
        _ => "there is no recipe.ron in it".to_owned(),
    };
    Err(Error::Usage(format!(
        "{name}: expected the folder of a run, which `temper recipe` writes (runs/NAME); {found}"
    )))
}

/// The report of the run of `recipe` in `run`. `in_use`: whether a process works on it.
///
/// # Errors
/// When a file of the run cannot be read.
pub fn run_report(recipe: &Recipe, run: &Path, in_use: bool) -> Result<RunReport> {
    let stages: Vec<StageSection> = (recipe.stages.iter())
        .map(|stage| section(recipe, stage, run, in_use))
        .collect::<Result<_>>()?;
    // A run that was killed at once has none.
    let info = match run.join("run.json").exists() {
        true => read_info(run)?,
        false => RunInfo::default(),
    };
    Ok(RunReport {
        title: recipe.name.clone(),
        status: status(&stages),
        model: recipe.model.clone(),
        facts: facts(recipe, &info, &stages),
        next: steps_after(recipe, run, in_use)?,
        recipe: to_ron(recipe),
        stages,
    })
}

fn section(recipe: &Recipe, stage: &Stage, run: &Path, in_use: bool) -> Result<StageSection> {
    let folder = run.join(stage.name());
    let record = StageRecord::read(&folder)?;
    let state = match (folder.join(DONE).exists(), &record) {
        (true, _) => StageState::Done,
        (false, None) => StageState::Waiting,
        (false, Some(_)) if in_use => StageState::Running,
        (false, Some(_)) => StageState::Stopped,
    };
    let logs = match state {
        // Those of an earlier attempt.
        StageState::Waiting => StageLogs::default(),
        _ => StageLogs::read(&folder)?,
    };
    let index = |name: &str| recipe.stages.iter().position(|stage| stage.name() == name);
    let flow = |(from, what): (Option<String>, &'static str)| match from {
        None => Some((FlowSource::Base, what)),
        Some(name) => Some((FlowSource::Stage(index(&name)?), what)),
    };
    Ok(StageSection {
        name: stage.name().to_owned(),
        kind: stage.kind().to_owned(),
        state,
        flows: flows(stage).into_iter().filter_map(flow).collect(),
        settings: settings(stage),
        record: record.unwrap_or_default(),
        logs,
    })
}

/// The data and the settings that matter most; the page has the whole recipe too.
fn settings(stage: &Stage) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut set = |name: &str, value: String| found.push((name.to_owned(), value));
    for data in stage.inputs().data {
        set(data.key, data.config.source.words());
    }
    if let Some(training) = stage.training() {
        set("peft", ron(training.peft));
        set("lr", training.optim.lr.to_string());
        set("schedule", ron(&training.optim.schedule));
        set("batch_size", training.batch_size.to_string());
        match (training.max_steps, training.epochs) {
            (Some(steps), _) => set("max_steps", steps.to_string()),
            (None, Some(epochs)) => set("epochs", epochs.to_string()),
            (None, None) => {}
        }
        if let Some(length) = training.max_length {
            set("max_length", length.to_string());
        }
    }
    if let Some(generation) = stage.generation() {
        set("response_length", generation.response_length.to_string());
        set(
            "max_prompt_length",
            generation.max_prompt_length.to_string(),
        );
        if let Some(sampling) = generation.sampling {
            set("sampling", ron(sampling));
        }
    }
    found
}

/// A value as a recipe writes it.
fn ron(value: &impl serde::Serialize) -> String {
    dialect().to_string(value).unwrap_or_default()
}

/// How far the run has come, in one line.
fn status(stages: &[StageSection]) -> String {
    let total = stages.len();
    let done = stages
        .iter()
        .filter(|stage| stage.state == StageState::Done)
        .count();
    let time: f64 = stages.iter().map(StageSection::seconds).sum();
    let begun = stages
        .iter()
        .enumerate()
        .find(|(_, stage)| matches!(stage.state, StageState::Running | StageState::Stopped));
    let time = duration(time);
    match begun {
        Some((index, stage)) => format!(
            "stage {} of {total}, {}, {} at step {} · {time} so far",
            index + 1,
            stage.name,
            match stage.state {
                StageState::Running => "is running",
                _ => "was stopped",
            },
            stage.steps()
        ),
        None if done == total => match total {
            1 => format!("the stage is done · {time}"),
            _ => format!("all {total} stages are done · {time}"),
        },
        None => format!("{done} of {total} stages are done · {time}"),
    }
}

/// The models that the stages loaded, but those that they wrote: name, roles and files, each file once.
fn models(info: &RunInfo, stages: &[StageSection]) -> Vec<String> {
    let all = || info.lineage.iter().flat_map(|stage| &stage.models);
    let mut names: Vec<&String> = Vec::new();
    let mut listed: Vec<&Path> = Vec::new();
    let mut found = Vec::new();
    for model in all() {
        if names.contains(&&model.name) {
            continue;
        }
        names.push(&model.name);
        let mut roles: Vec<&str> = (all().filter(|other| other.name == model.name))
            .map(|other| other.role.name())
            .collect();
        roles.sort_unstable();
        roles.dedup();
        let roles = roles.join(", ");
        if model.role == ModelRole::Judge && model.files.is_empty() {
            found.push(format!("{} ({roles}, behind an endpoint)", model.name));
        }
        let mut files = Vec::new();
        for file in &model.files {
            let is_own = stages
                .iter()
                .any(|stage| is_result_of(&file.path, &stage.name));
            if !is_own && !listed.contains(&file.path.as_path()) {
                listed.push(&file.path);
                files.push(format!("{}, {}", file.path.display(), short_hash(file)));
            }
        }
        if !files.is_empty() {
            found.push(format!("{} ({roles}): {}", model.name, files.join(", ")));
        }
    }
    found
}

/// The first digits of a file's SHA-256.
fn short_hash(file: &FileHash) -> String {
    format!("sha256 {}", file.sha256.get(..12).unwrap_or(&file.sha256))
}

fn facts(recipe: &Recipe, info: &RunInfo, stages: &[StageSection]) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            found.push((name.to_owned(), value));
        }
    };
    let files = info.lineage.iter().flat_map(|stage| stage.model_files());
    let mut commits: Vec<&String> = files.filter_map(|file| file.repository.as_ref()).collect();
    commits.sort();
    commits.dedup();
    let commits: Vec<String> = commits.into_iter().cloned().collect();
    fact("model", recipe.model.clone().unwrap_or_default());
    fact("model's commit", commits.join(", "));
    fact("models", models(info, stages).join("; "));
    let mut data: Vec<String> = Vec::new();
    for file in info.lineage.iter().flat_map(|stage| &stage.data) {
        // Rows that a stage wrote are no data of the run.
        if stages.iter().any(|stage| is_of(&file.path, &stage.name)) {
            continue;
        }
        let rows = file.rows.map_or(String::new(), |rows| {
            format!(", {} rows", grouped(rows as u64))
        });
        let text = format!("{}{rows}, {}", file.path.display(), short_hash(file));
        if !data.contains(&text) {
            data.push(text);
        }
    }
    fact("data", data.join("; "));
    fact("seed", recipe.seed.to_string());
    if !info.backend.is_empty() {
        let device = format!(
            "{} ({}), {} threads",
            info.backend, info.device, info.threads
        );
        fact("device", device);
    }
    fact("started", info.started.clone());
    let seconds: f64 = stages.iter().map(StageSection::seconds).sum();
    fact("time of the stages", duration(seconds));
    let tokens: u64 = stages.iter().map(|stage| stage.record.tokens).sum();
    if tokens > 0 {
        fact("tokens", grouped(tokens));
    }
    if let Some(bytes) = stages
        .iter()
        .filter_map(|stage| stage.record.peak_bytes)
        .max()
    {
        let gib = bytes as f64 / (1u64 << 30) as f64;
        fact("peak memory", format!("{gib:.2} GiB"));
    }
    fact(
        "commit of the working directory",
        info.git_commit.clone().unwrap_or_default(),
    );
    fact("tempering", info.version.clone());
    found
}

/// Whether a file is of the model or adapter that `stage` wrote.
fn is_result_of(path: &Path, stage: &str) -> bool {
    let name = |path: &Path| path.file_name().map(ToOwned::to_owned);
    let Some(folder) = path.parent() else {
        return false;
    };
    ["model", "adapter", "base"]
        .iter()
        .any(|of| folder.ends_with(of))
        && folder.parent().and_then(name).is_some_and(|of| of == stage)
}

/// Whether a file is one of those that `stage` writes for later stages.
fn is_of(path: &Path, stage: &str) -> bool {
    path.parent()
        .and_then(Path::file_name)
        .is_some_and(|name| name == stage)
        && [PathBuf::from("train.jsonl"), PathBuf::from("valid.jsonl")]
            .iter()
            .any(|file| path.ends_with(file))
}
