//! Runs a recipe: checks everything before any weight is loaded, then runs the stages in order.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::begun::Begun;
use super::failure::{FailedStage, ended_without_a_word};
use super::plan::human_bytes;
use super::report::{DONE, run_report};
use super::resume::changes;
use super::survey::{Survey, survey};
use super::{LoadedRecipe, Recipe, check_fits, to_ron};
use crate::atomic::{folder_problem, write_atomic};
use crate::checkpoint::{self, RunDir, RunInfo};
use crate::collective;
use crate::device::DeviceMemory;
use crate::error::{Error, Problem, Result, count};
use crate::guard;
use crate::model::AbsentWeights;
use crate::ops::ModelBackend;
use crate::report::{
    Interrupt, NotedReporter, Reporter, StageRecord, begin_peak, peak_rss_bytes, write_run_report,
};
use crate::reward::CustomRewards;
use crate::rng::Seed;
use crate::train::plan::StagePlan;
use crate::train::{Outcome, Session, Stage};

/// Options of the command line for a run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Run folder instead of the recipe's.
    pub output: Option<PathBuf>,
    /// Only this stage.
    pub stage: Option<String>,
    /// Continue an earlier run.
    pub resume: bool,
    /// Download files of the hub for the check, so that all their rows are checked before the first stage begins.
    pub fetch: bool,
    /// The command that continues this run.
    pub resume_command: String,
    /// The memory limit for every stage.
    pub memory: DeviceMemory,
    /// The request to stop: the run then writes a checkpoint and ends with `Error::Interrupted`.
    pub interrupt: Interrupt,
    /// Reward sources of the program, which recipes name by `Custom(name: ..)`.
    pub rewards: CustomRewards,
}

/// A checked recipe with its plan.
#[derive(Debug)]
pub struct CheckedRecipe {
    /// The recipe.
    pub recipe: Recipe,
    /// The run's folder.
    pub output: PathBuf,
    /// Its plan, stage by stage.
    pub plans: Vec<StagePlan>,
    /// Settings and data without effect.
    pub warnings: Vec<Problem>,
    /// What was recognised in data sets, a line each.
    pub notices: Vec<String>,
    /// Weights that were not on this machine; a run has downloaded them, a dry run not.
    pub absent: Vec<AbsentWeights>,
    only: Option<String>,
}

