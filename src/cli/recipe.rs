//! `temper recipe`: runs a recipe, or prints its plan.

use std::time::Instant;

use super::args::{ComputeArgs, RecipeArgs};
use super::output;
use super::parity::{self, Shapes};
use crate::backend::{self, Task, dispatch};
use crate::collective::{self, Ranks};
use crate::device::DeviceMemory;
use crate::error::{Error, Problem, Result};
use crate::guard;
use crate::ops::ModelBackend;
use crate::recipe::{self, CheckedRecipe, RunOptions};
use crate::report::{Interrupt, ReporterKind, Severity, duration, reporter};
use crate::terminal;
use crate::train::Outcome;

/// Checks the recipe and everything it names, then runs its stages.
///
/// # Errors
/// `Error::Invalid` with all problems at once, before anything is loaded; `Error::Usage` for a backend that is not compiled in; later the first
/// error of a stage.
pub(super) fn run(args: &RecipeArgs, compute: &ComputeArgs) -> Result<()> {
    let loaded = recipe::load_with_places(&args.file, &args.set)?;
    let mut options = RunOptions {
        output: args.output.clone(),
        stage: args.stage.clone(),
        resume: args.resume,
        fetch: !args.dry_run,
        resume_command: resume_command(),
        memory: match args.device_memory {
            Some(bytes) => DeviceMemory::Override(bytes),
            None => backend::memory(compute.backend, compute.device),
        },
        ..RunOptions::default()
    };
    let ranks = collective::ranks();
    let checked = match (
        // Rank 0 first: it downloads what the others then find.
        collective::in_turn(|| recipe::check(loaded, &options)),
        backend::require(compute.backend),
    ) {
        (Ok(checked), backend) => backend.map(|()| checked)?,
        // All problems are reported at once.
        (Err(Error::Invalid { path, mut problems }), Err(error)) => {
            problems.push(Problem::new("--backend", error.to_string()));
            return Err(Error::Invalid { path, problems });
        }
        (Err(error), _) => return Err(error),
    };
    if ranks.is_first() {
        for notice in &checked.notices {
            terminal::say(notice);
        }
        for warning in &checked.warnings {
            terminal::say(&format!("warning: {warning}"));
        }
    }
    if args.dry_run {
        if !ranks.is_first() {
            return Ok(());
        }
        // What is measured is this process.
        let _alone = collective::enter(Ranks::default());
        let (times, line) = match args.no_time {
            true => (None, String::new()),
            false => estimate_times(&checked, compute),
        };
        let plan = recipe::table(&checked.plans, times.as_deref());
        let memory = recipe::memory_line(&options.memory);
        let download = recipe::download_line(&checked.absent).map(|line| format!("\n{line}"));
        return print(&format!(
            "{plan}\n{memory}{line}{}",
            download.unwrap_or_default()
        ));
    }
    options.interrupt = Interrupt::on_signal()?;
    let kind = if args.tui {
        ReporterKind::Tui
    } else {
        ReporterKind::Auto
    };
    let outcomes = dispatch(
        compute.backend,
        compute.device,
        RunRecipe {
            checked: &checked,
            options: &options,
            kind,
            check: !args.no_check,
        },
    )?;
    if !ranks.is_first() {
        return Ok(());
    }
    for (name, outcome) in &outcomes {
        if !outcome.table.is_empty() {
            print(&format!(
                "\n{name}: {}\n\n{}",
                outcome.record.summary, outcome.table
            ))?;
        }
    }
    let mut text = String::new();
    for (name, outcome) in &outcomes {
        for finding in &outcome.record.findings {
            if finding.severity == Severity::Warning {
                terminal::say(&format!("warning: {name}: {}", finding.text));
            }
        }
    }
    let run = &checked.output;
    text.push_str(&format!("Report:  {}/report.html\n", run.display()));
    for (label, step) in recipe::steps_after(&checked.recipe, run, false)? {
        text.push_str(&format!("{:<8} {step}\n", format!("{label}:")));
    }
    print(&text)
}

