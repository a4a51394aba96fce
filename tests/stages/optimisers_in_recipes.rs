//! Optimisers as recipes name them: resumed from checkpoints to the bit, groups checked before a weight is loaded.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use tempering::error::Error;
use tempering::recipe::RunOptions;
use tempering::report::SilentReporter;

use super::resume::Interrupter;
use crate::support::pipeline::run_recipe;

/// Six steps of supervised fine-tuning.
fn recipe(optim: &str) -> String {
    format!(
        r#"(name: "o", model: "tiny", seed: 1, stages: [
            Sft(name: "sft", data: (source: Posts(rows: 24, seed: 1)), batch_size: 4, max_length: 96, optim: ({optim})),
        ])"#
    )
}

fn go(text: &str, folder: &Path, options: &RunOptions) -> Result<(), Error> {
    let reporter = &mut SilentReporter;
    run_recipe::<Flex>(text, folder, Default::default(), options, reporter).map(|_| ())
}

#[test]
fn every_optimiser_resumes_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (index, optim) in [
        "algorithm: AdamW8bit, weight_decay: 0.1",
        "algorithm: Adafactor(beta1: 0.9), schedule: Wsd(warmup_steps: 1, decay_ratio: 0.5)",
        "algorithm: Lion(), lr: 3e-5, schedule: InverseSqrt(warmup_steps: 2)",
        "algorithm: Sgd(nesterov: true), lr: 1e-2",
        "algorithm: Sgd(momentum: 0.0), lr: 1e-2, schedule: Polynomial(power: 2.0)",
        "algorithm: Muon(), lr: 1e-3, schedule: CosineWithRestarts(num_cycles: 2)",
        // Parts of what is one matrix.
        r#"algorithm: Muon(), lr: 1e-3, groups: [(pattern: "k_proj|gate", lr: 1e-4), (pattern: "embed", weight_decay: 0.1)]"#,
        r#"groups: [(pattern: "layers\\.0\\.", lr: 1e-5, weight_decay: 0.0)]"#,
    ]
    .iter()
    .enumerate()
    {
        let text = recipe(optim);
        let options = |name: &str| RunOptions {
            output: Some(folder.path().join(format!("{index}-{name}"))),
            ..RunOptions::default()
        };
        let whole = options("whole");
        go(&text, folder.path(), &whole).unwrap_or_else(|e| panic!("{optim}: {e}"));
        let mut parts = options("parts");
        let mut reporter = Interrupter("sft", 3, parts.interrupt.clone());
        let outcome =
            run_recipe::<Flex>(&text, folder.path(), Default::default(), &parts, &mut reporter);
        assert!(matches!(outcome, Err(Error::Interrupted { .. })), "{optim}");
        parts = RunOptions {
            resume: true,
            ..options("parts")
        };
        go(&text, folder.path(), &parts).unwrap_or_else(|e| panic!("{optim}: {e}"));
        for file in ["sft/metrics.jsonl", "sft/model/model.safetensors"] {
            let [a, b] = [&whole, &parts].map(|run| {
                let path = run.output.as_ref().unwrap().join(file);
                fs::read(path).unwrap()
            });
            assert!(a == b, "{optim}: {file}");
        }
    }
}

#[test]
fn groups_that_match_nothing_are_refused_before_a_weight_is_loaded() {
    let refused = |stage: &str| {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(r#"(name: "o", model: "tiny", stages: [{stage}])"#);
        let options = RunOptions {
            output: Some(folder.path().join("run")),
            ..RunOptions::default()
        };
        let error = go(&text, folder.path(), &options).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(!folder.path().join("run").exists());
        error.to_string()
    };
    let message = refused(
        r#"Sft(name: "a", data: (source: Posts(rows: 16, seed: 1)), batch_size: 8, max_length: 96,
            optim: (groups: [(pattern: "layers\\.0\\.", lr: 1e-5), (pattern: "layer\\.1\\.", lr: 1e-5)]))"#,
    );
    let expected = "stages.a.optim.groups.1.pattern: \"layer\\\\.1\\\\.\" matches none of the ";
    assert!(message.contains(expected), "{message}");
    assert!(
        message.contains("tensors that are trained, such as model.embed_tokens.weight"),
        "{message}"
    );
    assert!(!message.contains("groups.0"), "{message}");
    // With adapters, theirs are the tensors.
    let message = refused(
        r#"Sft(name: "a", data: (source: Posts(rows: 16, seed: 1)), batch_size: 8, max_length: 96, peft: Lora(rank: 4),
            optim: (groups: [(pattern: "lora_B", lr: 1e-3), (pattern: "embed_tokens", lr: 1e-5)]))"#,
    );
    assert!(
        message.contains("optim.groups.1.pattern") && message.contains("lora_A.weight"),
        "{message}"
    );
    assert!(!message.contains("groups.0"), "{message}");
}
