//! `temper report`: how far a run has come and what it has found.

use std::path::PathBuf;

use clap::Args;

use super::output::print;
use crate::checkpoint::RunDir;
use crate::error::Result;
use crate::recipe::{find_run, run_report};
use crate::report::{Severity, StageSection, StageState, duration, table, write_run_report};

/// `temper report`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  temper report runs/quickstart
  watch -n 60 temper report runs/smollm2        while it runs, from another terminal

Writes RUN/report.html anew, too.")]
pub struct ReportArgs {
    /// The run folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
}

/// Prints the state of the stages and the closing tables, and writes the report.
///
/// # Errors
/// `Error::Usage` if the folder holds no run; when a file of the run cannot be read, or the report not be written.
pub(super) fn run(args: &ReportArgs) -> Result<()> {
    let recipe = find_run(&args.run)?;
    let report = run_report(&recipe, &args.run, RunDir::is_in_use(&args.run))?;
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
    write_run_report(&args.run, &report)
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