/// Estimated seconds of each stage, and a line about them; the line says why there are none. Only after all checks have passed.
fn estimate_times(checked: &CheckedRecipe, compute: &ComputeArgs) -> (Option<Vec<f64>>, String) {
    if !checked.absent.is_empty() {
        let line = "\ntime: not measured, since weights are still to be downloaded";
        return (None, line.into());
    }
    eprintln!("measuring the stages' passes for their time; --no-time leaves it out");
    let begin = Instant::now();
    match dispatch(compute.backend, compute.device, EstimateTimes(checked)) {
        Ok((times, backend)) => {
            let line = format!(
                "\nestimated time: ~{} in all, from passes measured on {backend} for {}; loading, checkpoints and reward programs not included",
                duration(times.iter().sum()),
                duration(begin.elapsed().as_secs_f64())
            );
            (Some(times), line)
        }
        Err(error) => (None, format!("\ntime: not measured: {error}")),
    }
}

struct EstimateTimes<'a>(&'a CheckedRecipe);

impl Task for EstimateTimes<'_> {
    type Output = (Vec<f64>, &'static str);

    fn run<B: ModelBackend>(self, device: B::Device, name: &'static str) -> Result<Self::Output> {
        Ok((recipe::estimate_times::<B>(self.0, device)?, name))
    }
}

struct RunRecipe<'a> {
    checked: &'a CheckedRecipe,
    options: &'a RunOptions,
    kind: ReporterKind,
    /// Whether a GPU's numbers are checked before it is used.
    check: bool,
}

impl Task for RunRecipe<'_> {
    type Output = Vec<(String, Outcome)>;

    fn run<B: ModelBackend>(self, device: B::Device, name: &'static str) -> Result<Self::Output> {
        if self.check && !matches!(name, "flex" | "ndarray") {
            check_numbers::<B>(name, &device, &Shapes::of_plans(&self.checked.plans))?;
        }
        let kind = match collective::ranks().is_first() {
            true => self.kind,
            false => ReporterKind::Silent,
        };
        let mut reporter = reporter(kind, &self.options.interrupt)?;
        recipe::run::<B>(self.checked, self.options, device, name, reporter.as_mut())
    }
}

/// Compares a GPU with the CPU at the sizes of the recipe: with a faulty driver or kernel, training would run but be useless.
fn check_numbers<B: ModelBackend>(
    name: &'static str,
    device: &B::Device,
    shapes: &Shapes,
) -> Result<()> {
    let begin = Instant::now();
    let found = parity::cases::<B>(shapes, device)?;
    guard::check::<B>(device)?;
    let (reference, differences) = match parity::against_reference(name, &found, shapes) {
        Ok(compared) => compared,
        Err(error @ Error::Usage(_)) => {
            terminal::say(&format!("the numbers of {name} were not checked: {error}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    parity::require(name, &differences)
        .map_err(|error| Error::Backend(format!("{error}; --no-check runs all the same")))?;
    let largest = differences.iter().map(|d| d.largest).fold(0.0, f64::max);
    if !collective::ranks().is_first() {
        return Ok(());
    }
    eprintln!(
        "{name} agrees with {reference} to {largest:.1e} in {} computations of this recipe's sizes ({:.0} s)",
        differences.len(),
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

/// This command with `--resume`.
fn resume_command() -> String {
    let mut words: Vec<String> = std::env::args().collect();
    if let Some(program) = words.first_mut() {
        *program = "temper".into();
    }
    if !words.iter().any(|word| word == "--resume") {
        words.push("--resume".into());
    }
    words
        .iter()
        .map(|word| recipe::shell_word(word))
        .collect::<Vec<_>>()
        .join(" ")
}

fn print(text: &str) -> Result<()> {
    output::print(&format!("{text}\n"))
}
