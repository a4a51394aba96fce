//! `temper report`: how far a run has come and what it has found.

use std::path::{Path, PathBuf};

use clap::Args;

use super::output::print;
use crate::checkpoint::RunDir;
use crate::error::{Error, Result};
use crate::recipe::{Recipe, find_run, run_report, to_ron};
use crate::report::{
    Severity, StageSection, StageState, TrackedStage, duration, table, write_events,
    write_run_report,
};

/// `temper report`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper report runs/quickstart
  temper watch runs/smollm2                     the same live in a browser, while it runs
  temper report runs/smollm2 --tensorboard      event files for `tensorboard --logdir runs/smollm2`, of any run, also an old one

Writes RUN/report.html anew, too.")]
pub struct ReportArgs {
    /// The run folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Write TensorBoard's event files beside the logs, in place of earlier ones
    #[arg(long)]
    pub tensorboard: bool,
}

/// Prints the state of the stages and the closing tables, and writes the report.
///
/// # Errors
/// `Error::Usage` if the folder holds no run; when a file of the run cannot be read, or the report not be written.
pub(super) fn run(args: &ReportArgs) -> Result<()> {
    let recipe = find_run(&args.run)?;
    let in_use = RunDir::is_in_use(&args.run);
    if args.tensorboard && in_use {
        return Err(Error::Usage(format!(
            "--tensorboard: a process works on {}; wait for it, or write them while it runs by `report_to: [TensorBoard]` in the recipe",
            args.run.display()
        )));
    }
    let report = run_report(&recipe, &args.run, in_use)?;
    let mut text = format!("{}: {}\n\n", report.title, report.status);
    let header = ["stage", "kind", "state", "steps", "time", "result"];
    let rows: Vec<Vec<String>> = report.stages.iter().map(row).collect();
    text.push_str(&table(&header, &rows));
    for stage in &report.stages {
        let closing = stage.record.closing_text(&stage.logs.samples);
        if !closing.is_empty() {
            text.push_str(&format!(
                "\n{}: {}\n\n{closing}",
                stage.name, stage.record.summary
            ));
        }
    }
    text.push('\n');
    for stage in &report.stages {
        for finding in &stage.record.findings {
            if finding.severity == Severity::Warning {
                text.push_str(&format!("warning: {}: {}\n", stage.name, finding.text));
            }
        }
    }
    text.push_str(&format!("Report:  {}/report.html\n", args.run.display()));
    for (label, step) in &report.next {
        text.push_str(&format!("{:<8} {step}\n", format!("{label}:")));
    }
    print(&text)?;
    if args.tensorboard {
        write_event_files(&args.run, &recipe)?;
    }
    write_run_report(&args.run, &report)
}

/// Writes the event file of each stage that has logs, and says of which.
fn write_event_files(run: &Path, recipe: &Recipe) -> Result<()> {
    let mut written = Vec::new();
    for stage in &recipe.stages {
        let tracked = TrackedStage {
            recipe_name: recipe.name.clone(),
            recipe: to_ron(recipe),
            stage: stage.name().to_owned(),
            resumed: true,
        };
        let dir = run.join(stage.name());
        if dir.is_dir() && write_events(&dir, &tracked)? {
            written.push(stage.name());
        }
    }
    match written.as_slice() {
        [] => eprintln!("no event files: no stage has logs yet"),
        stages => eprintln!(
            "event files of {}; see them by: tensorboard --logdir {}",
            stages.join(", "),
            run.display()
        ),
    }
    Ok(())
}

fn row(stage: &StageSection) -> Vec<String> {
    let (time, result) = match stage.state {
        StageState::Waiting => (String::new(), String::new()),
        _ => (duration(stage.seconds()), stage.record.summary.clone()),
    };
    vec![
        stage.name.clone(),
        stage.kind.clone(),
        stage.state.word().to_owned(),
        stage.steps(),
        time,
        result,
    ]
}
