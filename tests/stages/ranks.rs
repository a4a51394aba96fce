//! The same recipe on one rank and on several, which are threads here; `.ci/ranks` does it with processes and MPI.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::backend::Flex;
use serde_json::Value;
use tempering::collective::Threads;
use tempering::error::Result;
use tempering::recipe::{self, RunOptions};
use tempering::report::{Interrupt, SilentReporter};

use super::resume::Interrupter;
use crate::support::pipeline;

const RECIPE: &str = include_str!("../ranks/short.ron");
const MORE: &str = include_str!("../ranks/more.ron");
const REDUCED: &str = include_str!("../ranks/reduced.ron");

/// Runs `file` on `world` ranks into `output`, or goes on there; `stop`: after that step of that stage a signal reaches the last rank.
fn run(
    file: &Path,
    output: &Path,
    world: usize,
    set: impl Fn(usize) -> Vec<String> + Sync,
    stop: Option<(&'static str, usize)>,
) -> Vec<Result<()>> {
    let resume = output.exists();
    Threads::run(world, |rank| {
        let options = RunOptions {
            output: Some(output.to_path_buf()),
            resume,
            interrupt: Interrupt::default(),
            ..RunOptions::default()
        };
        let checked = recipe::check(recipe::load_with_places(file, &set(rank))?, &options)?;
        let device = Default::default();
        match stop.filter(|_| rank + 1 == world) {
            Some((stage, step)) => {
                let mut reporter = Interrupter(stage, step, options.interrupt.clone());
                recipe::run::<Flex>(&checked, &options, device, "test", &mut reporter).map(drop)
            }
            None => {
                let reporter = &mut SilentReporter;
                recipe::run::<Flex>(&checked, &options, device, "test", reporter).map(drop)
            }
        }
    })
}

fn all_well(outcomes: Vec<Result<()>>) {
    for outcome in outcomes {
        outcome.unwrap();
    }
}

/// Files of a run that must be the same to the byte in every run of as many ranks.
fn files(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(run).unwrap() {
        let stage = entry.unwrap().path();
        for name in ["metrics.jsonl", "samples.jsonl", "train.jsonl"] {
            if let Ok(bytes) = fs::read(stage.join(name)) {
                let name = format!("{}/{name}", stage.file_name().unwrap().display());
                found.insert(name, bytes);
            }
        }
    }
    found
}

/// The largest difference of a metric of two runs, relative to 1 or to the metric if it is larger, and which it is.
fn difference(a: &Path, b: &Path, stage: &str) -> (f64, String) {
    let (a, b) = (pipeline::metrics(a, stage), pipeline::metrics(b, stage));
    assert_eq!(a.len(), b.len(), "{stage}");
    let mut largest = (0.0, String::new());
    for (a, b) in a.iter().zip(&b) {
        let (a, b) = (a.as_object().unwrap(), b.as_object().unwrap());
        let names =
            |row: &serde_json::Map<String, Value>| -> Vec<String> { row.keys().cloned().collect() };
        assert_eq!(names(a), names(b), "{stage}");
        for (name, value) in a {
            let (Some(x), Some(y)) = (value.as_f64(), b[name].as_f64()) else {
                assert_eq!(value, &b[name], "{stage} {name}");
                continue;
            };
            let off = (x - y).abs() / x.abs().max(1.0);
            if off > largest.0 {
                largest = (
                    off,
                    format!("{stage} step {} {name}: {x} and {y}", a["step"]),
                );
            }
        }
    }
    largest
}

/// Runs the recipe with one rank and with the numbers of ranks in `worlds`, and with `twice` once more. All metrics of all `stages`
/// agree with those of one rank to 1e-5, and those of both runs of `twice` ranks to the byte. Returns the folder, whose runs have the
/// numbers of ranks for names.
fn agree(recipe: &str, stages: usize, worlds: &[usize], twice: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recipe.ron");
    fs::write(&file, recipe).unwrap();
    let at = |name: &str| folder.path().join(name);
    let runs = [1].iter().chain(worlds);
    let runs = runs.map(|&world| (world, world.to_string()));
    for (world, name) in runs.chain([(twice, "again".into())]) {
        all_well(run(&file, &at(&name), world, |_| Vec::new(), None));
    }
    let found: Vec<String> = (fs::read_dir(at("1")).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("metrics.jsonl").exists())
        .map(|path| path.file_name().unwrap().display().to_string())
        .collect();
    assert_eq!(found.len(), stages, "{found:?}");
    for world in worlds {
        for stage in &found {
            let (off, what) = difference(&at("1"), &at(&world.to_string()), stage);
            eprintln!("{world} ranks, {stage}: {off:.1e} ({what})");
            assert!(off < 1e-5, "{world} ranks: {what}");
        }
    }
    let (first, again) = (files(&at(&twice.to_string())), files(&at("again")));
    assert!(first.len() > stages, "{:?}", first.keys());
    for (name, bytes) in &first {
        assert!(
            again[name] == *bytes,
            "{name} differs between two runs of {twice} ranks"
        );
    }
    folder
}

#[test]
fn ranks_have_the_numbers_of_one() {
    // A reward program that takes its score from the text.
    let script =
        r#"["sh", "-c", "while read -r line; do echo \"{\\\"score\\\": 0.${#line}}\"; done"]"#;
    let recipe = RECIPE.replace(r#"["cat"]"#, script);
    let folder = agree(&recipe, 15, &[2, 4], 2);
    let at = |name: &str| folder.path().join(name);
    // Sampled rows do not depend on the number of ranks.
    let (one, two) = (files(&at("1")), files(&at("2")));
    assert!(one["rank/train.jsonl"] == two["rank/train.jsonl"]);
    assert_eq!(
        fs::read_dir(at("2")).unwrap().count(),
        fs::read_dir(at("1")).unwrap().count()
    );
}

#[test]
fn every_other_stage_and_adapter_method_has_the_numbers_of_one() {
    let folder = agree(MORE, 21, &[3], 3);
    let [one, three] = ["1", "3"].map(|name| files(&folder.path().join(name)));
    for stage in ["sample", "label", "revise"] {
        let name = format!("{stage}/train.jsonl");
        assert!(one[&name] == three[&name], "{name}");
    }
}

#[test]
fn adapters_on_four_bits_have_the_numbers_of_one() {
    agree(REDUCED, 2, &[2], 2);
}

const RESUMED: &str = r#"(name: "r", model: "tiny", seed: 5, stages: [
    Sft(name: "sft", data: (source: Posts(rows: 48, seed: 2)), eval_data: (source: Posts(rows: 5, seed: 3)), peft: Lora(rank: 4),
        optim: (lr: 1e-3), batch_size: 8, max_length: 128, cadence: (eval_steps: 2, save_steps: 2, num_samples: 1)),
    Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 48, seed: 6)), reward: Gold, peft: Lora(rank: 4),
        optim: (lr: 3e-4), total_episodes: 24, batch_size: 6, response_length: 8, max_prompt_length: 96)])"#;

