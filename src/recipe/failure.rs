//! The error of a stage that fails: where it was, why, what is left of it, and what to do.

use std::io::ErrorKind;
use std::path::Path;

use super::plan::{advice, components, human_bytes};
use crate::checkpoint;
use crate::error::Error;
use crate::guard::{self, PLEASE_REPORT};
use crate::report::{Position, StageLogs};
use crate::train::Stage;
use crate::train::plan::StagePlan;

/// A stage that fails.
pub(super) struct FailedStage<'a> {
    /// The stage.
    pub(super) stage: &'a Stage,
    /// How far it came.
    pub(super) position: &'a Position,
    /// Its folder.
    pub(super) folder: &'a Path,
    /// The command that continues.
    pub(super) resume_command: &'a str,
    /// What it was expected to need.
    pub(super) plan: Option<&'a StagePlan>,
}

impl FailedStage<'_> {
    /// The error with its place, the newest checkpoint, and the command that continues. Errors that say all of this themselves, and
    /// those that the user has asked for, stay as they are.
    pub(super) fn error(&self, error: Error) -> Error {
        if matches!(
            error,
            Error::Interrupted { .. }
                | Error::Stage { .. }
                | Error::Failed { .. }
                | Error::NonFinite { .. }
                | Error::Usage(_)
                | Error::Invalid { .. }
        ) {
            return error;
        }
        let advice = match &error {
            Error::Backend(message) if is_about_memory(message) => self.memory(),
            Error::Io { source, .. } if is_full(source.kind()) => {
                " Make room there first.".to_owned()
            }
            _ => String::new(),
        };
        Error::Failed {
            stage: self.stage.name().to_owned(),
            position: format!("{} ended {}", self.stage.kind(), self.position.words()),
            source: Box::new(error),
            kept: format!("{}.{advice}", self.kept()),
        }
    }

    /// The error for a panic: one of the device, of memory, or a defect.
    pub(super) fn panic(&self, panic: &str) -> Error {
        // What the device's own threads noted is the cause of a panic that follows from it.
        let of_device = guard::take();
        if !of_device.is_empty() {
            let message = format!("the device failed: {}", of_device.join("; "));
            return self.error(Error::Backend(message));
        }
        let (how, what_to_do) = match is_about_memory(panic) {
            true => ("for want of memory", self.memory()),
            false => (
                "with a defect of this program or of a library",
                format!(" {PLEASE_REPORT}"),
            ),
        };
        Error::Stage {
            stage: self.stage.name().to_owned(),
            message: format!(
                "{} ended {} {how}: {panic}. {}.{what_to_do}",
                self.stage.kind(),
                self.position.words(),
                self.kept()
            ),
        }
    }

    /// What is left of the stage, and how it goes on.
    fn kept(&self) -> String {
        if !self.folder.is_dir() {
            return format!("{} is no longer there", self.folder.display());
        }
        match checkpoint::latest(self.folder) {
            Some(newest) => format!(
                "The newest checkpoint is {}; continue with: {}",
                newest.display(),
                self.resume_command
            ),
            None => format!(
                "There is no checkpoint of this stage; earlier stages are kept: {}",
                self.resume_command
            ),
        }
    }

    /// What the plan had expected, and what to lower.
    fn memory(&self) -> String {
        self.plan
            .map_or(String::new(), |plan| format!(" {}", expected(plan)))
    }
}

/// What the plan had expected, and what to lower.
fn expected(plan: &StagePlan) -> String {
    format!(
        "The plan had expected {} at the peak ({}); to need less, {}",
        human_bytes(plan.peak()),
        components(plan),
        advice(plan)
    )
}

/// What became of a process that ended without a message in the run at `run`: only the next one can say it, since the system ends a
/// process without memory at once.
pub(super) fn ended_without_a_word(plans: &[StagePlan], run: &Path, done: &str) -> String {
    let unfinished = plans.iter().find(|plan| {
        let folder = run.join(&plan.name);
        folder.is_dir() && !folder.join(done).exists()
    });
    let begin = "the process before this one ended without a message (killed, out of memory, or the machine went down)";
    let Some(plan) = unfinished else {
        return begin.to_owned();
    };
    let steps = StageLogs::read(&run.join(&plan.name)).ok();
    let step = steps.and_then(|logs| logs.metrics.last().map(|row| row.step));
    let at = step.map_or("before its first step".to_owned(), |step| {
        format!("after step {step}")
    });
    format!(
        "{begin}, in stage {} {at}. If memory ran out: {}",
        plan.name,
        expected(plan)
    )
}

/// Whether a message of a runtime or of a panic is about memory that is not there.
fn is_about_memory(message: &str) -> bool {
    let message = message.to_lowercase();
    [
        "out of memory",
        "outofmemory",
        "out_of_memory",
        "allocat",
        "capacity overflow",
    ]
    .iter()
    .any(|words| message.contains(words))
}

/// Whether a file operation failed for want of room.
fn is_full(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::load_text;

    #[test]
    fn errors_say_where_why_and_how_to_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"(name: "r", model: "tiny", stages: [Sft(name: "sft", data: (source: Posts(rows: 8, seed: 1)), batch_size: 4)])"#;
        let recipe = load_text(Path::new("r.ron"), text, &[]).unwrap().recipe;
        let position = Position {
            step: 7,
            activity: None,
            has_begun: true,
        };
        let failed = |folder| FailedStage {
            stage: &recipe.stages[0],
            position: &position,
            folder,
            resume_command: "temper recipe r.ron --resume",
            plan: None,
        };
        let full = || {
            let source = std::io::Error::from(ErrorKind::StorageFull);
            Error::io("write", "run/sft/metrics.jsonl")(source)
        };
        let error = failed(folder.path()).error(full());
        assert_eq!(error.exit_code(), 1);
        let message = error.to_string();
        for part in [
            "stage sft: Sft ended after step 7, in the step that follows: cannot write run/sft/metrics.jsonl: no storage space",
            "There is no checkpoint of this stage",
            "Make room there first.",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let gone = failed(Path::new("/nowhere/sft")).error(full()).to_string();
        assert!(gone.contains("/nowhere/sft is no longer there"), "{gone}");
        // Those that say it all themselves.
        let own = Error::Stage {
            stage: "sft".into(),
            message: "m".into(),
        };
        assert_eq!(failed(folder.path()).error(own).to_string(), "stage sft: m");
        let panic = |text: &str| failed(folder.path()).panic(text).to_string();
        let memory = panic("CUDA_ERROR_OUT_OF_MEMORY (x.rs:1)");
        assert!(
            memory.contains("for want of memory: CUDA_ERROR") && !memory.contains(PLEASE_REPORT),
            "{memory}"
        );
        assert!(panic("index 3").contains(PLEASE_REPORT));
    }
}
