//! OnlineDpo: it learns what the reward asks for, resumes to the bit, leaves the policy alone where all scores are equal, and refuses what
//! cannot be compared.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use serde_json::Value;
use tempering::recipe::{self, RunOptions};
use tempering::report::SilentReporter;

use super::resume::run_until;
use crate::support::pipeline::metrics;

/// A recipe of one stage on the embedded posts.
fn text(keys: &str) -> String {
    let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny"));
    format!(
        "(name: \"r\", model: {model:?}, stages: [OnlineDpo(name: \"stage\", init: Base,
            data: (source: Posts(rows: 12, seed: 3)), max_prompt_length: 512, {keys})])"
    )
}

const SHORT: &str = "micro_batch_tokens: 8192, reward: Gold, response_length: 12, batch_size: 8, peft: Lora(rank: 4), optim: (lr: 1e-2)";

fn run(folder: &Path, keys: &str, output: &str) -> Vec<Value> {
    let file = folder.join("r.ron");
    fs::write(&file, text(keys)).unwrap();
    let options = RunOptions {
        output: Some(folder.join(output)),
        ..RunOptions::default()
    };
    let loaded = recipe::load_with_places(&file, &[]).unwrap_or_else(|e| panic!("{e}"));
    let checked = recipe::check(loaded, &options).unwrap_or_else(|e| panic!("{e}"));
    let device = Default::default();
    recipe::run::<Flex>(&checked, &options, device, "flex", &mut SilentReporter)
        .unwrap_or_else(|e| panic!("{e}"));
    metrics(&folder.join(output), "stage")
}

fn of(line: &Value, name: &str) -> f64 {
    line[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name} of {line}"))
}

#[test]
fn pairs_of_the_policy_teach_it_what_is_rewarded() {
    let folder = tempfile::tempdir().unwrap();
    let keys = format!("{SHORT}, total_episodes: 32, num_generations: 4");
    let lines = run(folder.path(), &keys, "out");
    assert_eq!(lines.len(), 4);
    // Before the first update the policy is its reference.
    assert!(
        (of(&lines[0], "loss") - 2f64.ln()).abs() < 1e-4,
        "{}",
        lines[0]
    );
    assert!(of(&lines[0], "objective/kl").abs() < 1e-3);
    assert!(of(&lines[0], "objective/scores_margin") > 0.0);
    assert_eq!(of(&lines[3], "episode"), 32.0);
    assert!(of(&lines[3], "objective/kl").abs() > 1e-3, "{}", lines[3]);
}

/// TRL's online IPO has the margin summed over tokens: 1 / (4 beta^2) at the reference.
#[test]
fn ipo_is_of_summed_log_ratios() {
    let folder = tempfile::tempdir().unwrap();
    let keys = format!("{SHORT}, total_episodes: 16, loss_type: ipo, beta: 0.25");
    let lines = run(folder.path(), &keys, "out");
    assert!((of(&lines[0], "loss") - 4.0).abs() < 1e-3, "{}", lines[0]);
    // One micro-batch or several: the same.
    let split = run(
        folder.path(),
        &keys.replace("micro_batch_tokens: 8192", "micro_batch_tokens: 536"),
        "split",
    );
    let duplicate = lines[0].as_object().unwrap();
    for (name, value) in duplicate {
        let (a, b) = (value.as_f64().unwrap(), of(&split[0], name));
        assert!(
            (a - b).abs() < 1e-3 * a.abs().max(1.0),
            "{name}: {a} and {b}"
        );
    }
}

#[test]
fn prompts_with_equal_scores_make_no_pair() {
    let folder = tempfile::tempdir().unwrap();
    let keys = SHORT.replace("Gold", "Pattern(regex: \"no such text\")");
    let lines = run(folder.path(), &format!("{keys}, total_episodes: 16"), "out");
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert_eq!(of(line, "val/tie_rate"), 1.0);
        assert!(line.get("loss").is_none(), "{line}");
    }
}

#[test]
fn an_interrupted_run_ends_as_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = text(&format!(
        "{SHORT}, total_episodes: 32, eval_data: (source: Posts(rows: 4, seed: 9)), missing_eos: Subtract(1.0)"
    ));
    let [whole, parts] = ["whole", "parts"].map(|name| folder.join(name));
    assert!(!run_until(&text, folder, &whole, None));
    assert!(run_until(&text, folder, &parts, Some(("stage", 1))));
    assert!(run_until(&text, folder, &parts, Some(("stage", 3))));
    assert!(!run_until(&text, folder, &parts, None));
    for file in [
        "metrics.jsonl",
        "samples.jsonl",
        "adapter/adapter_model.safetensors",
    ] {
        let read = |run: &Path| fs::read(run.join("stage").join(file)).unwrap();
        assert!(read(&whole) == read(&parts), "{file}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.ron");
    for (keys, parts) in [
        (
            "total_episodes: 16, num_generations: 1",
            &["num_generations", "at least 2"][..],
        ),
        (
            "total_episodes: 16, num_generations: 3",
            &["batch_size", "multiple of num_generations 3", "e.g. 9"],
        ),
        (
            "total_episodes: 12",
            &["total_episodes", "multiple of batch_size 8", "e.g. 16"],
        ),
        ("total_episodes: 16, beta: 0.0", &["beta", "above 0"]),
        (
            "total_episodes: 16, temperature: 0.0",
            &["temperature", "above 0"],
        ),
        (
            "total_episodes: 16, loss_type: hinge",
            &["`hinge`", "sigmoid"],
        ),
    ] {
        fs::write(&file, text(&format!("{SHORT}, {keys}"))).unwrap();
        let checked = recipe::load_with_places(&file, &[])
            .and_then(|loaded| recipe::check(loaded, &RunOptions::default()));
        let Err(error) = checked else {
            panic!("taken: {keys}")
        };
        let error = error.to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in\n{error}");
        }
    }
}
