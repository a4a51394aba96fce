//! The papers' recipes in short: each runs, resumes to the bit, and does what its paper says where that can be read off.

use std::fs;
use std::path::{Path, PathBuf};

use burn::backend::Flex;
use serde_json::Value;
use tempering::recipe::RunOptions;
use tempering::report::SilentReporter;

use super::resume::run_until;
use crate::support::pipeline::{self, metrics, values};

/// The text of a recipe of `recipes/short`.
fn short(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/short");
    fs::read_to_string(folder.join(format!("{name}.ron"))).unwrap()
}

/// The files below `folder` that hold results.
fn results(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["checkpoints", "best"].contains(&&*name) {
                results(&path, found);
            }
        } else if name.ends_with(".safetensors")
            || [
                "metrics.jsonl",
                "samples.jsonl",
                "train.jsonl",
                "valid.jsonl",
            ]
            .contains(&&*name)
        {
            found.push(path);
        }
    }
}

/// Runs the recipe `name` whole and with an interruption after each of `stops`: all results are equal. Returns the folder and the
/// whole run.
fn resumes(name: &str, stops: &[(&'static str, usize)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|run| folder.path().join(run));
    let text = short(name);
    assert!(!run_until(&text, folder.path(), &whole, None));
    for stop in stops {
        assert!(
            run_until(&text, folder.path(), &parts, Some(*stop)),
            "{stop:?}"
        );
    }
    assert!(!run_until(&text, folder.path(), &parts, None));
    let mut files = Vec::new();
    results(&whole, &mut files);
    assert!(files.len() > 10, "{files:?}");
    for file in files {
        let other = parts.join(file.strip_prefix(&whole).unwrap());
        assert!(
            fs::read(&file).unwrap() == fs::read(&other).unwrap(),
            "{}",
            file.display()
        );
    }
    (folder, whole)
}

/// The rows that a stage wrote.
fn rows(run: &Path, stage: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join(stage).join("train.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The error of running `recipe`.
fn refused(folder: &tempfile::TempDir, recipe: &str) -> String {
    let options = RunOptions {
        output: Some(folder.path().join("run")),
        ..RunOptions::default()
    };
    let reporter = &mut SilentReporter;
    let device = Default::default();
    pipeline::run_recipe::<Flex>(recipe, folder.path(), device, &options, reporter)
        .unwrap_err()
        .to_string()
}

#[test]
fn llama2_keeps_the_best_of_all_rounds() {
    let (_folder, run) = resumes("llama2", &[("chat-1", 1), ("chat-2", 3), ("ppo", 1)]);
    let samples = rows(&run, "samples-1");
    assert_eq!(samples.len(), 12);
    let row = &samples[0];
    assert_eq!(row["responses"].as_array().unwrap().len(), 4);
    let numbers = |key: &str| -> Vec<f64> {
        let list = row[key].as_array().unwrap().iter();
        list.map(|value| value.as_f64().unwrap()).collect()
    };
    let (scores, ranks) = (numbers("scores"), numbers("ranks"));
    let best = (0..4).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
    assert_eq!(ranks[best], 1.0, "{scores:?} {ranks:?}");
    // Two epochs in batches of 8: of the best of 12 prompts, then of 24.
    assert_eq!(values(&run, "chat-1", "loss").len(), 4);
    assert_eq!(values(&run, "chat-2", "loss").len(), 6);
}

#[test]
fn instructgpt_leaves_the_checkpoint_that_the_reward_model_prefers() {
    let (_folder, run) = resumes(
        "instructgpt",
        &[("sft", 3), ("sft", 7), ("ppo_init", 3), ("ppo", 2)],
    );
    let rewards: Vec<(u64, f64)> = (metrics(&run, "sft").iter())
        .filter_map(|row| Some((row["step"].as_u64()?, row["eval/reward"].as_f64()?)))
        .collect();
    assert_eq!(
        rewards.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        [0, 2, 4, 6, 8, 9]
    );
    let mut best = rewards[1];
    for reward in &rewards[2..] {
        if reward.1 > best.1 {
            best = *reward;
        }
    }
    let record = fs::read_to_string(run.join("sft/stage.json")).unwrap();
    let kept = format!("kept step {} of 9, eval/reward ", best.0);
    assert!(record.contains(&kept), "{kept}: {record}");
    // 0.1 of the peak, then 0.55, then the peak.
    let rates = values(&run, "ppo", "lr");
    for (rate, expected) in rates.iter().zip([1e-5, 5.5e-5, 1e-4]) {
        assert!((rate - expected).abs() < 1e-9, "{rates:?}");
    }
}

#[test]
fn ziegler_trains_the_reward_model_on_all_labels_so_far() {
    let (_folder, run) = resumes(
        "ziegler",
        &[
            ("reward-1", 1),
            ("policy-1", 1),
            ("reward-2", 2),
            ("policy-2", 1),
        ],
    );
    assert_eq!(
        (rows(&run, "labels-1").len(), rows(&run, "labels-2").len()),
        (12, 12)
    );
    let steps = |stage: &str| values(&run, stage, "loss").len();
    assert!(steps("reward-2") > steps("reward-1"));
    // The second round begins at a policy that has left the reference.
    let kl = |stage: &str| values(&run, stage, "objective/kl")[0];
    assert!(kl("policy-1").abs() < 1e-3, "{}", kl("policy-1"));
    assert!(kl("policy-2").abs() > 1e-3, "{}", kl("policy-2"));
}

#[test]
fn rest_improves_on_what_is_above_a_rising_threshold() {
    let (_folder, run) = resumes(
        "rest",
        &[
            ("policy-1-1", 2),
            ("policy-1-2", 3),
            ("policy-2-1", 1),
            ("policy-2-2", 3),
        ],
    );
    // Four samples and the row's own completion.
    let samples = rows(&run, "samples-1");
    assert_eq!(samples[0]["scores"].as_array().unwrap().len(), 5);
    assert_eq!(values(&run, "samples-1", "own_completions"), [16.0]);
    let rates = ["policy-1-1", "policy-1-2"].map(|stage| values(&run, stage, "lr")[0]);
    assert_eq!(rates, [5e-4, 2e-4]);
}

#[test]
fn distill_brings_every_student_nearer_to_its_teacher() {
    let (_folder, run) = resumes(
        "distill",
        &[
            ("supervised", 2),
            ("mixed", 1),
            ("mixed", 3),
            ("reverse", 3),
            ("forward", 2),
        ],
    );
    for (stage, shares) in [
        ("supervised", &[0.0][..]),
        ("mixed", &[0.0, 1.0]),
        ("reverse", &[1.0]),
        ("forward", &[1.0]),
    ] {
        let own = values(&run, stage, "on_policy");
        assert_eq!(own.len(), 4, "{stage}");
        for share in shares {
            assert!(own.contains(share), "{stage}: {own:?}");
        }
        assert!(
            own.iter().all(|own| shares.contains(own)),
            "{stage}: {own:?}"
        );
        let divergence = values(&run, stage, "eval/loss");
        assert!(divergence[2] < divergence[0], "{stage}: {divergence:?}");
    }
}

#[test]
fn a_threshold_that_keeps_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = &short("rest").replace("Each([0.0, 0.3])", "Each([0.0, 9.0])");
    let error = refused(&folder, text);
    assert!(
        error.contains("`take` keeps none of the 80 responses; the highest score is "),
        "{error}"
    );
}

#[test]
fn residual_dropout_is_the_same_when_layers_are_recomputed() {
    let folder = tempfile::tempdir().unwrap();
    let losses = |run: &str, more: &str| {
        let text = format!(
            r#"(name: "short", model: "tiny", stages: [
        Sft(name: "sft", data: (source: Posts(rows: 16, seed: 1)), eval_data: (source: Posts(rows: 4, seed: 2)), batch_size: 8,
            max_length: 128, micro_batch_tokens: 512, optim: (lr: 1e-3){more}),
    ])"#
        );
        let run = folder.path().join(run);
        assert!(!run_until(&text, folder.path(), &run, None));
        (
            values(&run, "sft", "loss"),
            values(&run, "sft", "eval/loss"),
        )
    };
    let (without, held_out) = losses("without", "");
    let (stored, before) = losses("stored", ", dropout: 0.2");
    let (recomputed, _) = losses("recomputed", ", dropout: 0.2, gradient_checkpointing: true");
    // Evaluations drop nothing.
    assert_eq!(before[0], held_out[0]);
    for step in 0..2 {
        assert!(
            (stored[step] - recomputed[step]).abs() < 1e-5,
            "{stored:?} {recomputed:?}"
        );
        assert!(
            (stored[step] - without[step]).abs() > 1e-3,
            "{stored:?} {without:?}"
        );
    }
}