/// Checks data, models, reward sources and memory of a recipe, and plans it. Loads no weight.
///
/// # Errors
/// `Error::Invalid` with all problems.
pub fn check(loaded: LoadedRecipe, options: &RunOptions) -> Result<CheckedRecipe> {
    let LoadedRecipe {
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
    if let Some(problem) = folder_problem(&output) {
        let problem = format!("{}: {problem}", output.display());
        problems.push(match (&options.output, &recipe.output) {
            (None, Some(_)) => places.problem("output", problem),
            _ => Problem::new("--output", problem),
        });
    }
    let Survey {
        plans,
        problems: found,
        warnings,
        notices,
        unchecked,
    } = survey(&recipe, &places, &output, options);
    problems.extend(found);
    if options.resume {
        problems.extend(changes(&recipe, &places, &output, DONE, None));
    } else if let Some(only) = &options.stage {
        // The stage begins again; the others stay as they are, and with them what the run's files say of them.
        problems.extend(changes(&recipe, &places, &output, DONE, Some(only)));
    }
    problems.extend(check_fits(&plans, &options.memory));
    // The rest is sound: weights may be gigabytes.
    if problems.is_empty() && options.fetch {
        let model = recipe.model.as_deref();
        for unchecked in &unchecked {
            if let Err(error) = unchecked.complete(model, recipe.base_precision) {
                problems.push(places.problem(&unchecked.place, error.to_string()));
            }
        }
    }
    if !problems.is_empty() {
        return Err(Error::Invalid { path, problems });
    }
    let mut absent: Vec<AbsentWeights> = (unchecked.into_iter())
        .flat_map(|model| model.absent)
        .collect();
    absent.dedup();
    Ok(CheckedRecipe {
        plans,
        warnings,
        notices,
        absent,
        recipe,
        output,
        only: options.stage.clone(),
    })
}

/// Runs the stages; returns their outcomes by name. Runs in one process are serialised, see [`guard::lock_gradients`].
///
/// # Errors
/// The first error of a stage. Results of earlier stages are on disk.
pub fn run<B: ModelBackend>(
    checked: &CheckedRecipe,
    options: &RunOptions,
    device: B::Device,
    backend: &str,
    reporter: &mut dyn Reporter,
) -> Result<Vec<(String, Outcome)>> {
    let plans = &checked.plans;
    let _lock = guard::lock_gradients();
    let begun = collective::agree(checked.output.join("run.json").exists());
    let continues = options.resume || (checked.only.is_some() && begun);
    let opened = collective::on_first(|| {
        let run = if continues {
            RunDir::open(&checked.output)?
        } else {
            RunDir::create(&checked.output)?
        };
        if run.begin_work()? {
            reporter.message(&ended_without_a_word(plans, run.path(), DONE));
        }
        match prepare::<B>(checked, options, &run, &device, backend, reporter) {
            Ok(()) => Ok(run),
            Err(error) => run.end_work().and(Err(error)),
        }
    })?;
    let run = match opened {
        Some(run) => run,
        None => RunDir::of_first(&checked.output)?,
    };
    let outcome = run_stages::<B>(checked, options, &run, device, backend, reporter);
    let ended = run.end_work();
    let outcome = outcome?;
    ended.map(|()| outcome)
}

/// Brings an open folder into order, and writes what is known of the run before its first stage.
fn prepare<B: ModelBackend>(
    checked: &CheckedRecipe,
    options: &RunOptions,
    run: &RunDir,
    device: &B::Device,
    backend: &str,
    reporter: &mut dyn Reporter,
) -> Result<()> {
    sweep(run, reporter)?;
    if options.resume {
        same_machine(checked, run.path(), backend)?;
    }
    run.write_recipe(&to_ron(&checked.recipe))?;
    if run.has_info()
        && let Err(error @ Error::Format { .. }) = run.read_info()
    {
        let aside = run.set_info_aside()?;
        reporter.message(&format!(
            "warning: {error}; it is kept as {}, and a new one begins without the origin of earlier stages",
            aside.display()
        ));
    }
    if !run.has_info() {
        run.write_info(&RunInfo {
            backend: backend.to_owned(),
            device: format!("{device:?}"),
            threads: rayon::current_num_threads(),
            seed: checked.recipe.seed,
            ..RunInfo::begin()
        })?;
    }
    Ok(())
}

/// [`run`] in an open folder.
fn run_stages<B: ModelBackend>(
    checked: &CheckedRecipe,
    options: &RunOptions,
    run: &RunDir,
    device: B::Device,
    backend: &str,
    reporter: &mut dyn Reporter,
) -> Result<Vec<(String, Outcome)>> {
    let (recipe, plans) = (&checked.recipe, &checked.plans);
    let mut reporter = NotedReporter::new(reporter);
    let position = reporter.position();
    let mut session = Session::<B>::new(device, run, &mut reporter);
    session.recipe = recipe.name.clone();
    session.seed = Seed::new(recipe.seed);
    session.model = recipe.model.clone();
    session.eos_token = recipe.eos_token.clone();
    session.add_tokens = recipe.add_tokens.clone();
    session.numerics = recipe.numerics();
    session.resume = options.resume;
    session.resume_command = options.resume_command.clone();
    session.interrupt = options.interrupt.clone();
    session.rewards = options.rewards.clone();
    session.report_to = recipe.report_to.clone();
    let mut outcomes = Vec::new();
    let runs = |name: &str| checked.only.as_ref().is_none_or(|only| only == name);
    for (index, stage) in recipe.stages.iter().enumerate() {
        if checked
            .only
            .as_ref()
            .is_some_and(|only| only != stage.name())
        {
            continue;
        }
        let done = session.stage_dir(stage.name())?.join(DONE);
        let is_done = collective::agree(done.exists());
        if options.resume && is_done {
            // Only for the estimate of the time left: the report says what is wrong with a record.
            let record = StageRecord::read(&run.path().join(stage.name()));
            if let (Some(plan), Ok(Some(record))) = (plans.get(index), record) {
                session.clock.finished(plan, record.seconds);
            }
            continue;
        }
        // A stage that runs again is no longer done, and must not resume from its old checkpoints.
        let folder = session.stage_dir(stage.name())?;
        collective::on_first(|| {
            if !options.resume {
                checkpoint::clear(&folder)?;
                StageRecord::remove(&folder)?;
            }
            match is_done {
                true => std::fs::remove_file(&done).map_err(Error::io("remove", &done)),
                false => Ok(()),
            }
        })?;
        if let Some(plan) = plans.get(index) {
            let later = plans.iter().skip(index + 1).filter(|plan| runs(&plan.name));
            let later: Vec<&StagePlan> = later.collect();
            session.clock.begin(index + 1, plans.len(), plan, &later);
        }
        report(&mut session, recipe, true);
        begin_peak();
        let folder = session.stage_dir(stage.name())?;
        let goes_on = collective::agree(options.resume && checkpoint::latest(&folder).is_some());
        let outcome = guard::catch(|| {
            collective::on_first(|| {
                if !goes_on || Begun::read(&folder)?.is_none() {
                    let (begun, hashes) = Begun::now(recipe, stage, run.path(), backend)?;
                    begun.write(&folder)?;
                    session.hashes.extend(hashes);
                }
                Ok(())
            })?;
            let outcome = stage.run(&mut session)?;
            collective::on_first(|| write_atomic(&done, outcome.record.summary.as_bytes()))?;
            Ok::<_, Error>(outcome)
        });
        let outcome = {
            let position = position.lock().unwrap_or_else(PoisonError::into_inner);
            let failed = FailedStage {
                stage,
                position: &position,
                folder: &folder,
                resume_command: &options.resume_command,
                plan: plans.get(index),
            };
            outcome
                .unwrap_or_else(|panic| Err(failed.panic(&panic)))
                .map_err(|error| failed.error(error))
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                // The report says how far the run came.
                report(&mut session, recipe, false);
                return Err(error);
            }
        };
        if let Some(plan) = plans.get(index) {
            session.clock.finished(plan, outcome.record.seconds);
        }
        outcomes.push((stage.name().to_owned(), outcome));
    }
    report(&mut session, recipe, false);
    if let Some(bytes) = peak_rss_bytes() {
        let peak = bytes as f64 / (1u64 << 30) as f64;
        session.reporter.message(&format!(
            "peak memory {peak:.2} GiB; results in {}",
            checked.output.display()
        ));
    }
    Ok(outcomes)
}

