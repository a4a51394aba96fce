//! What an interrupted run leaves, and that it ends as an uninterrupted one.

use std::fs;
use std::io::Write;
use std::path::Path;

use burn::backend::Flex;
use tempering::error::Error;
use tempering::recipe::RunOptions;
use tempering::report::{
    EvalReport, Interrupt, Reporter, RolloutReport, SilentReporter, StageInfo, StepReport,
};

use crate::pipeline;

/// Presses Ctrl-C after a step of a stage.
pub(crate) struct Interrupter(
    pub(crate) &'static str,
    pub(crate) usize,
    pub(crate) Interrupt,
);

impl Reporter for Interrupter {
    fn stage_start(&mut self, _: &StageInfo<'_>) {}
    fn step(&mut self, step: &StepReport<'_>) {
        if (step.stage, step.step) == (self.0, self.1) {
            self.2.request();
        }
    }
    fn rollout(&mut self, _: &RolloutReport<'_>) {}
    fn eval(&mut self, _: &EvalReport<'_>) {}
    fn message(&mut self, _: &str) {}
    fn stage_end(&mut self, _: &str) {}
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn a_resumed_run_gives_the_same_results() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let options = RunOptions {
        output: Some(whole.clone()),
        ..RunOptions::default()
    };
    pipeline::run::<Flex>(
        folder.path(),
        Default::default(),
        &options,
        &mut SilentReporter,
    )
    .unwrap();

    let parts = folder.path().join("parts");
    let mut options = RunOptions {
        output: Some(parts.clone()),
        resume_command: "temper recipe short.ron --resume".into(),
        ..RunOptions::default()
    };
    for (stage, step) in [
        ("pretrain", 2),
        ("sft", 1),
        ("sft", 3),
        ("rm", 2),
        ("dpo", 1),
        ("dpo", 3),
        ("dpo_full", 1),
        ("ppo", 1),
        ("ppo", 2),
    ] {
        options.interrupt = Interrupt::default();
        let outcome = pipeline::run::<Flex>(
            folder.path(),
            Default::default(),
            &options,
            &mut Interrupter(stage, step, options.interrupt.clone()),
        );
        let error = outcome.unwrap_err();
        assert!(
            matches!(&error, Error::Interrupted { stage: s, step: n, .. } if s == stage && *n == step),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("temper recipe short.ron --resume"),
            "{error}"
        );
        // As after a crash: steps that no checkpoint knows of, and a line cut short.
        let mut log = fs::OpenOptions::new()
            .append(true)
            .open(parts.join(stage).join("metrics.jsonl"))
            .unwrap();
        writeln!(log, "{{\"step\":{},\"loss\":9.0}}", step + 1).unwrap();
        write!(log, "{{\"step\":{},\"lo", step + 2).unwrap();
        options.resume = true;
    }
    options.interrupt = Interrupt::default();
    pipeline::run::<Flex>(
        folder.path(),
        Default::default(),
        &options,
        &mut SilentReporter,
    )
    .unwrap();

    for stage in pipeline::STAGES {
        for file in ["metrics.jsonl", "samples.jsonl"] {
            let [a, b] = [&whole, &parts].map(|run| read(&run.join(stage).join(file)));
            assert!(
                a == b,
                "{stage}/{file}:\n{}\n---\n{}",
                String::from_utf8_lossy(&a),
                String::from_utf8_lossy(&b)
            );
        }
    }
    for file in [
        "pretrain/model/model.safetensors",
        "sft/adapter/adapter_model.safetensors",
        "rank/train.jsonl",
        "rm/adapter/adapter_model.safetensors",
        "dpo/adapter/adapter_model.safetensors",
        "dpo_full/model/model.safetensors",
        "ppo/adapter/adapter_model.safetensors",
    ] {
        assert!(read(&whole.join(file)) == read(&parts.join(file)), "{file}");
    }
}
