//! Running a recipe: everything is checked before any weight is loaded, then the stages run in order.

use std::path::{Path, PathBuf};

use super::resume::changes;
use super::survey::{Survey, survey};
use super::{Loaded, Recipe, check_fits, to_ron};
use crate::atomic::write_atomic;
use crate::checkpoint::{self, RunDir, RunInfo};
use crate::device::DeviceMemory;
use crate::error::{Error, Problem, Result};
use crate::guard;
use crate::ops::ModelBackend;
use crate::report::{Interrupt, Reporter, peak_rss_bytes};
use crate::rng::Seed;
use crate::train::plan::StagePlan;
use crate::train::{Outcome, Session, Stage};

/// File that marks a stage as done; its content is the stage's summary.
const DONE: &str = "DONE";

/// What the command line adds to a recipe.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Run folder instead of the recipe's.
    pub output: Option<PathBuf>,
    /// Only this stage.
    pub stage: Option<String>,
    /// Continue an earlier run.
    pub resume: bool,
    /// Fetch files of the hub for the check, so that all of their rows are looked at before the first stage begins.
    pub fetch: bool,
    /// The command that would continue this run.
    pub resume_command: String,
    /// The memory that every stage has to fit into.
    pub memory: DeviceMemory,
    /// The wish to stop; once requested, the run writes a checkpoint and ends with `Error::Interrupted`.
    pub interrupt: Interrupt,
}

/// A recipe that was checked, with its plan.
#[derive(Debug)]
pub struct Checked {
    /// The recipe.
    pub recipe: Recipe,
    /// The run's folder.
    pub output: PathBuf,
    /// Its plan, stage by stage.
    pub plans: Vec<StagePlan>,
    /// What has no effect, though it looks as if it had.
    pub warnings: Vec<Problem>,
    only: Option<String>,
}

/// Checks data, models, reward sources and memory of a recipe, and plans it. Loads no weight.
///
/// # Errors
/// `Error::Invalid` with all problems.
pub fn check(loaded: Loaded, options: &RunOptions) -> Result<Checked> {
    let Loaded {
        recipe,
        places,
        path,
    } = loaded;
    let output = options
        .output
        .clone()
        .or_else(|| recipe.output.clone())
        .unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let mut problems = Vec::new();
    if let Some(only) = &options.stage
        && !recipe.stages.iter().any(|stage| stage.name() == only)
    {
        let names: Vec<&str> = recipe.stages.iter().map(Stage::name).collect();
        problems.push(Problem::new(
            "--stage",
            format!("no stage `{only}`; there are {}", names.join(", ")),
        ));
    }
    let Survey {
        plans,
        problems: found,
        warnings,
    } = survey(&recipe, &places, &output, options.fetch);
    problems.extend(found);
    if options.resume {
        problems.extend(changes(&recipe, &places, &output, DONE));
    }
    problems.extend(check_fits(&plans, &options.memory));
    if !problems.is_empty() {
        return Err(Error::Invalid { path, problems });
    }
    Ok(Checked {
        plans,
        warnings,
        recipe,
        output,
        only: options.stage.clone(),
    })
}

/// Runs the stages; returns what each of them says, by name. Runs of one process take turns: see [`guard::gradients`].
///
/// # Errors
/// The first error of a stage. What was done before it is on disk.
pub fn run<B: ModelBackend>(
    checked: &Checked,
    options: &RunOptions,
    device: B::Device,
    backend: &str,
    reporter: &mut dyn Reporter,
) -> Result<Vec<(String, Outcome)>> {
    let recipe = &checked.recipe;
    let _turn = guard::gradients();
    let continues =
        options.resume || (checked.only.is_some() && checked.output.join("run.json").exists());
    let run = if continues {
        RunDir::open(&checked.output)?
    } else {
        RunDir::create(&checked.output)?
    };
    run.write_recipe(&to_ron(recipe))?;
    if !run.has_info() {
        run.write_info(&RunInfo {
            backend: backend.to_owned(),
            device: format!("{device:?}"),
            threads: rayon::current_num_threads(),
            seed: recipe.seed,
            ..RunInfo::begin()
        })?;
    }
    let mut session = Session::<B>::new(device, &run, reporter);
    session.recipe = recipe.name.clone();
    session.seed = Seed::new(recipe.seed);
    session.model = recipe.model.clone();
    session.eos_token = recipe.eos_token.clone();
    session.numerics = recipe.numerics();
    session.resume = options.resume;
    session.resume_command = options.resume_command.clone();
    session.interrupt = options.interrupt.clone();
    let mut outcomes = Vec::new();
    for stage in &recipe.stages {
        if checked
            .only
            .as_ref()
            .is_some_and(|only| only != stage.name())
        {
            continue;
        }
        let done = session.stage_dir(stage.name())?.join(DONE);
        if options.resume && done.exists() {
            continue;
        }
        // A stage that is run again is not done until it is done again, and does not resume from what it was.
        if !options.resume {
            checkpoint::clear(session.stage_dir(stage.name())?)?;
        }
        if done.exists() {
            std::fs::remove_file(&done).map_err(Error::io("remove", &done))?;
        }
        let outcome = stage.run(&mut session)?;
        write_atomic(&done, outcome.summary.as_bytes())?;
        outcomes.push((stage.name().to_owned(), outcome));
    }
    if let Some(bytes) = peak_rss_bytes() {
        let peak = bytes as f64 / (1u64 << 30) as f64;
        session.reporter.message(&format!(
            "peak memory {peak:.2} GiB; results in {}",
            checked.output.display()
        ));
    }
    Ok(outcomes)
}