/// Refuses to go on with another backend or number of threads in the middle of a stage.
fn same_machine(checked: &CheckedRecipe, run: &Path, backend: &str) -> Result<()> {
    let mut problems = Vec::new();
    let only = &checked.only;
    let runs = |stage: &&Stage| only.as_ref().is_none_or(|only| only == stage.name());
    for stage in checked.recipe.stages.iter().filter(runs) {
        let folder = run.join(stage.name());
        if folder.join(DONE).exists() || checkpoint::latest(&folder).is_none() {
            continue;
        }
        if let Some(begun) = Begun::read(&folder)? {
            problems.extend(begun.changed_machine(stage.name(), backend));
        }
    }
    let path = run.to_path_buf();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Invalid { path, problems }),
    }
}

/// Removes what processes that were killed have left unfinished in the run's folder, and says so.
fn sweep(run: &RunDir, reporter: &mut dyn Reporter) -> Result<()> {
    let (files, bytes) = run.sweep()?;
    if files > 0 {
        reporter.message(&format!(
            "removed {} of an earlier process that was ended while it wrote them ({})",
            count(files, "unfinished file"),
            human_bytes(bytes)
        ));
    }
    Ok(())
}

/// Writes the report of the run. A damaged log or a full disk does not end a run for its report: it is said instead.
fn report<B: ModelBackend>(session: &mut Session<'_, B>, recipe: &Recipe, in_use: bool) {
    if !collective::ranks().is_first() {
        return;
    }
    let run = session.run.path();
    let written = run_report(recipe, run, in_use).and_then(|found| write_run_report(run, &found));
    if let Err(error) = written {
        let message = format!("warning: the run's report.html was not written: {error}");
        session.reporter.message(&message);
    }
}

#[cfg(test)]
mod tests {
    use burn_ndarray::NdArray;

    use super::*;
    use crate::recipe::load_text;
    use crate::report::SilentReporter;
    use crate::reward::{Completion, CustomRewards};

    #[test]
    fn a_stage_that_panics_ends_with_its_step_and_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny");
        let text = format!(
            "(name: \"r\", model: \"{model}\", stages: [Ppo(name: \"p\", init: Base,
                data: (source: Posts(rows: 4, seed: 1)), reward: Custom(name: \"fails\"), peft: Lora(rank: 1),
                total_episodes: 8, batch_size: 2, response_length: 2, max_prompt_length: 120)])"
        );
        let options = RunOptions {
            output: Some(folder.path().join("run")),
            resume_command: "temper recipe r.ron --resume".into(),
            rewards: CustomRewards::default().with("fails", || {
                let mut calls = 0;
                move |completions: &[Completion]| {
                    calls += 1;
                    assert!(calls < 3, "the third call");
                    Ok(vec![0.5; completions.len()])
                }
            }),
            ..RunOptions::default()
        };
        let loaded = load_text(Path::new("r.ron"), &text, &[]).unwrap();
        let checked = check(loaded, &options).unwrap();
        let device = Default::default();
        let outcome = run::<NdArray>(&checked, &options, device, "ndarray", &mut SilentReporter);
        let error = outcome.unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let message = error.to_string();
        for part in [
            "stage p: Ppo ended after step 2",
            "the third call (run.rs:",
            "step-000002; continue with: temper recipe r.ron --resume. Please report it",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}