#[test]
fn a_signal_to_any_rank_stops_all_and_another_number_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.ron");
    fs::write(&file, RESUMED).unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    all_well(run(&file, &whole, 1, |_| Vec::new(), None));
    // From the only rank, then from rank 1 of two.
    for (world, stage, step) in [(1, "sft", 3), (2, "ppo", 2)] {
        for outcome in run(&file, &parts, world, |_| Vec::new(), Some((stage, step))) {
            let message = outcome.unwrap_err().to_string();
            assert!(message.contains(&format!("step {step}")), "{message}");
        }
    }
    all_well(run(&file, &parts, 3, |_| Vec::new(), None));
    for stage in ["sft", "ppo"] {
        let (off, what) = difference(&whole, &parts, stage);
        assert!(off < 1e-5, "{what}");
    }
}

#[test]
fn ranks_that_train_differently_are_found_before_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.ron");
    fs::write(&file, RESUMED).unwrap();
    let output = folder.path().join("out");
    let set = |rank: usize| match rank {
        0 => Vec::new(),
        _ => vec!["stages.sft.optim.lr=2e-3".to_owned()],
    };
    for outcome in run(&file, &output, 2, set, None) {
        let message = outcome.unwrap_err().to_string();
        let want = "after step 2 the trained weights of rank 1 of 2 on thread 1 differ";
        assert!(message.contains(want), "{message}");
    }
    assert!(!output.join("sft/checkpoints/step-000002").exists());
}
